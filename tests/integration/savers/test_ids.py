"""What a caller may name and ask for is the same in every saver, and is checked before anything is stored."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from prometheus_client import CollectorRegistry

from glasspoint import MemorySaver, RedisSaver, create_telemetry
from glasspoint.errors import ConfigurationError, GlasspointError, InvalidConfigError
from states import config_of, numbered_id, open_saver, open_upstream
from steps import Thread

SAVERS = ("cached", "redis", "memory")
ROW_BYTES = 2704

Saver = BaseCheckpointSaver[str]


@pytest.fixture(params=SAVERS)
async def saver(request: pytest.FixtureRequest, database: str, redis_url: str) -> AsyncIterator[Saver]:
    async with AsyncExitStack() as opened:
        telemetry = create_telemetry(registry=CollectorRegistry())
        if request.param == "cached":
            yield await opened.enter_async_context(open_saver(database, redis_url))
        elif request.param == "redis":
            yield await opened.enter_async_context(
                RedisSaver.from_conn_string(redis_url, timeout_seconds=10.0, telemetry=telemetry)
            )
        else:
            yield await opened.enter_async_context(MemorySaver(telemetry=telemetry))


async def listed(saver: Saver, config: Any, **options: Any) -> list[tuple[str, str, str]]:
    return [
        (
            each.config["configurable"]["thread_id"],
            each.config["configurable"]["checkpoint_ns"],
            each.checkpoint["id"],
        )
        async for each in saver.alist(config, **options)
    ]


def incompressible(length: int) -> str:
    dice = random.Random(length)
    return "".join(dice.choices("".join(map(chr, range(33, 127))), k=length))


# ------------------------------------------------------------------ how long they may be


async def test_an_id_that_postgres_could_not_index_is_refused_by_every_saver(saver: Saver) -> None:
    calls = [
        lambda config: saver.aget_tuple(config),
        lambda config: saver.aput(config, *Thread("x").next_put(saver)[1:]),
        lambda config: saver.aput_writes(config, [("messages", 1)], "task"),
        lambda config: listed(saver, config),
        lambda config: saver.adelete_thread(config["configurable"]["thread_id"]),
        lambda config: saver.aprune([config["configurable"]["thread_id"]]),
    ]
    for call in calls:
        with pytest.raises(InvalidConfigError, match="has 2501 bytes, and may have 2500"):
            await call(config_of("a" * 2501, "", numbered_id(1)))
    assert await listed(saver, None) == []


async def test_names_that_postgres_could_not_index_are_refused_before_anything_is_stored(
    saver: Saver,
) -> None:
    thread = Thread("a" * 1500, "b" * 900)
    await thread.put(saver)
    before = await listed(saver, None)
    with pytest.raises(InvalidConfigError, match=r"names of this write are too long.*Nothing was stored"):
        await thread.put(saver, **{"c" * 300: ["value"]})
    with pytest.raises(InvalidConfigError, match=r"names of this write are too long.*Nothing was stored"):
        await thread.put_writes(saver, "x", task_id="t" * 300)
    _, checkpoint, metadata, versions = thread.next_put(saver)
    with pytest.raises(InvalidConfigError, match="names of this write are too long"):
        await saver.aput(thread.config, {**checkpoint, "id": "i" * 400}, metadata, versions)
    found = await saver.aget_tuple(thread.config)
    assert found is not None
    assert found.pending_writes == []
    assert await listed(saver, None) == before


async def test_what_is_not_refused_can_be_stored(saver: Saver) -> None:
    """Texts that cannot be compressed, as long as they may be: PostgreSQL takes them."""
    thread = Thread(incompressible(1300), incompressible(1200))
    await thread.put(saver)
    await thread.put_writes(saver, "x", task_id=str(uuid4()))
    await saver.aput_writes(thread.newest, [("messages", "y")], incompressible(100))
    assert await thread.turn(saver) == 1
    longest = ROW_BYTES - 2500
    for length in range(longest - 80, longest):
        try:
            await thread.put(saver, **{incompressible(length): ["value"]})
        except InvalidConfigError:
            thread.number -= 1
            break
    assert await thread.turn(saver) == thread.number
    short = Thread("short")
    await short.put(saver, **{incompressible(2600): ["value"]})
    assert await short.turn(saver) == 1


async def test_a_copy_whose_name_is_too_long_is_refused(saver: Saver) -> None:
    source = Thread("source", incompressible(1500))
    await source.put(saver)
    with pytest.raises(InvalidConfigError, match=r"may have 2500|too long"):
        await saver.acopy_thread("source", incompressible(1501))
    assert len(await listed(saver, None)) == 1


# ------------------------------------------------------------------ runs


async def test_runs_may_be_named_by_uuids(saver: Saver) -> None:
    run, other = uuid4(), uuid4()
    for thread_id, run_id in (("a", run), ("b", other)):
        config, checkpoint, metadata, versions = Thread(thread_id).next_put(saver)
        await saver.aput(config, checkpoint, {**metadata, "run_id": str(run_id)}, versions)
    runs: Any = [run]
    await saver.adelete_for_runs(runs)
    assert [thread_id for thread_id, _, _ in await listed(saver, None)] == ["b"]


@pytest.mark.parametrize("run_id", [None, 7, b"7", "a\0", "\ud800", [7]], ids=repr)
async def test_what_is_no_run_is_refused_by_every_saver(saver: Saver, run_id: Any) -> None:
    with pytest.raises(InvalidConfigError, match="run_id"):
        await saver.adelete_for_runs([run_id])


@pytest.mark.parametrize("run_ids", ["one", b"one", None, 7, UUID(int=7)], ids=repr)
async def test_a_single_run_is_no_list_of_runs(saver: Saver, run_ids: Any) -> None:
    with pytest.raises(ConfigurationError, match="run_ids is a single") as caught:
        await saver.adelete_for_runs(run_ids)
    assert isinstance(caught.value, TypeError)


# ------------------------------------------------------------------ listing

UNUSABLE_FILTERS = {
    "a UUID": ({"run_id": UUID(int=7)}, "cannot be written as JSON"),
    "bytes": ({"user": b"7"}, "cannot be written as JSON"),
    "a set": ({"user": {1}}, "cannot be written as JSON"),
    "a tuple as a key": ({("a", 1): 1}, "cannot be written as JSON"),
    "not a number": ({"score": float("nan")}, "cannot be written as JSON"),
    "NUL": ({"user": "a\0"}, "NUL"),
    "NUL in a key": ({"a\0": 1}, "NUL"),
    "NUL after a backslash": ({"user": "\\\0"}, "NUL"),
    "half a character": ({"user": "\ud800"}, "lone surrogate"),
    "a list": ([1], "pass a dict"),
}


@pytest.mark.parametrize("what", UNUSABLE_FILTERS)
async def test_a_filter_that_no_metadata_could_hold_is_one_error_everywhere(saver: Saver, what: str) -> None:
    given, says = UNUSABLE_FILTERS[what]
    with pytest.raises(ConfigurationError, match=f"filter .*{says}") as caught:
        await listed(saver, None, filter=given)
    assert isinstance(caught.value, GlasspointError)


async def test_a_negative_limit_is_one_error_everywhere(saver: Saver) -> None:
    with pytest.raises(ConfigurationError, match="limit is -1"):
        await listed(saver, None, limit=-1)


async def test_a_filter_with_a_backslash_before_u0000_is_plain_text(saver: Saver) -> None:
    config, checkpoint, metadata, versions = Thread("a").next_put(saver)
    await saver.aput(config, checkpoint, {**metadata, "user": "\\u0000"}, versions)  # type: ignore[typeddict-unknown-key]
    assert len(await listed(saver, None, filter={"user": "\\u0000"})) == 1
    assert await listed(saver, None, filter={"user": "\\u0001"}) == []


async def test_a_listing_means_what_upstream_means(saver: Saver, database: str) -> None:
    """`{}` is all threads, and a namespace of `None` is all of them."""
    asked: list[Any] = [
        None,
        {},
        {"configurable": {"thread_id": "a"}},
        {"configurable": {"thread_id": "a", "checkpoint_ns": None}},
        {"configurable": {"thread_id": "a", "checkpoint_ns": ""}},
        {"configurable": {"thread_id": "a", "checkpoint_ns": "sub"}},
        {"configurable": {"thread_id": "a", "checkpoint_ns": None, "checkpoint_id": numbered_id(1)}},
    ]
    threads = [Thread("a"), Thread("a", "sub"), Thread("b")]
    async with open_upstream(database) as upstream:
        for thread in threads:
            await thread.put(saver)
            await thread.put(saver)
        if not await listed(upstream, None):
            for thread in (
                Thread(each.thread_id, each.config["configurable"]["checkpoint_ns"]) for each in threads
            ):
                await thread.put(upstream)
                await thread.put(upstream)
        for config in asked:
            assert sorted(await listed(saver, config)) == sorted(await listed(upstream, config)), config
    assert len(await listed(saver, {})) == 6
