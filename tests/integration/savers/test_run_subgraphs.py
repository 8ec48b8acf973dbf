"""A run's subgraph, whose namespace has a task id in it, is not cached, and nobody is told of its writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.model.scope import Scope
from states import config_of, counts, exact, open_saver, open_upstream
from steps import Thread, keys_of, until

RUN = "order:1f000000-0000-6000-8000-000000000001"
RUNS = [RUN, f"{RUN}|1", f"child|{RUN}", f"{RUN}|inner:2"]
NOWHERE = "redis://127.0.0.1:1/0"
NEVER = 3600.0


@pytest.fixture
async def saver(
    database: str, redis_url: str, registry: CollectorRegistry
) -> AsyncIterator[CachedPostgresSaver]:
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry) as opened:
        yield opened


async def entries(redis_url: str) -> list[str]:
    """The namespaces of which there are entries."""
    return sorted(key.decode().partition("}:")[2] for key in await keys_of(redis_url) if b"{" in key)


async def journal(database: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(database) as conn:
        cursor = await conn.execute("SELECT checkpoint_ns FROM glasspoint_l1_journal ORDER BY 1")
        return [namespace for (namespace,) in await cursor.fetchall()]


def results(registry: CollectorRegistry) -> tuple[Counter[str], Counter[str]]:
    """What became of reads and of writes in Redis."""
    return (
        counts(registry, "glasspoint_l1_reads_total", "result"),
        counts(registry, "glasspoint_write_through_total", "l1"),
    )


@pytest.mark.parametrize(
    ("namespace", "is_cached"),
    [("", True), ("child", True), ("child|inner", True), *((ns, False) for ns in RUNS)],
)
def test_the_namespace_alone_says_whether_a_scope_is_cached(namespace: str, is_cached: bool) -> None:
    assert Scope("thread", namespace).is_cached == is_cached


@pytest.mark.parametrize("namespace", RUNS)
async def test_a_run_s_subgraph_stands_in_postgresql_alone(
    saver: CachedPostgresSaver, database: str, redis_url: str, registry: CollectorRegistry, namespace: str
) -> None:
    thread = Thread("42", namespace)
    assert await thread.turn(saver) is None
    await thread.put(saver)
    await thread.put_writes(saver, "x")
    async with open_upstream(database) as upstream:
        for config in (thread.config, thread.newest):
            assert exact(await saver.aget_tuple(config)) == exact(await upstream.aget_tuple(config))
    assert await entries(redis_url) == []
    assert await journal(database) == []
    assert results(registry) == ({"bypassed": 3}, {"bypassed": 2})


async def test_a_subgraph_with_a_memory_is_cached(
    saver: CachedPostgresSaver, redis_url: str, registry: CollectorRegistry
) -> None:
    thread = Thread("42", "child")
    await thread.put(saver)
    assert await thread.turn(saver) == 1
    assert await entries(redis_url) == ["child"]
    assert results(registry) == ({"hit": 1}, {"announced": 1})


@pytest.mark.parametrize("on_l1_outage", ["degrade", "raise"])
async def test_while_redis_is_away_its_writes_make_no_row_and_do_not_fail(
    database: str, registry: CollectorRegistry, on_l1_outage: str
) -> None:
    telemetry, thread = create_telemetry(registry=registry), Thread("42", RUN)
    async with open_saver(database, NOWHERE, telemetry=telemetry, on_l1_outage=on_l1_outage) as saver:
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        assert await thread.turn(saver) == 1
    assert await journal(database) == []
    assert results(registry) == ({"bypassed": 1}, {"bypassed": 2})


async def test_what_changes_whole_threads_tells_redis_of_cached_scopes_alone(
    saver: CachedPostgresSaver, database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    root, run = Thread("42"), Thread("42", RUN)
    for thread in (root, run, root, run):
        await thread.put(saver)
    await saver.acopy_thread("42", "43")
    await saver.aprune(["42"])
    await saver.aprune_older_than(timedelta(hours=1), keep_latest=False)
    assert counts(registry, "glasspoint_l1_invalidations_total", "source").keys() <= {"copy", "prune"}
    for thread in (root, run):
        assert await thread.turn(saver) is None
    assert set(await entries(redis_url)) <= {""}
    await run.put(saver)
    await saver.adelete_thread("42")
    assert await run.turn(saver) is None
    assert counts(registry, "glasspoint_l1_invalidations_total", "source")["delete"] == 1, "the root's"


async def test_other_caches_are_not_told_of_its_writes(database: str, redis_url: str) -> None:
    async with (
        open_saver(database, redis_url, key_prefix="other", sweep_interval_seconds=NEVER),
        open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver,
    ):
        await until(lambda: saver._l2.journal.others)
        for thread in (Thread("42"), Thread("42", RUN)):
            await thread.put(saver)
        await saver.adelete_thread("42")
    assert set(await journal(database)) == {""}


async def test_other_software_that_writes_there_leaves_no_row(database: str, redis_url: str) -> None:
    root, run = Thread("42"), Thread("42", RUN)
    async with (
        open_saver(database, redis_url, sweep_interval_seconds=NEVER) as saver,
        open_upstream(database) as upstream,
    ):
        for thread in (root, run):
            await thread.put(upstream)
            await thread.put_writes(upstream, "x")
        await upstream.adelete_thread("42")
        assert set(await journal(database)) == {""}
        assert await run.turn(saver) is None


async def test_rows_that_are_there_all_the_same_are_swept(
    saver: CachedPostgresSaver, database: str, registry: CollectorRegistry
) -> None:
    """Triggers of an older release make them."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns) VALUES (%s, '42', %s)",
            [saver._l2.journal.cache, RUN],
        )

    async def is_swept() -> bool:
        saver._parts.sweeper.look_soon()
        return await journal(database) == []

    await until(is_swept)
    assert counts(registry, "glasspoint_l1_invalidations_total", "source") == {}
    assert await saver.aget_tuple(config_of("42", RUN)) is None
