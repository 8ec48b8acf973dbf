"""Builds a conversation from spans: its turns, which turn each one continues, and where its reads came from.

A turn is an `invoke_agent` span of the conversation (`conversation_turn` makes one), with all spans under it.
Calls outside of turns, or of an application without turns, are shown trace by trace. Spans are not reliable:

- Parents may be missing, or two spans may name each other as their parents.
- The clocks of two pods may differ.
- One trace may hold the work of several conversations. Only the work of this one is shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glasspoint.trace.spans import Span, by_start, conversation_of, step_tier, work_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

__all__ = [
    "Conversation",
    "Node",
    "Origin",
    "Reads",
    "Turn",
    "conversation_from",
    "forest",
    "tier_durations",
    "walk",
]


@dataclass(slots=True, eq=False)
class Node:
    """A span and the spans under it; or several similar spans that share a line (see `tree.merged`)."""

    spans: list[Span]
    children: list[Node] = field(default_factory=list)

    @property
    def span(self) -> Span:
        """The span; if there are several, the first."""
        return self.spans[0]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a turn continues: another turn, or a trace that is not in the data (`turn` is `None`)."""

    trace_id: str
    turn: Turn | None
    checkpoint_id: str


@dataclass(slots=True)
class Reads:
    """Counts of `get_tuple` calls, by the store that served them (`l1`, `l2`, …) and by the result of L1."""

    by_server: Counter[str] = field(default_factory=Counter)
    by_result: Counter[str] = field(default_factory=Counter)

    def add(self, others: Reads) -> None:
        """Add the counts of other calls."""
        self.by_server += others.by_server
        self.by_result += others.by_result

    @property
    def total(self) -> int:
        """The number of calls."""
        return sum(self.by_server.values())


@dataclass(eq=False)
class Turn:
    """One turn; or, if `number` is `None`, a trace that belongs to no turn.

    Attributes:
        roots: The spans at the top; a turn has one.
        is_turn: Whether it is a turn, and not a trace outside of turns.
        number: The number of the turn.
        origins: The targets of its links; more than one only outside of turns.
        is_fork: Whether it continues another turn than the one before it.
    """

    roots: list[Node]
    is_turn: bool
    number: int | None = None
    origins: list[Origin] = field(default_factory=list)
    is_fork: bool = False

    def __post_init__(self) -> None:
        self.spans = [span for node, _ in walk(self.roots) for span in node.spans]
        self.trace_id = self.spans[0].trace_id
        # A span may begin before its parent or end after it: clocks differ, and work goes on.
        self.start = min(span.start for span in self.spans)
        self.end = max(span.end for span in self.spans)
        self.calls = [span for span in self.spans if span.is_call]
        reads = [span for span in self.calls if span.name == "checkpoint.get_tuple"]
        results = filter(None, (span.text("glasspoint.l1.result") for span in reads))
        self.reads = Reads(
            Counter(span.text("glasspoint.served_by") or "nobody" for span in reads), Counter(results)
        )

    @property
    def duration(self) -> int:
        """The duration in ns: of the turn's own span; of a trace, from its first start to its last end."""
        return self.roots[0].span.duration if self.is_turn else self.end - self.start

    @property
    def saver_duration(self) -> int:
        """The time in which at least one call of the checkpointer was running, in ns. Calls may overlap."""
        first = self.roots[0].span if self.is_turn else None
        start, end = (first.start, first.end) if first else (self.start, self.end)
        total, until = 0, start
        for call in sorted(self.calls, key=by_start):
            total += max(0, min(call.end, end) - max(call.start, until))
            until = max(until, min(call.end, end))
        return total

    @property
    def agent(self) -> str:
        """The name of the agent that answered; empty if it is not known."""
        return self.roots[0].span.text("gen_ai.agent.name") if self.is_turn else ""

    @property
    def service(self) -> str:
        """The service that recorded it, and the pod or host: `service@pod`."""
        resource = self.roots[0].span.resource
        names = (resource.get("service.name"), resource.get("k8s.pod.name") or resource.get("host.name"))
        return "@".join(str(name) for name in names if name)

    @property
    def failed(self) -> list[Span]:
        """The spans that failed."""
        return [span for span in self.spans if span.failed]


@dataclass(eq=False)
class Conversation:
    """The turns of a conversation that are known.

    Attributes:
        thread_id: The thread id that the user gave.
        shown_as: The thread id on the spans: plain, or hashed.
        turns: The turns by their start; those without a number are traces outside of turns.
        remarks: Notes about gaps in the data.
    """

    thread_id: str
    shown_as: str
    turns: Sequence[Turn]
    remarks: Sequence[str] = ()

    @property
    def numbered(self) -> list[Turn]:
        """The turns, without the traces outside of turns."""
        return [turn for turn in self.turns if turn.is_turn]

    def last(self, count: int) -> Sequence[Turn]:
        """Return the newest turns, and the traces outside of turns since the first of these.

        If the conversation has no turns, return the newest traces.

        Args:
            count: How many turns, or traces.
        """
        if not self.numbered:
            return self.turns[-count:]
        return self.turns[self.turns.index(self.numbered[-count:][0]) :]

    @property
    def reads(self) -> Reads:
        """The reads of all turns."""
        found = Reads()
        for turn in self.turns:
            found.add(turn.reads)
        return found


def conversation_from(
    spans: Iterable[Span], wanted: Collection[str], *, thread_id: str, remarks: Sequence[str] = ()
) -> Conversation:
    """Build a conversation from spans.

    Args:
        spans: All spans of each trace that names the conversation.
        wanted: The names that the conversation may have on spans: its id, plain and hashed.
        thread_id: The id of the conversation.
        remarks: Notes about gaps in the data.
    """
    by_trace: dict[str, list[Span]] = {}
    names: set[str] = set()
    for span in spans:
        by_trace.setdefault(span.trace_id, []).append(span)
        if (name := conversation_of(span)) in wanted:
            names.add(name)
    turns = sorted(
        (turn for found in by_trace.values() for turn in _turns_of(found, wanted)),
        key=lambda turn: turn.start,
    )
    _number(turns)
    _connect(turns)
    shown_as = thread_id if thread_id in names or not names else next(iter(sorted(names)))
    return Conversation(thread_id, shown_as, turns, remarks)


def forest(spans: Iterable[Span]) -> list[Node]:
    """Return the spans of a trace as trees, by start.

    Spans whose parent is missing become roots. So does one span of each circle of parents. A span that was
    sent twice appears once.
    """
    nodes = {span.span_id: Node([span]) for span in sorted(spans, key=by_start)}
    roots = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent_id)
        if parent is None:
            roots.append(node)
        else:
            parent.children.append(node)
    reached = {id(node) for node, _ in walk(roots)}
    for node in nodes.values():
        if id(node) not in reached:  # it is in a circle of parents: open the circle here
            nodes[node.span.parent_id].children.remove(node)
            roots.append(node)
            reached |= {id(each) for each, _ in walk([node])}
    return roots


def walk(roots: Iterable[Node]) -> Iterator[tuple[Node, int]]:
    """Yield every node and its depth, a parent before its children. Without recursion, any depth works."""
    waiting = [(node, 0) for node in roots][::-1]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting += [(child, depth + 1) for child in reversed(node.children)]


def tier_durations(call: Node) -> dict[str, int]:
    """Return the time that a call spent at each server, in nanoseconds.

    The keys are `l1`, `l2` and `redis`; `wait` is the time that the call waited for a connection.
    """
    found: dict[str, int] = {}
    for node, _ in walk(call.children):
        tier = "wait" if work_of(node.span) == "wait" else step_tier(node.span)
        if tier:
            found[tier] = found.get(tier, 0) + sum(span.duration for span in node.spans)
    return found


def _turns_of(spans: Sequence[Span], wanted: Collection[str]) -> Iterator[Turn]:
    """Split a trace into its turns and the spans outside of them."""
    outside: list[Span] = []
    waiting = [(root, False) for root in reversed(forest(spans))]
    others_named = False
    while waiting:
        node, is_others = waiting.pop()
        name = conversation_of(node.span)
        if name:
            is_others = name not in wanted
            others_named |= is_others
        if name and not is_others and work_of(node.span) == "turn":
            yield Turn([node], is_turn=True)
            continue
        if not is_others:
            outside.append(node.span)
        waiting += [(child, is_others) for child in reversed(node.children)]
    if others_named:
        outside = _of_this_one(outside, wanted)
    # Spans that are only around the turns, such as a web server's request, are not shown as a trace.
    if any(conversation_of(span) in wanted for span in outside):
        yield Turn(forest(outside), is_turn=False)


def _of_this_one(spans: Sequence[Span], wanted: Collection[str]) -> list[Span]:
    """In a trace of several conversations, keep spans that name this one, and those under and around them."""
    by_id = {span.span_id: span for span in spans}
    kept: dict[str, Span] = {}
    for node, _ in walk(forest(spans)):
        span = node.span
        if conversation_of(span) in wanted or span.parent_id in kept:
            kept[span.span_id] = span
    for span in list(kept.values()):
        while (parent := by_id.get(span.parent_id)) is not None and parent.span_id not in kept:
            kept[parent.span_id] = span = parent
    return list(kept.values())


def _number(turns: Iterable[Turn]) -> None:
    """Number the turns: as the application does if it numbers all of them uniquely, else by start."""
    numbered = [turn for turn in turns if turn.is_turn]
    told = [turn.roots[0].span.attributes.get("glasspoint.turn") for turn in numbered]
    is_told = len(set(map(str, told))) == len(told) and all(type(each) is int for each in told)
    for position, (turn, number) in enumerate(zip(numbered, told, strict=True), start=1):
        turn.number = number if is_told and isinstance(number, int) else position


def _connect(turns: Sequence[Turn]) -> None:
    """Find what each turn continues."""
    by_span = {(turn.trace_id, span.span_id): turn for turn in turns for span in turn.spans}
    by_trace = {turn.trace_id: turn for turn in reversed(turns)}
    before: Turn | None = None
    for turn in turns:
        linked = [turn.roots[0].span] if turn.is_turn else turn.spans
        seen = set()
        for link in (link for span in linked for link in span.links):
            told = link.attributes.get("glasspoint.link")
            if told not in (None, "previous_turn") or link.trace_id in seen:
                continue
            seen.add(link.trace_id)
            target = by_span.get((link.trace_id, link.span_id)) or by_trace.get(link.trace_id)
            if target is not turn:
                checkpoint_id = str(link.attributes.get("langgraph.checkpoint.id", ""))
                turn.origins.append(Origin(link.trace_id, target, checkpoint_id))
        if turn.is_turn:
            found = [each.turn for each in turn.origins if each.turn is not None and each.turn.is_turn]
            turn.is_fork = bool(found) and before not in found
            before = turn
