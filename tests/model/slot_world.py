"""One run in a Redis Cluster of two masters: the slot of the explored scope moves while the actors act.

Each part of a move is a step of the schedule. A look at a node is one, too: at the slots, and at the
configuration epoch of each master. So a process may know an owner that is one no more, and what it asks for
meets MOVED or ASK, as the servers themselves answer.

**What reads are promised** is the promise of every run (see `promise`), after a move as after an eviction. A
process that was told MOVED, or has looked and found another owner, has met a failure: nobody is excused after
that. One thing more is excused, and counted: a read at a master of which the process does not know that the
slot was away and came back, if a replica was promoted in this run; or of which it has not seen that the slot
stays, although keys of it are away (docs/protocol.md, "A Redis Cluster").

Not explored: two masters that both claim the slot for a moment, because the steps wait until both know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import hiredis

from model.cast import ACTOR, Process
from model.entries import Entries
from model.frozen import FrozenLoop
from model.savers import caches_of, make_client
from model.terms import (
    HERE,
    SCOPE,
    THERE,
    WRITE_DEADLINE_SECONDS,
    Move,
    Outcome,
    Place,
    Scenario,
    SlotStep,
)
from model.two_masters import SLOT, Course, TwoMasters
from model.wires import CALLS_AND_NODES, EPOCH_AND_CALLS, SLOTS_AND_NODES, Wire, raise_error
from model.world import World

__all__ = ["SlotWorld"]

_LABELS = {"look": SLOTS_AND_NODES, "epoch": EPOCH_AND_CALLS, "slots": CALLS_AND_NODES}
"""What a node is asked, by the name of that step."""


class SlotWorld(World):
    """Runs of one scenario on two masters.

    Attributes:
        masters: The servers.
        course: What the cluster is now, in this run.
        position: How many steps of the slot's move were done.
    """

    entries: SlotEntries

    def __init__(self, loop: FrozenLoop, masters: TwoMasters, scenario: Scenario) -> None:
        self.masters = masters
        epochs = (2, 1) if scenario.newest == HERE else (1, 2)
        self._first = self.course = Course(here=epochs[0], there=epochs[1])
        self.position = 0
        self._told: dict[tuple[str, str], int] = {}
        self._looks: dict[tuple[str, Course], list[Any]] = {}
        self._at: dict[tuple[str, int], str] = {("127.0.0.1", port): at for at, port in masters.ports.items()}
        super().__init__(loop, masters.servers[HERE], scenario, masters.servers[THERE])

    # ------------------------------------------------------------------ how it is made

    def _make_entries(self, wires: dict[str, Wire]) -> Entries:
        return SlotEntries(wires, self)

    def _make_client(self, name: str) -> Any:
        return self.masters.client()

    def _introduce(self) -> None:
        for saver in self._savers.values():
            clients = saver._l1._topology._clients
            for address, where in self._at.items():
                if address not in clients:
                    clients[address] = make_client(self, where, address[1])
        self.course = self._first
        self.masters.arrange(self.course, {})
        for wire in self.entries.wires.values():
            raise_error(wire.send(("SCRIPT", "FLUSH"))[0])
        super()._introduce()
        for where in self.masters.wires:
            self.entries.reigns.meet_master(where, self.masters.process_of(where))
        if self.entries.base:  # of the masters as they were
            self.entries.base |= {b"reign": caches_of(self.observer)[0].server.reign.encode()}

    def _settle(self, process: Process) -> None:
        super()._settle(process)
        self._complete(process, process.saver._parts.sweeper.round())

    def _key(self) -> bytes:
        key: bytes = caches_of(self.observer)[0].epoch.key(SCOPE)
        return key

    def begin(self, path: Sequence[Move] = (), outcomes: Sequence[Outcome] = ()) -> None:
        self.course, self.position, self._told = self._first, 0, {}
        super().begin(path, outcomes)

    def _others(self) -> list[Process]:
        return [Process("observer", self.observer)]

    # ------------------------------------------------------------------ the slot moves

    def _more_moves(self) -> list[Move]:
        steps = self.scenario.slot
        return [("slot", str(steps[self.position]))] if self.position < len(steps) else []

    def _more_state(self) -> Any:
        return self.course, self.position, tuple(actor.is_behind for actor in self.actors)

    def _do_slot(self, _label: str) -> None:
        step = self.scenario.slot[self.position]
        self.position += 1
        self.promise.is_lossy = self.is_moved = True
        self.trace.append(f"the slot: {step}")
        for part in step.does:
            self._PARTS[part](self, step)
        self._remember_entries()

    @property
    def _is_replayed(self) -> bool:
        return self.entries.replayed is not None

    def _open(self, step: SlotStep) -> None:
        self.course = self.course._replace(target=step.to)
        if not self._is_replayed:
            self.entries.flush()
            self.masters.begin(step.to)

    def _carry(self, step: SlotStep) -> None:
        self._move_entry(self.course.owner, step.to)

    def _arrive(self, step: SlotStep) -> None:
        takes_epoch = self.course.newest != step.to
        if takes_epoch:
            self.course = self.course.raised(step.to)
        self.course = self.course._replace(owner=step.to, target="")
        if not self._is_replayed:
            self.entries.flush()
            assert self.masters.arrive() == takes_epoch

    def _call_off(self, step: SlotStep) -> None:
        self._stay(step)
        self._bring_back(step)

    def _stay(self, _step: SlotStep) -> None:
        self.course = self.course._replace(stays=True)
        if not self._is_replayed:
            self.entries.flush()
            self.masters.call_off()

    def _stay_without_keys(self, step: SlotStep) -> None:
        self.course = self.course._replace(kept=self.course.kept + 1)
        self._stay(step)

    def _bring_back(self, step: SlotStep) -> None:
        self._move_entry(step.to, self.course.owner)
        self.course = self.course._replace(target="", stays=False)
        if not self._is_replayed:
            self.entries.flush()
            self.masters.forget_call()

    def _move_entry(self, source: str, target: str) -> None:
        now, ttls = self.entries.now, self.entries.ttls
        for place in [place for place in now if place[0] == source]:
            entry, goes = now.pop(place), (target, place[1])
            self.course = self.course.leaving(source)
            if self.scenario.replaces:
                now.pop(goes, None)
            now.setdefault(goes, entry)
            if place in ttls:
                ttls[goes] = ttls[place]
            if not self._is_replayed:
                self.entries.flush()
                self.masters.carry(source, target, [place[1]], replaces=self.scenario.replaces)

    _PARTS: ClassVar = {
        "begin": _open,
        "carry": _carry,
        "arrive": _arrive,
        "call off": _call_off,
        "stay": _stay_without_keys,
        "bring back": _bring_back,
    }

    # ------------------------------------------------------------------ a replica is promoted

    def promotions(self) -> list[Move]:
        """How a replica of the slot's master can be promoted next: with what it has of the entry.

        That is all that stood there at any moment since the slot arrived, or nothing.
        """
        if self.course.target:
            return []
        found: dict[Any, int] = {}
        for number, entries in reversed(list(enumerate(self.entries.history))):
            if any(where != self.course.owner for where, _ in entries):
                break
            found.setdefault(tuple(sorted(entries.get(self._place, {}).items())), number)
        return [("promote", str(number)) for number in sorted(found.values())]

    def promote(self, number: str) -> None:
        """A replica is promoted."""
        owner, past = self.course.owner, self.entries.history[int(number)].get(self._place)
        self.fault(f"promote: {owner}, with entry {number}", lossy=True)
        self.entries.now.pop(self._place, None)
        if past is not None:
            self.entries.now[self._place] = past
            self.entries.ttls[self._place] = int(2 * WRITE_DEADLINE_SECONDS * 1000)
        self.course = self.course.raised(owner)
        self.masters.promote(owner)
        self.entries.put_back()
        self.entries.reigns.meet_master(owner, self.masters.process_of(owner))
        self.epoch_changed = self.is_moved = True
        self._remember_entries()

    @property
    def _place(self) -> Place:
        """Where the entry is, if there is one."""
        return self.course.owner, self.entries.first[1]

    # ------------------------------------------------------------------ what a saver asks a node

    def told(self, where: str, info: bytes) -> Any:
        return self._tell(ACTOR.get().process, where, info)

    def _tell(self, process: Process, where: str, info: bytes) -> Any:
        self._told[process.name, where] = self.course.epoch(where)
        return self.masters.info(info, where, self.course)

    async def pass_node(self, where: str, commands: list[tuple[Any, ...]]) -> Any:
        process = ACTOR.get().process

        def perform() -> Any:
            if process.is_cut_off:
                self.promise.is_wary(process)
                raise TimeoutError
            if commands == EPOCH_AND_CALLS:
                [info] = self.entries.wires[where].send(commands[0])
                return [self._tell(process, where, info), self.masters.commands(where, self.course)]
            if commands == CALLS_AND_NODES:
                return [self.masters.commands(where, self.course), self._look(where)[1]]
            assert commands == SLOTS_AND_NODES, commands
            if self._owner_known_to(process) != self.course.owner:
                self._learns(process)
            return self._look(where)

        label = next(label for label, asked in _LABELS.items() if asked == commands)
        return await self._pass("node", f"{label} {where}", perform)

    def _look(self, where: str) -> list[Any]:
        """What a node says of the cluster. While a run is repeated, the servers are not what they were."""
        seen = where, self.course
        if not self._is_replayed or seen not in self._looks:
            assert not self._is_replayed
            self.entries.flush()
            self._looks[seen] = self.masters.look(where, self.course)
        return self._looks[seen]

    def _owner_known_to(self, process: Process) -> str | None:
        node = process.saver._l1._owners[SLOT]
        return None if node is None else self._at[node._shard.address]

    # ------------------------------------------------------------------ steps

    def _label(self, where: str, step: str) -> str:
        return step if where == HERE else f"{step} there"

    def _has_answered(self, process: Process, step: str, where: str, answer: Any) -> None:
        super()._has_answered(process, step, where, answer)
        if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("MOVED"):
            self._learns(process)
        elif step in ("read", "commit"):
            for actor in process.actors:
                actor.is_behind = self._is_excused(process, where)

    def _learns(self, process: Process) -> None:
        """A process gets to know that the slot has moved. A read that was sent before has begun before."""
        for gate in [gate for gate in self.gates if gate.actor.process is process and gate.tier == "l1"]:
            if not gate.actor.done and gate.actor.calls[gate.actor.position].reads:
                self.start_call(gate)
        self.promise.is_wary(process)

    def _is_excused(self, process: Process, where: str) -> bool:
        """Whether a process reads at a master of which it does not know something that excuses it."""
        if "promote" in self.faults and self._is_behind(process, where):
            return True
        return self.course.kept > 0 and not self._knows_departures(process, where)

    def _knows_departures(self, process: Process, where: str) -> bool:
        """Whether a process has looked at a master since keys have left it, and since their slot stays."""
        sight = self._node_at(process, where).contact._sight
        return bool(sight and sight.calls == self.course.left(where) and not sight.leaving)

    def _node_at(self, process: Process, where: str) -> Any:
        return process.saver._l1._nodes["127.0.0.1", self.masters.ports[where]]

    def _is_behind(self, process: Process, where: str) -> bool:
        """Whether a process was not told the configuration epoch of a master."""
        told = self._told.get((process.name, where), self._first.epoch(where))
        return told != self.course.epoch(where)

    def _reign_of(self, reign: str) -> Any:
        return self.entries.reigns.of_master(reign.encode())

    def _mind(self, process: Process) -> tuple[Any, ...]:
        if process.is_foreign:
            return ()
        router = process.saver._l1
        return (
            super()._mind(process),
            tuple(self._is_behind(process, where) for where in (HERE, THERE)),
            self._owner_known_to(process),
            router.is_stale,
            router._watched.ask_first,
            router._current_epoch,
            router._watched.view and router._watched.view.epoch,
            router.must_begin_anew,
            tuple(
                sight and (sight.calls, bool(sight.leaving), sight.owned)
                for sight in (node.contact._sight for node in router.nodes)
            ),
            frozenset(router._written),
            frozenset((scope, self._at[node._shard.address]) for scope, (_, node) in router._recent.items()),
        )


class SlotEntries(Entries):
    """What stands in the two masters. Commands are sent with ASKING, for a slot that arrives."""

    def __init__(self, wires: dict[str, Wire], world: SlotWorld) -> None:
        super().__init__(wires)
        self._world = world

    def put_back(self) -> None:
        stored = {where: self.commands_to_store(where) for where in self.wires}
        self._world.masters.arrange(self._world.course, stored)
        self.unsent = {}

    def send(self, where: str, *commands: tuple[Any, ...]) -> None:
        super().send(where, *(part for command in commands for part in (("ASKING",), command)))

    def flush(self) -> None:
        """Send what is to be sent."""
        for where in list(self.unsent):
            for answer in self.wires[where].send(*self.unsent.pop(where)):
                raise_error(answer)

    def run(self, where: str, key: bytes, script: tuple[Any, ...]) -> Outcome:
        self.flush()
        answer, entry, ttl = self.wires[where].send(script, ("HGETALL", key), ("PTTL", key))
        if isinstance(entry, hiredis.ReplyError):
            # The slot is not there, or nothing stands there of a slot that is on its way.
            found = self.now.get((where, key), {}) if isinstance(answer, hiredis.ReplyError) else {}
            entry, ttl = [part for item in found.items() for part in item], self.ttls.get((where, key), 0)
        return Outcome(answer, entry, ttl)

    def replay(self) -> Outcome | None:
        outcome = super().replay()
        return outcome and _renamed(outcome, self.reigns.real_of_master)

    def record(self, outcome: Outcome) -> None:
        # Another run may be repeated when the masters have others ids.
        super().record(_renamed(outcome, self.reigns.of_master))

    def state(self) -> tuple[Any, ...]:
        return tuple(
            sorted(
                (where, self.reigns.shown(key), self.canonical(entry))
                for (where, key), entry in self.now.items()
            )
        )

    def label(self, place: Place) -> tuple[str, ...]:
        return (*super().label((HERE, place[1])), *([place[0]] if place[0] != HERE else []))


def _renamed(outcome: Outcome, name: Callable[[bytes], bytes]) -> Outcome:
    return outcome._replace(answer=_with(outcome.answer, name), entry=_with(outcome.entry, name))


def _with(answer: Any, name: Callable[[bytes], bytes]) -> Any:
    """Name the reign anew, wherever the fields of an entry are in an answer."""
    if not isinstance(answer, list):
        return answer
    found = [_with(each, name) for each in answer]
    if b"reign" in found[::2]:
        at = 2 * found[::2].index(b"reign") + 1
        found[at] = name(found[at])
    return found
