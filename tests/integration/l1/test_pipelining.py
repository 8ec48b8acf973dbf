"""The steps of concurrent callers go to Redis together, and each is answered, or fails, by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from states import counts, open_saver
from steps import Proxy, Thread, nowhere, put_all, tcp

MANY = 40


@pytest.fixture
def threads() -> list[Thread]:
    return [Thread(f"thread {i}") for i in range(MANY)]


def reads(registry: CollectorRegistry) -> dict[str, float]:
    return {k: n for k, n in counts(registry, "glasspoint_l1_reads_total", "result").items() if n}


async def turns(saver: CachedPostgresSaver, threads: list[Thread]) -> list[int | None]:
    return await asyncio.gather(*(thread.turn(saver) for thread in threads))


async def stats_of(redis: Redis) -> tuple[int, int]:
    """How many scripts the server has run, and how often it has read something from a client for that."""
    info = await redis.info("all")
    return info["cmdstat_evalsha"]["calls"], info["total_reads_processed"]


async def test_the_steps_of_concurrent_callers_arrive_together(
    database: str, own_redis: EmbeddedRedis, threads: list[Thread]
) -> None:
    async with open_saver(database, own_redis.url) as saver, Redis.from_url(own_redis.url) as redis:
        await put_all(saver, threads)
        scripts, received = await stats_of(redis)
        for _ in range(5):
            assert await turns(saver, threads) == [1] * MANY
        scripts_after, received_after = await stats_of(redis)
        assert scripts_after - scripts == 5 * MANY
        assert received_after - received < 5 * MANY // 4


async def test_one_that_fails_fails_alone(
    database: str, redis_url: str, threads: list[Thread], registry: CollectorRegistry
) -> None:
    telemetry = create_telemetry(registry=registry)
    async with (
        open_saver(database, redis_url, telemetry=telemetry) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        await put_all(saver, threads)
        [key] = [key async for key in redis.scan_iter() if b"{thread%2020}" in key]
        await redis.delete(key)
        await redis.set(key, "no hash")
        assert await turns(saver, threads) == [1] * MANY
        assert reads(registry) == {"hit": MANY - 1, "miss": 1}
        assert saver.status.breaker == "closed"


async def test_who_leaves_leaves_alone(database: str, redis_url: str, threads: list[Thread]) -> None:
    async with open_saver(database, redis_url) as saver:
        await put_all(saver, threads)
        reading = [asyncio.create_task(thread.turn(saver)) for thread in threads]
        await asyncio.sleep(0)  # every step is waiting for the others
        for task in reading[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*reading, return_exceptions=True)
        assert outcomes[1::2] == [1] * (MANY // 2)
        assert {type(outcome) for outcome in outcomes[::2]} == {asyncio.CancelledError}
        await put_all(saver, threads)
        assert await turns(saver, threads) == [2] * MANY


async def test_a_server_that_has_lost_its_scripts_is_taught_them_once(
    database: str, own_redis: EmbeddedRedis, threads: list[Thread], registry: CollectorRegistry
) -> None:
    telemetry = create_telemetry(registry=registry)
    async with (
        open_saver(database, own_redis.url, telemetry=telemetry) as saver,
        Redis.from_url(own_redis.url) as redis,
    ):
        await put_all(saver, threads)
        await redis.script_flush()
        assert await turns(saver, threads) == [1] * MANY
        assert reads(registry) == {"hit": MANY}


@pytest.mark.parametrize("outage", ["cut", "silent"])
async def test_without_an_answer_postgres_answers_everyone(
    outage: str, database: str, own_redis: EmbeddedRedis, threads: list[Thread], registry: CollectorRegistry
) -> None:
    """Also after a write that Redis was not told of: nobody gets the state before it."""
    telemetry = create_telemetry(registry=registry)
    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        open_saver(database, proxy.url, telemetry=telemetry, l1_timeout_seconds=0.2) as saver,
    ):
        await put_all(saver, threads)
        reading = [asyncio.create_task(thread.turn(saver)) for thread in threads]
        await asyncio.sleep(0)
        if outage == "cut":
            await proxy.cut()
        else:
            await proxy.switch(nowhere)
        assert await asyncio.gather(*reading) == [1] * MANY
        if outage == "silent":
            await put_all(saver, threads)
            assert await turns(saver, threads) == [2] * MANY
            await proxy.switch(tcp(own_redis))
            assert await turns(saver, threads) == [2] * MANY


async def test_a_client_with_a_way_of_its_own_is_asked_for_each_step(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    class Counting(Redis):
        steps = 0

        async def evalsha(self, *args: Any) -> Any:
            Counting.steps += 1
            return await super().evalsha(*args)

    async with Counting.from_url(redis_url) as redis, open_saver(database, redis) as saver:  # type: ignore[arg-type]
        await put_all(saver, threads)
        assert await turns(saver, threads) == [1] * MANY
        assert Counting.steps >= 3 * MANY


async def test_large_values_go_beside_the_others(
    database: str, redis_url: str, threads: list[Thread]
) -> None:
    large = "x" * 2_000_000
    async with open_saver(database, redis_url, l1_timeout_seconds=5) as saver:
        values = [{"file": [large]} if i % 20 == 0 else {} for i in range(MANY)]
        await asyncio.gather(
            *(thread.put(saver, **more) for thread, more in zip(threads, values, strict=True))
        )
        assert await turns(saver, threads) == [1] * MANY
