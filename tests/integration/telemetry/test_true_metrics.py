"""What the metrics say is what happened: an application counts its own calls, and a scrape agrees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import time
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from redis.asyncio import Redis

from databases import with_tables
from glasspoint import CachedPostgresSaver, Telemetry, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError, L2DeadlineError, L2UnavailableError
from glasspoint.telemetry.catalogue import COULD_BE_HITS
from glasspoint.telemetry.events import Event, Observer, PoolWaited, failures
from glasspoint.telemetry.redacting import RedactingExporter
from states import config_of, counts, make_pool, open_saver
from steps import Thread, away, locked, settled, until

CALLERS = 12


@dataclass
class Scraped:
    """A registry, and what it says of the saver."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"glasspoint_{name}", {"saver": "default", **labels}) or 0.0

    @property
    def reads(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_l1_reads_total", "result")

    @property
    def timed(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_read_duration_seconds_count", "result")


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


@asynccontextmanager
async def held_pool(
    database: str, redis_url: str, telemetry: Telemetry, *, size: int = 1, **options: Any
) -> AsyncIterator[tuple[CachedPostgresSaver, Callable[[], Awaitable[None]]]]:
    """A saver all of whose connections are in use, and what gives them back."""
    async with open_saver(database, redis_url):
        pass  # makes the tables
    pool = make_pool(database, size)
    pool.timeout = options.pop("pool_timeout_seconds", 60.0)
    async with Redis.from_url(redis_url) as redis, pool:
        saver = CachedPostgresSaver(
            AsyncPostgresSaver(pool), redis, pool, telemetry=telemetry, audit_ratio=0, **options
        )
        await Thread("first").put(saver)
        await settled(saver)
        held = [await pool.getconn() for _ in range(size)]

        async def give_back() -> None:
            while held:
                await pool.putconn(held.pop())

        try:
            yield saver, give_back
        finally:
            await give_back()
            await saver.close()


class Waits(Observer):
    """Collects the waits for a connection."""

    def __init__(self) -> None:
        self.all: list[PoolWaited] = []

    def emitted(self, event: Event) -> None:
        if isinstance(event, PoolWaited):
            self.all.append(event)


# ------------------------------------------------------------------ reads


async def test_a_healthy_application_has_a_hit_ratio_near_one(
    database: str, redis_url: str, scraped: Scraped
) -> None:
    """New conversations and the subgraphs of runs are read in vain, and say nothing of the cache."""
    telemetry = create_telemetry(registry=scraped.registry)
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        threads = [Thread(f"thread {number}") for number in range(5)]
        for thread in threads:
            assert await thread.turn(saver) is None
            await thread.put(saver)
            await saver.aget_tuple(config_of(thread.thread_id, "agent:1f000000-0000-6000-8000-000000000001"))
            await settled(saver)
            assert await thread.turn(saver) == 1
    assert scraped.reads == {"absent": 5, "bypassed": 5, "hit": 5}
    could_be_hits = sum(scraped.reads[result] for result in COULD_BE_HITS.split("|"))
    assert scraped.reads["hit"] / could_be_hits == 1


async def test_a_miss_is_only_what_postgresql_has(database: str, own_redis: EmbeddedRedis) -> None:
    scraped = Scraped()
    telemetry = create_telemetry(registry=scraped.registry)
    thread, nobody = Thread("a"), Thread("nobody")
    async with open_saver(database, own_redis.url, telemetry=telemetry) as saver:
        await thread.put(saver)
        await settled(saver)
        own_redis.flush()
        assert await thread.turn(saver) == 1
        assert await nobody.turn(saver) is None
        assert scraped.reads == {"miss": 1, "absent": 1}
        own_redis.kill()
        await nobody.turn(saver)
        assert scraped.reads == {"miss": 1, "absent": 1, "unavailable": 1}, "nobody knows what Redis had"


async def test_reads_are_timed_by_who_served_them(database: str, redis_url: str, scraped: Scraped) -> None:
    telemetry = create_telemetry(registry=scraped.registry)
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=telemetry, write_deadline_seconds=0.5) as saver:
        await thread.turn(saver)
        await thread.put(saver)
        await settled(saver)
        for _ in range(3):
            await thread.turn(saver)
        assert scraped.reads == {"absent": 1, "hit": 3}
        assert scraped.timed == {"other": 1, "hit": 3}
        name = "read_duration_seconds_count"
        assert scraped.value(name, served_by="l1", result="hit") == 3
        assert scraped.value(name, served_by="l2", result="other") == 1
        seconds = scraped.value("read_duration_seconds_sum", served_by="l1", result="hit")
        of_all = scraped.value("operation_duration_seconds_sum", operation="get_tuple", outcome="ok")
        assert 0 < seconds < of_all
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE"):
            with pytest.raises(GlasspointError):
                await saver.aget_tuple(config_of("b"))
        assert scraped.reads == {"absent": 1, "hit": 3, "miss": 1}
        assert scraped.timed == {"other": 1, "hit": 3}, "nobody has served the failed read"


async def test_the_time_of_the_last_success_stands_still_while_calls_fail(
    database: str, redis_url: str, scraped: Scraped
) -> None:
    telemetry = create_telemetry(registry=scraped.registry)
    thread, other = Thread("a"), Thread("b")

    def last(operation: str) -> float:
        return scraped.value("last_success_timestamp_seconds", operation=operation)

    async with open_saver(database, redis_url, telemetry=telemetry, write_deadline_seconds=2.0) as saver:
        assert last("get_tuple") == last("put") == 0.0
        before = time()
        await thread.put(saver)
        await settled(saver)
        between = time()
        await thread.turn(saver)
        after = time()
        assert before <= last("put") <= between <= last("get_tuple") <= after
        written, read = last("put"), last("get_tuple")
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE"):
            for call in (other.put, other.turn):
                with pytest.raises(GlasspointError):
                    await call(saver)
            assert (last("put"), last("get_tuple")) == (written, read)
            await thread.turn(saver)  # a hit
            assert last("put") == written
            assert last("get_tuple") > read


# ------------------------------------------------------------------ the pool


async def test_who_waits_now_is_counted_and_who_has_left_is_not(
    database: str, redis_url: str, scraped: Scraped
) -> None:
    """Each caller counts, also if many go in one statement."""
    telemetry = create_telemetry(registry=scraped.registry)
    async with held_pool(database, redis_url, telemetry) as (saver, give_back):
        threads = [config_of(f"thread {number}") for number in range(CALLERS)]
        reading = [asyncio.create_task(saver.aget_tuple(each)) for each in threads]
        await until(lambda: scraped.value("pool_requests_waiting") == CALLERS)
        for task in reading[: CALLERS // 2]:
            task.cancel()
        await asyncio.wait(reading[: CALLERS // 2])
        assert scraped.value("pool_requests_waiting") == CALLERS // 2
        await give_back()
        assert await asyncio.gather(*reading[CALLERS // 2 :]) == [None] * (CALLERS // 2)
        assert scraped.value("pool_requests_waiting") == 0
        assert scraped.value("pool_timeouts_total") == 0, "they were cancelled, their time was not up"


async def test_each_caller_that_gets_no_connection_is_a_timeout_and_a_wait(
    database: str, redis_url: str, scraped: Scraped
) -> None:
    telemetry = create_telemetry(registry=scraped.registry)
    pool = held_pool(database, redis_url, telemetry, pool_timeout_seconds=0.2)
    async with pool as (saver, _):
        before = scraped.value("pool_wait_seconds_count")
        reading = (saver.aget_tuple(config_of(f"thread {number}")) for number in range(CALLERS))
        outcomes = await asyncio.gather(*reading, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {L2UnavailableError}
        assert scraped.value("pool_timeouts_total") == CALLERS
        assert scraped.value("pool_wait_seconds_count") - before == CALLERS
        assert scraped.value("pool_requests_waiting") == 0


async def test_a_write_whose_time_is_up_while_it_waits_says_what_it_waited_for(
    database: str, redis_url: str, scraped: Scraped
) -> None:
    waits = Waits()
    telemetry = create_telemetry(registry=scraped.registry)
    telemetry = Telemetry("default", [*telemetry.observers, waits])
    async with held_pool(database, redis_url, telemetry, write_deadline_seconds=0.5) as (saver, _):
        waits.all.clear()
        with pytest.raises(
            L2DeadlineError, match=r"^No PostgreSQL connection came free within 0\.\d s"
        ) as raised:
            await Thread("b").put(saver)
        assert "did not finish a write within 0.5 s; it does not have it" in str(raised.value)
        [wait] = waits.all
        assert wait.is_timeout
        assert wait.error is not None
        assert scraped.value("pool_timeouts_total") == 1


async def test_while_postgresql_is_down_the_error_says_so_first(
    own_postgres: EmbeddedPostgres, redis_url: str, scraped: Scraped
) -> None:
    database = with_tables(own_postgres)
    telemetry = create_telemetry(registry=scraped.registry)
    options: Any = {"pool_max_size": 2, "pool_timeout_seconds": 0.5}
    async with open_saver(database, redis_url, telemetry=telemetry, **options) as saver:
        await Thread("a").put(saver)
        with away(own_postgres, "down"):
            reading = (saver.aget_tuple(config_of(f"thread {number}")) for number in range(CALLERS))
            outcomes = await asyncio.gather(*reading, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {L2UnavailableError}
        for outcome in outcomes:
            assert "too small" not in str(outcome)
        waited = [each for each in outcomes if "came free" in str(each)]
        assert all(str(each).startswith("PostgreSQL gives no new connection") for each in waited)
        assert scraped.value("pool_timeouts_total") == len(waited)


# ------------------------------------------------------------------ sizes, and what Redis costs


async def test_a_small_change_of_a_large_state_does_not_count_as_a_small_state(
    database: str, redis_url: str, scraped: Scraped
) -> None:
    telemetry = create_telemetry(registry=scraped.registry)
    thread = Thread("a")

    def mean(name: str, **labels: str) -> float:
        number = scraped.value(f"{name}_count", **labels)
        return scraped.value(f"{name}_sum", **labels) / number if number else 0.0

    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        await thread.put(saver, document=["x" * 1_000_000])
        await settled(saver)
        assert 1_000_000 < mean("entry_bytes", direction="write", operation="commit") < 1_010_000
        config, checkpoint, metadata, versions = thread.next_put(saver, document=["x" * 1_000_000])
        del versions["document"]
        checkpoint["channel_versions"]["document"] = f"{1:032}.5"
        thread.newest = await saver.aput(config, checkpoint, metadata, versions)
        await settled(saver)
        await saver.aget_tuple(thread.config)
        assert scraped.value("entry_bytes_count", direction="write", operation="commit") == 1
        assert 1_000_000 < mean("entry_bytes", direction="read", operation="get_tuple") < 1_010_000
        assert scraped.value("write_bytes_count", operation="put") == 2
        await thread.put_writes(saver, "x" * 5000)
        assert 5000 < mean("write_bytes", operation="put_writes") < 6000


async def test_times_of_redis_are_not_observed_while_it_is_left_alone(
    database: str, own_redis: EmbeddedRedis, scraped: Scraped
) -> None:
    telemetry = create_telemetry(registry=scraped.registry)
    thread = Thread("a")

    def timed(tier: str) -> float:
        return scraped.value("write_through_duration_seconds_count", operation="put", tier=tier)

    async with open_saver(database, own_redis.url, telemetry=telemetry) as saver:
        await thread.put(saver)
        await settled(saver)
        assert (timed("l1"), timed("l2")) == (1, 1)
        own_redis.kill()
        await until(lambda: _put_until_open(thread, saver))
        before = timed("l1"), timed("l2")
        for _ in range(5):
            await thread.put(saver)
        assert timed("l1") == before[0], "an instant refusal is no time of Redis"
        assert timed("l2") == before[1] + 5


async def _put_until_open(thread: Thread, saver: CachedPostgresSaver) -> bool:
    await thread.put(saver)
    return saver._parts.breaker.state == "open"


# ------------------------------------------------------------------ a scrape


async def test_the_database_has_its_name_in_the_metrics(
    postgres: EmbeddedPostgres, redis_url: str, scraped: Scraped
) -> None:
    """So that a board can tell our databases from others on the same server."""
    url = postgres.create_database("chats")
    async with open_saver(url, redis_url, telemetry=create_telemetry(registry=scraped.registry)):
        assert counts(scraped.registry, "glasspoint_info", "database") == {"chats": 1}
    postgres.drop_database("chats")


async def test_a_scrape_has_no_series_about_series(database: str, redis_url: str, scraped: Scraped) -> None:
    telemetry = create_telemetry(registry=scraped.registry)
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        await thread.turn(saver)
        await thread.put(saver)
        for page in (generate_latest(scraped.registry), generate_openmetrics(scraped.registry)):
            assert b"glasspoint_operation_duration_seconds_bucket" in page
            assert b"glasspoint_serde_duration_seconds_sum" in page
            assert b"_created" not in page


# ------------------------------------------------------------------ telemetry itself


class Deaf(SpanExporter):
    """A collector that takes nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


class Breaks(SpanExporter):
    """An exporter with a mistake."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise ZeroDivisionError


class BreaksAtEvents(Observer):
    """An application's own observer, with a mistake."""

    def operation_ended(self, operation: Any) -> None:
        raise ZeroDivisionError


async def test_what_telemetry_loses_is_counted(
    database: str, redis_url: str, scraped: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures.dropped.clear()

    def dropped() -> dict[str, int]:
        return counts(scraped.registry, "glasspoint_telemetry_dropped_total", "what")

    telemetry = create_telemetry(registry=scraped.registry)
    telemetry = Telemetry("default", [*telemetry.observers, BreaksAtEvents()])
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        assert dropped() == {}
        await thread.put(saver)
        assert dropped() == {"events": 1}
        span = ReadableSpan("x")
        deaf = RedactingExporter(Deaf(), thread_ids="plain", capture_content=False)
        assert deaf.export([span, span]) is SpanExportResult.FAILURE
        with pytest.raises(ZeroDivisionError):
            RedactingExporter(Breaks(), thread_ids="plain", capture_content=False).export([span])
        assert dropped() == {"events": 1, "spans": 3}
    failures.dropped.clear()
