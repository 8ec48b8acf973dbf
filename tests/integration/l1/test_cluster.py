"""A Redis Cluster as the cache: what is read stays right, and a lost shard costs only its share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import L1Error
from glasspoint.l1.cluster import CLUSTER, ClusterCache
from glasspoint.model.scope import Scope
from glasspoint.redis.faults import NeverTheCacheError
from glasspoint.redis.permissions import CLUSTER_COMMANDS, COMMANDS
from glasspoint.redis.topology import Address, Topology, View
from places import DOCS
from recorder import Recorder
from redis_nodes import OPTIONS, Nodes, slot_of
from states import counts, open_saver, value_of
from steps import Proxy, Thread, nowhere, put_all, readyz, settled, tcp, until

IDENTITIES = "glasspoint_l1_identity_changes_total"
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

    async def turn(self, thread: Thread) -> int | None:
        """Read a thread: the number of its newest checkpoint."""
        return await thread.turn(self.saver)

    @property
    def reads(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_l1_reads_total", "result")

    async def hits(self, thread: Thread) -> bool:
        """Read a thread, which must be right; whether Redis answered."""
        before = self.reads.get("hit", 0)
        assert await thread.turn(self.saver) == thread.number
        return self.reads.get("hit", 0) == before + 1


@asynccontextmanager
async def watched(
    database: str, nodes: Nodes, *, client: RedisCluster | None = None, **options: Any
) -> AsyncIterator[Watched]:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    options = {
        "sweep_interval_seconds": SOON,
        "l1_timeout_seconds": 1.0,
        "telemetry": telemetry,
        **options,
    }
    client = client or nodes.client()
    async with open_saver(
        database,
        client,  # type: ignore[arg-type]
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
        admin = nodes.admin(master)
        run_id, replid = admin.info("server")["run_id"], admin.info("replication")["master_replid"]
        assert reign.startswith(f"{run_id}.{replid}.")
        # An entry that names another reign is not believed, but deleted.
        nodes.ask(master, "HSET", key.decode(), "reign", reign[:-1] + "x")
        assert not await one.hits(thread)
        assert await until(lambda: one.hits(thread))
        assert nodes.ask(master, "HGET", key.decode(), "reign").decode() == reign


async def test_entries_are_audited_refused_and_taken_back_as_on_one_server(
    database: str, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, scope = Thread("a"), Scope("a", "")
    async with watched(database, nodes, audit_ratio=1.0) as one:
        await thread.put(one.saver)
        await warm(one, thread)
        await until(lambda: counts(one.registry, "glasspoint_l1_audits_total", "verdict")["consistent"])

        # An intent is taken back: nothing has changed, and the entry is still there.
        intent = await one.cluster.begin(scope)
        assert not await one.hits(thread)
        assert await one.cluster.abort(intent)
        assert await until(lambda: one.hits(thread))

        # An image that the serializer cannot read is removed, and PostgreSQL answers.
        class Unreadable(type(one.saver.serde)):  # type: ignore[misc]
            def loads_typed(self, data: Any) -> Any:
                monkeypatch.undo()
                raise ValueError("encrypted with another key")

        monkeypatch.setattr(one.saver, "serde", Unreadable())
        assert not await one.hits(thread)
        assert one.reads["incomplete"] == 1
        assert await until(lambda: one.hits(thread))


def threads_of(nodes: Nodes, *, each: int = 2) -> dict[int, list[Thread]]:
    """Some threads of each master, by its port."""
    found: dict[int, list[Thread]] = {server.port: [] for server in nodes.masters()}
    number = 0
    while any(len(threads) < each for threads in found.values()):
        thread = Thread(f"t{number}")
        of_master = found[nodes.master_of(slot_of(thread.thread_id)).port]
        if len(of_master) < each:
            of_master.append(thread)
        number += 1
    return found


async def journalled(database: str) -> int:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        row = await (await conn.execute("SELECT count(*) FROM glasspoint_l1_journal")).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_shard_without_a_master_costs_only_its_share(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    of_master = threads_of(nodes)
    lost_port, *other_ports = of_master
    lost, others = of_master[lost_port], [thread for port in other_ports for thread in of_master[port]]
    async with (
        watched(database, nodes, l1_timeout_seconds=0.3) as one,
        watched(database, nodes, l1_timeout_seconds=0.3) as two,
    ):
        for thread in (*lost, *others):
            await thread.put(one.saver)
        await warm(one, *lost, *others)
        [master] = [server for server in nodes.servers if server.port == lost_port]
        for server in (*nodes.replicas_of(master), master):
            server.kill()
        for _ in range(5):
            for thread in lost:
                await thread.put(one.saver)
                assert not await one.hits(thread)
        name = f"127.0.0.1:{lost_port}"
        await until(lambda: one.cluster.states()[name] != "closed")
        # The others are hits, and stay so: also after writes, and for the other process.
        for _ in range(5):
            for thread in others:
                await thread.put(one.saver)
                await warm(one, thread)
                await warm(two, thread)
        for thread in others:
            assert await one.hits(thread)
        status, about = await readyz(one.registry)
        assert (status, about["l1"]) == (200, "partial")
        assert about["shards"][name] != "closed"
        assert {about["shards"][f"127.0.0.1:{port}"] for port in other_ports} == {"closed"}
        assert await journalled(database), "the writes that Redis did not receive"
        assert any(name in line and "is left alone" in line for line in caplog.messages)
        # It returns, and with it the entries from before: a write that passed them by is never hidden.
        nodes.heal()
        for thread in lost:
            await until(lambda thread=thread: one.hits(thread))  # type: ignore[misc]
            await warm(two, thread)

        async def is_swept() -> bool:
            return not await journalled(database)

        await until(is_swept)
        await until(lambda: not len(one.cluster.quarantine))
        assert one.saver.status.journal_pending == 0


async def test_a_failover_of_a_shard_loses_nothing_and_costs_only_its_entries(
    database: str, nodes: Nodes
) -> None:
    of_master = threads_of(nodes)
    port, *other_ports = of_master
    lost, others = of_master[port], [thread for each in other_ports for thread in of_master[each]]
    async with (
        watched(database, nodes, l1_timeout_seconds=0.3) as one,
        watched(database, nodes, l1_timeout_seconds=0.3) as two,
    ):
        for thread in (*lost, *others):
            await thread.put(one.saver)
        await warm(one, *lost, *others)
        generation = one.saver.status.identity
        [master] = [server for server in nodes.servers if server.port == port]
        [replica] = nodes.replicas_of(master)
        master.kill()
        hits = 0

        async def turn(thread: Thread) -> None:
            """Write, and read it in both processes. The writer's own read is never late."""
            nonlocal hits
            await thread.put(one.saver)
            hits += await one.hits(thread)
            await until(lambda: two_sees(thread))

        async def two_sees(thread: Thread) -> bool:
            # Late by the sweep interval at most; `until` is patient with a busy machine.
            return await thread.turn(two.saver) == thread.number

        while replica not in nodes.masters():
            await asyncio.gather(*map(turn, (*lost, *others)))
        assert hits, "the others' entries are hits meanwhile"
        await warm(one, *lost, *others)
        await warm(two, *lost, *others)
        assert f"127.0.0.1:{replica.port}" in one.cluster.states()
        assert one.saver.status.identity == generation, "the other masters' entries stay"
        assert value_of(one.registry, "glasspoint_l1_breaker_open", {"saver": "default"}) == 0
        master.start(*OPTIONS)
        nodes.heal()
        await asyncio.gather(*map(turn, (*lost, *others)))


async def test_what_a_promoted_replica_has_from_before_is_not_believed(database: str, nodes: Nodes) -> None:
    thread = Thread("a")
    async with watched(database, nodes) as writer:  # it is closed: the journal has no row of what it wrote
        await thread.put(writer.saver)
    async with watched(database, nodes) as one:
        await warm(one, thread)
        master = nodes.master_of(slot_of("a"))
        [replica] = nodes.replicas_of(master)
        await until(lambda: nodes.ask(replica, "DBSIZE"))
        nodes.ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER")
        await until(lambda: nodes.master_of(slot_of("a"), asked=master) is replica)
        await until(lambda: f"127.0.0.1:{replica.port}" in one.cluster.states())
        assert not await one.hits(thread)
        assert await until(lambda: one.hits(thread))


async def test_a_slot_that_moves_and_comes_back_under_load(database: str, nodes: Nodes) -> None:
    thread = Thread("a")
    slot = slot_of("a")
    source = nodes.master_of(slot)
    target = next(server for server in nodes.masters() if server is not source)
    async with watched(database, nodes) as one, watched(database, nodes) as two:
        await thread.put(one.saver)
        await warm(one, thread)
        done = asyncio.Event()

        async def work() -> int:
            rounds = 0
            while not done.is_set():
                await thread.put(one.saver)
                assert await thread.turn(one.saver) == thread.number
                await until(two_sees)
                rounds += 1
            return rounds

        async def two_sees() -> bool:
            return await thread.turn(two.saver) == thread.number

        working = asyncio.create_task(work())
        for to in (target, source) * 2:
            await asyncio.to_thread(nodes.move, slot, to)
            before = thread.number
            await until(lambda before=before: thread.number > before or working.done())  # type: ignore[misc]
        done.set()
        assert await working
        await warm(one, thread)
        await warm(two, thread)


async def test_an_entry_whose_slot_was_away_is_not_believed_when_it_is_back(
    database: str, nodes: Nodes
) -> None:
    """Untouched meanwhile, it would be right. But the master it was at may have lost a change of it."""
    thread = Thread("a")
    slot = slot_of("a")
    source = nodes.master_of(slot)
    target = next(server for server in nodes.masters() if server is not source)
    async with watched(database, nodes) as one:
        await thread.put(one.saver)
        await warm(one, thread)
        reigns = {
            server.port: one.cluster._nodes["127.0.0.1", server.port].server for server in nodes.masters()
        }
        nodes.move(slot, target)
        nodes.move(slot, source)
        await until(lambda: one.cluster._nodes["127.0.0.1", source.port].server != reigns[source.port])
        assert not await one.hits(thread)
        assert await until(lambda: one.hits(thread))


def key_of(nodes: Nodes, thread: Thread) -> str:
    """The key of the thread's entry; there is one only."""
    [key] = nodes.keys(f"glasspoint:*{{{thread.thread_id}}}*")
    return key.decode()


def let_stay(nodes: Nodes, slot: int, key: str, target: EmbeddedRedis) -> EmbeddedRedis:
    """Begin to move a slot, let a key leave its owner, and call the move off. Return the owner."""
    source = nodes.begin_move(slot, target)
    nodes.ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
    nodes.ask(source, "CLUSTER", "SETSLOT", slot, "STABLE")
    return source


def bring_back(nodes: Nodes, slot: int, key: str, source: EmbeddedRedis, target: EmbeddedRedis) -> None:
    """Let the key come back, in place of what stands there now."""
    nodes.ask(target, "MIGRATE", "127.0.0.1", source.port, key, 0, 5000, "REPLACE")
    nodes.ask(target, "CLUSTER", "SETSLOT", slot, "STABLE")


def era_of(one: Watched) -> str | None:
    """The era that a process uses; `None` while it uses no keys."""
    identity = one.saver._parts.identity.identity
    return None if identity is None else identity.era


async def test_a_key_that_comes_back_after_its_move_was_called_off_is_not_believed(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in place of a newer entry. Both processes know of it before the key is back."""
    thread, other, slot = Thread("a"), Thread("b"), slot_of("a")
    target = next(server for server in nodes.masters() if server is not nodes.master_of(slot))
    async with watched(database, nodes) as one, watched(database, nodes) as two:
        await put_all(one.saver, (thread, other))
        await warm(one, thread, other)
        assert await two.hits(thread)
        assert era_of(one) == era_of(two) == ""
        key = key_of(nodes, thread)
        source = let_stay(nodes, slot, key, target)
        await until(lambda: era_of(one) and era_of(one) == era_of(two))
        era = era_of(one)
        await thread.put(one.saver)
        bring_back(nodes, slot, key, source, target)
        for _ in range(3):
            for each in one, two:
                assert await each.turn(thread) == thread.number
            await thread.put(two.saver)
        # To come back, the key has left the other master, which did not own its slot: one more era.
        await until(lambda: era_of(one) not in (era, None) and era_of(one) == era_of(two))

        async def names_the_era() -> bool:
            await warm(two, thread, other)
            reign: str = nodes.ask(source, "HGET", key, "reign").decode()
            return reign.split(".")[3:] == [era_of(two)]

        await until(names_the_era)
        for each in one, two:
            assert set(counts(each.registry, IDENTITIES, "reason")) == {"called_off"}
        name = f"127.0.0.1:{source.port}"
        assert [line for line in caplog.messages if f"At {name}, " in line]


async def test_a_process_that_knows_no_new_era_yet_misses_no_write(database: str, nodes: Nodes) -> None:
    """An era does not stand in the keys: otherwise this process would go on reading the old ones."""
    thread, slot = Thread("a"), slot_of("b")
    target = next(server for server in nodes.masters() if server is not nodes.master_of(slot))
    async with (
        watched(database, nodes) as one,
        watched(database, nodes, sweep_interval_seconds=600.0) as late,
    ):
        moving = Thread("b")
        await put_all(one.saver, (thread, moving))
        await warm(one, thread, moving)
        assert await late.hits(thread)
        key = key_of(nodes, moving)
        bring_back(nodes, slot, key, let_stay(nodes, slot, key, target), target)
        await until(lambda: era_of(one))
        assert era_of(late) == ""
        for _ in range(3):
            await thread.put(one.saver)
            assert await late.turn(thread) == thread.number
            await thread.put(late.saver)
            assert await one.turn(thread) == thread.number


async def test_a_move_that_was_called_off_between_two_looks_is_noticed_by_the_next(
    database: str, nodes: Nodes
) -> None:
    thread, slot = Thread("a"), slot_of("a")
    target = next(server for server in nodes.masters() if server is not nodes.master_of(slot))
    async with watched(database, nodes, sweep_interval_seconds=600.0) as one:
        sweeper = one.saver._parts.sweeper
        await sweeper.round()
        await thread.put(one.saver)
        await warm(one, thread)
        key = key_of(nodes, thread)
        source = let_stay(nodes, slot, key, target)
        await thread.put(one.saver)
        await settled(one.saver, thread)
        bring_back(nodes, slot, key, source, target)
        await sweeper.round()
        assert await one.turn(thread) == thread.number
        await warm(one, thread)


async def test_a_move_that_is_finished_leaves_the_cache_warm(database: str, nodes: Nodes) -> None:
    """However long it takes, and in how many looks."""
    moved, near, slot = Thread("a"), Thread("b"), slot_of("a")
    target = next(server for server in nodes.masters() if server is not nodes.master_of(slot))
    async with watched(database, nodes, sweep_interval_seconds=600.0) as one:
        sweeper = one.saver._parts.sweeper
        await put_all(one.saver, (moved, near))
        await warm(one, moved, near)
        source = nodes.begin_move(slot, target)
        await sweeper.round()
        nodes.ask(source, "MIGRATE", "127.0.0.1", target.port, key_of(nodes, moved), 0, 5000)
        await sweeper.round()
        nodes.end_move(slot, source, target)
        for _ in range(2):
            await sweeper.round()
        nodes.move(slot, source)
        for _ in range(2):
            await sweeper.round()
        assert era_of(one) == ""
        await warm(one, moved, near)


async def test_a_slot_on_its_way_is_answered_by_postgresql(database: str, nodes: Nodes) -> None:
    """ASK: the key may be on either master. PostgreSQL answers, and no other thread is concerned."""
    thread, other = Thread("a"), Thread("b")
    slot = slot_of("a")
    target = next(server for server in nodes.masters() if server is not nodes.master_of(slot))
    async with watched(database, nodes) as one, watched(database, nodes) as two:
        source = nodes.begin_move(slot, target)
        await other.put(one.saver)
        await warm(one, other)
        for _ in range(5):
            await thread.put(one.saver)
            assert not await one.hits(thread)
            assert not await two.hits(thread)
            assert await one.hits(other)
        assert len(one.cluster.quarantine)
        assert set(one.cluster.states().values()) == {"closed"}
        nodes.end_move(slot, source, target)
        await until(lambda: not len(one.cluster.quarantine))
        await warm(one, thread)
        await warm(two, thread)


async def test_a_master_that_is_full_is_left_alone_until_it_takes_writes(database: str, nodes: Nodes) -> None:
    thread, other = (threads[0] for threads in list(threads_of(nodes).values())[:2])
    master = nodes.master_of(slot_of(thread.thread_id))
    async with watched(database, nodes) as one:
        await thread.put(one.saver)
        await other.put(one.saver)
        await warm(one, thread, other)
        nodes.ask(master, "CONFIG", "SET", "maxmemory", 1)
        try:
            name = f"127.0.0.1:{master.port}"

            async def is_left_alone() -> bool:
                await thread.put(one.saver)
                assert await thread.turn(one.saver) == thread.number
                return one.cluster.states()[name] != "closed"

            await until(is_left_alone)
            with pytest.raises(L1Error):  # a probe does what a write does
                await one.cluster._nodes["127.0.0.1", master.port].probe()
            for _ in range(20):
                await other.put(one.saver)
                await warm(one, other)
                assert not await one.hits(thread)
            assert one.cluster.states()[name] != "closed"
        finally:
            nodes.ask(master, "CONFIG", "SET", "maxmemory", 0)
        await warm(one, thread)


async def test_writes_that_a_replaced_master_took_are_swept_on_its_successor(
    database: str, nodes: Nodes
) -> None:
    """A master that is cut off goes on for a moment. What its successor has warmed up then must go."""
    thread = Thread("a")
    async with watched(database, nodes) as one:
        await thread.put(one.saver)
        await warm(one, thread)
        master = nodes.master_of(slot_of("a"))
        [replica] = nodes.replicas_of(master)
        nodes.ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER")
        await until(lambda: f"127.0.0.1:{replica.port}" in one.cluster.states())
        await until(
            lambda: counts(one.registry, "glasspoint_l1_invalidations_total", "source").get("journal")
        )


async def test_a_cluster_that_was_away_at_the_opening_is_found_later(database: str, nodes: Nodes) -> None:
    thread = Thread("a")
    async with Proxy().to(nowhere) as proxy:
        client = RedisCluster(host="127.0.0.1", port=proxy.port)
        async with watched(database, nodes, client=client) as one:
            await thread.put(one.saver)
            assert not await one.hits(thread)
            assert value_of(one.registry, "glasspoint_l1_breaker_open", {"saver": "default"}) == 1
            status, about = await readyz(one.registry)
            assert (status, about["l1"], about["breaker"] != "closed") == (200, "unavailable", True)
            await proxy.switch(tcp(nodes.servers[0]))
            await until(lambda: one.cluster.states())
            await warm(one, thread)
            await until(
                lambda: not value_of(one.registry, "glasspoint_l1_breaker_open", {"saver": "default"})
            )


async def test_the_view_of_a_node_that_was_cut_off_is_not_used(database: str, nodes: Nodes) -> None:
    """Its configuration epochs are smaller than those that this process knows."""
    async with watched(database, nodes) as one:
        before = set(one.cluster.states())
        view = one.cluster._watched.view
        assert view is not None
        old = replace(view, masters=view.masters[:1], epoch=view.epoch - 1)
        asked: list[Address] = []
        ask = one.cluster._topology._ask

        async def cut_off(address: Address) -> View:
            asked.append(address)
            return old if len(asked) == 1 else await ask(address)

        one.cluster._topology._ask = cut_off  # type: ignore[method-assign]
        await one.cluster.look_again()
        assert len(set(asked[:2])) == 2, "the next node was asked"
        assert set(one.cluster.states()) == before


async def test_two_processes_agree_on_the_name_of_the_cluster(database: str, nodes: Nodes) -> None:
    async with watched(database, nodes) as one:
        server = one.cluster.server
        assert server is not None
        # Another node's id would do as well: the row in PostgreSQL decides.
        assert one.cluster._watched.view is not None
        other = max(one.cluster._watched.view.node_ids)
        assert server.reign != CLUSTER + other
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            await conn.execute("UPDATE glasspoint_caches SET reign = %s", [CLUSTER + other])
        async with watched(database, nodes) as two:
            thread = Thread("a")
            await thread.put(two.saver)
            await warm(two, thread)
            await until(lambda: one.saver.status.identity == two.saver.status.identity)
            await warm(one, thread)
            assert (await read_row(database))[0] == CLUSTER + other


async def test_a_cache_that_moves_to_another_redis_begins_a_new_generation(
    database: str, nodes: Nodes, redis_url: str
) -> None:
    """A Redis that was left and comes back is not believed: writes elsewhere have passed it by."""
    thread = Thread("a")
    async with watched(database, nodes) as one:
        await thread.put(one.saver)
        await warm(one, thread)
    async with open_saver(database, redis_url) as single:
        await thread.put(single)
    async with watched(database, nodes) as one:
        assert not await one.hits(thread)
        await warm(one, thread)


async def read_row(database: str) -> tuple[str, str]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        row = await (await conn.execute("SELECT reign, generation FROM glasspoint_caches")).fetchone()
    assert row is not None
    return row[0], row[1]


async def test_without_a_right_the_log_names_it_and_the_shard(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    added = " ".join(f"+{name}" for name in CLUSTER_COMMANDS)
    assert f"\n{added}\n" in (DOCS / "rights.md").read_text("utf-8")
    for server in nodes.servers:
        rules = [
            "~glasspoint:*",
            *(f"+{name}" for name in COMMANDS),
            *(f"+{name}" for name in CLUSTER_COMMANDS),
        ]
        nodes.ask(server, "ACL", "SETUSER", "few", "reset", "on", ">secret", *rules)
    client = nodes.client(username="few", password="secret")
    thread = Thread("a")
    async with watched(database, nodes, client=client) as one:
        await thread.put(one.saver)
        await warm(one, thread)
    for server in nodes.servers:
        nodes.ask(server, "ACL", "SETUSER", "few", "-hexists")
    async with watched(database, nodes, client=client) as one:
        assert not await one.hits(thread)
    assert any("+hexists" in line and "127.0.0.1" in line for line in caplog.messages)


async def test_spans_name_the_master(database: str, nodes: Nodes) -> None:
    recorder = Recorder()
    thread = Thread("a")
    async with watched(database, nodes, telemetry=recorder.telemetry) as one:
        await thread.put(one.saver)
        await until(lambda: one.saver._l1.is_identified)
        recorder.clear()
        await thread.turn(one.saver)
        [span] = recorder.named("checkpoint.l1.read") or recorder.named("checkpoint.l1.commit")
        assert span.attributes is not None
        assert span.attributes["server.address"] == "127.0.0.1"
        assert span.attributes["server.port"] == nodes.master_of(slot_of("a")).port


EPOCHS = "glasspoint_l1_epoch_changes_total"
TRANSITIONS = "glasspoint_l1_breaker_transitions_total"
OPEN = "glasspoint_l1_breaker_open"


@pytest.mark.parametrize("how", ["killed", "planned"])
async def test_a_failover_is_one_warning_that_names_both_masters_and_one_change_of_epoch(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level("INFO", logger="glasspoint")
    master = nodes.master_of(slot_of("a"))
    [replica] = nodes.replicas_of(master)
    old, new = f"127.0.0.1:{master.port}", f"127.0.0.1:{replica.port}"
    thread = Thread("a")
    async with watched(database, nodes) as one:
        await thread.put(one.saver)
        await warm(one, thread)

        def transitions() -> tuple[int, int]:
            changes = counts(one.registry, TRANSITIONS, "to")
            return changes.get("open", 0), changes.get("closed", 0)

        async def is_left_alone() -> bool:
            await thread.turn(one.saver)
            return one.cluster.states().get(old) == "open"

        if how == "killed":
            master.kill()
            await until(is_left_alone)
        else:
            await asyncio.to_thread(nodes.fail_over, replica)
        await until(lambda: new in one.cluster.states() and old not in one.cluster.states())
        await warm(one, thread)
        assert value_of(one.registry, EPOCHS, {"saver": "default"}) == 1
        [line] = [line for line in caplog.messages if "was failed over" in line]
        assert old in line
        assert new in line
        # What has opened is closed in the end.
        await until(lambda: len(set(transitions())) == 1)
        await until(lambda: value_of(one.registry, OPEN, {"saver": "default"}) == 0)
        if how == "killed":
            assert transitions()[0]
            ends = [line for line in caplog.messages if "has no slots any more" in line]
            assert ends
            assert all(old in line for line in ends)
    nodes.heal()


@pytest.mark.parametrize("what", ["failover", "failover, and nobody had the slots", "other nodes", "moved"])
async def test_which_change_of_masters_is_a_failover(database: str, nodes: Nodes, what: str) -> None:
    async with watched(database, nodes, sweep_interval_seconds=60.0) as one:
        view = one.cluster._watched.view
        assert view is not None
        old, *others = view.masters
        [replica] = [id_ for id_, master in view.replicas if master == old.node_id]
        new = replace(old, node_id=replica, address=("127.0.0.1", 1))
        if what == "other nodes":  # all slots of a master were moved to a new one
            new = replace(new, node_id="0" * 40)
        if what == "moved":  # they were moved to a master that there was
            new = replace(others[0], slots=(*others[0].slots, *old.slots))
            others = others[1:]
        views = [replace(view, masters=(new, *others), epoch=view.epoch + 1)]
        if what == "failover, and nobody had the slots":
            views.insert(0, replace(view, masters=tuple(others)))
        views += [view, *views[-1:]]  # of a node that was cut off

        async def look(*_: object, **__: object) -> View:
            return views.pop(0)

        one.cluster._topology.look = look  # type: ignore[method-assign]
        while views:
            await one.cluster._look()
        counted = value_of(one.registry, EPOCHS, {"saver": "default"})
        assert counted == (1 if what.startswith("failover") else 0)


async def test_slots_that_move_are_no_failover(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="glasspoint")
    slot, thread = slot_of("a"), Thread("a")
    source = nodes.master_of(slot)
    target = next(server for server in nodes.masters() if server is not source)
    async with watched(database, nodes) as one:
        await thread.put(one.saver)
        await warm(one, thread)
        nodes.move(slot, target)
        name = f"127.0.0.1:{target.port}"
        try:
            await until(lambda: any("Slots have moved" in line and name in line for line in caplog.messages))
            await warm(one, thread)
        finally:
            nodes.move(slot, source)
        assert value_of(one.registry, EPOCHS, {"saver": "default"}) == 0
        assert not [line for line in caplog.messages if "failed over" in line]


async def test_slots_without_a_master_are_a_warning_once_and_again_when_their_number_grows(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="glasspoint")
    monkeypatch.setattr("glasspoint.l1.cluster._PASSING_SECONDS", 0.0)

    def lines() -> list[str]:
        return [line for line in caplog.messages if "no master" in line]

    async with watched(database, nodes, sweep_interval_seconds=60.0) as one:
        view = one.cluster._watched.view
        assert view is not None
        [first, *others] = view.masters
        start, end = max(first.slots, key=lambda slots: slots[1] - slots[0])
        rest = [slots for slots in first.slots if slots != (start, end)]
        views: list[View] = []

        def without(slots: int) -> View:
            return replace(view, masters=(replace(first, slots=(*rest, (start, end - slots))), *others))

        async def look(*_: object, **__: object) -> View:
            return views.pop()

        one.cluster._topology.look = look  # type: ignore[method-assign]
        less = without(1)
        for _ in range(5):  # one node knows the owner of a slot, and another one does not
            views += [view, less]
            await one.cluster._look()
            await one.cluster._look()
        assert len(lines()) == 1
        assert "1 of 16384" in lines()[0]
        assert len([line for line in caplog.messages if "have a master again" in line]) == 1
        views += [without(3), less]
        await one.cluster._look()
        await one.cluster._look()
        assert len(lines()) == 2
        assert "3 of 16384" in lines()[1]
        views.append(view)
        await one.cluster._look()


async def test_slots_without_a_master_are_no_warning_if_a_failover_gives_them_one(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between, a node may know that the old master has lost its slots, and not yet who has them."""
    caplog.set_level("INFO", logger="glasspoint")
    now = 1000.0
    async with watched(database, nodes, sweep_interval_seconds=60.0) as one:
        view = one.cluster._watched.view
        assert view is not None
        partial = replace(view, masters=view.masters[1:])

        async def look_at(seconds: float, seen: View) -> list[str]:
            nonlocal now
            now = 1000.0 + seconds
            monkeypatch.setattr(one.cluster._topology, "look", lambda *_, **__: asyncio.sleep(0, seen))
            await one.cluster._look()
            return [line for line in caplog.messages if "no master" in line or "have a master" in line]

        monkeypatch.setattr("glasspoint.l1.cluster.monotonic", lambda: now)
        assert not await look_at(0.0, partial)
        assert not await look_at(1.9, partial)
        assert not await look_at(2.1, view)
        assert not await look_at(100.0, partial)
        assert len(await look_at(102.1, partial)) == 1, "nothing has changed, but it lasts"
        assert len(await look_at(103.0, view)) == 2


async def test_without_the_right_to_ask_for_the_topology_an_error_names_commands_and_rule(
    database: str, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    for server in nodes.servers:
        rules = ["~glasspoint:*", *(f"+{name}" for name in COMMANDS)]
        nodes.ask(server, "ACL", "SETUSER", "blind", "reset", "on", ">secret", *rules)
    client = nodes.client(username="blind", password="secret")
    thread = Thread("a")
    async with watched(database, nodes, client=client) as one:
        await thread.put(one.saver)
        assert not await one.hits(thread)
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1, "probes do not repeat it"
        for name in CLUSTER_COMMANDS:
            assert f"+{name}" in errors[0].getMessage()
        assert (await readyz(one.registry))[1]["l1"] == "unavailable"
        for server in nodes.servers:
            nodes.ask(server, "ACL", "SETUSER", "blind", *(f"+{name}" for name in CLUSTER_COMMANDS))
        await warm(one, thread)
        # The rights go again: this process stops believing what it cannot sweep, and comes back by itself.
        for server in nodes.servers:
            nodes.ask(server, "ACL", "SETUSER", "blind", "reset", "on", ">secret", *rules, "+cluster|info")
        await until(lambda: set(one.cluster.states().values()) == {"open"})
        assert not await one.hits(thread)
        for server in nodes.servers:
            nodes.ask(server, "ACL", "SETUSER", "blind", *(f"+{name}" for name in CLUSTER_COMMANDS))
        await warm(one, thread)


async def test_a_crowd_opens_at_most_64_connections_to_each_master(database: str, nodes: Nodes) -> None:
    threads = [Thread(f"t{number}") for number in range(120)]

    def connections(server: EmbeddedRedis) -> int:
        return len(nodes.ask(server, "CLIENT", "LIST", "TYPE", "normal").splitlines()) - 1  # this question's

    before = {server.port: connections(server) for server in nodes.masters()}
    async with watched(database, nodes) as one:
        for _ in range(3):
            await asyncio.gather(*(thread.put(one.saver) for thread in threads))
            await asyncio.gather(*(thread.turn(one.saver) for thread in threads))
        for server in nodes.masters():
            assert 1 <= connections(server) - before[server.port] <= 64


async def test_nodes_that_do_not_answer_are_told_apart_from_one_that_is_in_no_cluster(redis_url: str) -> None:
    topology = Topology(RedisCluster(host="127.0.0.1", port=1), timeout_seconds=1.0)
    [told] = (await topology.ask_all([("127.0.0.1", 1)])).values()
    assert isinstance(told, RedisConnectionError)
    with pytest.raises(RedisConnectionError):
        await topology.look()
    port = int(urlsplit(redis_url).port or 0)
    topology = Topology(RedisCluster(host="127.0.0.1", port=port), timeout_seconds=5.0)
    with pytest.raises(NeverTheCacheError, match="not in a cluster"):
        await topology.look()
    await topology.close()
