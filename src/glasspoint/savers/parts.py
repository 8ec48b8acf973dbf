"""The parts of a `CachedPostgresSaver`, and how they are connected.

Open this file to see which part needs which other one. The saver, `write_through` and `maintenance` receive
all parts as one object; every other part receives only what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from redis.asyncio import RedisCluster

from glasspoint.coherence.audit import Auditor
from glasspoint.coherence.identity import IdentityKeeper
from glasspoint.coherence.purging import Purger
from glasspoint.coherence.sweeper import Sweeper
from glasspoint.l1.breaker import Breaker
from glasspoint.l1.cache import Cache
from glasspoint.l1.cluster import ClusterCache
from glasspoint.l1.compression import packer_of
from glasspoint.l2.fences import Fences
from glasspoint.l2.retrying import Retries
from glasspoint.l2.sizes import Sizes
from glasspoint.l2.store import Store
from glasspoint.logs import get_logger
from glasspoint.redis.permissions import check_permissions
from glasspoint.redis.topology import Topology, name_of
from glasspoint.savers.bursts import BURST_SECONDS, Bursts
from glasspoint.savers.forks import Forks
from glasspoint.telemetry.events import RETIRED, BreakerChanged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from redis.asyncio import Redis

    from glasspoint.coherence.last_used import LastUsed
    from glasspoint.l1.epoch import Shard
    from glasspoint.l1.quarantine import Quarantine
    from glasspoint.model.lifetime import Lifetime
    from glasspoint.telemetry.events import BreakerState, SaverStatus, Telemetry

__all__ = ["Parts", "SaverOptions", "build_parts", "build_store"]

_log = get_logger("glasspoint")

# How long readers heed an intent that nobody takes back, and how long a fence stands. A burst takes writes
# for `BURST_SECONDS`; a statement is sent before the write's deadline; PostgreSQL may work on it for as long
# again (`statement_timeout`). No statement may end after the intent or the fence is gone.
_DEADLINES_AN_INTENT_LASTS = 2
_INTENT_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SaverOptions:
    """The options of a `CachedPostgresSaver`, checked. Its constructor explains them."""

    cache_ttl_seconds: float
    key_prefix: str
    l1_timeout_seconds: float
    write_deadline_seconds: float
    on_l1_outage: Literal["degrade", "raise"]
    sweep_interval_seconds: float
    audit_ratio: float
    l1_signing_key: bytes | None
    l1_compression: Literal["off", "zstd"]
    l1_compression_min_bytes: int
    foreign_writes: Literal["watch", "ignore"]
    on_fork: Literal["count", "raise"]
    retention: timedelta | None
    last_used: LastUsed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one saver. Clones by `with_allowlist` share them.

    Attributes:
        upstream: LangGraph's saver for PostgreSQL, as the caller gave it.
        telemetry: Receives all events.
        status: The status of the saver.
        lifetime: The calls and tasks under way.
        l1: The cache in Redis. In a cluster, this is a `ClusterCache`, which has the same interface.
        cluster: The same object, if it is one.
        l2: The tables in PostgreSQL.
        breaker: Keeps calls from a Redis that does not respond; in a cluster, each master has its own.
        bursts: The writes that Redis has not been told of yet.
        retries: Repeats what PostgreSQL did not do.
        forks: Finds runs whose result is lost.
        auditor: Compares hits with PostgreSQL.
        identity: Tells which database L1's keys belong to.
        sweeper: Follows the journal.
        sizes: Measures the tables.
        must_tell_l1: Whether a write fails if Redis does not do its part.
        write_deadline_seconds: How long a write may take, with all its attempts.
        read_deadline_seconds: How long a read of one checkpoint may take, with all its attempts.
    """

    upstream: AsyncPostgresSaver
    telemetry: Telemetry
    status: SaverStatus
    lifetime: Lifetime
    l1: Cache
    cluster: ClusterCache | None
    l2: Store
    breaker: Breaker
    bursts: Bursts
    retries: Retries
    forks: Forks
    auditor: Auditor
    identity: IdentityKeeper
    sweeper: Sweeper
    sizes: Sizes
    must_tell_l1: bool
    write_deadline_seconds: float
    read_deadline_seconds: float

    async def identify_l1(self) -> None:
        """Find out which keys L1 uses, if that is unknown.

        This runs before a write takes a connection to PostgreSQL.
        """
        if not self.l1.is_identified:
            await self.sweeper.revalidate()


def build_store(upstream: AsyncPostgresSaver, telemetry: Telemetry, options: SaverOptions) -> Store:
    """Return L2 on the connections of LangGraph's saver."""
    return Store(
        upstream,
        telemetry,
        cache=options.key_prefix,
        foreign_writes=options.foreign_writes,
        refuses_forks=options.on_fork == "raise",
    )


def build_parts(
    upstream: AsyncPostgresSaver,
    redis: Redis | RedisCluster,
    store: Store,
    telemetry: Telemetry,
    status: SaverStatus,
    lifetime: Lifetime,
    options: SaverOptions,
) -> Parts:
    """Connect the parts of a saver, and start the sweeper.

    Args:
        upstream: LangGraph's saver for PostgreSQL.
        redis: The client of L1.
        store: L2, from `build_store`.
        telemetry: Receives all events.
        status: The status of the saver, which the parts keep up to date.
        lifetime: Receives what has to be stopped when the saver is closed.
        options: The options of the saver.
    """
    write_deadline = options.write_deadline_seconds
    statement_seconds = _DEADLINES_AN_INTENT_LASTS * write_deadline
    stand_seconds = BURST_SECONDS + statement_seconds + _INTENT_MARGIN_SECONDS
    # A Redis that hangs must not use up the deadline of every write.
    l1_timeout = min(options.l1_timeout_seconds, write_deadline / 4)
    pool = store.connections.pool
    watch = _BreakerWatch(telemetry, status)

    def cache_of(server: Redis, shard: Shard | None = None, quarantine: Quarantine | None = None) -> Cache:
        return Cache(
            server,
            telemetry,
            key_prefix=options.key_prefix,
            ttl_seconds=options.cache_ttl_seconds,
            intent_seconds=stand_seconds,
            timeout_seconds=l1_timeout,
            breaker=watch.breaker(None if shard is None else name_of(shard.address)),
            packer=packer_of(options.l1_compression, options.l1_compression_min_bytes),
            quarantine=quarantine,
            shard=shard,
        )

    cluster: ClusterCache | None = None
    ends: list[Callable[[], Awaitable[object]]] = []
    if isinstance(redis, RedisCluster):
        name_rights = partial(check_permissions, key_prefix=options.key_prefix, tag="")
        topology = Topology(redis, timeout_seconds=l1_timeout, name_rights=name_rights)
        cluster = ClusterCache(
            topology, telemetry, make=cache_of, breaker=watch.breaker(None), changed=watch.look
        )
        l1 = cast("Cache", cluster)
        ends.append(topology.close)
        status.redis, status.shards = topology, cluster.states
    else:
        l1 = cache_of(redis)
    watch.cache = l1
    store.fences = Fences(
        store.connections,
        cache=options.key_prefix,
        stand_seconds=stand_seconds,
        margin_seconds=statement_seconds,
        in_background=lifetime.in_background,
    )
    sizes = Sizes(store.connections)
    identity = IdentityKeeper(
        l1,
        store.identities,
        store.journal,
        telemetry,
        status,
        signing_key=options.l1_signing_key,
        last_used=options.last_used,
        statement_seconds=(_DEADLINES_AN_INTENT_LASTS - 1) * write_deadline,
    )
    store.connections.greet = identity.greet
    sweeper = watch.sweeper = Sweeper(
        l1,
        store.journal,
        identity,
        telemetry,
        status,
        every_seconds=options.sweep_interval_seconds,
        timeout_seconds=l1_timeout,
        purger=Purger(l1, store.identities, identity),
        expire_fences=store.fences.expire,
    )
    bursts = Bursts(l1, store.fences, telemetry, in_background=lifetime.in_background)
    status.waiting = lambda: store.connections.waiting
    status.breaker, status.storage, status.quarantined = l1.breaker.state, sizes.known, l1.quarantine.__len__
    lifetime.stops += [sweeper.stop, sizes.stop]
    lifetime.ends += [bursts.close, store.connections.drain, *ends]
    sweeper.start()
    return Parts(
        upstream=upstream,
        telemetry=telemetry,
        status=status,
        lifetime=lifetime,
        l1=l1,
        cluster=cluster,
        l2=store,
        breaker=l1.breaker,
        bursts=bursts,
        retries=Retries(telemetry, seconds=write_deadline, can_reconnect=pool is not None),
        forks=Forks(telemetry, on_fork=options.on_fork),
        auditor=Auditor(l1, store, telemetry, ratio=options.audit_ratio, start=lifetime.in_background),
        identity=identity,
        sweeper=sweeper,
        sizes=sizes,
        must_tell_l1=options.on_l1_outage == "raise",
        write_deadline_seconds=write_deadline,
        read_deadline_seconds=(pool.timeout if pool is not None else 0.0) + write_deadline,
    )


class _BreakerWatch:
    """Makes breakers, reports each of their changes, and makes the sweeper look soon."""

    def __init__(self, telemetry: Telemetry, status: SaverStatus) -> None:
        self._telemetry = telemetry
        self._status = status
        # The cache and the sweeper need the breaker, so they come later.
        self.cache: Cache | None = None
        self.sweeper: Sweeper | None = None

    def breaker(self, shard: str | None) -> Breaker:
        """Return a new breaker.

        Args:
            shard: The host and the port of the master of a cluster; `None`: Redis is not in a cluster.
        """
        name = "L1 (Redis)" if shard is None else f"The shard {shard} of L1 (Redis)"
        return Breaker(changed=partial(self._changed, name))

    def look(self) -> None:
        """Show the state of the breaker: a cluster has other masters now."""
        if self.cache is not None:
            self._status.breaker = self.cache.breaker.state

    def _changed(self, name: str, state: BreakerState, previous: BreakerState, reason: str) -> None:
        self._status.breaker = state
        self.look()
        self._telemetry.emit(BreakerChanged(state, previous, reason))
        if self.sweeper is not None:
            self.sweeper.look_soon()
        if state == "open" and previous == "closed":
            _log.warning(
                "%s is left alone (%s), and probed. PostgreSQL answers alone, and writes go into the "
                "journal, too, so that no older state is read from Redis later.",
                name,
                reason,
            )
        elif reason == RETIRED:
            _log.info("%s has no slots any more, and is not probed any more.", name)
        elif state == "closed":
            _log.info("%s is asked again: the breaker has closed.", name)
        else:
            _log.debug("The breaker of %s is %s (%s).", name, state, reason)
