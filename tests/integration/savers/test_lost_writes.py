"""A Redis that lacks acknowledged writes after a restart: a `RedisSaver` names the shorter threads."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import RedisSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.history import acknowledged
from glasspoint.savers import redis_saver
from states import counts
from steps import Thread, until


def lost(registry: CollectorRegistry) -> float:
    return counts(registry, "glasspoint_drained_threads_total", "result")["lost"]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


@pytest.fixture(params=["just now", "long ago"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """When the threads were written; long ago, one of which nothing is there may have been drained."""
    if request.param == "long ago":
        monkeypatch.setattr(acknowledged, "_SECONDS", 0.0)
    return str(request.param)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call leads to a look, not one in ten seconds."""
    monkeypatch.setattr(redis_saver, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(redis_saver, "_SHORTEST_LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("written", "looking")
async def test_a_restart_with_older_files_is_noticed_by_the_next_call(
    own_redis: EmbeddedRedis, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    kept, earlier, shorter, gone, asked = map(Thread, ("kept", "earlier", "shorter", "gone", "asked"))
    telemetry = create_telemetry(registry=registry)
    async with await RedisSaver.create(own_redis.url, telemetry=telemetry, timeout_seconds=10) as saver:
        for thread in (kept, earlier, shorter, asked):
            await thread.put(saver)
        own_redis.save_snapshot()
        for thread in (shorter, gone):
            await thread.put(saver)
        await asked.put_writes(saver, "a question")
        own_redis.kill()
        own_redis.start()
        await kept.put(saver)
        await until(lambda: lost(registry) == 3)
        assert await saver.look_for_losses()
        assert await shorter.turn(saver) == 1, "so it is"
        assert (await saver._check())["redis"] == "ok", "it serves writes"
    [line] = errors(caplog)
    assert "lacks the end of 3 of the 5 threads" in line
    assert all(f"'{each.thread_id}'" in line for each in (shorter, gone, asked))


@pytest.mark.parametrize("turns_before_the_look", [1, 3, 20])
async def test_a_conversation_that_has_gone_on_before_the_look_is_named_too(
    turns_before_the_look: int, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on, stays = Thread("goes on"), Thread("stays")
    async with await RedisSaver.create(own_redis.url, timeout_seconds=10) as saver:
        for thread in (goes_on, stays):
            await thread.put(saver)
        assert not await saver.look_for_losses()
        own_redis.save_snapshot()
        for thread in (goes_on, stays):
            await thread.put(saver)
        own_redis.kill()
        own_redis.start()
        for _ in range(turns_before_the_look):
            await goes_on.put(saver)
        assert await saver.look_for_losses()
    [line] = errors(caplog)
    assert "lacks the end of 2 of the 2 threads" in line


async def test_a_drain_looks_first_and_the_line_names_twenty(
    own_redis: EmbeddedRedis, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = create_telemetry(registry=registry)
    async with await RedisSaver.create(own_redis.url, telemetry=telemetry, timeout_seconds=10) as saver:
        for number in range(21):
            await Thread(f"{number}").put(saver)
        own_redis.kill()
        own_redis.start()
        assert [each async for each in saver.thread_ids()] == []
        assert lost(registry) == 21
    [line] = errors(caplog)
    assert "lacks the end of 21 of the 21 threads" in line
    assert "'19', …" in line
    assert "'20'" not in line


async def test_a_redis_that_comes_back_empty_has_lost_all_threads(
    own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that were written so long ago that another process could have deleted them."""
    monkeypatch.setattr(acknowledged, "_SECONDS", 0.0)
    async with await RedisSaver.create(own_redis.url, timeout_seconds=10) as saver:
        for name in ("a", "b", "c"):
            await Thread(name).put(saver)
        own_redis.kill()
        own_redis.start()
        assert await saver.look_for_losses()
    [line] = errors(caplog)
    assert "lacks the end of 3 of the 3 threads" in line


@pytest.mark.parametrize("what", ["pruned", "went on"])
async def test_what_another_process_has_done_to_a_thread_is_no_loss(
    what: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    async with await RedisSaver.create(own_redis.url, timeout_seconds=10) as saver:
        for _ in range(3):
            await thread.put(saver)
        async with await RedisSaver.create(own_redis.url) as other:
            if what == "pruned":
                await other.aprune(["a"])
            else:
                await thread.put(other)
        own_redis.save_snapshot()
        own_redis.kill()
        own_redis.start()
        assert not await saver.look_for_losses()
    assert not errors(caplog)


async def test_what_was_replaced_before_a_look_is_forgotten(own_redis: EmbeddedRedis) -> None:
    thread = Thread("a")
    async with await RedisSaver.create(own_redis.url, timeout_seconds=10) as saver:
        remembered = saver._redis_history.acknowledged
        for count in (50, 2):
            for _ in range(count):
                await thread.put(saver)
            [stored] = remembered._newest["a"].checkpoints.values()
            assert len(stored) == (acknowledged._CHECKPOINTS if count == 50 else 3)
            assert not await saver.look_for_losses()
            assert len(stored) == 1
        assert not remembered._grown


async def test_a_thread_that_another_process_has_deleted_is_not_lost(
    own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was written after a write that is certainly lost is lost, too."""
    monkeypatch.setattr(acknowledged, "_SECONDS", 0.0)
    deleted, shorter = Thread("deleted"), Thread("shorter")
    async with await RedisSaver.create(own_redis.url, timeout_seconds=10) as saver:
        for thread in (deleted, shorter):
            await thread.put(saver)
        async with await RedisSaver.create(own_redis.url) as other:
            await other.adelete_thread(deleted.thread_id)
        own_redis.save_snapshot()
        await shorter.put(saver)
        own_redis.kill()
        own_redis.start()
        assert await saver.look_for_losses()
    [line] = errors(caplog)
    assert "lacks the end of 1 of the 2 threads" in line
    assert "'shorter'" in line


@pytest.mark.parametrize("what", ["restarted", "scripts flushed"])
async def test_a_redis_that_has_lost_nothing_is_reported_as_none(
    what: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its scripts, a server is asked within a second whether it is another one."""
    monkeypatch.setattr(redis_saver, "_SHORTEST_LOOK_SECONDS", 0.0)
    looked = list[object]()
    thread = Thread("a")
    async with await RedisSaver.create(own_redis.url, timeout_seconds=10) as saver:
        look = saver._look_once

        async def watched() -> None:
            await look()
            looked.append(saver._reign)

        monkeypatch.setattr(saver, "_look_once", watched)
        reign = saver._reign
        await thread.put(saver)
        await thread.put_writes(saver, "there")
        own_redis.save_snapshot()
        if what == "restarted":
            own_redis.kill()
            own_redis.start()
        async with Redis.from_url(own_redis.url) as redis:
            await redis.script_flush()
        await thread.put(saver)
        await until(lambda: looked)
        assert (looked[-1] == reign) == (what == "scripts flushed")
        assert not await saver.look_for_losses()
    assert not errors(caplog)


async def test_what_has_expired_is_not_lost(
    own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acknowledged, "_SECONDS", 0.0)
    expired, shorter = Thread("expired"), Thread("shorter")
    async with await RedisSaver.create(own_redis.url, timeout_seconds=10, ttl=0.05) as saver:
        await shorter.put(saver)
        own_redis.save_snapshot()
        await shorter.put(saver)
        await expired.put(saver)
        own_redis.kill()
        own_redis.start()
        await until(lambda: _is_gone(own_redis))
        assert not await saver.look_for_losses()
    assert not errors(caplog)


async def _is_gone(server: EmbeddedRedis) -> bool:
    async with Redis.from_url(server.url) as redis:
        return not await redis.keys("*{shorter}*")
