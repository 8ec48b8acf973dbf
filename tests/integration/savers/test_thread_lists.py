"""Threads are found in their lists, at the cost of the threads: a listing does not look at all keys in Redis.

It looks at all keys once if a list may lack threads: after an upgrade, or when the list was lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis, RedisCluster

from glasspoint import RedisSaver
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import RedisUnavailableError, ThreadDamagedError
from glasspoint.history.keys import Keyspace
from glasspoint.model.scope import key_part
from glasspoint.redis.topology import SLOTS, slot_of, tag_of_slot
from redis_nodes import Nodes
from redis_savers import listed
from redis_tier import SIGNED, TARGET, opened
from states import config_of
from steps import Thread, until

ALONE: dict[str, Any] = {"target": None, "signing_key": None}
THREADS = {f"대화 {{{number}}}" for number in range(20)}


@dataclass
class Place:
    """One Redis, or a cluster."""

    client: Redis | RedisCluster
    ports: list[int]
    options: dict[str, Any]

    @property
    def keyspace(self) -> Keyspace:
        target = "" if self.options is ALONE else TARGET.id
        return Keyspace("glasspoint", target=target, in_cluster=isinstance(self.client, RedisCluster))

    @contextmanager
    def servers(self) -> Iterator[list[Any]]:
        clients = [sync_redis.Redis(host="127.0.0.1", port=port) for port in self.ports]
        yield clients
        for each in clients:
            each.close()

    def scans(self) -> int:
        """How often all keys were looked at since the last call; a page of keys is a look."""
        looks = 0
        with self.servers() as servers:
            for each in servers:
                looks += each.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]
                each.config_resetstat()
        return looks

    def lose_lists(self, thread_id: str | None = None) -> None:
        """Lose the list of a thread, or all lists: then Redis is as an older release has left it."""
        lost = {self.keyspace.registry_of(thread_id)} if thread_id else set(self.keyspace.registries)
        with self.servers() as servers:
            for each in servers:
                for key in each.keys("*:index") + each.keys("*:threads"):
                    if key.decode() in lost:
                        each.delete(key)

    async def names(self, thread_id: str) -> float | None:
        """When a thread expires, according to its list."""
        client: Any = self.client
        score: float | None = await client.zscore(self.keyspace.registry_of(thread_id), key_part(thread_id))
        return score

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[RedisSaver]:
        async with opened(self.client, **self.options, **options) as saver:
            yield saver


@pytest.fixture(autouse=True)
def _no_process_works_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the first thread of each list needs not wait until such processes know of it."""
    monkeypatch.setattr("glasspoint.history.in_redis.HEARD_SECONDS", 0.0)


@pytest.fixture(params=[ALONE, SIGNED], ids=["alone", "of a target"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


PLACES = {
    "one Redis, alone": ("one Redis", ALONE),
    "one Redis, of a target": ("one Redis", SIGNED),
    "a cluster, of a target": ("a cluster", SIGNED),
    "a cluster, alone": ("a cluster", ALONE),
}
with_few_lists = pytest.mark.parametrize("place", list(PLACES)[:3], indirect=True)
"""Of a test that asks nothing of the 16,384 lists of a saver by itself: they take half a second to read. What
happens during a look at all keys asks nothing of them."""


@pytest.fixture(params=list(PLACES))
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    client: Any
    where, options = PLACES[request.param]
    if where == "a cluster":
        nodes: Nodes = request.getfixturevalue("nodes")
        client, ports = nodes.client(), [each.port for each in nodes.masters()]
    else:
        client = Redis.from_url(request.getfixturevalue("redis_url"))
        ports = [client.connection_pool.connection_kwargs["port"]]
    async with client:
        for tag in "013":  # in a cluster, each of the three is on another master
            await client.mset({f"of other software: {{{tag}}} {number}": "" for number in range(1200)})
        yield Place(client, ports, options)


async def put(saver: RedisSaver, *thread_ids: str) -> None:
    for each in thread_ids:
        await Thread(each).put(saver)


@asynccontextmanager
async def with_lost_lists(place: Place) -> AsyncIterator[tuple[RedisSaver, RedisSaver]]:
    """Two savers, and threads that no list names."""
    async with place.opened() as saver, place.opened() as other:
        await put(saver, *THREADS)
        place.lose_lists()
        yield saver, other


async def ids(saver: RedisSaver) -> set[str]:
    found = [each async for each in saver.thread_ids()]
    assert len(found) == len(set(found)), "each once"
    return set(found)


def during_the_look(saver: RedisSaver, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Do something each time when the first keys were found, and are named by their lists."""
    scan = saver._steps.scan

    async def scanned(pattern: str) -> AsyncIterator[list[bytes]]:
        is_first = True
        async for keys in scan(pattern):
            yield keys
            if keys and is_first:
                is_first = False
                await act()

    monkeypatch.setattr(saver._steps, "scan", scanned)


# ------------------------------------------------------------------ the cost


async def test_listing_threads_looks_at_no_other_keys(place: Place) -> None:
    async with place.opened() as saver:
        assert await ids(saver) == set(), "the lists are complete from here on"
        assert place.scans()
        await put(saver, *THREADS, "gone")
        await saver.adelete_thread("gone")
        assert await ids(saver) == THREADS
        assert await saver.count() == (20, 20)
        assert len(await listed(saver, None)) == 20
        assert {each.thread_id async for each in saver.alist_threads()} == THREADS
        await saver.adelete_for_runs(["no such run"])
        await saver.acopy_thread("대화 {0}", "copy")
        assert await ids(saver) == THREADS | {"copy"}
        assert place.scans() == 0
    async with place.opened() as other:
        place.scans()  # without the first SCAN, which tries whether it is allowed
        assert await ids(other) == THREADS | {"copy"}
        assert place.scans() == 0


async def test_a_list_is_in_the_slot_of_its_threads() -> None:
    keyspace = Keyspace("glasspoint", in_cluster=True)
    registries = keyspace.registries
    assert len(set(registries)) == SLOTS
    for number in range(2000):
        thread_id = f"대화 {{{number}}}"
        *_, registry = keyspace.of_thread(thread_id)
        slot = slot_of(key_part(thread_id))
        assert registry == registries[slot] == f"glasspoint:history:1:{{{tag_of_slot(slot)}}}:index"
        assert slot_of(tag_of_slot(slot)) == slot


# ------------------------------------------------------------------ who leaves


@with_few_lists
async def test_a_thread_that_expires_leaves_its_list(place: Place) -> None:
    async with place.opened(ttl=0.05) as hasty, place.opened(ttl=60) as saver:
        await put(hasty, "a", "b")
        assert await Thread("b").turn(saver) == 1
        await ids(saver)
        place.scans()

        async def has_expired() -> bool:
            return await ids(saver) == {"b"}

        await until(has_expired)
        assert await Thread("a").turn(saver) is None

        keys = place.keyspace
        beside = next(each for each in map(str, count()) if keys.registry_of(each) == keys.registry_of("a"))

        async def is_forgotten() -> bool:
            await put(saver, beside)
            return await place.names("a") is None

        await until(is_forgotten)
        assert await ids(saver) == {"b", beside}
        assert place.scans() == 0


@with_few_lists
async def test_a_thread_without_a_ttl_stays_and_one_that_is_deleted_leaves(place: Place) -> None:
    async with place.opened(ttl=None) as saver:
        await put(saver, "a", "b")
        assert await place.names("a") == float("inf")
        await saver.aprune(["a"], strategy="delete")
        token = await saver.seal_thread("b", lease_seconds=60)
        assert token
        assert await ids(saver) == {"b"}
        assert await saver.retire_thread("b", token, marker_seconds=60)
        assert await place.names("a") is await place.names("b") is None
        assert await ids(saver) == set()


# ------------------------------------------------------------------ lists that may lack threads


async def test_what_an_older_release_has_stored_is_found_by_one_look_at_all_keys(place: Place) -> None:
    async with place.opened(ttl=60) as saver, place.opened(ttl=None) as eternal:
        await put(saver, *THREADS)
        await put(eternal, "eternal")
        before = {each: await place.names(each) for each in THREADS}
        place.lose_lists()
        place.scans()
        assert await ids(saver) == THREADS | {"eternal"}
        assert place.scans()
        assert await ids(saver) == THREADS | {"eternal"}
        assert place.scans() == 0
        assert await place.names("eternal") == float("inf")
        for each, expires in before.items():
            found = await place.names(each)
            assert found is not None
            assert expires is not None
            assert abs(found - expires) < 5, "it leaves the list when it expires"


@with_few_lists
async def test_a_thread_that_an_older_release_stores_later_is_found_when_this_one_uses_it(
    place: Place,
) -> None:
    async with place.opened() as saver:
        await put(saver, *THREADS)
        await ids(saver)
        older: Any = place.client
        await older.zrem(place.keyspace.registry_of("대화 {3}"), key_part("대화 {3}"))
        place.scans()
        assert await ids(saver) == THREADS - {"대화 {3}"}
        assert await saver.aget_tuple(config_of("대화 {3}"))
        assert await ids(saver) == THREADS
        assert place.scans() == 0


async def test_a_list_that_is_lost_is_made_anew(place: Place) -> None:
    async with place.opened() as saver:
        await put(saver, *THREADS)
        await ids(saver)
        place.lose_lists("대화 {7}")
        await put(saver, "대화 {7} again")
        place.scans()
        for looks in (True, False):
            assert await ids(saver) == THREADS | {"대화 {7} again"}
            assert bool(place.scans()) is looks


@with_few_lists
async def test_who_comes_and_goes_during_the_look_is_not_missed_and_not_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_lost_lists(place) as (saver, other):

        async def come_and_go() -> None:
            await put(other, *(f"new {number}" for number in range(10)))
            for each in THREADS - {"대화 {0}"}:
                await other.adelete_thread(each)

        during_the_look(saver, monkeypatch, come_and_go)
        assert await ids(saver) >= {"대화 {0}"}
        place.scans()
        assert await ids(other) == {"대화 {0}", *(f"new {number}" for number in range(10))}
        assert place.scans() == 0


@with_few_lists
async def test_lists_that_are_lost_during_the_look_are_not_taken_for_complete(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_lost_lists(place) as (saver, other):

        async def lose() -> None:
            place.lose_lists()

        during_the_look(saver, monkeypatch, lose)
        assert await ids(saver) == THREADS
        place.scans()
        assert await ids(other) == THREADS
        assert place.scans()


@with_few_lists
async def test_after_a_failover_during_the_look_it_is_done_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new master may lack what the lists were told last."""
    async with with_lost_lists(place) as (saver, other):
        masters = iter(["the old one", "the new one"])

        async def servers() -> object:
            return next(masters)

        monkeypatch.setattr(saver._steps, "servers", servers)
        assert await ids(saver) == THREADS
        for looks in (True, True, False):
            assert bool(place.scans()) is looks
            assert await ids(other) == THREADS


async def test_while_a_slot_moves_no_list_is_taken_for_complete(
    options: dict[str, Any], nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key may move from a master that was not asked yet to one that was."""
    async with nodes.client() as client:
        place = Place(client, [each.port for each in nodes.masters()], options)
        async with with_lost_lists(place) as (saver, other):
            slot = 0  # of no thread
            to = next(each for each in nodes.masters() if each is not nodes.master_of(slot))
            source = nodes.begin_move(slot, to)
            for _ in range(2):
                place.scans()
                assert await ids(saver) == THREADS
                assert place.scans(), "it looks each time"
            nodes.end_move(slot, source, to)
            await until(lambda: agreed(nodes))

            async def move_back() -> None:
                nodes.move(slot, source)

            during_the_look(saver, monkeypatch, move_back)
            assert await ids(saver) == THREADS
            await until(lambda: agreed(nodes))
            place.scans()
            for looks in (True, False):
                assert await ids(other) == THREADS
                assert bool(place.scans()) is looks


async def test_while_the_slot_of_a_thread_is_on_its_way_a_listing_fails_and_says_so(nodes: Nodes) -> None:
    async with nodes.client() as client:
        place = Place(client, [each.port for each in nodes.masters()], ALONE)
        async with place.opened() as saver:
            await put(saver, "a")
            await ids(saver)
            slot = slot_of("a")
            to = next(each for each in nodes.masters() if each is not nodes.master_of(slot))
            source = nodes.begin_move(slot, to)
            with pytest.raises(RedisUnavailableError, match="slot of the Redis Cluster is on its way"):
                [each async for each in saver.alist_threads()]
            nodes.end_move(slot, source, to)
            assert [each.thread_id async for each in saver.alist_threads()] == ["a"]


def agreed(nodes: Nodes) -> bool:
    """Whether all nodes know the same of all slots and of the epoch."""
    epochs = {
        nodes.ask(each, "CLUSTER", "INFO").split(b"cluster_current_epoch:")[1].split()[0]
        for each in nodes.servers
    }
    return len(epochs) == len({nodes.view_of(each) for each in nodes.servers}) == 1


@with_few_lists
async def test_a_reader_that_changes_nothing_leaves_the_lists_as_they_are(place: Place) -> None:
    """`glasspoint check`, and the source of `glasspoint migrate`."""
    async with place.opened() as saver:
        await put(saver, *THREADS)
        place.lose_lists()
        place.scans()
        for _ in range(2):
            assert {each async for each in saver.thread_ids(only_reads=True)} == THREADS
            assert place.scans()
        assert await place.names("대화 {0}") is None


async def test_a_full_redis_lists_what_it_has(options: dict[str, Any], own_redis: EmbeddedRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        place = Place(redis, [own_redis.port], options)
        async with place.opened() as saver:
            await put(saver, *THREADS)
            place.lose_lists()
            await redis.config_set("maxmemory", 1)
            for _ in range(2):
                assert await ids(saver) == THREADS
                assert place.scans()
            await redis.config_set("maxmemory", 0)
            for looks in (True, False):
                assert await ids(saver) == THREADS
                assert bool(place.scans()) is looks


@with_few_lists
async def test_a_thread_that_is_evicted_as_a_whole_is_named_by_the_list_of_a_target_alone(
    place: Place,
) -> None:
    async with place.opened() as saver:
        await put(saver, *THREADS)
        client: Any = place.client
        for key in place.keyspace.parts_of_thread("대화 {5}"):
            await client.delete(key)
        if place.options is ALONE:
            assert await Thread("대화 {5}").turn(saver) is None
            assert len(await listed(saver, None)) == 19
        else:
            with pytest.raises(ThreadDamagedError):
                await Thread("대화 {5}").turn(saver)
