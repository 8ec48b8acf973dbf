"""Telemetry that is broken itself never fails a call: it is counted and logged, and the others are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import prometheus_client
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import Telemetry, conversation_turn, create_telemetry
from glasspoint.logs import Throttle
from glasspoint.telemetry.events import Observer, failures
from states import open_saver
from steps import Thread

CANARY = "canary-Gefluester-0452"


@pytest.fixture(autouse=True)
def fresh_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had failed in this process."""
    monkeypatch.setattr(failures, "count", 0)
    monkeypatch.setattr(failures, "_lines", Throttle())


def fail(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError(CANARY)


class Broken(Observer):
    """Fails at everything."""

    operation_started = operation_ended = step_started = step_ended = noted = opened = closed = fail


class Listening(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def operation_started(self, operation: Any) -> None:
        self.told.append(f"{operation.name} started")

    def operation_ended(self, operation: Any) -> None:
        self.told.append(f"{operation.name} {operation.outcome}")

    def step_started(self, step: Any) -> None:
        self.told.append(f"{step.name} started")

    def step_ended(self, step: Any) -> None:
        self.told.append(f"{step.name} {step.outcome}")

    def noted(self, note: Any) -> None:
        self.told.append(type(note).__name__)

    def opened(self, status: Any) -> None:
        self.told.append("opened")

    def closed(self, status: Any) -> None:
        self.told.append("closed")


class BrokenTracer(trace.Tracer):
    start_span = fail
    start_as_current_span = fail


class BrokenProvider(trace.TracerProvider):
    """An application's own, that nobody has tried."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return BrokenTracer()


class FailsAtStart(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        fail()


class FailsAtEnd(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        fail()


def processed_by(processor: SpanProcessor) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


def broken_provider(monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    return create_telemetry(registry=CollectorRegistry(), tracer_provider=BrokenProvider())


def processor_that_fails_at_start(monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    return create_telemetry(registry=CollectorRegistry(), tracer_provider=processed_by(FailsAtStart()))


def processor_that_fails_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    return create_telemetry(registry=CollectorRegistry(), tracer_provider=processed_by(FailsAtEnd()))


def metrics_that_fail(monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    telemetry = create_telemetry(registry=CollectorRegistry())
    monkeypatch.setattr(prometheus_client.Histogram, "observe", fail)
    monkeypatch.setattr(prometheus_client.Counter, "inc", fail)
    return telemetry


def broken_observer(monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    return Telemetry("default", (Broken(),))


@pytest.mark.parametrize(
    "broken",
    [
        broken_observer,
        broken_provider,
        processor_that_fails_at_start,
        processor_that_fails_at_the_end,
        metrics_that_fail,
    ],
)
async def test_calls_are_answered_whatever_telemetry_does(
    broken: Callable[[pytest.MonkeyPatch], Telemetry],
    database: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    telemetry, listening = broken(monkeypatch), Listening()
    telemetry = Telemetry("default", (listening, *telemetry.observers, listening))
    thread = Thread("a")
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    around = trace.NonRecordingSpan(trace.SpanContext(7, 7, is_remote=False, trace_flags=sampled))
    with trace.use_span(around), caplog.at_level(logging.INFO):
        async with open_saver(database, redis_url, telemetry=telemetry) as saver:
            await thread.put(saver)
            await thread.put_writes(saver, "x")
            assert await thread.turn(saver) == 1
            async with Redis.from_url(redis_url) as redis:
                await redis.flushall()
            assert await thread.turn(saver) == 1
            assert await thread.turn(saver) == 1
            assert [each.config async for each in saver.alist(thread.config)] == [thread.newest]
            await saver.adelete_thread("a")
            assert await saver.aget_tuple(thread.config) is None
            assert trace.get_current_span() is around, "nothing that was begun is left behind"
    assert failures.count > 5
    for each in ("opened", "put ok", "l1.read ok", "get_tuple ok", "list ok", "delete_thread ok", "closed"):
        assert listening.told.count(each) % 2 == 0, "both, before it and after it, are told"
        assert each in listening.told
    lines = [record for record in caplog.records if record.name == "glasspoint.telemetry"]
    assert [record.levelname for record in lines] == ["WARNING"], "one line, not one each"
    assert "ZeroDivisionError" in lines[0].getMessage()
    assert CANARY not in caplog.text, "the text of an error may quote what was said"


async def test_an_error_reaches_the_caller_and_not_the_observers_error(database: str, redis_url: str) -> None:
    listening = Listening()
    telemetry = Telemetry("default", (Broken(), listening))
    with pytest.raises(LookupError, match="the caller's"), telemetry.operation("put", None):
        raise LookupError("the caller's")
    assert listening.told == ["put started", "put error"]


def test_after_a_minute_another_line_says_how_many_there_were(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = Telemetry("default", (Broken(),))
    for _ in range(3):
        with telemetry.operation("put", None):
            pass
    monkeypatch.setattr(failures._lines, "_logged_at", failures._lines._logged_at - 61)
    with telemetry.operation("put", None):
        pass
    told = [record.getMessage() for record in caplog.records]
    assert failures.count == 8
    assert ["(1 such" in told[0], "(6 such" in told[1], len(told)] == [True, True, 2]


def test_what_an_observer_leaves_out_is_not_called() -> None:
    class Counting(Observer):
        count = 0

        def step_ended(self, step: Any) -> None:
            self.count += 1

    counting = Counting()
    telemetry = Telemetry("default", (counting,))
    with telemetry.operation("put", None), telemetry.step("l1.begin", None):
        pass
    assert counting.count == 1
    assert failures.count == 0


@pytest.mark.parametrize("processor", [None, FailsAtStart(), FailsAtEnd()], ids=["tracer", "start", "end"])
def test_a_turn_goes_on_whatever_its_span_does(processor: SpanProcessor | None) -> None:
    provider = processed_by(processor) if processor is not None else BrokenProvider()
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)
    exporter = InMemorySpanExporter()
    tracer = processed_by(SimpleSpanProcessor(exporter)).get_tracer("application")
    with tracer.start_as_current_span("request") as request:
        with conversation_turn("42", agent_name="concierge", telemetry=telemetry) as span:
            span.set_attribute("mine", 1)
            if not isinstance(processor, FailsAtEnd):
                with tracer.start_as_current_span("model"):
                    pass
        assert trace.get_current_span() is request
        with (
            pytest.raises(LookupError, match="the caller's"),
            conversation_turn("42", telemetry=telemetry),
        ):
            raise LookupError("the caller's")
        assert trace.get_current_span() is request
    assert failures.count == 2
    for each in exporter.get_finished_spans()[:-1]:
        assert each.parent == request.get_span_context(), "not cut off from what is around the turn"


async def test_a_span_that_cannot_be_ended_is_the_parent_of_no_other(database: str, redis_url: str) -> None:
    exporter = InMemorySpanExporter()
    provider = processed_by(SimpleSpanProcessor(exporter))
    provider.add_span_processor(FailsAtEnd())
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        await thread.put(saver)
        await thread.turn(saver)
    named = {span.name: span for span in exporter.get_finished_spans()}
    put, get = named["checkpoint.put"], named["checkpoint.get_tuple"]
    assert (put.parent, get.parent) == (None, None)
    for step in ("l1.begin", "l2.put", "l1.confirm"):
        assert named[f"checkpoint.{step}"].parent == put.context
    assert failures.count >= 6  # a wait for a connection may be one more


def test_observers_end_in_the_order_opposite_to_how_they_began() -> None:
    told: list[str] = []

    class Named(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def operation_started(self, operation: Any) -> None:
            told.append(f"{self.name} began")

        def operation_ended(self, operation: Any) -> None:
            told.append(f"{self.name} ended")

    with Telemetry("default", (Named("first"), Named("second"))).operation("put", None):
        pass
    assert told == ["first began", "second began", "second ended", "first ended"]
