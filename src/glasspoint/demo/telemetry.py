"""The demo's observability: it sets up the OpenTelemetry SDK as an application does, and keeps the spans.

Glasspoint as a library uses only the OpenTelemetry API and a given Prometheus registry. An application sets
up what is behind them, with `configure_telemetry`. The demo keeps a bounded number of spans in memory, so
that the terminal can show a turn's trace. It also sends spans to an OTLP collector, if
`OTEL_EXPORTER_OTLP_ENDPOINT` is set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, ProcessCollector

from glasspoint.demo.conversation import AGENT_NAME
from glasspoint.errors import ConfigurationError
from glasspoint.logs import kept_warnings
from glasspoint.telemetry import ConversationTurn, Telemetry, conversation_turn, create_telemetry
from glasspoint.telemetry.catalogue import METRICS
from glasspoint.telemetry.configure import configure_telemetry
from glasspoint.telemetry.figures import Change, read_registry
from glasspoint.telemetry.redacting import RedactingExporter
from glasspoint.telemetry.thread_ids import choose

__all__ = ["CounterWatch", "Moved", "Observed", "SpanCollector", "SpanFile", "observe"]

_EXPORT_LOGGERS = ("opentelemetry", "glasspoint.telemetry")

_KEPT_SPANS = 4096
_EXPORT_SECONDS = 3.0


class SpanCollector(SpanProcessor):
    """Keeps Glasspoint's newest ended spans, `capacity` at most, until the spans of a trace are taken."""

    def __init__(self, *, capacity: int = _KEPT_SPANS) -> None:
        self._spans: deque[ReadableSpan] = deque(maxlen=capacity)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span if it is Glasspoint's."""
        scope = span.instrumentation_scope
        if scope is not None and scope.name == "glasspoint":
            self._spans.append(span)

    def clear(self) -> None:
        """Forget all spans."""
        self._spans.clear()

    def take(self, trace_id: int) -> list[ReadableSpan]:
        """Return the spans of one trace, by start time, and forget all spans kept so far."""
        spans = [
            span for span in self._spans if span.context is not None and span.context.trace_id == trace_id
        ]
        self.clear()
        return sorted(spans, key=lambda span: span.start_time or 0)


class SpanFile(BatchSpanProcessor):
    """Appends spans to a file as OTLP JSON lines, until it is shut down."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Args:
            path: The file.

        Raises:
            ConfigurationError: The file cannot be written, or the exporter is not installed.
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
    """The means with which the demo observes the saver.

    Attributes:
        telemetry: The telemetry for the saver.
        registry: The registry of its metrics.
        spans: The spans that ended lately.
        exports_to: The host that spans are also sent to, if any.
        spans_file: The file that spans are also written to, if any.
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
    """Set up tracing and metrics for the demo; at the end, send the remaining spans.

    Args:
        lost: Called with the reason if spans could not be sent.
        spans_file: A file to write the spans to, too.

    Raises:
        ConfigurationError: An OTLP endpoint is set, but the extra `otlp` is not installed; or the file
            cannot be written.
    """
    written = SpanFile(spans_file) if spans_file is not None else None
    spans, registry = SpanCollector(), CollectorRegistry()
    ProcessCollector(registry=registry)  # CPU and memory of the process, as in the default registry
    with kept_warnings(capacity=1, of=_EXPORT_LOGGERS) as export_warnings:
        try:
            # Not the process's own provider, so that the demo shows only its own spans.
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
    """A counter that has grown: its metric, its labels without `saver`, and its growth."""

    metric: str
    labels: tuple[str, ...]
    by: int


class CounterWatch:
    """Finds which of Glasspoint's counters have grown since the last call."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._before = read_registry(registry, metrics=METRICS)

    def moved(self) -> list[Moved]:
        """Return every `glasspoint_*_total` and `glasspoint_*_count` that has grown since the last call."""
        before, self._before = self._before, read_registry(self._registry, metrics=METRICS)
        change = Change.between(before, self._before)
        return [
            Moved(f"glasspoint_{metric.name}{'_count' * (metric.kind == 'histogram')}", labels[1:], int(by))
            for metric in METRICS.values()
            if metric.kind in ("counter", "histogram")
            for labels, by in change.grown(metric.name).items()
            if by
        ]
