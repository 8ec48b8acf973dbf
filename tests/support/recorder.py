"""Spans as a test sees them: an SDK of its own, and trees of names. All of them keep the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    Sampler,
    SamplingResult,
)
from prometheus_client import CollectorRegistry

from glasspoint import Telemetry, create_telemetry
from span_contract import SpanContract

Tree = tuple[str, list[Any]]
"""The name of a span, and its children."""

CANARY = "canary-Gefluester-0451"
OFFENCES: list[str] = []


@pytest.fixture(autouse=True)
def spans_keep_the_contract() -> Iterator[None]:
    """What a test records is what the catalogue promises."""
    OFFENCES.clear()
    yield
    assert not OFFENCES


class Recorder:
    """An OpenTelemetry SDK of the test's own: every span that ended, and how many were asked for."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self.sampler = _Counting(sampler)
        self.provider = TracerProvider(sampler=self.sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.provider.add_span_processor(SpanContract(OFFENCES))
        self.registry = CollectorRegistry()
        self.telemetry: Telemetry = create_telemetry(registry=self.registry, tracer_provider=self.provider)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def clear(self) -> None:
        self._exporter.clear()
        self.sampler.asked.clear()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def forest(self) -> list[Tree]:
        """Names as nested (name, children), in the order of their start. Waits for a connection are left out:
        on a busy machine there may always be one."""
        ids = {id_of(span) for span in self.spans}
        children: dict[int | None, list[ReadableSpan]] = {}
        for span in sorted(self.spans, key=lambda s: s.start_time or 0):
            parent = span.parent.span_id if span.parent and span.parent.span_id in ids else None
            if span.name != "checkpoint.l2.acquire":
                children.setdefault(parent, []).append(span)

        def grow(parent: int | None) -> list[Tree]:
            return [(span.name, grow(id_of(span))) for span in children.get(parent, [])]

        return grow(None)


class _Counting(Sampler):
    def __init__(self, inner: Sampler) -> None:
        self._inner = inner
        self.asked: list[str] = []

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, *args: Any, **kw: Any
    ) -> SamplingResult:
        self.asked.append(name)
        return self._inner.should_sample(parent_context, trace_id, name, *args, **kw)

    def get_description(self) -> str:
        return "counting"


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# The first write of a burst, further ones, and the reader for whom it ends.
FIRST_PUT: Tree = (
    "checkpoint.put",
    [("checkpoint.l1.begin", []), ("checkpoint.l2.put", []), ("checkpoint.l1.confirm", [])],
)
PUT: Tree = ("checkpoint.put", [("checkpoint.l2.put", [])])
PUT_WRITES: Tree = ("checkpoint.put_writes", [("checkpoint.l2.put_writes", [])])
