"""What Glasspoint is meant to reach, beside what it has reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from comparison.calls import FIRST, FURTHER
from comparison.measuring import Count, Figure, Spread, ratio, speed
from comparison.peers import FLOOR, ONE, OURS, POOL

Against = Literal["pool", "one", "floor", "depth 10", ""]
Kind = Literal["at least", "at most"]
What = Literal["speed", "cpu_ms"] | Count

_CONTENDERS: Final = {"pool": POOL, "one": ONE, "floor": FLOOR, "depth 10": OURS}


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        against: `AsyncPostgresSaver` on a pool of the same size, or on one connection; the floor; Glasspoint
            on a short thread; or nothing, if the limit is an amount.
        kind: Speed: Glasspoint is at least `limit` times as fast, or takes at most `limit` times as long.
            What is no speed is at most the `limit`.
        what: Speed; processor time of this process; or what a call takes of Redis.
    """

    workload: str
    variant: dict[str, Any]
    against: Against
    kind: Kind
    limit: float
    says: str
    what: What = "speed"

    @property
    def wanted(self) -> str:
        """In a few characters."""
        return f"{'≥' if self.kind == 'at least' else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Verdict:
    """What was measured of a target; nothing, if it was not."""

    target: Target
    measured: Spread | None

    @property
    def met(self) -> bool | None:
        """Whether the median is within the limit."""
        if self.measured is None:
            return None
        if self.target.kind == "at least":
            return self.measured.median >= self.target.limit
        return self.measured.median <= self.target.limit


def _turns(conversations: int, durability: str, pool: float, one: float) -> Iterator[Target]:
    """Whole turns, by speed, against both of upstream's contenders."""
    named, says = _turn(conversations, durability)
    yield Target("turn", named, "pool", "at least", pool, says)
    yield Target("turn", named, "one", "at least", one, says)


def _turn_costs(conversations: int, cpu: float) -> Iterator[Target]:
    """What a turn takes of this process's processor, and of Redis."""
    named, says = _turn(conversations, "sync")
    yield Target("turn", named, "pool", "at most", cpu, f"{says}, cpu ms", "cpu_ms")
    yield Target("turn", named, "", "at most", 5, f"{says}, steps", "redis_steps")
    yield Target("turn", named, "", "at most", 20, f"{says}, Redis kB", "redis_kb")


def _turn_over_network(conversations: int, delay: str, limit: float) -> Target:
    named, says = _turn(conversations, "sync")
    return Target("turn, network", {**named, "delay": delay}, "pool", "at least", limit, f"{says}, {delay}")


def _turn(conversations: int, durability: str) -> tuple[dict[str, Any], str]:
    says = f"turn, {conversations} conversation{'s' * (conversations > 1)}, {durability}"
    return {"conversations": conversations, "durability": durability}, says


def _writes(workload: str, callers: int, kind: Kind, limit: float) -> Iterator[Target]:
    """The first call of a burst, and calls in a burst."""
    for burst, says in ((FIRST, "first"), (FURTHER, "burst")):
        yield _calls(workload, callers, kind, limit, more={"burst": burst}, how=f", {says}")


def _calls(
    workload: str,
    callers: int,
    kind: Kind,
    limit: float,
    *,
    messages: int = 10,
    against: Against = "pool",
    more: dict[str, Any] | None = None,
    how: str = "",
) -> Target:
    unit = "p50" if callers == 1 else "calls/s"
    size = f", {messages} messages" if workload == "hit" else ""
    says = f"{workload}{size}, {callers} caller{'s' * (callers > 1)}{how}, {unit}"
    named = {"messages": messages, "callers": callers, **(more or {})}
    return Target(workload, named, against, kind, limit, says)


def _depth(analyzed: str) -> Target:
    statistics = "" if analyzed == "yes" else ", never analyzed"
    says = f"hit, depth 100,000{statistics}, p50"
    return Target("hit, depth", {"depth": 100_000, "analyzed": analyzed}, "depth 10", "at most", 1.1, says)


TARGETS: Final = (
    _calls("hit", 1, "at least", 2.5),
    _calls("hit", 1, "at most", 1.6, against="floor"),
    _calls("hit", 64, "at least", 3.5),
    _calls("hit", 64, "at least", 2.0, messages=100),
    _calls("hit", 64, "at most", 1.4, messages=100, against="floor"),
    *_writes("put", 1, "at most", 1.15),
    *_writes("put", 16, "at least", 2.0),
    *_writes("put", 64, "at least", 2.0),
    *_writes("put_writes", 16, "at least", 2.0),
    *_writes("put_writes", 64, "at least", 2.0),
    *_turns(1, "sync", 1.2, 1.05),
    *_turns(1, "async", 1.2, 1.05),
    *_turns(1, "exit", 1.05, 0.95),
    *_turns(16, "sync", 2.5, 2.5),
    *_turns(16, "async", 2.5, 2.5),
    *_turns(16, "exit", 1.3, 1.3),
    *_turn_costs(1, cpu=0.85),
    *_turn_costs(16, cpu=0.6),
    *(_turn_over_network(conversations, "5 ms", 1.3) for conversations in (1, 16)),
    _calls("miss", 1, "at most", 1.35),
    _calls("miss", 16, "at most", 1.2),
    _depth("no"),
    _depth("yes"),
)


def judged(figures: Sequence[Figure]) -> list[Verdict]:
    """Hold the targets against what was measured."""
    return [Verdict(target, _measured(target, figures)) for target in TARGETS]


def find(figures: Sequence[Figure], workload: str, contender: str, variant: dict[str, Any]) -> Figure | None:
    """The figure of a contender, if it was measured."""
    for each in figures:
        if (each.workload, each.contender, each.variant) == (workload, contender, variant):
            return each
    return None


def _measured(target: Target, figures: Sequence[Figure]) -> Spread | None:
    ours = find(figures, target.workload, OURS, target.variant)
    if ours is None:
        return None
    if target.what in ("redis_steps", "redis_kb"):
        return ours.counted(target.what)
    short = {"depth": 10} if target.against == "depth 10" else {}
    other = find(figures, target.workload, _CONTENDERS[target.against], {**target.variant, **short})
    if other is None:
        return None
    if target.what == "cpu_ms":
        return ratio(ours, other, "cpu_ms")
    return speed(ours, other) if target.kind == "at least" else speed(other, ours)
