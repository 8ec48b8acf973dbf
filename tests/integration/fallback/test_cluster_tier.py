"""A Redis Cluster as the tier `redis`: threads on every master, lists of threads that are lost one by one,
masters that are lost, slots that move."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import islice
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry

from databases import with_tables
from glasspoint import FallbackSaver, RedisSaver
from glasspoint.coherence.purging import Purger
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError, RedisUnavailableError, ThreadDamagedError
from glasspoint.history.keys import Keyspace
from glasspoint.l2.target import Target
from glasspoint.redis.topology import RANGES, range_of
from glasspoint.savers import redis_saver
from outages import drained, pod, said, say, threads_in
from places import DOCS
from redis_nodes import OPTIONS, Nodes, slot_of
from redis_tier import TARGET, opened
from states import config_of, counts, open_upstream
from steps import Thread, readyz, settled, suspended, until

TURNS = ["turn 1", "turn 2"]
KEYS = Keyspace("glasspoint", target=TARGET.id, in_cluster=True)


def url_of(nodes: Nodes) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in nodes.servers)


def slot_of_list(thread_id: str, keys: Keyspace = KEYS) -> int:
    """The slot of a thread's keys in the tier, and of its list."""
    registry = keys.registry_of(thread_id)
    return slot_of(registry[registry.index("{") + 1 : registry.index("}")])


def one_of_each_master(nodes: Nodes, prefix: str) -> list[str]:
    """A thread for each master, which has its list and its entry in the cache."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < len(nodes.masters()):
        thread_id = f"{prefix}-{number}"
        master = nodes.master_of(slot_of(thread_id))
        if nodes.master_of(slot_of_list(thread_id)) is master:
            found.setdefault(master.port, thread_id)
        number += 1
    return [found[port] for port in sorted(found)]


def server_of(nodes: Nodes, thread_id: str) -> EmbeddedRedis:
    return nodes.master_of(slot_of_list(thread_id))


async def say_all(saver: Any, thread_ids: list[str], text: str) -> None:
    await asyncio.gather(*(say(saver, each, text) for each in thread_ids))


async def keys_of(nodes: Nodes, thread_id: str) -> set[bytes]:
    return {key for key in nodes.keys("*:fallback:*") if f"}}:{thread_id}:".encode() in key}


@asynccontextmanager
async def hot_conversations(
    postgres: EmbeddedPostgres, nodes: Nodes, *, redis_url: str | None = None
) -> AsyncIterator[tuple[str, list[str]]]:
    """A conversation on each master, of two turns; PostgreSQL is down then."""
    url, hot = with_tables(postgres), one_of_each_master(nodes, "hot")
    async with pod(url, redis_url or url_of(nodes)) as saver:
        for text in TURNS:
            await say_all(saver, hot, text)
        await until(lambda: len(nodes.keys("*:last-used:*")) == RANGES)
    postgres.stop()
    yield url, hot


# ------------------------------------------------------------------ the whole chain


async def test_conversations_of_all_masters_go_on_through_an_outage(
    own_postgres: EmbeddedPostgres, nodes: Nodes, registry: CollectorRegistry
) -> None:
    new = one_of_each_master(nodes, "new")
    async with hot_conversations(own_postgres, nodes) as (url, hot):
        async with pod(url, url_of(nodes), registry) as saver:
            assert saver.tier == "redis"
            assert [await said(saver, each) for each in hot] == [TURNS] * 3
            await say_all(saver, [*hot, *new], "during")
            assert [await said(saver, each) for each in hot] == [[*TURNS, "during"]] * 3
            for each in [*hot, *new]:
                keys = await keys_of(nodes, each)
                assert keys, "nothing stands in the tier"
                there = set(nodes.admin(server_of(nodes, each)).keys("*:fallback:*"))
                assert there >= keys, "on one master, with its list"
            status, about = await readyz(registry)
            assert (status, about["tier"], about["redis"]) == (200, "redis", "ok")
            own_postgres.start()
            await until(lambda: saver.tier == "cached")
            assert [await said(saver, each) for each in [*hot, *new]] == [[*TURNS, "during"]] * 3 + [
                ["during"]
            ] * 3
            await say_all(saver, hot, "after")
        assert drained(registry) == {"continued": 3, "new": 3}
        assert await threads_in(url) == sorted([*hot, *new])
        assert not any(key for key in nodes.keys("*:fallback:*") if not key.endswith((b":seal", b":threads")))
        async with open_upstream(url) as upstream:
            for each in hot:
                assert await said(upstream, each) == [*TURNS, "during", "after"]
                steps = [found.metadata["step"] async for found in upstream.alist(config_of(each))]
                assert steps == list(range(3 * 4 - 2, -2, -1)), "each checkpoint once, none is missing"


@asynccontextmanager
async def one_above_and_one_below(
    postgres: EmbeddedPostgres, nodes: Nodes, **of_above: Any
) -> AsyncIterator[tuple[FallbackSaver, FallbackSaver]]:
    """A process that was there before an outage, and one that started in it. PostgreSQL is back."""
    url = with_tables(postgres)
    async with pod(url, url_of(nodes), **of_above) as above:
        postgres.stop()
        async with pod(url, url_of(nodes), probe_interval=1000) as below:
            assert (above.tier, below.tier) == ("cached", "redis")
            postgres.start()

            async def answers() -> bool:
                with suppress(GlasspointError):
                    await said(above, "nobody")
                    return True
                return False

            await until(answers)
            yield above, below


async def test_a_process_above_knows_what_was_acknowledged_below_in_each_list(
    own_postgres: EmbeddedPostgres, nodes: Nodes
) -> None:
    threads = one_of_each_master(nodes, "t")
    async with one_above_and_one_below(own_postgres, nodes) as (above, below):
        for thread_id in threads:
            await settled(above._chain.saver)  # type: ignore[arg-type]
            assert await said(above, thread_id) == []  # it has just heard that nothing is in this list
            await say(below, thread_id, "during")
            assert await said(above, thread_id) == ["during"]
            assert [await said(above, each) for each in threads].count(["during"]) == threads.index(
                thread_id
            ) + 1
        assert below.tier == "redis"


async def test_that_one_list_is_empty_says_nothing_of_another_one(
    own_postgres: EmbeddedPostgres, nodes: Nodes
) -> None:
    first, second, *_ = one_of_each_master(nodes, "t")
    async with one_above_and_one_below(own_postgres, nodes) as (above, below):
        await say(below, first, "during")
        for thread_id in neighbours(first, 5):
            assert await said(above, second) == []  # it has just heard that nothing is in this list
            await say(below, thread_id, "during")  # a list that names threads already: nobody waits
            assert await said(above, thread_id) == ["during"]


async def test_with_a_master_away_a_process_above_sees_what_stands_on_the_others(
    own_postgres: EmbeddedPostgres, nodes: Nodes
) -> None:
    lost, *others = one_of_each_master(nodes, "t")
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, url_of(nodes), probe_interval=1000) as below:
        own_postgres.start()
        with away(nodes, server_of(nodes, lost)):
            async with pod(url, url_of(nodes), redis_timeout=0.5, probe_interval=1000) as above:
                assert above.tier == "cached"
                await say_all(below, others, "during")
                for each in others:
                    assert await said(above, each) == ["during"]
                assert await said(above, lost) == []


@contextmanager
def away(nodes: Nodes, *masters: EmbeddedRedis) -> Iterator[None]:
    """Masters that answer nothing, and whose replicas do not take over, not even when all answer again: a
    replica could lack what is written then. Nothing of them is lost."""
    replicas = [each for master in masters for each in nodes.replicas_of(master)]
    for replica in replicas:
        nodes.keep(replica)
    servers = [*replicas, *masters]
    with suspended(*(psutil.Process(server.pid) for server in servers)):
        yield


# ------------------------------------------------------------------ a master is lost


async def test_a_failover_in_the_tier_loses_nothing_that_the_replica_had(
    own_postgres: EmbeddedPostgres, nodes: Nodes, registry: CollectorRegistry
) -> None:
    url, threads = with_tables(own_postgres), one_of_each_master(nodes, "t")
    own_postgres.stop()
    async with pod(url, url_of(nodes), registry, redis_timeout=1.0) as saver:
        await say_all(saver, threads, "before")
        master = server_of(nodes, threads[0])
        nodes.ask(master, "WAIT", 1, 10_000)
        master.kill()

        async def goes_on() -> bool:
            """The process may fall to `memory` for a moment, where the conversation is not known."""
            with suppress(GlasspointError):
                return saver.tier == "redis" and await said(saver, threads[0]) == ["before"]
            return False

        await until(lambda: nodes.master_of(slot_of_list(threads[0]), asked=nodes.masters()[0]) is not master)
        await until(goes_on)
        await say_all(saver, threads, "after")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await until(lambda: saver._chain.whole)
    async with open_upstream(url) as upstream:
        for each in threads:
            assert await said(upstream, each) == ["before", "after"]
    assert set(drained(registry)) == {"new"}


async def test_what_a_failover_in_the_tier_loses_is_counted_and_named(
    own_postgres: EmbeddedPostgres,
    nodes: Nodes,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_saver, "_LOOK_SECONDS", 0.1)
    url, (shorter, *others) = with_tables(own_postgres), one_of_each_master(nodes, "t")
    own_postgres.stop()
    async with pod(url, url_of(nodes), registry, redis_timeout=1.0) as saver:
        await say_all(saver, [shorter, *others], "before")
        master = server_of(nodes, shorter)
        nodes.ask(master, "WAIT", 1, 10_000)
        [replica] = nodes.replicas_of(master)
        replica.save_snapshot()
        replica.kill()
        await say(saver, shorter, "lost")
        master.kill()
        replica.start(*OPTIONS)
        replica.forget_snapshot()
        other = server_of(nodes, others[0])
        await until(lambda: nodes.master_of(slot_of_list(shorter), asked=other) is replica)

        async def is_said() -> bool:
            """A call after the failover leads to a look."""
            with suppress(GlasspointError):
                await said(saver, shorter)
            return counts(registry, "glasspoint_drained_threads_total", "result")["lost"] == 1

        await until(is_said)
        own_postgres.start()
        await until(lambda: saver._chain.whole)
        await until(lambda: "Promoted from tier redis" in caplog.text)
    assert f"lacks the end of 1 of the 3 threads that this process remembers: {shorter!r}" in caplog.text
    assert "but Redis may have lost threads that were written there" in caplog.text
    async with open_upstream(url) as upstream:
        assert await said(upstream, shorter) == ["before"]


async def test_without_a_master_the_process_works_in_memory_until_it_is_back(
    own_postgres: EmbeddedPostgres, nodes: Nodes, registry: CollectorRegistry
) -> None:
    """It does not go up to a tier of which a part is away: its calls would fall again."""
    url, (lost, *others) = with_tables(own_postgres), one_of_each_master(nodes, "t")
    own_postgres.stop()
    async with pod(url, url_of(nodes), registry, redis_timeout=0.5) as saver:
        await say_all(saver, [lost, *others], "before")
        with away(nodes, server_of(nodes, lost)):
            await say(saver, lost, "meanwhile")
            assert saver.tier == "memory"
            for each in others:
                await say(saver, each, "meanwhile")
            for _ in range(3):
                await tried(saver)
                assert saver.tier == "memory"
        await until(lambda: saver.tier == "redis")
        for each in (lost, *others):
            assert await said(saver, each) == ["before"]
            await say(saver, each, "after")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await until(lambda: saver._chain.whole)
    async with open_upstream(url) as upstream:
        for each in (lost, *others):
            assert await said(upstream, each) == ["before", "after"]
            [aside] = [found for found in await threads_in(url) if found.startswith(f"{each} (set aside")]
            assert await said(upstream, aside) == ["meanwhile"]


async def test_when_postgresql_is_back_before_a_master_nothing_is_forgotten(
    own_postgres: EmbeddedPostgres, nodes: Nodes
) -> None:
    url, (lost, asked, *rest) = with_tables(own_postgres), one_of_each_master(nodes, "t")
    own_postgres.stop()
    async with pod(url, url_of(nodes), redis_timeout=0.5, l1_timeout=0.5) as saver:
        await say_all(saver, [lost, asked, *rest], "during")
        with away(nodes, server_of(nodes, lost)):
            own_postgres.start()
            await until(lambda: saver.tier == "cached")
            assert not saver._chain.whole
            assert await said(saver, asked) == ["during"], "moved up, because a call has asked for it"
            await say(saver, asked, "after")
        await until(lambda: saver._chain.whole)
        assert [await said(saver, each) for each in (lost, *rest)] == [["during"]] * 2
    assert await threads_in(url) == sorted([lost, asked, *rest])
    async with open_upstream(url) as upstream:
        assert await said(upstream, asked) == ["during", "after"]


async def tried(saver: FallbackSaver) -> None:
    """One attempt to reach the tiers above."""
    await saver._chain._guarded(saver._chain._rise)


async def test_a_lost_list_makes_its_threads_damaged_and_no_others(
    own_postgres: EmbeddedPostgres, nodes: Nodes, registry: CollectorRegistry
) -> None:
    url, (lost, *others) = with_tables(own_postgres), one_of_each_master(nodes, "t")
    own_postgres.stop()
    async with pod(url, url_of(nodes), registry) as saver:
        await say_all(saver, [lost, *others], "before")
        server_of(nodes, lost).flush()
        for _ in range(2):
            with pytest.raises(ThreadDamagedError, match="lost"):
                await said(saver, lost)
            [unheard] = neighbours(lost, 1)
            with pytest.raises(ThreadDamagedError, match="list"):
                await said(saver, unheard)
        for each in others:
            assert await said(saver, each) == ["before"]
            await say(saver, each, "after")
        new = one_of_each_master(nodes, "new")[1:]
        await say_all(saver, new, "after")
        status, about = await readyz(registry)
        assert (status, about["redis"]) == (503, "lost")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        for each in others:
            assert await said(saver, each) == ["before", "after"]
        assert [await said(saver, each) for each in new] == [["after"], ["after"]]


# ------------------------------------------------------------------ a slot moves


@pytest.fixture
async def tier(nodes: Nodes) -> AsyncIterator[RedisSaver]:
    async with nodes.client() as client, opened(client, timeout_seconds=5.0) as saver:
        yield saver


async def test_while_the_slot_of_a_list_moves_a_call_is_right_or_fails(
    nodes: Nodes, tier: RedisSaver
) -> None:
    thread, other = Thread("a"), Thread(neighbours("a", 1)[0])
    for each in (thread, other):
        await each.put(tier)
        await each.put_writes(tier, "x")
    slot = slot_of_list("a")
    source = nodes.master_of(slot)
    to = next(each for each in nodes.masters() if each is not source)
    nodes.begin_move(slot, to)
    failed = 0
    while keys := nodes.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 5):
        for each in (thread, other):
            failed += await right_or_failed(tier, each)
        nodes.migrate(keys, source, to)
    assert failed, "no call has met a slot on its way"
    nodes.end_move(slot, source, to)
    for each in (thread, other):
        assert await each.turn(tier) == each.number
        await each.put(tier)
        assert await each.turn(tier) == each.number
    assert not await tier.look_for_losses()
    assert sorted([found async for found in tier.thread_ids()]) == sorted(["a", other.thread_id])


def neighbours(thread_id: str, count: int) -> list[str]:
    """Other threads of the same list, in other slots."""
    names = (f"{thread_id}-{number}" for number in range(10_000))
    of_list = (each for each in names if range_of(each) == range_of(thread_id))
    return list(islice((each for each in of_list if slot_of(each) != slot_of(thread_id)), count))


async def right_or_failed(saver: RedisSaver, thread: Thread) -> int:
    """Write to a thread, and read it; return how often that failed."""
    failed = 0
    try:
        await thread.put(saver)
    except RedisUnavailableError:
        failed, thread.number = 1, thread.number - 1
    with suppress(RedisUnavailableError):
        assert await thread.turn(saver) == thread.number
        return failed
    return failed + 1


async def test_a_cached_state_whose_slot_has_moved_is_not_believed(
    own_postgres: EmbeddedPostgres, nodes: Nodes
) -> None:
    async with (
        hot_conversations(own_postgres, nodes) as (url, (first, moved, moving)),
        pod(url, url_of(nodes), probe_interval=1000) as saver,
    ):
        assert await said(saver, first) == TURNS, "now it knows the masters"
        # A master at which a slot arrives believes none of its older entries. So not to the third.
        nodes.move(slot_of(moved), nodes.master_of(slot_of(first)))
        assert await said(saver, moved) == []
        to = next(each for each in nodes.masters() if each is not nodes.master_of(slot_of(moving)))
        nodes.begin_move(slot_of(moving), to)
        assert await said(saver, moving) == TURNS, "it is still where it was made"
        assert saver.tier == "redis"


async def test_keys_that_changed_while_the_master_of_the_list_was_away_lead_to_no_older_state(
    own_postgres: EmbeddedPostgres, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record on this master names the keys from before; another master has the entry.

    In a large cache, entries of older keys stay for minutes: here, nobody deletes them."""

    async def deletes_nothing(self: Purger) -> None:
        pass

    monkeypatch.setattr(Purger, "advance", deletes_nothing)
    url, thread = with_tables(own_postgres), one_on_two_masters(nodes)
    others = {server.port for server in nodes.masters()} - {server_of(nodes, thread).port}
    async with pod(url, url_of(nodes)) as saver:
        await say(saver, thread, "before")
        await until(lambda: len(records(nodes)) == RANGES)
    async with pod(url, url_of(nodes), l1_timeout=0.5, redis_timeout=0.5) as saver:
        assert await said(saver, thread) == ["before"]
        with away(nodes, server_of(nodes, thread)):
            before = records(nodes, others)
            own_postgres.stop()
            own_postgres.start()
            await until(lambda: not set(records(nodes, others).items()) & set(before.items()))
            await until(lambda: said_again(saver, thread, "after"))
            await settled(saver._chain.saver)  # type: ignore[arg-type]
            own_postgres.stop()
    await asyncio.to_thread(nodes.heal)
    async with pod(url, url_of(nodes), probe_interval=1000) as below:
        assert below.tier == "redis"
        assert await said(below, thread) == []


def one_on_two_masters(nodes: Nodes) -> str:
    """A thread whose entry in the cache is on another master than its list."""
    names = (f"apart-{number}" for number in range(10_000))
    return next(each for each in names if nodes.master_of(slot_of(each)) is not server_of(nodes, each))


def records(nodes: Nodes, ports: set[int] | None = None) -> dict[bytes, bytes]:
    """What stands in the records of some masters, or of all."""
    found: dict[bytes, bytes] = {}
    for server in nodes.servers:
        if ports is None or server.port in ports:
            admin = nodes.admin(server)
            if admin.info("replication")["role"] == "master":
                found |= {key: admin.hget(key, "record") for key in admin.keys("*:last-used:*")}
    return found


async def said_again(saver: Any, thread_id: str, text: str) -> bool:
    """Say something, unless PostgreSQL is not back yet."""
    with suppress(GlasspointError):
        await say(saver, thread_id, text)
        return True
    return False


async def test_a_deleted_thread_has_no_cached_state(own_postgres: EmbeddedPostgres, nodes: Nodes) -> None:
    async with hot_conversations(own_postgres, nodes) as (url, hot):
        async with pod(url, url_of(nodes), probe_interval=1000) as saver:
            for each in hot:
                assert await said(saver, each) == TURNS
                await saver.adelete_thread(each)
        async with pod(url, url_of(nodes), probe_interval=1000) as another:
            assert [await said(another, each) for each in hot] == [[]] * 3


async def test_what_tells_the_keys_of_the_cached_states_is_stored_again_on_a_master_that_was_flushed(
    own_postgres: EmbeddedPostgres, nodes: Nodes
) -> None:
    url, (first, *_) = with_tables(own_postgres), one_of_each_master(nodes, "t")
    async with pod(url, url_of(nodes)) as saver:
        await say(saver, first, "before")
        await until(lambda: len(nodes.keys("*:last-used:*")) == RANGES)
        server_of(nodes, first).flush()
        await until(lambda: len(nodes.keys("*:last-used:*")) == RANGES)


async def test_the_rights_that_the_docs_list_are_enough(own_postgres: EmbeddedPostgres, nodes: Nodes) -> None:
    page = (DOCS / "rights.md").read_text("utf-8")
    [rule] = re.findall(r"ACL SETUSER glasspoint_chain on >PASSWORD (.*)", page)
    added = re.findall(r"^(\+[a-z|]+(?: \+[a-z|]+)*)$", page, re.M)
    for server in nodes.servers:
        rules = f"{rule} {' '.join(added)}".split()
        nodes.ask(server, "ACL", "SETUSER", "chain", "reset", "on", ">secret", *rules)
    url = url_of(nodes).replace("//", "//chain:secret@", 1)
    async with (
        hot_conversations(own_postgres, nodes, redis_url=url) as (database, hot),
        pod(database, url) as saver,
    ):
        assert [await said(saver, each) for each in hot] == [TURNS] * 3
        await say_all(saver, hot, "during")
        slot = slot_of_list(hot[0], keys_of_chain(database))
        to = next(each for each in nodes.masters() if each is not nodes.master_of(slot))
        nodes.move(slot, to)
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert [await said(saver, each) for each in hot] == [[*TURNS, "during"]] * 3


def keys_of_chain(database: str) -> Keyspace:
    return Keyspace("glasspoint", target=Target.of(database).id, in_cluster=True)


def test_the_lists_and_their_threads_are_in_the_same_range_of_slots() -> None:
    registries = KEYS.registries
    assert len(set(registries)) == RANGES
    for number in range(2000):
        thread_id = f"대화 {{{number}}}"
        *keys, registry = KEYS.of_thread(thread_id)
        assert registry == registries[range_of(keys[0].rpartition("}:")[2].removesuffix(":ids"))]
        assert {slot_of(key[key.index("{") + 1 : key.index("}")]) for key in (*keys, registry)} == {
            slot_of_list(thread_id)
        }
        assert KEYS.thread_of(keys[5].encode()) == thread_id
    assert KEYS.thread_of(f"{registries[0][:-7]}a:copy:1:meta".encode()) is None


async def test_the_threads_of_all_lists_are_found_and_counted(nodes: Nodes, tier: RedisSaver) -> None:
    threads = {f"대화 {{{number}}}" for number in range(40)}
    await asyncio.gather(*(Thread(each).put(tier) for each in threads))
    assert {each async for each in tier.thread_ids()} == threads
    assert await tier.count() == (40, 40)
    holding = await tier.holds(None)
    assert holding.any
    assert holding.unused_seconds < 30
    doomed = await keys_of(nodes, Keyspace("").parts_of_thread("대화 {0}")[0].split("{")[1].split("}")[0])
    client: Any = nodes.client()
    async with client:
        for key in doomed:
            await client.delete(key)
    with pytest.raises(ThreadDamagedError):
        await Thread("대화 {0}").turn(tier)
    assert {each async for each in tier.thread_ids()} == threads, "it is named, not forgotten"
