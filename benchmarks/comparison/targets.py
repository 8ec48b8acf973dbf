"""What Glasspoint is meant to reach, beside what it has reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from comparison.measuring import Figure, Spread, speed
from comparison.peers import FLOOR, OURS, POOL

Against = Literal["pool", "floor", "depth 10"]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        against: `AsyncPostgresSaver` on a pool of the same size; the floor; or Glasspoint on a short thread.
        kind: Glasspoint is at least `limit` times as fast, or takes at most `limit` times as long.
    """

    workload: str
    variant: dict[str, Any]
    against: Against
    kind: Literal["faster", "slower"]
    limit: float
    says: str = field(default="")

    @property
    def wanted(self) -> str:
        """In a few characters."""
        return f"{'≥' if self.kind == 'faster' else '≤'} {self.limit:g}"


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
        if self.target.kind == "faster":
            return self.measured.median >= self.target.limit
        return self.measured.median <= self.target.limit


def _turn(conversations: int, durability: str, limit: float, delay: str = "") -> Target:
    named: dict[str, Any] = {"conversations": conversations, "durability": durability}
    says = f"turn, {conversations} conversation{'s' * (conversations > 1)}, {durability}"
    if not delay:
        return Target("turn", named, "pool", "faster", limit, says)
    return Target("turn, network", {**named, "delay": delay}, "pool", "faster", limit, f"{says}, {delay}")


def _calls(
    workload: str,
    callers: int,
    kind: Literal["faster", "slower"],
    limit: float,
    messages: int = 10,
    against: Against = "pool",
) -> Target:
    what = "p50" if callers == 1 else "calls/s"
    size = f", {messages} messages" if workload == "hit" else ""
    says = f"{workload}{size}, {callers} caller{'s' * (callers > 1)}, {what}"
    return Target(workload, {"messages": messages, "callers": callers}, against, kind, limit, says)


def _depth(analyzed: str) -> Target:
    statistics = "" if analyzed == "yes" else ", never analyzed"
    says = f"hit, depth 100,000{statistics}, p50"
    return Target("hit, depth", {"depth": 100_000, "analyzed": analyzed}, "depth 10", "slower", 1.1, says)


TARGETS: Final = (
    _calls("hit", 1, "faster", 2.5),
    _calls("hit", 1, "slower", 1.6, against="floor"),
    _calls("hit", 64, "faster", 3.5),
    _calls("hit", 64, "faster", 2.0, messages=100),
    _calls("hit", 64, "slower", 1.4, messages=100, against="floor"),
    _calls("put", 1, "slower", 1.15),
    _calls("put", 16, "faster", 2.0),
    _calls("put", 64, "faster", 2.0),
    _calls("put_writes", 16, "faster", 2.0),
    _calls("put_writes", 64, "faster", 2.0),
    *(_turn(16, durability, 1.5) for durability in ("sync", "async", "exit")),
    *(_turn(conversations, "sync", 1.3, delay="5 ms") for conversations in (1, 16)),
    _calls("miss", 1, "slower", 1.2),
    _calls("miss", 16, "slower", 1.2),
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
    if target.against == "depth 10":
        other = find(figures, target.workload, OURS, {**target.variant, "depth": 10})
    else:
        other = find(figures, target.workload, POOL if target.against == "pool" else FLOOR, target.variant)
    if ours is None or other is None:
        return None
    return speed(ours, other) if target.kind == "faster" else speed(other, ours)
