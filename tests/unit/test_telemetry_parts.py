"""The parts of the telemetry that can be looked at alone. None of them makes a call fail."""

from __future__ import annotations

import json
import logging
import sys
from types import ModuleType
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from psycopg import errors

from glasspoint import Telemetry, create_telemetry
from glasspoint.model.scope import Scope
from glasspoint.telemetry import configure, figures
from glasspoint.telemetry.causes import causes
from glasspoint.telemetry.content import input_attributes, output_attributes
from glasspoint.telemetry.events import PoolWaited, Quarantined, TierChanged, failures
from glasspoint.telemetry.figures import TextReader, read_registry
from glasspoint.telemetry.graph_spans import GraphSpans
from workers import Worker

SCOPE = Scope("t", "")


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


def test_messages_are_told_with_calls_of_tools_and_what_the_tools_answered() -> None:
    asks = AIMessage("", tool_calls=[{"name": "look_up", "args": {"day": 1}, "id": "7"}])
    answered = ToolMessage("sunny", tool_call_id="7")
    told = input_attributes([HumanMessage("weather?"), asks, answered])
    assert [each["parts"] for each in json.loads(told["gen_ai.input.messages"])] == [
        [{"type": "text", "content": "weather?"}],
        [{"type": "tool_call", "id": "7", "name": "look_up", "arguments": {"day": 1}}],
        [{"type": "tool_call_response", "id": "7", "response": "sunny"}],
    ]
    [asking] = json.loads(output_attributes(asks)["gen_ai.output.messages"])
    assert asking["finish_reason"] == "tool_call"


def test_writes_that_are_none_cost_only_the_interrupts_in_them() -> None:
    telemetry, before = Telemetry("default", ()), failures.dropped["spans"]
    odd: Any = [None]
    assert telemetry.storing_writes(SCOPE, "task", odd) == ()
    telemetry.read_writes(SCOPE, odd)
    assert failures.dropped["spans"] == before + 2


@pytest.mark.parametrize(
    "metadata", ['{"langgraph_checkpoint_ns": "node:cut off', '["langgraph_checkpoint_ns"]']
)
def test_metadata_of_a_span_that_are_cut_off_name_no_task(provider: TracerProvider, metadata: str) -> None:
    provider.add_span_processor(GraphSpans())
    tracer = provider.get_tracer("openinference.instrumentation.langchain")
    before = failures.dropped["spans"]
    with tracer.start_as_current_span("node", attributes={"metadata": metadata}):
        pass
    assert causes.tasks.get("cut off") is None
    assert failures.dropped["spans"] == before


def test_what_happens_in_a_call_is_an_event_of_its_span(
    provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)
    with telemetry.operation("put", SCOPE):
        telemetry.emit(Quarantined("its key"))
        telemetry.emit(TierChanged("cached", "redis", "postgres_unavailable"))
        telemetry.emit(PoolWaited(1.0, SCOPE, errors.TooManyConnections()))
    waited, put = spans.get_finished_spans()
    assert [(each.name, dict(each.attributes or {})) for each in put.events] == [
        ("glasspoint.l1.quarantine", {"reason": "its key"}),
        (
            "glasspoint.fallback",
            {
                "glasspoint.from_tier": "cached",
                "glasspoint.to_tier": "redis",
                "reason": "postgres_unavailable",
            },
        ),
    ]
    assert waited.name == "checkpoint.l2.acquire"
    assert (waited.attributes or {})["db.response.status_code"] == "53300"


def test_more_series_than_are_remembered_are_read_right(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    worker.call("get_tuple", 3, l1_result="hit", served_by="l1")
    worker.call("put", 2, l1_write="announced", l1_seconds=0.001, l2_seconds=0.002)
    expected, of_registry = TextReader().read(worker.text()), read_registry(worker.registry)
    monkeypatch.setattr(figures, "_MOST_SERIES", 1)
    reader = TextReader()
    for _ in range(2):
        found = reader.read(worker.text())
        assert (found.values, found.buckets) == (expected.values, expected.buckets)
        found = read_registry(worker.registry)
        assert (found.values, found.buckets) == (of_registry.values, of_registry.buckets)


def test_spans_go_to_the_console_if_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none, console")
    assert [type(each) for each in configure._exporters(1.0)] == [ConsoleSpanExporter]


def test_instrumentations_that_are_missing_fail_or_refuse_are_not_on_and_the_others_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, provider: TracerProvider
) -> None:
    class Works:
        is_instrumented_by_opentelemetry = False

        def instrument(self, *, tracer_provider: TracerProvider) -> None:
            self.is_instrumented_by_opentelemetry = True

    class Refuses(Works):
        """As for a version of its library that it does not know."""

        def instrument(self, *, tracer_provider: TracerProvider) -> None:
            pass

    class Fails(Works):
        def instrument(self, *, tracer_provider: TracerProvider) -> None:
            raise LookupError("secret")

    module: Any = ModuleType("instrumentations")
    module.Works, module.Refuses, module.Fails = Works, Refuses, Fails
    monkeypatch.setitem(sys.modules, "instrumentations", module)
    here = [
        configure._Instrumentation(each, "instrumentations", each) for each in ("Fails", "Refuses", "Works")
    ]
    missing = configure._Instrumentation("missing", "no_such_module", "Missing")
    monkeypatch.setattr(configure, "_INSTRUMENTATIONS", (missing, *here))
    assert list(configure._instrument(provider)) == ["Works"]
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING] == [
        "instrumentations could not be turned on (LookupError)."
    ]
