"""configure_telemetry does what the standard variables say, and whatever the collector does, nobody waits."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import preforked
from glasspoint import configure_telemetry, conversation_turn, create_telemetry
from glasspoint.errors import ConfigurationError
from glasspoint.telemetry.configure import ConfiguredTelemetry
from otlp import Collector, collecting
from states import open_saver
from steps import Thread

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
INSTRUMENTORS = {
    "redis": RedisInstrumentor,
    "psycopg": PsycopgInstrumentor,
    "langchain": LangChainInstrumentor,
}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith("OTEL_"):
            monkeypatch.delenv(variable)


def configured(**options: Any) -> ConfiguredTelemetry:
    """Not the process's own: that could be set only once."""
    return configure_telemetry(set_global=False, **options)


def turn(under: ConfiguredTelemetry) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=under.tracer_provider)
    with conversation_turn("42", agent_name="concierge", telemetry=telemetry):
        pass


def are_on() -> set[str]:
    return {name for name, each in INSTRUMENTORS.items() if each().is_instrumented_by_opentelemetry}  # type: ignore[attr-defined]


# ------------------------------------------------------------------ variables


def test_what_is_installed_is_on_until_the_end() -> None:
    with configured() as under:
        assert set(under.instrumented) == are_on() == {"redis", "psycopg", "langchain"}
    assert are_on() == set()
    assert under.shutdown(), "twice is no error"


def test_what_was_on_before_stays_on() -> None:
    RedisInstrumentor().instrument(tracer_provider=TracerProvider())
    try:
        with configured() as under:
            assert "redis" not in under.instrumented
        assert are_on() == {"redis"}
    finally:
        RedisInstrumentor().uninstrument()


@pytest.mark.parametrize(
    ("variable", "value", "on"),
    [
        ("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "redis, langchain", {"psycopg"}),
        ("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "*", set()),
        ("OTEL_SDK_DISABLED", "true", set()),
    ],
)
def test_what_is_not_wanted_stays_off(
    variable: str, value: str, on: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with configured() as under:
        assert set(under.instrumented) == are_on() == on


@pytest.mark.parametrize(
    ("variables", "arrive"),
    [
        ({}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, False),
        ({"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_spans_are_sent_as_the_variables_say(
    variables: dict[str, str], arrive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        for variable, value in {ENDPOINT: collector.url, **variables}.items():
            monkeypatch.setenv(variable, value)
        with configured() as under:
            assert under.exports_to == (None if "none" in variables.values() else "127.0.0.1")
            turn(under)
        assert [span.name for span in collector.spans] == (["invoke_agent concierge"] if arrive else [])


@pytest.mark.parametrize(
    ("named", "name"),
    [({}, "ours"), ({"OTEL_SERVICE_NAME": "theirs"}, "theirs")],
    ids=["argument", "variable"],
)
def test_the_resource_is_what_the_variables_say(
    named: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        attributes = {"OTEL_RESOURCE_ATTRIBUTES": "service.version=7"}
        for variable, value in {ENDPOINT: collector.url, **attributes, **named}.items():
            monkeypatch.setenv(variable, value)
        with configured(service_name="ours") as under:
            turn(under)
    [span] = collector.spans
    assert (span.resource["service.name"], span.resource["service.version"]) == (name, "7")


def test_without_an_endpoint_nothing_is_sent_and_nothing_is_lost() -> None:
    kept = InMemorySpanExporter()
    with configured(span_processors=[SimpleSpanProcessor(kept)]) as under:
        assert under.exports_to is None
        turn(under)
    assert [span.name for span in kept.get_finished_spans()] == ["invoke_agent concierge"]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER is 'jaeger'"),
        ({ENDPOINT: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "PROTOCOL is 'smoke'"),
    ],
)
def test_what_is_not_known_is_an_error_and_leaves_nothing_on(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=says):
        configured()
    assert are_on() == set()


@pytest.mark.parametrize(
    ("protocol", "module", "extra"),
    [
        ("http/protobuf", "opentelemetry.exporter.otlp.proto.http.trace_exporter", "otlp"),
        ("grpc", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "otlp-grpc"),
    ],
)
def test_a_missing_exporter_is_an_error_that_says_how_to_get_it(
    protocol: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with pytest.raises(ConfigurationError, match=rf"pip install 'glasspoint\[{extra}\]'"):
        configured()


def test_only_who_configures_loads_the_sdk() -> None:
    program = "import sys, glasspoint; sys.exit('opentelemetry.sdk.trace' in sys.modules)"
    done = preforked.run(program, env=os.environ, timeout=60, source=preforked.of_libraries())
    assert done.returncode == 0, done.stderr


def test_what_was_not_shut_down_is_sent_at_the_end_of_the_process() -> None:
    program = """
import glasspoint
glasspoint.configure_telemetry()
with glasspoint.conversation_turn("42", agent_name="concierge"):
    pass
"""
    with collecting() as collector:
        variables = {**os.environ, ENDPOINT: collector.url}
        source = preforked.of_libraries()
        done = preforked.run(program, env=variables, timeout=60, is_taken_down=True, source=source)
    assert done.returncode == 0, done.stderr
    assert [span.name for span in collector.spans] == ["invoke_agent concierge"]


def test_a_second_set_up_of_one_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    with pytest.raises(ConfigurationError, match="set up already"):
        configure_telemetry()
    assert are_on() == set()


@contextmanager
def grpc_collector() -> Iterator[tuple[str, Collector]]:
    collector = Collector()

    class Servicer(TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            collector.take(request.SerializeToString())
            return ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", collector
    finally:
        server.stop(None).wait()


def test_spans_go_over_grpc_if_the_protocol_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with grpc_collector() as (url, collector):
        monkeypatch.setenv(ENDPOINT, url)
        with configured() as under:
            turn(under)
        assert [span.name for span in collector.spans] == ["invoke_agent concierge"]


@pytest.mark.parametrize("capture", [False, True])
async def test_the_text_of_a_database_error_is_content(
    capture: bool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg's instrumentation writes it on the span, and PostgreSQL quotes values in it."""
    with collecting() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        with configured(capture_content=capture):
            async with await psycopg.AsyncConnection.connect(database) as conn:
                with pytest.raises(psycopg.DataError, match="canary"):
                    await conn.execute("SELECT %s::text::integer", ["canary"])
    [span] = collector.named("SELECT")
    assert span.attributes["db.statement"] == "SELECT %s::text::integer"
    assert ("canary" in str(collector.requests)) is capture
    assert "exception.type" in str(collector.requests)


# ------------------------------------------------------------------ a collector that does not do its part


@contextmanager
def hanging() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("collector", [hanging, refusing])
async def test_a_collector_that_hangs_or_refuses_is_nothing_to_a_conversation(
    collector: Any, protocol: str, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More spans than the queue holds, and all calls are answered though not one span can ever be sent: if
    any of them waited for the exporter, which may try for an hour, this test would not end."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    thread = Thread("42")
    with collector() as url:
        monkeypatch.setenv(ENDPOINT, url)
        under = configured(flush_seconds=0.1)
        telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=under.tracer_provider)
        async with open_saver(database, redis_url, telemetry=telemetry) as saver:
            for _ in range(50):
                async with conversation_turn("42", telemetry=telemetry):
                    await thread.put(saver)
                    await thread.turn(saver)
        under.shutdown()


def test_spans_that_cannot_be_sent_in_time_are_given_up_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with hanging() as url:
        monkeypatch.setenv(ENDPOINT, url)
        under = configured(flush_seconds=0.1)
        turn(under)
        assert not under.shutdown()
    assert "could not be sent within 0.1 s" in caplog.text
