"""The demo's side of observability: an application that watches the saver, with the OTel SDK set up for it.

Glasspoint as a library only speaks to the OpenTelemetry API and to a Prometheus registry that it is given;
here is what an application puts behind them. Spans are kept in memory (bounded) so that the terminal can
show a turn's trace, and go to an OTLP collector as well if `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, Tracer
from prometheus_client import CollectorRegistry

from glasspoint.demo.conversation import AGENT_NAME
from glasspoint.demo.logs import EXPORT_LOGGERS, kept_warnings
from glasspoint.errors import ConfigurationError
from glasspoint.telemetry import Telemetry, create_telemetry

__all__ = ["CounterWatch", "Moved", "Observed", "SpanCollector", "observe"]

_OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_KEPT_SPANS = 4096
_OTLP_TIMEOUT = "OTEL_EXPORTER_OTLP_TIMEOUT"
_EXPORT_SECONDS = 3.0


class SpanCollector(SpanProcessor):
    """Keeps the newest ended spans, `capacity` at most, until somebody takes those of a trace."""

    def __init__(self, *, capacity: int = _KEPT_SPANS) -> None:
        self._spans: deque[ReadableSpan] = deque(maxlen=capacity)

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def clear(self) -> None:
        """Forget all spans."""
        self._spans.clear()

    def take(self, trace_id: int) -> list[ReadableSpan]:
        """Return the spans of one trace, by start time. All spans kept so far are forgotten."""
        spans = [
            span for span in self._spans if span.context is not None and span.context.trace_id == trace_id
        ]
        self.clear()
        return sorted(spans, key=lambda span: span.start_time or 0)


@dataclass(frozen=True)
class Observed:
    """What the demo watches the saver with.

    Attributes:
        telemetry: what is passed to the saver.
        registry: where its metrics are.
        tracer: for the demo's own span around a turn.
        spans: what ended lately.
        exports_to: the host that spans go to besides, if any.
    """

    telemetry: Telemetry
    registry: CollectorRegistry
    tracer: Tracer
    spans: SpanCollector
    exports_to: str | None

    @contextmanager
    def turn(self, thread_id: str) -> Iterator[Span]:
        """Open the root span of one turn of a conversation, named as OpenTelemetry names an agent's turn."""
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": AGENT_NAME,
            "gen_ai.conversation.id": thread_id,
        }
        with self.tracer.start_as_current_span(f"invoke_agent {AGENT_NAME}", attributes=attributes) as span:
            yield span


@contextmanager
def observe(*, lost: Callable[[str], None]) -> Iterator[Observed]:
    """Set up tracing and metrics for the demo; at the end, send what is still to be sent.

    Args:
        lost: Told why, if spans could not be sent.

    Raises:
        ConfigurationError: an OTLP endpoint is set, but the extra `otlp` is not installed.
    """
    service = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: AGENT_NAME}
    provider = TracerProvider(resource=Resource.create(service))
    spans = SpanCollector()
    provider.add_span_processor(spans)
    endpoint = next((os.environ[name] for name in _OTLP_ENDPOINTS if os.environ.get(name)), None)
    if endpoint is not None:
        provider.add_span_processor(BatchSpanProcessor(_otlp_exporter()))
    registry = CollectorRegistry()
    with kept_warnings(capacity=1, of=EXPORT_LOGGERS) as export_warnings:
        try:
            yield Observed(
                telemetry=create_telemetry(registry=registry, tracer_provider=provider),
                registry=registry,
                tracer=provider.get_tracer("glasspoint.demo"),
                spans=spans,
                exports_to=endpoint and urlsplit(endpoint).hostname,
            )
        finally:
            provider.shutdown()  # sends what is left
            if export_warnings:
                lost(export_warnings[-1])


def _otlp_exporter() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the OTLP exporter is not installed. Install it with"
            " pip install 'glasspoint[otlp]', or unset the variable."
        ) from None
    # The time for one batch, retries included; an end of the demo that takes longer would look stuck.
    return OTLPSpanExporter(timeout=None if _OTLP_TIMEOUT in os.environ else _EXPORT_SECONDS)


@dataclass(frozen=True)
class Moved:
    """One counter that moved: its metric, the labels worth showing, and by how much."""

    metric: str
    labels: tuple[str, ...]
    by: int


class CounterWatch:
    """Says which of Glasspoint's counters moved since it was last asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._before = self._read()

    def moved(self) -> list[Moved]:
        """Return every `glasspoint_*_total` and `glasspoint_*_count` that grew, and start over."""
        before, self._before = self._before, self._read()
        return [
            Moved(metric, labels, int(value - before.get((metric, labels), 0)))
            for (metric, labels), value in self._before.items()
            if value > before.get((metric, labels), 0)
        ]

    def _read(self) -> Mapping[tuple[str, tuple[str, ...]], float]:
        return {
            (
                sample.name,
                tuple(value for label, value in sample.labels.items() if label != "saver"),
            ): sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name.startswith("glasspoint_") and sample.name.endswith(("_total", "_count"))
        }
