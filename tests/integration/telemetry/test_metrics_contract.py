"""The metrics are a contract: the registry and the table in docs/telemetry.md say the same, both ways."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, MemorySaver, conversation_turn, create_telemetry
from glasspoint.model.scope import Scope
from places import DOCS
from states import config_of
from steps import Thread, drain, settled, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client.core import Metric

    from glasspoint.embedded import EmbeddedRedis

DOC = (DOCS / "telemetry.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (histogram|summary|counter|gauge|info) \| ([\w, ]*) ?\| ", re.MULTILINE)


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> (type, labels without `saver`), as the table says."""
    return {
        name: (kind, frozenset(label.strip() for label in labels.split(",") if label.strip()))
        for name, kind, labels in ROW.findall(DOC)
    }


def registered(families: list[Metric]) -> dict[str, tuple[str, frozenset[str]]]:
    found = {}
    for family in families:
        assert family.name.startswith("glasspoint"), family.name
        name = family.name.removeprefix("glasspoint_") + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"saver", "le"}
        found["info" if family.type == "info" else name] = (family.type, frozenset(labels))
    return found


def fails_once() -> Callable[[], Awaitable[None]]:
    errors = [psycopg.errors.DeadlockDetected()]

    async def call() -> None:
        if errors:
            raise errors.pop()

    return call


@pytest.fixture
async def families(database: str, own_redis: EmbeddedRedis) -> list[Metric]:
    """What a registry holds after every kind of call and every answer of L1."""
    registry = CollectorRegistry()
    async with Redis.from_url(own_redis.url) as redis:
        saver = await CachedPostgresSaver.create(
            database, redis, telemetry=create_telemetry(registry=registry), audit_ratio=0
        )
        thread = Thread("a")
        await saver.aget_tuple(thread.config)
        await thread.put(saver)
        first = thread.newest
        await saver.aput_writes(first, [("messages", "x")], "task")
        await thread.put(saver)
        await settled(saver)
        await saver.aget_tuple(thread.config)
        await saver.aget_tuple(first)
        intent = await saver._l1.begin(Scope("a", ""))
        await saver.aget_tuple(thread.config)
        await saver._l1.abort(intent)
        await saver.aget_tuple(config_of("a", "subgraph:task"))
        await redis.flushall()
        await saver.aget_tuple(thread.config)
        assert [each async for each in saver.alist(thread.config)]
        assert [each async for each in saver.alist_threads()]
        await saver.aget_delta_channel_history(config=thread.config, channels=["messages"])
        for run in (
            saver.acopy_thread("a", "b"),
            saver.aprune(["b"]),
            saver.aprune_older_than(timedelta(days=1)),
            saver.adelete_for_runs(["no such run"]),
            saver.aprune(["b"], strategy="delete"),
            saver.adelete_thread("a"),
        ):
            await run
        await saver._retries.run("put", fails_once())
        async with MemorySaver(telemetry=create_telemetry(registry=registry)) as lower:
            await Thread("c").put(lower)
            await drain(lower, saver)
        await saver._l2.journal.record_now([Scope("a", "")])
        await saver._parts.sweeper.round()
        await _read_what_is_wrong(database, redis, own_redis.url, registry)
        with conversation_turn("a", telemetry=create_telemetry(registry=registry)):
            pass
        own_redis.kill()
        await saver.aget_tuple(thread.config)
        await Thread("d").put(saver)
        await until(lambda: saver.status.storage and saver.status.storage())
        found = list(registry.collect())
        generate_latest(registry)  # and it can be encoded
        await saver.close()
    return found


async def _read_what_is_wrong(
    database: str, redis: Redis, redis_url: str, registry: CollectorRegistry
) -> None:
    """A hit, which its audit finds to be stale; then what nobody can have signed."""
    telemetry, thread = create_telemetry(registry=registry), Thread("d")
    async with (
        CachedPostgresSaver.from_conn_string(
            database, redis_url=redis_url, telemetry=telemetry, audit_ratio=1, l1_signing_key="k" * 16
        ) as saver,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as conn,
    ):
        await thread.put(saver)
        await settled(saver)
        (key,) = [key async for key in redis.scan_iter("*{d}*")]
        await conn.execute("UPDATE checkpoints SET metadata = '{}' WHERE thread_id = 'd'")
        await saver.aget_tuple(thread.config)
        await until(lambda: not saver._parts.auditor._running)
        await redis.hset(key, mapping={"id": "x", "head": "x"})
        await saver.aget_tuple(thread.config)


def test_what_is_registered_is_what_is_documented(families: list[Metric]) -> None:
    assert registered(families) == documented()


def test_every_answer_of_l1_was_counted(families: list[Metric]) -> None:
    samples: dict[str, Any] = {
        sample.labels["result"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "glasspoint_l1_reads_total"
    }
    once = dict.fromkeys(
        ["historical", "busy", "bypassed", "absent", "miss", "unavailable", "incomplete"], 1.0
    )
    assert samples == once | {"hit": 2.0}


def test_every_label_value_is_documented(families: list[Metric]) -> None:
    listed = DOC[DOC.index("| label | values |") : DOC.index("The durations of operations")]
    for family in families:
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label in ("saver", "le") or family.type == "info":
                    continue
                assert f"`{value}`" in listed, f"{label}={value!r} of {family.name}"


def test_every_operation_and_every_source_was_counted(families: list[Metric]) -> None:
    seen: dict[str, set[str]] = {"operation": set(), "source": set()}
    for family in families:
        if family.name in ("glasspoint_entry_bytes", "glasspoint_write_bytes"):  # they have rows of their own
            continue
        for sample in family.samples:
            for label in seen.keys() & sample.labels.keys():
                if sample.value:
                    seen[label].add(sample.labels[label])
    listed = {
        label: set(re.findall(r"`(\w+)`", DOC[DOC.index(f"| {label} | `") :].splitlines()[0]))
        for label in seen
    }
    assert seen == listed


def test_units_are_base_units_and_every_metric_says_what_it_is(families: list[Metric]) -> None:
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|milliseconds|kb|minutes|percent)\b", family.name)
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_bytes", "_writes"))
        for sample in family.samples:
            assert sample.labels["saver"] == "default"


def test_every_metric_has_a_query_to_paste() -> None:
    queries = DOC[DOC.index("### Queries to paste") : DOC.index("## Spans")]
    for name in documented():
        assert f"glasspoint_{name}" in queries, name


def test_two_savers_share_one_registry_and_a_name_adds_up(database: str) -> None:
    registry = CollectorRegistry()
    one, two = (create_telemetry(saver_name=name, registry=registry) for name in ("one", "two"))
    for telemetry in (one, two, two):
        with telemetry.operation("get_tuple", None) as operation:
            operation.l1_result = "hit"
    for name, value in (("one", 1.0), ("two", 2.0)):
        labels = {"saver": name, "result": "hit"}
        assert registry.get_sample_value("glasspoint_l1_reads_total", labels) == value


def test_what_is_rare_is_there_before_it_happens() -> None:
    """A counter that appears with its first event has, to Prometheus, never increased."""
    registry = CollectorRegistry()
    create_telemetry(registry=registry)
    there = {(sample.name, *sample.labels.values()) for each in registry.collect() for sample in each.samples}
    for rare in (
        ("operation_duration_seconds_count", "get_tuple", "ok"),
        ("operation_duration_seconds_count", "get_tuple", "error"),
        ("operation_duration_seconds_count", "put", "error"),
        ("write_through_total", "put", "journalled"),
        ("l1_audits_total", "stale"),
        ("l1_invalidations_total", "tampered"),
        ("l2_retries_total", "put_writes", "connection_lost"),
        ("fallback_events_total", "cached", "redis", "postgres_unavailable"),
        ("background_task_failures_total", "sweeper"),
        ("pool_timeouts_total",),
    ):
        assert (f"glasspoint_{rare[0]}", "default", *rare[1:]) in there, rare
