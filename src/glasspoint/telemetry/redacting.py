"""Removes the content of conversations from the spans of instrumentations, whichever way they leave.

Our own exporters get redacted spans (`RedactingExporter`). So does every other processor of the provider that
`configure_telemetry` makes, also one that is added later (`RedactingProvider`).

LangChain's instrumentation writes inputs, outputs and prompts on its spans. This module lists the attributes
that it keeps, so that attributes of future releases are removed as well. The instrumentations of Redis and
psycopg write statements with placeholders, which are kept. All of them write the texts of errors, which may
quote values: those are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from glasspoint.telemetry.events import failures
from glasspoint.telemetry.thread_ids import shown_as

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span

    from glasspoint.telemetry.thread_ids import ThreadIds

__all__ = ["RedactingExporter", "RedactingProvider"]

_LANGCHAIN = ("openinference.", "opentelemetry.instrumentation.langchain")
_ALL = ("openinference.", "opentelemetry.instrumentation.")
_OF_AN_ERROR = {"exception.type", "error.type"}
_THREAD_IDS = ("session.id", "gen_ai.conversation.id")
_SAFE = {
    "openinference.span.kind",
    "llm.model_name",
    "llm.provider",
    "llm.system",
    "tool.name",
    "error.type",
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.system",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "traceloop.span.kind",
    "traceloop.entity.name",
}
_SAFE_PREFIXES = ("llm.token_count.", "gen_ai.usage.")


class RedactingProvider(TracerProvider):
    """A provider whose processors receive the spans of instrumentations without content."""

    def __init__(self, *, thread_ids: ThreadIds, capture_content: bool, **options: Any) -> None:
        """Begin without processors.

        Args:
            thread_ids, capture_content: See `Redaction`.
            options: Those of the SDK's provider.
        """
        super().__init__(**options)
        self._redaction = Redaction(thread_ids=thread_ids, capture_content=capture_content)

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Add a processor. What it receives when a span ends is redacted."""
        super().add_span_processor(_RedactingProcessor(span_processor, self._redaction))

    def add_trusted_processor(self, span_processor: SpanProcessor) -> None:
        """Add a processor that sends nothing, or redacts by itself."""
        super().add_span_processor(span_processor)


class _RedactingProcessor(SpanProcessor):
    def __init__(self, processor: SpanProcessor, redaction: Redaction) -> None:
        self._processor = processor
        self._redaction = redaction

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        self._processor.on_end(self._redaction.of(span))

    def shutdown(self) -> None:
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._processor.force_flush(timeout_millis)


class RedactingExporter(SpanExporter):
    """Passes spans to another exporter, those of instrumentations without content."""

    def __init__(self, exporter: SpanExporter, *, thread_ids: ThreadIds, capture_content: bool) -> None:
        """Take the exporter that receives the spans.

        Args:
            exporter: Sends the spans.
            thread_ids, capture_content: See `Redaction`.
        """
        self._exporter = exporter
        self._redaction = Redaction(thread_ids=thread_ids, capture_content=capture_content)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans. Those that are not sent are counted (`telemetry_dropped_total`)."""
        is_sent = False
        try:
            result = self._exporter.export([self._redaction.of(span) for span in spans])
            is_sent = result is SpanExportResult.SUCCESS
        finally:
            if not is_sent:
                failures.drop("spans", len(spans))
        return result

    def shutdown(self) -> None:
        """Shut the other exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the other exporter."""
        return self._exporter.force_flush(timeout_millis)


class Redaction:
    """What is removed from the spans of instrumentations."""

    def __init__(self, *, thread_ids: ThreadIds, capture_content: bool) -> None:
        """Take what is removed.

        Args:
            thread_ids: How thread ids are shown.
            capture_content: Whether to keep the content, too. Unless thread ids are plain, this does not
                include the attribute `metadata`, because it names the thread.
        """
        self._shown = shown_as(thread_ids)
        self._capture_content = capture_content
        self._hidden: set[str] = set() if thread_ids == "plain" else {"metadata"}

    def of(self, span: ReadableSpan) -> ReadableSpan:
        """Return the span without what is removed; other spans than those of instrumentations as they are."""
        scope = span.instrumentation_scope
        if scope is None or not scope.name.startswith(_ALL):
            return span
        of_langchain = scope.name.startswith(_LANGCHAIN)
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=self._attributes(span.attributes) if of_langchain else span.attributes,
            events=[self._event(each) for each in span.events],
            links=span.links,
            kind=span.kind,
            status=span.status if self._capture_content else Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=scope,
        )

    def _event(self, event: Event) -> Event:
        if self._capture_content:
            return event
        kept = {key: value for key, value in (event.attributes or {}).items() if key in _OF_AN_ERROR}
        return Event(event.name, kept, event.timestamp)

    def _attributes(self, attributes: Any) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in (attributes or {}).items():
            if key in _THREAD_IDS:
                shown = self._shown(str(value))
                if shown is not None:
                    kept[key] = shown
            elif self._is_kept(key):
                kept[key] = value
        return kept

    def _is_kept(self, key: str) -> bool:
        is_safe = key in _SAFE or key.startswith(_SAFE_PREFIXES)
        return is_safe or (self._capture_content and key not in self._hidden)
