"""Removing what is old: what is needed stays, batches are whole, and neighbours are not disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import ConfigurationError, L1UnavailableError, L2UnavailableError, SaverClosedError
from glasspoint.model.scope import Scope
from glasspoint.savers.maintenance import PruneReport
from histories import State, TwoChannels, id_at, ids, make_graph, rows_of_thread, write_random_history
from states import config_of, exact, open_saver, open_upstream
from steps import Thread, keys_of, locked, rows_of, seeded_dice, settled, until

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


@pytest.fixture
async def saver(database: str, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    async with open_saver(database, redis_url) as opened:
        yield opened


@pytest.fixture
async def other(database: str, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    """Another saver on the same servers."""
    async with open_saver(database, redis_url) as opened:
        yield opened


@pytest.fixture
async def upstream(database: str) -> AsyncIterator[AsyncPostgresSaver]:
    async with open_upstream(database) as opened:
        yield opened


class Aged(Thread):
    """A thread whose checkpoints are as many days old as is said; the `n`th has the values `n`."""

    async def put_aged(
        self, saver: Any, days: float, *, fmt: int = 4, root: str | None = None, checkpoint_id: str = ""
    ) -> str:
        config, checkpoint, metadata, versions = self.next_put(saver)
        checkpoint["id"] = checkpoint_id or id_at(NOW - days * DAY, self.number)
        checkpoint["ts"] = (NOW - days * DAY).isoformat()
        checkpoint["v"] = fmt
        if root is not None:
            metadata["parents"] = {"": root}
        self.newest = await saver.aput(config, checkpoint, metadata, versions)
        return checkpoint["id"]

    async def newest_id(self, saver: CachedPostgresSaver) -> str:
        found = await saver.aget_tuple(self.config)
        assert found is not None
        return found.checkpoint["id"]


async def put_aged(
    saver: Any, thread_id: str, *days: float, namespace: str = "", **options: Any
) -> list[str]:
    thread = Aged(thread_id, namespace)
    return [await thread.put_aged(saver, each, **options) for each in days]


async def remaining(database: str, thread_id: str, namespace: str = "") -> list[str]:
    return ids(await rows_of_thread(database, thread_id), namespace)


async def execute(postgres_url: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as conn:
        cursor = await conn.execute(statement, params)
        return await cursor.fetchall() if cursor.description else []


async def stored_bytes(database: str) -> int:
    [(size,)] = await execute(
        database,
        "SELECT (SELECT coalesce(sum(pg_column_size(checkpoint) + pg_column_size(metadata)), 0)"
        " FROM checkpoints)"
        " + (SELECT coalesce(sum(pg_column_size(blob)), 0) FROM checkpoint_blobs)"
        " + (SELECT coalesce(sum(pg_column_size(blob)), 0) FROM checkpoint_writes)",
    )
    return int(size)


# ------------------------------------------------------------------ what goes, what stays


@pytest.mark.parametrize("keep_latest", [True, False])
async def test_old_checkpoints_go_and_the_newest_stays(
    keep_latest: bool, database: str, saver: CachedPostgresSaver
) -> None:
    dead = await put_aged(saver, "dead", 50, 45, 40)
    alive = await put_aged(saver, "alive", 50, 40, 20, 1)
    young = await put_aged(saver, "young", 20, 1)
    lone = await put_aged(saver, "lone", 40)
    report = await saver.aprune_older_than(30 * DAY, keep_latest=keep_latest)
    assert await remaining(database, "dead") == (dead[2:] if keep_latest else [])
    assert await remaining(database, "alive") == alive[2:]
    assert await remaining(database, "young") == young
    assert await remaining(database, "lone") == (lone if keep_latest else [])
    gone = 4 if keep_latest else 6
    assert (report.checkpoints, report.blobs) == (gone, gone)
    assert report.threads == (2 if keep_latest else 3)
    parents = {row[1]: row[2] for row in (await rows_of_thread(database, "alive"))["checkpoints"]}
    assert parents == {alive[2]: None, alive[3]: alive[2]}


async def test_a_report_counts_rows_and_stored_bytes_exactly(
    database: str, saver: CachedPostgresSaver
) -> None:
    for number in range(30):
        thread = Aged(f"thread {number}")
        for days in (50, 40, 35, 31, 29, 3):
            await thread.put_aged(saver, days)
            await thread.put_writes(saver, "x" * 5000)
    before, bytes_before = await rows_of(database), await stored_bytes(database)
    dry = await saver.aprune_older_than(30 * DAY, batch_size=16, dry_run=True)
    assert await rows_of(database) == before
    seen: list[PruneReport] = []
    report = await saver.aprune_older_than(30 * DAY, batch_size=16, on_batch=seen.append)
    after = await rows_of(database)
    removed = [(before[table] or 0) - (after[table] or 0) for table in TABLES]
    assert [report.checkpoints, report.blobs, report.writes] == removed == [120, 120, 120]
    assert report.bytes == bytes_before - await stored_bytes(database)
    assert (report.threads, report.batches, report.skipped_threads) == (30, 8, 0)
    assert seen[-1] == report
    assert [each.batches for each in seen] == list(range(1, 9))
    assert replace(dry, dry_run=False, cutoff=report.cutoff) == report
    again = await saver.aprune_older_than(30 * DAY)
    assert (again.checkpoints, again.writes, again.blobs, again.bytes, again.threads) == (0, 0, 0, 0, 0)


async def test_an_id_that_tells_no_time_is_as_old_as_its_timestamp(
    database: str, saver: CachedPostgresSaver
) -> None:
    thread = Aged("a")
    for name, days in (("a1", 40), ("a2", 3), ("a3", 50), ("a4", 60)):
        await thread.put_aged(saver, days, checkpoint_id=name)
    await execute(
        database,
        """UPDATE checkpoints SET checkpoint = checkpoint || '{"ts": "once"}'
                               WHERE checkpoint_id = 'a3'""",
    )
    await saver.aprune_older_than(30 * DAY)
    assert await remaining(database, "a") == ["a2", "a3", "a4"]


async def test_a_call_of_a_subgraph_goes_with_its_root_and_not_before(
    database: str, saver: CachedPostgresSaver
) -> None:
    root = await put_aged(saver, "a", 60, 50, 40, 3)
    await put_aged(saver, "a", 59, 58, namespace="over:1", root=root[0])
    running = await put_aged(saver, "a", 49, 5, namespace="young:2", root=root[1])
    kept = await put_aged(saver, "a", 49, 48, namespace="kept:3", root=root[3])
    lost = await put_aged(saver, "a", 49, 48, namespace="lost:4", root="not saved")
    memory = await put_aged(saver, "a", 49, 48, namespace="memory", root=root[0])
    await saver.aprune_older_than(30 * DAY)
    assert await remaining(database, "a") == [root[1], root[3]], "a young call needs the root it started from"
    assert await remaining(database, "a", "over:1") == []
    assert await remaining(database, "a", "young:2") == running[1:]
    assert await remaining(database, "a", "kept:3") == kept[1:]
    assert await remaining(database, "a", "lost:4") == lost[1:]
    assert await remaining(database, "a", "memory") == memory[1:]


async def test_pending_sends_of_an_old_format_stay_for_a_young_checkpoint(
    database: str, saver: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    thread = Aged("a")
    await thread.put_aged(saver, 60, fmt=1)
    parent = await thread.put_aged(saver, 50, fmt=1)
    await saver.aput_writes(thread.newest, [("__pregel_tasks", "send")], "task")
    young = [await thread.put_aged(saver, days, fmt=1) for days in (3, 2)]
    before = [exact(await upstream.aget_tuple(config_of("a", "", each))) for each in young]
    await saver.aprune_older_than(30 * DAY)
    assert await remaining(database, "a") == [parent, *young]
    assert [exact(await upstream.aget_tuple(config_of("a", "", each))) for each in young] == before


async def test_writes_without_a_checkpoint_go_when_they_are_old(
    database: str, saver: CachedPostgresSaver
) -> None:
    for thread_id, days in (("only writes", 40), ("early", 0), ("lone", 40), ("lone", 0)):
        await saver.aput_writes(config_of(thread_id, "", id_at(NOW - days * DAY)), [("a", 1)], "task")
    lone = await put_aged(saver, "lone", 35)
    await saver.aput_writes(config_of("lone", "", lone[0]), [("a", 1)], "task")
    report = await saver.aprune_older_than(30 * DAY)
    assert (report.writes, report.checkpoints, report.threads) == (2, 0, 2)
    left = await execute(database, "SELECT thread_id, checkpoint_id FROM checkpoint_writes ORDER BY 1, 2")
    assert left == [("early", id_at(NOW)), ("lone", lone[0]), ("lone", id_at(NOW))]


async def age(database: str, days: float) -> None:
    """Make everything older, as if it had been written so many days earlier."""
    columns = {
        "checkpoints": ("checkpoint_id", "parent_checkpoint_id"),
        "checkpoint_writes": ("checkpoint_id",),
    }
    ticks = int(days * 86400 * 10**7)
    await execute(database, """
        CREATE OR REPLACE FUNCTION older(id text, ticks bigint) RETURNS text LANGUAGE sql AS $$
            SELECT lpad(to_hex(t >> 28), 8, '0') || '-' || lpad(to_hex(t >> 12 & 65535), 4, '0') || '-6'
                   || lpad(to_hex(t & 4095), 3, '0') || substr(id, 19)
            FROM (SELECT ('x' || lpad(replace(substr(id, 1, 13), '-', '') || substr(id, 16, 3), 16, '0'))
                         ::bit(64)::bigint - ticks AS t) AS moved $$""")  # fmt: skip
    for table, names in columns.items():
        assignments = ", ".join(f"{name} = older({name}, {ticks})" for name in names)
        await execute(database, f"UPDATE {table} SET {assignments}")
    await execute(
        database,
        "UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{id}', to_jsonb(checkpoint_id))",
    )


@pytest.mark.parametrize("state", [State, TwoChannels])
@pytest.mark.parametrize("batch_size", [1, 1000])
async def test_no_delta_chain_is_cut(
    state: Any, batch_size: int, database: str, saver: CachedPostgresSaver
) -> None:
    """All young states, and the newest, are what they were; after each batch, too."""
    graph = make_graph(saver, state)
    for turn in range(8):
        await graph.ainvoke({"log": [f"turn {turn}"]}, config_of("a"))
        await age(database, 10)
    await saver.adelete_thread("nothing")
    before = {
        s.config["configurable"]["checkpoint_id"]: s.values
        async for s in graph.aget_state_history(config_of("a"))
    }
    young = [each for each in before if each > id_at(datetime.now(UTC) - 35 * DAY)]
    assert 0 < len(young) < len(before)
    report = await saver.aprune_older_than(35 * DAY, batch_size=batch_size)
    assert report.checkpoints
    assert report.batches == (report.checkpoints if batch_size == 1 else 1)
    left = await remaining(database, "a")
    assert set(young) <= set(left)
    for each in young:
        assert (await graph.aget_state(config_of("a", "", each))).values == before[each]
    await graph.ainvoke({"log": ["more"]}, config_of("a"))


@pytest.mark.dice
async def test_what_stays_is_read_as_before_and_as_upstream_reads_it(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    """Random histories of any age, with both savers warm."""
    dice = seeded_dice()
    for number in range(30):
        await write_random_history(upstream, f"t{number}", dice, steps=25)
    moved = id_at(NOW - 40 * DAY)[:24]
    for table in ("checkpoints", "checkpoint_writes"):
        for name in ("checkpoint_id", *(["parent_checkpoint_id"] if table == "checkpoints" else [])):
            await execute(
                database,
                f"UPDATE {table} SET {name} = %s || right({name}, 12)",
                moved,
            )
    await execute(database, """
        UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{id}', to_jsonb(checkpoint_id)),
            metadata = CASE WHEN metadata -> 'parents' ? '' AND length(metadata -> 'parents' ->> '') = 36
                THEN jsonb_set(metadata, ARRAY['parents', ''],
                               to_jsonb(%s || right(metadata -> 'parents' ->> '', 12)))
                ELSE metadata END""", moved)  # fmt: skip
    before = {}
    for number in range(30):
        for namespace in ("", "memory", "call:1", "call:2", "call:1|inner:3"):
            config = config_of(f"t{number}", namespace)
            newest = await other.aget_tuple(config)
            before[number, namespace] = newest and (newest.checkpoint, newest.pending_writes)
    await saver.aprune_older_than(30 * DAY, batch_size=dice.choice([1, 7, 1000]))
    for (number, namespace), expected in before.items():
        config = config_of(f"t{number}", namespace)
        found, truth = await other.aget_tuple(config), await upstream.aget_tuple(config)
        assert exact(found) == exact(truth)
        if truth is not None:
            assert (truth.checkpoint, truth.pending_writes) == expected
        else:
            assert expected is None or ":" in namespace
    copies = [f"t{number}" for number in range(30)]
    left = {t: await rows_of_thread(database, t) for t in copies}
    await upstream.aprune(copies)
    for t in copies:
        assert await rows_of_thread(database, t) == left[t], "all is old: the same goes as with keep_latest"


# ------------------------------------------------------------------ batches


async def test_a_thread_with_many_old_checkpoints_takes_several_batches(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    big = await put_aged(saver, "big", *range(60, 35, -1), 2)
    await put_aged(saver, "small", 50, 40)
    seen: list[int] = []

    def look(report: PruneReport) -> None:
        seen.append(report.checkpoints)

    report = await saver.aprune_older_than(30 * DAY, batch_size=10, on_batch=look)
    assert await remaining(database, "big") == big[-1:]
    assert seen == [10, 20, 25, 26]
    assert (report.threads, report.blobs) == (2, 26)


async def test_a_thread_that_goes_whole_keeps_its_newest_to_the_last(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    """Nobody takes an older checkpoint for the newest meanwhile."""
    big = await put_aged(saver, "big", *range(60, 35, -1))
    left = []

    async def look() -> None:
        left.append(await remaining(database, "big"))

    with pytest.raises(StopAsyncIteration):
        await stepwise(saver, look, keep_latest=False, batch_size=10)
    assert [len(each) for each in left] == [15, 5, 0]
    assert all(each[-1] == big[-1] for each in left[:-1])
    await put_aged(saver, "big", *range(60, 35, -1))
    seen: list[int] = []
    await saver.aprune_older_than(
        30 * DAY, keep_latest=False, batch_size=10, on_batch=lambda report: seen.append(report.checkpoints)
    )
    assert seen == [10, 20, 24, 25]
    assert (await rows_of(database))["checkpoint_blobs"] == 0


async def stepwise(saver: CachedPostgresSaver, look: Any, **options: Any) -> None:
    """Run it, and look after each batch: `on_batch` ends the run, and the next one goes on."""

    class Stop(Exception):
        pass

    def stop(report: PruneReport) -> None:
        if report.checkpoints:
            raise Stop

    while True:
        try:
            await saver.aprune_older_than(30 * DAY, on_batch=stop, **options)
        except Stop:
            await look()
        else:
            raise StopAsyncIteration


async def test_after_every_batch_everything_left_can_be_read(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    """A crash after any batch: what is left is whole, and the next run goes on and leaves no garbage."""
    await put_aged(saver, "one", *range(60, 40, -1), 3)
    before = {t.checkpoint["id"]: t.checkpoint async for t in upstream.alist(config_of("one"))}

    async def look() -> None:
        for each in [each async for each in upstream.alist(config_of("one"))]:
            assert each.checkpoint == before[each.checkpoint["id"]]
            if each.parent_config:
                assert await upstream.aget_tuple(each.parent_config), "a parent that is not there"
        assert exact(await other.aget_tuple(config_of("one"))) == exact(
            await upstream.aget_tuple(config_of("one"))
        )

    with pytest.raises(StopAsyncIteration):
        await stepwise(saver, look, batch_size=3)
    assert await rows_of(database) == {
        "checkpoints": 1, "checkpoint_blobs": 1, "checkpoint_writes": 0, "checkpoint_migrations": 10
    }  # fmt: skip


async def test_a_plan_is_made_anew_when_somebody_goes_back_in_time(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    """Between two batches, a new checkpoint makes an old one its parent: its delta chain is not cut."""
    graph = make_graph(other)
    for turn in range(6):
        await graph.ainvoke({"log": [f"turn {turn}"]}, config_of("a"))
    await age(database, 40)
    tuples = [each async for each in other.alist(config_of("a"))]
    old = next(t for t in tuples[6:] if t.metadata.get("counters_since_delta_snapshot"))
    expected: list[Any] = []
    maintenance: Any = saver._maintenance
    original = maintenance._remove

    async def remove_after_the_fork(run: Any, *args: Any) -> Any:
        if run.report.batches == 1 and not expected:
            checkpoint: Any = {**old.checkpoint, "id": id_at(datetime.now(UTC))}
            fork = await other.aput(old.config, checkpoint, old.metadata, {})
            expected.extend([fork, exact(await history_of(fork))])
        return await original(run, *args)

    async def history_of(config: Any) -> Any:
        return await other.aget_delta_channel_history(config=config, channels=["log"])

    maintenance._remove = remove_after_the_fork
    await saver.aprune_older_than(30 * DAY, batch_size=2)
    fork, history = expected
    assert exact(await history_of(fork)) == history
    assert len(await remaining(database, "a")) < len(tuples)


# ------------------------------------------------------------------ neighbours


async def make_many(saver: CachedPostgresSaver, threads: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(threads):
            tasks.create_task(put_aged(saver, f"thread {number:03}", 50, 45, 40, 2))


async def test_two_runs_at_once_share_the_work(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    await make_many(saver, 60)
    reports = await asyncio.gather(
        saver.aprune_older_than(30 * DAY, batch_size=6),
        other.aprune_older_than(30 * DAY, batch_size=6),
        saver.aprune_older_than(30 * DAY, batch_size=9),
    )
    assert sum(report.checkpoints for report in reports) == 180
    assert sum(report.blobs for report in reports) == 180
    assert await rows_of(database) == {
        "checkpoints": 60, "checkpoint_blobs": 60, "checkpoint_writes": 0, "checkpoint_migrations": 10
    }  # fmt: skip


async def test_a_thread_that_another_run_has_in_hand_is_skipped(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    await put_aged(saver, "a", 50, 40)
    async with locked(database, "checkpoints") as waiter:
        first = asyncio.create_task(other.aprune_older_than(30 * DAY))
        await waiter()
        second = await saver.aprune_older_than(30 * DAY)
    assert (second.skipped_threads, second.checkpoints) == (1, 0)
    assert (await first).checkpoints == 1


@pytest.mark.dice
async def test_beside_live_puts_nothing_is_lost_and_no_put_fails(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    dice = seeded_dice()
    threads = [Aged(f"live {number}") for number in range(12)]
    for thread in threads:
        for days in (60, 50, 40):
            await thread.put_aged(saver, days)
    done = asyncio.Event()

    async def live(thread: Aged) -> None:
        writer = dice.choice([saver, other])
        while not done.is_set():
            put = await thread.put_aged(writer, 1 - thread.number / 1e6)
            await thread.put_writes(writer, "x")
            assert await thread.newest_id(other) == put
            await asyncio.sleep(0)

    async def prune() -> None:
        for _ in range(5):
            await saver.aprune_older_than(30 * DAY, batch_size=2, keep_latest=False)
            await other.aprune([dice.choice(threads).thread_id])
        done.set()

    async with asyncio.TaskGroup() as tasks:
        for thread in threads:
            tasks.create_task(live(thread))
        tasks.create_task(prune())
    for thread in threads:
        truth = await upstream.aget_tuple(thread.config)
        assert truth is not None
        assert truth.config == thread.newest
        assert truth.checkpoint["channel_values"]["messages"] == [f"message {thread.number}"]
        assert len(truth.pending_writes or ()) == 1
        for each in (saver, other):
            assert exact(await each.aget_tuple(thread.config)) == exact(truth)


async def test_a_thread_that_comes_back_to_life_is_not_deleted(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    """A write is on its way to one of two threads that were to go whole."""
    for thread_id in ("a", "b"):
        await put_aged(saver, thread_id, 50, 40)
    await settled(saver)
    writing = await other._l1.begin(Scope("a", ""))
    report = await saver.aprune_older_than(30 * DAY, keep_latest=False)
    assert (report.skipped_threads, report.threads, report.checkpoints) == (1, 1, 2)
    assert len(await remaining(database, "a")) == 2
    assert await remaining(database, "b") == []
    await other._l1.abort(writing)
    assert (await saver.aprune_older_than(30 * DAY, keep_latest=False)).checkpoints == 2


# ------------------------------------------------------------------ when it goes wrong


async def test_cancelled_in_the_middle_finished_batches_stay(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    await make_many(saver, 20)
    second = asyncio.Event()
    maintenance: Any = saver._maintenance
    original = maintenance._remove

    async def remove(*args: Any) -> Any:
        answer = await original(*args)
        if args[0].report.batches == 2:
            second.set()
            await asyncio.Event().wait()
        return answer

    maintenance._remove = remove
    run = asyncio.create_task(saver.aprune_older_than(30 * DAY, batch_size=6))
    await second.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert (await rows_of(database))["checkpoints"] == 80 - 3 * 6
    for number in range(20):
        config = config_of(f"thread {number:03}")
        assert exact(await other.aget_tuple(config)) == exact(await upstream.aget_tuple(config))


@pytest.mark.parametrize("how", ["cancelled", "connection killed"])
async def test_cut_off_in_the_middle_of_a_batch_the_batch_is_undone(
    how: str, database: str, redis_url: str, saver: CachedPostgresSaver
) -> None:
    await make_many(saver, 10)
    await settled(saver)
    before, entries = await rows_of(database), await keys_of(redis_url)
    async with locked(database, "checkpoint_blobs") as waiter:
        run = asyncio.create_task(saver.aprune_older_than(30 * DAY))
        pid = await waiter()
        if how == "cancelled":
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        else:
            await execute(database, "SELECT pg_terminate_backend(%s)", pid)

            async def begun_anew() -> bool:
                return await waiter() != pid

            await until(begun_anew)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
    assert await rows_of(database) == before
    assert await keys_of(redis_url) == entries
    assert (await saver.aprune_older_than(30 * DAY)).checkpoints == 30


async def test_a_commit_that_is_not_answered_keeps_readers_away(
    database: str, redis_url: str, saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what PostgreSQL holds: until the deadline readers ask it."""
    await put_aged(saver, "a", 50, 40)
    begin = saver._l1.begin

    async def then_lose_the_connection(scope: Scope) -> Any:
        intent = await begin(scope)
        await execute(
            database,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()",
        )
        return intent

    monkeypatch.setattr(saver._l1, "begin", then_lose_the_connection)
    with pytest.raises(L2UnavailableError):
        await saver.aprune_older_than(30 * DAY)
    monkeypatch.undo()
    [entry] = (await keys_of(redis_url)).values()
    assert next(iter(entry)).startswith(b"i:doubt")
    assert len(await remaining(database, "a")) == 2


async def test_if_redis_cannot_be_told_nothing_is_removed(database: str, own_redis: EmbeddedRedis) -> None:
    async with open_saver(database, own_redis.url) as saver:
        await put_aged(saver, "a", 50, 40)
        own_redis.kill()
        before = await rows_of(database)
        with pytest.raises(L1UnavailableError, match="nothing more was removed"):
            await saver.aprune_older_than(30 * DAY)
        assert await rows_of(database) == before
        assert (await saver.aprune_older_than(30 * DAY, dry_run=True)).checkpoints == 1


async def test_a_closed_saver_ends_the_run_after_the_batch(database: str, redis_url: str) -> None:
    closing: list[asyncio.Task[None]] = []
    async with open_saver(database, redis_url) as saver:
        await make_many(saver, 10)

        def close(report: PruneReport) -> None:
            closing.append(asyncio.ensure_future(saver.close()))

        with pytest.raises(SaverClosedError):
            await saver.aprune_older_than(30 * DAY, batch_size=3, on_batch=close)
        await asyncio.gather(*closing)
    assert (await rows_of(database))["checkpoints"] == 40 - 3 * len(closing)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.aprune_older_than(timedelta()),
        lambda s: s.aprune_older_than(-DAY),
        lambda s: s.aprune_older_than(30),
        lambda s: s.aprune_older_than("30d"),
        lambda s: s.aprune_older_than(DAY, batch_size=0),
    ],
)
async def test_bad_input_is_a_clear_error(call: Callable[[Any], Any], saver: CachedPostgresSaver) -> None:
    with pytest.raises(ConfigurationError):
        await call(saver)


async def test_no_age_is_too_great(saver: CachedPostgresSaver) -> None:
    for days in (timedelta.max, timedelta(days=200_000)):
        assert (await saver.aprune_older_than(days)).checkpoints == 0
