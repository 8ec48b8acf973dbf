"""Cached states, looked up without PostgreSQL: what is no longer true is not found, and never an error of the
look-up alone. What is not known is an error."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.coherence.cluster_images import InCluster
from glasspoint.coherence.images import Images, OneRedis
from glasspoint.coherence.last_used import LastUsed
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import RedisUnavailableError
from glasspoint.model.scope import Scope, key_part
from glasspoint.redis.signature import SIZE
from glasspoint.redis.topology import RANGES, range_of, slot_of, tag_of_range
from redis_nodes import Nodes
from redis_users import allow, url_of_user
from states import numbered_id, open_saver
from steps import Thread, settled, suspended, until

SCOPE = Scope("t", "")
SLOT = slot_of(key_part("t"))
TIMEOUT: Any = {"timeout_seconds": 5.0, "key_prefix": "glasspoint"}


def last_used(target_id: str = "0" * 16) -> LastUsed:
    return LastUsed(target_id, b"sixteen bytes..!", key_prefix="glasspoint", signing_key=None)


class Cached:
    """A thread in the cache, and what looks for its state.

    Attributes:
        saver: It has written the thread, and has left the record that leads to its entry.
        redis: A client of its Redis, or of the cluster.
        images: Finds the state.
    """

    def __init__(self, saver: CachedPostgresSaver, redis: Any, images: Images) -> None:
        self.saver, self.redis, self.images = saver, redis, images
        self.thread = Thread("t")

    async def found(self, scope: Scope = SCOPE) -> str | None:
        image = await self.images.find(scope)
        return None if image is None else image.checkpoint_id

    async def entry(self) -> bytes:
        """The key of the entry."""
        [key] = [each async for each in self.redis.scan_iter("*:{*") if b":last-used:" not in each]
        assert isinstance(key, bytes)
        return key

    async def records(self) -> list[bytes]:
        """The keys of the record: several in a cluster."""
        return [each async for each in self.redis.scan_iter("*:last-used:*")]


@asynccontextmanager
async def cached(database: str, url: str, redis: Any, *, looks: Any = None) -> AsyncIterator[Cached]:
    """Put a thread, and leave the record.

    Args:
        looks: The client of what looks for the state, if it is another one.
    """
    record, telemetry = last_used(), create_telemetry(registry=CollectorRegistry())
    async with open_saver(database, url, last_used=record, sweep_interval_seconds=3600) as saver, redis:
        place: Any = OneRedis if isinstance(redis, Redis) else InCluster
        there = Cached(saver, redis, Images(place(looks or redis, record, **TIMEOUT), telemetry))
        await there.thread.put(saver)
        await settled(saver)
        await saver.aget_tuple(there.thread.config)
        number = 1 if place is OneRedis else RANGES

        async def is_left() -> bool:
            return len(await there.records()) == number

        await until(is_left)
        try:
            yield there
        finally:
            await there.images.close()


@pytest.fixture(params=["one Redis", "a cluster"])
async def there(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Cached]:
    if request.param == "one Redis":
        url: str = request.getfixturevalue("redis_url")
        async with cached(database, url, Redis.from_url(url)) as there:
            yield there
    else:
        nodes: Nodes = request.getfixturevalue("nodes")
        async with in_cluster(database, nodes) as there:
            yield there


@asynccontextmanager
async def in_cluster(database: str, nodes: Nodes) -> AsyncIterator[Cached]:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in nodes.servers)
    async with cached(database, url, nodes.client()) as there:
        yield there


async def test_the_newest_state_is_found_until_it_is_forgotten(there: Cached) -> None:
    assert await there.found() == numbered_id(1)
    await there.thread.put(there.saver)
    await settled(there.saver)
    await there.saver.aget_tuple(there.thread.config)
    assert await there.found() == numbered_id(2)
    await there.images.forget(SCOPE)
    assert await there.found() is None


async def test_a_state_of_a_run_of_a_subgraph_is_not_looked_for(there: Cached) -> None:
    """No process keeps such an entry true. An old release may have left one."""
    assert await there.found(Scope("t", "node:1f000000-0000-6000-8000-000000000001")) is None


async def test_what_redis_has_changed_is_refused_and_said(
    there: Cached, caplog: pytest.LogCaptureFixture
) -> None:
    key = await there.entry()
    head: bytes = await there.redis.hget(key, "head")
    await there.redis.hset(key, "head", head.replace(b'"step"', b'"pets"'))
    assert await there.found() is None
    assert "namespace '' was refused" in caplog.text


async def test_a_record_that_was_renewed_meanwhile_is_read_again(there: Cached) -> None:
    assert await there.found() == numbered_id(1)
    record = last_used()
    for key in await there.records():
        identity = record.unpack(await there.redis.hget(key, record.field))
        assert identity is not None
        await there.redis.hset(key, record.field, record.pack(identity))
    assert await there.found() == numbered_id(1)
    for key in await there.records():
        await there.redis.delete(key)
    assert await there.found() is None


async def test_a_redis_that_has_lost_its_scripts_gets_them_again(there: Cached) -> None:
    assert await there.found() == numbered_id(1)
    await there.redis.script_flush()
    assert await there.found() == numbered_id(1)


async def test_a_key_of_another_type_is_no_state_and_that_is_said_once(
    there: Cached, caplog: pytest.LogCaptureFixture
) -> None:
    key = await there.entry()
    await there.redis.delete(key)
    await there.redis.set(key, "no hash")
    assert [await there.found() for _ in range(2)] == [None, None]
    assert caplog.text.count("Cached states cannot be read from Redis (ResponseError)") == 1


async def test_nobody_but_the_processes_of_the_target_can_write_the_record(there: Cached) -> None:
    record = last_used()
    for key in await there.records():
        left: bytes = await there.redis.hget(key, record.field)
        forged = json.dumps(json.loads(left[:-SIZE]) | {"generation": "forged"}).encode()
        await there.redis.hset(key, record.field, forged + left[-SIZE:])
    assert await there.found() is None


# ------------------------------------------------------------------ what is not known


async def test_a_user_without_the_rights_finds_no_state_and_that_is_said_once(
    database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    await allow(own_redis, "~*", "-@all +hget +hello +client +ping +info")
    async with (
        Redis.from_url(url_of_user(own_redis)) as user,
        cached(database, own_redis.url, Redis.from_url(own_redis.url), looks=user) as there,
    ):
        assert [await there.found() for _ in range(2)] == [None, None]
    assert caplog.text.count("Cached states cannot be read from Redis") == 1


async def test_that_redis_does_not_answer_is_no_answer(database: str, own_redis: EmbeddedRedis) -> None:
    async with cached(database, own_redis.url, Redis.from_url(own_redis.url)) as there:
        own_redis.kill()
        with pytest.raises(RedisUnavailableError, match="is not known"):
            await there.found()


async def test_that_no_node_of_a_cluster_answers_is_no_answer(database: str, nodes: Nodes) -> None:
    async with in_cluster(database, nodes) as there:
        place = InCluster(there.redis, last_used(), timeout_seconds=0.1, key_prefix="glasspoint")
        processes = [psutil.Process(server.pid) for server in nodes.servers]
        with suspended(*processes), pytest.raises(RedisUnavailableError, match="tells its topology"):
            await place.peek(SCOPE)
        await place.close()


async def test_that_a_master_does_not_answer_is_no_answer_and_its_replica_is_found_afterwards(
    database: str, nodes: Nodes
) -> None:
    async with in_cluster(database, nodes) as there:
        assert await there.found() == numbered_id(1)
        master = nodes.master_of(SLOT)
        nodes.ask(master, "WAIT", 1, 10_000)
        master.kill()
        with pytest.raises(RedisUnavailableError, match="is not known"):
            await there.found()


@pytest.mark.parametrize("was_read_before", [True, False])
async def test_while_the_slot_of_the_record_is_on_its_way_nothing_is_known(
    database: str, nodes: Nodes, was_read_before: bool
) -> None:
    async with in_cluster(database, nodes) as there:
        if was_read_before:
            assert await there.found() == numbered_id(1)
        slot = slot_of(tag_of_range(range_of(key_part("t"))))
        source = nodes.master_of(slot)
        to = next(each for each in nodes.masters() if each is not source)
        nodes.begin_move(slot, to)
        nodes.migrate(nodes.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100), source, to)
        with pytest.raises(RedisUnavailableError, match="on its way"):
            await there.found()


async def test_an_entry_that_is_on_its_way_is_no_state(database: str, nodes: Nodes) -> None:
    async with in_cluster(database, nodes) as there:
        source = nodes.master_of(SLOT)
        to = next(each for each in nodes.masters() if each is not source)
        nodes.begin_move(SLOT, to)
        nodes.migrate([await there.entry()], source, to)
        assert await there.found() is None
