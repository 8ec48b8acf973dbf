"""Every span of Glasspoint's that a test records is held against the catalogue: name, kind, attributes."""

from __future__ import annotations

import re

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from glasspoint.telemetry.catalogue import SPANS, Spans

ON_ALL = {"gen_ai.conversation.id", "langgraph.checkpoint.ns", "error.type"}

_KNOWN = [
    (re.compile(re.escape(group.prefix + name).replace("<agent_name>", ".+")), group)
    for group in SPANS
    for name in group.names
]


class SpanContract(SpanProcessor):
    """Notes what the catalogue does not know."""

    def __init__(self, offences: list[str]) -> None:
        self._offences = offences

    def on_end(self, span: ReadableSpan) -> None:
        scope = span.instrumentation_scope
        if scope is not None and scope.name == "glasspoint":
            self._offences += offences_of(span)


def offences_of(span: ReadableSpan) -> list[str]:
    group = group_of(span.name)
    if group is None:
        return [f"{span.name} is not in the catalogue"]
    unknown = set(span.attributes or {}) - ON_ALL - set(group.attributes)
    found = [f"{span.name} has {name}" for name in sorted(unknown)]
    if span.kind.name.lower() != group.kind:
        found.append(f"{span.name} is {span.kind.name}")
    return found


def group_of(name: str) -> Spans | None:
    return next((group for pattern, group in _KNOWN if pattern.fullmatch(name)), None)
