"""A read after a miss does not wait for its warm-up, and nothing is lost by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from glasspoint import CachedPostgresSaver
from glasspoint.model import lifetime
from recorder import Recorder
from states import counts, exact, open_saver, open_upstream, warmed_up
from steps import Thread, put_all, settled, until


class HeldRedis(Redis):
    """Keeps back each WARM_UP while it is told to.

    Attributes:
        held: How many are kept back.
        error: What each is answered with instead.
    """

    saver: CachedPostgresSaver | None = None
    held = 0
    error: Exception | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.let_go = asyncio.Event()

    async def evalsha(self, sha: Any, *args: Any) -> Any:
        epoch = self.saver._l1.epoch if self.saver else None
        if epoch is not None and sha == epoch.shas["warm_up"].encode():
            if self.error is not None:
                raise self.error
            self.held += 1
            await self.let_go.wait()
            self.held -= 1
        return await super().evalsha(sha, *args)


@dataclass
class Cold:
    """A saver whose threads stand in PostgreSQL alone."""

    saver: CachedPostgresSaver
    redis: HeldRedis
    threads: list[Thread]
    recorder: Recorder
    database: str

    @property
    def reads(self) -> dict[str, int]:
        return counts(self.recorder.registry, "glasspoint_l1_reads_total", "result")

    @property
    def warm_ups(self) -> dict[str, int]:
        return counts(self.recorder.registry, "glasspoint_l1_warm_ups_total", "result")


@pytest.fixture
async def cold(database: str, redis_url: str) -> AsyncIterator[Cold]:
    threads, recorder = [Thread(f"thread {number}") for number in range(3)], Recorder()
    redis: Any
    async with HeldRedis.from_url(redis_url) as redis:
        opened = open_saver(
            database, redis, CachedPostgresSaver, telemetry=recorder.telemetry, l1_timeout_seconds=30.0
        )
        async with opened as saver:
            redis.saver = saver
            await put_all(saver, threads)
            await settled(saver)
            await redis.flushall()
            recorder.clear()
            try:
                yield Cold(saver, redis, threads, recorder, database)
            finally:
                redis.let_go.set()


async def test_a_read_is_answered_before_its_warm_up(cold: Cold) -> None:
    [thread, *_] = cold.threads
    assert await thread.turn(cold.saver) == 1
    await until(lambda: cold.redis.held)
    assert await thread.turn(cold.saver) == 1, "a miss as well"
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    assert await thread.turn(cold.saver) == 1
    assert cold.reads == {"miss": 2, "hit": 1}
    assert cold.warm_ups == {"stored": 1, "not_first": 1}, "the second read shares the first one's lease"


async def test_a_write_that_comes_before_the_warm_up_wins(cold: Cold) -> None:
    [thread, *_] = cold.threads
    assert await thread.turn(cold.saver) == 1
    await until(lambda: cold.redis.held)
    await thread.put(cold.saver)
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    assert cold.warm_ups == {"overtaken": 1}
    assert await thread.turn(cold.saver) == 2


async def test_a_write_whose_burst_is_over_when_the_warm_up_comes_has_overtaken_it(cold: Cold) -> None:
    [thread, *_] = cold.threads
    assert await thread.turn(cold.saver) == 1
    await until(lambda: cold.redis.held)
    await thread.put(cold.saver)
    await settled(cold.saver)
    assert await thread.turn(cold.saver) == 2
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    assert cold.warm_ups == {"overtaken": 1}


async def test_a_pending_write_that_comes_before_the_warm_up_has_overtaken_it(cold: Cold) -> None:
    """The image is of the same checkpoint then, and not the same."""
    [thread, *_] = cold.threads
    assert await thread.turn(cold.saver) == 1
    await until(lambda: cold.redis.held == 1)
    await thread.turn(cold.saver)
    await until(lambda: cold.redis.held == 2)
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    assert cold.warm_ups == {"stored": 1, "not_first": 1}
    cold.redis.let_go.clear()
    await cold.redis.flushall()
    await thread.turn(cold.saver)
    await until(lambda: cold.redis.held)
    await thread.put_writes(cold.saver, "x")
    await settled(cold.saver)
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    assert cold.warm_ups == {"stored": 1, "not_first": 1, "overtaken": 1}


async def test_of_many_readers_of_one_cold_thread_one_stores_and_no_write_is_blamed(cold: Cold) -> None:
    [thread, *_] = cold.threads
    assert await asyncio.gather(*(thread.turn(cold.saver) for _ in range(20))) == [1] * 20
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    assert cold.warm_ups["stored"] == 1
    assert cold.warm_ups.keys() == {"stored", "not_first"}


async def test_closing_waits_for_warm_ups(cold: Cold) -> None:
    for thread in cold.threads:
        await thread.turn(cold.saver)
    await until(lambda: cold.redis.held == len(cold.threads))
    closing = asyncio.ensure_future(cold.saver.close())
    await asyncio.wait([closing], timeout=0.05)
    assert not closing.done()
    cold.redis.let_go.set()
    await closing
    assert cold.warm_ups == {"stored": len(cold.threads)}


async def test_of_too_many_warm_ups_each_read_waits_for_its_own(
    cold: Cold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "_FOLLOW_UPS_AT_ONCE", 2)
    one, two, three = cold.threads
    assert await one.turn(cold.saver) == await two.turn(cold.saver) == 1
    waiting = asyncio.create_task(three.turn(cold.saver))
    await until(lambda: cold.redis.held == 3)
    assert not waiting.done()
    cold.redis.let_go.set()
    assert await waiting == 1


async def test_what_a_caller_does_to_the_checkpoint_does_not_reach_the_image(cold: Cold) -> None:
    """LangGraph changes the channel versions of what it has read."""
    [thread, *_] = cold.threads
    found = await cold.saver.aget_tuple(thread.config)
    assert found is not None
    found.checkpoint["channel_versions"]["turn"] = "another"
    found.checkpoint["channel_versions"]["more"] = "another"
    found.checkpoint["channel_values"].clear()
    dict.clear(found.metadata)  # type: ignore[arg-type]
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    found = await cold.saver.aget_tuple(thread.config)
    async with open_upstream(cold.database) as upstream:
        expected = await upstream.aget_tuple(thread.config)
    assert found is not None
    assert expected is not None
    assert exact(found.checkpoint) == exact(expected.checkpoint)
    assert cold.reads == {"miss": 1, "hit": 1}


async def test_a_warm_up_that_fails_concerns_nobody(cold: Cold, caplog: pytest.LogCaptureFixture) -> None:
    [thread, *_] = cold.threads
    cold.redis.error = RedisConnectionError("gone")
    assert await thread.turn(cold.saver) == 1
    await warmed_up(cold.saver)
    assert cold.warm_ups == {"error": 1}
    assert "never retrieved" not in caplog.text
    assert await thread.turn(cold.saver) == 1


async def test_the_span_of_a_warm_up_stands_under_its_read(cold: Cold) -> None:
    [thread, *_] = cold.threads
    await thread.turn(cold.saver)
    [read] = cold.recorder.named("checkpoint.get_tuple")
    await until(lambda: cold.redis.held)
    cold.redis.let_go.set()
    await warmed_up(cold.saver)
    [warm_up], [step] = (
        cold.recorder.named("checkpoint.warm_up"),
        cold.recorder.named("checkpoint.l1.warm_up"),
    )
    assert (read.context, warm_up.context) == (warm_up.parent, step.parent)
    assert read.end_time is not None
    assert warm_up.end_time is not None
    assert read.end_time < warm_up.end_time
