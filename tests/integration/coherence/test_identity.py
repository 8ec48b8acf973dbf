"""What Redis holds is believed only by those who work on the same PostgreSQL, as it is now.

Another database or schema, one that was made again, restored, promoted or crashed, and another Redis: after a
sweep interval at most nothing from before is read, and no turn is built on it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from redis.asyncio import Redis

from clusters import Cluster
from conversations import NEVER, SOON, Conversation, Process, execute, missing_values, process
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.coherence import identity as keeping
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import L2DeadlineError, L2UnavailableError
from glasspoint.l2.identity import Look
from glasspoint.savers import bursts
from pgbouncer import PROGRAM, pgbouncer
from states import exact, make_pool, open_saver, open_upstream, value_of, warmed_up
from steps import TABLES, Connect, Proxy, Thread, keys_of, settled, until

NO_REDIS = "redis://127.0.0.1:1/0"
NAMED = {"saver": "default"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL to set back, copy and crash: with all its databases."""
    with Cluster() as server:
        yield server


@contextmanager
def made(server: EmbeddedPostgres, name: str) -> Iterator[str]:
    """The URL of an empty database."""
    url = server.create_database(name)
    try:
        yield url
    finally:
        if server.running:
            server.drop_database(name)


@pytest.fixture
def other(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of another empty database."""
    with made(postgres, "other") as url:
        yield url


def with_search_path(database: str, *schemas: str) -> str:
    return f"{database}&options={quote('-csearch_path=' + ','.join(schemas))}"


async def flush(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()


async def nothing_is_lacking(database: str, redis_url: str, one: Process, *threads: Conversation) -> None:
    """Redis forgets everything; what is read then is what was read before, and PostgreSQL has all of it."""
    before = [await thread.read(one.saver) for thread in threads]
    await flush(redis_url)
    assert [await thread.read(one.saver) for thread in threads] == before
    for thread in threads:
        assert await thread.is_same_as_upstream(one.saver, database)
    assert await missing_values(database) == []


# ------------------------------------------------------------------ two of them behind one Redis


async def neighbours(kind: str, database: str, other: str) -> tuple[str, str]:
    """Two URLs that one Redis is to serve."""
    if kind == "databases":
        return database, other
    await execute(other, "CREATE SCHEMA tenant")
    tenant = with_search_path(other, "tenant")
    if kind == "schemas":
        return other, tenant
    async with open_saver(tenant, NO_REDIS):
        pass  # its tables are there: the tables of the other come second
    return other, with_search_path(other, "tenant", "public")


@pytest.mark.parametrize("kind", ["databases", "schemas", "a search path that leads on to the other's"])
async def test_two_behind_one_redis_never_see_nor_store_what_the_other_has(
    kind: str, database: str, other: str, redis_url: str
) -> None:
    thread = Conversation("42")
    here, there = await neighbours(kind, database, other)
    async with process(here, redis_url) as one, process(there, redis_url) as another:
        for number in range(1, 4):
            expected = [f"here {n}" for n in range(1, number + 1)]
            assert await thread.turn(one.saver, f"here {number}") == expected
            assert await thread.turn(another.saver, f"there {number}") == [
                text.replace("here", "there") for text in expected
            ]
        assert one.hits
        assert another.hits
        for side, url in ((one, here), (another, there)):
            await nothing_is_lacking(url, redis_url, side, thread)
        assert one.identity_changes == another.identity_changes == {}


async def test_a_copy_of_a_database_goes_its_own_way(
    postgres: EmbeddedPostgres, database: str, redis_url: str
) -> None:
    """`CREATE DATABASE … TEMPLATE` copies every row, that of the cache included."""
    thread = Conversation("42")
    async with process(database, redis_url) as one:
        await thread.turn(one.saver, "both")
    await execute(postgres.url, "CREATE DATABASE copy TEMPLATE test")
    copy = postgres._url_of("copy")
    try:
        async with process(database, redis_url) as one, process(copy, redis_url) as another:
            for number in range(1, 3):
                here = [f"here {n}" for n in range(1, number + 1)]
                there = [f"there {n}" for n in range(1, number + 1)]
                assert await thread.turn(one.saver, f"here {number}") == ["both", *here]
                assert await thread.turn(another.saver, f"there {number}") == ["both", *there]
            for side, url in ((one, database), (another, copy)):
                await nothing_is_lacking(url, redis_url, side, thread)
            assert one.identity_changes == {}
            assert another.identity_changes == {"database": 1}
    finally:
        postgres.drop_database("copy")


async def test_a_database_or_schema_that_is_renamed_stays_the_same(
    postgres: EmbeddedPostgres, database: str, redis_url: str
) -> None:
    """What is in it is what was in it, and the cache stays warm."""
    thread = Conversation("42")
    with made(postgres, "before") as before:
        try:
            async with process(before, redis_url) as one:
                await thread.turn(one.saver, "one")
            await execute(
                before,
                "ALTER SCHEMA public RENAME TO renamed",
                "ALTER DATABASE before SET search_path = renamed",
            )
            await execute(postgres.url, "ALTER DATABASE before RENAME TO after")
            async with process(postgres._url_of("after"), redis_url) as one:
                assert await thread.read(one.saver) == ["one"]
                assert (one.hits, one.identity_changes) == (1, {})
                assert await thread.turn(one.saver, "two") == ["one", "two"]
        finally:
            postgres.drop_database("after")


# ------------------------------------------------------------------ made again


def _drop_database(postgres: EmbeddedPostgres, database: str) -> None:
    postgres.drop_database("other")
    postgres.create_database("other")


def _drop_tables(postgres: EmbeddedPostgres, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "DROP TABLE checkpoints, checkpoint_blobs, checkpoint_writes, checkpoint_migrations CASCADE"
        )


def _drop_schema(postgres: EmbeddedPostgres, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


@pytest.mark.parametrize("saver", ["closed meanwhile", "open all the time"])
@pytest.mark.parametrize("drop", [_drop_database, _drop_schema, _drop_tables])
async def test_tables_that_are_made_again_are_empty(
    drop: Any, saver: str, postgres: EmbeddedPostgres, other: str, redis_url: str
) -> None:
    thread = Conversation()
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(process(other, redis_url, sweep_interval_seconds=SOON))
        assert await thread.turn(one.saver, "before", note="n") == ["before", "n"]
        if saver == "closed meanwhile":
            await stack.aclose()
        await asyncio.to_thread(drop, postgres, other)
        async with process(other, redis_url) as another:
            assert await thread.read(another.saver) == []
            if saver == "closed meanwhile":
                one = another
            await one.will_read(thread, [])
            assert await thread.turn(one.saver, "after") == ["after"]
            assert await thread.read(another.saver) == ["after"]
            await nothing_is_lacking(other, redis_url, one, thread)
            assert one.hits


# ------------------------------------------------------------------ set back


class Pair:
    """Two databases of one cluster, so that it is set back once for both: the saver of one stays open all the
    time, that of the other is closed meanwhile."""

    def __init__(self, stays: Process, urls: tuple[str, str], redis_url: str) -> None:
        self.thread = Conversation()
        self._stays = stays
        self._urls = urls
        self._redis_url = redis_url

    async def turn(self, text: str, **more: str) -> None:
        """One turn in both."""
        await self.thread.turn(self._stays.saver, text, **more)
        async with self._reopened() as one:
            await self.thread.turn(one.saver, text, **more)

    async def go_on_from(self, *expected: str, reason: str, restarts: int = 0) -> None:
        """Whatever happened to PostgreSQL, the conversation is what is there now, and goes on from that.

        Args:
            reason: What is counted.
            restarts: How often the server was restarted before, while one of the savers was open.
        """
        texts = list(expected)
        async with self._reopened() as reopened:
            assert await self.thread.read(reopened.saver) == texts, "at once"
            await self._stays.will_read(self.thread, texts)
            for one, url in zip((self._stays, reopened), self._urls, strict=True):
                assert await self.thread.turn(one.saver, "on") == [*texts, "on"]
                assert await self.thread.turn(one.saver, "and on") == [*texts, "on", "and on"]
                await nothing_is_lacking(url, self._redis_url, one, self.thread)
                before = restarts if one is self._stays else 0
                assert one.identity_changes == Counter({reason: 1}) + Counter(restart=before)
                assert one.hits

    def _reopened(self) -> AbstractAsyncContextManager[Process]:
        return process(self._urls[1], self._redis_url, sweep_interval_seconds=NEVER)


@asynccontextmanager
async def pair(
    server: Cluster, redis_url: str, through: Callable[[str], str] = lambda url: url, **options: Any
) -> AsyncIterator[Pair]:
    """Args:
    through: Makes the URL that the savers use of the one that leads to the server.
    """
    with made(server, "stays") as first, made(server, "closed") as second:
        urls = through(first), through(second)
        async with process(urls[0], redis_url, sweep_interval_seconds=SOON, **options) as one:
            yield Pair(one, urls, redis_url)


async def test_after_a_backup_is_restored_the_conversation_is_as_it_was_then(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair(cluster, redis_url) as both:
        await both.turn("one")
        await asyncio.to_thread(cluster.keep_copy)
        await both.turn("two", note="lost")
        await both.turn("three")
        await asyncio.to_thread(cluster.put_copy_back)
        await both.go_on_from("one", reason="timeline", restarts=1)
    said = [text for text in warnings_of(caplog) if "promoted, or recovered to an earlier moment" in text]
    assert len(said) == 2, "once a database"
    assert all(re.search(r"timeline 0000000\d -> 0000000\d", text) for text in said)


async def test_files_that_are_put_back_without_a_recovery_are_noticed(
    cluster: Cluster, redis_url: str
) -> None:
    """The timeline is as before, and so is everything else that stands in the files."""
    async with pair(cluster, redis_url) as both:
        await both.turn("one")
        await asyncio.to_thread(cluster.keep_copy)
        await both.turn("two", note="lost")
        await asyncio.to_thread(cluster.put_copy_back, recover=False)
        await both.go_on_from("one", reason="restart", restarts=1)


async def test_a_copy_of_a_whole_cluster_goes_its_own_way(cluster: Cluster, redis_url: str) -> None:
    """A copy of a stopped server's files, as of a volume, is the same cluster in all that it says."""
    thread = Conversation()
    with made(cluster, "twins") as url:
        async with process(url, redis_url) as one:
            await thread.turn(one.saver, "both")
        with Cluster(twin_of=cluster) as twin:
            copy = twin._url_of("twins")
            async with process(url, redis_url) as one, process(copy, redis_url) as another:
                assert await thread.turn(one.saver, "here") == ["both", "here"]
                assert await thread.turn(another.saver, "there") == ["both", "there"]
                for side, where in ((one, url), (another, copy)):
                    await nothing_is_lacking(where, redis_url, side, thread)


async def test_a_restart_costs_the_cache_once_and_nothing_else(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Conversation()
    options = {"sweep_interval_seconds": SOON}
    with made(cluster, "restarted") as url:
        async with process(url, redis_url, **options) as one, process(url, redis_url, **options) as another:
            await thread.turn(one.saver, "one")
            before = (await health(one))["identity"].split(".")
            await asyncio.to_thread(cluster.restart)
            for each in (one, another):
                await until(lambda each=each: each.identity_changes == {"restart": 1})  # type: ignore[misc]
                assert await thread.read(each.saver) == ["one"]
            assert await thread.turn(one.saver, "two") == ["one", "two"]
            await settled(one.saver)
            assert await thread.read(another.saver) == ["one", "two"]
            assert another.hits
            assert one.identity_changes == another.identity_changes == {"restart": 1}
            now, same = [(await health(each))["identity"].split(".") for each in (one, another)]
            assert now == same
            assert now[0] == before[0], "the database is the same one"
            assert now[1] != before[1], "the generation is not"
    assert [text for text in warnings_of(caplog) if "warms up anew" in text] == []


async def test_a_change_that_could_not_be_recorded_is_not_forgotten(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's log has become shorter, and the first attempt to say so fails."""
    thread = Conversation()
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as one:
        await thread.turn(one.saver, "one")
        identities = one.saver._l2.identities
        look, renew = identities.look, identities.renew

        async def set_back(**options: Any) -> Look:
            found = await look(**options)
            return replace(found, position=1000)

        async def fail(*args: Any) -> None:
            monkeypatch.setattr(identities, "renew", renew)
            raise psycopg.OperationalError

        monkeypatch.setattr(identities, "look", set_back)
        monkeypatch.setattr(identities, "renew", fail)
        await one.round()
        assert one.identity_changes == {}
        await one.round()
        await one.round()
        assert one.identity_changes == {"timeline": 1}


def over_tcp(proxy: Proxy) -> Callable[[str], str]:
    """Make URLs that lead through a proxy."""

    def through(url: str) -> str:
        name = conninfo_to_dict(url)["dbname"]
        return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}"

    return through


def unix(server: Cluster) -> Connect:
    return lambda: asyncio.open_unix_connection(server.socket)


async def test_after_a_lagging_standby_is_promoted_what_it_never_received_is_not_read(
    cluster: Cluster, redis_url: str
) -> None:
    async with Proxy().to(unix(cluster)) as proxy, pair(cluster, redis_url, over_tcp(proxy)) as both:
        await both.turn("one")
        with Cluster(standby_of=cluster) as standby:
            await both.turn("two", note="lost")
            await both.turn("three")
            await asyncio.to_thread(standby.promote)
            await proxy.switch(unix(standby))
            await both.go_on_from("one", reason="timeline")
            await proxy.switch(unix(cluster))


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")
async def test_a_server_that_is_replaced_behind_a_pooler_is_noticed_though_no_connection_breaks(
    cluster: Cluster, redis_url: str
) -> None:
    """Of PgBouncer in transaction mode, only the connections to the server break: the saver's stay."""
    thread = Conversation()
    with made(cluster, "pooled") as url, pgbouncer(cluster, "pooled", size=5) as pooled:
        # A sweep, or the removal of a fence, while the server is away would break the connection.
        options = {"prepare_threshold": None, "pool_max_size": 1, "sweep_interval_seconds": NEVER}
        async with process(pooled, redis_url, **options) as one:
            await thread.turn(one.saver, "one")
            await settled(one.saver)
            await asyncio.to_thread(cluster.keep_copy)
            await thread.turn(one.saver, "two", note="lost")
            assert await thread.read(one.saver) == ["one", "two", "lost"]
            await settled(one.saver)
            await asyncio.to_thread(cluster.put_copy_back)
            await one.round()
            assert await thread.read(one.saver) == ["one"]
            assert await thread.turn(one.saver, "on") == ["one", "on"]
            assert connections_made(one) == 1, "or this test shows nothing"
            await nothing_is_lacking(url, redis_url, one, thread)
            assert one.identity_changes == {"timeline": 1}


def connections_made(one: Process) -> int:
    pool = one.saver._l2.connections.pool
    assert pool is not None
    return pool.get_stats()["connections_num"]


# ------------------------------------------------------------------ a crash that loses commits


@asynccontextmanager
async def over_a_foreign_pool(database: str, redis_url: str, **options: Any) -> AsyncIterator[Process]:
    """A saver on a pool that the application has made, as `AsyncPostgresSaver` wants it."""
    registry = CollectorRegistry()
    async with make_pool(database, size=3) as pool, Redis.from_url(redis_url) as redis:
        saver = CachedPostgresSaver(
            AsyncPostgresSaver(pool),
            redis,
            pool,
            telemetry=create_telemetry(registry=registry),
            audit_ratio=0.0,
            **options,
        )
        try:
            await saver.setup()
            yield Process(saver, registry)
        finally:
            await saver.close()


async def settings_of(pool: Any) -> list[str]:
    """What `synchronous_commit` is on all connections of a pool."""
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(pool.connection()) for _ in range(pool.max_size)]
        rows = [await (await conn.execute("SHOW synchronous_commit")).fetchone() for conn in connections]
    return [row["synchronous_commit"] for row in rows]


@pytest.mark.parametrize("strict", [None, "remote_apply"])
async def test_the_own_pool_waits_for_its_commits_whatever_database_and_role_say(
    strict: str | None, cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with made(cluster, "own") as url:
        await execute(
            url,
            "ALTER DATABASE own SET synchronous_commit = off",
            f"ALTER ROLE postgres IN DATABASE own SET synchronous_commit = {strict or 'off'}",
        )
        async with process(url, redis_url, pool_max_size=4) as one:
            assert await settings_of(one.saver._l2.connections.pool) == [strict or "on"] * 4
            assert value_of(one.registry, "glasspoint_l2_asynchronous_commit", NAMED) == 0
    assert "synchronous_commit" not in caplog.text


@pytest.mark.parametrize(
    ("setting", "is_unbounded"),
    [("0", True), ("10500ms", True), ("1min", True), ("10s", False), ("250ms", False)],
)
async def test_a_statement_timeout_that_ends_no_late_statement_is_said_once(
    setting: str, is_unbounded: bool, database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The statement of a writer that was killed may run until after the intent of its write."""
    url = f"{database}&options={quote(f'-cstatement_timeout={setting}')}"
    async with over_a_foreign_pool(url, redis_url, write_deadline_seconds=10) as one:
        for _ in range(2):
            await one.round()
        gauge = value_of(one.registry, "glasspoint_l2_unbounded_statements", NAMED)
        assert gauge == float(is_unbounded)
    said = [text for text in warnings_of(caplog) if "statement_timeout" in text]
    assert len(said) == is_unbounded
    assert all("ALTER ROLE" in text and "'10s'" in text for text in said)


async def test_the_own_pool_ends_its_statements_itself(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with process(database, redis_url, write_deadline_seconds=0.3) as one:
        assert value_of(one.registry, "glasspoint_l2_unbounded_statements", NAMED) == 0
    assert "statement_timeout" not in caplog.text


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")
async def test_behind_a_pooler_the_role_s_settings_count(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with made(cluster, "roled") as url:
        for settings, expected in (((), 1), (("statement_timeout = '10s'", "synchronous_commit = on"), 0)):
            for each in settings:
                await execute(url, f"ALTER ROLE postgres IN DATABASE roled SET {each}")
            caplog.clear()
            with pgbouncer(cluster, "roled", size=3) as pooled:
                async with process(pooled, redis_url, prepare_threshold=None) as one:
                    gauge = value_of(one.registry, "glasspoint_l2_unbounded_statements", NAMED)
                    assert gauge == expected
            assert ("ALTER ROLE" in caplog.text) == bool(expected)


@pytest.mark.parametrize("crash", ["of the machine", "of one backend"])
async def test_after_a_crash_that_lost_commits_nothing_that_is_lost_is_read(
    crash: str, cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a foreign pool has `synchronous_commit = off`, and that is said."""
    with made(cluster, "stays") as stays, made(cluster, "closed") as closed:
        await _lose_commits(crash, cluster, stays, closed, redis_url)
    warnings = [text for text in warnings_of(caplog) if "synchronous_commit is 'off'" in text]
    assert len(warnings) == 3, "once a saver"


async def _lose_commits(crash: str, cluster: Cluster, stays: str, closed: str, redis_url: str) -> None:
    thread = Conversation()
    stays, closed = (f"{url}&options=-csynchronous_commit%3Doff" for url in (stays, closed))
    async with over_a_foreign_pool(stays, redis_url, sweep_interval_seconds=SOON) as one:
        async with over_a_foreign_pool(closed, redis_url) as another:
            for each in (one, another):
                assert await thread.turn(each.saver, "one") == ["one"]
            await execute(cluster.url, "CHECKPOINT")
            with cluster.losing_commits():
                for each in (one, another):
                    assert await thread.turn(each.saver, "two", note="lost") == ["one", "two", "lost"]
                await asyncio.to_thread(cluster.crash if crash == "of the machine" else cluster.crash_backend)
        assert value_of(one.registry, "glasspoint_l2_asynchronous_commit", NAMED) == 1
        if crash == "of the machine":
            await asyncio.to_thread(cluster.start)
        async with open_upstream(closed) as upstream:
            assert await thread.read(upstream) == ["one"], "or this test shows nothing"
        async with over_a_foreign_pool(closed, redis_url, sweep_interval_seconds=NEVER) as reopened:
            assert await thread.read(reopened.saver) == ["one"]
            await one.will_read(thread, ["one"])
            for each, url in ((one, stays), (reopened, closed)):
                assert await thread.turn(each.saver, "on") == ["one", "on"]
                await nothing_is_lacking(url, redis_url, each, thread)
                assert each.identity_changes == {"crash": 1}
                assert each.hits


async def test_a_crash_loses_nothing_that_the_own_pool_has_acknowledged(
    cluster: Cluster, redis_url: str
) -> None:
    thread = Conversation()
    with made(cluster, "own") as url:
        async with process(url, redis_url, sweep_interval_seconds=SOON) as one:
            await thread.turn(one.saver, "one")
            with cluster.losing_commits():
                await thread.turn(one.saver, "two")
                await asyncio.to_thread(cluster.crash)
            await asyncio.to_thread(cluster.start)
            assert await thread.read(one.saver) == ["one", "two"]
            await until(lambda: one.identity_changes == {"crash": 1})
            assert await thread.turn(one.saver, "three") == ["one", "two", "three"]
            await nothing_is_lacking(url, redis_url, one, thread)


# ------------------------------------------------------------------ another Redis


async def test_a_redis_that_was_left_and_comes_back_holds_nothing_that_is_believed(
    database: str, redis_url: str, own_redis: EmbeddedRedis
) -> None:
    thread = Conversation()
    async with process(database, redis_url) as one:
        await thread.turn(one.saver, "one")
        assert one.identity_changes == {}
    async with process(database, own_redis.url) as one:
        assert await thread.turn(one.saver, "two", note="n") == ["one", "two", "n"]
        assert one.identity_changes == {"generation": 1}
    async with process(database, redis_url) as one:
        assert await thread.read(one.saver) == ["one", "two", "n"]
        assert await thread.turn(one.saver, "three") == ["one", "two", "three", "n"]
        assert one.identity_changes == {"generation": 1}
        await nothing_is_lacking(database, redis_url, one, thread)


async def test_of_two_processes_on_two_redis_servers_one_leaves_its_own_alone_and_says_so(
    database: str, redis_url: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Conversation()
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as earlier:
        assert await thread.turn(earlier.saver, "one") == ["one"]
        await settled(earlier.saver)
        async with process(database, own_redis.url, sweep_interval_seconds=NEVER) as later:
            assert await thread.read(later.saver) == ["one"], "and its Redis has it now"
            assert await thread.turn(earlier.saver, "two") == ["one", "two"], "before it has noticed"
            await settled(earlier.saver)
            await earlier.round()
            await later.round()
            assert await thread.read(later.saver) == ["one", "two"]

            await earlier.round()
            assert [r.levelname for r in caplog.records if "another Redis" in r.getMessage()] == ["WARNING"]
            assert (await health(earlier))["identity"] == "unknown"
            before = await keys_of(redis_url)
            assert await thread.turn(earlier.saver, "three") == ["one", "two", "three"]
            assert await keys_of(redis_url) == before
            await later.round()
            # The first process could not say what became of its burst: its fence would stand for 30 s.
            await execute(database, "DELETE FROM glasspoint_fences")
            assert await thread.turn(later.saver, "four") == ["one", "two", "three", "four"]
            for one in (earlier, later):
                assert await thread.read(one.saver) == ["one", "two", "three", "four"]
            assert later.hits == 1
            assert later.identity_changes == {"generation": 1}
            assert earlier.identity_changes == {}


async def test_a_process_takes_the_cache_over_when_the_others_had_their_minute(
    database: str, redis_url: str, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Conversation()
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as earlier:
        async with process(database, own_redis.url, sweep_interval_seconds=NEVER) as later:
            await thread.turn(later.saver, "one")
            await earlier.round()
            assert (await health(earlier))["identity"] == "unknown"
        monkeypatch.setattr(keeping, "_DETACHED_SECONDS", 0.0)
        await earlier.round()
        assert await thread.turn(earlier.saver, "two") == ["one", "two"]
        assert await thread.read(earlier.saver) == ["one", "two"]
        assert (earlier.hits, earlier.identity_changes) == (1, {"generation": 1})
        assert (await health(earlier))["identity"] != "unknown"


async def test_two_redis_servers_that_are_kept_say_so_again(
    database: str,
    redis_url: str,
    own_redis: EmbeddedRedis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They take turns for good: one line would have been forgotten."""
    async with (
        process(database, redis_url, sweep_interval_seconds=NEVER) as one,
        process(database, own_redis.url, sweep_interval_seconds=NEVER) as another,
    ):
        lines = []
        for seconds in (keeping._SAY_DETACHED_SECONDS, 0.0):
            for each in (one, another):
                each.saver._parts.identity._detached_lines.seconds = seconds
            caplog.clear()
            for taker, left in 2 * ((one, another), (another, one)):
                monkeypatch.setattr(keeping, "_DETACHED_SECONDS", 0.0)
                await taker.round()  # detached; or its minute is over, and it takes the cache
                await taker.round()
                monkeypatch.setattr(keeping, "_DETACHED_SECONDS", 3600.0)
                await left.round()
            lines.append(sum("another Redis" in text for text in warnings_of(caplog)))
        assert lines == [2, 4]


async def health(one: Process) -> dict[str, Any]:
    """What `/readyz` says of a saver."""
    check = one.saver.status.check
    assert check is not None
    return await check()


# ------------------------------------------------------------------ a server that withholds something


_TIMELINE = ("pg_current_wal_lsn()", "pg_walfile_name(pg_lsn)")
_SYSTEM = ("pg_control_system()",)


async def as_a_plain_role(database: str, *functions: str, tables: str = "ALL TABLES IN SCHEMA public") -> str:
    """The URL with which a role connects that may use some tables, and not these functions."""
    await execute(
        database,
        "DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO plain",
        *(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC" for function in functions),
    )
    return database.replace("postgres@", "plain@")


@pytest.mark.parametrize(
    ("functions", "parts"),
    [
        (_SYSTEM, "system"),
        (_TIMELINE[:1], "timeline and position"),
        (_TIMELINE[1:], "timeline"),
        ((*_SYSTEM, *_TIMELINE), "system and timeline and position"),
    ],
)
async def test_what_a_server_does_not_tell_is_not_compared_and_that_is_said_once(
    functions: tuple[str, ...],
    parts: str,
    cluster: Cluster,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A role that is told everything and one that is not share the entries, whichever came first."""
    thread = Conversation()
    with made(cluster, "withheld") as url:
        async with process(url, NO_REDIS):
            plain = await as_a_plain_role(url, *functions)
        for first, second in ((plain, url), (url, plain)):
            await execute(url, "DELETE FROM glasspoint_caches")
            caplog.clear()
            async with process(first, redis_url) as one, process(second, redis_url) as another:
                expected = await thread.turn(one.saver, "by one")
                await settled(one.saver)
                assert await thread.read(another.saver) == expected
                assert another.hits == 1
                for _ in range(2):
                    await one.round()
                    await another.round()
                assert one.identity_changes == another.identity_changes == {}
            [said] = warnings_of(caplog)
            assert f"does not tell this role its {parts}:" in said


_LIKE_AURORA = """
CREATE FUNCTION aurora.pg_current_wal_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN
    RAISE 'wal_level must be set to logical' USING ERRCODE = '{}'; END $$
"""


@pytest.mark.parametrize("sqlstate", ["55000", "0A000", "42501"])
async def test_a_primary_that_refuses_as_a_standby_does_has_a_cache(
    sqlstate: str, cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Aurora tells the position of its log only with wal_level = logical. A standby refuses it with 55000."""
    thread = Conversation()
    with made(cluster, "aurora") as url:
        async with process(url, NO_REDIS):
            await execute(url, "CREATE SCHEMA aurora", _LIKE_AURORA.format(sqlstate))
        caplog.clear()
        async with process(with_search_path(url, "public", "aurora", "pg_catalog"), redis_url) as one:
            expected = await thread.turn(one.saver, "one")
            await settled(one.saver)
            assert await thread.read(one.saver) == expected
            assert one.hits == 1
            for _ in range(2):
                await one.round()
            assert one.saver.status.withheld == ("timeline", "position")
        [said] = warnings_of(caplog)
        assert "does not tell this role its timeline and position:" in said


_TELLS = """
CREATE FUNCTION aurora.pg_current_wal_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN
    RETURN pg_catalog.pg_current_wal_lsn(); END $$
"""


async def test_a_primary_that_begins_to_refuse_as_a_standby_does_keeps_its_cache(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Aurora begins to refuse when it is restarted without wal_level = logical."""
    thread = Conversation()
    with made(cluster, "aurora") as url:
        async with process(url, NO_REDIS):
            await execute(url, "CREATE SCHEMA aurora", _TELLS)
        async with process(with_search_path(url, "public", "aurora", "pg_catalog"), redis_url) as one:
            expected = await thread.turn(one.saver, "one")
            await settled(one.saver)
            assert one.saver.status.withheld == ()
            caplog.clear()
            await execute(url, _LIKE_AURORA.replace("CREATE", "CREATE OR REPLACE").format("55000"))

            async def is_withheld() -> bool:
                await one.round()
                return one.saver.status.withheld == ("timeline", "position")

            await until(is_withheld)
            await one.round()
            assert await thread.read(one.saver) == expected
            assert one.hits == 1
            assert one.identity_changes == {}
        [said] = warnings_of(caplog)
        assert "does not tell this role its timeline and position:" in said


# ------------------------------------------------------------------ no identity at all


async def lives_on_postgresql_alone(one: Process, redis_url: str) -> None:
    """Redis is left alone, and nothing is missing."""
    thread = Conversation("alone")
    for number in range(1, 4):
        expected = [f"{n}" for n in range(1, number + 1)]
        assert await thread.turn(one.saver, f"{number}") == expected
        await one.round()
        assert await thread.read(one.saver) == expected
    assert await keys_of(redis_url) == {}
    assert one.hits == 0
    assert (await health(one))["identity"] == "unknown"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What Glasspoint has warned of."""
    records = [r for r in caplog.records if r.name.startswith("glasspoint")]
    return [r.getMessage() for r in records if r.levelno >= logging.WARNING]


_TENANTS = ("tenant_a", "tenant_b")


async def with_row_security(database: str) -> list[str]:
    """Let two roles see their own threads only; the URLs with which they connect."""
    for name in _TENANTS:
        await execute(
            database,
            f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
        )
    for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
        await execute(
            database,
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY own ON {table} USING (thread_id LIKE current_user || '%')",
        )
    return [database.replace("postgres@", f"{name}@") for name in _TENANTS]


async def test_roles_that_see_different_rows_are_served_by_postgres_alone(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A role that sees all rows has its cache, and what the others write reaches it."""
    thread = Conversation("tenant_a: 42")
    with made(cluster, "tenants") as url:
        async with process(url, redis_url, sweep_interval_seconds=NEVER) as owner:
            first, second = await with_row_security(url)
            async with process(first, redis_url) as one, process(second, redis_url) as another:
                assert await thread.turn(one.saver, "secret") == ["secret"]
                assert await thread.read(one.saver) == ["secret"]
                assert await thread.read(another.saver) == []
                assert await thread.turn(owner.saver, "by the owner") == ["secret", "by the owner"]
                assert await thread.read(owner.saver) == ["secret", "by the owner"]
                assert owner.hits
                assert await thread.turn(one.saver, "again") == ["secret", "by the owner", "again"]
                await owner.round()
                assert await thread.read(owner.saver) == ["secret", "by the owner", "again"]
                assert await thread.read(another.saver) == []
                for each in (one, another):
                    await each.round()
                    assert each.hits == 0
                    assert (await health(each))["identity"] == "unknown"
        said = [text for text in warnings_of(caplog) if "Row-level security" in text]
        assert len(said) == 2, "once a saver"


async def test_row_security_that_is_switched_on_meanwhile_is_noticed(
    cluster: Cluster, redis_url: str
) -> None:
    thread = Conversation("tenant_a: 42")
    with made(cluster, "tenants") as url:
        async with process(url, NO_REDIS):
            plain = await as_a_plain_role(url)
        async with process(plain, redis_url, sweep_interval_seconds=SOON) as one:
            await thread.turn(one.saver, "one")
            assert await thread.read(one.saver) == ["one"]
            assert one.hits
            await with_row_security(url)
            await one.will_read(thread, [])


async def test_a_role_that_may_not_use_the_tables_of_the_cache_works_without_it_and_says_so_once(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an upgrade: the journal is older than the other tables, and the role may write into it."""
    with made(cluster, "rights") as url:
        async with process(url, NO_REDIS):
            pass
        plain = await as_a_plain_role(url, tables=", ".join((*TABLES, "glasspoint_l1_journal")))
        caplog.clear()
        async with process(plain, redis_url, sweep_interval_seconds=NEVER) as one:
            await lives_on_postgresql_alone(one, redis_url)
            [said] = warnings_of(caplog)
            assert "may not use the tables of the cache" in said
            assert "GRANT" in said
            # What it has written is known to those who do use the cache.
            async with process(url, redis_url) as another:
                assert await Conversation("alone").read(another.saver) == ["1", "2", "3"]


async def test_with_the_tables_of_langgraph_alone_there_is_no_cache_until_setup(
    empty_database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_upstream(empty_database):
        pass
    thread = Conversation("alone")
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    opened = CachedPostgresSaver.from_conn_string(
        empty_database,
        redis_url=redis_url,
        telemetry=telemetry,
        audit_ratio=0.0,
        sweep_interval_seconds=NEVER,
    )
    async with opened as saver:
        one = Process(saver, registry)
        await lives_on_postgresql_alone(one, redis_url)
        assert warnings_of(caplog) == [], "perhaps setup is under way"
        await saver.setup()
        assert await thread.read(saver) == ["1", "2", "3"]
        await warmed_up(saver)
        assert await thread.read(saver) == ["1", "2", "3"]
        assert one.hits == 1
        await nothing_is_lacking(empty_database, redis_url, one, thread)


async def test_on_a_standby_reads_are_answered_without_redis_and_that_is_said_once(
    cluster: Cluster, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Conversation()
    with made(cluster, "primary") as url:
        async with process(url, redis_url) as one:
            await thread.turn(one.saver, "one")
            with Cluster(standby_of=cluster) as standby:
                assert await thread.turn(one.saver, "two") == ["one", "two"]
                await settled(one.saver)
                before = await keys_of(redis_url)
                caplog.clear()
                async with process(
                    f"{standby._url_of('primary')}&target_session_attrs=any",
                    redis_url,
                    sweep_interval_seconds=NEVER,
                    write_deadline_seconds=0.5,
                ) as behind:
                    for _ in range(2):
                        assert await thread.read(behind.saver) == ["one"], "as far as it has come"
                        await behind.round()
                    with pytest.raises((L2UnavailableError, L2DeadlineError), match="takes no writes"):
                        await thread.turn(behind.saver, "lost")
                    assert behind.hits == 0
                    assert (await health(behind))["identity"] == "unknown"
                assert await keys_of(redis_url) == before
                [said, of_the_write] = warnings_of(caplog)
                assert "PostgreSQL is a standby" in said
                assert "takes no writes" in of_the_write
            assert await thread.read(one.saver) == ["one", "two"]
            assert one.identity_changes == {}


# ------------------------------------------------------------------ written before the change was noticed


async def renew_the_key(database: str) -> None:
    """Any change that breaks no connection."""
    await execute(database, "UPDATE glasspoint_identity SET content_id = gen_random_uuid()::text")


@asynccontextmanager
async def behind_and_ahead(
    database: str, redis_url: str, thread: Thread
) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes: one has not noticed a change yet, the other has, and has warmed up since."""
    async with (
        process(database, redis_url, sweep_interval_seconds=NEVER) as behind,
        process(database, redis_url, sweep_interval_seconds=NEVER) as ahead,
    ):
        await prepare(thread, behind.saver)
        await settled(behind.saver)
        await behind.round()
        await renew_the_key(database)
        await ahead.round()
        await thread.turn(ahead.saver)
        assert await thread.turn(ahead.saver) == thread.number
        assert ahead.hits == 1
        yield behind, ahead


async def prepare(thread: Thread, saver: CachedPostgresSaver) -> None:
    """Two checkpoints of one run, for every kind of write."""
    for _ in range(2):
        config, checkpoint, metadata, versions = thread.next_put(saver)
        thread.newest = await saver.aput(config, checkpoint, {**metadata, "run_id": "run"}, versions)


WRITES: dict[str, Callable[[Thread, CachedPostgresSaver], Awaitable[Any]]] = {
    "put": lambda thread, saver: thread.put(saver),
    "put_writes": lambda thread, saver: thread.put_writes(saver, "x"),
    "delete_thread": lambda thread, saver: saver.adelete_thread(thread.thread_id),
    "delete_for_runs": lambda thread, saver: saver.adelete_for_runs(["run"]),
    "prune": lambda thread, saver: saver.aprune([thread.thread_id]),
}


async def reads_the_same(one: Process, database: str, thread: Thread) -> bool:
    async with open_upstream(database) as upstream:
        truth = await upstream.aget_tuple(thread.config)
    return exact(tuple(await one.saver.aget_tuple(thread.config) or ())) == exact(tuple(truth or ()))


@pytest.mark.parametrize("write", WRITES)
async def test_what_is_written_before_a_change_is_noticed_is_read_by_those_who_had_noticed(
    write: str, database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with behind_and_ahead(database, redis_url, thread) as (behind, ahead):
        await WRITES[write](thread, behind.saver)
        await behind.round()
        for one in (ahead, behind, ahead):
            assert await reads_the_same(one, database, thread)


async def test_what_is_written_within_a_burst_that_goes_on_through_a_change_is_read_by_those_who_noticed(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fence tells those who have noticed, too, not to warm up."""
    monkeypatch.setattr(bursts, "QUIET_SECONDS", 3600.0)
    thread = Thread("a")
    async with (
        process(database, redis_url, sweep_interval_seconds=NEVER) as behind,
        process(database, redis_url, sweep_interval_seconds=NEVER) as ahead,
    ):
        await thread.put(behind.saver)
        await renew_the_key(database)
        await ahead.round()
        for number in (1, 2):
            assert await thread.turn(ahead.saver) == await thread.turn(ahead.saver) == number
            await thread.put(behind.saver)
        await behind.round()
        assert await thread.turn(ahead.saver) == 3
        await thread.put(behind.saver)
        await settled(behind.saver)
        for one in (ahead, behind, ahead):
            assert await thread.turn(one.saver) == 4


async def test_what_is_written_while_a_change_is_adopted_is_read_by_those_who_had_noticed(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    async with behind_and_ahead(database, redis_url, thread) as (behind, ahead):
        await behind.saver.adelete_thread("early")  # no statement of it answers the identity
        journal = behind.saver._l2.journal
        record = journal.record_now

        async def write_meanwhile(*args: Any, **options: Any) -> None:
            await record(*args, **options)
            monkeypatch.undo()
            await thread.put(behind.saver)

        monkeypatch.setattr(journal, "record_now", write_meanwhile)
        await behind.round()
        await behind.round()
        assert await thread.turn(ahead.saver) == 3


async def test_a_write_that_meets_another_postgresql_than_its_keys_say_is_told_before_it_is_acknowledged(
    database: str, redis_url: str
) -> None:
    thread = Thread("a")
    async with behind_and_ahead(database, redis_url, thread) as (behind, ahead):
        await thread.put(behind.saver)
        await settled(behind.saver)
        await ahead.round()
        assert await thread.turn(ahead.saver) == 3, "without a look of the writer"


async def test_a_process_that_has_written_too_much_to_say_makes_all_begin_anew(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    async with behind_and_ahead(database, redis_url, thread) as (behind, ahead):
        monkeypatch.setattr(keeping, "_WRITTEN_AT_MOST", 1)
        for thread_id in ("a", "b"):
            await behind.saver.adelete_thread(thread_id)
        await behind.round()
        await ahead.round()
        assert await thread.turn(ahead.saver) is None
        assert behind.identity_changes == {"generation": 1}


async def test_what_a_process_wrote_before_it_is_detached_is_read_by_those_who_are_attached(
    database: str, redis_url: str, own_redis: EmbeddedRedis
) -> None:
    """A new connection was the first to notice, and the sweep came after that."""
    thread = Thread("a")
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as earlier:
        await thread.put(earlier.saver)
        async with process(database, own_redis.url, sweep_interval_seconds=NEVER) as later:
            assert await thread.turn(later.saver) == 1
            await thread.put(earlier.saver)
            async with await psycopg.AsyncConnection.connect(database, row_factory=dict_row) as connection:
                await earlier.saver._parts.identity.greet(connection)
            await earlier.round()
            await later.round()
            assert await thread.turn(later.saver) == 2


async def test_what_is_written_while_the_tables_of_the_cache_are_out_of_sight_is_read_when_they_are_back(
    database: str, redis_url: str
) -> None:
    """Somebody renames them, and back: the generation is as before."""
    thread = Thread("a")
    async with process(database, redis_url, sweep_interval_seconds=NEVER) as one:
        await thread.put(one.saver)
        assert await thread.turn(one.saver) == 1
        await execute(database, "ALTER TABLE glasspoint_identity RENAME TO away")
        await one.round()
        await thread.put(one.saver)
        await one.round()
        await execute(database, "ALTER TABLE away RENAME TO glasspoint_identity")
        await one.round()
        assert await thread.turn(one.saver) == 2
        assert await thread.turn(one.saver) == 2
        assert one.hits


# ------------------------------------------------------------------ a dump


@pytest.mark.parametrize("target", ["the same database", "another database"])
async def test_a_dump_that_is_restored_is_read_as_it_is(
    target: str, cluster: Cluster, redis_url: str
) -> None:
    thread = Conversation()
    with made(cluster, "dumped") as url, made(cluster, "restored") as other:
        async with process(url, redis_url, sweep_interval_seconds=SOON) as one:
            await thread.turn(one.saver, "one")
            dump = await asyncio.to_thread(cluster.dump, "dumped")
            assert await thread.turn(one.saver, "two", note="lost") == ["one", "two", "lost"]
            name, restored = ("dumped", url) if target == "the same database" else ("restored", other)
            await asyncio.to_thread(cluster.restore, name, dump)
            async with process(restored, redis_url) as another:
                assert await thread.read(another.saver) == ["one"]
                assert await thread.turn(another.saver, "on") == ["one", "on"]
                assert another.identity_changes.get("database", 0) <= 1
                if restored == url:
                    await one.will_read(thread, ["one", "on"])
                    assert one.identity_changes == {"database": 1}
                else:
                    assert await thread.read(one.saver) == ["one", "two", "lost"]
                    assert one.identity_changes == {}
                await nothing_is_lacking(restored, redis_url, another, thread)
