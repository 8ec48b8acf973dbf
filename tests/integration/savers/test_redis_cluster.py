"""`RedisSaver` on a Redis Cluster: three real nodes on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import redis as sync_redis
from prometheus_client import CollectorRegistry
from redis.asyncio import RedisCluster

from conformance_suite import ALL, ONLY_TODAYS_FORMAT, check_conformance
from glasspoint import RedisSaver, create_redis_checkpointer, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import (
    ConfigurationError,
    RedisRefusedError,
    RedisUnavailableError,
)
from redis_nodes import Nodes, start_node
from redis_tier import SIGNED
from states import config_of, counts, exact
from steps import Thread, until

SLOTS = 16384
NODES = 3
WAYS: dict[str, dict[str, Any]] = {"alone": {}, "of a target, signed": SIGNED}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[EmbeddedRedis]]:
    with ExitStack() as started:
        servers = [started.enter_context(start_node()) for _ in range(NODES)]
        Nodes(servers).give_slots(NODES)
        yield servers


@pytest.fixture
async def cluster(nodes: list[EmbeddedRedis]) -> AsyncIterator[RedisCluster]:
    """A client of the cluster, which knows all of it and is empty."""

    def formed() -> bool:
        for each in nodes:
            with sync_redis.Redis(host="127.0.0.1", port=each.port) as client:
                info = client.execute_command("CLUSTER INFO")
                if info["cluster_state"] != "ok" or info["cluster_slots_ok"] != str(SLOTS):
                    return False
        return True

    await until(formed)
    for each in nodes:
        each.flush()
    async with RedisCluster(host="127.0.0.1", port=nodes[0].port) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_process_works_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the first thread of each list needs not wait until such processes know of it."""
    monkeypatch.setattr("glasspoint.history.in_redis.HEARD_SECONDS", 0.0)


@asynccontextmanager
async def opened(cluster: RedisCluster, **options: Any) -> AsyncIterator[RedisSaver]:
    options.setdefault("telemetry", create_telemetry(registry=CollectorRegistry()))
    async with await create_redis_checkpointer(cluster, **options) as saver:
        yield saver


@ONLY_TODAYS_FORMAT
@pytest.mark.usefixtures("checkpoint_format")
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("capability", ALL)
async def test_conforms(capability: str, options: dict[str, Any], cluster: RedisCluster) -> None:
    await check_conformance(capability, "RedisSaver on a cluster", lambda: opened(cluster, **options))


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
async def test_threads_stand_on_all_nodes_and_are_found_and_copied_between_them(
    options: dict[str, Any], cluster: RedisCluster, nodes: list[EmbeddedRedis]
) -> None:
    threads = {f"대화 {{{number}}}" for number in range(20)}
    async with opened(cluster, **options) as saver:
        for thread_id in threads:
            await Thread(thread_id).put(saver)
        for each in nodes:
            with sync_redis.Redis(host="127.0.0.1", port=each.port) as client:
                assert client.dbsize(), "the threads are not spread"
        assert {each async for each in saver.thread_ids()} == threads
        assert await saver.count() == (20, 20)
        assert len([each async for each in saver.alist(None)]) == len(threads)
        source = await saver.aget_tuple(config_of("대화 {0}"))
        assert source is not None
        for number in range(20):
            await saver.acopy_thread("대화 {0}", f"copy {number}")
            copied = await saver.aget_tuple(config_of(f"copy {number}"))
            assert copied is not None
            assert exact(copied.checkpoint) == exact(source.checkpoint)
        await saver.adelete_for_runs(["no such run"])


async def test_a_node_that_has_lost_the_scripts_gets_them_again(
    cluster: RedisCluster, nodes: list[EmbeddedRedis]
) -> None:
    threads = [Thread(str(number)) for number in range(10)]
    async with opened(cluster) as saver:
        for each in nodes:
            with sync_redis.Redis(host="127.0.0.1", port=each.port) as client:
                client.script_flush()
        for thread in threads:
            await thread.put(saver)
        assert [await thread.turn(saver) for thread in threads] == [1] * len(threads)


async def test_the_connections_to_all_nodes_are_counted(cluster: RedisCluster) -> None:
    registry = CollectorRegistry()
    async with opened(cluster, telemetry=create_telemetry(registry=registry)) as saver:
        await Thread("a").put(saver)

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"glasspoint_{name}", {"saver": "default", **labels})

        assert value("redis_pool_connections", state="idle")
        assert value("redis_pool_connections", state="in_use") == 0
        assert all(counts(registry, "glasspoint_info", "redis")), "the version is not known"
        assert value("active_tier", tier="redis") == 1
        assert value("active_tier", tier="cached") == 0


async def test_a_node_that_may_evict_is_named(
    nodes: list[EmbeddedRedis], cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with sync_redis.Redis(host="127.0.0.1", port=nodes[-1].port) as client:
        client.config_set("maxmemory", 2**30)
        client.config_set("maxmemory-policy", "volatile-lfu")
        try:
            async with opened(cluster):
                pass
        finally:
            client.config_set("maxmemory", 0)
    (line,) = [each for each in caplog.messages if "may evict conversations" in each]
    assert "volatile-lfu" in line


async def test_a_cluster_client_that_decodes_is_refused(nodes: list[EmbeddedRedis]) -> None:
    async with RedisCluster(host="127.0.0.1", port=nodes[0].port, decode_responses=True) as decoding:
        with pytest.raises(ConfigurationError, match="decode_responses=True"):
            RedisSaver(decoding)


async def test_a_cluster_that_is_gone_is_unavailable(own_redis: EmbeddedRedis) -> None:
    own_redis.kill()
    gone = RedisCluster(host="127.0.0.1", port=own_redis.port)
    with pytest.raises(RedisUnavailableError, match="Redis did not answer"):
        await create_redis_checkpointer(gone)
    await gone.aclose()


async def test_a_value_that_is_larger_than_redis_takes_spoils_no_connection(
    cluster: RedisCluster, nodes: list[EmbeddedRedis]
) -> None:
    """The client of a cluster hands a connection out again without a look at it."""
    for each in nodes:
        with sync_redis.Redis(host="127.0.0.1", port=each.port) as client:
            client.config_set("proto-max-bulk-len", 2**20)
    try:
        async with opened(cluster) as saver:
            thread = Thread("a")
            await thread.put(saver)
            for size in (2**20, 2**20 + 2**16, 3 * 2**19):
                with pytest.raises(RedisRefusedError, match="proto-max-bulk-len"):
                    await thread.put(saver, large=["x" * size])
                thread.number -= 1
                assert await thread.turn(saver) == 1
    finally:
        for each in nodes:
            with sync_redis.Redis(host="127.0.0.1", port=each.port) as client:
                client.config_set("proto-max-bulk-len", 2**29)
