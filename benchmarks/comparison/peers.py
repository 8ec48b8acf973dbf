"""Who is compared: Glasspoint, and what else a LangGraph application could use.

Glasspoint and upstream's contenders have a database each, on the same server: see `servers.Databases`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from comparison.servers import Databases
from glasspoint import CachedPostgresSaver, RedisSaver, create_telemetry
from glasspoint.telemetry import Telemetry

POOL_SIZE: Final = 10

OURS: Final = "Glasspoint"
FLOOR: Final = "floor"
POOL: Final = "upstream, pool"
ONE: Final = "upstream, one"
REDIS: Final = "RedisSaver"
MEMORY: Final = "InMemorySaver"

ON_POSTGRES: Final = (OURS, POOL, ONE)
QUICK: Final = (OURS, POOL)
QUICK_TURN: Final = (OURS, POOL, ONE, MEMORY)
"""Both of upstream's contenders, and LangGraph alone."""
ALL: Final = (OURS, POOL, ONE, REDIS, MEMORY)

Saver = BaseCheckpointSaver[str]


class Peers:
    """Savers by name, on one PostgreSQL server and one Redis.

    Attributes:
        telemetry: Glasspoint's: metrics, and traces of which one in a hundred is recorded and sent.
        pool: The pool of the peer, on upstream's database.
    """

    def __init__(
        self,
        savers: dict[str, Saver],
        telemetry: Telemetry,
        registry: CollectorRegistry,
        pool: AsyncConnectionPool[Any],
    ) -> None:
        self.savers = savers
        self.telemetry = telemetry
        self.pool = pool
        self._registry = registry

    def __getitem__(self, name: str) -> Saver:
        return self.savers[name]

    def reads(self) -> dict[str, int]:
        """How many of Glasspoint's reads were hits, misses, …"""
        return {
            sample.labels["result"]: int(sample.value)
            for metric in self._registry.collect()
            for sample in metric.samples
            if sample.name == "glasspoint_l1_reads_total"
        }


@asynccontextmanager
async def peers(
    databases: Databases,
    redis_url: str,
    *,
    key_prefix: str,
    provider: TracerProvider | None,
    names: Sequence[str] = ALL,
    options: dict[str, Any] | None = None,
) -> AsyncIterator[Peers]:
    """Open savers, and make the tables.

    Args:
        databases: Where they store.
        key_prefix: What all their keys in Redis begin with.
        provider: Where Glasspoint's spans go.
        names: Which of `ALL`.
        options: More keyword arguments for Glasspoint.
    """
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry, tracer_provider=provider)
    async with AsyncExitStack() as opened:
        ours = await CachedPostgresSaver.create(
            databases.ours,
            redis_url,
            pool_min_size=POOL_SIZE,
            pool_max_size=POOL_SIZE,
            key_prefix=f"{key_prefix}-l1",
            telemetry=telemetry,
            # A machine that is busy for a moment is no outage.
            **{"l1_timeout_seconds": 5.0, "write_deadline_seconds": 30.0, **(options or {})},
        )
        opened.push_async_callback(ours.close)
        kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            databases.upstream, min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs=kwargs, open=False
        )
        await opened.enter_async_context(pool)
        await pool.wait()
        on_pool = AsyncPostgresSaver(pool)
        await on_pool.setup()
        savers: dict[str, Saver] = {OURS: ours, POOL: on_pool}
        if ONE in names:
            on_one = AsyncPostgresSaver.from_conn_string(databases.upstream)
            savers[ONE] = await opened.enter_async_context(on_one)
        if REDIS in names:
            # By default redis-py's pool has 100 connections, and a call that finds none fails.
            many = Redis.from_url(redis_url, max_connections=1000)
            opened.push_async_callback(many.aclose)
            redis_saver = await RedisSaver.create(
                many,
                key_prefix=f"{key_prefix}-history",
                timeout_seconds=30.0,
                telemetry=create_telemetry(
                    saver_name="redis", registry=CollectorRegistry(), tracer_provider=provider
                ),
            )
            opened.push_async_callback(redis_saver.close)
            savers[REDIS] = redis_saver
        if MEMORY in names:
            savers[MEMORY] = InMemorySaver()
        yield Peers(
            {name: savers[name] for name in ALL if name in savers and name in names},
            telemetry,
            registry,
            pool,
        )
