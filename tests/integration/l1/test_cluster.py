"""A Redis Cluster as the cache: what is read stays right, and a lost shard costs only its share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.l1.cluster import ClusterCache
from redis_nodes import Nodes, slot_of
from states import counts, open_saver
from steps import Thread, until

SOON = 0.05
THREADS = 12


class Watched:
    """A saver on a cluster, and what it counts."""

    def __init__(self, saver: CachedPostgresSaver, registry: CollectorRegistry) -> None:
        self.saver = saver
        self.registry = registry
        cluster = saver._parts.cluster
        assert cluster is not None
        self.cluster: ClusterCache = cluster

    @property
    def reads(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_l1_reads_total", "result")

    async def hits(self, thread: Thread) -> bool:
        """Read a thread, which must be right; whether Redis answered."""
        before = self.reads.get("hit", 0)
        assert await thread.turn(self.saver) == thread.number
        return self.reads.get("hit", 0) == before + 1


@asynccontextmanager
async def watched(database: str, nodes: Nodes, **options: Any) -> AsyncIterator[Watched]:
    registry = CollectorRegistry()
    options = {"sweep_interval_seconds": SOON, "l1_timeout_seconds": 1.0, **options}
    client = nodes.client()
    async with open_saver(
        database,
        client,  # type: ignore[arg-type]
        telemetry=create_telemetry(registry=registry),
        **options,
    ) as saver:
        yield Watched(saver, registry)
    await client.aclose()


async def warm(one: Watched, *threads: Thread) -> None:
    for thread in threads:
        await until(lambda thread=thread: one.hits(thread))  # type: ignore[misc]


async def test_entries_of_all_masters_are_hits(database: str, nodes: Nodes) -> None:
    threads = [Thread(f"t{number}") for number in range(THREADS)]
    assert len({nodes.master_of(slot_of(thread.thread_id)).port for thread in threads}) == 3
    async with watched(database, nodes) as one, watched(database, nodes) as two:
        for thread in threads:
            await thread.put(one.saver)
        await warm(one, *threads)
        for thread in threads:
            assert await two.hits(thread)
            await thread.put(two.saver)
            assert await thread.turn(one.saver) == thread.number
        assert one.saver.status.identity == two.saver.status.identity
    assert all(key.count(b"{") == 1 for key in nodes.keys("glasspoint:*"))


async def test_a_single_entry_names_the_reign_of_its_master(database: str, nodes: Nodes) -> None:
    thread = Thread("a")
    async with watched(database, nodes) as one:
        await thread.put(one.saver)
        await warm(one, thread)
        [key] = nodes.keys("glasspoint:*{a}*")
        master = nodes.master_of(slot_of("a"))
        reign = nodes.ask(master, "HGET", key.decode(), "reign").decode()
        with nodes.admin(master) as admin:
            run_id, replid = admin.info("server")["run_id"], admin.info("replication")["master_replid"]
        assert reign.startswith(f"{run_id}.{replid}.")
        # An entry that names another reign is not believed, but deleted.
        nodes.ask(master, "HSET", key.decode(), "reign", reign[:-1] + "x")
        assert not await one.hits(thread)
        assert await until(lambda: one.hits(thread))
        assert nodes.ask(master, "HGET", key.decode(), "reign").decode() == reign
