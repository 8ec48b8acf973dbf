"""Two caches (key prefixes) on one database: what is written through one reaches the other."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from glasspoint import CachedPostgresSaver
from glasspoint.coherence import sweeper as sweeping
from glasspoint.model.scope import scope_of
from states import open_saver
from steps import Thread, until

NEVER = 3600.0


async def _meet(*savers: CachedPostgresSaver) -> None:
    for saver in savers:
        await saver._parts.sweeper.round()


async def test_what_is_written_through_one_cache_is_read_through_the_other_after_its_sweep(
    database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with (
        open_saver(database, redis_url, key_prefix="one", sweep_interval_seconds=NEVER) as one,
        open_saver(database, redis_url, key_prefix="other", sweep_interval_seconds=NEVER) as other,
    ):
        await _meet(one, other)
        for _ in range(3):
            await thread.put(one)
            await thread.put_writes(one, "x")
            await other._parts.sweeper.round()
            assert await thread.turn(other) == thread.number
            assert await thread.turn(other) == thread.number, "a hit"
            await thread.put(other)
            await one._parts.sweeper.round()
            assert await thread.turn(one) == thread.number


async def test_a_write_from_before_the_other_cache_was_known_is_told_at_the_next_sweep(
    database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with open_saver(database, redis_url, key_prefix="one", sweep_interval_seconds=NEVER) as one:
        await thread.put(one)
        async with open_saver(database, redis_url, key_prefix="other", sweep_interval_seconds=NEVER) as other:
            assert await thread.turn(other) == await thread.turn(other) == 1
            await thread.put(one)  # it does not know of the other yet
            await one._parts.sweeper.round()
            await other._parts.sweeper.round()
            assert await thread.turn(other) == 2


@pytest.mark.parametrize("change", ["delete", "prune", "copy", "import"])
async def test_what_changes_whole_threads_reaches_the_other_cache(
    change: str, database: str, redis_url: str
) -> None:
    thread, copy = Thread("a"), Thread("copy")
    async with (
        open_saver(database, redis_url, key_prefix="one", sweep_interval_seconds=NEVER) as one,
        open_saver(database, redis_url, key_prefix="other", sweep_interval_seconds=NEVER) as other,
    ):
        await _meet(one, other)
        await thread.put(one)
        await thread.put(one)
        await other._parts.sweeper.round()
        assert await thread.turn(other) == await thread.turn(other) == 2
        assert await copy.turn(other) is None
        if change == "delete":
            await one.adelete_thread("a")
        elif change == "prune":
            await one.aprune_older_than(timedelta(microseconds=1), keep_latest=False)
        elif change == "copy":
            await one.acopy_thread("a", "copy")
        else:
            stored = await one._l2.select(scope_of(thread.config), None)
            assert stored is not None
            await one.import_checkpoints([stored])
        await other._parts.sweeper.round()
        expected = {"delete": None, "prune": None}.get(change, 2)
        assert await thread.turn(other) == expected
        if change == "copy":
            assert await copy.turn(other) == 2


async def test_what_a_retired_cache_has_left_is_deleted_after_a_day(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is away for less than a day keeps its rows, and loses no write."""
    thread = Thread("a")
    monkeypatch.setattr(sweeping, "_RETIRE_EVERY_SECONDS", 0.0)
    async with open_saver(database, redis_url, key_prefix="one", sweep_interval_seconds=NEVER) as one:
        for name in ("other", "retired"):
            async with open_saver(database, redis_url, key_prefix=name, sweep_interval_seconds=NEVER):
                pass
        await _meet(one)
        await thread.put(one)
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            await conn.execute(
                "INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns) "
                "VALUES ('never', 'a', '')"
            )

            async def left() -> list[tuple[str, str, str]]:
                cursor = await conn.execute(
                    "SELECT 'journal', cache, '' FROM glasspoint_l1_journal "
                    "UNION SELECT 'caches', cache, '' FROM glasspoint_caches "
                    "UNION SELECT 'marks', c.cache, '' FROM glasspoint_caches AS c "
                    "JOIN glasspoint_crash_marks AS m USING (generation)"
                )
                return sorted(await cursor.fetchall())

            for age in ("23 hours", "25 hours"):
                await conn.execute(
                    "UPDATE glasspoint_caches SET seen_at = now() - %s::interval WHERE cache = 'retired'",
                    [age],
                )
                await conn.execute(
                    "UPDATE glasspoint_l1_journal SET created_at = now() - %s::interval", [age]
                )
                before = await left()
                await one._parts.sweeper.tidy()
                if age == "23 hours":
                    assert await left() == before
                    assert ("journal", "retired", "") in before
                    assert ("journal", "never", "") in before
            kept = [row for row in before if row[1] not in ("retired", "never")]
            assert await left() == kept
            assert ("journal", "other", "") in kept
            marks = await (await conn.execute("SELECT count(*) FROM glasspoint_crash_marks")).fetchone()
            assert marks == (2,)
    async with open_saver(database, redis_url, key_prefix="retired") as back:
        assert await thread.turn(back) == 1
        assert await thread.turn(back) == 1, "a hit"


async def test_the_other_cache_is_named_once(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_saver(database, redis_url, key_prefix="one") as one,
        open_saver(database, redis_url, key_prefix="other"),
    ):
        await until(lambda: "'other'" in caplog.text)
        await _meet(one, one)
    assert (
        len([r for r in caplog.records if "another cache" in r.getMessage() and "'other'" in r.getMessage()])
        == 1
    )
