"""Delta channels, whose value LangGraph rebuilds from the writes of a checkpoint's ancestors, come out as on
LangGraph's own savers: with the cache in use, with nothing cached, and without Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from delta_graph import CHANNELS, CONFIG, make_graph, play
from glasspoint import CachedPostgresSaver, MemorySaver, RedisSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import DeltaChainError
from states import config_of, exact, numbered_id, open_saver, open_upstream


@pytest.fixture(params=["cache in use", "nothing cached", "Redis dead"])
async def saver(
    request: pytest.FixtureRequest, database: str, own_redis: EmbeddedRedis
) -> AsyncIterator[CachedPostgresSaver]:
    if request.param == "Redis dead":
        own_redis.kill()
    saver_class = ForgetfulSaver if request.param == "nothing cached" else CachedPostgresSaver
    async with (
        Redis.from_url(own_redis.url) as ForgetfulSaver.redis,
        open_saver(database, own_redis.url, saver_class) as opened,
    ):
        yield opened


class ForgetfulSaver(CachedPostgresSaver):
    """Whose Redis loses everything just before each read."""

    redis: Redis

    async def aget_tuple(self, config: RunnableConfig) -> Any:
        await self.redis.flushall()
        return await super().aget_tuple(config)

    async def aget_delta_channel_history(self, **arguments: Any) -> Any:
        await self.redis.flushall()
        return await super().aget_delta_channel_history(**arguments)


@pytest.fixture
async def upstream(database: str) -> AsyncIterator[AsyncPostgresSaver]:
    async with open_upstream(database) as opened:
        yield opened


async def test_turns_and_forks_end_as_in_memory(saver: CachedPostgresSaver) -> None:
    assert await play(saver) == await play(InMemorySaver())


async def test_the_history_of_every_checkpoint_is_what_upstream_finds(
    saver: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    await play(saver)
    checkpoints = [each async for each in upstream.alist(CONFIG)]
    seeds = writes = 0
    for config in (CONFIG, *(each.config for each in checkpoints)):
        ours = await saver.aget_delta_channel_history(config=config, channels=CHANNELS)
        assert exact(ours) == exact(
            await upstream.aget_delta_channel_history(config=config, channels=CHANNELS)
        )
        by_definition = await BaseCheckpointSaver.aget_delta_channel_history(
            saver, config=config, channels=CHANNELS
        )
        assert exact(ours) == exact(by_definition)
        seeds += isinstance(ours["log"].get("seed"), _DeltaSnapshot)
        writes += bool(ours["log"]["writes"])
    assert 0 < seeds < len(checkpoints), "the walks never, or always, met a snapshot"
    assert writes


async def test_a_snapshot_is_read_from_the_cache_as_from_upstream(
    saver: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    """A snapshot stands in a blob, and marks its place in the checkpoint."""
    graph, snapshots = make_graph(saver), 0
    for turn in range(6):
        await graph.ainvoke({"log": [f"turn {turn}"]}, CONFIG)
        for _ in range(2):
            newest = await saver.aget_tuple(CONFIG)
            assert exact(newest) == exact(await upstream.aget_tuple(CONFIG))
        assert newest is not None
        snapshots += isinstance(newest.checkpoint["channel_values"].get("log"), _DeltaSnapshot)
    assert snapshots


# ------------------------------------------------------------------ a checkpoint that is its own ancestor


@asynccontextmanager
async def tier(kind: str, database: str, redis_url: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with (
        MemorySaver(telemetry=telemetry)
        if kind == "memory"
        else RedisSaver.from_conn_string(redis_url, telemetry=telemetry)
        if kind == "redis"
        else open_saver(database, redis_url) as opened
    ):
        yield opened


@pytest.mark.timeout(60)
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("kind", ["cached", "redis", "memory"])
async def test_a_checkpoint_that_is_its_own_ancestor_is_an_error(
    kind: str, length: int, database: str, redis_url: str
) -> None:
    """Upstream's walk goes round for ever, and blocks the event loop."""
    config = config_of("circle")
    async with tier(kind, database, redis_url) as saver:
        for number in range(1, length + 3):
            # The oldest names the newest of the circle as its parent; the two after the circle lead there.
            parent = number - 1 or length
            checkpoint: Any = {
                "v": 4,
                "id": numbered_id(number),
                "ts": "2026-01-01T00:00:00+00:00",
                "channel_values": {"plain": "x"},
                "channel_versions": {"log": number, "plain": number},
                "versions_seen": {},
            }
            versions = checkpoint["channel_versions"]
            await saver.aput(config_of("circle", "", numbered_id(parent)), checkpoint, {}, versions)
        for named in (None, length, length + 1):
            asked = config if named is None else config_of("circle", "", numbered_id(named))
            with pytest.raises(DeltaChainError, match="is its own ancestor"):
                await saver.aget_delta_channel_history(config=asked, channels=["plain", "log"])
            # A channel with a value on the way never comes so far.
            found = await saver.aget_delta_channel_history(config=asked, channels=["plain"])
            assert found == {"plain": {"writes": [], "seed": "x"}}  # type: ignore[comparison-overlap]
