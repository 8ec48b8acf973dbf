"""What the tests of the saver share: opening savers, naming checkpoints, comparing and counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from glasspoint import CachedPostgresSaver, create_telemetry


async def warmed_up(saver: CachedPostgresSaver) -> None:
    """Wait for the warm-ups of the reads that were answered."""
    await saver._lifetime.followed_up()


class SettledSaver(CachedPostgresSaver):
    """Answers a read when its warm-up is done, so that the next read is a hit in each run of a test."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        try:
            return await super().aget_tuple(config)
        finally:
            await warmed_up(self)


@asynccontextmanager
async def open_saver(
    postgres_url: str,
    redis_url: str,
    saver_class: type[CachedPostgresSaver] = SettledSaver,
    **options: Any,
) -> AsyncIterator[CachedPostgresSaver]:
    """A saver with its tables made, reporting to a registry of its own unless told otherwise."""
    options.setdefault("telemetry", create_telemetry(registry=CollectorRegistry()))
    options.setdefault("l1_timeout_seconds", 5.0)  # a machine that is busy for a moment is no outage of Redis
    options.setdefault("audit_ratio", 0.0)  # by chance, now and then, would make tests that nobody can repeat
    saver = await saver_class.create(postgres_url, redis_url, **options)
    try:
        yield saver
    finally:
        await saver.close()


def make_pool(postgres_url: str, size: int) -> AsyncConnectionPool[AsyncConnection[DictRow]]:
    """A pool as `AsyncPostgresSaver` wants it, not open yet."""
    return AsyncConnectionPool(
        postgres_url,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        min_size=1,
        max_size=size,
        open=False,
    )


@asynccontextmanager
async def open_upstream(postgres_url: str, **options: Any) -> AsyncIterator[AsyncPostgresSaver]:
    """LangGraph's own saver, with its tables made."""
    async with make_pool(postgres_url, size=1) as pool:
        saver = AsyncPostgresSaver(pool, **options)
        await saver.setup()
        yield saver


def config_of(thread_id: str, checkpoint_ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def numbered_id(number: int) -> str:
    """The id of the `number`th checkpoint, in LangGraph's form: UUIDs of version 6 sort by age."""
    return f"1f000000-0000-6000-8000-{number:012x}"


def exact(value: Any) -> Any:
    """A form of a value whose equality is strict: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    match value:
        case dict():
            return type(value), sorted((repr(k), exact(v)) for k, v in value.items())
        case list() | tuple():
            return type(value), [exact(v) for v in value]
        case set() | frozenset():
            return type(value), sorted(map(repr, value))
        case BaseModel():
            return type(value), exact(value.__dict__)
    return type(value), repr(value)


def counts(registry: CollectorRegistry, name: str, label: str) -> Counter[str]:
    """What a counter has counted, by one of its labels; zeros are left out."""
    totals = Counter[str]()
    for sample in samples_of(registry, name):
        if sample.value:
            totals[sample.labels[label]] += int(sample.value)
    return totals


def value_of(registry: CollectorRegistry, name: str, labels: dict[str, str]) -> float | None:
    """What a scrape would say of a series; `None` if it has no such series."""
    return next((each.value for each in samples_of(registry, name) if each.labels == labels), None)


def samples_of(registry: CollectorRegistry, name: str) -> list[Sample]:
    """The series of a name. Only their family is made: tests that wait ask for it hundreds of times, and a
    whole scrape takes milliseconds."""
    # A collector without names counts the calls that are waiting to be counted; it is the first.
    registered = list(registry._collector_to_names.items())
    collectors = [each for each, names in registered if not names or name in names]
    families = [family for collector in collectors for family in collector.collect()]
    return [sample for family in families for sample in family.samples if sample.name == name]
