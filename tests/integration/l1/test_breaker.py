"""The breaker: when Redis is left alone, when it is probed, and what that costs (nothing)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.l1.breaker import Breaker
from states import counts, open_saver, value_of
from steps import Proxy, Thread, hits_at_last, nowhere, tcp, until


class Clock:
    """Time, by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def changes() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[tuple[str, str]]) -> Breaker:
    return Breaker(
        failures=3,
        delay_seconds=1.0,
        max_delay_seconds=4.0,
        clock=clock,
        jitter=lambda: 1.0,
        changed=lambda state, previous, reason: changes.append((state, reason)),
    )


def test_one_that_is_retired_is_closed_for_ever(breaker: Breaker, changes: list[tuple[str, str]]) -> None:
    breaker.trip("a")
    breaker.retire()
    assert breaker.is_closed
    for _ in range(5):  # late failures, of steps that were sent before
        breaker.failed("late")
    breaker.trip("late")
    breaker.end_probe(succeeded=False, reason="late")
    assert changes == [("open", "a"), ("closed", "retired")]


def test_it_opens_after_failures_in_a_row(breaker: Breaker, changes: list[tuple[str, str]]) -> None:
    for _ in range(5):
        breaker.failed("a")
        breaker.failed("b")
        breaker.succeeded()
    assert breaker.is_closed
    for reason in "abc":
        assert breaker.is_closed
        breaker.failed(reason)
    assert breaker.state == "open"
    assert changes == [("open", "c")]


def test_one_probe_at_a_time_and_none_too_soon(breaker: Breaker, clock: Clock) -> None:
    assert not breaker.begin_probe(), "closed"
    breaker.trip("down")
    assert breaker.seconds_to_probe == 1.0
    clock.now += 0.99
    assert not breaker.begin_probe()
    clock.now += 0.01
    assert breaker.seconds_to_probe == 0.0
    assert breaker.begin_probe()
    assert breaker.state == "half_open"
    assert not breaker.begin_probe(), "one is under way"
    breaker.end_probe(succeeded=True)
    assert breaker.is_closed


def test_the_delay_doubles_up_to_its_limit_until_a_step_succeeds(breaker: Breaker, clock: Clock) -> None:
    breaker.trip("down")
    for delay in (1.0, 2.0, 4.0, 4.0):
        assert breaker.seconds_to_probe == delay
        clock.now += delay
        assert breaker.begin_probe()
        breaker.end_probe(succeeded=False, reason="still down")
    clock.now += 4.0
    breaker.begin_probe()
    breaker.end_probe(succeeded=True)
    breaker.trip("a server that passes every probe, and does nothing else")
    assert breaker.seconds_to_probe == 4.0
    clock.now += 4.0
    breaker.begin_probe()
    breaker.end_probe(succeeded=True)
    breaker.succeeded()
    breaker.trip("another outage")
    assert breaker.seconds_to_probe == 1.0


def test_stragglers_change_nothing(breaker: Breaker, clock: Clock, changes: list[tuple[str, str]]) -> None:
    breaker.trip("down")
    breaker.failed("sent before")
    breaker.succeeded()
    assert breaker.state == "open", "an answer to a step that was sent before is no probe"
    breaker.end_probe(succeeded=True)
    assert breaker.state == "open"
    clock.now += 1
    breaker.begin_probe()
    breaker.failed("sent before")
    breaker.trip("again")
    assert changes == [("open", "down"), ("half_open", "probe")]


def test_delays_differ_between_processes() -> None:
    delays = set()
    for _ in range(20):
        breaker = Breaker(delay_seconds=1.0, clock=lambda: 0.0)
        breaker.trip("down")
        delays.add(breaker.seconds_to_probe)
    assert len(delays) > 10
    assert all(0.5 <= delay <= 1.0 for delay in delays)


# ------------------------------------------------------------------ in a saver


async def test_while_it_is_open_no_call_says_a_word_to_redis(database: str, own_redis: EmbeddedRedis) -> None:
    """Nor does it wait: a Redis that hangs costs nothing."""
    registry = CollectorRegistry()
    thread = Thread("a")
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, own_redis.url, telemetry=telemetry, l1_timeout_seconds=0.05) as saver:
        await thread.put(saver)
        own_redis.freeze()
        try:
            await until(lambda: _read(thread, saver, registry, "open"))
            sent: list[Any] = []
            asked = saver._l1.contact.redis.evalsha

            async def listen(*args: Any) -> Any:
                sent.append(args)
                return await asked(*args)

            saver._l1.contact.redis.evalsha = listen  # type: ignore[method-assign, assignment]
            saver._parts.sweeper._probe = lambda shard: asyncio.sleep(0)  # type: ignore[method-assign]
            for _ in range(20):
                await thread.put(saver)
                await thread.put_writes(saver, "x", task_id=str(thread.number))
                assert await thread.turn(saver) == thread.number
            assert not sent
        finally:
            own_redis.thaw()


async def _read(thread: Thread, saver: Any, registry: CollectorRegistry, state: str) -> bool:
    await thread.turn(saver)
    return saver._parts.breaker.state == state


async def test_an_outage_is_seen_in_the_metrics_from_its_start_to_its_end(
    database: str, own_redis: EmbeddedRedis
) -> None:
    registry = CollectorRegistry()
    thread = Thread("a")

    def transitions() -> dict[str, int]:
        return counts(registry, "glasspoint_l1_breaker_transitions_total", "to")

    def is_open() -> float | None:
        return value_of(registry, "glasspoint_l1_breaker_open", {"saver": "default"})

    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        open_saver(database, proxy.url, telemetry=create_telemetry(registry=registry)) as saver,
    ):
        await thread.put(saver)
        assert (is_open(), transitions()) == (0.0, {})
        await proxy.switch(nowhere)
        await thread.put(saver)
        await thread.turn(saver)
        assert is_open() == 1.0
        assert transitions()["open"] == 1
        await until(lambda: transitions()["half_open"] >= 2)
        assert is_open() == 1.0
        assert transitions()["open"] == 1, "a probe that failed is no further outage"
        await proxy.switch(tcp(own_redis))
        await until(lambda: is_open() == 0.0)
        assert (transitions()["open"], transitions()["closed"]) == (1, 1)
        await hits_at_last(own_redis.url, lambda: _hits(thread, saver, registry))


async def _hits(thread: Thread, saver: Any, registry: CollectorRegistry) -> bool:
    assert await thread.turn(saver) == thread.number
    return counts(registry, "glasspoint_l1_reads_total", "result")["hit"] > 0


async def test_a_redis_that_is_not_there_at_the_start_is_used_once_it_is(
    database: str, own_redis: EmbeddedRedis
) -> None:
    registry = CollectorRegistry()
    thread = Thread("a")
    own_redis.kill()
    async with open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)) as saver:
        assert saver._parts.breaker.state == "open", "one failure is evidence enough, at the start"
        await thread.put(saver)
        own_redis.start()
        await hits_at_last(own_redis.url, lambda: _hits(thread, saver, registry))


async def test_a_full_redis_is_left_alone_and_its_probes_fail(
    database: str, own_redis: EmbeddedRedis
) -> None:
    """It answers INFO and PING as ever: a probe does what a write does."""
    registry = CollectorRegistry()
    thread = Thread("a")
    async with (
        open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)) as saver,
        Redis.from_url(own_redis.url) as redis,
    ):
        await thread.put(saver)
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", 1)
        for _ in range(3):
            await thread.put(saver)
            assert await thread.turn(saver) == thread.number
        await until(
            lambda: counts(registry, "glasspoint_l1_breaker_transitions_total", "to")["half_open"] >= 2
        )
        transitions = counts(registry, "glasspoint_l1_breaker_transitions_total", "to")
        assert (transitions["open"], transitions["closed"]) == (1, 0)
        await redis.config_set("maxmemory", 0)
        await hits_at_last(own_redis.url, lambda: _hits(thread, saver, registry))
