"""A thread is drained out of `RedisSaver` whole, or not at all, and nobody writes to it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from redis.asyncio import Redis

from delta_graph import CHANNELS, CONFIG, play
from glasspoint import RedisSaver
from glasspoint.errors import GlasspointError, ThreadMovedError
from glasspoint.l2.target import Target
from glasspoint.model.codec import PendingWrites, StoredCheckpoint
from redis_savers import USES, listed, opened, two_namespaces
from redis_tier import SIGNED
from states import config_of, exact, numbered_id, open_upstream
from steps import Thread, keys_in, until

LONG = 60.0
Item = StoredCheckpoint | PendingWrites


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=[{}, SIGNED], ids=["alone", "of a target, signed"])
async def saver(request: pytest.FixtureRequest, redis: Redis) -> AsyncIterator[RedisSaver]:
    async with opened(redis, **request.param) as opened_saver:
        yield opened_saver


@pytest.fixture
async def other(redis: Redis) -> AsyncIterator[RedisSaver]:
    """Another store: another prefix in the same Redis."""
    async with opened(redis, key_prefix="other") as opened_saver:
        yield opened_saver


async def exported(saver: RedisSaver, thread_id: str) -> list[Item]:
    return [each async for each in saver.export_thread(thread_id)]


async def sealed(saver: RedisSaver, thread_id: str, lease_seconds: float = LONG) -> str:
    token = await saver.seal_thread(thread_id, lease_seconds=lease_seconds)
    assert token
    return token


async def all_of(saver: Any, thread_id: str) -> Any:
    """Everything that a saver shows of a thread."""
    everywhere = {"configurable": {"thread_id": thread_id}}
    found = [each async for each in saver.alist(everywhere)]
    return exact(sorted(found, key=lambda each: sorted(each.config["configurable"].items())))


async def store_in_postgres(connection: psycopg.AsyncConnection[Any], item: Item) -> None:
    """What draining into PostgreSQL comes down to: nothing but what was exported goes into the tables."""
    place = (*item.scope, item.checkpoint_id)
    if isinstance(item, StoredCheckpoint):
        await connection.execute(
            "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, "
            "checkpoint, metadata) VALUES (%s, %s, %s, %s, %s::jsonb, %s::jsonb)",
            (*place, item.parent_id, item.document_json, item.metadata_json),
        )
        for channel, (version, value) in item.values.items():
            await connection.execute(
                "INSERT INTO checkpoint_blobs VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (*item.scope, channel, version, value.type, value.data),
            )
    for w in item.writes:
        await connection.execute(
            "INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, "
            "type, blob, task_path) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (*place, w.task_id, w.idx, w.channel, w.value.type, w.value.data, w.task_path),
        )


# ------------------------------------------------------------------ sealed, moved, and neither


@pytest.mark.parametrize("use", [*USES, "import_checkpoints", "adelete_thread", "copy onto it"])
async def test_nothing_can_be_done_with_a_sealed_or_a_moved_thread(
    use: str, saver: RedisSaver, redis: Redis
) -> None:
    root, _ = await two_namespaces(saver)
    item = (await exported(saver, root.thread_id))[0]
    await Thread("source").put(saver)
    uses = {
        **USES,
        "import_checkpoints": lambda saver, _: saver.import_checkpoints([item]),
        "adelete_thread": lambda saver, thread: saver.adelete_thread(thread.thread_id),
        "copy onto it": lambda saver, thread: saver.acopy_thread("source", thread.thread_id),
    }
    token = await sealed(saver, root.thread_id)
    with pytest.raises(ThreadMovedError, match="is being drained") as caught:
        await uses[use](saver, root)
    assert caught.value.moved is False
    assert isinstance(caught.value, GlasspointError)
    assert isinstance(caught.value, ConnectionError)
    assert len(await exported(saver, root.thread_id)) == 4, "the drain itself goes on"
    assert await saver.retire_thread(root.thread_id, token, marker_seconds=LONG)
    if use in ("alist of all", "adelete_for_runs"):
        await uses[use](saver, root)  # there is nothing of it here that these could find
        return
    with pytest.raises(ThreadMovedError, match="stands in another store now") as caught:
        await uses[use](saver, root)
    assert caught.value.moved is True
    with pytest.raises(ThreadMovedError):
        await exported(saver, root.thread_id)
    assert not [
        key for key in await keys_in(redis, "*{*") if b"source" not in key and not key.endswith(b":seal")
    ]


async def test_other_threads_go_on(saver: RedisSaver) -> None:
    await two_namespaces(saver)
    other = Thread("other")
    await sealed(saver, "대화")
    await other.put(saver)
    assert await other.turn(saver) == 1


async def test_a_seal_that_expires_leaves_the_thread_as_it_was(saver: RedisSaver) -> None:
    root, _ = await two_namespaces(saver)
    before = await all_of(saver, root.thread_id)
    token = await sealed(saver, root.thread_id)

    async def works() -> bool:
        try:
            return await root.turn(saver) == 2
        except ThreadMovedError:
            return False

    assert not await works()
    assert await saver.seal_thread(root.thread_id, lease_seconds=0.05, token=token) == token
    await until(works)
    assert not await saver.retire_thread(root.thread_id, token, marker_seconds=LONG)
    assert await all_of(saver, root.thread_id) == before
    again = await sealed(saver, root.thread_id)
    assert again != token
    assert not await saver.retire_thread(root.thread_id, token, marker_seconds=LONG)
    assert await saver.retire_thread(root.thread_id, again, marker_seconds=LONG)
    assert await saver.retire_thread(root.thread_id, again, marker_seconds=LONG), "it may be repeated"


async def test_one_seals_and_renews_until_it_has_expired(saver: RedisSaver, redis: Redis) -> None:
    root, _ = await two_namespaces(saver)
    name = root.thread_id
    token = await sealed(saver, name, lease_seconds=30)
    assert await saver.seal_thread(name, lease_seconds=LONG) is None, "another holds it"
    assert await saver.seal_thread(name, lease_seconds=LONG, token="foreign") is None
    assert await saver.seal_thread(name, lease_seconds=LONG, token=token.encode()) == token
    (seal,) = [key for key in await keys_in(redis) if key.endswith(b":seal")]
    assert await redis.pttl(seal) > 30_000
    await saver.seal_thread(name, lease_seconds=0.001, token=token)
    await until(lambda: _gone(redis, seal))
    await root.put(saver)
    assert await saver.seal_thread(name, lease_seconds=LONG, token=token) is None, (
        "somebody has written since: what was exported is not all"
    )
    token = await sealed(saver, name)
    assert await saver.retire_thread(name, token, marker_seconds=LONG)
    assert await saver.seal_thread(name, lease_seconds=LONG) is None, "it has moved"


async def _gone(redis: Redis, key: bytes) -> bool:
    return not await redis.exists(key)


async def test_the_mark_of_a_moved_thread_goes_and_the_name_is_free(saver: RedisSaver) -> None:
    root, _ = await two_namespaces(saver)
    token = await sealed(saver, root.thread_id)
    await saver.retire_thread(root.thread_id, token, marker_seconds=0.05)

    async def free() -> bool:
        try:
            return await root.turn(saver) is None
        except ThreadMovedError:
            return False

    await until(free)


async def test_a_moved_thread_need_not_be_here_even_if_its_drainer_dies(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of a target that must be here, and is not, is damaged."""
    target = Target.of("postgresql://host/database")
    async with opened(redis, target=target) as saver, opened(redis, target=target) as other:
        await Thread("a").put(saver)
        token = await sealed(saver, "a")
        run, died = saver._steps.run, list[str]()

        async def run_until_death(step: str, *args: Any) -> Any:
            assert not died, "it does nothing after this"
            answer = await run(step, *args)
            died.extend([step] if step == "retire" else [])
            return answer

        monkeypatch.setattr(saver._steps, "run", run_until_death)
        with suppress(AssertionError):
            await saver.retire_thread("a", token, marker_seconds=0.01)
        assert died == ["retire"]

        async def is_free() -> bool:
            try:
                return await other.aget_tuple(config_of("a")) is None
            except ThreadMovedError:
                return False

        await until(is_free)
        assert [each async for each in other.thread_ids()] == []


async def test_a_sealed_thread_lives_at_least_as_long_as_its_seal(redis: Redis) -> None:
    async with opened(redis, ttl=20) as saver:
        root, _ = await two_namespaces(saver)
        await sealed(saver, root.thread_id, lease_seconds=LONG)
        assert len(await exported(saver, root.thread_id)) == 4
        left = [await redis.pttl(key) for key in await redis.keys("*{*")]
        assert min(left) > (LONG - 5) * 1000


async def test_of_many_who_want_to_drain_one_gets_the_seal(saver: RedisSaver) -> None:
    await two_namespaces(saver)
    tokens = await asyncio.gather(*(saver.seal_thread("대화", lease_seconds=LONG) for _ in range(10)))
    assert len([token for token in tokens if token]) == 1


async def test_no_write_is_acknowledged_that_the_drain_does_not_take_along(
    redis: Redis, saver: RedisSaver, other: RedisSaver
) -> None:
    threads = [Thread("a") for _ in range(5)]
    acknowledged: set[int] = set()

    async def write(thread: Thread, start: int) -> None:
        thread.number = start
        try:
            while True:
                await thread.put(saver)
                acknowledged.add(thread.number)
        except ThreadMovedError:
            pass

    writers = [asyncio.create_task(write(thread, 10_000 * i)) for i, thread in enumerate(threads)]
    await until(lambda: len(acknowledged) > 50)
    token = await sealed(saver, "a")
    for item in await exported(saver, "a"):
        await other.import_checkpoints([item])
    assert await saver.retire_thread("a", token, marker_seconds=LONG)
    await asyncio.gather(*writers)
    found = {each.metadata["step"] for each in await listed(other, config_of("a"))}
    assert found == acknowledged


# ------------------------------------------------------------------ what is exported


async def test_what_is_imported_elsewhere_is_the_same(saver: RedisSaver, other: RedisSaver) -> None:
    await two_namespaces(saver)
    config = config_of("대화", "", numbered_id(1))
    await saver.aput_writes(config, [("a", 1), ("b", 2)], "task 2", "~b")
    await saver.aput_writes(config, [("a", 3)], "task 3", "~a")
    await saver.aput_writes(config, [("__interrupt__", 4), ("__resume__", 5)], "task 1", "~c")
    items = await exported(saver, "대화")
    for _ in range(2):  # it may be repeated
        for item in items:
            await other.import_checkpoints([item])
    assert await all_of(other, "대화") == await all_of(saver, "대화")
    assert list(map(exact_item, await exported(other, "대화"))) == list(map(exact_item, items))
    places = [(item.scope.checkpoint_ns, item.checkpoint_id) for item in items]
    assert places == sorted(places), "oldest first in each namespace"


def exact_item(item: Item) -> Any:
    return {name: exact(getattr(item, name)) for name in ("scope", "checkpoint_id", "writes")} | (
        {name: exact(getattr(item, name)) for name in ("parent_id", "document_json", "metadata_json")}
        | {"values": exact(item.values)}
        if isinstance(item, StoredCheckpoint)
        else {}
    )


async def test_writes_without_their_checkpoint_are_never_lost(saver: RedisSaver, other: RedisSaver) -> None:
    """Their checkpoint is in another tier, or yet to come."""
    thread = Thread("a")
    await thread.put(saver)
    for namespace, checkpoint_id in (("", numbered_id(2)), ("sub", "not there"), ("", "0")):
        await saver.aput_writes(config_of("a", namespace, checkpoint_id), [("x", 1), ("y", 2)], "task", "~p")
    await saver.aput_writes(config_of("writes only", "", "1"), [("x", 1)], "task")
    assert {each async for each in saver.thread_ids()} == {"a", "writes only"}
    items = [*await exported(saver, "a"), *await exported(saver, "writes only")]
    assert [type(item) for item in items] == [StoredCheckpoint, *[PendingWrites] * 4]
    for item in items:
        await other.import_checkpoints([item])
    assert list(
        map(exact_item, [*await exported(other, "a"), *await exported(other, "writes only")])
    ) == list(map(exact_item, items))
    await thread.put(other)
    found = await other.aget_tuple(thread.config)
    assert found is not None
    assert found.pending_writes == [("task", "x", 1), ("task", "y", 2)]
    await saver.acopy_thread("a", "copy")
    assert len(await exported(saver, "copy")) == 4


async def test_an_import_that_is_repeated_brings_what_came_since(
    saver: RedisSaver, other: RedisSaver
) -> None:
    """A drain was cut off before it retired the thread, which went on here: special writes replace."""
    thread = Thread("a")
    await thread.put(saver)
    for value in ("old", "new"):
        await saver.aput_writes(thread.newest, [("__resume__", value)], "task")
        await saver.aput_writes(thread.newest, [("messages", value)], "task")
        for item in await exported(saver, "a"):
            await other.import_checkpoints([item])
    stray = config_of("a", "", numbered_id(9))
    for value in ("old", "new"):
        await saver.aput_writes(stray, [("__resume__", value)], "task")
        for item in await exported(saver, "a"):
            await other.import_checkpoints([item])
    assert list(map(exact_item, await exported(other, "a"))) == list(
        map(exact_item, await exported(saver, "a"))
    )
    found = await other.aget_tuple(thread.config)
    assert found is not None
    assert found.pending_writes == [("task", "__resume__", "new"), ("task", "messages", "old")]


@pytest.mark.parametrize("limit", ["_IDS_A_PAGE", "_LOADED_AT_ONCE", "_BYTES_AT_ONCE", "_STRAYS_AT_ONCE"])
async def test_a_large_thread_is_exported_in_parts(
    limit: str, saver: RedisSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await two_namespaces(saver)
    for number in range(5):
        await saver.aput_writes(config_of(root.thread_id, "", f"stray {number}"), [("x", 1)], "task")
    whole = list(map(exact_item, await exported(saver, root.thread_id)))
    tuples = await all_of(saver, root.thread_id)
    monkeypatch.setattr(f"glasspoint.history.in_redis.{limit}", 1)
    assert list(map(exact_item, await exported(saver, root.thread_id))) == whole
    assert await all_of(saver, root.thread_id) == tuples
    assert len(await listed(saver, root.config, filter={"step": 1})) == 1


async def test_a_large_value_and_many_channels_come_back(saver: RedisSaver, other: RedisSaver) -> None:
    thread = Thread("a")
    await thread.put(saver, large=["x" * 3_000_000], **{f"channel {i}": [i] for i in range(3_000)})
    await saver.aput_writes(thread.newest, [(f"channel {i}", i) for i in range(10_000)], "task")
    for item in await exported(saver, "a"):
        await other.import_checkpoints([item])
    found = await other.aget_tuple(thread.config)
    assert found is not None
    assert len(found.checkpoint["channel_values"]["large"][0]) == 3_000_000
    assert found.checkpoint["channel_values"]["channel 2999"] == [2999]
    assert found.pending_writes is not None
    assert [value for _, _, value in found.pending_writes] == list(range(10_000))
    await saver.acopy_thread("a", "copy")
    await thread.put(saver)
    await saver.aprune(["a"])
    assert await thread.turn(saver) == 2


async def test_postgresql_shows_a_drained_thread_as_it_was_here(saver: RedisSaver, database: str) -> None:
    """Delta channels, old formats and writes of no checkpoint, in the tables that upstream reads."""
    await play(saver)
    old = Thread("old format")
    for _ in range(3):
        config, checkpoint, metadata, versions = old.next_put(saver)
        old.newest = await saver.aput(config, {**checkpoint, "v": 1}, metadata, versions)
        await saver.aput_writes(
            old.newest, [("__pregel_tasks", old.number), ("__pregel_tasks", "b")], "t", "~b"
        )
        await saver.aput_writes(old.newest, [("__pregel_tasks", "first")], "z", "~a")
    await saver.aput_writes(config_of("old format", "", "none"), [("x", 1)], "task")
    # Upstream looks for them in all namespaces.
    elsewhere = config_of("old format", "sub", numbered_id(2))
    await saver.aput_writes(elsewhere, [("__pregel_tasks", "elsewhere")], "t", "~c")
    async with (
        open_upstream(database) as upstream,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
    ):
        for thread_id in ("대화", "old format"):
            for item in await exported(saver, thread_id):
                await store_in_postgres(connection, item)
            assert await all_of(saver, thread_id) == await all_of(upstream, thread_id)
        for config in (CONFIG, *(each.config for each in await listed(saver, CONFIG))):
            ours = await saver.aget_delta_channel_history(config=config, channels=CHANNELS)
            assert exact(ours) == exact(
                await upstream.aget_delta_channel_history(config=config, channels=CHANNELS)
            )
        for saver_ in (saver, upstream):
            nulls = Thread("nulls")
            for value in ([1], None, ...):
                config, checkpoint, metadata, versions = nulls.next_put(saver_)
                versions = {**versions, "log": f"{nulls.number:032}.1"}
                checkpoint["channel_versions"] = versions
                if value is not ...:
                    checkpoint["channel_values"]["log"] = value
                nulls.newest = await saver_.aput(config, checkpoint, metadata, versions)
        ours, theirs = [
            await each.aget_delta_channel_history(config=config_of("nulls"), channels=["log"])
            for each in (saver, upstream)
        ]
        assert ours == theirs == {"log": {"writes": [], "seed": [1]}}, "a null is no value"  # type: ignore[comparison-overlap]
        completed = await saver.aget_tuple(old.config)
        assert completed is not None
        assert completed.checkpoint["channel_values"]["__pregel_tasks"] == ["first", 2, "b", "elsewhere"]


async def test_it_is_known_in_the_next_lower_tier_that_a_checkpoint_was_brought_from_the_cache(
    saver: RedisSaver, other: RedisSaver
) -> None:
    thread = Thread("a")
    await thread.put(saver)
    [item] = await exported(saver, "a")
    assert isinstance(item, StoredCheckpoint)
    assert not item.is_brought
    await other.import_checkpoints([replace(item, is_brought=True)])
    assert [getattr(each, "is_brought", None) for each in await exported(other, "a")] == [True]
    assert await all_of(other, "a") == await all_of(saver, "a")
