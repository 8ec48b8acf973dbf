"""`MemorySaver` is the last tier: what it keeps can be drained, and it ends as the others do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from delta_graph import make_graph, play
from glasspoint import CachedPostgresSaver, MemorySaver, create_telemetry
from glasspoint.errors import (
    L2UnavailableError,
    SaverClosedError,
    SerializationError,
    ThreadExistsError,
    ThreadMovedError,
)
from glasspoint.fallback.draining import Drainer
from states import config_of, exact, numbered_id, open_saver, open_upstream
from steps import Moves, Thread, until


@pytest.fixture
async def saver() -> AsyncIterator[MemorySaver]:
    async with MemorySaver(telemetry=create_telemetry(registry=CollectorRegistry())) as opened:
        yield opened


async def test_delta_channels_come_out_as_upstream_has_them(saver: MemorySaver, database: str) -> None:
    async with open_upstream(database) as upstream:
        assert exact(await play(saver)) == exact(await play(upstream))


async def test_pruning_keeps_what_a_delta_channel_is_rebuilt_from(saver: MemorySaver) -> None:
    graph = make_graph(saver)
    config = config_of("a")
    for turn in range(5):
        await graph.ainvoke({"log": [f"turn {turn}"]}, config)
        await saver.acopy_thread("a", f"copy {turn}")
        before = (await graph.aget_state(config)).values
        await saver.aprune([f"copy {turn}"])
        assert (await graph.aget_state(config_of(f"copy {turn}"))).values == before
        pruned = await graph.ainvoke({"log": ["more"]}, config_of(f"copy {turn}"))
        assert pruned == await graph.ainvoke({"log": ["more"]}, config)


async def test_a_sealed_thread_waits_and_a_retired_one_has_moved(saver: MemorySaver) -> None:
    thread = Thread("a")
    await thread.put(saver)
    token = await saver.seal_thread("a", lease_seconds=60)
    assert token is not None
    assert await saver.seal_thread("a", lease_seconds=60) is None, "somebody has it"
    assert await saver.seal_thread("a", lease_seconds=60, token="another") is None
    assert await saver.seal_thread("a", lease_seconds=60, token=token) == token
    with pytest.raises(ThreadMovedError) as sealed:
        await thread.turn(saver)
    assert not sealed.value.moved
    assert not await saver.retire_thread("a", "another", marker_seconds=60)
    assert await saver.retire_thread("a", token, marker_seconds=60)
    for use in (lambda: thread.turn(saver), lambda: thread.put(saver), lambda: saver.adelete_thread("a")):
        with pytest.raises(ThreadMovedError) as moved:
            await use()
        assert moved.value.moved


async def test_an_expired_seal_leaves_the_thread_as_it_was(saver: MemorySaver) -> None:
    thread = Thread("a")
    await thread.put(saver)
    token = await saver.seal_thread("a", lease_seconds=0.01)
    assert token is not None

    async def works() -> bool:
        try:
            return await thread.turn(saver) == 1
        except ThreadMovedError:
            return False

    await until(works)
    assert await saver.seal_thread("a", lease_seconds=60, token=token) is None, "somebody may have written"
    assert not await saver.retire_thread("a", token, marker_seconds=60)


async def test_one_thread_that_cannot_be_drained_keeps_no_other_back(
    saver: MemorySaver,
    database: str,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = [Thread(name) for name in ("a", "broken", "c")]
    for thread in threads:
        await thread.put(saver)
    whole = CachedPostgresSaver.import_checkpoints

    async def refuse(self: CachedPostgresSaver, items: Any, **options: Any) -> int:
        if items[0].scope.thread_id == "broken":
            raise SerializationError("not to be stored")
        return await whole(self, items, **options)

    monkeypatch.setattr(CachedPostgresSaver, "import_checkpoints", refuse)
    moves = Moves()
    drainer = Drainer("memory", moves)
    async with open_saver(database, redis_url) as upper:
        first = await drainer.round(saver, upper)
        assert (first.is_empty, first.put_off) == (False, {})
        assert (await drainer.round(saver, upper)).is_empty
        assert [await thread.turn(upper) for thread in threads] == [1, None, 1]
    assert drainer.refused == {"broken": "SerializationError"}
    assert (sorted(moves.results), moves.checkpoints) == (["new", "new", "refused"], 2)
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "Thread 'broken' cannot be drained (SerializationError)" in record.message


async def test_writes_whose_checkpoint_is_in_a_lost_tier_are_drained(
    saver: MemorySaver, database: str, redis_url: str
) -> None:
    """The run fell from `redis` to `memory` between a checkpoint and what a task wrote from it."""
    config = config_of("a", "", numbered_id(1))
    await saver.aput_writes(config, [("log", "written")], "task")
    drainer = Drainer("memory", Moves())
    drainer.held_elsewhere = frozenset({"a"})
    async with open_saver(database, redis_url) as upper:
        assert (await drainer.round(saver, upper)).moved == 1
    assert drainer.refused == {}
    async with await psycopg.AsyncConnection.connect(database) as connection:
        cursor = await connection.execute("SELECT thread_id, task_id, channel FROM checkpoint_writes")
        assert await cursor.fetchall() == [("a", "task", "log")]


async def test_a_drain_that_is_cut_off_gives_its_seals_back(
    saver: MemorySaver, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tier above is lost in the middle of one thread; another one is under way meanwhile."""
    threads = [Thread(name) for name in ("a", "b")]
    for thread in threads:
        await thread.put(saver)
    arrived = asyncio.Event()

    async def fail(self: CachedPostgresSaver, items: Any, **options: Any) -> int:
        if not arrived.is_set():
            arrived.set()
            await asyncio.Event().wait()
        raise L2UnavailableError("PostgreSQL is away")

    monkeypatch.setattr(CachedPostgresSaver, "import_checkpoints", fail)
    async with open_saver(database, redis_url) as upper:
        with pytest.raises(L2UnavailableError):
            await Drainer("memory", Moves()).round(saver, upper)

    async def works() -> bool:
        return [await thread.turn(saver) for thread in threads] == [1, 1]

    # A seal of 1 ms, not of 10 s.
    await until(lambda: _unless_moved(works), seconds=5.0)


async def test_two_branches_that_are_drained_at_once_become_two_threads(
    saver: MemorySaver, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes have begun the same thread, each in its own memory, and find nothing of it above."""
    one, other, beside = Thread("a"), Thread("a"), MemorySaver()
    other.number += 10
    await one.put(saver)
    await other.put(beside)
    relate, both = CachedPostgresSaver.relate, asyncio.Barrier(2)
    calls = iter([True, True])

    async def relate_together(self: CachedPostgresSaver, *args: Any) -> Any:
        found = await relate(self, *args)
        if next(calls, False):
            await both.wait()
        return found

    monkeypatch.setattr(CachedPostgresSaver, "relate", relate_together)
    moves = Moves()
    async with open_saver(database, redis_url) as upper:
        rounds = await asyncio.gather(
            *(Drainer("memory", moves).round(lower, upper) for lower in (saver, beside))
        )
        assert sorted(each.moved for each in rounds) == [0, 1], "the other one looks again"
        for lower in (saver, beside):
            await until(partial(_is_drained, lower, upper, moves))
    await beside.close()
    assert sorted(moves.results) == ["new", "set_aside"]
    async with await psycopg.AsyncConnection.connect(database) as connection:
        cursor = await connection.execute("SELECT thread_id, count(*) FROM checkpoints GROUP BY 1")
        assert [count for _, count in await cursor.fetchall()] == [1, 1]


async def _is_drained(lower: MemorySaver, upper: CachedPostgresSaver, moves: Moves) -> bool:
    return (await Drainer("memory", moves).round(lower, upper)).is_empty


async def _unless_moved(call: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await call()
    except ThreadMovedError:
        return False


async def test_a_copy_onto_a_thread_is_refused(saver: MemorySaver) -> None:
    one, other = Thread("one"), Thread("other")
    await one.put(saver)
    await other.put(saver)
    await other.put(saver)
    with pytest.raises(ThreadExistsError):
        await saver.acopy_thread("one", "other")
    assert await other.turn(saver) == 2


async def test_a_closed_saver_says_so(saver: MemorySaver) -> None:
    await saver.close()
    with pytest.raises(SaverClosedError):
        await saver.aget_tuple(config_of("a"))
    with pytest.raises(SaverClosedError):
        await saver.ping()
