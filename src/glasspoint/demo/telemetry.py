"""The demo's side of observability: an application that watches the saver, with the OTel SDK set up for it.

Glasspoint as a library only speaks to the OpenTelemetry API and to a Prometheus registry that it is given;
here is what an application puts behind them (`configure_telemetry`). Spans are kept in memory (bounded) so
that the terminal can show a turn's trace, and go to an OTLP collector as well if
`OTEL_EXPORTER_OTLP_ENDPOINT` is set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry

from glasspoint.demo.conversation import AGENT_NAME
from glasspoint.errors import ConfigurationError
from glasspoint.logs import kept_warnings
from glasspoint.telemetry import ConversationTurn, Telemetry, conversation_turn, create_telemetry
from glasspoint.telemetry.configure import configure_telemetry
from glasspoint.telemetry.redacting import RedactingExporter
from glasspoint.telemetry.thread_ids import choose

__all__ = ["CounterWatch", "Moved", "Observed", "SpanCollector", "SpanFile", "observe"]

_EXPORT_LOGGERS = ("opentelemetry", "glasspoint.telemetry")

_KEPT_SPANS = 4096
_EXPORT_SECONDS = 3.0


class SpanCollector(SpanProcessor):
    """Keeps Glasspoint's newest ended spans, `capacity` at most, until somebody takes those of a trace."""

    def __init__(self, *, capacity: int = _KEPT_SPANS) -> None:
        self._spans: deque[ReadableSpan] = deque(maxlen=capacity)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span of Glasspoint's."""
        scope = span.instrumentation_scope
        if scope is not None and scope.name == "glasspoint":
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


class SpanFile(BatchSpanProcessor):
    """Writes spans to a file as OTLP JSON lines until it is shut down. What is there already stays."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Args:
            path: The file.

        Raises:
            ConfigurationError: It cannot be written, or the exporter is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.json.file import FileSpanExporter
        except ImportError:
            raise ConfigurationError(
                "Spans are to be written to a file, but the exporter is not installed. Install it with "
                "pip install 'glasspoint[otlp-file]'."
            ) from None
        try:
            exporter = FileSpanExporter(path)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None
        super().__init__(RedactingExporter(exporter, thread_ids=choose(None), capture_content=False))
        self.path = path


@dataclass(frozen=True)
class Observed:
    """What the demo watches the saver with.

    Attributes:
        telemetry: what is passed to the saver.
        registry: where its metrics are.
        spans: what ended lately.
        exports_to: the host that spans go to besides, if any.
        spans_file: the file that they are written to besides, if any.
    """

    telemetry: Telemetry
    registry: CollectorRegistry
    spans: SpanCollector
    exports_to: str | None
    spans_file: SpanFile | None = None

    def turn(self, thread_id: str) -> ConversationTurn:
        """Wrap one turn of a conversation."""
        return conversation_turn(thread_id, agent_name=AGENT_NAME, telemetry=self.telemetry)


@contextmanager
def observe(*, lost: Callable[[str], None], spans_file: Path | None = None) -> Iterator[Observed]:
    """Set up tracing and metrics for the demo; at the end, send what is still to be sent.

    Args:
        lost: Told why, if spans could not be sent.
        spans_file: Where to write them besides.

    Raises:
        ConfigurationError: an OTLP endpoint is set, but the extra `otlp` is not installed; or the file
            cannot be written.
    """
    written = SpanFile(spans_file) if spans_file is not None else None
    spans, registry = SpanCollector(), CollectorRegistry()
    with kept_warnings(capacity=1, of=_EXPORT_LOGGERS) as export_warnings:
        try:
            # Not the process's own provider: what the demo's spectators see is the demo's alone.
            with configure_telemetry(
                service_name=AGENT_NAME,
                span_processors=[spans] if written is None else [spans, written],
                set_global=False,
                flush_seconds=_EXPORT_SECONDS,
            ) as configured:
                yield Observed(
                    telemetry=create_telemetry(registry=registry, tracer_provider=configured.tracer_provider),
                    registry=registry,
                    spans=spans,
                    exports_to=configured.exports_to,
                    spans_file=written,
                )
        finally:
            if export_warnings:
                lost(export_warnings[-1])


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
