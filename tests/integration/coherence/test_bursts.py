"""Bursts: how the writes of one saver to one scope are announced together, and when that ends.

The steps themselves are tested in `test_protocol`, all schedules of them in `test_interleavings`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.types import ERROR
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.errors import L1UnavailableError, L2RefusedError
from glasspoint.l1.steps import Steps
from glasspoint.savers import bursts
from states import counts, exact, open_saver, open_upstream
from steps import Thread, locked, settled, until


class Watched:
    """A saver, and what it has counted."""

    def __init__(self, saver: CachedPostgresSaver, registry: CollectorRegistry) -> None:
        self.saver = saver
        self._registry = registry

    @property
    def writes(self) -> dict[str, int]:
        """By how L1 was told."""
        return counts(self._registry, "glasspoint_write_through_total", "l1")

    @property
    def ends(self) -> dict[str, int]:
        """Of bursts."""
        return counts(self._registry, "glasspoint_bursts_total", "end")

    @property
    def reads(self) -> dict[str, int]:
        """By what L1 has answered."""
        return counts(self._registry, "glasspoint_l1_reads_total", "result")

    @property
    def warm_ups(self) -> dict[str, int]:
        """By their result."""
        return counts(self._registry, "glasspoint_l1_warm_ups_total", "result")


@asynccontextmanager
async def watched(database: str, redis_url: str, **options: Any) -> AsyncIterator[Watched]:
    """A saver that does nothing in the background, but what its bursts do."""
    registry = CollectorRegistry()
    options = {"sweep_interval_seconds": 3600, **options}
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry, **options) as saver:
        yield Watched(saver, registry)


@pytest.fixture(autouse=True)
def no_burst_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is between two writes."""
    monkeypatch.setattr(bursts, "QUIET_SECONDS", 3600.0)


@pytest.fixture
async def ours(database: str, redis_url: str) -> AsyncIterator[Watched]:
    async with watched(database, redis_url) as each:
        yield each


@pytest.fixture
async def theirs(database: str, redis_url: str, ours: Watched) -> AsyncIterator[Watched]:
    """Another process."""
    async with watched(database, redis_url) as each:
        yield each


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def sql(database: str, ours: Watched) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Runs a statement, and returns its rows."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:

        async def run(statement: str, *params: Any) -> Any:
            cursor = await conn.execute(statement, params)
            return await cursor.fetchall() if cursor.description else None

        yield run


Sql = Callable[..., Awaitable[Any]]


async def steps(redis: Redis) -> int:
    """How many scripts Redis has run."""
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


async def evict(redis: Redis) -> None:
    """Take every entry away, as a Redis does that is full."""
    await redis.flushdb()


async def has_image(redis: Redis) -> bool:
    keys = [key async for key in redis.scan_iter()]
    return any([await redis.hexists(key, "id") for key in keys])


async def are_gone(sql: Sql) -> bool:
    """Whether no fence stands."""
    return not await sql("SELECT 1 FROM glasspoint_fences")


async def same_as_upstream(saver: CachedPostgresSaver, database: str, thread: Thread) -> bool:
    async with open_upstream(database) as upstream:
        truth = await upstream.aget_tuple(thread.config)
    return exact(tuple(await saver.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))


# ---------------------------------------------------------------- what a burst costs, and what readers get


async def test_a_burst_is_announced_once_and_committed_once(ours: Watched, redis: Redis) -> None:
    thread = Thread("a")
    await thread.put(ours.saver)
    begun = await steps(redis)
    for number in range(5):
        await thread.put_writes(ours.saver, number, f"task {number}")
        await thread.put(ours.saver)
    assert await steps(redis) == begun, "no trip to Redis"
    await settled(ours.saver, thread)
    assert await steps(redis) == begun + 1
    assert ours.writes == {"announced": 1, "covered": 10}
    assert ours.ends == {"applied": 1}


async def test_after_a_burst_everybody_reads_from_redis_what_postgres_has(
    database: str, ours: Watched, theirs: Watched
) -> None:
    thread = Thread("a")
    await thread.put(ours.saver, other=["stays"])
    await thread.put_writes(ours.saver, "of an older checkpoint")
    await thread.put(ours.saver)
    await thread.put_writes(ours.saver, "pending", "task 1")
    await thread.put_writes(ours.saver, "pending, too", "task 2")
    await settled(ours.saver, thread)
    for each in (ours, theirs):
        assert await same_as_upstream(each.saver, database, thread)
        assert each.reads == {"hit": 1}


async def test_while_a_burst_goes_on_each_write_is_read_elsewhere_at_once(
    ours: Watched, theirs: Watched
) -> None:
    thread = Thread("a")
    for number in range(1, 6):
        await thread.put(ours.saver)
        assert await thread.turn(theirs.saver) == number
    assert theirs.reads == {"busy": 5}
    await settled(ours.saver, thread)
    assert await thread.turn(theirs.saver) == 5
    assert theirs.reads == {"busy": 5, "hit": 1}


async def test_who_writes_reads_its_own_writes_from_redis(ours: Watched) -> None:
    thread = Thread("a")
    for number in range(1, 4):
        await thread.put(ours.saver)
        assert await thread.turn(ours.saver) == number
    assert ours.reads == {"hit": 3}
    assert ours.ends == {"applied": 3}


async def test_a_burst_of_one_scope_does_not_concern_another(ours: Watched, theirs: Watched) -> None:
    root, nested, other = Thread("a"), Thread("a", "nested"), Thread("b")
    for thread in (root, nested, other):
        await thread.put(ours.saver)
    await settled(ours.saver, nested, other)
    await root.put(ours.saver)
    assert [await thread.turn(theirs.saver) for thread in (nested, other, root)] == [1, 1, 2]
    assert theirs.reads == {"hit": 2, "busy": 1}


async def test_writes_that_begin_a_burst_together_are_each_confirmed(ours: Watched, theirs: Watched) -> None:
    """None of them can rely on another one: whose statement is first is not known when they are sent."""
    thread = Thread("a")
    await thread.put(ours.saver)
    await settled(ours.saver, thread)
    await asyncio.gather(*(thread.put_writes(ours.saver, n, f"task {n}") for n in range(3)))
    assert ours.writes == {"announced": 4}
    await settled(ours.saver, thread)
    found = await theirs.saver.aget_tuple(thread.config)
    assert found is not None
    assert found.pending_writes == [(f"task {n}", "messages", n) for n in range(3)]
    assert theirs.reads == {"hit": 1}


# ---------------------------------------------------------------- when a burst ends


async def test_a_burst_ends_by_itself_when_no_write_has_come_for_a_moment(
    ours: Watched, theirs: Watched, redis: Redis, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bursts, "QUIET_SECONDS", 0.05)
    thread = Thread("a")
    await thread.put(ours.saver)
    await until(lambda: has_image(redis), seconds=5)
    assert await thread.turn(theirs.saver) == 1
    assert theirs.reads == {"hit": 1}
    await until(lambda: are_gone(sql), seconds=5)


async def test_a_burst_that_never_pauses_ends_all_the_same(
    ours: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers are not kept from Redis for ever, and the intent must outlive the burst."""
    monkeypatch.setattr(bursts, "BURST_SECONDS", 0.2)
    thread = Thread("a")

    async def write_on() -> bool:
        await thread.put(ours.saver)
        return ours.ends.get("applied", 0) >= 3

    await until(write_on)
    await settled(ours.saver, thread)
    assert ours.ends.keys() == {"applied"}, "one after the other: none of them meets another one's intent"
    assert ours.writes.keys() == {"announced", "covered"}


async def test_a_burst_of_large_values_ends_early(ours: Watched) -> None:
    """It keeps them until it ends."""
    thread = Thread("a")
    for _ in range(3):
        await thread.put(ours.saver, large=["x" * 600_000])
    assert ours.writes == {"announced": 2, "covered": 1}
    await settled(ours.saver, thread)
    assert ours.ends == {"applied": 2}
    assert await thread.turn(ours.saver) == 3


@pytest.mark.parametrize("how", ["delete_thread", "prune", "prune and delete"])
async def test_a_burst_ends_before_its_thread_is_changed_as_a_whole(
    how: str, database: str, ours: Watched, theirs: Watched
) -> None:
    """What it has in hand is not installed afterwards."""
    thread, nested = Thread("a"), Thread("a", "nested")
    for each in (thread, nested, thread):
        await each.put(ours.saver)
    match how:
        case "delete_thread":
            await ours.saver.adelete_thread("a")
        case "prune":
            await ours.saver.aprune(["a"])
        case _:
            await ours.saver.aprune(["a"], strategy="delete")
    assert ours.ends == {"applied": 2}
    await settled(ours.saver)
    for each in (thread, nested):
        assert await same_as_upstream(theirs.saver, database, each)
        assert await same_as_upstream(ours.saver, database, each)


async def test_a_burst_ends_before_a_copy_takes_the_place_of_its_thread(
    database: str, ours: Watched, theirs: Watched
) -> None:
    source, target = Thread("a"), Thread("b")
    await source.put(ours.saver)
    await source.put(ours.saver)
    await target.put(ours.saver)
    async with open_upstream(database) as upstream:
        await upstream.adelete_thread("b")
    await ours.saver.acopy_thread("a", "b")
    await settled(ours.saver)
    for each in (ours, theirs):
        assert await target.turn(each.saver) == 2


async def test_pruning_by_age_leaves_nothing_of_a_burst_behind(
    database: str, ours: Watched, theirs: Watched
) -> None:
    """And is not put off by one that this saver has open itself. All checkpoints of `Thread` are old."""
    thread, whole = Thread("a"), Thread("b")
    for each in (thread, thread, whole):
        await each.put(ours.saver)
    report = await ours.saver.aprune_older_than(timedelta(days=1))
    assert (report.checkpoints, report.skipped_threads) == (1, 0)
    report = await ours.saver.aprune_older_than(timedelta(days=1), keep_latest=False)
    assert (report.checkpoints, report.skipped_threads) == (2, 0)
    await thread.put(ours.saver)
    await settled(ours.saver)
    assert await same_as_upstream(ours.saver, database, thread)
    assert await same_as_upstream(theirs.saver, database, thread)


async def test_closing_ends_all_bursts_and_removes_their_fences(
    database: str, redis_url: str, theirs: Watched, sql: Sql
) -> None:
    threads = [Thread(str(number)) for number in range(10)]
    async with watched(database, redis_url) as closing:
        for thread in threads:
            await thread.put(closing.saver)
        assert not await are_gone(sql)
    assert closing.ends == {"applied": 10}
    assert await are_gone(sql)
    assert [await thread.turn(theirs.saver) for thread in threads] == [1] * 10
    assert theirs.reads == {"hit": 10}


async def test_the_fences_of_ended_bursts_are_removed_together(ours: Watched, sql: Sql) -> None:
    await sql("CREATE TABLE removals ()")
    await sql(
        "CREATE FUNCTION note_removal() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN INSERT INTO removals DEFAULT VALUES; RETURN NULL; END $$"
    )
    await sql(
        "CREATE TRIGGER note AFTER DELETE ON glasspoint_fences "
        "FOR EACH STATEMENT EXECUTE FUNCTION note_removal()"
    )
    for thread in [Thread(str(number)) for number in range(20)]:
        await thread.put(ours.saver)
    await settled(ours.saver, keeps_fences=True)
    await until(lambda: are_gone(sql))
    assert await sql("SELECT count(*) FROM removals") in ([(1,)], [(2,)])


async def test_a_fence_of_a_burst_that_goes_on_is_not_removed_with_that_of_the_one_before(
    ours: Watched, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    await thread.put(ours.saver)
    await settled(ours.saver, thread, keeps_fences=True)
    await thread.put(ours.saver)
    await ours.saver._l2.fences.remove()  # type: ignore[union-attr]
    assert len(await sql("SELECT 1 FROM glasspoint_fences")) == 1
    await thread.put(ours.saver)
    assert ours.writes == {"announced": 2, "covered": 1}


# ---------------------------------------------------------------- fences


async def test_who_reads_from_postgres_during_a_burst_does_not_warm_up(
    ours: Watched, theirs: Watched, redis: Redis, sql: Sql
) -> None:
    """Even if the intent was evicted: what is read now is out of date with the burst's next write, of which
    Redis is told nothing."""
    thread = Thread("a")
    await thread.put(ours.saver)
    await evict(redis)
    assert await thread.turn(theirs.saver) == 1
    await thread.put(ours.saver)
    assert await thread.turn(theirs.saver) == 2
    assert theirs.reads == {"miss": 2}
    assert theirs.warm_ups == {"fenced": 2}
    await settled(ours.saver, thread)
    assert ours.ends == {"discarded": 1}, "its intent was gone"
    assert await are_gone(sql)
    assert await thread.turn(theirs.saver) == 2
    assert theirs.warm_ups == {"fenced": 2, "stored": 1}
    assert await thread.turn(ours.saver) == 2
    assert ours.reads == {"hit": 1}


async def test_of_readers_together_only_those_of_a_fenced_scope_do_not_warm_up(
    ours: Watched, theirs: Watched, redis: Redis
) -> None:
    """A crowd is answered by one statement."""
    quiet, busy = [Thread(f"quiet {n}") for n in range(8)], [Thread(f"busy {n}") for n in range(8)]
    for thread in quiet:
        await thread.put(ours.saver)
    await settled(ours.saver)
    for thread in busy:
        await thread.put(ours.saver)
    await evict(redis)
    threads = [thread for pair in zip(quiet, busy, strict=True) for thread in pair]
    assert await asyncio.gather(*(thread.turn(theirs.saver) for thread in threads)) == [1] * 16
    assert theirs.warm_ups == {"stored": 8, "fenced": 8}


@pytest.mark.parametrize(
    "lost",
    [
        "DELETE FROM glasspoint_fences",
        "UPDATE glasspoint_fences SET until = now() - interval '1 second'",
        # Not for as long as a statement can run.
        "UPDATE glasspoint_fences SET until = now() + interval '1 second'",
        "UPDATE glasspoint_fences SET burst = 'another'",
    ],
    ids=["gone", "expired", "about to expire", "of another burst"],
)
async def test_a_write_that_finds_no_fence_is_a_first_one_again(
    lost: str, ours: Watched, theirs: Watched, redis: Redis, sql: Sql
) -> None:
    """PostgreSQL has crashed, and emptied the table, and Redis the entry: a reader may have warmed up."""
    thread = Thread("a")
    await thread.put(ours.saver)
    await sql(lost)
    await evict(redis)
    if "1 second'" not in lost or "-" in lost:
        await theirs.saver.aget_tuple(thread.config)
    await thread.put(ours.saver)
    assert await thread.turn(theirs.saver) == 2
    assert ours.writes["announced"] + ours.writes.get("contested", 0) == 2
    await thread.put(ours.saver)
    await thread.put(ours.saver)
    assert await thread.turn(theirs.saver) == 4
    assert len(await sql("SELECT 1 FROM glasspoint_fences WHERE until > now() + interval '5 seconds'")) == 1
    await settled(ours.saver)
    assert await thread.turn(theirs.saver) == 4


async def test_a_burst_whose_fence_was_lost_and_whose_intent_stands_installs(
    ours: Watched, theirs: Watched, sql: Sql
) -> None:
    thread = Thread("a")
    await thread.put(ours.saver)
    await sql("DELETE FROM glasspoint_fences")
    for _ in range(3):
        await thread.put(ours.saver)
    assert ours.writes == {"announced": 3, "covered": 1}, "one found none, the next one set it again"
    await settled(ours.saver, thread)
    assert await thread.turn(theirs.saver) == 4
    assert theirs.reads == {"hit": 1}


async def test_a_burst_whose_intent_was_evicted_installs_nothing(
    ours: Watched, theirs: Watched, redis: Redis
) -> None:
    thread = Thread("a")
    await thread.put(ours.saver)
    await evict(redis)
    await thread.put(ours.saver)
    await settled(ours.saver, thread)
    assert not await has_image(redis)
    assert await thread.turn(theirs.saver) == 2
    await thread.put(ours.saver)
    await settled(ours.saver, thread)
    assert ours.ends["discarded"] >= 1


async def test_an_intent_that_was_evicted_before_the_first_acknowledgement_is_noticed(
    database: str, ours: Watched, theirs: Watched, redis: Redis, sql: Sql
) -> None:
    """A reader that looked at PostgreSQL before the write's commit finds neither intent nor fence."""
    thread = Thread("a")
    await thread.put(ours.saver)
    await settled(ours.saver, thread)
    async with locked(database, "checkpoints") as waiter:
        write = asyncio.create_task(thread.put(ours.saver))
        await waiter()
        await evict(redis)
        assert (await theirs.saver.aget_tuple(thread.config)) is not None
        assert await has_image(redis), "it was warmed up with what is out of date in a moment"
    await write
    assert not await has_image(redis)
    assert await thread.turn(theirs.saver) == 2
    assert ours.writes["contested"] == 1


# ---------------------------------------------------------------- two writers


async def test_of_two_savers_that_write_to_one_scope_neither_installs_and_both_are_right(
    ours: Watched, theirs: Watched, redis: Redis
) -> None:
    thread = Thread("a")
    for number in range(1, 9):
        await thread.put((ours, theirs)[number % 2].saver)
        for each in (ours, theirs):
            # An own read ends a burst; the other one's does not.
            assert await thread.turn(each.saver) == number
    for each in (ours, theirs):
        await settled(each.saver)
    assert await thread.turn(ours.saver) == 8


async def test_another_savers_fence_contests_when_the_intents_were_evicted(
    ours: Watched, theirs: Watched, redis: Redis
) -> None:
    """Neither BEGIN finds the other's intent: only PostgreSQL knows of both."""
    thread = Thread("a")
    await thread.put(ours.saver)
    await evict(redis)
    await thread.put(theirs.saver)
    assert theirs.writes == {"contested": 1}
    await thread.put(ours.saver)
    assert ours.writes == {"announced": 1, "contested": 1}
    for each in (ours, theirs):
        await settled(each.saver, keeps_fences=True)
        assert not await has_image(redis)
        assert each.ends == {"contested": 1}
    assert await thread.turn(ours.saver) == 3
    assert await thread.turn(theirs.saver) == 3


async def test_a_further_write_that_meets_another_savers_fence_does_not_install_over_it(
    ours: Watched, theirs: Watched, redis: Redis
) -> None:
    """Their burst is over, and their fence stands for a moment yet."""
    thread = Thread("a")
    await thread.put(ours.saver)
    await evict(redis)
    await thread.put(theirs.saver)
    await settled(theirs.saver, keeps_fences=True)
    await thread.put(ours.saver)
    await settled(ours.saver)
    assert ours.ends == {"contested": 1}
    assert await thread.turn(theirs.saver) == 3


async def test_after_a_contest_the_cache_is_used_again(ours: Watched, theirs: Watched, sql: Sql) -> None:
    thread = Thread("a")
    await thread.put(ours.saver)
    await thread.put(theirs.saver)
    for each in (ours, theirs):
        await settled(each.saver)
    assert await are_gone(sql)
    await thread.put(ours.saver, other=["x"])
    assert await thread.turn(ours.saver) == 3
    assert await thread.turn(theirs.saver) == 3
    assert await thread.turn(theirs.saver) == 3
    assert theirs.reads["hit"] >= 1


# ---------------------------------------------------------------- writes side by side


async def test_writes_that_replace_each_other_side_by_side_are_read_as_postgres_has_them(
    database: str, ours: Watched, theirs: Watched
) -> None:
    """In which order they are answered says nothing of the order in which PostgreSQL ran them."""
    thread = Thread("a")
    await thread.put(ours.saver)
    for round_ in range(10):
        await asyncio.gather(
            *(
                ours.saver.aput_writes(thread.newest, [(ERROR, f"{round_} {n}")], "task", "path")
                for n in range(4)
            )
        )
        await settled(ours.saver)
        assert await same_as_upstream(theirs.saver, database, thread)


async def test_a_put_and_its_writes_side_by_side_are_read_together(
    database: str, ours: Watched, theirs: Watched
) -> None:
    """LangGraph starts the tasks of a checkpoint while it puts it."""
    thread = Thread("a")
    await thread.put(ours.saver)
    for _ in range(10):
        put = thread.next_put(ours.saver)
        config: Any = {"configurable": {**thread.config["configurable"], "checkpoint_id": put[1]["id"]}}
        _, thread.newest = await asyncio.gather(
            ours.saver.aput_writes(config, [("messages", "x")], "task"), ours.saver.aput(*put)
        )
    await settled(ours.saver)
    assert ours.ends == {"applied": 1}
    assert await same_as_upstream(theirs.saver, database, thread)
    assert theirs.reads == {"hit": 1}


# ---------------------------------------------------------------- what goes wrong


async def test_a_write_that_is_left_in_doubt_ends_its_burst_and_nothing_is_installed(
    database: str, ours: Watched, theirs: Watched, redis: Redis, sql: Sql
) -> None:
    thread = Thread("a")
    await thread.put(ours.saver)
    await thread.put(ours.saver)
    async with locked(database, "checkpoints") as waiter:
        write = asyncio.create_task(thread.put(ours.saver))
        await sql("SELECT pg_terminate_backend(%s)", await waiter())
    await write
    await thread.put(ours.saver)
    assert await thread.turn(theirs.saver) == 4
    assert await thread.turn(ours.saver) == 4
    assert await same_as_upstream(theirs.saver, database, thread)


@pytest.mark.parametrize("step", ["confirm", "commit"])
async def test_a_burst_that_is_lost_removes_its_fence(
    step: str, ours: Watched, theirs: Watched, redis: Redis, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its writes are in PostgreSQL. Readers may store what they find there, at once."""
    thread = Thread("a")
    run = Steps.run

    async def unheard(self: Steps, name: str, *args: Any, **options: Any) -> Any:
        if self is ours.saver._l1._steps and name in (step, "drop"):
            raise L1UnavailableError("made to fail")
        return await run(self, name, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Steps, "run", unheard)
        await thread.put(ours.saver)
        await ours.saver._bursts.end_all()
    await until(lambda: are_gone(sql))
    await evict(redis)  # the intent
    assert await thread.turn(theirs.saver) == 1
    await until(lambda: has_image(redis))


async def test_a_write_that_fails_leaves_the_burst_of_the_others_alone(
    ours: Watched, theirs: Watched, sql: Sql
) -> None:
    """PostgreSQL has refused it, and certainly not changed."""
    thread = Thread("a")
    await thread.put(ours.saver)
    config, checkpoint, metadata, versions = thread.next_put(ours.saver)
    await sql("ALTER TABLE checkpoints ADD CHECK (checkpoint ->> 'ts' <> 'refused')")
    with pytest.raises(L2RefusedError, match="CheckViolation"):
        await ours.saver.aput(config, {**checkpoint, "ts": "refused"}, metadata, versions)
    thread.number -= 1
    await thread.put(ours.saver)
    await settled(ours.saver)
    assert await thread.turn(theirs.saver) == 2
    assert theirs.reads == {"hit": 1}


async def test_of_a_single_connection_a_burst_takes_no_more_than_its_turn(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst that waits for the one before holds no connection that this one may need to come to its end."""
    async with watched(database, redis_url, pool_max_size=1, pool_timeout_seconds=5) as alone:
        thread = Thread("a")
        await thread.put(alone.saver)
        monkeypatch.setattr(bursts, "BURST_SECONDS", 0.0)  # each write is a burst of its own
        async with asyncio.timeout(4):
            await asyncio.gather(
                *(thread.put_writes(alone.saver, n, f"task {n}") for n in range(20)),
                thread.put(alone.saver),
            )


async def test_fences_that_cannot_be_removed_are_left_to_expire(ours: Watched, sql: Sql) -> None:
    thread = Thread("a")
    await thread.put(ours.saver)
    await sql("ALTER TABLE glasspoint_fences RENAME TO fences_elsewhere")
    await settled(ours.saver)
    await sql("ALTER TABLE fences_elsewhere RENAME TO glasspoint_fences")
    await thread.put(ours.saver)
    assert await thread.turn(ours.saver) == 2


async def test_what_processes_that_died_have_left_is_removed(ours: Watched, sql: Sql) -> None:
    await sql(
        "INSERT INTO glasspoint_fences VALUES ('a', '', 'dead', 'x', now() - interval '1 second'), "
        "('b', '', 'alive', 'y', now() + interval '1 hour')"
    )
    await ours.saver._l2.fences.expire()  # type: ignore[union-attr]
    assert await sql("SELECT holder FROM glasspoint_fences") == [("alive",)]
