"""Single interleavings that once broke a promise, each made to happen: something else is done between two
steps of a read or a write, or a step arrives a second time when everything is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver
from states import config_of, exact, numbered_id, open_saver, open_upstream
from steps import settled

CONFIG = config_of("thread")


class StagedRedis(Redis):
    """Keeps what it sent, and lets a test do something before one of its steps.

    Attributes:
        before: Number of a step, from 1 -> what is done before it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[tuple[Any, ...]] = []
        self.before: dict[int, Callable[[], Awaitable[Any]]] = {}

    async def evalsha(self, *args: Any) -> Any:
        self.sent.append(args)
        if meanwhile := self.before.pop(len(self.sent), None):
            await meanwhile()
        return await super().evalsha(*args)


@dataclass
class Stage:
    """`one` is interrupted between its steps, `other` is not; `redis` is a plain client."""

    one: CachedPostgresSaver
    other: CachedPostgresSaver
    upstream: AsyncPostgresSaver
    redis: Redis
    steps: StagedRedis

    async def agree(self) -> None:
        for saver in (self.one, self.other, self.other):
            assert exact(await saver.aget_tuple(CONFIG)) == exact(await self.upstream.aget_tuple(CONFIG))


@pytest.fixture
async def stage(database: str, redis_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as opened:
        steps: Any = await opened.enter_async_context(StagedRedis.from_url(redis_url))
        yield Stage(
            await opened.enter_async_context(open_saver(database, steps)),
            await opened.enter_async_context(open_saver(database, redis_url, cache_ttl=0.5)),
            await opened.enter_async_context(open_upstream(database)),
            await opened.enter_async_context(Redis.from_url(redis_url)),
            steps,
        )


async def put(saver: BaseCheckpointSaver[Any], number: int, *, log: int | None = None) -> None:
    """Store the `number`th checkpoint. With `log` it is a copy: it refers to that version of the channel."""
    checkpoint: Checkpoint = {
        "v": 4,
        "id": numbered_id(number),
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {"log": [log or number]},
        "channel_versions": {"log": log or number},
        "versions_seen": {},
        "updated_channels": None,
    }
    new_versions: ChannelVersions = {} if log else {"log": number}
    await saver.aput(config_of("thread", "", numbered_id(number - 1)), checkpoint, {}, new_versions)


async def put_writes(saver: BaseCheckpointSaver[Any], number: int, *channels: str) -> None:
    config = config_of("thread", "", numbered_id(number))
    await saver.aput_writes(config, [(channel, channel) for channel in channels], "task")


async def test_a_read_by_id_that_is_overtaken_does_not_pass_for_the_newest(stage: Stage) -> None:
    await put(stage.one, 1)
    await put(stage.one, 2)
    await settled(stage.one)
    await put(stage.one, 3, log=1)  # upon an image that has another version of it: now it is incomplete
    await settled(stage.one)

    async def overtake() -> None:
        await stage.redis.flushall()
        await put(stage.other, 4, log=1)

    stage.steps.before[len(stage.steps.sent) + 2] = overtake  # READ, then REFUSE
    assert await stage.one.aget_tuple(config_of("thread", "", numbered_id(3)))
    assert not stage.steps.before
    await stage.agree()


async def test_a_reader_that_is_overtaken_by_a_deletion_does_not_bring_the_thread_back(stage: Stage) -> None:
    await put(stage.one, 1)
    await settled(stage.one)
    await stage.redis.flushall()

    async def delete() -> None:
        await stage.other.adelete_thread("thread")
        # The read's first attempt to reach Redis, which it took for lost, arrives only now.
        await stage.redis.evalsha(*stage.steps.sent[-2])

    stage.steps.before[len(stage.steps.sent) + 2] = delete  # READ, then WARM_UP
    assert await stage.one.aget_tuple(CONFIG)
    assert not stage.steps.before
    await stage.agree()


async def test_a_step_that_arrives_again_when_all_is_over_changes_no_answer(stage: Stage) -> None:
    await put_writes(stage.one, 1, "early")
    await put(stage.one, 1)
    await stage.one.aget_tuple(CONFIG)
    await put_writes(stage.one, 1, "__interrupt__")
    await put_writes(stage.one, 1, "__interrupt__", "__resume__")
    await put(stage.one, 2)
    await settled(stage.one)
    await stage.redis.flushall()
    await stage.one.aget_tuple(CONFIG)  # a miss, and a warm-up
    await settled(stage.one)
    await put(stage.one, 3, log=1)
    await stage.one.aget_tuple(CONFIG)  # incomplete: refused, and warmed up
    await put_writes(stage.one, 3, "done")
    await stage.agree()
    for step in list(stage.steps.sent):
        await stage.redis.evalsha(*step)
        await stage.agree()
        await stage.redis.flushall()  # a BEGIN that came again would block for long
        await stage.agree()
        await stage.redis.evalsha(*step)
        await stage.agree()


async def test_a_burst_that_is_slow_keeps_its_intent_while_another_saver_lets_entries_expire(
    stage: Stage,
) -> None:
    """Otherwise a reader could warm up what stood there before the slow write, and if its process died then,
    nobody would notice."""
    await put(stage.one, 1)
    await settled(stage.one)

    async def overtake() -> None:
        await put(stage.other, 2)
        await settled(stage.other)
        [key] = await stage.redis.keys()
        assert await stage.redis.pttl(key) > 5000, "the intent expires with the entry"

    stage.steps.before[len(stage.steps.sent) + 2] = overtake  # BEGIN, then CONFIRM
    await put(stage.one, 3)
    assert not stage.steps.before
    await stage.agree()
