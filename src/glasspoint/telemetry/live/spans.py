"""The span processor of the live page: it keeps the spans of recent turns, while a page is open.

`configure_telemetry` adds it. An application that sets up an SDK itself adds it with one line:

    provider.add_span_processor(LiveSpans())

Without it, the page shows calls, but no turns. It sends nothing. What it keeps holds no content, whatever the
application's spans hold: of each span, only attributes that are known to hold none are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from glasspoint.telemetry import thread_ids as ways
from glasspoint.telemetry.events import failures
from glasspoint.telemetry.live.turns import recent
from glasspoint.trace.spans import Event, Link, Span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan

    from glasspoint.telemetry.thread_ids import ThreadIds
    from glasspoint.trace.spans import Value

__all__ = ["LiveSpans", "is_set_up"]

_OURS = "glasspoint"
_CALLS = "checkpoint."
_THREAD_IDS = ("gen_ai.conversation.id", "session.id")
_KEPT = frozenset(
    (
        "openinference.span.kind",
        "traceloop.span.kind",
        "llm.model_name",
        "llm.provider",
        "tool.name",
        "error.type",
        "exception.type",
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.system",
        "gen_ai.agent.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "db.system",
        "db.system.name",
        "db.operation.name",
        "db.collection.name",
        "db.stored_procedure.name",
        "db.response.status_code",
        "server.address",
        "server.port",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "service.name",
        "service.version",
        "k8s.pod.name",
        "host.name",
        *_THREAD_IDS,
    )
)
_KEPT_PREFIXES = ("glasspoint.", "langgraph.", "llm.token_count.", "gen_ai.usage.")
_LONGEST = 200
_MOST_EVENTS = 32

_processors: WeakSet[LiveSpans] = WeakSet()


def is_set_up() -> bool:
    """Tell whether a provider of this process has the processor, so that turns can be shown."""
    return bool(_processors)


class LiveSpans(SpanProcessor):
    """Keeps the spans of recent turns without content, while a live page is open.

    While none is open, a span costs two calls that return at once.
    """

    def __init__(self, *, thread_ids: ThreadIds | None = None) -> None:
        """Begin.

        Args:
            thread_ids: How thread ids on the spans of instrumentations are shown, as in `create_telemetry`.

        Raises:
            ConfigurationError: `thread_ids` has another value than that allows.
        """
        self._shown = ways.shown_as(ways.choose(thread_ids))
        self._resources: dict[int, tuple[object, dict[str, Value]]] = {}
        _processors.add(self)

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Decide about a trace, when its first span of this process begins."""
        if recent.is_open and (span.parent is None or span.parent.is_remote):
            found = span.get_span_context()
            if found is not None:
                scope = span.instrumentation_scope
                is_ours = scope is not None and scope.name == _OURS
                is_call = is_ours and span.name.startswith(_CALLS)
                recent.begins(format_trace_id(found.trace_id), is_call=is_call)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span, without content, if its trace is kept."""
        if not recent.is_open:
            return
        found = span.get_span_context()
        if found is None or not recent.is_kept(format_trace_id(found.trace_id)):
            return
        try:
            recent.add(self._kept(span))
        except Exception as exc:
            failures.report("LiveSpans.on_end", exc, "spans")

    def shutdown(self) -> None:
        """Keep nothing more."""
        _processors.discard(self)

    def _kept(self, span: ReadableSpan) -> Span:
        found = span.get_span_context()
        assert found is not None
        scope = span.instrumentation_scope.name if span.instrumentation_scope is not None else ""
        is_ours = scope == _OURS
        start = span.start_time or 0
        return Span(
            trace_id=format_trace_id(found.trace_id),
            span_id=format_span_id(found.span_id),
            parent_id=format_span_id(span.parent.span_id) if span.parent is not None else "",
            name=span.name[:_LONGEST],
            start=start,
            end=max(start, span.end_time or 0),
            attributes=self._attributes(span.attributes, is_ours=is_ours),
            resource=self._resource(span),
            scope=scope,
            kind=span.kind.name.lower(),
            failed=span.status.status_code is StatusCode.ERROR,
            links=tuple(
                Link(
                    format_trace_id(each.context.trace_id),
                    format_span_id(each.context.span_id),
                    self._attributes(each.attributes, is_ours=is_ours),
                )
                for each in span.links
            ),
            events=tuple(
                Event(
                    each.name[:_LONGEST], each.timestamp, self._attributes(each.attributes, is_ours=is_ours)
                )
                for each in span.events[:_MOST_EVENTS]
            ),
        )

    def _attributes(self, attributes: Mapping[str, Any] | None, *, is_ours: bool) -> dict[str, Value]:
        kept: dict[str, Value] = {}
        for key, value in (attributes or {}).items():
            if key not in _KEPT and not key.startswith(_KEPT_PREFIXES):
                continue
            if key in _THREAD_IDS and not is_ours:  # ours are shown as the saver's telemetry says
                value = self._shown(str(value))
                if value is None:
                    continue
            if isinstance(value, str):
                kept[key] = value[:_LONGEST]
            elif isinstance(value, bool | int | float):
                kept[key] = value
        return kept

    def _resource(self, span: ReadableSpan) -> dict[str, Value]:
        """Return what is kept of the resource: all spans of a provider share it."""
        known = self._resources.get(id(span.resource))
        if known is None or known[0] is not span.resource:
            if len(self._resources) > 16:
                self._resources.clear()
            made = self._attributes(span.resource.attributes, is_ours=False)
            known = self._resources[id(span.resource)] = (span.resource, made)
        return known[1]
