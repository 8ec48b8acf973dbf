"""Keeps the spans of recent turns in bounded memory, while a page is open.

A trace is kept whole or not at all. In a second, at most ten turns begin to be kept, and at most two calls
outside of turns, so that a busy process pays for few of them, and single calls take no turn's place. A turn
that somebody at the page has asked for is always kept. What is kept of a span is decided by `spans`; here
nothing is known of an SDK.

The bounds: conversations, turns of a conversation, spans of a trace, and bytes in all. Whatever is over a
bound makes the oldest go.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from glasspoint.trace.conversation import conversation_from
from glasspoint.trace.spans import conversation_of, work_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from glasspoint.trace.conversation import Conversation, Turn
    from glasspoint.trace.spans import Span

__all__ = ["CONVERSATIONS", "TURNS", "RecentTurns", "certainly_kept", "recent"]

CONVERSATIONS = 50
TURNS = 20
"""Of one conversation."""

_SPANS_OF_A_TRACE = 300
_MOST_BYTES = 16 * 2**20
_TRACES_A_SECOND = 10
_CALLS_A_SECOND = 2
"""Of traces that are calls outside of turns."""

_MOST_CHOSEN = 1000

# Traces outside of turns, of which the name of a conversation is not known yet.
_MOST_TRACES = CONVERSATIONS * TURNS

# What a span takes beyond its texts: objects, dicts, numbers.
_BYTES_OF_A_SPAN = 1200
_BYTES_OF_AN_ATTRIBUTE = 150


@dataclass(slots=True, eq=False)
class _Trace:
    spans: list[Span] = field(default_factory=list)
    bytes: int = 0
    names: set[str] = field(default_factory=set)
    left_out: int = 0


@dataclass(slots=True, eq=False)
class _Conversation:
    traces: OrderedDict[str, dict[str, Any] | None] = field(default_factory=OrderedDict)
    """Trace id -> what is shown of its turn; `None` if that is to be found out anew."""
    forgotten: int = 0
    """The number of turns that were kept before, and are not any more."""


class RecentTurns:
    """The recent turns of this process. Any thread may add spans and read."""

    def __init__(self) -> None:
        self.is_open = False
        """Whether somebody looks, so that spans are kept."""
        self._lock = threading.Lock()
        self._readers = 0
        self._begun: deque[float] = deque(maxlen=_TRACES_A_SECOND)
        self._begun_calls: deque[float] = deque(maxlen=_CALLS_A_SECOND)
        self._chosen: OrderedDict[str, None] = OrderedDict()
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()
        self._bytes = 0
        self._changed: set[str] = set()

    @property
    def bytes(self) -> int:
        """About how much memory the kept spans take."""
        return self._bytes

    def open(self) -> None:
        """Keep spans from now on."""
        with self._lock:
            self._readers += 1
            self.is_open = True

    def close(self) -> None:
        """Keep no further spans, unless another reader is there. What was kept is forgotten then."""
        with self._lock:
            self._readers = max(0, self._readers - 1)
            if not self._readers:
                self._forget()

    def begins(self, trace_id: str, *, is_call: bool = False) -> None:
        """Decide whether a trace that begins in this process is kept.

        Args:
            trace_id: Its id.
            is_call: Whether it is certainly no turn, but a call outside of turns.
        """
        now, begun = monotonic(), self._begun_calls if is_call else self._begun
        with self._lock:
            if trace_id in self._chosen:
                return
            if len(begun) == begun.maxlen and now - begun[0] < 1.0 and not _is_certainly_kept.get():
                return
            begun.append(now)
            self._chosen[trace_id] = None
            if len(self._chosen) > _MOST_CHOSEN:
                self._chosen.popitem(last=False)

    def is_kept(self, trace_id: str) -> bool:
        """Tell whether the spans of a trace are kept. It takes no lock: it is asked for every span."""
        return trace_id in self._chosen

    def add(self, span: Span) -> None:
        """Keep a span that has ended."""
        size = _size_of(span)
        with self._lock:
            if not self.is_open:
                return
            trace = self._traces.get(span.trace_id)
            if trace is None:
                trace = self._traces[span.trace_id] = _Trace()
            self._traces.move_to_end(span.trace_id)
            name = conversation_of(span)
            # The span of a turn ends last, and without it there is no turn.
            most = 2 * _SPANS_OF_A_TRACE if name and work_of(span) == "turn" else _SPANS_OF_A_TRACE
            if len(trace.spans) >= most:
                trace.left_out += 1
                return
            trace.spans.append(span)
            trace.bytes += size
            self._bytes += size
            if name:
                trace.names.add(name)
                self._belongs(span.trace_id, name)
            for each in trace.names:
                if (known := self._conversations.get(each)) is not None and span.trace_id in known.traces:
                    known.traces[span.trace_id] = None
                    self._changed.add(each)
            while self._traces and (self._bytes > _MOST_BYTES or len(self._traces) > _MOST_TRACES):
                self._drop(next(iter(self._traces)))

    def changed(self) -> list[dict[str, Any]]:
        """Return the conversations that have changed since the last call, as the page is told."""
        with self._lock:
            names, self._changed = self._changed, set()
        return self._shown(names)

    def all(self) -> list[dict[str, Any]]:
        """Return all conversations, the one that changed last at the end."""
        with self._lock:
            names = list(self._conversations)
        return self._shown(names)

    def knows(self, name: str) -> bool:
        """Tell whether turns of a conversation are kept."""
        return name in self._conversations

    def conversation_with(self, trace_id: str) -> tuple[Conversation, Turn] | None:
        """Return the conversation that a trace belongs to, with what is kept of it, and the trace's turn."""
        with self._lock:
            trace = self._traces.get(trace_id)
            name = (
                next((each for each in sorted(trace.names) if each in self._conversations), None)
                if trace
                else None
            )
            if name is None:
                return None
            found = [self._traces[each] for each in self._conversations[name].traces if each in self._traces]
            spans = [span for each in found for span in each.spans]
            left_out = sum(each.left_out for each in found)
        remarks = [f"{left_out} spans were left out: the live page keeps {_SPANS_OF_A_TRACE} of a turn."]
        conversation = conversation_from(spans, {name}, thread_id=name, remarks=remarks if left_out else ())
        turn = next((each for each in conversation.turns if each.trace_id == trace_id), None)
        return (conversation, turn) if turn is not None else None

    def forget_the_parent(self) -> None:
        """In a child after a fork, keep nothing."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._readers = 0
        self._forget()

    # ---------------------------------------------------------------- helpers

    def _forget(self) -> None:
        self.is_open = False
        for each in (
            self._begun,
            self._begun_calls,
            self._chosen,
            self._traces,
            self._conversations,
            self._changed,
        ):
            each.clear()
        self._bytes = 0

    def _belongs(self, trace_id: str, name: str) -> None:
        conversation = self._conversations.setdefault(name, _Conversation())
        self._conversations.move_to_end(name)
        conversation.traces.setdefault(trace_id, None)
        while len(conversation.traces) > TURNS:
            self._drop(next(iter(conversation.traces)))
        while len(self._conversations) > CONVERSATIONS:
            _, oldest = self._conversations.popitem(last=False)
            for each in list(oldest.traces):
                self._drop(each)

    def _drop(self, trace_id: str) -> None:
        trace = self._traces.pop(trace_id)
        self._bytes -= trace.bytes
        self._chosen.pop(trace_id, None)
        for name in trace.names:
            conversation = self._conversations.get(name)
            if conversation is not None and conversation.traces.pop(trace_id, self) is not self:
                conversation.forgotten += 1
                if not conversation.traces:
                    del self._conversations[name]

    def _shown(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Build what is shown. Each turn is built once, without the lock, which a span that ends needs."""
        shown = []
        for name in names:
            with self._lock:
                conversation = self._conversations.get(name)
                if conversation is None:
                    continue
                forgotten = conversation.forgotten
                known = dict(conversation.traces)
                spans = {each: list(self._traces[each].spans) for each, made in known.items() if made is None}
            for trace_id, found in spans.items():
                made = known[trace_id] = _turn_of(found, name)
                with self._lock:
                    trace = self._traces.get(trace_id)
                    if (
                        trace is not None
                        and len(trace.spans) == len(found)
                        and trace_id in conversation.traces
                    ):
                        conversation.traces[trace_id] = made
            shown.append(_conversation(name, [each for each in known.values() if each], forgotten))
        return shown


_is_certainly_kept: ContextVar[bool] = ContextVar("glasspoint-certainly-kept", default=False)


@contextmanager
def certainly_kept() -> Iterator[None]:
    """Keep the traces that begin in the block, however busy the process is."""
    token = _is_certainly_kept.set(True)
    try:
        yield
    finally:
        _is_certainly_kept.reset(token)


def _turn_of(spans: Iterable[Span], name: str) -> dict[str, Any]:
    """Return what is shown of a trace; empty if no turn of it has ended yet."""
    turns = conversation_from(spans, {name}, thread_id=name).turns
    turn = next((each for each in turns if each.is_turn), None)
    if turn is None:
        return {}
    root = turn.roots[0].span
    events = [event.name for event in root.events]
    told = root.attributes.get("glasspoint.turn")
    return {
        "agent": turn.agent,
        "trace_id": turn.trace_id,
        "number": told if type(told) is int else None,
        "at": round(turn.start / 1e9, 3),
        "ms": round(turn.duration / 1e6, 3),
        "outcome": _outcome(root),
        "reads": dict(turn.reads.by_server),
        "interrupts": [
            "raised" if each == "glasspoint.interrupt" else "resumed"
            for each in events
            if each in ("glasspoint.interrupt", "glasspoint.resume")
        ],
        "follows": turn.origins[0].trace_id if turn.origins else None,
    }


def _outcome(root: Span) -> str:
    if root.failed:
        return "cancelled" if root.text("error.type").endswith("CancelledError") else "error"
    waiting = 0
    for event in root.events:
        waiting += {"glasspoint.interrupt": 1, "glasspoint.resume": -1}.get(event.name, 0)
        waiting = max(0, waiting)
    return "interrupted" if waiting else "ok"


def _conversation(name: str, turns: list[dict[str, Any]], forgotten: int) -> dict[str, Any]:
    turns.sort(key=lambda turn: turn["at"])
    shown = []
    for position, turn in enumerate(turns, start=forgotten + 1):
        number = position if turn["number"] is None else turn["number"]
        shown.append({key: value for key, value in turn.items() if key != "agent"} | {"number": number})
    return {
        "thread": name,
        "agent": next((turn["agent"] for turn in reversed(turns) if turn["agent"]), ""),
        "turns": shown,
    }


def _size_of(span: Span) -> int:
    """Return about how many bytes a span takes."""
    size = _BYTES_OF_A_SPAN + len(span.name)
    attributes = [
        span.attributes,
        *(each.attributes for each in span.events),
        *(each.attributes for each in span.links),
    ]
    for found in attributes:
        for value in found.values():
            size += _BYTES_OF_AN_ATTRIBUTE + (len(value) if isinstance(value, str) else 0)
    return size


recent = RecentTurns()
"""The turns of the whole process: a span does not say which registry its saver reports to."""


def _after_fork_in_child() -> None:
    recent.forget_the_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
