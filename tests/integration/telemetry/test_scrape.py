"""How large a scrape is: one saver on its fullest day, with everything that a service can meet."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, get_args

import pytest
from langgraph.errors import GraphInterrupt
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis

from chains import chain
from databases import with_tables
from glasspoint import FallbackSaver, Telemetry, conversation_turn, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError
from glasspoint.model.scope import Scope
from glasspoint.telemetry.events import L1Result
from places import DOCS
from states import config_of, counts, warmed_up
from steps import Thread, locked, settled, until

TEXT = (DOCS / "telemetry.md").read_text("utf-8")
QUICK: dict[str, Any] = {"pool_timeout": 0.5, "write_deadline": 0.5, "l1_timeout": 0.25}


def series_of(registry: CollectorRegistry) -> Counter[str]:
    """Family -> how many series it has."""
    return Counter({family.name: len(family.samples) for family in registry.collect() if family.samples})


async def read_in_every_way(saver: FallbackSaver, redis_server: EmbeddedRedis) -> None:
    """Every result of a read but `unavailable`."""
    cached: Any = saver._chain.saver
    thread = Thread("a")
    await thread.turn(saver)  # absent
    await thread.put(saver)
    first = thread.newest
    await thread.put_writes(saver, "x")
    await settled(cached)
    await thread.turn(saver)  # hit
    await thread.put_writes(saver, "y")  # the first of its burst
    await settled(cached)
    await thread.put(saver)
    await settled(cached)
    await saver.aget_tuple(first)  # historical
    await saver.aget_tuple(config_of("a", "agent:1f000000-0000-6000-8000-000000000001"))  # bypassed
    intent = await cached._l1.begin(Scope("a", ""))
    await thread.turn(saver)  # busy
    await cached._l1.abort(intent)
    redis_server.flush()
    await thread.turn(saver)  # miss
    await warmed_up(cached)
    async with Redis.from_url(redis_server.url) as redis:
        (key,) = [key async for key in redis.scan_iter("*{a}*")]
        await redis.hset(key, mapping={"id": "x", "head": "x"})
    await thread.turn(saver)  # incomplete
    await warmed_up(cached)


async def fail(*calls: Callable[[], Awaitable[Any]]) -> None:
    for call in calls:
        with pytest.raises(GlasspointError):
            await call()


async def cancelled(call: Coroutine[Any, Any, Any], waits: Callable[[], Awaitable[Any]]) -> None:
    """Cancel a call while it waits for PostgreSQL."""
    task = asyncio.create_task(call)
    await waits()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def have_turns(telemetry: Telemetry) -> None:
    """A turn of one agent for each way to end."""
    for error in (None, GraphInterrupt(), LookupError(), asyncio.CancelledError()):
        try:
            with conversation_turn("a", agent_name="concierge", telemetry=telemetry):
                if error is not None:
                    raise error
        except (GraphInterrupt, LookupError, asyncio.CancelledError):
            pass


async def maintain(saver: FallbackSaver) -> None:
    """Everything that an application may call besides turns."""
    assert [each async for each in saver.alist(config_of("a"))]
    assert [each async for each in saver.alist_threads()]
    await saver.aget_delta_channel_history(config=config_of("a"), channels=["messages"])
    await saver.acopy_thread("a", "b")
    await saver.aprune(["b"])
    await saver.adelete_for_runs(["no such run"])
    await saver.aprune_older_than(timedelta(days=1))
    await saver.adelete_thread("b")


async def test_a_saver_has_few_series_even_on_its_fullest_day(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """docs/telemetry.md says how many, and how large the scrape is."""
    telemetry = create_telemetry(registry=registry)
    database = with_tables(own_postgres)
    one, two, three = (Thread(f"thread {number}") for number in range(3))
    async with chain(database, own_redis.url, registry, **QUICK) as saver:
        await read_in_every_way(saver, own_redis)
        await have_turns(telemetry)
        for break_ in (own_postgres.stop, own_redis.kill):
            break_()
            await fail(lambda: one.turn(saver), lambda: one.put(saver), lambda: one.put_writes(saver, "x"))
        own_postgres.start()
        await until(lambda: works(saver))  # its reads are `unavailable`
        own_redis.start()
    own_postgres.stop()
    async with chain(database, own_redis.url, registry, **QUICK) as saver:
        assert saver.tier == "redis"
        await Thread("in an outage").put(saver)
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await until(saver._chain.saver.status.storage)  # type: ignore[arg-type]
        assert set(counts(registry, "glasspoint_l1_reads_total", "result")) == set(get_args(L1Result))
        in_service = series_of(registry)
        page = generate_latest(registry)
        assert in_service.total() < 450, in_service

        await maintain(saver)
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE") as waits:
            for call in (one.turn, two.put, three.put):
                await cancelled(call(saver), waits)
        in_full = series_of(registry)
    grown = {name: count for name, count in (in_full - in_service).items() if count}
    assert set(grown) == {"glasspoint_operation_duration_seconds"}, "of what turns do not need"
    each = in_service["glasspoint_operation_duration_seconds"] // 6
    said = re.search(
        r"has (\d+) series, (\d+) kB .* (\d+) more for each further .* up to (\d+) in all", TEXT, re.DOTALL
    )
    assert said is not None
    series, kilobytes, more, at_most = map(int, said.groups())
    assert (series, more, at_most) == (in_service.total(), each, in_full.total())
    assert len(page) / 1000 == pytest.approx(kilobytes, rel=0.05), "figures differ in their digits"


async def works(saver: FallbackSaver) -> bool:
    try:
        await saver.aget_tuple(config_of("nobody"))
    except GlasspointError:
        return False
    return True
