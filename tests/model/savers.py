"""The savers that are explored: how they are made, and what they remember between two runs."""

from __future__ import annotations

import asyncio
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import RedisCluster

from glasspoint.savers import cached as saver
from glasspoint.savers.bursts import Burst
from glasspoint.telemetry.events import Telemetry
from model import store
from model.terms import (
    TTL_SECONDS,
    WRITE_DEADLINE_SECONDS,
)
from model.wires import SteppedRedis

if TYPE_CHECKING:
    from model.world import World


def make_client(world: World, where: str, port: int) -> SteppedRedis:
    """A client of one server, whose scripts wait at the gates of a world."""
    client = SteppedRedis(port=port)
    client.world, client.where = world, where
    return client


def make_saver(world: World, name: str, client: SteppedRedis | RedisCluster) -> Any:
    """A saver whose Redis and PostgreSQL wait at the gates of a world."""
    pool: Any = AsyncConnectionPool("", open=False)
    made = saver.CachedPostgresSaver(
        AsyncPostgresSaver(pool),
        client,
        telemetry=Telemetry("explorer", ()),
        cache_ttl=TTL_SECONDS,
        l1_timeout_seconds=WRITE_DEADLINE_SECONDS,
        write_deadline_seconds=WRITE_DEADLINE_SECONDS,
        audit_ratio=0,
    )
    model = store.ModelStore(world.pass_postgres, check_out=world.check_out, reigns=world.entries.reigns)
    made._l2 = model  # type: ignore[assignment]
    made._parts = replace(made._parts, l2=model)  # type: ignore[arg-type]
    made._maintenance._parts = made._parts
    made._maintenance._pruner = store.ModelPruner(model)  # type: ignore[assignment]
    model.fences.holder = name
    made._bursts._fences = model.fences  # type: ignore[assignment]
    made._bursts._in_background = model.fences.in_background = world.in_background
    made._bursts._look_later = lambda burst: None  # type: ignore[method-assign]
    made._parts.sweeper._journal = made._parts.identity._journal = model.journal  # type: ignore[assignment]
    made._parts.identity._identities = model.identities  # type: ignore[assignment]
    assert made._parts.sweeper._task is not None
    made._parts.sweeper._task.cancel()  # a sweep is explored as an actor's call
    assert made._lifetime._end_of_loop is not None
    made._lifetime._end_of_loop.dismiss()  # what is left over after each run is cancelled: see `_bury`
    return made


def burst_state(burst: Burst) -> tuple[Any, ...]:
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


Memory = list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]
"""The attributes of each part; as they were: those that are never changed in place, and the others."""


def caches_of(saver: Any) -> tuple[Any, ...]:
    """The cache of each master that a saver knows; without a cluster, its only one."""
    caches: tuple[Any, ...] = saver._l1.shards if saver._parts.cluster is None else saver._l1.nodes
    return caches


def _parts_of(saver: Any) -> tuple[Any, ...]:
    """What of a saver remembers anything about L1 or L2."""
    caches = caches_of(saver)
    l1 = [part for each in caches for part in _parts_of_cache(each)]
    router = () if saver._parts.cluster is None else (saver._l1, saver._l1._watched)
    parts = saver._l1.quarantine, saver._parts.identity, saver._parts.sweeper
    return (*router, *l1, *parts, saver._bursts, saver._bursts._fences)


def _parts_of_cache(cache: Any) -> tuple[Any, ...]:
    return cache, cache.contact, cache._steps, cache.breaker, cache.trust, cache._epochs


def memory_of(saver: Any) -> Memory:
    kinds = (set, list, dict, asyncio.Lock)
    return [
        (
            vars(part),
            {name: value for name, value in vars(part).items() if not isinstance(value, kinds)},
            {name: copy(value) for name, value in vars(part).items() if isinstance(value, kinds)},
        )
        for part in _parts_of(saver)
    ]


def recall(memory: Memory) -> None:
    for part, attributes, changing in memory:
        part.update(attributes)
        for name, value in changing.items():
            part[name] = asyncio.Lock() if isinstance(value, asyncio.Lock) else copy(value)
