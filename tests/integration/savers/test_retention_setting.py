"""`CHECKPOINT_RETENTION`: a service removes old checkpoints itself, one process at a time, and another one
takes over when that one ends, dies or stalls.

What concerns a whole process runs in one of its own, as a script.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base.id import uuid6
from prometheus_client import CollectorRegistry
from psycopg import sql
from psycopg.conninfo import make_conninfo

import preforked
from clusters import Cluster
from conversations import execute
from databases import with_tables
from glasspoint import CachedPostgresSaver, Settings, create_telemetry, get_checkpointer
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import (
    ConfigurationError,
    L1UnavailableError,
    L2UnavailableError,
    SchemaError,
    WrongTypeError,
)
from glasspoint.l2.lease import Lease
from glasspoint.l2.schema import GRANTS
from glasspoint.model.ages import age_as_text, parse_age
from glasspoint.savers import retention
from glasspoint.savers.maintenance import PruneReport
from states import config_of, counts, exact, open_saver, open_upstream
from steps import Thread, away, locked, rows_of, until

MONTH = timedelta(days=30)

SUCCEEDED_AT = "glasspoint_retention_last_success_timestamp_seconds"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(retention, "FAILED_SECONDS", 0.05)


class Pruning(CachedPostgresSaver):
    """A saver whose retention prunes by a method that its subclasses replace."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self._retention is not None
        self._prune = self._retention._prune
        self._retention._prune = lambda age, *, on_batch: self._prune_for_retention(age, on_batch)

    async def _prune_for_retention(self, age: timedelta, on_batch: Any) -> Any:
        return await self._prune(age, on_batch=on_batch)


def failing_once(error: Exception) -> type[Pruning]:
    """A class of savers of which the first run fails."""

    class Failing(Pruning):
        runs = 0

        async def _prune_for_retention(self, age: timedelta, on_batch: Any) -> Any:
            Failing.runs += 1
            if Failing.runs == 1:
                raise error
            return await super()._prune_for_retention(age, on_batch)

    return Failing


class Watched(Pruning):
    """A saver whose runs are noted, and may be held."""

    log: list[str]
    name: str
    goes_on: asyncio.Event

    async def _prune_for_retention(self, age: timedelta, on_batch: Any) -> Any:
        self.log.append(f"{self.name} begins")
        await self.goes_on.wait()
        try:
            return await super()._prune_for_retention(age, on_batch)
        finally:
            self.log.append(f"{self.name} ends")


@asynccontextmanager
async def watched(
    database: str, redis_url: str, log: list[str], name: str, *, held: bool, **options: Any
) -> AsyncIterator[Any]:
    """Open a saver. It is named before it is opened: a run may begin at once."""
    goes_on = asyncio.Event()
    if not held:
        goes_on.set()
    named = type("Named", (Watched,), {"log": log, "name": name, "goes_on": goes_on})
    async with open_saver(database, redis_url, named, retention=MONTH, **options) as saver:
        yield saver


async def old_thread(saver: CachedPostgresSaver, thread_id: str = "old", checkpoints: int = 3) -> Thread:
    """Checkpoints of long ago, the newest with a pending write: all but the newest may go."""
    thread = Thread(thread_id)
    for _ in range(checkpoints):
        config, checkpoint, metadata, versions = thread.next_put(saver)
        checkpoint["id"] = "1e" + checkpoint["id"][2:]
        thread.newest = await saver.aput(config, checkpoint, metadata, versions)
        await thread.put_writes(saver, "pending")
    return thread


async def rows(database: str) -> int:
    [(count,)] = await execute(database, "SELECT count(*) FROM checkpoints")
    return int(count)


async def lease_of(database: str) -> tuple[Any, ...]:
    """Whether somebody holds the lease, and whether a run has succeeded."""
    query = "SELECT until > now(), succeeded_at IS NOT NULL FROM glasspoint_retention"
    [row] = await execute(database, query)
    return tuple(row)


def runs(registry: CollectorRegistry) -> dict[str, int]:
    return dict(counts(registry, "glasspoint_retention_runs_total", "result"))


async def test_a_service_removes_what_is_old_and_says_when(
    database: str, redis_url: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "glasspoint")
    telemetry = create_telemetry(registry=registry)

    def succeeded_at() -> float:
        return registry.get_sample_value(SUCCEEDED_AT, {"saver": "default"}) or 0

    async def is_pruned() -> bool:
        return await rows(database) == 1

    async with open_saver(database, redis_url) as saver:
        await old_thread(saver)
    async with open_saver(database, redis_url, retention=MONTH, telemetry=telemetry):
        await until(is_pruned)
        await until(succeeded_at)
        assert counts(registry, "glasspoint_retention_pruned_total", "table")["checkpoints"] == 2
        assert counts(registry, "glasspoint_retention_runs_total", "result") == {"succeeded": 1}
        assert not counts(registry, "glasspoint_background_task_failures_total", "task")
    (line,) = [each.getMessage() for each in caplog.records if "were removed" in each.getMessage()]
    assert line.startswith("Retention: 2 checkpoints, 2 writes and ")
    assert line.endswith(f"values that are older than {age_as_text(MONTH)}, and not needed, were removed.")


def test_an_age_is_written_as_in_the_settings() -> None:
    for text in ("1m", "90m", "1h", "12h", "30d", "400d"):
        age = parse_age(text)
        assert age is not None
        assert age_as_text(age) == text
    assert age_as_text(timedelta(weeks=2)) == "14d"
    assert age_as_text(timedelta(seconds=90.5)) == "90.5s"


async def test_without_the_setting_nothing_is_removed_and_no_figure_is_shown(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver:
        assert saver._retention is None
        assert registry.get_sample_value(SUCCEEDED_AT, {"saver": "default"}) is None


async def test_one_process_at_a_time_prunes_and_the_next_run_is_due_later(
    database: str, redis_url: str
) -> None:
    log: list[str] = []
    async with AsyncExitStack() as opened:
        savers = [
            await opened.enter_async_context(watched(database, redis_url, log, name, held=True))
            for name in "abc"
        ]
        await until(lambda: log)
        for _ in range(3):  # looks that find the lease taken
            for saver in savers:
                assert not await saver._retention._claim()
        assert len(log) == 1
        for saver in savers:
            saver.goes_on.set()
        await until(lambda: len(log) == 2)

        async def is_written_down() -> bool:
            query = "SELECT 1 FROM glasspoint_retention WHERE succeeded_at IS NOT NULL"
            return bool(await execute(database, query))

        await until(is_written_down)
        for saver in savers:
            assert not await saver._retention._claim()  # an hour has not passed
        assert len(log) == 2


async def test_a_process_that_closes_gives_the_lease_back(database: str, redis_url: str) -> None:
    log: list[str] = []
    async with AsyncExitStack() as stays:
        async with watched(database, redis_url, log, "a", held=True):
            await until(lambda: log == ["a begins"])
            await stays.enter_async_context(watched(database, redis_url, log, "b", held=False))
        await until(lambda: log == ["a begins", "b begins", "b ends"])


async def test_of_a_process_that_died_another_takes_the_lease_when_it_has_run_out(
    database: str, redis_url: str
) -> None:
    log: list[str] = []
    async with open_saver(database, redis_url):  # the tables are there
        await execute(
            database,
            "INSERT INTO glasspoint_retention VALUES (true, 'dead', now() + interval '1 hour', NULL)",
        )
        async with watched(database, redis_url, log, "b", held=False) as saver:
            assert not await saver._retention._claim()
            assert not log
            await execute(database, "UPDATE glasspoint_retention SET until = now() - interval '1 s'")
            await until(lambda: log == ["b begins", "b ends"])


async def test_a_run_that_lost_its_lease_ends_after_the_batch_under_way(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    class Stalled(Pruning):
        async def _prune_for_retention(self, age: timedelta, on_batch: Any) -> Any:
            assert self._retention is not None
            self._retention._held_until = 0.0  # as a process that was stopped for long finds it
            on_batch(PruneReport(cutoff=datetime.now(UTC), checkpoints=1))
            raise AssertionError("the run went on")

    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, Stalled, retention=MONTH, telemetry=telemetry):
        await until(lambda: counts(registry, "glasspoint_retention_runs_total", "result")["lost"] >= 1)
        assert not counts(registry, "glasspoint_retention_runs_total", "result")["succeeded"]


async def held_until(database: str) -> datetime:
    [(until_,)] = await execute(database, "SELECT until FROM glasspoint_retention")
    assert isinstance(until_, datetime)
    return until_


async def test_a_long_run_renews_its_lease_until_another_process_has_it(
    database: str, redis_url: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LEASE_SECONDS", 2.0)
    log: list[str] = []
    async with open_saver(database, redis_url) as saver:
        await old_thread(saver)
    telemetry = create_telemetry(registry=registry)
    async with watched(database, redis_url, log, "a", held=True, telemetry=telemetry) as saver:
        await until(lambda: log)
        begun = await held_until(database)

        async def is_renewed() -> bool:
            return await held_until(database) > begun

        await until(is_renewed)
        await execute(database, "UPDATE glasspoint_retention SET holder = 'another'")
        await until(lambda: saver._retention._held_until == 0.0)
        saver.goes_on.set()
        await until(lambda: runs(registry) == {"lost": 1})


async def test_a_run_whose_lease_another_process_has_at_its_end_does_not_say_when_it_succeeded(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    log: list[str] = []
    telemetry = create_telemetry(registry=registry)
    async with watched(database, redis_url, log, "a", held=True, telemetry=telemetry) as saver:
        await until(lambda: log)
        await execute(
            database, "UPDATE glasspoint_retention SET holder = 'b', until = now() + interval '1 h'"
        )
        saver.goes_on.set()
        await until(lambda: runs(registry) == {"succeeded": 1})
        assert not saver.status.retention_succeeded_at


async def test_an_error_that_nobody_foresaw_is_reported_and_the_next_run_is_made(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    failing = failing_once(LookupError("nobody foresaw it"))
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, failing, retention=MONTH, telemetry=telemetry):
        await until(lambda: runs(registry) == {"failed": 1, "succeeded": 1})
    assert counts(registry, "glasspoint_background_task_failures_total", "task")["retention"] == 1


@pytest.mark.parametrize("error", [L2UnavailableError("gone"), SchemaError("There is no table for it.")])
async def test_while_it_is_not_known_whether_a_run_is_due_an_alert_is_possible(
    database: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    async def claim(self: Lease, *args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Lease, "claim", claim)
    async with open_saver(database, redis_url, retention=MONTH) as saver:
        assert saver._retention is not None
        for _ in range(3):
            await saver._retention.round()
        assert saver.status.retention_succeeded_at == 0.0
    assert caplog.text.count("old checkpoints are not removed") == isinstance(error, SchemaError)


async def test_a_run_that_fails_is_counted_and_tried_again(
    database: str, redis_url: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    failing = failing_once(L1UnavailableError("Redis does not answer."))
    async with open_saver(database, redis_url):
        pass  # the tables
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, failing, retention=MONTH, telemetry=telemetry):
        expected = {"failed": 1, "succeeded": 1}
        await until(lambda: counts(registry, "glasspoint_retention_runs_total", "result") == expected)
        assert any("Retention: a run failed" in each.message for each in caplog.records)


async def test_what_fails_is_tried_again_by_one_process_a_minute_however_many_there_are(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find what is old reads many rows, and in an outage of Redis PostgreSQL has enough to do."""
    monkeypatch.setattr(retention, "FAILED_SECONDS", 60.0)
    failed: list[str] = []

    class Failing(Pruning):
        async def _prune_for_retention(self, age: timedelta, on_batch: Any) -> Any:
            failed.append("a run")
            raise L1UnavailableError("Redis does not answer.")

    async with (
        open_saver(database, redis_url, Failing, retention=MONTH) as one,
        open_saver(database, redis_url, Failing, retention=MONTH) as other,
    ):
        await until(lambda: failed)

        async def is_free_later() -> bool:
            query = "SELECT 1 FROM glasspoint_retention WHERE holder = '' AND until > now()"
            return bool(await execute(database, query))

        await until(is_free_later)
        for saver in (one, other):
            assert saver._retention is not None
            assert await saver._retention._claim() is None
        assert failed == ["a run"]


# ------------------------------------------------------------------ what goes, and what stays


async def test_the_newest_stays_with_its_values_and_writes_and_readers_are_told(
    database: str, redis_url: str
) -> None:
    """Another process has the thread in its cache, and reads the same before and after."""
    async with open_saver(database, redis_url) as reader:
        threads = [await old_thread(reader, name) for name in "ab"]
        young = Thread("young")
        for _ in range(3):
            config, checkpoint, metadata, versions = young.next_put(reader)
            checkpoint["id"] = str(uuid6())
            young.newest = await reader.aput(config, checkpoint, metadata, versions)
        before = [await reader.aget_tuple(thread.config) for thread in threads]
        async with open_saver(database, redis_url, retention=MONTH):
            await until(lambda: is_over(database))
        assert await rows_of(database) == {
            "checkpoints": 2 + 3,
            "checkpoint_blobs": 2 + 3,
            "checkpoint_writes": 2,
            "checkpoint_migrations": (await rows_of(database))["checkpoint_migrations"],
        }
        async with open_upstream(database) as upstream:
            for thread, old in zip(threads, before, strict=True):
                assert old is not None
                for saver in (reader, upstream):
                    found = await saver.aget_tuple(thread.config)
                    assert found is not None
                    assert exact(found.checkpoint) == exact(old.checkpoint)
                    assert found.pending_writes == old.pending_writes != []
                    assert found.parent_config is None, "it is gone"


async def is_over(database: str) -> bool:
    return bool(await execute(database, "SELECT 1 FROM glasspoint_retention WHERE succeeded_at IS NOT NULL"))


async def test_a_thread_that_is_being_written_to_loses_nothing(database: str, redis_url: str) -> None:
    """A burst of another process is open on it: an intent in Redis, a fence in PostgreSQL."""
    async with open_saver(database, redis_url) as writer:
        thread = await old_thread(writer)
        assert writer._bursts._open, "the burst is open"
        config, checkpoint, metadata, versions = thread.next_put(writer)
        async with open_saver(database, redis_url, retention=MONTH) as pruner:
            await until(lambda: is_over(database))
            thread.newest = await writer.aput(config, checkpoint, metadata, versions)  # the run goes on
            await thread.put_writes(writer, "x")
            assert await thread.turn(writer) == 4
            assert await thread.turn(pruner) == 4
            found = await pruner.aget_tuple(thread.config)
            assert found is not None
            assert found.pending_writes == [("task", "messages", "x")]
    assert await rows(database) == 2


async def test_it_shares_the_work_with_a_run_by_hand(database: str, redis_url: str) -> None:
    log: list[str] = []
    registry = CollectorRegistry()
    async with open_saver(database, redis_url) as by_hand:
        threads = [await old_thread(by_hand, f"thread {n}", 4) for n in range(8)]
        options: dict[str, Any] = {"held": True, "telemetry": create_telemetry(registry=registry)}
        async with watched(database, redis_url, log, "a", **options) as saver:
            await until(lambda: log)
            report = await by_hand.aprune_older_than(
                MONTH, batch_size=2, on_batch=lambda _: saver.goes_on.set()
            )
            await until(lambda: is_over(database))
        pruned = counts(registry, "glasspoint_retention_pruned_total", "table")["checkpoints"]
        assert report.checkpoints + pruned == 8 * 3
        for thread in threads:
            found = await by_hand.aget_tuple(thread.config)
            assert found is not None
            assert found.checkpoint["channel_values"]["turn"] == 4
    assert await rows(database) == 8


async def test_a_clock_that_is_ahead_does_not_make_young_checkpoints_old(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages: list[timedelta] = []

    class Asked(Pruning):
        async def _prune_for_retention(self, age: timedelta, on_batch: Any) -> Any:
            ages.append(age)
            return await super()._prune_for_retention(age, on_batch)

    monkeypatch.setattr(retention, "time", lambda: time() + 40 * 86400)
    async with open_saver(database, redis_url, Asked, retention=MONTH):
        await until(lambda: ages)
    assert timedelta(days=70) <= ages[0] < timedelta(days=71)
    ages.clear()
    await execute(database, "UPDATE glasspoint_retention SET succeeded_at = NULL")
    monkeypatch.setattr(retention, "time", lambda: time() - 40 * 86400)
    async with open_saver(database, redis_url, Asked, retention=timedelta.max):
        await until(lambda: ages)
    assert ages[0] == timedelta.max


# ------------------------------------------------------------------ servers that are away, and rights


async def test_while_postgres_is_away_it_waits_and_goes_on_afterwards(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    registry = CollectorRegistry()
    database = with_tables(own_postgres)
    async with open_saver(database, redis_url) as saver:
        await old_thread(saver)
    log: list[str] = []
    options: dict[str, Any] = {"held": True, "telemetry": create_telemetry(registry=registry)}
    async with watched(database, redis_url, log, "a", **options) as saver:
        await until(lambda: log)
        with away(own_postgres, "down"):
            saver.goes_on.set()
            await until(lambda: runs(registry) == {"failed": 1}, seconds=60)
        # The lease that it could not give back runs out.
        await execute(database, "UPDATE glasspoint_retention SET until = now()")
        await until(lambda: is_over(database), seconds=60)
        assert await rows(database) == 1
        assert not counts(registry, "glasspoint_background_task_failures_total", "task")


async def test_while_redis_is_away_nothing_is_removed(database: str, own_redis: EmbeddedRedis) -> None:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, own_redis.url) as saver:
        await old_thread(saver)
        own_redis.kill()
        async with open_saver(database, own_redis.url, retention=MONTH, telemetry=telemetry):
            await until(lambda: runs(registry).get("failed", 0) > 1)
            assert await rows(database) == 3
            own_redis.start()
            await until(lambda: is_over(database))
            assert await rows(database) == 1


async def test_on_a_standby_it_says_when_a_run_succeeded_and_is_quiet(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Cluster() as primary:
        database = primary.create_database("primary")
        async with open_saver(database, redis_url) as saver:
            await old_thread(saver)
            yesterday = int(time()) - 86400
            await execute(
                database,
                f"INSERT INTO glasspoint_retention VALUES (true, '', 'epoch', to_timestamp({yesterday}))",
            )
            with Cluster(standby_of=primary) as standby:
                caplog.clear()
                registry = CollectorRegistry()
                async with CachedPostgresSaver.from_conn_string(
                    f"{standby._url_of('primary')}&target_session_attrs=any",
                    redis_url=redis_url,
                    retention=MONTH,
                    telemetry=create_telemetry(registry=registry),
                ) as behind:
                    name = {"saver": "default"}
                    await until(lambda: registry.get_sample_value(SUCCEEDED_AT, name))
                    assert registry.get_sample_value(SUCCEEDED_AT, name) == yesterday
                    assert behind._retention is not None
                    assert await behind._retention._claim() is None
                assert not runs(registry)
                ours = [each for each in caplog.records if each.name.startswith("glasspoint")]
                [line] = [each.getMessage() for each in ours if each.levelno >= logging.WARNING]
                assert line.startswith("PostgreSQL is a standby"), "which the cache says"
                assert not counts(registry, "glasspoint_background_task_failures_total", "task")


@pytest.fixture
def role(postgres: EmbeddedPostgres, database: str) -> Iterator[str]:
    """The URL of the database for a role that may do nothing with it yet."""
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute('DROP ROLE IF EXISTS "service"')
        conn.execute('CREATE ROLE "service" LOGIN')
    yield make_conninfo(database, user="service")
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute('DROP OWNED BY "service"')
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute('DROP ROLE "service"')


async def test_a_role_needs_the_rights_that_are_named_and_without_them_the_log_says_so(
    database: str, role: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_saver(database, redis_url) as saver:
        await old_thread(saver)
    for grant in GRANTS.split(", and "):
        await execute(database, f'{grant} TO "service"')
    await execute(database, 'REVOKE ALL ON glasspoint_retention FROM "service"')
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with open_saver(role, redis_url, retention=MONTH, telemetry=telemetry) as saver:

        def said() -> list[str]:
            return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]

        await until(said)
        assert registry.get_sample_value(SUCCEEDED_AT, {"saver": "default"}) == 0, "so that an alert comes"
        assert await Thread("a").turn(saver) is None
        await execute(database, 'GRANT SELECT, INSERT, UPDATE ON glasspoint_retention TO "service"')
        await until(lambda: is_over(database))
    [line] = said()
    assert "GRANT SELECT, INSERT, UPDATE ON glasspoint_retention" in line
    assert await rows(database) == 1


@pytest.fixture
def tenants(database: str) -> Iterator[tuple[str, str]]:
    names = ("tenant_a", 'tenant "b"')
    with psycopg.connect(database, autocommit=True) as conn:
        for name in names:
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        yield names
        for name in names:
            conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


async def test_each_schema_has_a_retention_of_its_own(
    tenants: tuple[str, str], database: str, redis_url: str
) -> None:
    for schema in tenants:
        async with open_saver(database, redis_url, schema=schema) as saver:
            await old_thread(saver)
    for schema in tenants:
        table = sql.Identifier(schema, "checkpoints").as_string()

        async def is_pruned(table: str = table) -> bool:
            return await execute(database, f"SELECT count(*) FROM {table}") == [(1,)]

        assert not await is_pruned(), "nobody but its own saver has pruned it"
        async with open_saver(database, redis_url, schema=schema, retention=MONTH):
            await until(is_pruned)


# ------------------------------------------------------------------ the saver, its process and its loop


async def test_closed_in_the_middle_of_a_batch_the_batch_is_undone_and_the_lease_is_free(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        await old_thread(saver)
    before = await rows_of(database)
    async with locked(database, "checkpoint_blobs") as waiter:
        async with open_saver(database, redis_url, retention=MONTH):
            await waiter()
            assert await lease_of(database) == (True, False)
        assert await lease_of(database) == (False, False)
    assert await rows_of(database) == before


def test_a_saver_for_synchronous_callers_has_it_too(database: str, redis_url: str) -> None:
    with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as saver:
        saver.setup()
        saver._wait_for("aput", old_thread)
    with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url, retention="30d") as saver:

        async def pruned(_: Any) -> None:
            await until(lambda: is_over(database))

        saver._wait_for("aput", pruned)
        assert saver.get_tuple(config_of("old")) is not None


BEGINNING = """
import asyncio, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # it forks
from glasspoint import CachedPostgresSaver
from glasspoint.savers import retention
from steps import until
retention.LOOK_SECONDS = 0.05
POSTGRES, REDIS = sys.argv[1:]


def open_one(**options):
    return CachedPostgresSaver.create(POSTGRES, REDIS, retention="30d", **options)


"""


def start(script: str, database: str, redis_url: str) -> preforked.Popen:
    return preforked.Popen(BEGINNING + script, database, redis_url, env=os.environ)


STAYING = """
async def main():
    saver = await open_one()
    await asyncio.Event().wait()


asyncio.run(main())
"""


async def test_of_a_process_that_is_killed_in_the_middle_of_a_batch_another_goes_on(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        await old_thread(saver)
    async with locked(database, "checkpoint_blobs") as waiter:
        with start(STAYING, database, redis_url) as process:
            await waiter()
            process.kill()
    assert await lease_of(database) == (True, False)
    assert await rows(database) == 3
    async with open_saver(database, redis_url, retention=MONTH) as saver:
        assert saver._retention is not None
        assert await saver._retention._claim() is None, "its lease stands yet"
        await execute(database, "UPDATE glasspoint_retention SET until = now()")  # a minute later
        await until(lambda: is_over(database))
        assert await rows(database) == 1


FORKED = """
looks = []
real = retention.Retention.round


async def look(self):
    looks.append(os.getpid())
    return 0.01


retention.Retention.round = look
loop = asyncio.new_event_loop()
saver = loop.run_until_complete(open_one())
loop.run_until_complete(until(lambda: looks))
# Nothing else is on its way on a connection that the child shares.
loop.run_until_complete(saver._parts.sweeper.stop())
loop.run_until_complete(until(saver._parts.sizes.known))
sizes = saver._parts.sizes._task
saver._parts.sizes.look_soon()  # when the loop has time: in both processes
task = saver._retention._task
if not (pid := os.fork()):  # the parent's loop goes on in the child
    loop.run_until_complete(asyncio.wait([task], timeout=30))
    is_idle = os.getpid() not in looks and saver._parts.sizes._task is sizes
    os._exit(0 if task.done() and is_idle else 1)
assert os.waitpid(pid, 0)[1] == 0
retention.Retention.round = real
loop.run_until_complete(until(lambda: saver.status.retention_succeeded_at))


async def close():
    await saver.close()


loop.run_until_complete(close())
"""


async def test_a_child_does_not_go_on_with_the_task_of_its_parent(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url):
        pass
    with start(FORKED, database, redis_url) as process:
        _, said = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


UNCLOSED = """
async def held(age, *, on_batch):
    begun.set()
    await asyncio.Event().wait()


real = retention.Retention.__init__


def holding(self, *args, **kwargs):
    real(self, *args, **kwargs)
    self._prune = held


retention.Retention.__init__ = holding  # at once: a saver may begin its first run while it is created


async def main():
    global begun
    begun = asyncio.Event()
    saver = await CachedPostgresSaver.create(POSTGRES, REDIS, retention="30d")
    await begun.wait()


asyncio.run(main())
print("ended")
"""


async def test_the_end_of_a_loop_whose_saver_nobody_has_closed_ends_a_run_and_gives_the_lease_back(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url):
        pass
    with start(UNCLOSED, database, redis_url) as process:
        printed, said = await asyncio.to_thread(process.communicate, timeout=60)
    assert (process.returncode, printed) == (0, "ended\n"), said
    assert await lease_of(database) == (False, False)


# ------------------------------------------------------------------ the setting


@pytest.mark.parametrize(("text", "age"), [("30d", MONTH), ("12h", timedelta(hours=12)), ("", None)])
def test_the_setting_is_an_age(monkeypatch: pytest.MonkeyPatch, text: str, age: timedelta | None) -> None:
    monkeypatch.setenv("CHECKPOINT_RETENTION", text)
    assert Settings.from_environment().retention == age


@pytest.mark.parametrize("text", ["0d", "30", "P30D", "-1d"])
def test_what_is_no_age_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CHECKPOINT_RETENTION", text)
    with pytest.raises(ConfigurationError, match="CHECKPOINT_RETENTION"):
        Settings.from_environment()


@pytest.mark.parametrize("age", [timedelta(), timedelta(days=-1), "0d", "30", "", 30, 30.0, True])
async def test_an_option_that_is_no_age_is_refused_before_a_server_is_asked(age: Any) -> None:
    with pytest.raises(ConfigurationError, match="retention") as caught:
        await CachedPostgresSaver.create(
            "postgresql://127.0.0.1:1/none", "redis://127.0.0.1:1", retention=age
        )
    assert isinstance(caught.value, WrongTypeError) == (not isinstance(age, str | timedelta))


async def test_the_setting_reaches_the_service(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_saver(database, redis_url) as saver:
        await old_thread(saver)
    for name, value in {"POSTGRES_URL": database, "REDIS_URL": redis_url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHECKPOINT_RETENTION", "30d")
    async with get_checkpointer():
        await until(lambda: is_over(database))
    assert await rows(database) == 1
    assert Settings(retention=MONTH).retention == MONTH
