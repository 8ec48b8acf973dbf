"""PostgreSQL hiccups, and nobody notices: what is tried again, where, for how long, and what is not."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, get_args

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import ERROR
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from redis.asyncio import Redis

from copied_postgres import CopiedPostgres
from databases import with_tables
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.errors import L2DeadlineError, L2RefusedError, L2UnavailableError, SchemaError
from glasspoint.l2 import connection_health, retrying
from glasspoint.l2.faults import FAULTS, REFUSALS, certainly_unchanged, classify
from glasspoint.telemetry.events import RetryReason
from places import DOCS
from states import counts, exact, open_saver, open_upstream
from steps import Thread, locked, rows_of, settled, until

# ------------------------------------------------------------------ the table


def stats_of(saver: CachedPostgresSaver) -> dict[str, int]:
    pool = saver._l2.connections.pool
    assert pool is not None
    return pool.get_stats()


def test_the_table_in_the_documentation_is_the_one_in_the_code() -> None:
    section = (DOCS / "reliability.md").read_text("utf-8").partition("## When PostgreSQL hiccups")[2]
    section = section.partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| ") and not line.startswith("| what")
    ][: len(FAULTS)]
    documented = [
        (says, tuple(re.findall(r"`(\w+)`", codes.partition("none:")[0])), reason.strip("`"))
        for says, codes, reason, *_ in rows
    ]
    assert documented == [(fault.says, fault.sqlstates, fault.reason or "–") for fault in FAULTS]
    for (*_, done, _), fault in zip(rows, FAULTS, strict=True):
        if fault.reason:
            assert done.startswith("on a fresh connection" if fault.fresh else "again"), fault
        else:
            assert done.startswith(("nothing", "the statement is cancelled")), fault


def test_the_refusals_in_the_documentation_are_those_in_the_code() -> None:
    section = (DOCS / "reliability.md").read_text("utf-8").partition("| what PostgreSQL says |")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.partition("\n\n")[0].splitlines()[2:]
    ]
    documented = [
        (says, tuple(re.findall(r"`(\w+)`", codes)), do, error == "`SchemaError`")
        for says, codes, error, do in rows
    ]
    assert documented == [(each.says, each.sqlstates, each.do, each.of_tables) for each in REFUSALS]


def test_every_reason_is_a_documented_label() -> None:
    row = re.search(r"^\| reason \(retries\) \| (.*) \|$", (DOCS / "telemetry.md").read_text("utf-8"), re.M)
    assert row is not None
    assert re.findall(r"`(\w+)`", row[1]) == list(get_args(RetryReason))
    assert {fault.reason for fault in FAULTS} - {None} == set(get_args(RetryReason))


@pytest.mark.parametrize(
    ("error", "reason", "unchanged"),
    [
        (psycopg.errors.AdminShutdown(), "server_restart", False),
        (psycopg.errors.CrashShutdown(), "server_restart", False),
        (psycopg.errors.IdleSessionTimeout(), "server_restart", False),
        (psycopg.errors.DatabaseDropped(), None, False),
        (psycopg.errors.ConnectionFailure(), "connection_lost", False),
        (
            psycopg.errors.ProtocolViolation(),
            "connection_lost",
            False,
        ),  # PgBouncer's word for most of its ills
        (psycopg.OperationalError("the connection is lost"), "connection_lost", False),
        (psycopg.InternalError("received 2 results from command 'COMMIT'"), "connection_lost", False),
        (psycopg.InterfaceError("a mistake of ours"), None, False),
        (psycopg.errors.ReadOnlySqlTransaction(), "read_only", True),
        (psycopg.errors.TooManyConnections(), "too_many_connections", True),
        (psycopg.errors.DeadlockDetected(), "deadlock", True),
        (psycopg.errors.SerializationFailure(), "serialization", True),
        (psycopg.errors.LockNotAvailable(), "lock_timeout", True),
        (psycopg.errors.QueryCanceled(), None, True),
        (psycopg.errors.DiskFull(), None, True),
        (psycopg.errors.UniqueViolation(), None, True),
        (PoolTimeout(), None, True),
        (TimeoutError(), None, False),
        (asyncio.CancelledError(), None, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_error_is_one_fault(error: BaseException, reason: str | None, unchanged: bool) -> None:
    ours = L2UnavailableError()
    ours.__cause__ = error
    for each in (error, ours):
        assert (classify(each).reason, certainly_unchanged(each)) == (reason, unchanged)


# ------------------------------------------------------------------ what the tests share


class Watched:
    """A saver, and what it has counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.telemetry = create_telemetry(registry=self.registry)

    @property
    def retries(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_l2_retries_total", "reason")

    @property
    def l1_writes(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_write_through_total", "l1")

    @property
    def l1_reads(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_l1_reads_total", "result")


async def sql(url: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        cursor = await conn.execute(statement, params)
        return await cursor.fetchall() if cursor.description else []


async def terminate(database: str, *, waiting: bool = False) -> int:
    """End every other backend of the database, or those that wait for a lock; how many there were."""
    only = "AND wait_event_type = 'Lock'" if waiting else ""
    ended = await sql(
        database,
        f"SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid <> pg_backend_pid() {only}",
    )
    pids = [pid for pid, _ in ended]
    while await sql(database, "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", pids):
        pass
    return len(ended)


async def same_as_upstream(saver: CachedPostgresSaver, database: str, thread: Thread) -> bool:
    async with open_upstream(database) as upstream:
        truth = await upstream.aget_tuple(thread.config)
    return exact(tuple(await saver.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))


async def failing(database: str, table: str, sqlstate: str, times: int) -> None:
    """Make PostgreSQL answer the next statements on a table with an error; sequences are not rolled back."""
    for statement in (
        "CREATE SEQUENCE failures",
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('failures') <= {times} THEN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END IF; "
        "RETURN NULL; END $$",
        f"CREATE TRIGGER fail BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION fail()",
    ):
        await sql(database, statement)


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """For this test alone. Durable: a server that forgets what it has confirmed proves nothing."""
    with CopiedPostgres(durable=True) as server:
        yield server


class BadLine:
    """A loopback port in front of PostgreSQL that can be cut with RST, or swallow everything."""

    def __init__(self, database: str) -> None:
        given = conninfo_to_dict(database)
        self._path = f"{given['host']}/.s.PGSQL.{given['port']}"
        self._given = given
        self._open: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._forgotten: list[asyncio.Event] = []
        self.url = ""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[BadLine]:
        serving: set[asyncio.Task[None]] = set()

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving.add(asyncio.create_task(self._serve(reader, writer)))

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        self.url = make_conninfo(**{**self._given, "host": "127.0.0.1", "port": port})
        try:
            yield self
        finally:
            listener.close()
            for flows in (self._flows, *self._forgotten):
                flows.set()
            self.reset()
            await asyncio.gather(*serving)

    def reset(self) -> None:
        """RST on every connection."""
        for writer in tuple(self._open):
            sock = writer.get_extra_info("socket")
            if sock.family != socket.AF_UNIX and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def swallow(self) -> None:
        """Deliver nothing from now on, either way; connections are accepted, and stay silent."""
        self._flows.clear()

    def forget(self) -> None:
        """As a firewall does: the connections there are stay silent for good; those to come are not."""
        self._flows.clear()
        self._forgotten.append(self._flows)
        self._flows = asyncio.Event()
        self._flows.set()

    def heal(self) -> None:
        """Deliver again; what has lost nothing but time goes on."""
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._path)
        pair = {writer, there_writer}
        flows = self._flows
        self._open |= pair

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    await flows.wait()
                    sink.write(data)
                    await sink.drain()
            for end in pair:
                end.transport.abort()

        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        self._open -= pair


# ------------------------------------------------------------------ connections that are gone


async def test_connections_that_died_idle_are_replaced_and_nobody_notices(
    database: str, redis_url: str
) -> None:
    """What a managed PostgreSQL does to idle connections during a long model call."""
    watched = Watched()
    thread = Thread("a")
    async with (
        open_saver(database, redis_url, telemetry=watched.telemetry, pool_min_size=4) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        await thread.put(saver)
        for _ in range(3):
            await until(lambda: stats_of(saver)["pool_available"] >= 4)
            assert await terminate(database) >= 4
            await thread.put(saver)
            await terminate(database)
            await thread.put_writes(saver, "x")
            await terminate(database)
            await redis.flushall()
            assert await thread.turn(saver) == thread.number
            await terminate(database)
            await redis.flushall()
            assert await asyncio.gather(*(thread.turn(saver) for _ in range(8))) == [thread.number] * 8
        assert await same_as_upstream(saver, database, thread)
    assert watched.retries == {}, "they were found dead before anything was sent, so nothing is in doubt"
    assert watched.l1_writes.keys() <= {"announced", "covered"}


async def test_a_young_connection_costs_no_round_trip_and_an_old_one_is_asked(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    check = AsyncConnectionPool.check_connection

    async def counted(conn: Any) -> None:
        nonlocal asked
        asked += 1
        await check(conn)

    thread = Thread("a")
    async with open_saver(database, redis_url) as saver:
        await thread.put(saver)
        monkeypatch.setattr(AsyncConnectionPool, "check_connection", staticmethod(counted))
        for _ in range(5):
            await thread.put(saver)
        assert asked == 0
        monkeypatch.setattr(connection_health, "_IDLE_SECONDS", 0.0)
        await thread.put(saver)
        assert asked == 1


async def test_connections_that_a_firewall_forgot_are_replaced_once_one_is_silent(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing shows on the socket. One is asked; to ask each of the others would use up the caller's time."""
    monkeypatch.setattr(connection_health, "_IDLE_SECONDS", 0.0)
    silent = 0
    check = AsyncConnectionPool.check_connection

    async def counted(conn: Any) -> None:
        nonlocal silent
        try:
            await check(conn)
        except asyncio.CancelledError:
            silent += 1
            raise

    monkeypatch.setattr(AsyncConnectionPool, "check_connection", staticmethod(counted))
    watched = Watched()
    thread = Thread("a")
    # Nothing in the background asks a connection, too.
    options: dict[str, Any] = {
        "pool_min_size": 5,
        "sweep_interval_seconds": 3600,
        "telemetry": watched.telemetry,
    }
    async with BadLine(database).opened() as line, open_saver(line.url, redis_url, **options) as saver:
        await thread.put(saver)
        line.forget()
        monkeypatch.setattr(connection_health, "_ANSWER_SECONDS", 0.5)
        await thread.put(saver)
        assert await thread.turn(saver) == 2
    assert silent == 1
    assert watched.retries == {}


async def test_a_write_whose_connection_is_reset_in_mid_statement_is_done_on_another(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched()
    thread = Thread("a")
    async with (
        BadLine(database).opened() as line,
        open_saver(database, redis_url) as reader,
        open_saver(line.url, redis_url, telemetry=watched.telemetry) as saver,
    ):
        await thread.put(saver)
        await settled(saver)
        assert await thread.turn(reader) == 1
        async with locked(database, "checkpoints"):
            putting = asyncio.ensure_future(thread.put(saver))
            for attempts in (1, 2, 3):
                await until(partial(_waiting, database, attempts))
                line.reset()
                await until(partial(lambda so_far: sum(watched.retries.values()) == so_far, attempts))
            assert await thread.turn(reader) == 1, "readers ask PostgreSQL meanwhile"
        await putting
        await until(lambda: _idle(database))  # the attempts that were given up have landed, too
        assert await thread.turn(reader) == await thread.turn(saver) == 2
        assert await same_as_upstream(reader, database, thread)
    assert watched.retries == {"connection_lost": 3}
    assert watched.l1_writes == {"announced": 1, "discarded": 1}
    said = [r for r in caplog.records if r.name == "glasspoint.l2" and r.levelno == logging.WARNING]
    assert len(said) == 1, "not one a retry"
    assert "on a fresh connection" in said[0].getMessage()


async def test_an_attempt_that_lands_after_a_later_write_is_what_everybody_reads(
    database: str, redis_url: str
) -> None:
    """It overwrites that write in PostgreSQL, as a caller's own repetition would. Redis must follow."""
    thread = Thread("a")
    async with (
        BadLine(database).opened() as line,
        open_saver(database, redis_url) as other,
        open_saver(line.url, redis_url) as saver,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as holder,
    ):
        await thread.put(saver)
        for statement in (
            "CREATE SEQUENCE attempts",
            "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF nextval('attempts') = 1 THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN NULL; END $$",
            "CREATE TRIGGER linger BEFORE INSERT ON checkpoint_writes FOR EACH STATEMENT "
            "EXECUTE FUNCTION linger()",
        ):
            await sql(database, statement)
        await holder.execute("SELECT pg_advisory_lock(1)")
        writing = asyncio.ensure_future(saver.aput_writes(thread.newest, [(ERROR, "first")], "task"))
        await until(lambda: _waiting(database, 1))
        line.reset()
        await writing
        assert await same_as_upstream(other, database, thread)
        await other.aput_writes(thread.newest, [(ERROR, "second")], "task")
        assert await same_as_upstream(other, database, thread)
        await holder.execute("SELECT pg_advisory_unlock(1)")
        await until(lambda: _idle(database))
        found = await other.aget_tuple(thread.config)
        assert found is not None
        assert [value for *_, value in found.pending_writes or ()] == ["first"], "or this test shows nothing"
        assert await same_as_upstream(other, database, thread)


async def _waiting(database: str, count: int) -> bool:
    rows = await sql(database, "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
    return rows == [(count,)]


async def test_a_server_that_ends_backends_in_mid_statement_is_ridden_out(
    database: str, redis_url: str
) -> None:
    watched = Watched()
    threads = [Thread(f"thread {i}") for i in range(4)]
    async with open_saver(database, redis_url, telemetry=watched.telemetry) as saver:
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        async with locked(database, "checkpoints"):
            writing = asyncio.gather(*(thread.put(saver) for thread in threads))
            await until(lambda: _waiting(database, 4))
            assert await terminate(database, waiting=True) == 4
        await writing
        assert [await thread.turn(saver) for thread in threads] == [2] * 4
        for thread in threads:
            assert await same_as_upstream(saver, database, thread)
    assert watched.retries == {"server_restart": 4}


@pytest.mark.parametrize("shutdown", ["fast", "immediate"])
async def test_a_restart_under_a_running_loop_of_writes_loses_nothing(
    shutdown: str, own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    database = with_tables(own_postgres)
    watched = Watched()
    threads = [Thread(f"thread {i}") for i in range(4)]
    finish = asyncio.Event()

    async def loop(thread: Thread, saver: CachedPostgresSaver) -> None:
        while not finish.is_set():
            await thread.put(saver)
            await thread.put_writes(saver, f"of {thread.number}")
            found = await saver.aget_tuple(thread.config)
            assert found is not None
            assert found.checkpoint["channel_values"]["turn"] == thread.number, "stale, or lost"
            assert [value for *_, value in found.pending_writes or ()] == [f"of {thread.number}"]

    async with open_saver(database, redis_url, telemetry=watched.telemetry) as saver:
        loops = [asyncio.create_task(loop(thread, saver)) for thread in threads]

        async def all_have_gone_on() -> None:
            marks = [thread.number + 3 for thread in threads]

            def done() -> bool:
                for each in loops:
                    if each.done():
                        each.result()
                return all(thread.number >= mark for thread, mark in zip(threads, marks, strict=True))

            await until(done)

        for _ in range(2):
            await all_have_gone_on()
            number = signal.SIGINT if shutdown == "fast" else signal.SIGQUIT
            await asyncio.to_thread(own_postgres._end_process, number)
            await asyncio.to_thread(own_postgres.start)
        await all_have_gone_on()
        finish.set()
        await asyncio.gather(*loops)
        async with open_upstream(database) as upstream:
            for thread in threads:
                stored = [each async for each in upstream.alist(thread.config)]
                assert [each.checkpoint["channel_values"]["turn"] for each in stored] == list(
                    range(thread.number, 0, -1)
                ), "each put that was acknowledged is there, once"
                assert all(len(each.pending_writes or ()) == 1 for each in stored)
        for thread in threads:
            assert await same_as_upstream(saver, database, thread)


# ------------------------------------------------------------------ what PostgreSQL answers


@pytest.mark.parametrize(
    ("sqlstate", "reason"),
    [
        ("40P01", "deadlock"),
        ("40001", "serialization"),
        ("55P03", "lock_timeout"),
        ("25006", "read_only"),
        ("53300", "too_many_connections"),
    ],
)
@pytest.mark.parametrize("table", ["checkpoints", "checkpoint_writes"])
async def test_what_passes_is_tried_again_and_l1_follows(
    table: str, sqlstate: str, reason: str, database: str, redis_url: str
) -> None:
    """PostgreSQL has said that nothing was done, so nothing is in doubt."""
    watched = Watched()
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=watched.telemetry) as saver:
        await thread.put(saver)
        await settled(saver)
        await failing(database, table, sqlstate, times=2)
        await (thread.put(saver) if table == "checkpoints" else thread.put_writes(saver, "x"))
        assert await thread.turn(saver) == thread.number
        assert await same_as_upstream(saver, database, thread)
    assert watched.retries == {reason: 2}
    assert watched.l1_writes == {"announced": 2}
    assert watched.l1_reads == {"hit": 2}


@pytest.mark.parametrize(
    ("sqlstate", "kind", "says"),
    [
        ("53100", L2RefusedError, r"disk of the server is full \(DiskFull, 53100\)\. Make room"),
        ("53200", L2RefusedError, "no memory left"),
        ("54000", L2RefusedError, "too large for PostgreSQL"),
        ("58030", L2RefusedError, "cannot read or write its files"),
        ("XX000", L2RefusedError, "Look at the log"),
        ("23505", L2RefusedError, "a constraint refuses"),
        ("P0001", L2RefusedError, "a trigger or a function refuses"),
        ("22P05", L2RefusedError, "cannot represent a value"),
        ("21000", L2RefusedError, "does not know why"),
        ("42703", SchemaError, r"await saver\.setup"),
        ("57014", L2DeadlineError, "gave a statement up"),
    ],
)
async def test_what_does_not_pass_is_an_error_at_once(
    sqlstate: str, kind: type[Exception], says: str, database: str, redis_url: str
) -> None:
    watched = Watched()
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=watched.telemetry) as saver:
        await thread.put(saver)
        await failing(database, "checkpoints", sqlstate, times=1)
        with pytest.raises(kind, match=says) as caught:
            await thread.put(saver)
        cause = caught.value.__cause__
        assert isinstance(cause, psycopg.Error)
        assert cause.sqlstate == sqlstate
        if isinstance(caught.value, L2RefusedError):
            assert caught.value.sqlstate == sqlstate
            assert caught.value.is_passing is sqlstate.startswith(("53", "58"))
        thread.number -= 1
        assert await thread.turn(saver) == 1
    assert watched.retries == {}
    assert watched.l1_reads == {"hit": 1}, "the image stays: PostgreSQL did not change"


async def test_what_postgresql_itself_refuses_says_what_to_do(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        await sql(database, "ALTER TABLE checkpoints RENAME COLUMN metadata TO meta")
        with pytest.raises(SchemaError, match=r"UndefinedColumn, 42703\)\. Run `glasspoint setup"):
            await Thread("a").put(saver)


async def test_a_lock_that_is_held_too_long_is_a_clear_error_and_nothing_was_done(
    database: str, redis_url: str
) -> None:
    name = conninfo_to_dict(database)["dbname"]
    await sql(database, f"ALTER DATABASE {name} SET lock_timeout = '20ms'")
    watched = Watched()
    thread = Thread("a")
    options: dict[str, Any] = {"write_deadline_seconds": 2.0, "telemetry": watched.telemetry}
    async with open_saver(database, redis_url, **options) as saver:
        await thread.put(saver)
        async with locked(database, "checkpoints"):
            with pytest.raises(L2DeadlineError, match="rows locked") as raised:
                await thread.put(saver)
        thread.number -= 1
        assert await thread.turn(saver) == 1
    assert watched.retries["lock_timeout"] >= 1
    # On a busy machine the deadline may come while an attempt is under way, and its end is not heard.
    said = re.search("does not have it|Nothing was done|not known", str(raised.value))
    assert said
    assert watched.l1_reads == {"hit": 1} or said[0] == "not known"


@pytest.fixture
def read_only(postgres: EmbeddedPostgres, database: str) -> Callable[[str], Awaitable[Any]]:
    """Switch the database; for connections that are made after it."""
    name = conninfo_to_dict(database)["dbname"]
    return lambda to: sql(postgres.url, f"ALTER DATABASE {name} SET default_transaction_read_only = {to}")


async def test_a_demoted_primary_is_asked_again_on_fresh_connections(
    database: str, redis_url: str, read_only: Callable[[str], Awaitable[Any]]
) -> None:
    """A fresh connection may lead to the new primary; here: it is one without the setting."""
    watched = Watched()
    threads = [Thread(f"thread {i}") for i in range(3)]
    async with open_saver(database, redis_url):
        pass  # makes the tables
    await read_only("on")
    async with open_saver(database, redis_url, telemetry=watched.telemetry, pool_min_size=3) as saver:
        writing = asyncio.gather(*(thread.put(saver) for thread in threads))
        await until(lambda: watched.retries.get("read_only", 0) >= 3)
        await read_only("off")
        await writing
        assert [await thread.turn(saver) for thread in threads] == [1] * 3
    assert watched.l1_writes == {"announced": 3}


async def test_a_server_that_stays_read_only_is_a_clear_error_at_the_deadline(
    database: str, redis_url: str, read_only: Callable[[str], Awaitable[Any]]
) -> None:
    watched = Watched()
    thread = Thread("a")
    async with open_saver(database, redis_url) as saver:
        await thread.put(saver)
    await read_only("on")
    options: dict[str, Any] = {"write_deadline_seconds": 2.0, "telemetry": watched.telemetry}
    async with open_saver(database, redis_url, **options) as saver:
        assert await thread.turn(saver) == 1
        started = monotonic()
        with pytest.raises((L2UnavailableError, L2DeadlineError), match=r"primary|takes no writes"):
            await thread.put(saver)
        assert monotonic() - started < 8
        assert await thread.turn(saver) == 1
    assert watched.retries["read_only"] >= 1
    assert watched.l1_reads == {"hit": 2}, "nobody has changed anything, and readers are not sent away"


async def test_a_server_that_gives_no_connection_is_asked_until_it_does(
    postgres: EmbeddedPostgres, database: str, redis_url: str
) -> None:
    given: dict[str, Any] = conninfo_to_dict(database)
    async with open_saver(database, redis_url):
        pass
    for statement in (
        "DROP ROLE IF EXISTS few",
        "CREATE ROLE few LOGIN",
        "GRANT pg_read_all_data, pg_write_all_data TO few",
    ):
        await sql(postgres.url, statement)
    watched = Watched()
    thread = Thread("a")
    as_few = make_conninfo(**{**given, "user": "few"})
    async with open_saver(as_few, redis_url, telemetry=watched.telemetry) as saver:
        await thread.put(saver)
        await sql(postgres.url, "ALTER ROLE few CONNECTION LIMIT 0")
        await terminate(database)
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            await sql(as_few, "SELECT 1")
        putting = asyncio.ensure_future(thread.put(saver))
        await until(lambda: stats_of(saver).get("connections_errors", 0) >= 2)
        assert not putting.done()
        await sql(postgres.url, "ALTER ROLE few CONNECTION LIMIT -1")
        await putting
        assert await thread.turn(saver) == 2
    await sql(postgres.url, "DROP ROLE few")


async def test_a_pool_that_is_exhausted_is_not_asked_twice(database: str, redis_url: str) -> None:
    watched = Watched()
    thread, other = Thread("a"), Thread("b")
    options: dict[str, Any] = {
        "pool_max_size": 1,
        "pool_timeout_seconds": 0.1,
        "telemetry": watched.telemetry,
    }
    async with open_saver(database, redis_url, **options) as saver:
        async with locked(database, "checkpoints") as waiter:
            blocked = asyncio.ensure_future(other.put(saver))
            await waiter()
            with pytest.raises(L2UnavailableError, match="came free"):
                await thread.put(saver)
        await blocked
    assert watched.retries == {}


async def test_a_database_that_was_dropped_is_waited_for_no_longer_than_for_a_connection(
    postgres: EmbeddedPostgres, redis_url: str
) -> None:
    """And the server's reason stands first in the error."""
    thread, url = Thread("a"), postgres.create_database("dropped")
    async with open_saver(url, redis_url, pool_timeout_seconds=0.5, audit_ratio=0.0) as saver:
        await thread.put(saver)
        postgres.drop_database("dropped")
        for _ in range(2):
            with pytest.raises(
                L2UnavailableError,
                match=r'^PostgreSQL gives no .*"dropped" does not exist.*came free within 0\.\d s',
            ):
                await thread.put(saver)


async def test_without_a_pool_only_what_needs_no_fresh_connection_is_tried_again(
    database: str, redis_url: str
) -> None:
    watched = Watched()
    thread = Thread("a")
    async with (
        await psycopg.AsyncConnection.connect(
            database, autocommit=True, prepare_threshold=0, row_factory=dict_row
        ) as connection,
        Redis.from_url(redis_url) as redis,
    ):
        upstream = AsyncPostgresSaver(connection)
        await upstream.setup()
        saver = CachedPostgresSaver(postgres_saver=upstream, redis=redis, telemetry=watched.telemetry)
        await failing(database, "checkpoints", "40P01", times=1)
        await thread.put(saver)
        assert watched.retries == {"deadlock": 1}
        await terminate(database)
        with pytest.raises(L2UnavailableError, match="one connection"):
            await thread.put(saver)
        with pytest.raises(L2UnavailableError, match="one connection"):
            await saver.aget_tuple(thread.config)
        await saver.close()
    assert watched.retries == {"deadlock": 1}


# ------------------------------------------------------------------ deadlines and cancellations


async def test_a_server_that_stays_away_costs_a_write_its_deadline_and_no_more(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    database = with_tables(own_postgres)
    thread = Thread("a")
    async with open_saver(database, redis_url, write_deadline_seconds=2.0) as saver:
        await thread.put(saver)
        await asyncio.to_thread(own_postgres.stop)
        started = monotonic()
        with pytest.raises((L2UnavailableError, L2DeadlineError)):
            await thread.put(saver)
        assert monotonic() - started < 8
        assert await thread.turn(saver) == 1, "PostgreSQL was never asked: the image is still good"
        await asyncio.to_thread(own_postgres.start)
        thread.number -= 1
        await thread.put(saver)
        assert await thread.turn(saver) == 2


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_no_attempt_begins_after_the_deadline(in_doubt: bool) -> None:
    errors = [psycopg.errors.AdminShutdown()] * in_doubt

    async def call() -> None:
        raise errors.pop() if errors else psycopg.errors.DeadlockDetected()

    retries = retrying.Retries(Watched().telemetry, seconds=0.3, can_reconnect=True)
    async with asyncio.timeout(10):
        with pytest.raises(L2DeadlineError, match="is not known" if in_doubt else "^Nothing was done"):
            await retries.run("put", call)


def test_pauses_are_drawn_below_a_bound_that_doubles_up_to_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low, high))
    pauses: list[Any] = [retrying._pause_after(attempt) for attempt in (1, 2, 3, 4, 5, 6, 5000)]
    assert pauses == [(0, bound) for bound in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0)]


@pytest.mark.parametrize("call", ["put", "put_writes", "get_tuple"])
async def test_a_server_that_swallows_everything_costs_a_call_its_deadline_and_no_more(
    call: str, database: str, redis_url: str
) -> None:
    """Not even the request to cancel the statement arrives."""
    thread = Thread("a")
    async with BadLine(database).opened() as line, open_saver(database, redis_url) as reader:
        options: dict[str, Any] = {"write_deadline_seconds": 1.5, "pool_timeout_seconds": 1.5}
        async with open_saver(line.url, redis_url, **options) as saver, Redis.from_url(redis_url) as redis:
            await thread.put(saver)
            if call == "get_tuple":
                await redis.flushall()
            line.swallow()
            started = monotonic()
            with pytest.raises(L2DeadlineError):
                await {
                    "put": lambda: thread.put(saver),
                    "put_writes": lambda: thread.put_writes(saver, "x"),
                    "get_tuple": lambda: saver.aget_tuple(thread.config),
                }[call]()
            assert monotonic() - started < 8
            if call == "put":
                thread.number -= 1
            assert await thread.turn(reader) == 1
            line.heal()  # what was sent arrives now
            await until(lambda: _idle(database))
            assert await same_as_upstream(reader, database, thread)
            await thread.put(saver)
            assert await thread.turn(saver) == await thread.turn(reader) == thread.number


async def _idle(database: str) -> bool:
    rows = await sql(
        database,
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
        "AND pid <> pg_backend_pid()",
    )
    return not rows


async def test_a_write_that_is_cancelled_between_two_attempts_settles_its_intent(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_pause_after", lambda attempt: 5.0)
    watched = Watched()
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=watched.telemetry) as saver:
        await thread.put(saver)
        await failing(database, "checkpoints", "40P01", times=1)
        putting = asyncio.ensure_future(thread.put(saver))
        await until(lambda: watched.retries)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert await thread.turn(saver) == 1
        assert watched.l1_reads == {"hit": 1}, "not busy, and the image is still good"


async def test_a_write_that_is_cancelled_after_an_attempt_in_doubt_leaves_readers_with_postgres(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_pause_after", lambda attempt: 5.0)
    watched = Watched()
    thread = Thread("a")
    async with (
        BadLine(database).opened() as line,
        open_saver(database, redis_url) as reader,
        # One connection, on which the statement is prepared: so it goes out whole.
        open_saver(line.url, redis_url, telemetry=watched.telemetry, pool_max_size=1) as saver,
    ):
        await thread.put(saver)
        async with locked(database, "checkpoints") as waiter:
            putting = asyncio.ensure_future(thread.put(saver))
            await waiter()
            line.reset()
            await until(lambda: watched.retries)
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting
            assert await thread.turn(reader) == 1
        await until(lambda: _idle(database))  # it lands after all
        assert await thread.turn(reader) == 2


# ------------------------------------------------------------------ whole threads


async def test_a_deletion_whose_connection_is_lost_is_done_on_another(database: str, redis_url: str) -> None:
    watched = Watched()
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=watched.telemetry) as saver:
        await thread.put(saver)
        async with locked(database, "checkpoints") as waiter:
            deleting = asyncio.ensure_future(saver.adelete_thread("a"))
            await waiter()
            await terminate(database, waiting=True)
        await deleting
        assert await thread.turn(saver) is None
        assert (await rows_of(database))["checkpoints"] == 0
    assert watched.retries == {"server_restart": 1}


async def test_a_deletion_whose_commit_is_in_doubt_is_not_repeated(database: str, redis_url: str) -> None:
    """A put that came in between would be deleted, too."""
    watched = Watched()
    thread = Thread("a")
    async with open_saver(database, redis_url, telemetry=watched.telemetry) as saver:
        await thread.put(saver)
        for statement in (
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
            "CREATE CONSTRAINT TRIGGER die AFTER DELETE ON checkpoints DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION die()",
        ):
            await sql(database, statement)
        with pytest.raises(L2UnavailableError, match="broke"):
            await saver.adelete_thread("a")
        assert await same_as_upstream(saver, database, thread)
    assert watched.retries == {}
    assert "hit" not in watched.l1_reads
