"""`alist_threads`: one row a thread, the one written last first, the same in every saver; and its cost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from glasspoint import (
    FallbackSaver,
    MemorySaver,
    RedisSaver,
    Settings,
    ThreadSummary,
    create_telemetry,
    get_checkpointer,
)
from glasspoint.errors import ConfigurationError, InvalidConfigError
from glasspoint.l2.sql import query
from glasspoint.model.scope import first_id_of, time_of_id
from glasspoint.model.sync_methods import SyncFace
from glasspoint.model.threads import summary_of
from states import config_of, numbered_id, open_saver
from steps import Thread

SAVERS = ("cached", "redis", "memory", "chain", "chain in redis", "chain in memory")


def _settings(postgres_url: str, redis_url: str) -> Settings:
    return Settings(postgres_url=SecretStr(postgres_url), redis_url=SecretStr(redis_url))


@pytest.fixture(params=SAVERS)
async def saver(request: pytest.FixtureRequest, database: str, redis_url: str) -> AsyncIterator[SyncFace]:
    telemetry = create_telemetry(registry=CollectorRegistry())
    match request.param:
        case "cached":
            async with open_saver(database, redis_url, telemetry=telemetry) as cached:
                yield cached
        case "redis":
            async with RedisSaver.from_conn_string(redis_url, telemetry=telemetry) as redis:
                yield redis
        case "memory":
            memory = MemorySaver(telemetry=telemetry)
            yield memory
            await memory.close()
        case "chain":
            async with get_checkpointer(_settings(database, redis_url), telemetry=telemetry) as chain:
                assert chain.tier == "cached"
                yield chain
        case _:
            nowhere = "postgresql://nobody:secret@127.0.0.1:1/nothing"
            redis_is = redis_url if request.param == "chain in redis" else "redis://127.0.0.1:1"
            async with get_checkpointer(_settings(nowhere, redis_is), telemetry=telemetry) as chain:
                assert chain.tier == request.param.split()[-1]
                yield chain


async def three_threads(saver: SyncFace) -> None:
    """`a` has the newest checkpoint, then `c`, then `b`; a subgraph of `b` has an even newer one."""
    for thread_id, numbers in (("a", (1, 9)), ("b", (2, 3, 4)), ("c", (5, 6))):
        thread = Thread(thread_id)
        for number in numbers:
            thread.number = number - 1
            config, checkpoint, metadata, versions = thread.next_put(saver)
            metadata |= {  # type: ignore[misc]
                "user": thread_id.upper(),
                "is_last": number == numbers[-1],
                "tags": ["x", thread_id],
            }
            thread.newest = await saver.aput(config, checkpoint, metadata, versions)
    sub = Thread("b", "inner")
    sub.number = 20
    await sub.put(saver)


async def listed(saver: SyncFace, **options: Any) -> list[ThreadSummary]:
    return [each async for each in saver.alist_threads(**options)]


async def ids(saver: SyncFace, **options: Any) -> list[str]:
    return [each.thread_id for each in await listed(saver, **options)]


async def test_a_row_has_what_the_newest_checkpoint_of_the_root_graph_says(saver: SyncFace) -> None:
    await three_threads(saver)
    newest, *rest = await listed(saver)
    assert newest == ThreadSummary(
        thread_id="a",
        checkpoint_id=numbered_id(9),
        created_at=time_of_id(numbered_id(9)),
        step=9,
        source="loop",
        metadata={
            "source": "loop",
            "step": 9,
            "parents": {},
            "user": "A",
            "is_last": True,
            "tags": ["x", "a"],
        },
    )
    assert [(each.thread_id, each.checkpoint_id) for each in rest] == [
        ("c", numbered_id(6)),
        ("b", numbered_id(4)),
    ]
    found = await saver.aget_tuple(newest.config)
    assert found
    assert found.metadata == newest.metadata


async def test_filter_limit_and_before_choose_among_the_newest(saver: SyncFace) -> None:
    await three_threads(saver)
    assert await ids(saver, limit=2) == ["a", "c"]
    assert await ids(saver, limit=0) == []
    assert await ids(saver, filter={"user": "B"}) == ["b"]
    assert await ids(saver, filter={"is_last": False}) == []  # no thread's newest one
    assert await ids(saver, filter={"tags": ["x"]}, limit=2) == ["a", "c"]
    assert await ids(saver, before=config_of("any", checkpoint_id=numbered_id(6))) == ["b"]
    pages, last = [], None
    while page := await listed(saver, limit=1, before=last):
        pages += page
        last = page[-1].config
    assert [each.thread_id for each in pages] == ["a", "c", "b"]


async def test_a_thread_that_is_written_to_comes_first_and_a_deleted_one_goes(saver: SyncFace) -> None:
    assert await ids(saver) == []
    await three_threads(saver)
    thread = Thread("b")
    thread.number = 11
    await thread.put(saver)
    assert await ids(saver) == ["b", "a", "c"]
    await saver.adelete_thread("a")
    assert await ids(saver) == ["b", "c"]


async def test_arguments_that_cannot_be_meant_are_refused(saver: SyncFace) -> None:
    for wrong in ({"limit": -1}, {"filter": {"a": {1, 2}}}, {"filter": "x"}, {"filter": {"a": "\0"}}):
        with pytest.raises(ConfigurationError):
            await listed(saver, **wrong)
    with pytest.raises(InvalidConfigError, match="names no checkpoint_id"):
        await listed(saver, before=config_of("any"))


async def test_ids_that_are_not_of_langgraph_tell_no_time(saver: SyncFace) -> None:
    config, checkpoint, metadata, versions = Thread("a").next_put(saver)
    checkpoint["id"] = "by hand"
    await saver.aput(config, checkpoint, metadata, versions)
    [only] = await listed(saver)
    assert only.created_at is None


def test_synchronous_callers_have_the_same(database: str, redis_url: str) -> None:
    savers: Iterator[Any] = iter(
        (
            get_checkpointer(
                _settings(database, redis_url), telemetry=create_telemetry(registry=CollectorRegistry())
            ),
            RedisSaver.from_conn_string(
                redis_url, telemetry=create_telemetry(registry=CollectorRegistry()), key_prefix="other"
            ),
        )
    )
    for opening in savers:
        with opening as saver:
            thread = Thread("a")
            saver.put(*thread.next_put(saver))
            assert [each.thread_id for each in saver.list_threads(limit=5)] == ["a"]
            assert isinstance(saver, SyncFace)


def test_the_time_is_that_of_the_id() -> None:
    moment = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    assert summary_of("a", first_id_of(moment), {}).created_at == moment


# ------------------------------------------------------------------------------------ what it costs

THREADS, CHECKPOINTS_EACH = 200, 500

CHECKPOINTS = f"""/* glasspoint */
INSERT INTO checkpoints
SELECT 'thread ' || t, '', '1f000000-0000-6000-8000-' || lpad(to_hex(s * 1000 + t), 12, '0'), NULL, NULL,
       '{{}}', jsonb_build_object('step', s, 'source', 'loop')
FROM generate_series(1, {THREADS}) AS t, generate_series(1, {CHECKPOINTS_EACH}) AS s
"""


class Cost(NamedTuple):
    """What a plan has read of `checkpoints`: rows, and by which kinds of scans."""

    rows: float
    scans: set[str]


def _cost(plan: dict[str, Any]) -> Cost:
    rows, scans = 0.0, set[str]()
    if plan.get("Relation Name") == "checkpoints":
        rows += plan["Actual Rows"] * plan["Actual Loops"] + plan.get("Rows Removed by Filter", 0)
        scans.add(plan["Node Type"])
    for child in plan.get("Plans", ()):
        more = _cost(child)
        rows, scans = rows + more.rows, scans | more.scans
    return Cost(rows, scans)


@pytest.mark.parametrize("analyzed", [True, False])
@pytest.mark.parametrize("filter", [None, {"step": 500}], ids=["all", "filtered"])
async def test_threads_are_found_by_skips_in_the_primary_key(
    database: str, redis_url: str, *, analyzed: bool, filter: dict[str, Any] | None
) -> None:
    async with open_saver(database, redis_url) as saver:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            await conn.execute(CHECKPOINTS)
            if analyzed:
                await conn.execute("VACUUM ANALYZE checkpoints")
            statement = query("list_matching_threads") if filter else query("list_threads")
            params = {"filter": json.dumps(filter), "limit": 20, "before": None}
            explained = await (
                await conn.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", params)
            ).fetchone()
        assert explained
        cost = _cost(explained[0][0]["Plan"])
        # Of 100,000 checkpoints: one a thread to skip to it, one that is its newest, and the page.
        assert cost.rows <= 2 * THREADS + 20 + 5
        assert cost.scans <= {"Index Scan", "Index Only Scan"}
        assert await ids(saver, limit=2, filter=filter) == [f"thread {THREADS}", f"thread {THREADS - 1}"]


async def test_the_chain_lists_what_its_tier_holds(database: str, redis_url: str) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with get_checkpointer(_settings(database, redis_url), telemetry=telemetry) as chain:
        assert isinstance(chain, FallbackSaver)
        await Thread("a").put(chain)
        assert await ids(chain) == ["a"]
