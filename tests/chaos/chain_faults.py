"""What goes wrong in a chain run, when: drawn from a seed, so that a run can be had again.

Outages of PostgreSQL follow one another, with some time between. Other faults fall into an outage as well as
beside it, because that is what a fallback chain is for: a process starts while PostgreSQL is away.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["KINDS", "ChainFault", "chain_schedule"]

KINDS = (
    "postgres stopped",
    "postgres killed",
    "postgres started",
    "disk full",
    "disk free",
    "redis stopped",
    "redis killed",
    "redis started",
    "worker killed",
    "worker closed",
)
"""Every kind of event: faults, and how they end."""

_OUTAGE_SECONDS = (2.5, 5.5)
_BETWEEN_SECONDS = (1.0, 3.0)
_LONG_BETWEEN_SECONDS = (4.0, 12.0)  # longer than the seal of a process that was killed
_REDIS_DOWN_SECONDS = (0.1, 1.2)
_FULL_SECONDS = (0.5, 2.5)
_FLICKER_SECONDS = (0.02, 0.6)  # so long PostgreSQL is there, and then away again: in the middle of a drain


@dataclass(frozen=True)
class ChainFault:
    """One event.

    Attributes:
        kind: One of `KINDS`.
        at: When, in seconds from the beginning.
        place: Which worker, counted from 0.
    """

    kind: str
    at: float
    place: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.place}" if self.kind.startswith("worker") else self.kind


def chain_schedule(seed: int, seconds: float, workers: int, *, kills_workers: bool) -> list[ChainFault]:
    """Draw the events of a run.

    Args:
        seconds: How long the run is; no outage begins in the last seconds.
        workers: How many there are.
        kills_workers: Whether workers are killed. If not, both servers may be away at the same time.
    """
    dice = random.Random(f"chain {seed}")
    return sorted(_draw(dice, seconds, workers, kills_workers), key=lambda each: each.at)


def _draw(dice: random.Random, seconds: float, workers: int, kills: bool) -> Iterator[ChainFault]:
    at, number = dice.uniform(0.5, 1.5), 0
    while at + _OUTAGE_SECONDS[1] < seconds or not number:
        until = at + dice.uniform(*_OUTAGE_SECONDS)
        yield ChainFault(dice.choice(["postgres stopped", "postgres killed"]), at)
        # At least one process starts in the lower tier; the first soon, so that it has time to.
        first = dice.uniform(-0.1, 0.3)
        yield _worker(dice, at + first, workers, kills)
        for _ in range(dice.choice([0, 1, 1, 2])):
            yield _worker(dice, dice.uniform(at, until), workers, kills)
        if dice.random() < (0.25 if kills else 0.7):
            yield from _redis(dice, dice.uniform(at, until))
        is_full = dice.random() < 0.35
        if is_full:
            yield ChainFault("disk full", at - 0.2)
        yield ChainFault("postgres started", until)
        if dice.random() < 0.35:
            again = until + dice.uniform(*_FLICKER_SECONDS)
            until = again + dice.uniform(0.5, 2.0)
            yield ChainFault("postgres killed", again)
            yield ChainFault("postgres started", until)
        if is_full:
            yield ChainFault("disk free", until + dice.uniform(*_FULL_SECONDS))
        calm = until + dice.uniform(*(_LONG_BETWEEN_SECONDS if dice.random() < 0.4 else _BETWEEN_SECONDS))
        if dice.random() < 0.4:
            yield _worker(dice, dice.uniform(until, calm), workers, kills)
        if dice.random() < 0.25:
            yield from _redis(dice, dice.uniform(until, calm))
        at, number = calm, number + 1


def _worker(dice: random.Random, at: float, workers: int, kills: bool) -> ChainFault:
    kind = dice.choice(["worker killed", "worker killed", "worker closed"]) if kills else "worker closed"
    return ChainFault(kind, max(0.0, at), dice.randrange(workers))


def _redis(dice: random.Random, at: float) -> Iterator[ChainFault]:
    yield ChainFault(dice.choice(["redis stopped", "redis killed"]), at)
    yield ChainFault("redis started", at + dice.uniform(*_REDIS_DOWN_SECONDS))
