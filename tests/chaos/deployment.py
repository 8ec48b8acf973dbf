"""The Redis of a run, and what can be done to it: here, one server.

`cluster_deployment` has a Redis Cluster, `sentinel_deployment` a master with replicas and sentinels.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import redis
from redis.asyncio import Redis

from chaos.faults import KINDS, Fault, FaultFailedError
from chaos.windows import Span
from glasspoint.embedded import EmbeddedRedis
from redis_nodes import slot_of

__all__ = ["Away", "Deployment", "OneServer", "hot_slots"]

PortOf = Callable[[int], int]
"""The port of a server -> the port of the line to it."""

_ROOM_BYTES = 150_000
"""How much more than an empty Redis needs it may use while it evicts: a few conversations."""

_SQUEEZES = 40
_SQUEEZE_BYTES = 10_000

_LINK_SECONDS = 30.0


class Away(NamedTuple):
    """A time in which a part of a Redis Cluster had no master.

    Attributes:
        start, end: Moments of CLOCK_MONOTONIC.
        slots: The slots of this part.
    """

    start: float
    end: float
    slots: Collection[int]


class Deployment:
    """What all deployments have in common.

    Attributes:
        name: What `--redis` calls it.
        kinds: The faults that can happen to a run with it.
        nodes: The servers that hold data. Each worker has a line to each.
        sentinels: The sentinels. Each worker has a line to each.
        away: When a part of it had no master.
        shared: When two servers may have taken themselves for the one Redis of the cache, both of which
            processes could reach.
    """

    name = ""
    kinds: Sequence[str] = ()

    def __init__(self) -> None:
        self.nodes: list[EmbeddedRedis] = []
        self.sentinels: list[EmbeddedRedis] = []
        self.away: list[Away] = []
        self.shared: list[Span] = []

    def start(self) -> None:
        """Start all servers."""
        raise NotImplementedError

    def close(self) -> None:
        """End all servers, and remove their files."""
        for server in (*self.sentinels, *self.nodes):
            server.close()

    def url(self, port_of: PortOf = lambda port: port) -> str:
        """Return the URL, perhaps through lines."""
        raise NotImplementedError

    def flush(self) -> None:
        """Remove all keys."""
        raise NotImplementedError

    def master(self, fault: Fault) -> EmbeddedRedis:
        """Return the master whose turn it is. It is drawn from the fault."""
        raise NotImplementedError

    async def suffer(self, fault: Fault) -> None:
        """Make one fault happen, from its beginning to its end.

        Raises:
            FaultFailedError: It did not come about.
        """
        await asyncio.to_thread(self.suffer_in_thread, fault)

    def suffer_in_thread(self, fault: Fault) -> None:
        """Make one fault happen, without an event loop."""
        raise FaultFailedError(f"nobody knows how to do it: {fault}")

    def save_old_snapshots(self) -> None:
        """Keep a snapshot of each server for a later restart."""
        for node in self.nodes:
            node.save_snapshot()
            shutil.copy(node.directory / "dump.rdb", _old(node))

    @staticmethod
    def put_old_snapshot_back(node: EmbeddedRedis) -> None:
        """Let the next start of a server load what `save_old_snapshots` has saved."""
        shutil.copy(_old(node), node.directory / "dump.rdb")

    @contextmanager
    def freezing(self, node: EmbeddedRedis) -> Iterator[None]:
        """Stop a server's process within the block, so that it goes on later as if nothing had happened."""
        node.freeze()
        try:
            yield
        finally:
            node.thaw()

    @contextmanager
    def falling_behind(self, replicas: Sequence[EmbeddedRedis], fault: Fault) -> Iterator[None]:
        """Cut replicas off their master for a while, so that one of them is promoted without its last
        writes. Within the block they are still cut off."""
        try:
            for replica in replicas:
                with replica._client() as client:
                    client.config_set("masterauth", "not the password, so that it cannot come back")
                    client.execute_command("CLIENT", "KILL", "TYPE", "master")
            sleep(fault.seconds)
            yield
        finally:
            for replica in replicas:
                if replica.running:
                    with replica._client() as client:
                        client.config_set("masterauth", "")

    @contextmanager
    def noting_away(self, slots: Collection[int]) -> Iterator[None]:
        """Remember that slots have no master within the block."""
        started = monotonic()
        try:
            yield
        finally:
            self.away.append(Away(started, monotonic(), slots))


class OneServer(Deployment):
    """One server."""

    name = "single"
    kinds = KINDS

    def __init__(self) -> None:
        super().__init__()
        self._server = EmbeddedRedis()
        self.nodes = [self._server]

    def start(self) -> None:
        self._server.start()

    def url(self, port_of: PortOf = lambda port: port) -> str:
        return f"redis://127.0.0.1:{port_of(self._server.port)}/0"

    def flush(self) -> None:
        self._server.flush()

    def master(self, fault: Fault) -> EmbeddedRedis:
        return self._server

    async def suffer(self, fault: Fault) -> None:
        match fault.kind:
            case "redis killed, old snapshot":
                await self._restart(fault)
            case "redis flushed":
                await asyncio.to_thread(self.flush)
            case "redis evicts":
                await self._evict(fault)
            case "redis frozen":
                with self.freezing(self._server):
                    await asyncio.sleep(fault.seconds)
            case _:
                await super().suffer(fault)

    async def _restart(self, fault: Fault) -> None:
        """From the run's first snapshot, which knows conversations as they were long ago, or from one that
        was saved as the fault began. Which, is drawn: it is what `worker` means for this kind of fault."""
        recent = fault.worker is not None
        if recent:
            await asyncio.to_thread(self._server.save_snapshot)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self._server.kill)
        if not recent:
            await asyncio.to_thread(self.put_old_snapshot_back, self._server)
        await asyncio.sleep(fault.down_seconds)
        await asyncio.to_thread(self._server.start)

    async def _evict(self, fault: Fault) -> None:
        async with Redis.from_url(self.url()) as client:
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


def hot_slots(client: redis.Redis) -> list[int]:
    """Return the slots of a node's keys."""
    tags = (key.partition(b"{")[2].partition(b"}")[0] for key in client.scan_iter("*{*}*", count=1000))
    return sorted({slot_of(tag.decode()) for tag in tags})


def _old(node: EmbeddedRedis) -> Path:
    return node.directory / "old.rdb"
