"""Everything that uses PostgreSQL works behind PgBouncer in transaction mode, without a setting for it.

Several clients share two connections to the server, and PgBouncer resets nothing (`server_reset_query` has no
effect in that mode). So what one client left in a session, another one would find.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row

from chains import chain
from command_line import glasspoint
from conformance_suite import ALL as CAPABILITIES
from conformance_suite import check_conformance
from conversations import Conversation, process
from databases import with_tables
from glasspoint import CachedPostgresSaver, MemorySaver, create_telemetry, migrate
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import L2UnavailableError
from glasspoint.savers import retention
from pgbouncer import PROGRAM, pgbouncer
from states import config_of, counts, open_saver, value_of
from steps import Thread, drain, put_all, rows_of, settled, until

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")

SIZE = 2


@pytest.fixture(scope="module")
def pooler(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of the database through a PgBouncer."""
    with_tables(postgres)
    with pgbouncer(postgres, "test", size=SIZE) as url:
        yield url


@pytest.fixture
async def pooled(pooler: str, database: str) -> AsyncIterator[str]:
    """The same. At its end, nothing is left in the connections to the server."""
    yield pooler
    await until(lambda: is_quiet(database))
    assert await left_in_sessions(pooler) == []


_LEFT = """
SELECT pg_backend_pid(), 'setting ' || name || ' = ' || setting FROM pg_settings
WHERE source = 'session' AND name <> 'application_name'
  AND NOT (name LIKE 'transaction%' AND setting = current_setting('default_' || name))
UNION ALL SELECT pg_backend_pid(), 'statement ' || name FROM pg_prepared_statements
UNION ALL SELECT pg_backend_pid(), 'cursor ' || name FROM pg_cursors WHERE name <> ''
UNION ALL SELECT pg_backend_pid(), 'channel ' || name FROM pg_listening_channels() AS name
UNION ALL SELECT pg_backend_pid(), 'lock ' || locktype FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'advisory'
UNION ALL SELECT pg_backend_pid(), 'table ' || relname FROM pg_class
WHERE relpersistence = 't' AND pg_table_is_visible(oid)
UNION ALL SELECT pg_backend_pid(), NULL
"""


async def left_in_sessions(pooler: str) -> list[str]:
    """What stands in the connections to the server. (PgBouncer itself sets the application's name.)"""
    found, seen = [], set()
    async with AsyncExitStack() as opened:
        for _ in range(SIZE):
            conn = await opened.enter_async_context(await psycopg.AsyncConnection.connect(pooler))
            # A transaction that is open keeps its connection, so each of these gets another one.
            for pid, what in await (await conn.execute(_LEFT, prepare=False)).fetchall():
                seen.add(pid)
                found += [what] if what is not None else []
    assert len(seen) == SIZE
    return found


async def is_quiet(database: str) -> bool:
    """Whether no statement of a saver that was closed is under way."""
    async with await psycopg.AsyncConnection.connect(database) as conn:
        cursor = await conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND state <> 'idle'"
        )
        return await cursor.fetchone() == (0,)


async def old_thread(saver: CachedPostgresSaver) -> None:
    """Three checkpoints of long ago: all but the newest may go."""
    thread = Thread("old")
    for _ in range(3):
        config, checkpoint, metadata, versions = thread.next_put(saver)
        checkpoint["id"] = "1e" + checkpoint["id"][2:]
        thread.newest = await saver.aput(config, checkpoint, metadata, versions)
    await settled(saver)


@asynccontextmanager
async def upstream_behind(pooled: str) -> AsyncIterator[AsyncPostgresSaver]:
    """LangGraph's own saver, as it must be opened there."""
    async with await psycopg.AsyncConnection.connect(
        pooled, autocommit=True, prepare_threshold=None, row_factory=dict_row
    ) as conn:
        yield AsyncPostgresSaver(conn)


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_the_conformance_suite_passes(capability: str, pooled: str, redis_url: str) -> None:
    await check_conformance(
        capability, "behind PgBouncer", lambda: open_saver(pooled, redis_url, CachedPostgresSaver)
    )


async def test_many_clients_write_and_read_at_once(pooled: str, redis_url: str) -> None:
    async with AsyncExitStack() as opened:
        savers = await asyncio.gather(
            *(opened.enter_async_context(open_saver(pooled, redis_url, pool_max_size=4)) for _ in range(4))
        )
        threads = [Thread(f"thread {number}") for number in range(12)]
        for saver in savers:
            await put_all(saver, threads)
            await asyncio.gather(*(thread.put_writes(saver, "x") for thread in threads))
            for reader in savers:
                numbers = await asyncio.gather(*(thread.turn(reader) for thread in threads))
                assert numbers == [thread.number for thread in threads]
        listed = [found async for found in savers[0].alist(None)]
        assert len(listed) == 12 * 4
        assert len([row async for row in savers[1].alist_threads()]) == 12


async def test_a_burst_is_fenced_and_read_by_others(pooled: str, redis_url: str) -> None:
    thread = Conversation()
    async with process(pooled, redis_url) as one, process(pooled, redis_url) as another:
        for number in range(1, 6):
            expected = [str(n) for n in range(1, number + 1)]
            writer, reader = (one, another) if number % 2 else (another, one)
            assert await thread.turn(writer.saver, str(number)) == expected
            assert await thread.read(reader.saver) == expected
        await settled(one.saver)
        await settled(another.saver)
        await one.round()
        assert one.identity_changes == {}


async def test_deleting_copying_and_pruning(pooled: str, database: str, redis_url: str) -> None:
    async with open_saver(pooled, redis_url) as saver, open_saver(pooled, redis_url) as other:
        threads = [Thread(f"thread {number}") for number in range(6)]
        for _ in range(3):
            await put_all(saver, threads)
        await other.acopy_thread("thread 0", "copy")
        await asyncio.gather(
            saver.adelete_thread("thread 1"),
            other.aprune(["thread 2"]),
            saver.aprune(["thread 3"], strategy="delete"),
            other.adelete_for_runs(["nobody"]),
        )
        report = await saver.aprune_older_than(timedelta(seconds=1))
        assert report.checkpoints >= 0
        for thread, expected in zip(threads, (3, None, 3, None, 3, 3), strict=True):
            assert await thread.turn(other) == expected
        assert (await rows_of(database))["checkpoints"]


async def test_other_software_is_noticed(pooled: str, redis_url: str) -> None:
    thread = Thread("a")
    async with process(pooled, redis_url) as one:
        await thread.put(one.saver)
        await settled(one.saver)
        async with upstream_behind(pooled) as upstream:
            await thread.put(upstream)
        await one.round()
        assert await thread.turn(one.saver) == 2
        assert sum(one.foreign_writes.values())


async def test_the_journal_is_swept_when_redis_is_back(pooled: str, own_redis: EmbeddedRedis) -> None:
    thread = Thread("a")
    async with open_saver(pooled, own_redis.url) as saver:
        await thread.put(saver)
        own_redis.kill()
        await thread.put(saver)
        own_redis.start()
        await until(lambda: saver.status.journal_pending == 0 and saver.status.breaker == "closed")
        assert await thread.turn(saver) == 2


async def test_the_retention_runs_in_one_process(
    pooled: str, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.05)
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)

    async def is_pruned() -> bool:
        return (await rows_of(database))["checkpoints"] == 1

    async with open_saver(pooled, redis_url) as saver:
        await old_thread(saver)
    async with AsyncExitStack() as opened:
        for _ in range(2):
            options: dict[str, Any] = {"retention": timedelta(days=30), "telemetry": telemetry}
            await opened.enter_async_context(open_saver(pooled, redis_url, **options))
        await until(is_pruned)
        runs = "glasspoint_retention_runs_total"
        await until(lambda: counts(registry, runs, "result") == {"succeeded": 1})


async def test_threads_are_imported_and_drained(
    pooled: str, postgres: EmbeddedPostgres, redis_url: str
) -> None:
    source, lower = InMemorySaver(), MemorySaver()
    moved, waiting = Thread("moved"), Thread("waiting")
    for _ in range(3):
        await moved.put(source)
        await waiting.put(lower)
    async with open_saver(pooled, redis_url) as saver:
        assert (await migrate(source, saver)).checkpoints == 3
        assert (await drain(lower, saver)).results == ["new"]
        assert [await thread.turn(saver) for thread in (moved, waiting)] == [3, 3]


async def test_a_chain_comes_up_from_its_lower_tier(pooled: str, database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    async with open_saver(pooled, redis_url):
        pass  # makes the tables
    async with chain(pooled, redis_url, registry, fallbacks="redis") as saver:
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        assert saver.tier == "cached"
        assert value_of(registry, "glasspoint_l2_unbounded_statements", {"saver": "default"}) == 1


async def test_the_commands_work(pooled: str, redis_url: str, tmp_path: Any) -> None:
    variables = {"POSTGRES_URL": pooled, "REDIS_URL": redis_url}

    def run(*args: str) -> dict[str, Any]:
        done = glasspoint(*args, "--json", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    made = glasspoint("setup", **variables)
    assert made.returncode == 0, made.stderr
    assert "Triggers note what other software writes." in made.stdout
    async with open_saver(pooled, redis_url) as saver:
        for thread in (Thread("a"), Thread("b")):
            for _ in range(3):
                await thread.put(saver)
    statuses = {check["name"]: check["status"] for check in run("check")["checks"]}
    assert statuses == dict.fromkeys(statuses, "ok") | {"Identity": "warning"}
    assert len(run("threads")["threads"]) == 2
    assert run("history", "a")["ok"]
    assert run("show", "a")["ok"]
    assert run("prune", "--older-than", "30d")["ok"]
    renewed = glasspoint("setup", "--renew-signing-key", **variables)
    assert renewed.returncode == 0, renewed.stderr
    copied = glasspoint("migrate", "--from", pooled, **variables)
    assert copied.returncode == 0, copied.stderr
    removed = glasspoint("setup", "--remove", **variables)
    assert removed.returncode == 0, removed.stderr


async def test_a_commit_whose_server_is_gone_is_in_doubt(
    pooled: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer passes on why its server closed the connection, and then says that it did: two errors."""
    async with open_saver(pooled, redis_url) as saver:
        await old_thread(saver)
        begin = saver._l1.begin

        async def then_lose_the_server(*args: Any) -> Any:
            intent = await begin(*args)
            async with await psycopg.AsyncConnection.connect(pooled, autocommit=True) as conn:
                await conn.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()"
                )
            return intent

        monkeypatch.setattr(saver._l1, "begin", then_lose_the_server)
        with pytest.raises(L2UnavailableError, match="connection to PostgreSQL broke"):
            await saver.aprune_older_than(timedelta(days=30))
        monkeypatch.undo()
        await until(lambda: is_quiet(pooled))
        assert await saver.aget_tuple(config_of("old"))


async def test_no_setting_of_ours_reaches_another_client(pooled: str, redis_url: str) -> None:
    """The pool of a saver bounds its statements, and sets `synchronous_commit`: but not here."""
    async with open_saver(pooled, redis_url, pool_min_size=4) as saver:
        await Thread("a").put(saver)
        assert await left_in_sessions(pooled) == []
        assert saver.status.has_unbounded_statements, "and that is said"
