"""What goes wrong, when, and for how long: drawn from a seed, so that a run can be had again.

What the faults meet is up to the processes, so a seed gives the same faults at the same times, but never
quite the same run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from chaos.proxy import MODES, Mode

__all__ = ["CLUSTER_KINDS", "KINDS", "SENTINEL_KINDS", "Fault", "FaultFailedError", "Happened", "schedule"]

KINDS = (
    "worker killed",
    "redis killed, old snapshot",
    "redis flushed",
    "redis evicts",
    "redis frozen",
    *(f"redis line: {mode}" for mode in MODES),
    "postgres backends terminated",
    "postgres restarted",
    "postgres crashed",
    "postgres restored to an earlier moment",
    "postgres tables truncated",
    *(f"postgres line: {mode}" for mode in MODES),
)
"""Every kind of fault of a run with one Redis."""

_OF_POSTGRES = (
    "postgres backends terminated",
    "postgres restarted",
    "postgres restored to an earlier moment",
    "postgres line: blackhole",
)

CLUSTER_KINDS = (
    "worker killed",
    "master killed",
    "master killed, replica behind",
    "failover",
    "failover by takeover, replica behind",
    "slots moved",
    "slots moved, failover there",
    "slots half moved",
    "shard away",
    "master frozen",
    "master frozen until replaced",
    "master flushed",
    "master restarted, old snapshot",
    *(f"master line: {mode}" for mode in MODES),
    "redis line: blackhole",
    "redis line: refuse",
    *_OF_POSTGRES,
)
"""Every kind of fault of a run with a Redis Cluster."""

SENTINEL_KINDS = (
    "worker killed",
    "master killed",
    "master killed, replicas behind",
    "failover",
    "sentinel killed",
    "master frozen",
    "master frozen until replaced",
    "master flushed",
    "master restarted, old snapshot",
    *(f"master line: {mode}" for mode in MODES),
    "sentinels line: blackhole",
    "sentinels line: refuse",
    "redis line: blackhole",
    *_OF_POSTGRES,
)
"""Every kind of fault of a run with sentinels."""

# How many slots of time a fault takes, if it is more than one.
_SLOTS = {
    # Two restarts, and some time between them that is lost.
    "postgres restored to an earlier moment": 2,
    # Until a replica is promoted, and the servers know each other again.
    "master killed": 3,
    "master killed, replica behind": 3,
    "master killed, replicas behind": 4,
    "failover": 2,
    "failover by takeover, replica behind": 2,
    "slots moved, failover there": 2,
    "slots half moved": 2,
    "shard away": 3,
    "sentinel killed": 3,
    "master frozen until replaced": 3,
    "master restarted, old snapshot": 2,
}

# In a minute every kind has its turn; in a longer run there is more time to see what a fault leaves behind.
_SLOT_SECONDS = 4.0
_SHARE_OF_TIME_FOR_A_ROUND = 0.98
_SHARE_OF_SLOT = (0.25, 0.65)
_SHARE_OF_SLOT_BEFORE = 0.1
_DOWN_SECONDS = 0.5
_ONE_WORKER_ONLY = 0.6


class FaultFailedError(Exception):
    """What was to go wrong did not."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: One of `KINDS`.
        at: When, in seconds from the beginning.
        seconds: How long until it heals, where it does not heal by itself.
        worker: Whom it hits, where it can hit one: counted from 0, `None` for all.
        down_seconds: How long a server that was killed stays down.
    """

    kind: str
    at: float
    seconds: float
    worker: int | None
    down_seconds: float

    def dice(self) -> random.Random:
        """Return a source of what else is drawn for this fault: the same one each time."""
        return random.Random(f"{self.kind} {self.at}")

    @property
    def line(self) -> tuple[str, Mode] | None:
        """The server and the mode, if it is the line to a server that goes bad."""
        server, _, mode = self.kind.partition(" line: ")
        return (server, cast("Mode", mode)) if mode else None

    @property
    def hides(self) -> Literal["redis", "postgres"] | None:
        """Which server the processes cannot reach, or only slowly: a Redis that lives on, or a PostgreSQL."""
        if self.kind.startswith(("redis frozen", "master frozen", "redis line", "master line")):
            return "redis"
        is_short = self.kind == "postgres tables truncated"
        return "postgres" if self.kind.startswith("postgres") and not is_short else None

    def __str__(self) -> str:
        can_hit_one = self.line is not None or self.kind == "worker killed"
        who = f"worker {self.worker}" if self.worker is not None else "all workers"
        return f"{self.kind}, {who}" if can_hit_one else self.kind


@dataclass(frozen=True)
class Happened:
    """A fault that came about, and between which moments of CLOCK_MONOTONIC."""

    fault: Fault
    start: float
    end: float

    def touches(self, start: float, end: float) -> bool:
        """Whether it was there between these two."""
        return self.start <= end and start <= self.end


def schedule(seed: int, seconds: float, workers: int, wanted: Sequence[str] = KINDS) -> list[Fault]:
    """Draw the faults of a run: one at a time, then some time without one, so that what is found afterwards
    has one cause. Round by round, every kind in every round, in an order of its own.

    Args:
        seconds: How long the run is; within a minute every kind has its turn once.
        workers: How many there are.
        wanted: Kinds of faults.
    """
    return list(_draw(random.Random(seed), seconds, workers, wanted)) if wanted else []


def _draw(dice: random.Random, seconds: float, workers: int, wanted: Sequence[str]) -> Iterator[Fault]:
    slots = {kind: _SLOTS.get(kind, 1) for kind in wanted}
    slot = min(_SLOT_SECONDS, _SHARE_OF_TIME_FOR_A_ROUND * seconds / sum(slots.values()))
    number = 0
    while True:
        for kind in dice.sample(wanted, len(wanted)):
            at = (number + dice.uniform(0, _SHARE_OF_SLOT_BEFORE)) * slot
            number += slots[kind]
            length = dice.uniform(*_SHARE_OF_SLOT) * slot
            one = dice.randrange(workers) if dice.random() < _ONE_WORKER_ONLY else None
            down = dice.uniform(0, _DOWN_SECONDS)
            if at + slots[kind] * slot > seconds + 0.1 * slot:
                return
            if kind == "worker killed":
                one, length = dice.randrange(workers), 0.0
            yield Fault(kind, at, length, one, down)
