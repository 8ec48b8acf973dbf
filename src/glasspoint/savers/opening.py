"""Opens and sets up a `CachedPostgresSaver`, and tells whether its servers respond.

Open this file when a saver does not open as it should. `parts` connects the parts of a saver.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from glasspoint.errors import ConfigurationError, L1Error, WrongTypeError
from glasspoint.l1.compression import MIN_BYTES
from glasspoint.l2 import pool as pools
from glasspoint.logs import get_logger
from glasspoint.model.cancellation import heeding_cancellation
from glasspoint.model.option_types import (
    POOL_MAX_SIZE,
    Age,
    Seconds,
    age_of,
    check_options,
    checks_options,
    names_of,
    seconds_of,
)
from glasspoint.model.sync_methods import Opening
from glasspoint.redis import client
from glasspoint.redis.detection import connect_redis
from glasspoint.redis.faults import NeverTheCacheError
from glasspoint.redis.signature import secret_of
from glasspoint.savers.maintenance import Maintenance
from glasspoint.savers.options import CachedOptions, OpenCachedOptions
from glasspoint.savers.parts import SaverOptions, build_parts, build_store
from glasspoint.savers.retention import Retention
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import SaverStatus
from glasspoint.telemetry.opened import OpenedSaver
from glasspoint.telemetry.quiet import quiet, quiet_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from langgraph.checkpoint.serde.base import SerializerProtocol
    from redis.asyncio import Redis, RedisCluster

    from glasspoint.coherence.last_used import LastUsed
    from glasspoint.l1.cluster import ClusterCache
    from glasspoint.l2.types import Pool
    from glasspoint.telemetry.events import Telemetry

__all__ = ["ManagedSaver"]

_log = get_logger("glasspoint")

_L1_TIMEOUT_SECONDS = 0.5
_WRITE_DEADLINE_SECONDS = 10.0

# How long a server may take to respond to a health check.
_SIGN_OF_LIFE_SECONDS = 0.5


class ManagedSaver(OpenedSaver):
    """PostgreSQL and Redis, opened and closed together. `CachedPostgresSaver` adds reads and writes."""

    @checks_options(CachedOptions)
    def __init__(
        self,
        postgres_saver: AsyncPostgresSaver,
        redis: Redis | RedisCluster,
        pool: Pool | None = None,
        *,
        serde: SerializerProtocol | None = None,
        cache_ttl: Seconds = 86400,
        key_prefix: str = "glasspoint",
        l1_timeout_seconds: Seconds = _L1_TIMEOUT_SECONDS,
        write_deadline_seconds: Seconds = _WRITE_DEADLINE_SECONDS,
        on_l1_outage: Literal["degrade", "raise"] = "degrade",
        sweep_interval_seconds: Seconds = 1.0,
        audit_ratio: float = 0.001,
        l1_signing_key: bytes | str | None = None,
        l1_compression: Literal["off", "zstd"] = "off",
        l1_compression_min_bytes: int = MIN_BYTES,
        foreign_writes: Literal["watch", "ignore"] = "watch",
        on_fork: Literal["count", "raise"] = "count",
        retention: Age | None = None,
        last_used: LastUsed | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Make a saver from open connections, which the caller closes.

        Lengths of time are numbers of seconds, or `timedelta`s.

        Args:
            postgres_saver: L2: the saver for PostgreSQL. Give it a pool of autocommit connections; with a
                single connection, calls queue. Give the connections a `statement_timeout` of at most
                `write_deadline_seconds`: a statement that ends long after its caller gave up could outlive
                the marks that keep readers away from Redis.
            redis: L1: a `redis.asyncio.Redis` or a `redis.asyncio.RedisCluster`, made without
                `decode_responses`. For a cluster, the saver opens connections of its own to each master, with
                the options of this client.
            pool: The pool of `postgres_saver`, if you have it. Another pool is an error.
            serde: Serialises the values. By default, the serializer of `postgres_saver`.
            cache_ttl: Seconds that an entry stays in Redis after its last use; greater than 0.
            key_prefix: The beginning of every key in Redis.
            l1_timeout_seconds: How long one step in Redis may take, at most a quarter of
                `write_deadline_seconds`. After that, the call uses PostgreSQL alone.
            write_deadline_seconds: How long a write may take, with all its attempts. After that, it fails
                with `L2DeadlineError`. A read of one checkpoint may take as long, plus the pool's timeout. No
                read begins an attempt later than this after its first.
            on_l1_outage: What happens to a write while Redis does not do its part. `"degrade"`: PostgreSQL
                stores it, with a row in the journal; until the journal is swept, a process that still reaches
                Redis may read the state before the write. `"raise"`: the write fails with
                `L1UnavailableError`. Reads use PostgreSQL in both cases.
            sweep_interval_seconds: The time from one sweep of the journal to the next.
            audit_ratio: The share of hits, 0 to 1, that are compared with PostgreSQL in the background.
            l1_signing_key: Signs the entries in Redis, in place of the key that PostgreSQL keeps. At least 16
                bytes, or a string of at least 16 bytes; the same in every process.
            l1_compression: Whether values are compressed in Redis: `"zstd"` or `"off"`. Both settings read
                both forms, so processes may have different ones.
            l1_compression_min_bytes: Values with fewer bytes are not compressed.
            foreign_writes: Whether the cache follows what other software writes to the tables. `"watch"`:
                `setup` makes triggers that record these writes, and the cache follows within the sweep
                interval. `"ignore"`: it makes none; for tables to which no other software writes.
            on_fork: What happens to a put that forks its thread. A put does so if another run has written to
                the thread since this run read it, or if the checkpoint is older than its parent. `"count"`:
                the checkpoint is stored, and the fork is counted and logged. `"raise"`: the checkpoint is not
                stored, and the put fails with `ThreadForkedError`. See `docs/reliability.md`.
            retention: The age, a `timedelta` or a string such as `"30d"`, at which checkpoints are removed in
                the background, unless they are needed: see `aprune_older_than`. One process at a time does
                that. `None`: nothing is removed. All services on a database should have the same value.
            last_used: What this saver leaves in Redis for processes that start while PostgreSQL is away. Only
                the fallback chain sets this.
            telemetry: Receives all events: see `create_telemetry`. By default, metrics go to the process's
                Prometheus registry, and spans to its OpenTelemetry provider.

        Raises:
            ConfigurationError: An argument cannot be used. If its type is wrong, or an option does not exist,
                the error is a `TypeError`, too.
        """
        _check_postgres_saver(postgres_saver, pool)
        options = SaverOptions(
            cache_ttl_seconds=seconds_of(cache_ttl),
            key_prefix=key_prefix,
            l1_timeout_seconds=seconds_of(l1_timeout_seconds),
            write_deadline_seconds=seconds_of(write_deadline_seconds),
            on_l1_outage=on_l1_outage,
            sweep_interval_seconds=seconds_of(sweep_interval_seconds),
            audit_ratio=audit_ratio,
            l1_signing_key=None if l1_signing_key is None else secret_of(l1_signing_key),
            l1_compression=l1_compression,
            l1_compression_min_bytes=l1_compression_min_bytes,
            foreign_writes=foreign_writes,
            on_fork=on_fork,
            retention=None if retention is None else age_of(retention),
            last_used=last_used,
        )
        client.check_redis_or_cluster(redis)
        telemetry = telemetry or create_telemetry()
        store = build_store(postgres_saver, telemetry, options)
        status = _status_of(redis, store.connections.pool)
        super().__init__(status, telemetry, serde or postgres_saver.serde)
        client.follow_sentinels(redis, partial(self._server_moved, "l1"), context=quiet_context())
        self._parts = parts = build_parts(
            postgres_saver, redis, store, telemetry, status, self._lifetime, options
        )
        # The parts that the calls of this class use.
        self._l1, self._l2, self._bursts = parts.l1, parts.l2, parts.bursts
        self._retries, self._forks = parts.retries, parts.forks
        self._maintenance = Maintenance(parts)
        self._retention = None if options.retention is None else self._start_retention(options.retention)
        self._lifetime.end_with_loop(type(self).__name__)

    @classmethod
    def from_conn_string(
        cls, conn_string: str, *, redis_url: str, **options: Unpack[OpenCachedOptions]
    ) -> Opening[Self]:
        """Open a saver for the length of a block: `async with`, or `with` for synchronous callers.

        This does not create the tables: call `setup` once.

        Args:
            conn_string: Where PostgreSQL is: `postgresql://…`, `postgres://…`, `postgresql+asyncpg://…`,
                `postgresql+psycopg://…` or libpq's `key=value` form.
            redis_url: Where Redis is: `redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…` or
                `redis+cluster://…`.
            options: The same keyword arguments as for `create`.

        Raises:
            ConfigurationError: A URL or an option cannot be used, or PostgreSQL refuses the connection.
            L2UnavailableError: PostgreSQL cannot be reached. (If Redis cannot be reached, this is logged.)
        """
        check_options(f"{cls.__name__}.from_conn_string", options, OpenCachedOptions)
        return Opening(
            lambda: cls._open(conn_string, redis_url, **options), reopens=isinstance(redis_url, str)
        )

    @classmethod
    async def create(
        cls, conn_string: str, redis: Redis | RedisCluster | str, **options: Unpack[OpenCachedOptions]
    ) -> Self:
        """Open a saver, and create the tables if they do not exist. Close it with `close`.

        Args:
            conn_string: Where PostgreSQL is, in one of the forms of `from_conn_string`.
            redis: A URL, or a client, which the caller closes.
            options: The keyword arguments of the constructor, and those of the pool (defaults in brackets):

                - `pool_min_size` (1), `pool_max_size` (10): the number of connections.
                - `pool_timeout_seconds` (10): how long a call waits for a connection.
                - `connect_timeout_seconds` (5): how long the first connection may take.
                - `prepare_threshold` (0): after how many uses a statement is prepared. `None`: never; for
                  PgBouncer in transaction mode.
                - `schema`: the schema of the tables; by default what the role's `search_path` says. Behind a
                  pooler, this must name the same schema: `ALTER ROLE … SET search_path`.
                - `redis_mode` ("auto"): what the URL of Redis leads to. `"auto"`: what its scheme says.
                  `"single"`: one server. `"sentinel"`: a plain URL names sentinels, and the service as its
                  path. `"cluster"`: a plain URL names nodes of a Redis Cluster.
                - `password`: a function that returns the password, in place of the connection string's. It
                  may be asynchronous; a synchronous one runs in a thread. It is called before each new
                  connection, so the password may be a token that expires.

        Raises:
            ConfigurationError: A URL or an option cannot be used, or PostgreSQL refuses the connection.
            L2UnavailableError: PostgreSQL cannot be reached. (If Redis cannot be reached, this is logged.)
            SchemaError: The tables do not exist, and this role may not create them.
        """
        check_options(f"{cls.__name__}.create", options, OpenCachedOptions)
        saver = await cls._open(conn_string, redis, **options)
        try:
            await saver.setup()
        except BaseException:
            await saver.close()
            raise
        return saver

    @classmethod
    async def _open(
        cls, conn_string: str, redis: Redis | RedisCluster | str, **options: Unpack[OpenCachedOptions]
    ) -> Self:
        min_size, max_size = options.get("pool_min_size", 1), options.get("pool_max_size", POOL_MAX_SIZE)
        if min_size > max_size:
            raise ConfigurationError(
                f"pool_min_size is {min_size} and pool_max_size {max_size}: pool_min_size must not be "
                "greater than pool_max_size."
            )
        names = names_of(CachedOptions)
        own = cast("CachedOptions", {name: value for name, value in options.items() if name in names})
        telemetry = own["telemetry"] = options.get("telemetry") or create_telemetry()
        async with AsyncExitStack() as opened:
            with quiet(), heeding_cancellation():
                if isinstance(redis, str):
                    timeout = seconds_of(options.get("l1_timeout_seconds", _L1_TIMEOUT_SECONDS))
                    redis = await connect_redis(
                        redis,
                        timeout_seconds=client.TIMEOUTS_TO_CONNECT * timeout,
                        mode=options.get("redis_mode", "auto"),
                        step_seconds=timeout,
                    )
                    opened.push_async_callback(client.close_client, redis)
                client.check_redis_or_cluster(redis)
                pool = await pools.open_pool(
                    conn_string,
                    min_size=min_size,
                    max_size=max_size,
                    timeout_seconds=seconds_of(options.get("pool_timeout_seconds", 10.0)),
                    connect_timeout_seconds=seconds_of(options.get("connect_timeout_seconds", 5.0)),
                    prepare_threshold=options.get("prepare_threshold", 0),
                    statement_timeout_seconds=seconds_of(
                        options.get("write_deadline_seconds", _WRITE_DEADLINE_SECONDS)
                    ),
                    schema=options.get("schema"),
                    password=options.get("password"),
                    telemetry=telemetry,
                )
                opened.push_async_callback(pools.close_pool, pool)
                saver = cls(AsyncPostgresSaver(pool), redis, pool, **own)
                # If the opening fails, the saver's tasks must not connect again.
                opened.push_async_callback(saver._lifetime.close)
                await saver._connect_l1()
            saver._lifetime.owned = opened.pop_all()
        saver._parts.sizes.look_soon()
        saver.status.announce(lambda: _log.info("CachedPostgresSaver initialized (Redis L1 + PostgreSQL L2)"))
        return saver

    async def _connect_l1(self) -> None:
        """Make the first contact with Redis. If Redis is down or refuses, open the breaker."""
        try:
            server = await self._l1.open()
        except NeverTheCacheError as exc:
            raise ConfigurationError(f"This Redis cannot be the cache: {exc}") from exc
        except L1Error as exc:
            self._l1.breaker.trip(type(exc.__cause__ or exc).__name__)
            return
        self.status.versions["redis"] = server.version
        await self._parts.sweeper.settle()

    def _start_retention(self, age: timedelta) -> Retention:
        """Remove checkpoints of this age in the background, until the saver is closed."""
        retention = Retention(
            self._l2.connections,
            self._telemetry,
            self._status,
            age=age,
            prune=self._maintenance.prune_older_than,
        )
        self._lifetime.stops.insert(0, retention.stop)
        retention.start()
        return retention

    async def ping(self) -> None:
        """Check that PostgreSQL responds.

        Raises:
            L2UnavailableError: It does not.
        """
        with self._lifetime.call():
            await self._l2.ping()

    async def _check(self) -> dict[str, Any]:
        with quiet():
            l1, l2 = await asyncio.gather(self._look_at_l1(), self._look_at_l2())
        server = self._l1.server
        return {
            "l1": l1,
            "l2": l2,
            "epoch": server.reign if server else "unknown",
            "identity": self.status.identity or "unknown",
            "breaker": self._l1.breaker.state,
            "journal": self.status.journal_pending,
            "quarantined": len(self._l1.quarantine),
            **({"shards": dict(self.status.shards())} if self.status.shards is not None else {}),
        }

    async def _look_at_l1(self) -> str:
        if self._parts.cluster is not None:
            return await self._look_at_shards(self._parts.cluster)
        # While the breaker is open, Redis is not asked: it may respond to PING, and refuse everything else.
        results = self._l1.breaker.is_closed and await _answers(self._l1.ping, _SIGN_OF_LIFE_SECONDS)
        return "ok" if results and self._l1.breaker.is_closed else "unavailable"

    async def _look_at_shards(self, cluster: ClusterCache) -> str:
        """Return `partial` if some masters of a cluster respond, or some slots have none."""
        try:
            async with asyncio.timeout(_SIGN_OF_LIFE_SECONDS):
                results = (await cluster.look_at_shards()).values()
        except TimeoutError:
            return "partial" if cluster.breaker.is_closed else "unavailable"
        if all(result is not None for result in results):
            return "unavailable"
        is_whole = not cluster.unserved_slots and all(result is None for result in results)
        return "ok" if is_whole else "partial"

    async def _look_at_l2(self) -> str:
        """Distinguish a PostgreSQL that is away from a pool whose connections are all in use.

        If a full pool counted as an outage, all processes of a busy service would become unready at once. So
        this tries a connection outside the pool.
        """
        takes_writes = True

        async def ask() -> None:
            nonlocal takes_writes
            with self._lifetime.call():
                takes_writes = await self._l2.ping()

        seconds = _SIGN_OF_LIFE_SECONDS
        if not self._l2.connections.is_saturated:
            if await _answers(ask, seconds):
                return "ok" if takes_writes else "read_only"
            if not self._l2.connections.is_saturated:
                return "unavailable"
            seconds /= 2
        return "busy" if await _answers(self._l2.connections.is_busy, seconds) else "unavailable"

    def setup(self) -> Awaitable[None]:
        """Create the checkpoint tables, or bring them up to date. Many processes may call this at once.

        On the saver's event loop, await the result. Everywhere else, the tables are ready when this returns.

        Raises:
            SchemaError: The tables do not exist, and this role may not create them.
            L2DeadlineError: Other transactions kept the tables locked for too long.
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        return self._on_either_face("setup", lambda saver: saver._setup())

    async def _setup(self) -> None:
        with quiet():
            with self._lifetime.call():
                version = await self._l2.setup()
            self.status.versions["postgres"] = f"{version // 10000}.{version % 10000}"
            if not self._parts.sizes.known():
                self._parts.sizes.look_soon()
            if not self._l1.is_identified:
                await self._parts.sweeper.settle()


def _check_postgres_saver(postgres_saver: object, pool: Pool | None) -> None:
    """Refuse a saver of another type, and a pool that the saver does not work on.

    Raises:
        WrongTypeError: The saver is of another type.
        ConfigurationError: The pool is another one.
    """
    if not isinstance(postgres_saver, AsyncPostgresSaver):
        raise WrongTypeError(
            f"postgres_saver is of the type {type(postgres_saver).__name__}: it must be an "
            "AsyncPostgresSaver (langgraph.checkpoint.postgres.aio)."
        )
    if pool is not None and pool is not postgres_saver.conn:
        raise ConfigurationError("pool is not the pool that postgres_saver works on: pass that one, or none.")


def _status_of(redis: Redis | RedisCluster, pool: Pool | None) -> SaverStatus:
    """Return the status of a new saver: where its servers are, and with which database it works there."""
    addresses = {"l1": client.address_of(redis), "l2": pools.address_of(pool)}
    status = SaverStatus(pool, redis, addresses)  # type: ignore[arg-type]
    pools.follow_address(pool, lambda address: status.move("l2", *address))
    status.databases["l1"] = str(client.database_of(redis))
    if (database := pools.database_of(pool)) is not None:
        status.databases["l2"] = database
    return status


async def _answers(ask: Callable[[], Awaitable[Any]], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await ask() is not False
    except Exception:
        return False
