"""What other software writes to LangGraph's tables is read by every process of Glasspoint, warm cache or not.

At once by a process that starts afterwards; within the sweep interval by one that is open. Which statements
are noted, `test_foreign_triggers` shows; here they are read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row

from conversations import NEVER, SOON, Conversation, Process, execute, missing_values, process
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.l2.schema import renew_signing_key
from states import open_upstream
from steps import TABLES, keys_of, until


@asynccontextmanager
async def other_software(how: str, database: str) -> AsyncIterator[BaseCheckpointSaver[str]]:
    """LangGraph's own saver, as people open it."""
    if how == "pool":
        async with open_upstream(database) as saver:
            yield saver
    else:
        async with AsyncPostgresSaver.from_conn_string(database, pipeline=how == "pipeline") as saver:
            yield saver


HOW = ["pool", "connection", "pipeline"]


# ------------------------------------------------------------------ one after the other


@pytest.mark.parametrize("how", HOW)
async def test_a_roll_back_and_the_way_back_lose_no_turn(how: str, database: str, redis_url: str) -> None:
    """Glasspoint, then LangGraph's saver, then Glasspoint, and none of them is open meanwhile."""
    thread, expected = Conversation(), list[str]()
    for number in range(2):
        async with process(database, redis_url) as one:
            for text in (f"ours {number}", f"ours again {number}"):
                expected.append(text)
                assert await thread.turn(one.saver, text) == expected
            assert one.identity_changes == {}
            assert one.hits
        async with other_software(how, database) as other:
            expected.append(f"theirs {number}")
            assert await thread.turn(other, expected[-1]) == expected
    async with process(database, redis_url) as one:
        assert await thread.read(one.saver) == expected
        assert await thread.is_same_as_upstream(one.saver, database)
        assert await missing_values(database) == []


@pytest.mark.parametrize("how", HOW)
async def test_a_thread_that_other_software_has_deleted_is_gone(
    how: str, database: str, redis_url: str
) -> None:
    gone, kept = Conversation("gone"), Conversation("kept")
    async with process(database, redis_url) as one:
        for thread in (gone, kept):
            await thread.turn(one.saver, "one")
    async with other_software(how, database) as other:
        await other.adelete_thread("gone")
    async with process(database, redis_url) as one:
        assert await gone.read(one.saver) == []
        assert await kept.read(one.saver) == ["one"]
        assert one.hits == 1, "what nobody has touched is still warm"
        assert await gone.turn(one.saver, "anew") == ["anew"]


# ------------------------------------------------------------------ side by side


@pytest.mark.parametrize("how", HOW)
async def test_turns_may_alternate_while_both_are_open(how: str, database: str, redis_url: str) -> None:
    thread, expected = Conversation(), list[str]()
    async with (
        process(database, redis_url, sweep_interval_seconds=SOON) as one,
        process(database, redis_url, sweep_interval_seconds=SOON) as another,
        other_software(how, database) as other,
    ):
        for number in range(3):
            expected.append(f"ours {number}")
            assert await thread.turn(one.saver, expected[-1]) == expected
            assert await thread.read(another.saver) == expected
            expected.append(f"theirs {number}")
            assert await thread.turn(other, expected[-1]) == expected
            for each in (one, another):
                await each.will_read(thread, expected)
                assert await thread.is_same_as_upstream(each.saver, database)

        async def is_hit() -> float:
            await thread.read(one.saver)
            return one.hits

        await until(is_hit)
        await other.adelete_thread(thread.thread_id)
        for each in (one, another):
            await each.will_read(thread, [])
        assert one.identity_changes == another.identity_changes == {}
        counted = [Process.foreign_writes.fget(each) for each in (one, another)]  # type: ignore[attr-defined]
        assert sum(figures.get("checkpoints", 0) for figures in counted) >= 4
        assert await missing_values(database) == []


async def test_the_synchronous_saver_of_langgraph_is_other_software_too(
    database: str, redis_url: str
) -> None:
    thread = Conversation()

    def delete() -> None:
        with PostgresSaver.from_conn_string(database) as other:
            other.delete_thread(thread.thread_id)

    async with process(database, redis_url, sweep_interval_seconds=SOON) as one:
        await thread.turn(one.saver, "one")
        await asyncio.to_thread(delete)
        await one.will_read(thread, [])


EVERYTHING_ELSE = {
    "rows are deleted": "DELETE FROM checkpoints WHERE thread_id = '42'",
    "rows get another thread": "UPDATE checkpoints SET thread_id = 'another' WHERE thread_id = '42'",
    "rows go in a function": "DO $$ BEGIN DELETE FROM checkpoints WHERE thread_id = '42'; END $$",
    "rows go by a rule of the application's own": "DELETE FROM conversations",
}


@pytest.mark.parametrize("what", EVERYTHING_ELSE)
async def test_what_anybody_does_by_hand_is_read(what: str, database: str, redis_url: str) -> None:
    thread = Conversation()
    async with process(database, redis_url, sweep_interval_seconds=SOON) as one:
        await thread.turn(one.saver, "one")
        assert await thread.read(one.saver) == ["one"]
        await execute(
            database,
            "CREATE TABLE conversations (id text PRIMARY KEY)",
            "INSERT INTO conversations VALUES ('42')",
            "ALTER TABLE checkpoints ADD FOREIGN KEY (thread_id) REFERENCES conversations ON DELETE CASCADE"
            if "rule" in what
            else "SELECT 1",
        )
        await execute(database, EVERYTHING_ELSE[what])
        await one.will_read(thread, [])
        assert one.identity_changes == {}


async def test_what_was_written_with_triggers_off_is_read_once_the_signing_key_is_renewed(
    database: str, redis_url: str
) -> None:
    """As after a restore with `session_replication_role = replica`: nothing can note that."""
    thread = Conversation()
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as one:
        await thread.turn(one.saver, "one")
        await execute(database, "SET session_replication_role = replica", "DELETE FROM checkpoints")
        await one.round()
        assert await thread.read(one.saver) == ["one"]
        async with await psycopg.AsyncConnection.connect(database, row_factory=dict_row) as connection:
            await renew_signing_key(connection)
        await one.round()
        assert await thread.read(one.saver) == []
        assert one.identity_changes == {"truncated": 1}


# ------------------------------------------------------------------ TRUNCATE


@pytest.mark.parametrize("table", ["checkpoints", "checkpoint_blobs", "checkpoint_writes"])
async def test_after_a_truncate_nothing_of_before_is_read(table: str, database: str, redis_url: str) -> None:
    """Pending writes, or values, may be all that is gone: what is read is what LangGraph's saver reads."""
    thread = Conversation()
    async with (
        process(database, redis_url, sweep_interval_seconds=SOON) as one,
        process(database, redis_url, sweep_interval_seconds=SOON) as another,
    ):
        await thread.turn(one.saver, "one", note="n")
        [newest] = [found async for found in one.saver.alist(thread.config, limit=1)]
        await one.saver.aput_writes(newest.config, [("said", ["pending"])], "task")
        for each in (one, another):
            assert await thread.is_same_as_upstream(each.saver, database)
        before = await one.saver.aget_tuple(thread.config)
        await execute(database, f"TRUNCATE {table}")
        for each in (one, another):
            await until(lambda each=each: each.identity_changes == {"truncated": 1})  # type: ignore[misc]
            assert await thread.is_same_as_upstream(each.saver, database)
            assert await each.saver.aget_tuple(thread.config) != before


async def test_a_truncate_that_is_rolled_back_changes_nothing(database: str, redis_url: str) -> None:
    thread = Conversation()
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as one:
        await thread.turn(one.saver, "one")
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("TRUNCATE checkpoints, checkpoint_blobs, checkpoint_writes")
            await connection.rollback()
        await one.round()
        assert await thread.read(one.saver) == ["one"]
        assert (one.hits, one.identity_changes) == (1, {})


# ------------------------------------------------------------------ a cache that nobody has used for long


async def forget_the_cache(database: str) -> None:
    """As if the last process had gone two hours ago."""
    await execute(database, "UPDATE glasspoint_caches SET seen_at = seen_at - interval '2 hours'")


async def test_a_cache_that_nobody_used_for_an_hour_believes_nothing_of_before(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Foreign writes were not noted meanwhile, or the journal would grow without end."""
    thread = Conversation()
    async with process(database, redis_url) as one:
        await thread.turn(one.saver, "one")
    await forget_the_cache(database)
    async with open_upstream(database) as other:
        await thread.turn(other, "two")
    assert await execute(database, "SELECT FROM glasspoint_l1_journal") == []
    async with process(database, redis_url) as one:
        assert await thread.read(one.saver) == ["one", "two"]
        assert one.identity_changes == {"generation": 1}
        await one.round()
    [said] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "No process has used the cache for 120 minutes" in said


async def test_a_cache_that_comes_back_waits_for_foreign_transactions_that_have_not_noted_anything(
    database: str, redis_url: str
) -> None:
    """PostgreSQL answers alone meanwhile: nobody waits for a transaction that does not end."""
    thread = Conversation()
    async with process(database, redis_url) as one:
        await thread.turn(one.saver, "one")
    await forget_the_cache(database)
    async with await psycopg.AsyncConnection.connect(database) as other:
        await other.execute("DELETE FROM checkpoints WHERE thread_id = '42'")
        before = await keys_of(redis_url)
        async with asyncio.timeout(10), process(database, redis_url, sweep_interval_seconds=NEVER) as one:
            for _ in range(2):
                assert await thread.read(one.saver) == ["one"], "the other has not committed yet"
                await one.round()
            assert (one.hits, one.identity_changes) == (0, {})
            assert await keys_of(redis_url) == before
            await other.commit()
            await one.round()
            assert await thread.read(one.saver) == []
            assert one.identity_changes == {"generation": 1}


async def test_a_process_that_only_reads_keeps_its_cache_in_use(database: str, redis_url: str) -> None:
    thread = Conversation()
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as one:
        await thread.turn(one.saver, "one")
        await execute(database, "UPDATE glasspoint_caches SET seen_at = seen_at - interval '50 minutes'")
        await one.round()
        [(is_fresh,)] = await execute(
            database, "SELECT seen_at > now() - interval '1 minute' FROM glasspoint_caches"
        )
        assert is_fresh
        assert (await thread.read(one.saver), one.hits) == (["one"], 1)


# ------------------------------------------------------------------ tables that move


@pytest.fixture
def other_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database of this test's own, with whatever schemas it makes."""
    url = postgres.create_database("moving")
    try:
        yield url
    finally:
        postgres.drop_database("moving")


OWN_TABLES = (
    "glasspoint_l1_journal",
    "glasspoint_identity",
    "glasspoint_caches",
    "glasspoint_crash_marks",
    "glasspoint_set_aside",
    "glasspoint_retention",
)
MOVES = {
    "the schema is renamed": ["ALTER SCHEMA public RENAME TO moved"],
    "the tables get another schema": [
        "CREATE SCHEMA moved",
        *(f"ALTER TABLE {table} SET SCHEMA moved" for table in (*TABLES, *OWN_TABLES)),
    ],
}


@pytest.mark.parametrize("saver", ["opened afterwards", "open all the time"])
@pytest.mark.parametrize("move", MOVES)
async def test_foreign_writes_are_noted_wherever_the_tables_have_moved(
    move: str, saver: str, other_database: str, redis_url: str
) -> None:
    """What is in the tables stays what it was, so the cache stays warm."""
    thread, database = Conversation(), f"{other_database}&options=-csearch_path%3Dmoved,public"
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(process(database, redis_url, sweep_interval_seconds=NEVER))
        await thread.turn(one.saver, "one")
        await execute(database, *MOVES[move])
        if saver == "opened afterwards":
            await stack.aclose()
            one = await stack.enter_async_context(process(database, redis_url, sweep_interval_seconds=NEVER))
        await one.round()
        before = one.hits
        assert await thread.read(one.saver) == ["one"]
        assert (one.hits, one.identity_changes) == (before + 1, {})
        async with AsyncPostgresSaver.from_conn_string(database) as other:
            assert await thread.turn(other, "two") == ["one", "two"]
        await one.round()
        assert await thread.read(one.saver) == ["one", "two"]


async def test_one_transaction_may_write_to_two_schemas(other_database: str, redis_url: str) -> None:
    """The same thread, in the tables of two tenants."""
    thread = Conversation()
    await execute(other_database, "CREATE SCHEMA tenant")
    tenant = f"{other_database}&options=-csearch_path%3Dtenant"
    async with (
        process(other_database, redis_url, sweep_interval_seconds=SOON) as one,
        process(tenant, redis_url, sweep_interval_seconds=SOON) as another,
    ):
        for each in (one, another):
            await thread.turn(each.saver, "one")
            await until(lambda each=each: each.saver._l1.trust.is_trusted)  # type: ignore[misc]
        async with await psycopg.AsyncConnection.connect(other_database) as connection:
            for schema in ("public", "tenant"):
                row = await (await connection.execute(_NEWEST.format(schema))).fetchone()
                await connection.execute(_COPY_AS_NEWER.format(schema), row)
            await connection.commit()
        for each in (one, another):
            await until(lambda each=each: each.foreign_writes == {"checkpoints": 1})  # type: ignore[misc]


_NEWEST = "SELECT max(checkpoint_id) FROM {}.checkpoints"
_COPY_AS_NEWER = """
INSERT INTO {0}.checkpoints (thread_id, checkpoint_ns, checkpoint_id, type, checkpoint, metadata)
SELECT thread_id, checkpoint_ns, checkpoint_id || '0', type, checkpoint, metadata
FROM {0}.checkpoints WHERE checkpoint_id = %s
"""
