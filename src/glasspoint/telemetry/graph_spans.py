"""A span processor that learns which span belongs to which node: for the calls that store what nodes write.

It reads what the instrumentations of LangChain record: openinference's `metadata`, or the association
properties of OpenTelemetry's. `configure_telemetry` adds it. An application with an SDK of its own may do the
same: `provider.add_span_processor(GraphSpans())`. It sends nothing, and keeps only ids.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import SpanProcessor

from glasspoint.telemetry.causes import TaskSpan, causes
from glasspoint.telemetry.events import failures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

__all__ = ["GraphSpans"]

_LANGCHAIN = ("openinference.instrumentation.langchain", "opentelemetry.instrumentation.langchain")
_NODE, _NAMESPACE, _STEP = "langgraph_node", "langgraph_checkpoint_ns", "langgraph_step"
_TRACELOOP = "traceloop.association.properties."


class GraphSpans(SpanProcessor):
    """Learns the spans of graphs and of their tasks, so that the saver's calls stand below them."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Learn that a graph or a node is under way."""
        if _is_of_langchain(span) and span.parent is not None:
            causes.began(span.get_span_context(), span.parent.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        """Learn the span of a task. Of several spans that name the task, the outermost ends last."""
        if not _is_of_langchain(span):
            return
        found = span.get_span_context()
        if found is None:
            return
        if span.parent is not None:
            causes.ended(found.span_id, span.parent.span_id)
        try:
            told = _metadata(span.attributes or {})
            task_id = str(told.get(_NAMESPACE) or "").rpartition(":")[2]
            if task_id:
                step = told.get(_STEP)  # of the checkpoint that follows the task
                before = step - 1 if isinstance(step, int) else None
                causes.tasks.put(task_id, TaskSpan(found, str(told.get(_NODE) or ""), before))
        except Exception as exc:
            failures.report("GraphSpans.on_end", exc, "spans")


def _is_of_langchain(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return scope is not None and scope.name.startswith(_LANGCHAIN)


def _metadata(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    text = attributes.get("metadata")
    if isinstance(text, str) and _NAMESPACE in text:
        try:
            told = json.loads(text)
        except ValueError:  # cut off by a limit of the SDK
            return {}
        return told if isinstance(told, dict) else {}
    return {key: attributes.get(_TRACELOOP + key) for key in (_NODE, _NAMESPACE, _STEP)}
