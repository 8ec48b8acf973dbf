"""What a plain URL leads to is found out, or said by a mode; on real servers of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis, RedisCluster

from glasspoint import CachedPostgresSaver, RedisSaver, create_redis_checkpointer, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import ConfigurationError, RedisRefusedError, RedisUnavailableError
from glasspoint.redis.client import address_of
from glasspoint.redis.detection import connect_redis
from redis_nodes import start_node
from sentinels import SERVICE, Sentinel, sentinel_url
from states import counts, open_saver
from steps import Thread, until

SLOTS = 16384


@pytest.fixture(scope="module")
def node() -> Iterator[EmbeddedRedis]:
    """A cluster of one node."""
    server = start_node()
    with server._client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE" if _is_new(client) else "ADDSLOTS", *_slots(client))
    yield server
    server.close()


def _is_new(client: Any) -> bool:
    return int(client.info("server")["redis_version"].split(".")[0]) >= 7


def _slots(client: Any) -> Any:
    return (0, SLOTS - 1) if _is_new(client) else range(SLOTS)


@pytest.fixture(scope="module")
def sentinel() -> Iterator[Sentinel]:
    """A sentinel of two services, whose masters are nowhere."""
    with Sentinel(
        "sentinel monitor orders 127.0.0.1 1 1", f"sentinel monitor {SERVICE} 127.0.0.1 1 1"
    ) as server:
        yield server


async def formed(node: EmbeddedRedis) -> None:
    def is_ok() -> bool:
        with node._client() as client:
            return client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"

    await until(is_ok)


@pytest.mark.parametrize("mode", ["auto", "single"])
async def test_one_server_is_one_server(mode: Any, redis_url: str) -> None:
    async with await connect_redis(redis_url, timeout_seconds=2, mode=mode) as redis:
        assert isinstance(redis, Redis)
        assert await redis.ping()


async def test_a_server_that_is_away_counts_as_one_server(own_redis: EmbeddedRedis) -> None:
    own_redis.kill()
    async with await connect_redis(own_redis.url, timeout_seconds=2) as redis:
        assert isinstance(redis, Redis)
    own_redis.start()
    own_redis.freeze()
    async with await connect_redis(own_redis.url, timeout_seconds=2, step_seconds=0.05) as redis:
        assert isinstance(redis, Redis)


@pytest.mark.parametrize(
    ("scheme", "mode"), [("redis", "auto"), ("redis", "cluster"), ("redis+cluster", "auto")]
)
async def test_a_redis_saver_works_on_a_cluster_by_url(scheme: str, mode: Any, node: EmbeddedRedis) -> None:
    await formed(node)
    node.flush()
    url = f"{scheme}://127.0.0.1:{node.port}"
    thread = Thread("a")
    async with await create_redis_checkpointer(url, redis_mode=mode) as saver:
        assert isinstance(saver.client, RedisCluster)
        assert address_of(saver.client) == ("127.0.0.1", node.port)
        await thread.put(saver)
    async with RedisSaver.from_conn_string(url, redis_mode=mode) as saver:
        assert await thread.turn(saver) == 1


@pytest.mark.parametrize(
    ("scheme", "mode"), [("redis", "auto"), ("redis", "cluster"), ("redis+cluster", "auto")]
)
async def test_a_cluster_is_a_cache_by_url(
    scheme: str, mode: Any, node: EmbeddedRedis, database: str
) -> None:
    url, registry, thread = f"{scheme}://127.0.0.1:{node.port}", CollectorRegistry(), Thread("a")
    telemetry = create_telemetry(registry=registry)
    async with await CachedPostgresSaver.create(database, url, redis_mode=mode, telemetry=telemetry) as saver:
        assert saver.status.shards is not None
        await thread.put(saver)

        async def hits() -> int:
            assert await thread.turn(saver) == thread.number
            return counts(registry, "glasspoint_l1_reads_total", "result").get("hit", 0)

        await until(hits)


async def test_a_node_is_refused_where_one_server_is_asked_for(node: EmbeddedRedis, database: str) -> None:
    for opened in (
        lambda: CachedPostgresSaver.create(database, node.url, redis_mode="single"),
        lambda: RedisSaver.create(node.url, redis_mode="single"),
    ):
        with pytest.raises(ConfigurationError, match=r"node of a Redis Cluster.*CHECKPOINT_REDIS_MODE"):
            await opened()


async def test_a_client_of_one_server_that_leads_to_a_cluster_is_refused(node: EmbeddedRedis) -> None:
    """A thread and its list have other slots then. A proxy in front of a cluster does the same."""
    async with Redis.from_url(node.url) as client, await RedisSaver.create(client) as saver:
        with pytest.raises(RedisRefusedError, match=r"slots of a Redis Cluster: use redis\+cluster://"):
            await Thread("a").put(saver)


@pytest.mark.parametrize("mode", ["auto", "single"])
async def test_a_sentinel_is_refused_with_the_url_to_write(
    mode: Any, sentinel: Sentinel, database: str
) -> None:
    url = f"redis://127.0.0.1:{sentinel.port}"
    for opened in (
        lambda: CachedPostgresSaver.create(database, url, redis_mode=mode),
        lambda: RedisSaver.create(url, redis_mode=mode),
    ):
        with pytest.raises(ConfigurationError, match=r"is a sentinel.*'mymaster', 'orders'") as caught:
            await opened()
        assert f"redis+sentinel://[user:password@]127.0.0.1:{sentinel.port}/mymaster/0" in str(caught.value)


async def test_a_sentinel_that_is_met_later_is_said(
    sentinel: Sentinel, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    sentinel.stop()
    try:
        async with open_saver(database, f"redis://127.0.0.1:{sentinel.port}") as saver:
            await thread.put(saver)
            sentinel.start()
            await until(lambda: any("is a sentinel" in each for each in caplog.messages))
            assert await thread.turn(saver) == 1
    finally:
        if not sentinel.running:
            sentinel.start()


async def test_a_master_that_is_nowhere_is_unavailable(sentinel: Sentinel, database: str) -> None:
    url = sentinel_url(sentinel)
    with pytest.raises(RedisUnavailableError):
        await RedisSaver.create(url, timeout_seconds=0.5)
    thread = Thread("a")
    async with open_saver(database, url) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        assert (await saver._check())["l1"] == "unavailable"
