"""Changes of identity: PostgreSQL is set back or truncated, or somebody else takes the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from model import store
from model.cast import broken
from model.promise import TABLES, Effect, changed_rows

if TYPE_CHECKING:
    from model.world import World


def may_change(world: World, kind: str) -> bool:
    if kind == "truncate":  # it waits for whoever is at work on the tables
        is_at_work = any(gate.label == "put" for gate in world.gates)
        return not is_at_work and not world.tables.changes and not world.ghosts
    return world.tables.cache is not None


def set_back(world: World) -> None:
    """PostgreSQL is recovered to the moment when the run began, or a standby takes over that lags behind
    by so much: another timeline, and the tables are as they were."""
    world.fault("set_back", lossy=True)
    _start_again(world)
    _change(world, store.set_back(world.tables, world.promise.base, tells=True))


def lose(world: World) -> None:
    """PostgreSQL crashes and has lost what it had acknowledged since (`synchronous_commit = off`). Or it
    is set back, and withholds its timeline."""
    world.fault("lose", lossy=True)
    _start_again(world)
    _change(world, store.set_back(world.tables, world.promise.base, tells=False))


def truncate(world: World) -> None:
    """The tables of LangGraph are truncated; Glasspoint's are not."""
    world.fault("truncate", lossy=True)
    _change(world, store.truncated(world.tables))


def renew(world: World) -> None:
    """Somebody else renews the generation, on the same Redis."""
    world.fault("renew", lossy=True)
    assert world.tables.cache is not None
    _renewed_by_others(world, world.tables.cache.reign)


def attach(world: World) -> None:
    """Somebody else attaches the cache to a Redis that nobody here can reach, and leaves."""
    world.fault("attach", lossy=True)
    _renewed_by_others(world, "elsewhere")


def _renewed_by_others(world: World, reign: str) -> None:
    seen = world.tables.cache and world.tables.cache.generation
    world.execute("somebody", ("renew", seen, reign, world.tables.facts, "generation"))
    has_moved(world)


def _start_again(world: World) -> None:
    """All connections to PostgreSQL break, and nothing goes on."""
    world.starts += 1
    world.ghosts.clear()
    for process in world.processes.values():
        process.is_disconnected = True
    for actor in world.actors:
        actor.session += 1
    for gate in [gate for gate in world.gates if gate.tier == "l2"]:
        world.gates.remove(gate)
        gate.actor.is_early = gate.actor.began is None
        gate.opened.set_exception(broken())
        world.has_met(gate.actor, gate.label, "broken")


def _change(world: World, tables: store.Tables) -> None:
    """PostgreSQL is not what it was."""
    before, world.tables = world.tables, tables
    keys = {(name, key) for effect in world.promise.effects for name, key, _ in effect.rows}
    for each in (before, world.tables):
        keys |= {(name, key) for name in TABLES for key, _ in getattr(each, name)}
    effect = Effect(changed_rows(world.tables, keys), required=True, resets=True)
    world.promise.add(effect, world.tables)
    has_moved(world)
    effect.late = {p.name for p in world.processes.values() if p.is_late and not p.is_wary}


def has_moved(world: World) -> None:
    """The keys are others now; nobody knows it yet."""
    world.is_moved = world.promise.is_lossy = True
    for process in world.processes.values():
        process.is_late = not process.is_foreign


CHANGED: dict[str, Callable[..., None]] = {
    "set_back": set_back,
    "lose": lose,
    "truncate": truncate,
    "renew": renew,
    "attach": attach,
}
"""How PostgreSQL changes, by the kind of the move."""
