"""A recorded span, from any library, and the kind of work that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["Event", "Link", "Span", "Value", "Work", "by_start", "conversation_of", "step_tier", "work_of"]

Value = str | bool | int | float | list["Value"] | dict[str, "Value"] | None

Work = Literal["turn", "saver", "l1", "l2", "wait", "model", "tool", "graph", "other"]
"""The kind of work that a span measures: a whole turn, a call of the checkpointer, its request to a server,
its wait for a connection, a model, …"""

_MODEL_OPERATIONS = {"chat", "text_completion", "generate_content", "embeddings"}
_KINDS: dict[str, Work] = {
    "LLM": "model",
    "EMBEDDING": "model",
    "TOOL": "tool",
    "RETRIEVER": "tool",
    "CHAIN": "graph",
    "AGENT": "graph",
    "WORKFLOW": "graph",
    "TASK": "graph",
}


class Link(NamedTuple):
    """A link from one span to another, with the ids of the other."""

    trace_id: str
    span_id: str
    attributes: dict[str, Value]


class Event(NamedTuple):
    """An event that was recorded on a span; `at` is in nanoseconds since 1970."""

    name: str
    at: int
    attributes: dict[str, Value]


@dataclass(slots=True, eq=False)
class Span:
    """One span. Ids are lower-case hexadecimal digits, times are nanoseconds since 1970.

    Attributes:
        parent_id: The id of the parent; empty if there is none.
        end: The end, never before `start`.
        resource: The process that recorded it: `service.name`, the pod, ….
        scope: The library that recorded it.
        status: The text of its error, if it failed.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: int
    end: int
    attributes: dict[str, Value]
    resource: dict[str, Value]
    scope: str = ""
    kind: str = ""
    failed: bool = False
    status: str = ""
    links: tuple[Link, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def duration(self) -> int:
        """The duration in nanoseconds."""
        return self.end - self.start

    def text(self, *keys: str) -> str:
        """Return the first of these attributes that is present, as text; empty if none is."""
        for key in keys:
            value = self.attributes.get(key)
            if value is not None and value != "":
                return str(value)
        return ""

    @property
    def is_call(self) -> bool:
        """Whether it is a call of the checkpointer, such as `checkpoint.put`."""
        return self.name.startswith("checkpoint.") and self.name.count(".") == 1 and not self.is_warm_up

    @property
    def is_warm_up(self) -> bool:
        """Whether it is the warm-up after a miss, which is part of a call."""
        return self.name == "checkpoint.warm_up"

    @property
    def is_step(self) -> bool:
        """Whether it is a part of a call of the checkpointer: a round trip, a statement, a wait."""
        return self.name.startswith("checkpoint.") and not self.is_call


def by_start(span: Span) -> tuple[int, int]:
    """Return a sort key: by start; of two spans with the same start, the longer one comes first."""
    return span.start, -span.end


def conversation_of(span: Span) -> str:
    """Return the conversation that a span names, as it is written there; empty if it names none."""
    return span.text("gen_ai.conversation.id", "session.id")


def step_tier(span: Span) -> str:
    """Return `l1`, `l2` or `redis` for a step of the checkpointer, else an empty text.

    Example:
        >>> step_tier(Span("", "", "", "checkpoint.l2.put", 0, 1, {}, {}))
        'l2'
    """
    parts = span.name.split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "checkpoint" else ""


def work_of(span: Span) -> Work:
    """Return the kind of work that a span measures."""
    operation = span.text("gen_ai.operation.name")
    if operation == "invoke_agent" or (span.name.startswith("invoke_agent") and span.scope == "glasspoint"):
        return "turn"
    if span.is_call:
        return "saver"
    if span.name == "checkpoint.l2.acquire":
        return "wait"
    tier = step_tier(span) or ("l1" if span.is_warm_up else "")
    system = span.text("db.system.name", "db.system")
    if tier in ("l1", "redis") or (not tier and system == "redis"):
        return "l1"
    if tier == "l2" or system == "postgresql":
        return "l2"
    if operation in _MODEL_OPERATIONS:
        return "model"
    if operation == "execute_tool":
        return "tool"
    kind = span.text("openinference.span.kind", "traceloop.span.kind").upper()
    return _KINDS.get(kind, "other")
