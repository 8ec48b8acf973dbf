"""The audit finds what is stale, whoever made it so, and accuses no entry that a write explains."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import ConfigurationError
from glasspoint.l2.connections import Connections
from glasspoint.model.scope import Scope
from states import counts, exact, numbered_id, open_saver, open_upstream
from steps import Thread, locked, seeded_dice, settled, until

MANY = 10_000


class Audited:
    """A saver that audits every hit, and what it has found."""

    def __init__(self, saver: CachedPostgresSaver, registry: CollectorRegistry) -> None:
        self.saver = saver
        self._registry = registry

    @property
    def verdicts(self) -> Counter[str]:
        return counts(self._registry, "glasspoint_l1_audits_total", "verdict")

    @property
    def dropped(self) -> Counter[str]:
        return counts(self._registry, "glasspoint_l1_invalidations_total", "source")

    @property
    def reads(self) -> Counter[str]:
        return counts(self._registry, "glasspoint_l1_reads_total", "result")

    async def settled(self) -> None:
        """Return when no audit is under way."""
        await until(lambda: not self.saver._parts.auditor._running)


@asynccontextmanager
async def open_audited(postgres_url: str, redis_url: str, **options: Any) -> AsyncIterator[Audited]:
    registry = CollectorRegistry()
    # A sweep would drop what was changed behind our back before the audit finds it.
    never = {"sweep_interval_seconds": 3600.0}
    options = {"audit_ratio": 1.0, "telemetry": create_telemetry(registry=registry), **never, **options}
    async with open_saver(postgres_url, redis_url, **options) as saver:
        yield Audited(saver, registry)


@pytest.fixture
async def audited(database: str, redis_url: str) -> AsyncIterator[Audited]:
    async with open_audited(database, redis_url) as each:
        yield each


async def make_thread(saver: CachedPostgresSaver) -> Thread:
    """One with a parent, values of both kinds and a pending write, in the cache."""
    thread = Thread("t", "ns")
    await thread.put(saver)
    await thread.put(saver)
    await thread.put_writes(saver, "pending")
    await settled(saver)
    return thread


async def test_what_postgres_has_too_is_consistent(audited: Audited) -> None:
    thread = await make_thread(audited.saver)
    await audited.saver.aget_tuple(thread.config)  # as the writes have left it
    await audited.settled()
    await audited.saver._l1.drop(await audited.saver._l1.begin(Scope("t", "ns")))
    await audited.saver.aget_tuple(thread.config)
    await audited.saver.aget_tuple(thread.config)  # as a warm-up has left it
    await audited.saver.aget_tuple(thread.newest)  # asked for by its id
    await audited.settled()
    assert audited.reads == {"hit": 3, "miss": 1}
    assert audited.verdicts == {"consistent": 3}
    assert audited.dropped == {}


async def execute(database: str, sql: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(sql.encode())


BEHIND = {
    "a new checkpoint": (
        "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata) "
        f"SELECT thread_id, checkpoint_ns, '{numbered_id(3)}', checkpoint, metadata FROM checkpoints LIMIT 1",
        "id (PostgreSQL has another newest checkpoint)",
    ),
    "a deletion": ("DELETE FROM checkpoints", "id (PostgreSQL has no checkpoint here)"),
    "another parent": ("UPDATE checkpoints SET parent_checkpoint_id = NULL", "parent_id"),
    "another value in the document": (
        "UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{channel_values,turn}', '2.0')",
        "checkpoint.channel_values",
    ),
    "other metadata": ("UPDATE checkpoints SET metadata = metadata || '{\"x\": 1}'", "metadata.x"),
    "another value": ("UPDATE checkpoint_blobs SET blob = '\\x01'", "value of channel messages"),
    "another type of a value": ("UPDATE checkpoint_blobs SET type = 'bytes'", "value of channel messages"),
    "a value that is gone": ("DELETE FROM checkpoint_blobs", "value of channel messages"),
    "another pending write": ("UPDATE checkpoint_writes SET blob = '\\x01'", "pending write task:0"),
    "another task path": ("UPDATE checkpoint_writes SET task_path = '~x'", "pending write task:0"),
    "a pending write more": (
        "INSERT INTO checkpoint_writes "
        "(thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob) "
        "SELECT thread_id, checkpoint_ns, checkpoint_id, task_id, 1, channel, type, blob "
        "FROM checkpoint_writes",
        "pending write task:1",
    ),
    "a pending write less": ("DELETE FROM checkpoint_writes", "pending write task:0"),
}


@pytest.mark.parametrize("what", BEHIND)
async def test_a_change_behind_its_back_is_found_dropped_counted_and_logged(
    what: str, database: str, audited: Audited, caplog: pytest.LogCaptureFixture
) -> None:
    sql, named = BEHIND[what]
    thread = await make_thread(audited.saver)
    await execute(database, sql)
    await audited.saver.aget_tuple(thread.config)
    await audited.settled()
    assert audited.verdicts == {"stale": 1}
    assert audited.dropped == {"audit": 1}
    (line,) = [each for each in caplog.records if each.name.startswith("glasspoint.audit")]
    assert line.levelno == logging.ERROR
    text = line.getMessage()
    assert (
        f"thread 't', namespace 'ns', checkpoint {numbered_id(2)} differs from PostgreSQL in: {named}. "
        in text
    )
    assert "message 2" not in text
    assert audited.reads == {"hit": 1}
    async with open_upstream(database) as upstream:
        try:
            expected = exact(await upstream.aget_tuple(thread.config))
        except Exception as exc:  # a value that is damaged there
            with pytest.raises(type(exc)):
                await audited.saver.aget_tuple(thread.config)
        else:
            assert exact(await audited.saver.aget_tuple(thread.config)) == expected
    assert audited.reads == {"hit": 1, "absent" if "no checkpoint" in named else "miss": 1}


async def test_a_stale_entry_in_redis_is_found_and_the_next_read_is_right(
    audited: Audited, redis_url: str
) -> None:
    thread = Thread("t")
    await thread.put(audited.saver)
    await settled(audited.saver)
    async with Redis.from_url(redis_url) as redis:
        (key,) = await redis.keys()
        before: Any = await redis.hgetall(key)
        await thread.put(audited.saver)
        await settled(audited.saver)
        await redis.delete(key)
        await redis.hset(key, mapping=before)
    assert await thread_number(audited.saver, thread) == 1
    await audited.settled()
    assert await thread_number(audited.saver, thread) == 2
    assert (audited.verdicts, audited.dropped) == ({"stale": 1}, {"audit": 1})


async def thread_number(saver: CachedPostgresSaver, thread: Thread) -> int | None:
    found = await saver.aget_tuple(thread.config)
    return found.checkpoint["channel_values"]["turn"] if found else None


async def test_writes_of_upstreams_own_saver_behind_the_caches_back_are_found(
    audited: Audited, database: str
) -> None:
    thread = Thread("t")
    await thread.put(audited.saver)
    await settled(audited.saver)
    async with open_upstream(database) as upstream:
        await thread.put(upstream)
        await audited.saver.aget_tuple(thread.config)
        await audited.settled()
        assert await thread_number(audited.saver, thread) == 2
        await thread.put_writes(upstream, "pending")
        await audited.saver.aget_tuple(thread.config)
        await audited.settled()
        assert exact(await audited.saver.aget_tuple(thread.config)) == exact(
            await upstream.aget_tuple(thread.config)
        )
    await audited.settled()
    assert audited.verdicts["stale"] == 2


async def test_what_the_caller_does_to_its_answer_is_not_held_against_the_cache(audited: Audited) -> None:
    thread = await make_thread(audited.saver)
    answer: Any = await audited.saver.aget_tuple(thread.config)
    answer.checkpoint["channel_versions"].clear()
    answer.metadata["step"] = 99
    await audited.settled()
    assert audited.verdicts == {"consistent": 1}


# ------------------------------------------------------------------ races

Between = Callable[[], Awaitable[Any]]


def between(audited: Audited, monkeypatch: pytest.MonkeyPatch, *, before_look: int, do: Between) -> None:
    """Let something happen before the audit's first or second look at PostgreSQL."""
    select, looks = audited.saver._l2.select, 0

    async def gated(scope: Any, checkpoint_id: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == before_look:
            await do()
        return await select(scope, checkpoint_id)

    monkeypatch.setattr(audited.saver._l2, "select", gated)


async def test_a_put_between_the_answer_and_the_look_is_a_race(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = await make_thread(audited.saver)
    between(audited, monkeypatch, before_look=1, do=lambda: thread.put(audited.saver))
    await audited.saver.aget_tuple(thread.config)
    await audited.settled()
    assert audited.verdicts == {"raced": 1}
    assert await thread_number(audited.saver, thread) == 3
    assert audited.reads["hit"] == 2, "the entry was dropped"


async def test_a_pending_write_between_is_a_race(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = await make_thread(audited.saver)
    between(audited, monkeypatch, before_look=1, do=lambda: thread.put_writes(audited.saver, "y", "task2"))
    await audited.saver.aget_tuple(thread.config)
    await audited.settled()
    assert audited.verdicts == {"raced": 1}


async def test_a_deletion_between_is_a_race_and_no_lease_is_left(
    audited: Audited, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = await make_thread(audited.saver)
    between(audited, monkeypatch, before_look=1, do=lambda: audited.saver.adelete_thread("t"))
    await audited.saver.aget_tuple(thread.config)
    await audited.settled()
    assert audited.verdicts == {"raced": 1}
    async with Redis.from_url(redis_url) as redis:
        assert await redis.keys() == []


async def test_a_write_under_way_is_a_race(
    audited: Audited, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL has it, and Redis is about to."""
    thread = await make_thread(audited.saver)
    confirm, may_confirm = audited.saver._l1.confirm, asyncio.Event()

    async def held(*args: Any, **options: Any) -> Any:
        await may_confirm.wait()
        return await confirm(*args, **options)

    monkeypatch.setattr(audited.saver._l1, "confirm", held)
    writing: list[asyncio.Task[None]] = []

    async def write() -> None:
        writing.append(asyncio.create_task(thread.put(audited.saver)))
        async with open_upstream(database) as upstream:

            async def arrived() -> bool:
                found = await upstream.aget_tuple(thread.config)
                return found is not None and found.checkpoint["id"] == numbered_id(3)

            await until(arrived)

    between(audited, monkeypatch, before_look=1, do=write)
    await audited.saver.aget_tuple(thread.config)
    await audited.settled()
    assert audited.verdicts == {"raced": 1}
    may_confirm.set()
    await writing[0]


async def test_what_is_gone_at_the_second_look_is_a_race(
    audited: Audited, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = await make_thread(audited.saver)

    def set_step(number: int) -> Awaitable[None]:
        return execute(
            database, f"UPDATE checkpoints SET metadata = jsonb_set(metadata, '{{step}}', '{number}')"
        )

    await set_step(1)
    between(audited, monkeypatch, before_look=2, do=lambda: set_step(2))
    await execute(database, f"DELETE FROM checkpoints WHERE checkpoint_id = '{numbered_id(1)}'")
    await audited.saver.aget_tuple(thread.config)
    await audited.settled()
    assert audited.verdicts == {"raced": 1}


@pytest.mark.dice
async def test_under_concurrent_writes_nothing_is_called_stale(database: str, redis_url: str) -> None:
    """Two savers put, write, delete and read the same threads; every hit that can be is audited."""
    dice = seeded_dice()
    async with open_audited(database, redis_url) as one, open_audited(database, redis_url) as two:
        threads = [Thread(f"t{number}") for number in range(3)]

        async def work(audited: Audited, thread: Thread, lock: asyncio.Lock) -> None:
            for _ in range(25):
                await audited.saver.aget_tuple(thread.config)
                async with lock:  # one run at a time on one thread, as in LangGraph
                    await thread.put(audited.saver)
                    await asyncio.gather(
                        thread.put_writes(audited.saver, "x", f"task{dice.randrange(4)}"),
                        audited.saver.aget_tuple(thread.config),
                    )
                    if dice.random() < 0.05:
                        await audited.saver.adelete_thread(thread.thread_id)
                    if dice.random() < 0.5:
                        await settled(audited.saver)

        for thread in threads:
            lock = asyncio.Lock()
            await asyncio.gather(*(work(each, thread, lock) for each in (one, two)))
        await one.settled()
        await two.settled()
        verdicts = one.verdicts + two.verdicts
    assert verdicts["consistent"]
    assert not verdicts["stale"], verdicts


# ------------------------------------------------------------------ in the background


async def test_no_caller_waits_for_an_audit_and_no_more_than_two_run(
    audited: Audited, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connections, "is_saturated", False)
    thread = await make_thread(audited.saver)
    async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE") as waiter:
        for _ in range(5):
            assert await audited.saver.aget_tuple(thread.config)
        await waiter()
        assert audited.saver._parts.auditor._running == 2
    await audited.settled()
    assert audited.verdicts == {"consistent": 2}


async def test_callers_do_not_queue_behind_audits_for_a_connection(database: str, redis_url: str) -> None:
    async with open_audited(database, redis_url, pool_max_size=1) as audited:
        thread = await make_thread(audited.saver)
        async with locked(database, "checkpoint_writes") as waiter:
            writing = asyncio.create_task(thread.put_writes(audited.saver, "x", "other"))
            await waiter()  # it holds the only connection
            assert audited.saver._l2.connections.is_saturated
            audited.saver._parts.auditor.sample(Scope("other", ""), [])
            assert audited.saver._parts.auditor._running == 0
        await writing
        assert not audited.saver._l2.connections.is_saturated


async def test_closing_waits_for_the_audits_and_leaves_nothing(database: str, redis_url: str) -> None:
    async with open_audited(database, redis_url) as audited:
        thread = await make_thread(audited.saver)
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE") as waiter:
            await audited.saver.aget_tuple(thread.config)
            await waiter()
            closing = asyncio.ensure_future(audited.saver.close())
            await asyncio.sleep(0)
            assert not closing.done()
        await closing
        assert audited.verdicts == {"consistent": 1}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_audit_that_gets_no_answer_gives_up_in_silence(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("glasspoint.coherence.audit._DEADLINE_SECONDS", 0.05)
    async with open_audited(database, redis_url) as audited:
        thread = await make_thread(audited.saver)
        async with locked(database, "checkpoints", mode="ACCESS EXCLUSIVE"):
            await audited.saver.aget_tuple(thread.config)
            await audited.settled()
        assert audited.verdicts == {}
        assert not [each for each in caplog.records if each.levelno > logging.INFO]


async def test_without_redis_there_is_no_verdict(
    database: str, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_audited(database, own_redis.url) as audited:
        thread = await make_thread(audited.saver)

        async def kill() -> None:
            await execute(database, "DELETE FROM checkpoint_writes")
            own_redis.kill()

        between(audited, monkeypatch, before_look=1, do=kill)
        await audited.saver.aget_tuple(thread.config)
        await audited.settled()
        assert audited.verdicts == {}


async def test_a_stale_entry_that_cannot_be_dropped_is_reported_as_such(
    audited: Audited, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    thread = await make_thread(audited.saver)

    async def no_drop(*args: Any) -> bool:
        return False

    monkeypatch.setattr(audited.saver._l1, "drop", no_drop)
    await execute(database, "DELETE FROM checkpoint_writes")
    await audited.saver.aget_tuple(thread.config)
    await audited.settled()
    assert (audited.verdicts, audited.dropped) == ({"stale": 1}, {})
    assert "could not be dropped" in caplog.text


async def test_an_audit_is_part_of_no_trace(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans, provider, registry = InMemorySpanExporter(), TracerProvider(), CollectorRegistry()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = create_telemetry(registry=registry, tracer_provider=provider)
    async with open_saver(database, redis_url, audit_ratio=1.0, telemetry=telemetry) as saver:
        thread = await make_thread(saver)
        spans.clear()
        select, around = saver._l2.select, []

        async def seen(*args: Any) -> Any:
            around.append(trace.get_current_span())
            return await select(*args)

        monkeypatch.setattr(saver._l2, "select", seen)
        with provider.get_tracer("test").start_as_current_span("application"):
            await saver.aget_tuple(thread.config)
            await until(lambda: not saver._parts.auditor._running)
    assert counts(registry, "glasspoint_l1_audits_total", "verdict") == {"consistent": 1}
    names = [span.name for span in spans.get_finished_spans()]
    assert names == ["checkpoint.l1.read", "checkpoint.get_tuple", "application"]
    assert around == [trace.INVALID_SPAN], "an instrumented driver would add its spans to a call that is over"


# ------------------------------------------------------------------ which hits


@pytest.mark.dice
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
async def test_the_ratio_is_the_share_of_hits_that_is_audited(
    ratio: float, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = seeded_dice()
    async with open_audited(database, redis_url, audit_ratio=ratio) as audited:
        auditor = audited.saver._parts.auditor
        auditor._dice = dice
        started = 0

        def start(audit: Any) -> None:
            nonlocal started
            started += 1
            audit.close()
            auditor._running = 0

        monkeypatch.setattr(auditor, "_start", start)
        for _ in range(MANY):
            auditor.sample(Scope("t", ""), [])
    # Six standard deviations: once in 10^9 runs.
    assert abs(started - MANY * ratio) <= 6 * (MANY * ratio * (1 - ratio)) ** 0.5


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
async def test_a_ratio_that_is_none_is_refused(ratio: float, database: str, redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="audit_ratio"):
        async with open_audited(database, redis_url, audit_ratio=ratio):
            pass


async def test_only_hits_are_audited(audited: Audited, database: str) -> None:
    thread = Thread("t")
    assert await audited.saver.aget_tuple(thread.config) is None
    await thread.put(audited.saver)
    first = thread.newest
    await thread.put(audited.saver)
    await audited.saver.aget_tuple(first)
    await audited.settled()
    assert audited.reads == {"absent": 1, "historical": 1}
    assert audited.verdicts == {}


async def test_the_default_is_one_in_a_thousand(database: str, redis_url: str) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with CachedPostgresSaver.from_conn_string(
        database, redis_url=redis_url, telemetry=telemetry
    ) as saver:
        assert saver._parts.auditor._ratio == 0.001
