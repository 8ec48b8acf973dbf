"""The words of the explorer: scenarios, moves, and the constants of every run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from glasspoint.model.scope import Scope

SCOPE = Scope("thread", "")
CONFIG: Any = {"configurable": SCOPE._asdict()}

# An intent lasts longer than an image here, and no run as long as either.
WRITE_DEADLINE_SECONDS = 100_000.0
TTL_SECONDS = 100.0
REIGNS = ("restart", "failover", "reboot", "promote")
HERE, THERE = "here", "there"
"""The two servers that a process may take for its Redis. Faults of Redis happen to the first.

Of a cluster: its two masters. The slot of the explored scope is on the first at the beginning."""

# How long a process waits that is detached, and a little more.
A_MINUTE = 61.0
CHANGES = ("set_back", "lose", "truncate", "renew", "attach")
"""Kinds of faults after which what Redis holds is not what PostgreSQL has, or belongs to others: `set_back`
PostgreSQL is as it was when the run began, on another timeline; `lose` the same on the same one; `truncate`
its tables are empty; `renew` somebody else has renewed the generation; `attach` somebody else has attached
the cache to another Redis."""

Move = tuple[str, ...]
"""What can be done next: `step`, `crash`, … and whom or what it is about."""


class SlotStep(NamedTuple):
    """A part of a slot's move, as one step of a schedule.

    Attributes:
        to: The master that the slot moves to.
        does: `begin`: the owner answers ASK for keys that it does not hold. `carry`: the key moves. `arrive`:
            the slot has the other owner. Or `call off`: the owner keeps the slot, and the key comes back; in
            two parts, `stay` and `bring back`.
    """

    to: str
    does: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.does)}, {self.to}"


class Touched(NamedTuple):
    """What a step has touched: two steps of different processes that touch nothing in common can be done in
    either order.

    Attributes:
        process: Whose step it was.
        reads, writes: Of `REDIS`, `TABLES`, `PROMISE`.
    """

    process: str
    reads: frozenset[str]
    writes: frozenset[str]

    def is_apart_from(self, other: Touched) -> bool:
        """Whether the order of this step and another one does not matter."""
        return self.process != other.process and not (
            self.writes & (other.reads | other.writes) or other.writes & self.reads
        )


REDIS, TABLES, PROMISE = "redis", "tables", "promise"

Place = tuple[str, bytes]
"""A server, and a key there."""


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Call:
    """One call of a saver."""

    name: str
    make: Callable[[Any], Awaitable[Any]]
    reads: bool = False


@dataclass(frozen=True)
class Scenario:
    """What is explored.

    Attributes:
        actors: Name -> its calls, one after the other; each actor is a process of its own.
        before: What was stored before, through a saver like theirs.
        cold: Whether the entry is lost after that.
        behind: What was stored after that by somebody who was cut off from Redis.
        leftover: Whether a row is in the journal whose entry was dropped already.
        shares: Actor -> whose process it is in, and whose saver it uses, instead of one of its own.
        new: Processes that have not swept yet, and so do not trust Redis.
        opening: Processes that have not even looked at PostgreSQL yet.
        there: Processes of another Redis; they are opening, too.
        foreign: Other software: it writes to PostgreSQL, and knows of no Redis.
        slow: Actors whose answers are under way for a step of its own.
        slot: In a Redis Cluster: how the slot of the scope moves, step by step, while the actors act.
        newest: The master that has the greatest configuration epoch at the beginning. It takes no new one
            when the slot arrives.
        replaces: Whether a key that moves replaces one that stands there.
    """

    name: str
    actors: dict[str, Sequence[Call]]
    before: Sequence[Call] = ()
    cold: bool = False
    behind: Sequence[Call] = ()
    leftover: bool = False
    shares: Mapping[str, str] = field(default_factory=dict)
    new: Collection[str] = ()
    opening: Collection[str] = ()
    there: Collection[str] = ()
    foreign: Collection[str] = ()
    slow: Collection[str] = ()
    slot: Sequence[SlotStep] = ()
    newest: str = HERE
    replaces: bool = False


class Outcome(NamedTuple):
    """What a script answered, and the entry afterwards, as field, value, …"""

    answer: Any
    entry: list[bytes]
    ttl_ms: int
