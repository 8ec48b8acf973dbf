"""What goes wrong in a run: with a process, with Redis, and with the connections."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from redis.exceptions import ResponseError

from glasspoint.errors import L2DeadlineError, L2UnavailableError
from model import store
from model.cast import Gate, Ghost
from model.changes import CHANGED, may_change
from model.savers import caches_of
from model.terms import (
    CHANGES,
    HERE,
    REIGNS,
    WRITE_DEADLINE_SECONDS,
    Move,
    Place,
)
from model.wires import Wire, raise_error

if TYPE_CHECKING:
    from model.world import World


def fault_moves(world: World, kind: str, intents: Collection[str]) -> list[Move]:
    """How a kind of fault can happen next."""
    if kind == "evict":
        return [
            ("evict", *world.entries.label(place))
            for place, entry in world.entries.now.items()
            if entry and not world.entries.reigns.is_of_the_past(place[1])
        ]
    if kind == "lose_fences":
        return [(kind,)] if world.tables.fences and not _is_amid_a_put(world) else []
    if kind == "lapse":
        return [("lapse", intent) for intent in intents]
    if kind in CHANGES:
        return [(kind,)] if may_change(world, kind) else []
    if kind == "promote":
        return world.promotions()
    if kind in REIGNS:
        older = [
            number
            for number, entries in enumerate(world.entries.history)
            if any(b"id" in entry for entry in entries.values()) and entries != world.entries.now
        ]
        return [(kind, str(i)) for i in sorted({older[0], older[-1]})] if older else [(kind, "empty")]
    begun = [a for a in world.actors if a.began is not None and not (a.done or a.crashed)]
    if kind == "crash":
        at_work = [actor.process.name for actor in begun]
        at_work += [process.name for process in world.processes.values() if process.bursts]
        return [("crash", name) for name in dict.fromkeys(at_work)]
    processes = [p for p in world.processes.values() if not p.done]
    if kind == "cut_off":
        asking = {gate.actor.process.name for gate in world.gates if gate.tier == "l1"}
        return [("cut_off", p.name) for p in processes if p.name in asking and not p.is_cut_off]
    if kind == "forbid":
        asking = {gate.actor.process.name for gate in world.gates if gate.tier == "l1"}
        return [("forbid", p.name) for p in processes if p.name in asking and not p.is_forbidden]
    if kind == "open":
        return [("open", p.name) for p in processes if not p.is_foreign and p.saver._parts.breaker.is_closed]
    if kind == "cancel":
        return [("cancel", actor.name) for actor in begun]
    if kind in ("unsaid", "unheard"):
        return [
            (kind, gate.actor.name, gate.label)
            for gate in world.gates
            if gate.tier == "l1" and not gate.actor.process.is_cut_off
        ]
    return [
        (kind, gate.actor.name, gate.label)
        for gate in world.gates
        if gate.tier == "l2" and gate.label not in ("select", "rollback", "look", "greet", "count")
    ]


def crash(world: World, name: str) -> None:
    world.fault(f"crash: {name}")
    process = world.processes[name]
    world.gates = [gate for gate in world.gates if gate.actor.process is not process]
    for actor in process.actors:
        actor.crashed = True
        # Its connection goes with it: a transaction is rolled back. A statement that still takes effect
        # is another schedule, in which it crashes later.
        world.execute(actor.who, ("rollback",))


def evict(world: World, *label: str) -> None:
    world.fault("evict", lossy=True)
    for place in list(world.entries.now):
        if world.entries.label(place) == label:
            del world.entries.now[place]
            world.entries.send(place[0], ("DEL", place[1]))


def failover(world: World, number: str) -> None:
    """This server promotes itself: the keys are as they were some time ago, the scripts are there."""
    _reign_anew(world, "failover", number, ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))


def restart(world: World, number: str) -> None:
    """The same without the scripts: what clients see of a restart, at a fraction of its time."""
    promote = ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")
    _reign_anew(world, "restart", number, *promote, ("SCRIPT", "FLUSH"))


def reboot(world: World, number: str) -> None:
    """The process is killed, and another one loads the snapshot."""
    _reign_anew(world, "reboot", number)
    world.server.save_snapshot()
    world.server.kill()
    world.server.start()
    world.entries.wires[HERE].close()
    world.entries.wires[HERE] = Wire(world.server.port)
    world.meet()


def _reign_anew(world: World, kind: str, number: str, *commands: tuple[Any, ...]) -> None:
    past: dict[Place, dict[bytes, bytes]] = {} if number == "empty" else world.entries.history[int(number)]
    world.fault(f"{kind}: with entry {number}", lossy=True)
    for place in world.entries.now.keys() - past.keys():
        if place[0] == HERE:
            del world.entries.now[place]
    for place, entry in past.items():
        if place[0] == HERE:
            world.entries.now[place] = entry
            world.entries.ttls[place] = int(2 * WRITE_DEADLINE_SECONDS * 1000)
    world.entries.unsent.pop(HERE, None)
    for answer in world.entries.wires[HERE].send(
        *commands, ("FLUSHDB",), *world.entries.commands_to_store(HERE)
    ):
        raise_error(answer)
    world.epoch_changed = True
    if commands:
        world.meet()


def promote(world: World, number: str) -> None:
    """A replica of the slot's master is promoted, with what it has."""
    world.promote(number)


def lapse(world: World, intent: str) -> None:
    """An intent expires although its writer lives: its process stood still, and goes on."""
    world.fault(f"lapse: {intent}", lossy=True)
    world.entries.expire(intent)
    world.trace.append(f"{intent} expires")


def unsaid(world: World, name: str, label: str) -> None:
    """Redis never gets to know of a step; the client gives it up."""
    _fail(world, name, label, "unsaid", TimeoutError(), None, lossy=True)


def unheard(world: World, name: str, label: str) -> None:
    """Redis does a step, and the client never gets to know."""
    gate = _fail(world, name, label, "unheard", TimeoutError(), None, lossy=True)
    with suppress(ResponseError):
        gate.perform()


def cut(world: World, name: str, label: str) -> None:
    """The connection breaks while a statement is under way: the client knows nothing, and goes on."""
    gate = _fail(world, name, label, "cut", L2UnavailableError("cut"), psycopg.OperationalError("cut"))
    rest = store.GOES_ON.get(label)
    if rest is None:
        world.execute(gate.actor.who, ("rollback",))
    else:
        world.ghosts.append(Ghost(gate.actor.who, (rest, *gate.statement[1:])))
    gate.actor.session += 1


def refuse(world: World, name: str, label: str) -> None:
    """PostgreSQL answers with an error: nothing was done."""
    gate = _fail(world, name, label, "refuse", L2DeadlineError("refused"), psycopg.errors.QueryCanceled())
    world.execute(gate.actor.who, ("rollback",))


def cancel(world: World, name: str) -> None:
    """The caller gives up. What it had sent to PostgreSQL may still take effect."""
    world.fault(f"cancel: {name}")
    [actor] = [a for a in world.actors if a.name == name]
    for gate in [g for g in world.gates if g.actor is actor and g.tier == "l2"]:
        if rest := store.GOES_ON.get(gate.label):
            world.ghosts.append(Ghost(actor.who, (rest, *gate.statement[1:])))
        else:
            world.execute(actor.who, ("rollback",))
        actor.session += 1
    assert actor.task is not None
    actor.task.cancel()
    world.has_met(actor, "cancelled", None)


def cut_off(world: World, name: str) -> None:
    """What a process sends to Redis gets lost from now on."""
    world.fault(f"cut_off: {name}", lossy=True)
    world.processes[name].is_cut_off = True


def heal(world: World, name: str) -> None:
    world.trace.append(f"{name} reaches Redis again")
    world.processes[name].is_cut_off = False


def forbid(world: World, name: str) -> None:
    """Redis refuses a process the key of this scope from now on, and serves it all others."""
    world.fault(f"forbid: {name}", lossy=True)
    world.processes[name].is_forbidden = True


def allow(world: World, name: str) -> None:
    world.trace.append(f"{name} may use the key again")
    world.processes[name].is_forbidden = False


def open_breaker(world: World, name: str) -> None:
    """The breaker opens, because of steps for other threads."""
    world.fault(f"open: {name}", lossy=True)
    process = world.processes[name]
    for cache in caches_of(process.saver):
        cache.contact.failed(TimeoutError())
        cache.breaker.trip("explored")
    world.promise.is_wary(process)
    world.has_met(process.actors[0], "open", None)
    for actor in process.actors:
        actor.past = hash((actor.past, "open"))


def _fail(
    world: World,
    name: str,
    label: str,
    kind: str,
    error: Exception,
    cause: Exception | None,
    *,
    lossy: bool = False,
) -> Gate:
    [gate] = [g for g in world.gates if (g.actor.name, g.label) == (name, label)]
    world.gates.remove(gate)
    world.start_call(gate)
    world.fault(f"{kind}: {name}, {label}", lossy=lossy)
    error.__cause__ = cause
    gate.opened.set_exception(error)
    world.has_met(gate.actor, label, kind)
    if gate.tier == "l1":
        world.promise.is_wary(gate.actor.process)
    return gate


def _is_amid_a_put(world: World) -> bool:
    """Whether one is between its snapshot and its effect. Until that, the fence that it has seen stands:
    a crash of PostgreSQL ends the statement, and the fence does not expire before it has to end."""
    under_way = [gate.statement for gate in world.gates] + [ghost.statement for ghost in world.ghosts]
    return any(statement[:1] == ("put",) for statement in under_way)


FAULTS: dict[str, Callable[..., None]] = {
    "crash": crash,
    "evict": evict,
    "failover": failover,
    "restart": restart,
    "reboot": reboot,
    "promote": promote,
    "lapse": lapse,
    "unsaid": unsaid,
    "unheard": unheard,
    "cut": cut,
    "refuse": refuse,
    "cancel": cancel,
    "cut_off": cut_off,
    "heal": heal,
    "forbid": forbid,
    "allow": allow,
    "open": open_breaker,
    **CHANGED,
}
"""What goes wrong, and is right again, by the kind of the move."""
