"""The servers of a run, and what can be done to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from chaos.faults import Fault
from chaos.history import Truth, digest, digest_of_values
from glasspoint import CachedPostgresSaver
from glasspoint.demo.embedded import EmbeddedPostgres, EmbeddedRedis

__all__ = ["Servers", "run_servers"]

_ROOM_BYTES = 150_000
"""How much more than an empty Redis needs it may use while it evicts: a few conversations."""


_SQUEEZES = 40
_SQUEEZE_BYTES = 10_000


class FaultFailedError(Exception):
    """What was to go wrong did not."""


@dataclass
class Servers:
    """A PostgreSQL that keeps what it acknowledges, and a Redis."""

    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    postgres_url: str

    @property
    def postgres_socket(self) -> Path:
        """Where PostgreSQL listens."""
        return self.postgres.directory / ".s.PGSQL.5432"

    async def save_old_snapshot(self) -> None:
        """Keep a snapshot of Redis for a later restart, if there is none yet."""
        if not self._old_snapshot.exists():
            await asyncio.to_thread(self.redis.save_snapshot)
            await asyncio.to_thread(shutil.copy, self._snapshot, self._old_snapshot)

    async def suffer(self, fault: Fault) -> None:
        """Make one fault happen to a server, from its beginning to its end.

        Raises:
            FaultFailedError: It did not come about.
        """
        match fault.kind:
            case "redis killed, old snapshot":
                await self._restart_redis(fault)
            case "redis flushed":
                await asyncio.to_thread(self.redis.flush)
            case "redis evicts":
                await self._evict(fault)
            case "redis frozen":
                self.redis.freeze()
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    self.redis.thaw()
            case "postgres backends terminated":
                await self._terminate_backends()
            case "postgres restarted":
                await asyncio.to_thread(self.postgres.restart)
            case "postgres crashed":
                os.kill(self.postgres.pid, signal.SIGQUIT)  # "immediate shutdown": the next start recovers
                await asyncio.sleep(fault.down_seconds)
                await asyncio.to_thread(self.postgres.restart)
            case _:
                raise FaultFailedError(f"nobody knows how to do it: {fault}")

    async def truth(self) -> Truth:
        """Everything that PostgreSQL has, as LangGraph's own saver reads it; the pending writes of
        checkpoints that were never stored as well, which it does not list."""
        checkpoints, pending = {}, {}
        async with AsyncPostgresSaver.from_conn_string(self.postgres_url) as upstream:
            threads = await upstream.conn.execute("SELECT DISTINCT thread_id FROM checkpoints")
            for row in await threads.fetchall():
                # A thread at a time: all of a long run at once would not fit into memory.
                async for found in upstream.alist({"configurable": {"thread_id": row["thread_id"]}}):
                    where = found.config["configurable"]
                    key = where["thread_id"], where["checkpoint_ns"], where["checkpoint_id"]
                    checkpoints[key] = digest_of_values(found.checkpoint["channel_values"])
            cursor = await upstream.conn.execute(
                "SELECT thread_id, checkpoint_ns, checkpoint_id, task_id, channel, type, blob "
                "FROM checkpoint_writes"
            )
            async for row in cursor:
                *name, type_, blob = row.values()
                pending[tuple(name)] = digest(upstream.serde.loads_typed((type_, blob)))
        return Truth(checkpoints, pending)

    @property
    def _snapshot(self) -> Path:
        return self.redis.directory / "dump.rdb"

    @property
    def _old_snapshot(self) -> Path:
        return self.redis.directory / "old.rdb"

    async def _restart_redis(self, fault: Fault) -> None:
        """From the run's first snapshot, which knows conversations as they were long ago, or from one that
        was saved as the fault began. Which, is drawn: it is what `worker` means for this kind of fault."""
        recent = fault.worker is not None
        if recent:
            await asyncio.to_thread(self.redis.save_snapshot)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.redis.kill)
        if not recent:
            await asyncio.to_thread(shutil.copy, self._old_snapshot, self._snapshot)
        await asyncio.sleep(fault.down_seconds)
        await asyncio.to_thread(self.redis.start)

    async def _evict(self, fault: Fault) -> None:
        async with Redis.from_url(self.redis.url) as client:
            evicted_before = (await client.info("stats"))["evicted_keys"]

            async def has_evicted() -> bool:
                return bool((await client.info("stats"))["evicted_keys"] > evicted_before)

            await client.flushall()
            used = (await client.info("memory"))["used_memory"]
            await client.config_set("maxmemory-policy", "allkeys-lru")
            await client.config_set("maxmemory", used + _ROOM_BYTES)
            try:
                await asyncio.sleep(fault.seconds)
                for _ in range(_SQUEEZES):  # a slow machine, or a short fault: so little was stored
                    if await has_evicted():
                        break
                    used = (await client.info("memory"))["used_memory"]
                    await client.config_set("maxmemory", used - _SQUEEZE_BYTES)
                    await asyncio.sleep(0.05)
            finally:
                await client.config_set("maxmemory", 0)
            if not await has_evicted():
                raise FaultFailedError("nothing was evicted: there was room for everything")

    async def _terminate_backends(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.postgres.url, autocommit=True) as connection:
            cursor = await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'chaos'"
            )
            if not await cursor.fetchall():
                raise FaultFailedError("nobody was connected")


@asynccontextmanager
async def run_servers() -> AsyncIterator[Servers]:
    """Start both, and make the tables; at the end they are gone."""
    # Durable: a crash of PostgreSQL must not lose what it acknowledged, that would be its own doing.
    postgres, redis = EmbeddedPostgres(durable=True), EmbeddedRedis()
    try:
        await asyncio.gather(asyncio.to_thread(postgres.start), asyncio.to_thread(redis.start))
        url = await asyncio.to_thread(postgres.create_database, "chaos")
        saver = await CachedPostgresSaver.create(url, redis.url)
        await saver.close()
        yield Servers(postgres, redis, url)
    finally:
        await asyncio.to_thread(redis.close)
        await asyncio.to_thread(postgres.close)
