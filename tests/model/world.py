"""One run: real savers and the real scripts on a real Redis, in which nothing moves before it is told to.

Every atomic action (a script in Redis, a statement in PostgreSQL) waits at a gate until the explorer picks
it. Between two actions nothing is left to chance: the event loop knows neither I/O nor time, the connection
to Redis is a blocking socket, and PostgreSQL is the model in `store.py`. So a list of choices names a run,
and the same list gives the same run again.

What a client does between an answer and its next action is nobody else's business, so it needs no gate. That
an answer is on its way for long is a schedule too: the next action is picked late. A call begins with its
first action and is acknowledged with its last one: earlier or later would only ask less of the reads. Only
within a process is it another one's business, because its tasks share a memory: there, a scenario can have
the answer come later (`slow`).

A warm-up is not waited for: its step may be done long after its read was answered, and in the next call. It
belongs to no call, so no call begins with it.

What Redis holds is true to one PostgreSQL, as it is now, and that may change (`_do_set_back` and its like).
Each process learns of it when it looks, or when its connection breaks; until then it is *late*, and so may be
what it reads. After that, never.
"""

from __future__ import annotations

import asyncio
import json
import re
import selectors
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar, copy_context
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import hiredis
import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool
from redis._parsers.helpers import parse_info
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import GlasspointError, L2DeadlineError, L2UnavailableError
from glasspoint.l1.breaker import Breaker
from glasspoint.model import codec
from glasspoint.model.scope import Scope
from glasspoint.savers import cached as saver
from glasspoint.savers.bursts import Burst
from glasspoint.telemetry.events import Telemetry
from model import store

SCOPE = Scope("thread", "")
CONFIG: Any = {"configurable": SCOPE._asdict()}

# An intent lasts longer than an image here, and no run as long as either.
WRITE_DEADLINE_SECONDS = 100_000.0
TTL_SECONDS = 100.0

_REIGNS = ("restart", "failover", "reboot")

HERE, THERE = "here", "there"
"""The two servers that a process may take for its Redis. Faults of Redis happen to the first."""

# How long a process waits that is detached, and a little more.
_A_MINUTE = 61.0

CHANGES = ("set_back", "lose", "truncate", "renew", "attach")
"""Kinds of faults after which what Redis holds is not what PostgreSQL has, or belongs to others: `set_back`
PostgreSQL is as it was when the run began, on another timeline; `lose` the same on the same one; `truncate`
its tables are empty; `renew` somebody else has renewed the generation; `attach` somebody else has attached
the cache to another Redis."""

Move = tuple[str, ...]
"""What can be done next: `step`, `crash`, … and whom or what it is about."""


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


@dataclass
class _Process:
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
    actors: list[_Actor] = field(default_factory=list)
    background: _Actor | None = None
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
class _Gate:
    actor: _Actor
    tier: str
    label: str
    perform: Callable[[], Any]
    opened: asyncio.Future[Any]
    statement: tuple[Any, ...] = ()
    left_behind: int | None = None
    """Of a step that no call waits for: hash of what it does."""


@dataclass
class _Actor:
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
    """

    name: str
    calls: Sequence[Call]
    process: _Process
    position: int = 0
    past: int = 0
    tokens: int = 0
    began: int | None = None
    possible: frozenset[store.Tables] = frozenset()
    effects: list[int] = field(default_factory=list)
    session: int = 0
    connected: int = 0
    is_early: bool = False
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


_ACTOR: ContextVar[_Actor] = ContextVar("actor")


class _NoIO(selectors.SelectSelector):
    """Nothing ever comes from outside; who waits for it would wait for ever."""

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout == 0, "the loop waits for something that no gate stands in front of"
        return []


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop without I/O and without time: no timeout ever fires."""

    def __init__(self) -> None:
        super().__init__(_NoIO())
        self.tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return 0.0

    def drain(self) -> None:
        """Run until everybody waits at a gate."""
        asyncio._set_running_loop(self)
        try:
            while self._ready:  # type: ignore[attr-defined]
                self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(None)

    def complete(self, work: Awaitable[Any]) -> Any:
        """Run what meets no closed gate."""
        task = asyncio.ensure_future(work, loop=self)
        self.drain()
        return task.result()

    def _make_task(self, loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        self.tasks.append(task)
        return task


class Wire:
    """A blocking connection to Redis: several commands, one round trip."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def send(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Return the answers; an error is one, too."""
        self._socket.sendall(b"".join(hiredis.pack_command(command) for command in commands))
        answers: list[Any] = []
        while len(answers) < len(commands):
            answer = self._reader.gets()
            if answer is False:
                self._reader.feed(self._socket.recv(65536))
            else:
                answers.append(answer)
        return answers

    def close(self) -> None:
        self._socket.close()


def _raise_error(answer: Any) -> Any:
    if isinstance(answer, hiredis.ReplyError):
        text = str(answer)
        raise NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
    return answer


class _SteppedRedis(Redis):
    """The savers' client: every script waits at a gate; what the epoch asks for is answered at once."""

    world: World
    where: str

    async def evalsha(self, sha: Any, numkeys: int, *keys_and_args: Any) -> Any:
        return await self.world.pass_redis(self.where, sha, numkeys, *keys_and_args)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _Pipeline(self.world.wires[self.where])


_parse: Callable[[Any], Any] = parse_info


class _Pipeline:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._commands: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> _Pipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def info(self, section: str) -> None:
        self._commands.append(("INFO", section))

    def script_load(self, text: str) -> None:
        self._commands.append(("SCRIPT", "LOAD", text))

    async def execute(self) -> list[Any]:
        answers = [_raise_error(answer) for answer in self._wire.send(*self._commands)]
        return [
            _parse(answer) if command[0] == "INFO" else answer
            for command, answer in zip(self._commands, answers, strict=True)
        ]


Place = tuple[str, bytes]
"""A server, and a key there."""


class Outcome(NamedTuple):
    """What a script answered, and the entry afterwards, as field, value, …"""

    answer: Any
    entry: list[bytes]
    ttl_ms: int


@dataclass
class _Effect:
    """What a statement changed.

    Attributes:
        rows: (table, key, row or `None`).
        required: It is acknowledged, or one that is acknowledged found its row there: every read that begins
            from now on must show it.
        has_row: Whether the journal says that Redis was not told of it.
        is_untold: Whether its process has met a failure since.
        excused: Names of processes that may read the state before it nevertheless, because they trusted Redis
            when the row was made, and have met no failure since; until a sweep ends that began after it.
        late: Likewise, because they were late when it was acknowledged; until they look.
        astray: The process that has written it, if that was late itself: all others may read the state before
            it, until a row is made.
        resets: Whether nothing that was before it counts any more.
    """

    rows: tuple[tuple[str, Any, Any], ...]
    required: bool = False
    has_row: bool = False
    is_untold: bool = False
    excused: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    astray: str | None = None
    resets: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether all must show it."""
        return self.required and not self.excused and not self.late and self.astray is None

    def must_be_shown_by(self, process: _Process) -> bool:
        """Whether a read that begins now must show it."""
        is_excused = process.name in self.excused or process.name in self.late
        return self.required and not is_excused and self.astray in (None, process.name)


def _can_tell(process: _Process) -> bool:
    """Whether a step that it sends now gets to Redis."""
    if process.is_foreign or process.is_cut_off or process.is_forbidden:
        return False
    l1 = process.saver._l1
    return bool(process.saver._breaker.is_closed and l1.is_identified and not l1.quarantine)


class _Reigns(store.Reigns):
    """The first one here is `here 0`, the next `here 1`."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._current: dict[str, str] = {}

    def forget(self) -> None:
        """A new run."""
        self._names.clear()
        self._current.clear()

    def meet(self, where: str, reign: str) -> None:
        """A server reigns."""
        number = sum(name.startswith(where) for name in self._names.values())
        self._names.setdefault(reign, f"{where} {number}")
        self._current[where] = reign

    def name(self, reign: str) -> str:
        return self._names.get(reign, reign)

    def real(self, name: str) -> str:
        return next((reign for reign, its in self._names.items() if its == name), name)

    def shown(self, key: bytes) -> str:
        """Return a key, with the names."""
        text = key.decode()
        for reign, name in self._names.items():
            text = text.replace(reign, name)
        return text

    def is_of_the_past(self, key: bytes) -> bool:
        """Whether it holds a reign that is over."""
        return any(reign.encode() in key for reign in self._names.keys() - self._current.values())


class World:
    """Runs of one scenario, one after the other.

    Attributes:
        wires: Connections to the Redis servers that no gate stands in front of.
        trace: What has happened in this run, a line an action.
        outcomes: What Redis did in it.
        reads: How many reads were judged, in all runs.
    """

    def __init__(
        self,
        loop: FrozenLoop,
        server: EmbeddedRedis,
        scenario: Scenario,
        elsewhere: EmbeddedRedis | None = None,
    ) -> None:
        self.scenario = scenario
        self._server = server
        servers = {HERE: server} | ({THERE: elsewhere} if elsewhere is not None else {})
        self.wires = {where: Wire(each.port) for where, each in servers.items()}
        self.reads = 0
        self.trace: list[str] = []
        self.outcomes: list[Outcome] = []
        self._loop = loop
        self._names: dict[str, str] = {}
        self._view_of: dict[Any, str] = {}
        self._reigns = _Reigns()
        self._processes: dict[str, _Process] = {}
        self._dead = False
        self._epoch_changed = False
        self._gates: list[_Gate] = []
        self._tables = store.Tables()
        self._views: list[str] = []
        self._effects: list[_Effect] = []
        self._entries: dict[Place, dict[bytes, bytes]] = {}
        self._ttls: dict[Place, int] = {}
        self._unsent: dict[str, list[tuple[Any, ...]]] = {}
        self._replayed: deque[Outcome] | None = None
        self._actors: list[_Actor] = []
        self._starts = 0
        self._is_alone = False
        self._violation: Violation | None = None
        loop.set_exception_handler(self._unexpected)
        asyncio._set_running_loop(loop)
        try:
            names = ("observer", *(name for name in scenario.actors if name not in scenario.shares))
            self._savers = {
                name: self._make_saver(name, THERE if name in scenario.there else HERE, servers)
                for name in names
                if name not in scenario.foreign
            }
        finally:
            asyncio._set_running_loop(None)
        self._observer = self._savers["observer"]
        self._virgin = {name: _memory_of(each) for name, each in self._savers.items()}
        self._minds: dict[str, _Memory] = {}
        for wire in self.wires.values():
            wire.send(("FLUSHDB",))
        self._introduce()
        self._recall()
        self._prepare()

    # ------------------------------------------------------------------ what the explorer does

    def begin(self, path: Sequence[Move] = (), outcomes: Sequence[Outcome] = ()) -> None:
        """Start a new run, and take it where another one was after these moves.

        Args:
            outcomes: What Redis did in that run. A script does the same to the same entry, so until the end
                of the path the savers are told what they were told then, and then the entry is put there as
                it was. Only when another Redis has begun to reign on the path, everything is done again.
        """
        self._bury()
        self._dead = False
        if self._epoch_changed:
            self._introduce()
        self._recall()
        self._entries, self._ttls, self._unsent = {}, {}, {}
        if self._base_entry:
            self._entries[self._first_place] = self._base_entry
        self._replayed = None if any(kind in _REIGNS for kind, *_ in path) else deque(outcomes)
        if not path or self._replayed is None:
            self._put_back()
        self._tables = self._base_tables
        self._views = [self._view(self._tables)]
        self._effects = []
        self._history = [dict(self._entries)]
        self._starts = 0
        self._is_moved = False
        self._ghosts: list[Ghost] = []
        self._lossy = False
        self.faults: list[str] = []
        self.outcomes = []
        self.trace = []
        self._make_processes()
        for actor in self._actors:
            context = copy_context()
            context.run(_ACTOR.set, actor)
            actor.task = self._loop.create_task(self._live(actor), context=context)
        self._loop.drain()
        for move in path:
            self.do(move)
        if self._replayed is not None:
            assert not self._replayed
            self._replayed = None
            if path:
                self._put_back()

    def moves(self, faults: Sequence[str]) -> list[Move]:
        """What can be done next; `faults` are the kinds that may still happen."""
        steps: list[Move] = []
        for gate in self._gates:
            if self._is_enabled(gate) and not self._is_mirrored(gate.actor):
                steps.append(("step", gate.actor.name, gate.label))
        if len(set(steps)) < len(steps):
            raise AssertionError(f"two gates of one name: {steps}")
        for number, ghost in enumerate(self._ghosts):
            if self._can(ghost.who, ghost.statement):
                steps.append(("late", str(number), ghost.statement[0]))
            steps.append(("never", str(number), ghost.statement[0]))
        intents = self._live_intents()
        crashed = {actor.name for actor in self._actors if actor.crashed}
        for intent in intents:
            owner = re.split("[_@]", intent[2:])[0]
            if not self._ghosts and (owner in crashed or owner == "doubt"):
                steps.append(("expire", intent))
        for process in self._processes.values():
            for burst in process.bursts:
                if not burst.writers and not burst.is_closing:
                    steps.append(("end", process.name, burst.scope.checkpoint_ns))
        for holder in {key[2] for key, _ in self._tables.fences}:
            if not self._ghosts and holder in crashed:
                steps.append(("unfence", holder))
        steps += [("heal", process.name) for process in self._processes.values() if process.is_cut_off]
        steps += [("wait", process.name) for process in self._processes.values() if self._may_wait(process)]
        steps += [("allow", process.name) for process in self._processes.values() if process.is_forbidden]
        return steps + [move for kind in faults for move in self._fault_moves(kind, intents)]

    def do(self, move: Move) -> None:
        """Do one of `moves`, and let its client go on to its next action.

        Raises:
            Violation: A read returned what it must not, or an intent would be forgotten before its deadline.
        """
        kind, *about = move
        getattr(self, f"_do_{kind}")(*about)
        self._loop.drain()
        if self._violation:
            raise self._violation

    def state(self) -> int:
        """A hash of all that the rest of the run depends on, and of all that it will be judged by."""
        settled, first = self._settled()
        return hash(
            (
                self._tables,
                tuple((ghost.who, ghost.statement) for ghost in self._ghosts),
                tuple(
                    sorted(
                        (self._reigns.shown(key), _canonical(entry))
                        for (_, key), entry in self._entries.items()
                        if not self._reigns.is_of_the_past(key)
                    )
                ),
                self._lossy,
                tuple(self.faults),
                settled,
                tuple(
                    (
                        effect.rows,
                        effect.required,
                        effect.has_row,
                        effect.is_untold,
                        frozenset(effect.excused),
                        frozenset(effect.late),
                        effect.astray,
                    )
                    for effect in self._effects[first:]
                ),
                tuple(
                    (
                        process.past,
                        process.is_cut_off,
                        process.is_forbidden,
                        process.is_wary,
                        process.is_late,
                        process.is_disconnected,
                        frozenset(number - first for number in process.sweeps if number >= first),
                        self._mind(process),
                    )
                    for process in self._processes.values()
                ),
                tuple(
                    (
                        actor.position,
                        actor.past,
                        actor.crashed,
                        actor.session,
                        actor.connected == self._starts,
                        actor.is_early,
                        tuple(number - first for number in actor.effects if number >= first),
                        None if actor.began is None or self._lossy else frozenset(self._views[actor.began :]),
                        actor.possible,
                        frozenset(
                            (gate.label, gate.left_behind) for gate in self._gates if gate.actor is actor
                        ),
                    )
                    for actor in self._actors
                ),
            )
        )

    def finish(self) -> None:
        """All is over: the intents that are left expire, and two reads are to return what PostgreSQL holds.

        Raises:
            Violation: Somebody waits for ever, or a read returns something else.
        """
        for actor in self._actors:
            if not (actor.done or actor.crashed):
                raise Violation(f"{actor.name} waits for ever, at {[g.label for g in self._gates]}")
        for intent in self._live_intents():
            self._expire(intent)
        self._observer._l1.doubt()
        alive = [p for p in self._processes.values() if not any(actor.crashed for actor in p.actors)]
        savers = {p.name: p for p in alive if not p.is_foreign}
        if self._is_moved or any(not effect.is_settled for effect in self._effects if effect.required):
            # Each would sweep within a second, and one that is detached takes over within a minute.
            for process in [*savers.values(), *savers.values()]:
                process.clock += _A_MINUTE
                self._complete(process, process.saver._sweeper.round())
        readers = [
            p for p in savers.values() if any(call.reads for actor in p.actors for call in actor.calls)
        ]
        for process in (*2 * [_Process("observer", self._observer)], *readers, *readers):
            found = _text(self._complete(process, process.saver.aget_tuple(CONFIG)))
            self.reads += 1
            if found != self._views[-1]:
                raise Violation(
                    f"in the end a read of {process.name} returned {found}, "
                    f"PostgreSQL holds {self._views[-1]}"
                )

    def _complete(self, process: _Process, work: Awaitable[Any]) -> Any:
        """Let a process do something while all others stand still."""
        token = _ACTOR.set(_Actor(process.name, (), process, connected=self._starts))
        self._is_alone = True
        try:
            return self._loop.complete(work)
        finally:
            self._is_alone = False
            _ACTOR.reset(token)

    def close(self) -> None:
        """Leave nothing behind."""
        self._bury()
        for wire in self.wires.values():
            wire.send(("FLUSHDB",))
            wire.close()

    # ------------------------------------------------------------------ what happens next

    def _is_enabled(self, gate: _Gate) -> bool:
        return not gate.statement or self._can(gate.actor.who, gate.statement)

    def _can(self, who: str, statement: tuple[Any, ...]) -> bool:
        try:
            store.execute(self._tables, who, statement)
        except store.MustWait:
            return False
        return True

    def _is_mirrored(self, actor: _Actor) -> bool:
        """Of two actors who do the same, the second begins after the first: the rest is symmetry."""
        if actor.began is not None or actor.position:
            return False
        before = self._actors[: self._actors.index(actor)]
        return any(a.calls is actor.calls and not a.position and a.began is None for a in before)

    def _may_wait(self, process: _Process) -> bool:
        """Whether it is detached, and its minute is not over."""
        if process.is_foreign or process.done or process.saver._identity._detached_at is None:
            return False
        return bool(process.clock - process.saver._identity._detached_at < _A_MINUTE)

    def _fault_moves(self, kind: str, intents: Collection[str]) -> list[Move]:
        if kind == "evict":
            return [
                ("evict", *self._label(place))
                for place, entry in self._entries.items()
                if entry and not self._reigns.is_of_the_past(place[1])
            ]
        if kind == "lose_fences":
            return [(kind,)] if self._tables.fences and not self._is_amid_a_put() else []
        if kind == "lapse":
            return [("lapse", intent) for intent in intents]
        if kind in CHANGES:
            return [(kind,)] if self._may_change(kind) else []
        if kind in _REIGNS:
            older = [
                number
                for number, entries in enumerate(self._history)
                if any(b"id" in entry for entry in entries.values()) and entries != self._entries
            ]
            return [(kind, str(i)) for i in sorted({older[0], older[-1]})] if older else [(kind, "empty")]
        begun = [a for a in self._actors if a.began is not None and not (a.done or a.crashed)]
        if kind == "crash":
            at_work = [actor.process.name for actor in begun]
            at_work += [process.name for process in self._processes.values() if process.bursts]
            return [("crash", name) for name in dict.fromkeys(at_work)]
        processes = [p for p in self._processes.values() if not p.done]
        if kind == "cut_off":
            asking = {gate.actor.process.name for gate in self._gates if gate.tier == "l1"}
            return [("cut_off", p.name) for p in processes if p.name in asking and not p.is_cut_off]
        if kind == "forbid":
            asking = {gate.actor.process.name for gate in self._gates if gate.tier == "l1"}
            return [("forbid", p.name) for p in processes if p.name in asking and not p.is_forbidden]
        if kind == "open":
            return [("open", p.name) for p in processes if not p.is_foreign and p.saver._breaker.is_closed]
        if kind == "cancel":
            return [("cancel", actor.name) for actor in begun]
        if kind in ("unsaid", "unheard"):
            return [
                (kind, gate.actor.name, gate.label)
                for gate in self._gates
                if gate.tier == "l1" and not gate.actor.process.is_cut_off
            ]
        return [
            (kind, gate.actor.name, gate.label)
            for gate in self._gates
            if gate.tier == "l2" and gate.label not in ("select", "rollback", "look", "greet", "count")
        ]

    def _is_amid_a_put(self) -> bool:
        """Whether one is between its snapshot and its effect. Until that, the fence that it has seen stands:
        a crash of PostgreSQL ends the statement, and the fence does not expire before it has to end."""
        under_way = [gate.statement for gate in self._gates] + [ghost.statement for ghost in self._ghosts]
        return any(statement[:1] == ("put",) for statement in under_way)

    def _do_step(self, name: str, label: str) -> None:
        [gate] = [g for g in self._gates if (g.actor.name, g.label) == (name, label)]
        actor = gate.actor
        self._start(gate)
        if actor is actor.process.background:
            self._start_readers(actor.process)
        self._gates.remove(gate)
        answer: Any = None
        hear: Callable[[], Any]
        try:
            answer = gate.perform()
        except Exception as exc:
            hear = partial(gate.opened.set_exception, exc)
            answer = type(exc).__name__
        else:
            hear = partial(gate.opened.set_result, answer)
        if gate.tier == "answer":
            self.trace.append(f"{name}: {label}")
            return
        self._has_met(actor, label, _canonical_answer(answer))
        self.trace.append(f"{name}: {label} -> {_short(answer)}")
        if name in self.scenario.slow:
            later = _Gate(actor, "answer", f"hear {label}", hear, gate.opened, left_behind=gate.left_behind)
            self._gates.append(later)
        else:
            hear()

    def _start_readers(self, process: _Process) -> None:
        """A reader that waits for the end of its own burst is answered together with that."""
        waiting = {gate.actor.name for gate in self._gates if gate.left_behind is None}
        for actor in process.actors:
            if not actor.done and actor.name not in waiting and actor.calls[actor.position].reads:
                self._begin(actor)

    def _start(self, gate: _Gate) -> None:
        if gate.left_behind is None:
            self._begin(gate.actor)

    def _begin(self, actor: _Actor) -> None:
        if actor.began is None:
            actor.began, actor.possible = len(self._views) - 1, self._possible(actor.process)

    def _do_late(self, number: str, _label: str) -> None:
        ghost = self._ghosts.pop(int(number))
        self._execute(ghost.who, ghost.statement)
        self.trace.append(f"{ghost.who}: {ghost.statement[0]} takes effect, late")

    def _do_never(self, number: str, _label: str) -> None:
        ghost = self._ghosts.pop(int(number))
        self._execute(ghost.who, ("rollback",))
        self.trace.append(f"{ghost.who}: {ghost.statement[0]} never takes effect")

    def _do_expire(self, intent: str) -> None:
        self._expire(intent)
        self.trace.append(f"{intent} expires")

    def _do_end(self, name: str, namespace: str) -> None:
        """No write has come to a burst for a moment."""
        process = self._processes[name]
        [burst] = [each for each in process.bursts if each.scope.checkpoint_ns == namespace]
        self.trace.append(f"a burst of {name} ends")
        self._has_met(self._of_background(process), f"end {namespace}", None)
        token = _ACTOR.set(self._of_background(process))
        try:
            process.saver._bursts._close(burst)
        finally:
            _ACTOR.reset(token)

    @staticmethod
    def _of_background(process: _Process) -> _Actor:
        assert process.background is not None
        return process.background

    def _do_unfence(self, holder: str) -> None:
        """The fences of a process expire that has died."""
        self._tables = store.unfenced(self._tables, holder)
        self.trace.append(f"the fence of {holder} expires")

    def _do_lose_fences(self) -> None:
        """Processes stood still until their fences had expired."""
        self._fault("lose_fences")
        self._tables = store.unfenced(self._tables)

    def _do_wait(self, name: str) -> None:
        """A minute passes for a process that is detached."""
        self._processes[name].clock += _A_MINUTE
        self.trace.append(f"a minute passes for {name}")

    # ------------------------------------------------------------------ faults

    def _fault(self, text: str, *, lossy: bool = False) -> None:
        self.faults.append(text.split(":")[0])
        self.trace.append(f"*** {text}")
        self._lossy = self._lossy or lossy

    def _do_crash(self, name: str) -> None:
        self._fault(f"crash: {name}")
        process = self._processes[name]
        self._gates = [gate for gate in self._gates if gate.actor.process is not process]
        for actor in process.actors:
            actor.crashed = True
            # Its connection goes with it: a transaction is rolled back. A statement that still takes effect
            # is another schedule, in which it crashes later.
            self._execute(actor.who, ("rollback",))

    def _do_evict(self, *label: str) -> None:
        self._fault("evict", lossy=True)
        for place in list(self._entries):
            if self._label(place) == label:
                del self._entries[place]
                self._send(place[0], ("DEL", place[1]))

    def _do_failover(self, number: str) -> None:
        """This server promotes itself: the keys are as they were some time ago, the scripts are there."""
        self._reign_anew("failover", number, ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))

    def _do_restart(self, number: str) -> None:
        """The same without the scripts: what clients see of a restart, at a fraction of its time."""
        promote = ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")
        self._reign_anew("restart", number, *promote, ("SCRIPT", "FLUSH"))

    def _do_reboot(self, number: str) -> None:
        """The process is killed, and another one loads the snapshot."""
        self._reign_anew("reboot", number)
        self._server.save_snapshot()
        self._server.kill()
        self._server.start()
        self.wires[HERE].close()
        self.wires[HERE] = Wire(self._server.port)
        self._meet()

    def _reign_anew(self, kind: str, number: str, *commands: tuple[Any, ...]) -> None:
        past: dict[Place, dict[bytes, bytes]] = {} if number == "empty" else self._history[int(number)]
        self._fault(f"{kind}: with entry {number}", lossy=True)
        for place in self._entries.keys() - past.keys():
            if place[0] == HERE:
                del self._entries[place]
        for place, entry in past.items():
            if place[0] == HERE:
                self._entries[place] = entry
                self._ttls[place] = int(2 * WRITE_DEADLINE_SECONDS * 1000)
        self._unsent.pop(HERE, None)
        for answer in self.wires[HERE].send(*commands, ("FLUSHDB",), *self._commands_to_store(HERE)):
            _raise_error(answer)
        self._epoch_changed = True
        if commands:
            self._meet()

    def _meet(self) -> None:
        """Let the observer know who reigns, as its next step would, without spending a step."""
        server = self._loop.complete(self._observer._l1.connect(anew=True))
        self._reigns.meet(HERE, server.reign)
        self._names.clear()
        self._remember_entries()

    def _do_lapse(self, intent: str) -> None:
        """An intent expires although its writer lives: its process stood still, and goes on."""
        self._fault(f"lapse: {intent}", lossy=True)
        self._do_expire(intent)

    def _do_unsaid(self, name: str, label: str) -> None:
        """Redis never gets to know of a step; the client gives it up."""
        self._fail(name, label, "unsaid", TimeoutError(), None, lossy=True)

    def _do_unheard(self, name: str, label: str) -> None:
        """Redis does a step, and the client never gets to know."""
        gate = self._fail(name, label, "unheard", TimeoutError(), None, lossy=True)
        with suppress(ResponseError):
            gate.perform()

    def _do_cut(self, name: str, label: str) -> None:
        """The connection breaks while a statement is under way: the client knows nothing, and goes on."""
        gate = self._fail(name, label, "cut", L2UnavailableError("cut"), psycopg.OperationalError("cut"))
        rest = store.GOES_ON.get(label)
        if rest is None:
            self._execute(gate.actor.who, ("rollback",))
        else:
            self._ghosts.append(Ghost(gate.actor.who, (rest, *gate.statement[1:])))
        gate.actor.session += 1

    def _do_refuse(self, name: str, label: str) -> None:
        """PostgreSQL answers with an error: nothing was done."""
        gate = self._fail(name, label, "refuse", L2DeadlineError("refused"), psycopg.errors.QueryCanceled())
        self._execute(gate.actor.who, ("rollback",))

    def _do_cancel(self, name: str) -> None:
        """The caller gives up. What it had sent to PostgreSQL may still take effect."""
        self._fault(f"cancel: {name}")
        [actor] = [a for a in self._actors if a.name == name]
        for gate in [g for g in self._gates if g.actor is actor and g.tier == "l2"]:
            if rest := store.GOES_ON.get(gate.label):
                self._ghosts.append(Ghost(actor.who, (rest, *gate.statement[1:])))
            else:
                self._execute(actor.who, ("rollback",))
            actor.session += 1
        assert actor.task is not None
        actor.task.cancel()
        self._has_met(actor, "cancelled", None)

    def _do_cut_off(self, name: str) -> None:
        """What a process sends to Redis gets lost from now on."""
        self._fault(f"cut_off: {name}", lossy=True)
        self._processes[name].is_cut_off = True

    def _do_heal(self, name: str) -> None:
        self.trace.append(f"{name} reaches Redis again")
        self._processes[name].is_cut_off = False

    def _do_forbid(self, name: str) -> None:
        """Redis refuses a process the key of this scope from now on, and serves it all others."""
        self._fault(f"forbid: {name}", lossy=True)
        self._processes[name].is_forbidden = True

    def _do_allow(self, name: str) -> None:
        self.trace.append(f"{name} may use the key again")
        self._processes[name].is_forbidden = False

    # ------------------------------------------------------------------ changes of identity

    def _may_change(self, kind: str) -> bool:
        if kind == "truncate":  # it waits for whoever is at work on the tables
            is_at_work = any(gate.label == "put" for gate in self._gates)
            return not is_at_work and not self._tables.changes and not self._ghosts
        return self._tables.cache is not None

    def _do_set_back(self) -> None:
        """PostgreSQL is recovered to the moment when the run began, or a standby takes over that lags behind
        by so much: another timeline, and the tables are as they were."""
        self._fault("set_back", lossy=True)
        self._start_again()
        self._change(store.set_back(self._tables, self._base_tables, tells=True))

    def _do_lose(self) -> None:
        """PostgreSQL crashes and has lost what it had acknowledged since (`synchronous_commit = off`). Or it
        is set back, and withholds its timeline."""
        self._fault("lose", lossy=True)
        self._start_again()
        self._change(store.set_back(self._tables, self._base_tables, tells=False))

    def _do_truncate(self) -> None:
        """The tables of LangGraph are truncated; Glasspoint's are not."""
        self._fault("truncate", lossy=True)
        self._change(store.truncated(self._tables))

    def _do_renew(self) -> None:
        """Somebody else renews the generation, on the same Redis."""
        self._fault("renew", lossy=True)
        assert self._tables.cache is not None
        self._renewed_by_others(self._tables.cache.reign)

    def _do_attach(self) -> None:
        """Somebody else attaches the cache to a Redis that nobody here can reach, and leaves."""
        self._fault("attach", lossy=True)
        self._renewed_by_others("elsewhere")

    def _renewed_by_others(self, reign: str) -> None:
        seen = self._tables.cache and self._tables.cache.generation
        self._execute("somebody", ("renew", seen, reign, self._tables.facts))
        self._has_moved()

    def _start_again(self) -> None:
        """All connections to PostgreSQL break, and nothing goes on."""
        self._starts += 1
        self._ghosts.clear()
        for process in self._processes.values():
            process.is_disconnected = True
        for actor in self._actors:
            actor.session += 1
        for gate in [gate for gate in self._gates if gate.tier == "l2"]:
            self._gates.remove(gate)
            gate.actor.is_early = gate.actor.began is None
            gate.opened.set_exception(_broken())
            self._has_met(gate.actor, gate.label, "broken")

    def _change(self, tables: store.Tables) -> None:
        """PostgreSQL is not what it was."""
        before, self._tables = self._tables, tables
        keys = {(name, key) for effect in self._effects for name, key, _ in effect.rows}
        for each in (before, self._tables):
            keys |= {(name, key) for name in _TABLES for key, _ in getattr(each, name)}
        effect = _Effect(_changes(self._tables, keys), required=True, resets=True)
        self._add(effect)
        self._has_moved()
        effect.late = {p.name for p in self._processes.values() if p.is_late and not p.is_wary}

    def _has_moved(self) -> None:
        """The keys are others now; nobody knows it yet."""
        self._is_moved = self._lossy = True
        for process in self._processes.values():
            process.is_late = not process.is_foreign

    # ------------------------------------------------------------------ what goes wrong with a saver

    def _do_open(self, name: str) -> None:
        """The breaker opens, because of steps for other threads."""
        self._fault(f"open: {name}", lossy=True)
        process = self._processes[name]
        process.saver._l1._unavailable(TimeoutError())
        process.saver._breaker.trip("explored")
        self._is_wary(process)
        self._has_met(process.actors[0], "open", None)
        for actor in process.actors:
            actor.past = hash((actor.past, "open"))

    def _fail(
        self,
        name: str,
        label: str,
        kind: str,
        error: Exception,
        cause: Exception | None,
        *,
        lossy: bool = False,
    ) -> _Gate:
        [gate] = [g for g in self._gates if (g.actor.name, g.label) == (name, label)]
        self._gates.remove(gate)
        self._start(gate)
        self._fault(f"{kind}: {name}, {label}", lossy=lossy)
        error.__cause__ = cause
        gate.opened.set_exception(error)
        self._has_met(gate.actor, label, kind)
        if gate.tier == "l1":
            self._is_wary(gate.actor.process)
        return gate

    # ------------------------------------------------------------------ the actors

    async def _live(self, actor: _Actor) -> None:
        client = actor.process.saver
        while not actor.done:
            call, acknowledged = actor.calls[actor.position], False
            try:
                answer = await call.make(client)
                acknowledged = True
            except asyncio.CancelledError:
                if self._dead:
                    raise
                self.trace.append(f"{actor.name}: {call.name} was cancelled")
            except GlasspointError as exc:
                self.trace.append(f"{actor.name}: {call.name} failed, {type(exc).__name__}")
            except Exception as exc:
                self._unexpected(self, {"message": call.name, "exception": exc})
            if self._dead:
                return
            is_early, actor.is_early = actor.is_early and actor.began is None, False
            if is_early:
                continue
            if acknowledged:
                self.trace.append(f"{actor.name}: {call.name} is answered")
                if call.reads:
                    self._judge(actor, _text(answer))
                for number in actor.effects:
                    if not self._effects[number].is_untold and _can_tell(actor.process):
                        self._effects[number].excused.clear()
                    self._require(number, actor.process)
            actor.position += 1
            actor.tokens = 0
            goes_on = any(gate.actor is actor and gate.left_behind is None for gate in self._gates)
            if not (actor.process.is_shared or goes_on):  # as a call may that was cancelled
                actor.past = 0
            actor.began, actor.possible, actor.effects = None, frozenset(), []

    def _judge(self, actor: _Actor, found: str) -> None:
        """The promise, by which a read is judged.

        While the entry loses nothing: what PostgreSQL held at some moment of the read. When it has lost an
        intent, readers can no longer be sent to PostgreSQL while that write is under way, so: what PostgreSQL
        held at some moment, with every write that was acknowledged before the read; others may be missing,
        each as a whole. Of a process that is late, what was acknowledged since may be missing, too, and what
        PostgreSQL has lost may be there.
        """
        assert actor.began is not None
        self.reads += 1
        if self._lossy:
            allowed = {self._view(tables) for tables in actor.possible}
        else:
            allowed = set(self._views[actor.began :])
        if found not in allowed and self._violation is None:
            self._violation = Violation(f"{actor.name} read {found}, but PostgreSQL held {sorted(allowed)}")

    def _possible(self, process: _Process) -> frozenset[store.Tables]:
        """The tables with every effect that a process must show, and with or without each of the others."""
        settled, first = self._settled()
        possible = {settled}
        for effect in self._effects[first:]:
            with_it = {_applied(tables, effect) for tables in possible}
            possible = with_it if effect.must_be_shown_by(process) else possible | with_it
        return frozenset(possible)

    def _settled(self) -> tuple[store.Tables, int]:
        """The tables with the first effects, as far as all must show them, and how many these are."""
        tables, number = self._base_tables, 0
        resets = [n for n, effect in enumerate(self._effects) if effect.resets and effect.is_settled]
        for number in range(max(resets, default=0), len(self._effects)):
            if not self._effects[number].is_settled:
                return tables, number
            tables = _applied(tables, self._effects[number])
        return tables, len(self._effects)

    def _require(self, number: int, writer: _Process) -> None:
        effect = self._effects[number]
        effect.required = True
        effect.late |= {
            p.name for p in self._processes.values() if p.is_late and not p.is_wary and p is not writer
        }
        effect.astray = writer.name if writer.is_late and not effect.has_row else None
        keys = {key for _, key, _ in effect.rows}
        resets = [n for n, each in enumerate(self._effects[:number]) if each.resets]
        for earlier in range(max(resets, default=0), number):
            found = self._effects[earlier]
            if not found.required and keys & {key for _, key, _ in found.rows}:
                found.has_row, found.excused = effect.has_row, set(effect.excused)
                self._require(earlier, writer)

    async def pass_redis(self, where: str, sha: bytes, numkeys: int, key: bytes, *args: Any) -> Any:
        """Where a script waits; its name is known from what was loaded."""

        process = _ACTOR.get().process

        def perform() -> Any:
            if process.is_cut_off:
                self._is_wary(process)
                raise TimeoutError
            if process.is_forbidden:
                self._is_wary(process)
                raise ResponseError("No permissions to access a key")
            outcome = self._replayed.popleft() if self._replayed is not None else None
            if outcome is None:
                look = ("HGETALL", key), ("PTTL", key)
                commands = *self._unsent.pop(where, ()), ("EVALSHA", sha, numkeys, key, *args), *look
                outcome = Outcome(*self.wires[where].send(*commands)[-3:])
            self.outcomes.append(outcome)
            if label == "drop":
                self._has_dropped(process)
            if key.endswith(self._suffix):  # not of a probe
                self._saw((where, key), outcome.entry, outcome.ttl_ms)
            return _raise_error(outcome.answer)

        label = self._script_names()[sha.decode()]
        if not key.endswith(self._suffix) and b"{" in key:
            label += f" {{{key.decode().partition(':{')[2]}"  # of another scope
        left_behind = None
        if label == "warm_up":
            while any(gate.actor is _ACTOR.get() and gate.label == label for gate in self._gates):
                label += " of a later read"
            left_behind = hash(tuple(_UNIQUE.sub(b"", a) if isinstance(a, bytes) else a for a in args))
        return await self._pass("l1", label, perform, left_behind=left_behind)

    async def _pass_postgres(self, statement: tuple[Any, ...]) -> Any:
        actor = _ACTOR.get()
        if actor.connected != self._starts:
            raise _broken()

        def perform() -> Any:
            answer = self._execute(actor.who, statement)
            self._has_asked(actor.process, statement, answer)
            return answer

        return await self._pass("l2", statement[0], perform, statement)

    async def _pass_foreign(self, statement: tuple[Any, ...]) -> Any:
        _ACTOR.get().connected = self._starts
        return await self._pass_postgres(statement)

    async def _check_out(self) -> None:
        """A connection that has broken is replaced by a new one, which is greeted."""
        actor = _ACTOR.get()
        if actor.connected != self._starts:
            actor.connected = self._starts
            await actor.process.saver._identity.greet(None)

    async def _pass(
        self,
        tier: str,
        label: str,
        perform: Callable[[], Any],
        statement: tuple[Any, ...] = (),
        *,
        left_behind: int | None = None,
    ) -> Any:
        if self._dead:
            raise asyncio.CancelledError
        if self._is_alone:
            return perform()
        actor = _ACTOR.get()
        if any(gate.actor is actor and gate.label == label for gate in self._gates):
            label += " again"  # of a call that was cancelled, and goes on in its own task
        opened = self._loop.create_future()
        gate = _Gate(actor, tier, label, perform, opened, statement, left_behind)
        if gate.actor.crashed:
            await gate.opened
        self._gates.append(gate)
        try:
            return await gate.opened
        except asyncio.CancelledError:
            self._gates = [each for each in self._gates if each.opened is not gate.opened]
            raise

    # ------------------------------------------------------------------ the two tiers

    def _execute(self, who: str, statement: tuple[Any, ...]) -> Any:
        before = self._tables
        self._tables, answer = store.execute(before, who, statement)
        if self._is_alone:
            return answer
        if statement[0] == "record":
            self._has_recorded(who)
        if statement[0] == "renew" and before.cache and self._tables.cache:
            places = {row.reign.split()[0] for row in (before.cache, self._tables.cache)}
            if len(places) > 1 and answer is not None:
                self._has_moved()
        if statement[0] in store.EFFECTS:
            effect = _Effect(_changes(self._tables, store.touched(before, who, statement)))
            if before.journal != self._tables.journal or statement[0] in store.FOREIGN:
                self._excuse(effect, who)
            self._add(effect)
            for actor in self._actors:
                if actor.who == who:
                    actor.effects.append(len(self._effects) - 1)
        return answer

    def _add(self, effect: _Effect) -> None:
        self._effects.append(effect)
        for actor in self._actors:
            actor.possible |= {_applied(tables, effect) for tables in actor.possible}
        view = self._view(self._tables)
        if view != self._views[-1]:
            self._views.append(view)

    # ------------------------------------------------------------------ who trusts Redis

    def _excuse(self, effect: _Effect, who: str) -> None:
        """A row was made for an effect, or should have been."""
        [writer] = [actor.process for actor in self._actors if actor.name == who.split("/")[0]]
        effect.has_row, effect.astray = True, None
        effect.excused = {p.name for p in self._processes.values() if p is not writer and not p.is_wary}
        self._lossy = self._lossy or writer.is_foreign

    def _has_recorded(self, who: str) -> None:
        for actor in [actor for actor in self._actors if actor.who == who]:
            for number in actor.effects:
                self._excuse(self._effects[number], who)
            for effect in self._effects:
                if effect.astray == actor.process.name:
                    self._excuse(effect, who)

    def _is_wary(self, process: _Process) -> None:
        """A process has met a failure, or knows that what it trusted is of the past."""
        process.is_wary = True
        for number in self._effects_of(process):
            self._effects[number].is_untold = True
        for effect in self._effects:
            effect.excused.discard(process.name)
            effect.late.discard(process.name)

    def _has_asked(self, process: _Process, statement: tuple[Any, ...], answer: Any) -> None:
        """A process has done a statement. What does it know now, and is it the last one of a sweep?"""
        label = statement[0]
        if label == "renew" and answer is not None:
            process.is_late = False
        if process.is_disconnected:
            process.is_disconnected = False
            self._is_wary(process)
        if label in ("look", "greet"):
            process.is_late = False
            if not self._fits(process, answer):
                self._is_wary(process)
                process.sweeps = frozenset()
                return
        if label == "look":
            process.is_wary = False
            process.sweeps = frozenset(n for n, effect in enumerate(self._effects) if effect.has_row)
        if label == "delete rows" or (label == "look" and not answer[-1]):
            # The entries were dropped.
            for number in process.sweeps:
                self._effects[number].excused -= self._users_of_keys(process)
            process.sweeps = frozenset()

    def _has_dropped(self, process: _Process) -> None:
        """The entry is gone: whoever reads it under these keys sees what was written until now."""
        for number in self._effects_of(process):
            self._effects[number].excused -= self._users_of_keys(process)

    def _effects_of(self, process: _Process) -> set[int]:
        """What its calls that are under way have changed."""
        return {number for actor in self._actors if actor.process is process for number in actor.effects}

    def _users_of_keys(self, process: _Process) -> set[str]:
        """The names of all processes that use the same keys."""
        keys = process.saver._identity.identity
        return {p.name for p in self._processes.values() if p is process or self._identity(p) == keys}

    def _fits(self, process: _Process, answer: Any) -> bool:
        """Whether PostgreSQL is what the keys of a process say."""
        facts, row, is_marked, _ = answer
        identity = self._identity(process)
        if identity is None or row is None:
            return False
        reign = self._reigns.real(row.reign)
        return (
            (row.generation, row.facts, is_marked) == (identity.generation, facts, True)
            and reign == identity.reign
            and reign == process.saver._l1.server.reign
        )

    def _identity(self, process: _Process) -> Any:
        return None if process.is_foreign else process.saver._identity.identity

    def _has_met(self, actor: _Actor, label: str, answer: Any) -> None:
        """Something has happened to an actor, on which depends what it will do."""
        if actor is actor.process.background and not actor.process.bursts:
            actor.past = 0  # what it has done is over; its gates tell which fences are yet to be removed
            return
        if actor.process.is_shared:
            actor.process.past = hash((actor.process.past, actor.name, label, answer))
        else:
            actor.past = hash((actor.past, label, answer))

    def _mind(self, process: _Process) -> tuple[Any, ...]:
        """What a saver remembers from one call to the next."""
        if process.is_foreign:
            return ()
        cache, keeper = process.saver._l1, process.saver._identity
        epochs = cache._epochs
        return (
            cache.trusted,
            process.saver._breaker.state,
            epochs._trusted,
            epochs.server and self._reigns.name(epochs.server.reign),
            keeper.identity and keeper.identity.generation,
            keeper._reign and self._reigns.name(keeper._reign),
            keeper._detached_at is None,
            self._may_wait(process),
            frozenset(keeper._written),
            frozenset(cache.written),
            SCOPE in cache.quarantine,
            tuple(sorted((key, _burst_state(each)) for key, each in process.saver._bursts._open.items())),
            tuple(sorted(process.saver._bursts._fences.pending.items())),
            process.saver._bursts._fences.is_removing,
        )

    def _make_processes(self) -> None:
        self._processes, self._actors = {}, []
        for name, calls in self.scenario.actors.items():
            owner = self.scenario.shares.get(name, name)
            if owner == name:
                self._processes[name] = self._make_process(name)
            process = self._processes[owner]
            process.actors.append(_Actor(name, calls, process))
            self._actors.append(process.actors[-1])
        for process in self._processes.values():
            if not process.is_foreign:
                process.background = _Actor(f"{process.name}.end", [], process)
                process.actors.append(process.background)
                self._actors.append(process.background)

    def _make_process(self, name: str) -> _Process:
        scenario = self.scenario
        if name in scenario.foreign:
            writer = store.ForeignWriter(self._pass_foreign, self._observer.serde)
            return _Process(name, writer, is_foreign=True, is_wary=True)
        where = THERE if name in scenario.there else HERE
        is_wary = name in (*scenario.new, *scenario.opening, *scenario.there)
        return _Process(name, self._savers[name], where, is_wary=is_wary)

    def _view(self, tables: store.Tables) -> str:
        _, (row, _) = store.execute(tables, "", ("select", SCOPE, None))
        if row not in self._view_of:
            stored = store.stored_checkpoint(SCOPE, row)
            serde = self._observer.serde
            self._view_of[row] = _text(stored and codec.decode_tuple(serde, stored))
        return self._view_of[row]

    def _saw(self, place: Place, entry: Sequence[bytes], ttl: int) -> None:
        self._ttls[place] = ttl
        self._entries.pop(place, None)
        if found := dict(zip(entry[::2], entry[1::2], strict=True)):
            self._entries[place] = found
        self._remember_entries()
        if any(_is_live(*item) for item in found.items()) and ttl < WRITE_DEADLINE_SECONDS * 1000:
            self._violation = Violation(f"the entry expires in {ttl} ms, before an intent in it")

    def _remember_entries(self) -> None:
        if not self._is_alone and self._entries != self._history[-1]:
            self._history.append(dict(self._entries))

    def _live_intents(self) -> list[str]:
        intents = [
            self._plain(place, field_)
            for place, entry in self._entries.items()
            if not self._reigns.is_of_the_past(place[1])
            for field_, value in entry.items()
            if _is_live(field_, value)
        ]
        return list(dict.fromkeys(intents))

    def _expire(self, intent: str) -> None:
        for place, entry in list(self._entries.items()):
            for field_, value in entry.items():
                if self._plain(place, field_) == intent:
                    past = b"1:" + value.rpartition(b":")[2]
                    self._send(place[0], ("HSET", place[1], field_, past))
                    self._entries[place] = self._entries[place] | {field_: past}

    def _put_back(self) -> None:
        """Make the entries in Redis what they were at this point of an earlier run."""
        self._unsent = {where: [("FLUSHDB",), *self._commands_to_store(where)] for where in self.wires}

    def _commands_to_store(self, where: str) -> list[tuple[Any, ...]]:
        commands: list[tuple[Any, ...]] = []
        for place, entry in self._entries.items():
            if place[0] == where:
                ttl = self._ttls.get(place, 0)
                fields = [part for item in entry.items() for part in item]
                commands.append(("HSET", place[1], *fields))
                commands.append(("PEXPIRE", place[1], ttl if ttl > 0 else int(TTL_SECONDS * 1000)))
        return commands

    def _send(self, where: str, *commands: tuple[Any, ...]) -> None:
        if self._replayed is None:
            self._unsent.setdefault(where, []).extend(commands)

    def _label(self, place: Place) -> tuple[str, ...]:
        """What a key is called in a move: nothing, if it is that which the run began with."""
        if place == self._first_place:
            return ()
        return (self._reigns.shown(place[1].removesuffix(self._suffix)).partition(":2:")[2],)

    def _plain(self, place: Place, field_: bytes) -> str:
        """What an intent is called in a move."""
        if not field_.startswith(b"i:"):
            return ""
        return "@".join((_UNIQUE.sub(b"", field_).decode(), *self._label(place)))

    # ------------------------------------------------------------------ before and after

    def _in_background(self, work: Coroutine[Any, Any, Any], _context: object = None) -> None:
        actor = _ACTOR.get()
        context = copy_context()
        context.run(_ACTOR.set, actor.process.background or actor)
        self._loop.create_task(work, context=context)

    def _make_saver(self, name: str, where: str, servers: Mapping[str, EmbeddedRedis]) -> Any:
        class ExploredSaver(saver.CachedPostgresSaver):
            _pruner = property(lambda self: store.ModelPruner(self._l2))

        client = _SteppedRedis(port=servers[where].port)
        client.world, client.where = self, where
        pool: Any = AsyncConnectionPool("", open=False)
        made = ExploredSaver(
            AsyncPostgresSaver(pool),
            client,
            telemetry=Telemetry("explorer", ()),
            cache_ttl=TTL_SECONDS,
            l1_timeout_seconds=WRITE_DEADLINE_SECONDS,
            write_deadline_seconds=WRITE_DEADLINE_SECONDS,
            audit_ratio=0,
        )
        model = store.ModelStore(self._pass_postgres, check_out=self._check_out, reigns=self._reigns)
        made._l2 = model  # type: ignore[assignment]
        model.fences.holder = name
        made._bursts._fences = model.fences  # type: ignore[assignment]
        made._bursts._in_background = model.fences.in_background = self._in_background
        made._bursts._look_later = lambda burst: None  # type: ignore[method-assign]
        made._sweeper._journal = made._identity._journal = model.journal  # type: ignore[assignment]
        made._identity._identities = model.identities  # type: ignore[assignment]
        assert made._sweeper._task is not None
        made._sweeper._task.cancel()  # a sweep is explored as an actor's call
        assert made._lifetime.end_of_loop is not None
        made._lifetime.end_of_loop.dismiss()  # what is left over after each run is cancelled: see `_bury`
        return made

    def _prepare(self) -> None:
        """Store what was there before, through the observer."""
        observer = _Process("observer", self._observer)
        bursts = self._observer._bursts
        for call in self.scenario.before:
            self._complete(observer, call.make(self._observer))
            self._complete(observer, bursts.end(list(bursts._open)))
        observer.is_cut_off = True
        for call in self.scenario.behind:
            self._complete(observer, call.make(self._observer))
            self._complete(observer, bursts.end(list(bursts._open)))
        if self.scenario.leftover:
            self._tables, _ = store.execute(self._tables, "observer", ("record", (SCOPE,)))
        self._base_entry = {} if self.scenario.cold else self._entries.get(self._first_place, {})
        self.outcomes = []
        self._base_tables = self._tables

    def _introduce(self) -> None:
        """Let each saver meet its Redis, and all but those that are opening PostgreSQL."""
        scenario = self.scenario
        self._epoch_changed = False
        self._tables = store.Tables()
        self._reigns.forget()
        self._names.clear()
        for name, each in self._savers.items():
            where = THERE if name in scenario.there else HERE
            _recall(each, self._virgin[name])
            server = self._loop.complete(each._l1.connect())
            self._reigns.meet(where, server.reign)
            if name not in (*scenario.opening, *scenario.there):
                self._complete(_Process(name, each, where), each._sweeper.settle())
                assert each._l1.trusted
            self._minds[name] = _memory_of(each)
        key = self._observer._l1.epoch.key(SCOPE)
        self._first_place: Place = HERE, key
        self._suffix = key[key.index(b":{") :]

    def _recall(self) -> None:
        """Let the savers, which outlive a run, forget it."""
        for name, each in self._savers.items():
            _recall(each, self._minds[name])
            each._l1._available = True
            # It opens when the explorer says so, and may be probed at once.
            each._l1._breaker = each._breaker = each._sweeper._breaker = Breaker(
                failures=sys.maxsize, delay_seconds=0, clock=lambda: 0.0
            )
            if name in self.scenario.new:
                each._l1._believed_at = None

    def _script_names(self) -> dict[str, str]:
        if not self._names:
            for each in self._savers.values():
                self._names |= {sha: step for step, sha in each._l1.server.shas.items()}
        return self._names

    def _bury(self) -> None:
        """End what the last run left unfinished, without another action."""
        self._dead, self._violation = True, None
        while pending := [task for task in self._loop.tasks if not task.done()]:
            for task in pending:
                task.cancel()
            self._loop.drain()
        for task in self._loop.tasks:
            if not task.cancelled():
                task.exception()  # retrieved
        self._loop.tasks.clear()
        self._gates.clear()

    def _unexpected(self, _loop: object, context: dict[str, Any]) -> None:
        if not self._dead:
            self._violation = Violation(f"unexpected: {context.get('message')} {context.get('exception')!r}")


def _burst_state(burst: Burst) -> tuple[Any, ...]:
    """What the rest of a burst depends on. What each put and each write brings is known by its name."""
    changes = burst.changes
    return (
        burst.id,
        burst.begun.done(),
        burst.writers,
        burst.is_covered,
        burst.is_contested,
        burst.is_lost,
        burst.is_closing,
        burst.is_committing,
        changes.can_follow,
        "" if changes.newest is None else changes.newest.checkpoint_id,
        tuple(sorted((channel, id_) for channel, (id_, _) in changes._channels.items())),
        tuple(sorted((*key, each.channel, each.value.data) for key, each in changes.writes.items())),
        tuple(sorted(changes.needed)),
    )


_Memory = list[tuple[dict[str, Any], dict[str, Any]]]
"""Of each part the attributes that are never changed in place, and the others."""


def _parts_of(saver: Any) -> tuple[Any, ...]:
    """What of a saver remembers anything about L1 or L2."""
    parts = saver._l1, saver._l1._epochs, saver._l1._quarantine, saver._identity, saver._sweeper
    return (*parts, saver._bursts, saver._bursts._fences)


def _memory_of(saver: Any) -> _Memory:
    kinds = (set, list, dict, asyncio.Lock)
    return [
        (
            {name: value for name, value in vars(part).items() if not isinstance(value, kinds)},
            {name: copy(value) for name, value in vars(part).items() if isinstance(value, kinds)},
        )
        for part in _parts_of(saver)
    ]


def _recall(saver: Any, memory: _Memory) -> None:
    for part, (attributes, changing) in zip(_parts_of(saver), memory, strict=True):
        vars(part).update(attributes)
        for name, value in changing.items():
            vars(part)[name] = asyncio.Lock() if isinstance(value, asyncio.Lock) else copy(value)


def _broken() -> L2UnavailableError:
    """What a client gets whose connection has ended."""
    error = L2UnavailableError("broken")
    error.__cause__ = psycopg.OperationalError("broken")
    return error


def clock() -> float:
    """For `monotonic` in `coherence.identity`: time passes only where the explorer says so."""
    actor = _ACTOR.get(None)
    return actor.process.clock if actor else 0.0


def new_token() -> str:
    """For `cache._new_token`: says whose it is, and is the same in every replay."""
    actor = _ACTOR.get(None)
    if actor is None:
        return "observer"
    actor.tokens += 1
    return f"{actor.name}_{actor.position}_{actor.tokens}"


class NoSleep:
    """For `asyncio` in `cache` and `retrying`: a pause costs nothing, the explorer says what is next."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


_TABLES = ("checkpoints", "blobs", "writes")


def _changes(after: store.Tables, touched: Iterable[tuple[str, Any]]) -> tuple[Any, ...]:
    """The rows that a statement changed, or found as it wanted them."""
    return tuple(sorted((name, key, dict(getattr(after, name)).get(key)) for name, key in touched))


def _applied(tables: store.Tables, effect: _Effect) -> store.Tables:
    rows: dict[str, dict[Any, Any]] = {name: dict(getattr(tables, name)) for name in _TABLES}
    for name, key, row in effect.rows:
        if row is None:
            rows[name].pop(key, None)
        else:
            rows[name][key] = row
    fields: dict[str, Any] = {name: frozenset(each.items()) for name, each in rows.items()}
    return store.Tables(**fields)


def _is_live(field_: bytes, value: bytes) -> bool:
    return field_.startswith(b"i:") and len(value) > 10


_UNIQUE = re.compile(rb"(?<=[a-z0-9_])\.\d{9,}\.\d{1,6}$")


def _canonical(entry: dict[bytes, bytes]) -> tuple[Any, ...]:
    """Without the clock: what a name ends with, and what of a deadline is not whether it has passed."""
    return tuple(sorted((_UNIQUE.sub(b"", k), _canonical_value(k, v)) for k, v in entry.items()))


def _canonical_value(field_: bytes, value: bytes) -> bytes:
    if field_.startswith(b"i:"):
        return b"live" + value[-2:] if len(value) > 10 else b"expired" + value[-2:]
    return _UNIQUE.sub(b"", value) if field_ == b"lease" else value


def _canonical_answer(answer: Any) -> Any:
    if isinstance(answer, bytes):
        return _UNIQUE.sub(b"", answer)
    if isinstance(answer, list):
        if len(answer) == 2 and isinstance(answer[1], list) and isinstance(answer[1][0], bytes):
            return answer[0], _canonical(dict(zip(answer[1][::2], answer[1][1::2], strict=True)))
        return tuple(_canonical_answer(each) for each in answer)
    return answer


def _short(answer: Any) -> str:
    text = repr(_canonical_answer(answer))
    return text if len(text) < 200 else f"{text[:200]} …"


def _text(found: Any) -> str:
    """A checkpoint tuple as text; two are equal if and only if they are the same in every field."""
    return json.dumps(found, sort_keys=True, default=repr)
