"""The servers of a chain run, and what can be done to them. Both keep what they acknowledge."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, cast

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from chaos.chain_faults import ChainFault
from chaos.chain_history import Stored
from copied_postgres import CopiedPostgres
from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedRedis
from glasspoint.model.lineage import SET_ASIDE
from redis_nodes import OPTIONS, Nodes, start_node, wait

__all__ = ["ChainServers", "run_chain_servers"]

_PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always")

_REFUSES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
"""
_FULL = "CREATE TRIGGER full_disk BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse()"
_FREE = "DROP TRIGGER IF EXISTS full_disk ON checkpoints"


class MastersOfACluster:
    """A Redis Cluster of three masters without replicas, of which one is stopped or killed at a time."""

    def __init__(self) -> None:
        self._servers: list[EmbeddedRedis] = []
        self._dice = random.Random("masters")

    @property
    def url(self) -> str:
        """The URL of the cluster."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self._servers)

    @property
    def running(self) -> bool:
        """Whether all masters run."""
        return all(each.running for each in self._servers)

    def start(self, *options: str) -> None:
        """Start the masters that do not run; the first time, make one cluster of them."""
        options = (*OPTIONS, *options)
        if not self._servers:
            self._servers += [start_node(*options) for _ in range(3)]
            nodes = Nodes(self._servers)
            nodes.give_slots(masters=3)
        for each in self._servers:
            if not each.running:
                each.start(*options)
        nodes = Nodes(self._servers)
        wait(lambda: all(nodes.serves_all_slots(each) for each in self._servers))

    def stop(self) -> None:
        """Stop one of the masters."""
        self._dice.choice(self._servers).stop()

    def kill(self) -> None:
        """Kill one of the masters."""
        self._dice.choice(self._servers).kill()

    def flush(self) -> None:
        """Remove everything."""
        for each in self._servers:
            each.flush()

    def close(self) -> None:
        """End all of them."""
        for each in self._servers:
            each.close()


class ChainServers:
    """A PostgreSQL and a Redis, of one server or a cluster.

    Attributes:
        away: When PostgreSQL was certainly not there: pairs of seconds.
        full: When PostgreSQL may have answered that the disk is full: pairs of seconds.
    """

    def __init__(self, *, in_cluster: bool = False) -> None:
        self.postgres = CopiedPostgres(durable=True)
        self.redis: EmbeddedRedis | MastersOfACluster = MastersOfACluster() if in_cluster else EmbeddedRedis()
        self.url = ""
        self.away: list[tuple[float, float]] = []
        self.full: list[tuple[float, float]] = []
        self._away_since = 0.0
        self._full_since = 0.0

    async def start(self) -> None:
        """Start both, and make the tables."""
        await asyncio.gather(
            asyncio.to_thread(self.postgres.start), asyncio.to_thread(self.redis.start, *_PERSISTENT)
        )
        self.url = await asyncio.to_thread(self.postgres.create_database, "chain")
        saver = await CachedPostgresSaver.create(self.url, self.redis.url)
        await saver.close()
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(_REFUSES)

    async def suffer(self, fault: ChainFault) -> bool:
        """Make an event happen to a server.

        Returns:
            Whether it did: a server that is away cannot be stopped.
        """
        match fault.kind:
            case "postgres stopped" | "postgres killed" if self.postgres.running:
                if fault.kind == "postgres killed":
                    os.kill(self.postgres.pid, signal.SIGQUIT)
                await asyncio.to_thread(self.postgres.stop)
                self._away_since = monotonic()
            case "postgres started" if not self.postgres.running:
                self.away.append((self._away_since, monotonic()))
                await asyncio.to_thread(self.postgres.start)
            case "redis stopped" if self.redis.running:
                await asyncio.to_thread(self.redis.stop)
            case "redis killed" if self.redis.running:
                await asyncio.to_thread(self.redis.kill)
            case "redis started" if not self.redis.running:
                await asyncio.to_thread(self.redis.start, *_PERSISTENT)
            case "disk full" if self.postgres.running and not self._full_since:
                self._full_since = monotonic()
                await self._execute(_FULL)
            case "disk free" if self._full_since:
                if not self.postgres.running:
                    await self.suffer(ChainFault("postgres started", 0.0))
                await self._execute(_FREE)
                self.full.append((self._full_since, monotonic()))
                self._full_since = 0.0
            case _:
                return False
        return True

    async def heal(self) -> None:
        """Start what is away, and make room."""
        for kind in ("postgres started", "redis started", "disk free"):
            await self.suffer(ChainFault(kind, 0.0))

    async def stored(self) -> list[Stored]:
        """Return all checkpoints of the graph that PostgreSQL holds, as LangGraph's own saver reads them."""
        found: list[Stored] = []
        async with AsyncPostgresSaver.from_conn_string(self.url) as upstream:
            connection: Any = upstream.conn  # no pool
            cursor = await connection.execute("SELECT DISTINCT thread_id FROM checkpoints ORDER BY 1")
            for row in await cursor.fetchall():
                where: Any = {"configurable": {"thread_id": row["thread_id"], "checkpoint_ns": ""}}
                async for each in upstream.alist(where):
                    metadata = cast("dict[str, Any]", each.metadata)
                    parent = each.parent_config["configurable"] if each.parent_config else {}
                    found.append(
                        Stored(
                            row["thread_id"],
                            each.checkpoint["id"],
                            parent.get("checkpoint_id", ""),
                            metadata.get("source", ""),
                            list(each.checkpoint["channel_values"].get("words", ())),
                            metadata.get(SET_ASIDE, {}).get("thread_id", ""),
                        )
                    )
        return found

    async def _execute(self, statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute("SET lock_timeout = '10s'")
            await connection.execute(statement)


@asynccontextmanager
async def run_chain_servers(*, in_cluster: bool = False) -> AsyncIterator[ChainServers]:
    """Start both servers; at the end they are gone."""
    servers = ChainServers(in_cluster=in_cluster)
    try:
        await servers.start()
        yield servers
    finally:
        await asyncio.to_thread(servers.redis.close)
        await asyncio.to_thread(servers.postgres.close)
