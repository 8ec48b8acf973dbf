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

What Redis holds is true to one PostgreSQL, as it is now, and that may change (`changes.py`).
Each process learns of it when it looks, or when its connection breaks; until then it is *late*, and so may be
what it reads. After that, never.

`terms` has the words, `cast` who acts, `frozen` the event loop. `entries` is Redis as it is known here,
`wires` the way to it; `store` is PostgreSQL. `savers` makes the savers.
`faults` and `changes` are what goes wrong. By `promise`, reads are judged.
`slot_world` is the same in a Redis Cluster, where a slot moves.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

import hiredis
from redis.exceptions import ResponseError

from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import GlasspointError
from glasspoint.l1.breaker import Breaker
from model import store
from model.cast import ACTOR, Actor, Gate, Ghost, Process, broken, can_tell
from model.changes import has_moved
from model.entries import UNIQUE, Entries
from model.faults import FAULTS, fault_moves
from model.frozen import FrozenLoop
from model.printed import short, text_of
from model.promise import Effect, Promise, changed_rows
from model.savers import Memory, burst_state, caches_of, make_client, make_saver, memory_of, recall
from model.terms import (
    A_MINUTE,
    CONFIG,
    HERE,
    PROMISE,
    REDIS,
    REIGNS,
    SCOPE,
    TABLES,
    THERE,
    Move,
    Outcome,
    Place,
    Scenario,
    Touched,
    Violation,
)
from model.wires import Wire, raise_error


class World:
    """Runs of one scenario, one after the other.

    Attributes:
        tables: What PostgreSQL holds.
        entries: What Redis holds.
        promise: What reads must show.
        processes: By name.
        actors: Their tasks.
        gates: Where they wait.
        ghosts: Statements that may yet take effect.
        faults: The kinds of faults that have happened in this run.
        trace: What has happened in this run: a line an action, or actor, step and answer.
        starts: How often PostgreSQL has broken all connections.
        epoch_changed: Whether another Redis has begun to reign.
        is_moved: Whether the identity has changed.
    """

    def __init__(
        self,
        loop: FrozenLoop,
        server: EmbeddedRedis,
        scenario: Scenario,
        elsewhere: EmbeddedRedis | None = None,
    ) -> None:
        self.scenario = scenario
        self.server = server
        self._servers = {HERE: server} | ({THERE: elsewhere} if elsewhere is not None else {})
        self.entries = self._make_entries({where: Wire(each.port) for where, each in self._servers.items()})
        self.promise = Promise(self.entries.reigns)
        self.tables = store.Tables()
        self.loop = loop
        self.processes: dict[str, Process] = {}
        self.actors: list[Actor] = []
        self.gates: list[Gate] = []
        self.ghosts: list[Ghost] = []
        self.faults: list[str] = []
        self.trace: list[str | tuple[str, str, Any]] = []
        self.starts = 0
        self.epoch_changed = False
        self.is_moved = False
        self._names: dict[str, str] = {}
        self._touched: tuple[str, set[str], set[str]] | None = None
        self._ends: set[int] = set()
        self._dead = False
        self._is_alone = False
        loop.set_exception_handler(self._unexpected)
        asyncio._set_running_loop(loop)
        try:
            names = ("observer", *(name for name in scenario.actors if name not in scenario.shares))
            self._savers = {
                name: make_saver(self, name, self._make_client(name))
                for name in names
                if name not in scenario.foreign
            }
        finally:
            asyncio._set_running_loop(None)
        self.observer = self._savers["observer"]
        self.promise.serde = self.observer.serde
        self._virgin = {name: memory_of(each) for name, each in self._savers.items()}
        self._minds: dict[str, Memory] = {}
        for wire in self.entries.wires.values():
            wire.send(("FLUSHDB",))
        self._introduce()
        self._recall()
        self._prepare()

    # ------------------------------------------------------------------ what a cluster does otherwise

    def _make_entries(self, wires: dict[str, Wire]) -> Entries:
        return Entries(wires)

    def _make_client(self, name: str) -> Any:
        """The client of a saver."""
        where = THERE if name in self.scenario.there else HERE
        return make_client(self, where, self._servers[where].port)

    def _settle(self, process: Process) -> None:
        """A process sweeps before it is explored."""
        self._complete(process, process.saver._parts.sweeper.settle())

    def _key(self) -> bytes:
        """The key of the explored scope."""
        key: bytes = self.observer._l1.epoch.key(SCOPE)
        return key

    def _others(self) -> list[Process]:
        """Who sweeps at the end of a run, beside its processes."""
        return []

    def _more_moves(self) -> list[Move]:
        """What else can be done next."""
        return []

    def promotions(self) -> list[Move]:
        """How a replica of a master can be promoted next."""
        raise NotImplementedError

    def promote(self, number: str) -> None:
        """A replica of a master is promoted."""
        raise NotImplementedError

    def _more_state(self) -> Any:
        """What else the rest of the run depends on."""
        return None

    def _label(self, _where: str, step: str) -> str:
        """What a step is called that is sent to a server."""
        return step

    def _has_answered(self, process: Process, step: str, where: str, answer: Any) -> None:
        """A server has answered a step."""
        if step == "drop" and not isinstance(answer, hiredis.ReplyError):
            self.promise.has_dropped(process)

    def told(self, where: str, info: bytes) -> Any:
        """What a node of a cluster says of it, as it is told to a saver."""
        raise NotImplementedError

    async def pass_node(self, where: str, commands: list[tuple[Any, ...]]) -> Any:
        """Where a look at a node of a cluster waits."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what the explorer does

    @property
    def told_so_far(self) -> list[str]:
        """What has happened in this run, a line an action."""
        return [
            each if isinstance(each, str) else f"{each[0]}: {each[1]} -> {short(each[2])}"
            for each in self.trace
        ]

    @property
    def outcomes(self) -> list[Outcome]:
        """What Redis did in this run."""
        return self.entries.outcomes

    @property
    def reads(self) -> int:
        """How many reads were judged, in all runs."""
        return self.promise.reads

    def begin(self, path: Sequence[Move] = (), outcomes: Sequence[Outcome] = ()) -> None:
        """Start a new run, and take it where another one was after these moves.

        Args:
            outcomes: What Redis did in that run. A script does the same to the same entry, so until the end
                of the path the savers are told what they were told then, and then the entry is put there as
                it was. Only when another Redis has begun to reign on the path, everything is done again.
        """
        self._bury()
        self._dead = False
        if self.epoch_changed:
            self._introduce()
        self._recall()
        self.entries.now, self.entries.ttls, self.entries.unsent = {}, {}, {}
        if self.entries.base:
            self.entries.now[self.entries.first] = self.entries.base
        self.entries.replayed = None if any(kind in REIGNS for kind, *_ in path) else deque(outcomes)
        if not path or self.entries.replayed is None:
            self.entries.put_back()
        self.tables = self.promise.base
        self.entries.history = [dict(self.entries.now)]
        self.starts = 0
        self.is_moved = False
        self.ghosts, self.faults, self.trace = [], [], []
        self.entries.outcomes = []
        self._make_processes()
        self.promise.begin(self.processes, self.actors)
        for actor in self.actors:
            context = copy_context()
            context.run(ACTOR.set, actor)
            actor.task = self.loop.create_task(self._live(actor), context=context)
        self.loop.drain()
        for move in path:
            self.do(move)
        if self.entries.replayed is not None:
            assert not self.entries.replayed
            self.entries.replayed = None
            if path:
                self.entries.put_back()

    def moves(self, faults: Sequence[str]) -> list[Move]:
        """What can be done next; `faults` are the kinds that may still happen."""
        steps: list[Move] = []
        for gate in self.gates:
            if self._is_enabled(gate) and not self._is_mirrored(gate.actor):
                steps.append(("step", gate.actor.name, gate.label))
        if len(set(steps)) < len(steps):
            raise AssertionError(f"two gates of one name: {steps}")
        for number, ghost in enumerate(self.ghosts):
            if self._can(ghost.who, ghost.statement):
                steps.append(("late", str(number), ghost.statement[0]))
            steps.append(("never", str(number), ghost.statement[0]))
        intents = self.entries.live_intents()
        crashed = {actor.name for actor in self.actors if actor.crashed}
        for intent in intents:
            owner = re.split("[_@]", intent[2:])[0]
            if not self.ghosts and (owner in crashed or owner == "doubt"):
                steps.append(("expire", intent))
        for process in self.processes.values():
            for burst in process.bursts:
                if not burst.writers and not burst.is_closing:
                    steps.append(("end", process.name, burst.scope.checkpoint_ns))
        for holder in {key[2] for key, _ in self.tables.fences}:
            if not self.ghosts and holder in crashed:
                steps.append(("unfence", holder))
        steps += [("heal", process.name) for process in self.processes.values() if process.is_cut_off]
        steps += [("wait", process.name) for process in self.processes.values() if self._may_wait(process)]
        steps += [("allow", process.name) for process in self.processes.values() if process.is_forbidden]
        steps += self._more_moves()
        return steps + [move for kind in faults for move in fault_moves(self, kind, intents)]

    def do(self, move: Move) -> None:
        """Do one of `moves`, and let its client go on to its next action.

        Raises:
            Violation: A read returned what it must not, or an intent would be forgotten before its deadline.
        """
        kind, *about = move
        self._touched = None
        self.promise.is_used = self.promise.is_changed = False
        if kind in FAULTS:
            FAULTS[kind](self, *about)
        else:
            getattr(self, f"_do_{kind}")(*about)
        self.loop.drain()
        if self.promise.violation:
            raise self.promise.violation

    @property
    def touched(self) -> Touched | None:
        """What the last move has touched; `None`: perhaps everything."""
        if self._touched is None:
            return None
        process, reads, writes = self._touched
        reads |= {PROMISE} if self.promise.is_used else set()
        writes |= {PROMISE} if self.promise.is_changed else set()
        return Touched(process, frozenset(reads), frozenset(writes))

    def _touch(self, gate: Gate) -> None:
        name = gate.actor.process.name
        if gate.tier == "answer":
            self._touched = name, set(), set()
        elif gate.tier == "l1":
            self._touched = name, set(), {REDIS}
        elif gate.tier == "l2":
            is_read = gate.statement[0] in store.READING
            self._touched = name, {TABLES}, set() if is_read else {TABLES}

    def state(self) -> int:
        """A hash of all that the rest of the run depends on, and of all that it will be judged by."""
        settled, first = self.promise.settled()
        return hash(
            (
                self.tables,
                tuple((ghost.who, ghost.statement) for ghost in self.ghosts),
                self.entries.state(),
                self._more_state(),
                self.promise.is_lossy,
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
                    for effect in self.promise.effects[first:]
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
                    for process in self.processes.values()
                ),
                tuple(
                    (
                        actor.position,
                        actor.past,
                        actor.crashed,
                        actor.session,
                        actor.connected == self.starts,
                        actor.is_early,
                        tuple(number - first for number in actor.effects if number >= first),
                        None
                        if actor.began is None or self.promise.is_lossy
                        else frozenset(self.promise.views[actor.began :]),
                        actor.possible,
                        frozenset(
                            (gate.label, gate.left_behind) for gate in self.gates if gate.actor is actor
                        ),
                    )
                    for actor in self.actors
                ),
            )
        )

    def finish(self) -> None:
        """All is over: the intents that are left expire, and two reads are to return what PostgreSQL holds.

        Raises:
            Violation: Somebody waits for ever, or a read returns something else.
        """
        for actor in self.actors:
            if not (actor.done or actor.crashed):
                raise Violation(f"{actor.name} waits for ever, at {[g.label for g in self.gates]}")
        if (end := self._end()) in self._ends:
            return
        self._ends.add(end)
        for intent in self.entries.live_intents():
            self.entries.expire(intent)
        self.observer._l1.trust.suspect()
        alive = [p for p in self.processes.values() if not any(actor.crashed for actor in p.actors)]
        savers = {p.name: p for p in alive if not p.is_foreign}
        if self.is_moved or any(not effect.is_settled for effect in self.promise.effects if effect.required):
            # Each would sweep within a second, and one that is detached takes over within a minute.
            for process in 2 * [*savers.values(), *self._others()]:
                process.clock += A_MINUTE
                self._complete(process, process.saver._parts.sweeper.round())
        readers = [
            p for p in savers.values() if any(call.reads for actor in p.actors for call in actor.calls)
        ]
        for process in (*2 * [Process("observer", self.observer)], *readers, *readers):
            found = text_of(self._complete(process, process.saver.aget_tuple(CONFIG)))
            self.promise.reads += 1
            if found != self.promise.views[-1]:
                raise Violation(
                    f"in the end a read of {process.name} returned {found}, "
                    f"PostgreSQL holds {self.promise.views[-1]}"
                )

    def _end(self) -> int:
        """A hash of all that reads after the end depend on: many runs end in the same way."""
        processes = (Process("observer", self.observer), *self.processes.values())
        is_open = any(not effect.is_settled for effect in self.promise.effects if effect.required)
        return hash(
            (
                self.entries.state(),
                self.tables,
                self._more_state(),
                self.is_moved or is_open,
                self.starts,
                self.promise.views[-1],
                tuple(
                    (
                        self._mind(each),
                        each.clock,
                        each.is_cut_off,
                        each.is_forbidden,
                        tuple((actor.crashed, actor.connected) for actor in each.actors),
                    )
                    for each in processes
                ),
            )
        )

    def _complete(self, process: Process, work: Awaitable[Any]) -> Any:
        """Let a process do something while all others stand still."""
        token = ACTOR.set(Actor(process.name, (), process, connected=self.starts))
        self._is_alone = True
        try:
            return self.loop.complete(work)
        finally:
            self._is_alone = False
            ACTOR.reset(token)

    def close(self) -> None:
        """Leave nothing behind."""
        self._bury()
        for wire in self.entries.wires.values():
            wire.send(("FLUSHDB",))
            wire.close()

    # ------------------------------------------------------------------ what happens next

    def _is_enabled(self, gate: Gate) -> bool:
        return not gate.statement or self._can(gate.actor.who, gate.statement)

    def _can(self, who: str, statement: tuple[Any, ...]) -> bool:
        if not self.tables.changes:  # nothing is locked
            return True
        try:
            store.execute(self.tables, who, statement)
        except store.MustWait:
            return False
        return True

    def _is_mirrored(self, actor: Actor) -> bool:
        """Of two actors who do the same, the second begins after the first: the rest is symmetry."""
        if actor.began is not None or actor.position:
            return False
        before = self.actors[: self.actors.index(actor)]
        return any(a.calls is actor.calls and not a.position and a.began is None for a in before)

    def _may_wait(self, process: Process) -> bool:
        """Whether it is detached, and its minute is not over."""
        if process.is_foreign or process.done or process.saver._parts.identity._detached_at is None:
            return False
        return bool(process.clock - process.saver._parts.identity._detached_at < A_MINUTE)

    def _do_step(self, name: str, label: str) -> None:
        [gate] = [g for g in self.gates if (g.actor.name, g.label) == (name, label)]
        actor = gate.actor
        self._touch(gate)
        self.start_call(gate)
        if actor is actor.process.background:
            self._start_readers(actor.process)
        self.gates.remove(gate)
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
        answer = self.entries.canonical_answer(answer)
        self.has_met(actor, label, answer)
        self.trace.append((name, label, answer))
        if name in self.scenario.slow:
            later = Gate(actor, "answer", f"hear {label}", hear, gate.opened, left_behind=gate.left_behind)
            self.gates.append(later)
        else:
            hear()

    def _start_readers(self, process: Process) -> None:
        """A reader that waits for the end of its own burst is answered together with that."""
        waiting = {gate.actor.name for gate in self.gates if gate.left_behind is None}
        for actor in process.actors:
            if not actor.done and actor.name not in waiting and actor.calls[actor.position].reads:
                self._begin(actor)

    def start_call(self, gate: Gate) -> None:
        if gate.left_behind is None:
            self._begin(gate.actor)

    def _begin(self, actor: Actor) -> None:
        if actor.began is None:
            actor.began, actor.possible = len(self.promise.views) - 1, self.promise.possible(actor.process)

    def _do_late(self, number: str, _label: str) -> None:
        ghost = self.ghosts.pop(int(number))
        self.execute(ghost.who, ghost.statement)
        self.trace.append(f"{ghost.who}: {ghost.statement[0]} takes effect, late")

    def _do_never(self, number: str, _label: str) -> None:
        ghost = self.ghosts.pop(int(number))
        self.execute(ghost.who, ("rollback",))
        self.trace.append(f"{ghost.who}: {ghost.statement[0]} never takes effect")

    def _do_expire(self, intent: str) -> None:
        self.entries.expire(intent)
        self.trace.append(f"{intent} expires")

    def _do_end(self, name: str, namespace: str) -> None:
        """No write has come to a burst for a moment."""
        process = self.processes[name]
        [burst] = [each for each in process.bursts if each.scope.checkpoint_ns == namespace]
        self._touched = name, set(), set()
        self.trace.append(f"a burst of {name} ends")
        self.has_met(self._of_background(process), f"end {namespace}", None)
        token = ACTOR.set(self._of_background(process))
        try:
            process.saver._bursts._close(burst)
        finally:
            ACTOR.reset(token)

    @staticmethod
    def _of_background(process: Process) -> Actor:
        assert process.background is not None
        return process.background

    def _do_unfence(self, holder: str) -> None:
        """The fences of a process expire that has died."""
        self.tables = store.unfenced(self.tables, holder)
        self.trace.append(f"the fence of {holder} expires")

    def _do_lose_fences(self) -> None:
        """Processes stood still until their fences had expired."""
        self.fault("lose_fences")
        self.tables = store.unfenced(self.tables)

    def _do_wait(self, name: str) -> None:
        """A minute passes for a process that is detached."""
        self.processes[name].clock += A_MINUTE
        self.trace.append(f"a minute passes for {name}")

    # ------------------------------------------------------------------ what faults and changes do to it

    def fault(self, text: str, *, lossy: bool = False) -> None:
        self.faults.append(text.split(":")[0])
        self.trace.append(f"*** {text}")
        self.promise.is_lossy = self.promise.is_lossy or lossy

    def meet(self) -> None:
        """Let the observer know who reigns, as its next step would, without spending a step."""
        server = self.loop.complete(self.observer._l1.connect(anew=True))
        self.entries.reigns.meet(HERE, server.reign)
        self._names.clear()
        self._remember_entries()

    def _saw(self, place: Place, outcome: Outcome) -> None:
        lasts = self.entries.saw(place, outcome.entry, outcome.ttl_ms)
        self._remember_entries()
        if not lasts:
            self.promise.violation = Violation(
                f"the entry expires in {outcome.ttl_ms} ms, before an intent in it"
            )

    def _remember_entries(self) -> None:
        if not self._is_alone:
            self.entries.remember()

    # ------------------------------------------------------------------ the actors

    async def _live(self, actor: Actor) -> None:
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
                if call.reads and actor.is_behind:
                    self.promise.excused += 1
                elif call.reads:
                    self.promise.judge(actor, text_of(answer))
                for number in actor.effects:
                    if not self.promise.effects[number].is_untold and can_tell(actor.process):
                        self.promise.effects[number].excused.clear()
                    self.promise.require(number, actor.process)
            actor.position += 1
            actor.tokens, actor.is_behind = 0, False
            goes_on = any(gate.actor is actor and gate.left_behind is None for gate in self.gates)
            if not (actor.process.is_shared or goes_on):  # as a call may that was cancelled
                actor.past = 0
            actor.began, actor.possible, actor.effects = None, frozenset(), []

    async def pass_redis(self, where: str, sha: bytes, numkeys: int, key: bytes, *args: Any) -> Any:
        """Where a script waits; its name is known from what was loaded."""

        process = ACTOR.get().process

        def perform() -> Any:
            if process.is_cut_off:
                self.promise.is_wary(process)
                raise TimeoutError
            if process.is_forbidden:
                self.promise.is_wary(process)
                raise ResponseError("No permissions to access a key")
            outcome = self.entries.replay()
            if outcome is None:
                outcome = self.entries.run(where, key, ("EVALSHA", sha, numkeys, key, *args))
            self.entries.record(outcome)
            self._has_answered(process, step, where, outcome.answer)
            if key.endswith(self.entries.suffix):  # not of a probe
                self._saw((where, key), outcome)
            return raise_error(outcome.answer)

        step = self._script_name(sha.decode())
        label = self._label(where, step)
        if not key.endswith(self.entries.suffix) and b"{" in key:
            label += f" {{{key.decode().partition(':{')[2]}"  # of another scope
        left_behind = None
        if step == "warm_up":
            while any(gate.actor is ACTOR.get() and gate.label == label for gate in self.gates):
                label += " of a later read"
            plain = (self.entries.reigns.of_master(arg) for arg in args)
            left_behind = hash(tuple(UNIQUE.sub(b"", a) if isinstance(a, bytes) else a for a in plain))
        return await self._pass("l1", label, perform, left_behind=left_behind)

    async def pass_postgres(self, statement: tuple[Any, ...]) -> Any:
        actor = ACTOR.get()
        if actor.connected != self.starts:
            raise broken()

        def perform() -> Any:
            answer = self.execute(actor.who, statement)
            self.promise.has_asked(actor.process, statement, answer)
            return answer

        return await self._pass("l2", statement[0], perform, statement)

    async def _pass_foreign(self, statement: tuple[Any, ...]) -> Any:
        ACTOR.get().connected = self.starts
        return await self.pass_postgres(statement)

    async def check_out(self) -> None:
        """A connection that has broken is replaced by a new one, which is greeted."""
        actor = ACTOR.get()
        if actor.connected != self.starts:
            actor.connected = self.starts
            await actor.process.saver._parts.identity.greet(None)

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
        actor = ACTOR.get()
        if any(gate.actor is actor and gate.label == label for gate in self.gates):
            label += " again"  # of a call that was cancelled, and goes on in its own task
        opened = self.loop.create_future()
        gate = Gate(actor, tier, label, perform, opened, statement, left_behind)
        if gate.actor.crashed:
            await gate.opened
        self.gates.append(gate)
        try:
            return await gate.opened
        except asyncio.CancelledError:
            self.gates = [each for each in self.gates if each.opened is not gate.opened]
            raise

    # ------------------------------------------------------------------ the two tiers

    def execute(self, who: str, statement: tuple[Any, ...]) -> Any:
        before = self.tables
        self.tables, answer = store.execute(before, who, statement)
        if self._is_alone:
            return answer
        if statement[0] == "record":
            self.promise.has_recorded(who)
        if statement[0] == "renew" and before.cache and self.tables.cache:
            places = {row.reign.split()[0] for row in (before.cache, self.tables.cache)}
            if len(places) > 1 and answer is not None:
                has_moved(self)
        if statement[0] in store.EFFECTS:
            effect = Effect(changed_rows(self.tables, store.touched(before, who, statement)))
            if before.journal != self.tables.journal or statement[0] in store.FOREIGN:
                self.promise.excuse(effect, who)
            self.promise.add(effect, self.tables)
            for actor in self.actors:
                if actor.who == who:
                    actor.effects.append(len(self.promise.effects) - 1)
        return answer

    def has_met(self, actor: Actor, label: str, answer: Any) -> None:
        """Something has happened to an actor, on which depends what it will do."""
        if actor is actor.process.background and not actor.process.bursts:
            actor.past = 0  # what it has done is over; its gates tell which fences are yet to be removed
            return
        if actor.process.is_shared:
            actor.process.past = hash((actor.process.past, actor.name, label, answer))
        else:
            actor.past = hash((actor.past, label, answer))

    def _mind(self, process: Process) -> tuple[Any, ...]:
        """What a saver remembers from one call to the next."""
        if process.is_foreign:
            return ()
        cache, keeper = process.saver._l1, process.saver._parts.identity
        return (
            tuple(
                (
                    each.trust.is_trusted,
                    each.breaker.state,
                    each._epochs._trusted,
                    each.server and self._reign_of(each.server.reign),
                )
                for each in caches_of(process.saver)
            ),
            keeper.identity and keeper.identity.generation,
            keeper._reign and self.entries.reigns.name(keeper._reign),
            keeper._detached_at is None,
            self._may_wait(process),
            frozenset(keeper._written),
            frozenset(cache.written),
            SCOPE in cache.quarantine,
            tuple(sorted((key, burst_state(each)) for key, each in process.saver._bursts._open.items())),
            tuple(sorted(process.saver._bursts._fences.pending.items())),
            process.saver._bursts._fences.is_removing,
        )

    def _reign_of(self, reign: str) -> Any:
        """What the reign of a server is called."""
        return self.entries.reigns.name(reign)

    def _make_processes(self) -> None:
        self.processes, self.actors = {}, []
        for name, calls in self.scenario.actors.items():
            owner = self.scenario.shares.get(name, name)
            if owner == name:
                self.processes[name] = self._make_process(name)
            process = self.processes[owner]
            process.actors.append(Actor(name, calls, process))
            self.actors.append(process.actors[-1])
        for process in self.processes.values():
            if not process.is_foreign:
                process.background = Actor(f"{process.name}.end", [], process)
                process.actors.append(process.background)
                self.actors.append(process.background)

    def _make_process(self, name: str) -> Process:
        scenario = self.scenario
        if name in scenario.foreign:
            writer = store.ForeignWriter(self._pass_foreign, self.observer.serde)
            return Process(name, writer, is_foreign=True, is_wary=True)
        where = THERE if name in scenario.there else HERE
        is_wary = name in (*scenario.new, *scenario.opening, *scenario.there)
        return Process(name, self._savers[name], where, is_wary=is_wary)

    # ------------------------------------------------------------------ before and after

    def in_background(self, work: Coroutine[Any, Any, Any], _context: object = None) -> None:
        actor = ACTOR.get()
        context = copy_context()
        context.run(ACTOR.set, actor.process.background or actor)
        self.loop.create_task(work, context=context)

    def _prepare(self) -> None:
        """Store what was there before, through the observer."""
        observer = Process("observer", self.observer)
        bursts = self.observer._bursts
        for call in self.scenario.before:
            self._complete(observer, call.make(self.observer))
            self._complete(observer, bursts.end(list(bursts._open)))
        observer.is_cut_off = True
        for call in self.scenario.behind:
            self._complete(observer, call.make(self.observer))
            self._complete(observer, bursts.end(list(bursts._open)))
        if self.scenario.leftover:
            self.tables, _ = store.execute(self.tables, "observer", ("record", (SCOPE,)))
        self.entries.base = {} if self.scenario.cold else self.entries.now.get(self.entries.first, {})
        self.entries.outcomes = []
        self.promise.base = self.tables

    def _introduce(self) -> None:
        """Let each saver meet its Redis, and all but those that are opening PostgreSQL."""
        scenario = self.scenario
        self.epoch_changed = False
        self.tables = store.Tables()
        self.entries.reigns.forget()
        self._names.clear()
        for name, each in self._savers.items():
            where = THERE if name in scenario.there else HERE
            recall(self._virgin[name])
            server = self._complete(Process(name, each, where), each._l1.connect())
            self.entries.reigns.meet(where, server.reign)
            if name not in (*scenario.opening, *scenario.there):
                self._settle(Process(name, each, where))
                assert each._l1.trust.is_trusted
            self._give_breakers(each)
            self._minds[name] = memory_of(each)
        key = self._key()
        self.entries.first = HERE, key
        self.entries.suffix = key[key.index(b":{") :]

    @staticmethod
    def _give_breakers(saver: Any) -> None:
        for cache in caches_of(saver):
            cache.contact._available = True
            # It opens when the explorer says so, and may be probed at once.
            cache.contact.breaker = Breaker(failures=sys.maxsize, delay_seconds=0, clock=lambda: 0.0)
        if saver._parts.cluster is None:
            saver._parts.sweeper._breaker = saver._l1.breaker
            saver._parts = replace(saver._parts, breaker=saver._l1.breaker)

    def _recall(self) -> None:
        """Let the savers, which outlive a run, forget it."""
        for name, each in self._savers.items():
            recall(self._minds[name])
            for cache in caches_of(each):
                if name in self.scenario.new:
                    cache.trust._trusted_at = None

    def _script_name(self, sha: str) -> str:
        if sha not in self._names:
            for cache in [cache for each in self._savers.values() for cache in caches_of(each)]:
                self._names |= {sha: step for step, sha in cache.server.shas.items()}
        return self._names[sha]

    def _bury(self) -> None:
        """End what the last run left unfinished, without another action."""
        self._dead, self.promise.violation = True, None
        while pending := [task for task in self.loop.tasks if not task.done()]:
            for task in pending:
                task.cancel()
            self.loop.drain()
        for task in self.loop.tasks:
            if not task.cancelled():
                task.exception()  # retrieved
        self.loop.tasks.clear()
        self.gates.clear()

    def _unexpected(self, _loop: object, context: dict[str, Any]) -> None:
        if not self._dead:
            self.promise.violation = Violation(
                f"unexpected: {context.get('message')} {context.get('exception')!r}"
            )
