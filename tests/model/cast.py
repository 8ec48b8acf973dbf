"""Who acts in a run: processes, their tasks, and the gates at which they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import psycopg

from glasspoint.errors import L2UnavailableError
from glasspoint.savers.bursts import Burst
from model import store
from model.terms import (
    HERE,
    SCOPE,
    Call,
)


@dataclass
class Process:
    """One saver, and who calls it.

    Attributes:
        past: Of several actors: hash of all that has happened in it.
        background: Does what no caller waits for: it ends bursts, and removes their fences.
        is_cut_off: Whether its steps do not reach Redis.
        is_forbidden: Whether Redis refuses it the key of this scope.
        is_wary: Whether it has met a failure, is new, or knows that the identity is another one, and has not
            begun to sweep since.
        is_late: Whether the identity has changed since it looked last.
        is_disconnected: Whether PostgreSQL has ended its connections, and it has sent nothing since.
        sweeps: Numbers of the effects whose rows were there when it last asked for rows.
        clock: Seconds.
    """

    name: str
    saver: Any
    where: str = HERE
    is_foreign: bool = False
    actors: list[Actor] = field(default_factory=list)
    background: Actor | None = None
    past: int = 0
    is_cut_off: bool = False
    is_forbidden: bool = False
    is_wary: bool = False
    is_late: bool = False
    is_disconnected: bool = False
    sweeps: frozenset[int] = frozenset()
    clock: float = 0.0

    @property
    def is_shared(self) -> bool:
        return sum(actor is not self.background for actor in self.actors) > 1

    @property
    def done(self) -> bool:
        return all(actor.done or actor.crashed for actor in self.actors)

    @property
    def bursts(self) -> list[Burst]:
        """The bursts that are not over."""
        is_gone = self.is_foreign or any(actor.crashed for actor in self.actors)
        return [] if is_gone else list(self.saver._bursts._open.values())


@dataclass
class Gate:
    actor: Actor
    tier: str
    label: str
    perform: Callable[[], Any]
    opened: asyncio.Future[Any]
    statement: tuple[Any, ...] = ()
    left_behind: int | None = None
    """Of a step that no call waits for: hash of what it does."""


@dataclass
class Actor:
    """A task of a process, at one of its calls.

    Attributes:
        position: Number of the call.
        past: Hash of the answers that it got in this call: as its code is deterministic, this is where it is.
        began: Number of the view that PostgreSQL gave at its first action; `None` before that.
        possible: What tables a read may show, once the entry has lost something (see `World._possible`).
        effects: Numbers of the effects of its statements.
        session: PostgreSQL's connection; a new one after a cut.
        connected: To which start of PostgreSQL.
        is_early: Whether that ended before the call had begun: then it begins later.
        is_behind: Whether its read is excused, because its process does not know of a cluster's change.
    """

    name: str
    calls: Sequence[Call]
    process: Process
    position: int = 0
    past: int = 0
    tokens: int = 0
    began: int | None = None
    possible: frozenset[store.Tables] = frozenset()
    effects: list[int] = field(default_factory=list)
    session: int = 0
    connected: int = 0
    is_early: bool = False
    is_behind: bool = False
    crashed: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def who(self) -> str:
        return f"{self.name}/{self.session}"

    @property
    def done(self) -> bool:
        return self.position == len(self.calls)


@dataclass
class Ghost:
    """A statement that nobody waits for any more, and that may yet take effect."""

    who: str
    statement: tuple[Any, ...]


ACTOR: ContextVar[Actor] = ContextVar("actor")


def can_tell(process: Process) -> bool:
    """Whether a step that it sends now gets to Redis."""
    if process.is_foreign or process.is_cut_off or process.is_forbidden:
        return False
    l1 = process.saver._l1
    if process.saver._parts.cluster is not None:
        return not l1.is_left_alone(SCOPE)
    return bool(process.saver._parts.breaker.is_closed and l1.is_identified and not l1.quarantine)


def broken() -> L2UnavailableError:
    """What a client gets whose connection has ended."""
    error = L2UnavailableError("broken")
    error.__cause__ = psycopg.OperationalError("broken")
    return error


def clock() -> float:
    """For `monotonic` in `coherence.identity`: time passes only where the explorer says so."""
    actor = ACTOR.get(None)
    return actor.process.clock if actor else 0.0


def new_token() -> str:
    """For `cache._new_token`: says whose it is, and is the same in every replay."""
    actor = ACTOR.get(None)
    if actor is None:
        return "observer"
    actor.tokens += 1
    return f"{actor.name}_{actor.position}_{actor.tokens}"
