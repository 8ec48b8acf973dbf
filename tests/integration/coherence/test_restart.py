"""Redis restarts from the past, fails over, freezes, dies, PostgreSQL loses a write: no read is stale."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import L2DeadlineError, L2UnavailableError
from replication import follow, promote
from states import counts, exact, numbered_id, open_saver, open_upstream, value_of
from steps import Proxy, Thread, keys_of, locked, seeded_dice, settled, tcp, until

NEW_EPOCH = "nothing that stands in it from before is believed"


def epoch_changes(registry: CollectorRegistry) -> float | None:
    return value_of(registry, "glasspoint_l1_epoch_changes_total", {"saver": "default"})


def reads(registry: CollectorRegistry) -> Counter[str]:
    return counts(registry, "glasspoint_l1_reads_total", "result")


def writes_by_l1(registry: CollectorRegistry) -> Counter[str]:
    return counts(registry, "glasspoint_write_through_total", "l1")


async def images(redis_url: str) -> set[str]:
    """The checkpoint ids of all images that stand in Redis, whoever may believe them."""
    return {fields[b"id"].decode() for fields in (await keys_of(redis_url)).values() if b"id" in fields}


async def same_as_upstream(saver: CachedPostgresSaver, database: str, thread: Thread) -> bool:
    async with open_upstream(database) as upstream:
        truth = await upstream.aget_tuple(thread.config)
    return exact(tuple(await saver.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))


# ------------------------------------------------------------------ a restart


async def test_after_a_restart_from_a_snapshot_no_turn_is_forgotten(
    database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """The promise of the design, with a real graph: cached, snapshot, two more turns, SIGKILL, restart."""

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", f"answer to {state['messages'][-1].content}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    registry = CollectorRegistry()
    async with open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)) as saver:
        graph = builder.compile(checkpointer=saver)
        config = {"configurable": {"thread_id": "철수"}}

        async def turn(text: str) -> list[str]:
            state = await graph.ainvoke({"messages": [("user", text)]}, config)  # type: ignore[call-overload]
            return [str(m.content) for m in state["messages"][::2]]

        await turn("one")
        await settled(saver)
        own_redis.save_snapshot()
        old = await keys_of(own_redis.url)
        await turn("two")
        await turn("three")
        own_redis.kill()
        own_redis.start()
        assert await keys_of(own_redis.url) == old, "the past stands in Redis again"

        assert await turn("four") == ["one", "two", "three", "four"]
        assert await turn("five") == ["one", "two", "three", "four", "five"]

        async def only_the_new_one_is_left() -> bool:
            left = await keys_of(own_redis.url)
            return len(left) == 1 and not left.keys() & old.keys()

        assert await until(only_the_new_one_is_left), "nobody reads the old entries, and they are deleted"
    assert epoch_changes(registry) == 1
    assert len([r for r in caplog.records if NEW_EPOCH in r.getMessage()]) == 1


@pytest.mark.parametrize("opened", ["before the restart", "after the restart"])
@pytest.mark.parametrize("first", ["read", "write"])
async def test_the_first_call_after_a_restart_believes_nothing_old(
    opened: str, first: str, database: str, own_redis: EmbeddedRedis
) -> None:
    registry = CollectorRegistry()
    thread = Thread("a")
    async with open_saver(database, own_redis.url) as early:
        await thread.put(early)
        await settled(early)
        own_redis.save_snapshot()
        await thread.put(early)
        await thread.put_writes(early, "x")
        assert await thread.turn(early) == 2
        own_redis.kill()
        own_redis.start()
        assert await images(own_redis.url) == {numbered_id(1)}
        async with open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)) as late:
            saver = early if opened == "before the restart" else late
            if first == "write":
                await thread.put_writes(saver, "y", task_id="another")
            found = await saver.aget_tuple(thread.config)
            assert found is not None
            writes = [value for _, _, value in found.pending_writes or ()]
            assert (found.checkpoint["id"], sorted(writes)) == (
                numbered_id(2),
                ["x", "y"] if first == "write" else ["x"],
            )
            assert await same_as_upstream(saver, database, thread)
            assert await thread.turn(late) == await thread.turn(early) == 2


async def test_a_restart_that_many_callers_meet_at_once_is_one_change(
    database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    threads = [Thread(f"thread {i}") for i in range(16)]
    async with open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)) as saver:
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        await settled(saver)
        own_redis.save_snapshot()
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        await settled(saver)
        own_redis.kill()
        own_redis.start()
        assert await asyncio.gather(*(thread.turn(saver) for thread in threads)) == [2] * 16
        assert await asyncio.gather(*(thread.turn(saver) for thread in threads)) == [2] * 16
    assert epoch_changes(registry) == 1
    assert len([r for r in caplog.records if NEW_EPOCH in r.getMessage()]) == 1
    assert reads(registry)["hit"] == 16, "and the cache is in use again"


async def test_a_restart_from_an_old_append_only_file_is_noticed_by_the_scripts_themselves(
    database: str, own_redis: EmbeddedRedis
) -> None:
    """Redis before 7 keeps loaded scripts in that file: after the restart nobody answers NOSCRIPT."""
    own_redis.stop()
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    log = own_redis.directory / "appendonly.aof"
    if not log.exists():
        pytest.skip("this Redis (7 or newer) keeps no scripts in its append-only file")
    registry = CollectorRegistry()
    thread = Thread("a")
    async with open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        saved = log.read_bytes()
        await thread.put(saver)
        await settled(saver)
        scripts = await _scripts_of(saver)
        own_redis.kill()
        log.write_bytes(saved)
        own_redis.start("--appendonly", "yes")
        async with Redis.from_url(own_redis.url) as redis:
            assert all(await redis.script_exists(*scripts)), "or this test shows nothing"
        assert await images(own_redis.url) == {numbered_id(1)}

        assert await thread.turn(saver) == 2
        assert await thread.turn(saver) == 2
    assert epoch_changes(registry) == 1
    assert reads(registry) == {"hit": 2, "miss": 1}


async def _scripts_of(saver: CachedPostgresSaver) -> list[str]:
    epoch = saver._l1.epoch
    assert epoch is not None
    return list(epoch.shas.values())


# ------------------------------------------------------------------ a failover


@pytest.fixture
async def replica(own_redis: EmbeddedRedis) -> AsyncIterator[EmbeddedRedis]:
    """A second Redis that has copied `own_redis`, scripts included (before 7), and follows it."""
    with EmbeddedRedis() as server:
        await follow(server, own_redis)
        yield server


async def has_image(server: EmbeddedRedis, number: int) -> None:
    await until(lambda: _has_image(server, number))


async def _has_image(server: EmbeddedRedis, number: int) -> bool:
    return numbered_id(number) in await images(server.url)


async def test_a_promoted_replica_that_lags_behind_is_not_believed(
    database: str, own_redis: EmbeddedRedis, replica: EmbeddedRedis
) -> None:
    registry = CollectorRegistry()
    thread = Thread("a")
    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        open_saver(database, proxy.url, telemetry=create_telemetry(registry=registry)) as saver,
    ):
        await thread.put(saver)
        await has_image(replica, 1)
        await promote(replica)  # from here on it misses what is written
        await thread.put(saver)
        assert await thread.turn(saver) == 2
        await settled(saver)
        assert await images(replica.url) == {numbered_id(1)}
        await proxy.switch(tcp(replica))

        assert await thread.turn(saver) == 2
        assert await thread.turn(saver) == 2
    assert epoch_changes(registry) == 1
    assert reads(registry)["hit"] == 2


async def test_failing_back_to_the_first_server_brings_nothing_old_back(
    database: str, own_redis: EmbeddedRedis, replica: EmbeddedRedis
) -> None:
    """It never restarted, so its run_id is what it was, and its old entries were replicated back to it."""
    thread = Thread("a")
    async with (
        Proxy().to(tcp(own_redis)) as proxy,
        open_saver(database, proxy.url) as saver,
        open_saver(database, own_redis.url) as sleeper,
    ):
        for each in (saver, sleeper):
            each._parts.sweeper._purger = None  # what stands there from before would be deleted
        await thread.put(saver)
        assert await thread.turn(sleeper) == 1, "it has met the first reign, and sees nothing of the second"
        await has_image(replica, 1)
        await promote(replica)
        await follow(own_redis, replica)
        await proxy.switch(tcp(replica))
        await thread.put(saver)
        await settled(saver)
        assert await thread.turn(saver) == 2
        await has_image(own_redis, 2)
        await promote(own_redis)
        await proxy.switch(tcp(own_redis))
        assert numbered_id(1) in await images(own_redis.url), "or this test shows nothing"

        assert await thread.turn(sleeper) == 2
        assert await thread.turn(saver) == 2
        async with open_saver(database, own_redis.url) as fresh:
            assert await thread.turn(fresh) == 2


async def test_a_replica_that_takes_writes_is_not_its_master(
    database: str, own_redis: EmbeddedRedis, replica: EmbeddedRedis
) -> None:
    """Until it is promoted it goes by its master's replication id."""
    thread = Thread("a")
    async with Proxy().to(tcp(own_redis)) as proxy, open_saver(database, proxy.url) as saver:
        await thread.put(saver)
        await has_image(replica, 1)
        async with Redis.from_url(replica.url) as redis:
            await redis.config_set("replica-read-only", "no")
            await redis.replicaof("127.0.0.1", 1)  # it hears no more of its master
        await thread.put(saver)
        await proxy.switch(tcp(replica))
        assert await images(replica.url) == {numbered_id(1)}

        assert await thread.turn(saver) == 2
        assert await thread.turn(saver) == 2


async def test_scripts_that_are_flushed_are_loaded_again_and_the_entries_are_still_believed(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SCRIPT FLUSH is no restart."""
    registry = CollectorRegistry()
    thread = Thread("a")
    async with (
        open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        await thread.put(saver)
        await redis.script_flush()
        assert await thread.turn(saver) == 1
    assert reads(registry) == {"hit": 1}
    assert not epoch_changes(registry)
    assert NEW_EPOCH not in caplog.text


# ------------------------------------------------------------------ frozen, killed


async def test_while_redis_is_frozen_postgres_answers_in_time(
    database: str,
    own_redis: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An intent lasts for a second, however long a write may take.
    monkeypatch.setattr("glasspoint.savers.parts._DEADLINES_AN_INTENT_LASTS", 0)
    monkeypatch.setattr("glasspoint.savers.parts._INTENT_MARGIN_SECONDS", 1.0)
    registry = CollectorRegistry()
    thread = Thread("a")
    options: dict[str, Any] = {"l1_timeout_seconds": 0.1}
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, own_redis.url, telemetry=telemetry, **options) as saver:

        async def hit() -> bool:
            before = reads(registry)["hit"]
            assert await thread.turn(saver) == thread.number
            return reads(registry)["hit"] > before

        await thread.put(saver)
        await until(hit)  # on a busy machine Redis may need more than 0.1 s, too
        caplog.clear()
        reads_before, writes_before = reads(registry), writes_by_l1(registry)
        own_redis.freeze()
        try:
            started = monotonic()
            await thread.put(saver)
            await thread.put_writes(saver, "x")
            assert await thread.turn(saver) == 2
            # Seven steps at most ask Redis, 0.1 s each; the rest is for a busy machine.
            assert monotonic() - started < 8
            said = [r.getMessage() for r in caplog.records if r.name == "glasspoint.l1"]
        finally:
            own_redis.thaw()
        assert reads(registry) - reads_before == {"unavailable": 1}
        writes = writes_by_l1(registry) - writes_before
        assert writes["applied"] == 0
        assert writes.total() == 2
        # What Redis finds in its sockets now is a BEGIN of the put: readers go to L2 until it runs out.
        await until(hit)
        assert await same_as_upstream(saver, database, thread)
    assert len([s for s in said if "does not answer" in s]) == 1, "once, not for every call"


async def test_a_write_that_a_frozen_redis_was_never_told_of_is_read_after_the_thaw(
    database: str, own_redis: EmbeddedRedis
) -> None:
    one, two = Thread("one"), Thread("two")
    async with open_saver(database, own_redis.url, l1_timeout_seconds=0.1) as saver:
        await one.put(saver)
        await two.put(saver)
        own_redis.freeze()
        try:
            await one.put(saver)
            await two.put(saver)  # the epoch is in doubt by now, and asking for it gets no answer
        finally:
            own_redis.thaw()
        assert (await one.turn(saver), await two.turn(saver)) == (2, 2)


WRITES: dict[str, tuple[str, Callable[[Thread, BaseCheckpointSaver[str]], Awaitable[Any]]]] = {
    "put": ("checkpoints", lambda thread, saver: thread.put(saver)),
    "put_writes": ("checkpoint_writes", lambda thread, saver: thread.put_writes(saver, "x", uuid4().hex)),
    "delete_thread": ("checkpoints", lambda thread, saver: saver.adelete_thread(thread.thread_id)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("back", ["empty", "from the snapshot", "never"])
async def test_a_write_during_which_redis_is_killed_is_acknowledged_all_the_same(
    write: str, back: str, database: str, own_redis: EmbeddedRedis
) -> None:
    table, call = WRITES[write]
    thread = Thread("a")
    async with open_saver(database, own_redis.url) as saver:
        await thread.put(saver)
        own_redis.save_snapshot()
        async with locked(database, table) as waiter:
            writing = asyncio.ensure_future(call(thread, saver))
            await waiter()
            own_redis.kill()
        await writing
        if back == "empty":
            (own_redis.directory / "dump.rdb").unlink()
        if back != "never":
            own_redis.start()
        assert await same_as_upstream(saver, database, thread)
        found = await saver.aget_tuple(thread.config)
        if write == "delete_thread":
            assert found is None
        else:
            assert found is not None
            assert found.checkpoint["id"] == numbered_id(thread.number)
            assert bool(found.pending_writes) == (write == "put_writes")


# ------------------------------------------------------------------ writes cut off


@pytest.mark.dice
@pytest.mark.parametrize("write", WRITES)
async def test_after_a_write_that_was_cancelled_reads_equal_upstream_s(
    write: str, database: str, redis_url: str
) -> None:
    """Cancelled at any moment: the write happened or it did not, and L1 never disagrees with L2."""
    _, call = WRITES[write]
    dice = seeded_dice()
    ends = {"cancelled": 0, "done": 0}
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with (
        open_saver(database, redis_url, telemetry=telemetry) as saver,
        open_upstream(database) as upstream,
    ):
        for number in range(40):
            thread = Thread(f"thread {number}")
            await thread.put(saver)
            writing = asyncio.ensure_future(call(thread, saver))
            for _ in range(dice.randrange(25)):
                await asyncio.sleep(0)
            if dice.random() < 0.5:
                await asyncio.sleep(dice.random() * 0.003)
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
            ends["cancelled" if writing.cancelled() else "done"] += 1

            async def agree(thread: Thread = thread) -> bool:
                found, truth = await saver.aget_tuple(thread.config), await upstream.aget_tuple(thread.config)
                return exact(tuple(found or ())) == exact(tuple(truth or ()))

            # A statement that was cut off may end a moment later; what is stale in L1 would stay for a day.
            await until(agree)
            assert await agree()
    assert ends["cancelled"] > 5, "or this test shows nothing"
    if write != "delete_thread":  # a transaction that is cut off may still be running
        assert reads(registry)["busy"] <= 2, "a cancelled write does not keep readers away for long"


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_whose_backend_is_terminated_is_done_on_another(
    write: str, database: str, redis_url: str
) -> None:
    table, call = WRITES[write]
    thread = Thread("a")
    async with open_saver(database, redis_url, pool_max_size=1) as saver:
        await thread.put(saver)
        async with locked(database, table) as waiter:
            writing = asyncio.ensure_future(call(thread, saver))
            await _terminate(database, await waiter())
        await writing
        assert await same_as_upstream(saver, database, thread)
        await thread.put_writes(saver, "y", task_id="another")  # on a fresh connection
        assert await same_as_upstream(saver, database, thread)


@pytest.mark.parametrize("write", ["put", "put_writes"])
async def test_a_write_whose_connection_breaks_may_land_twice_and_is_read_as_it_is(
    write: str, database: str, redis_url: str
) -> None:
    """The server does not notice that its client is gone, and commits beside the second attempt or after."""
    table, call = WRITES[write]
    thread = Thread("a")
    given = conninfo_to_dict(database)
    socket = f"{given['host']}/.s.PGSQL.{given['port']}"
    async with Proxy().to(lambda: asyncio.open_unix_connection(socket)) as proxy:
        through_proxy = make_conninfo(database, host="127.0.0.1", port=proxy.port)
        async with (
            open_saver(through_proxy, redis_url, pool_max_size=1) as saver,
            open_saver(database, redis_url) as reader,
            open_upstream(database) as upstream,
        ):
            await thread.put(saver)
            await call(thread, saver)  # once before, so that the statement is prepared and goes out whole
            assert await same_as_upstream(reader, database, thread)
            before = exact(tuple(await upstream.aget_tuple(thread.config) or ()))
            async with locked(database, table) as waiter:
                writing = asyncio.ensure_future(call(thread, saver))
                await waiter()
                await proxy.cut()
                await until(lambda: _waiting_for_locks(database, 2))
                assert exact(tuple(await reader.aget_tuple(thread.config) or ())) == before
            await writing
            assert exact(tuple(await upstream.aget_tuple(thread.config) or ())) != before
            await until(lambda: _waiting_for_locks(database, 0))
            assert await same_as_upstream(reader, database, thread)
            assert await same_as_upstream(saver, database, thread)


async def test_a_read_whose_backend_is_terminated_is_done_on_another(database: str, redis_url: str) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url) as saver, Redis.from_url(redis_url) as redis:
        await thread.put(saver)
        await redis.flushall()
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE") as waiter:
            reading = asyncio.ensure_future(thread.turn(saver))
            await _terminate(database, await waiter())
        assert await reading == 1


async def _waiting_for_locks(database: str, count: int) -> bool:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        row = await (await conn.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")).fetchone()
    return row == (count,)


async def _terminate(database: str, pid: int) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute("SELECT pg_terminate_backend(%s)", [pid])


@pytest.mark.parametrize("write", ["put", "put_writes"])
async def test_a_write_that_postgres_does_not_finish_fails_at_its_deadline(
    write: str, database: str, redis_url: str
) -> None:
    table, call = WRITES[write]
    thread = Thread("a")
    async with open_saver(database, redis_url, write_deadline_seconds=1.5) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        number, newest = thread.number, thread.newest
        async with locked(database, table) as waiter:
            started = monotonic()
            writing = asyncio.ensure_future(call(thread, saver))
            await waiter()
            with pytest.raises(L2DeadlineError, match=r"within 1\.5 s.*may be repeated") as caught:
                await writing
            assert isinstance(caught.value, TimeoutError)
            assert monotonic() - started < 8
        assert await same_as_upstream(saver, database, thread)
        thread.number, thread.newest = number, newest
        await call(thread, saver)  # repeated
        assert await same_as_upstream(saver, database, thread)
        assert await thread.turn(saver) == thread.number


async def test_a_read_that_postgres_does_not_finish_is_an_error_of_ours(
    database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with (
        open_saver(database, redis_url, write_deadline_seconds=1.5) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        await thread.put(saver)
        await redis.flushall()
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE"):
            started = monotonic()
            with pytest.raises((L2DeadlineError, L2UnavailableError)):
                await thread.turn(saver)
            assert monotonic() - started < 8
        assert await thread.turn(saver) == 1


async def test_a_write_that_never_gets_a_connection_changes_nothing(database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    thread, other = Thread("a"), Thread("b")
    options: dict[str, Any] = {"pool_max_size": 1, "pool_timeout_seconds": 0.2, "write_deadline_seconds": 5.0}
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry, **options) as saver:
        await thread.put(saver)
        await until(lambda: saver._l1.trust.is_trusted)
        async with locked(database, "checkpoints") as waiter:
            blocked = asyncio.ensure_future(other.put(saver))
            await waiter()
            number, newest = thread.number, thread.newest
            with pytest.raises(L2UnavailableError, match=r"came free within .*pool_max_size"):
                await thread.put(saver)
            thread.number, thread.newest = number, newest
            assert await thread.turn(saver) == 1, "and the image stays: PostgreSQL certainly did not change"
        await blocked
    assert reads(registry) == {"hit": 1}
    assert value_of(registry, "glasspoint_pool_timeouts_total", {"saver": "default"}) == 1


async def test_a_saver_over_a_redis_that_comes_and_goes_says_so_once_each_time(
    database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "glasspoint")
    registry = CollectorRegistry()
    thread = Thread("a")
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, own_redis.url, telemetry=telemetry) as saver:

        async def hit_again() -> bool:
            before = reads(registry)["hit"]
            assert await thread.turn(saver) == thread.number
            return reads(registry)["hit"] > before

        for _ in range(2):
            own_redis.kill()
            for _ in range(3):
                await thread.put(saver)
                assert await thread.turn(saver) == thread.number
            own_redis.start()
            await until(hit_again)
    said = " ".join(r.getMessage() for r in caplog.records if r.name.startswith("glasspoint"))
    news = "does not answer|is left alone|answers again|has closed"
    assert re.findall(news, said) == news.split("|") * 2
