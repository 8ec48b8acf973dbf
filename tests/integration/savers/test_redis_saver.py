"""What `RedisSaver` promises: a thread lives and expires as a whole, a write is done or it is an error that
says so, and delta channels outlive pruning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from bad_configs import CALLS, CONFIGS
from delta_graph import CHANNELS, CONFIG, extend, make_graph, play
from glasspoint import RedisSaver, create_redis_checkpointer, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import (
    ConfigurationError,
    DeltaChainError,
    GlasspointError,
    InvalidConfigError,
    RedisRefusedError,
    RedisUnavailableError,
    SaverClosedError,
    SerializationError,
    ThreadDamagedError,
    ThreadExistsError,
)
from glasspoint.l2.target import Target
from glasspoint.model.codec import StoredCheckpoint
from passwords import HALVES, PASSWORD, shown
from recorder import CANARY, Recorder, attributes
from redis_savers import USES, listed, opened, two_namespaces
from states import config_of, counts, exact, numbered_id
from steps import Thread, keys_in, until

# How many keys a thread has that holds checkpoints, values and writes.
KEYS = 6
# All keys but the list of threads.
OF_THREADS = "*{*"
TTL = 60.0


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def saver(redis_url: str) -> AsyncIterator[RedisSaver]:
    async with opened(redis_url, ttl=TTL) as opened_saver:
        yield opened_saver


async def lifetimes(redis: Redis) -> list[int]:
    """Milliseconds that each key of a thread has to live, all looked at in one instant; -1 for ever."""
    script = """
        local found = {}
        for _, key in ipairs(redis.call('KEYS', '*{*')) do found[#found + 1] = redis.call('PTTL', key) end
        return found
    """
    return await redis.eval(script, 0)


# ------------------------------------------------------------------ the life of a thread


@pytest.mark.parametrize("use", USES)
async def test_any_use_of_one_namespace_prolongs_the_whole_thread(
    use: str, saver: RedisSaver, redis: Redis
) -> None:
    root, _ = await two_namespaces(saver)
    for key in await redis.keys(OF_THREADS):
        await redis.pexpire(key, 5_000)
    await USES[use](saver, root)
    left = await lifetimes(redis)
    assert len(left) == (2 * KEYS if use == "acopy_thread" else KEYS)
    assert min(left) > (TTL - 5) * 1000, "a part of the thread will expire before the rest"
    assert max(left) - min(left) <= (1 if use != "acopy_thread" else 1000)


async def test_a_thread_expires_as_a_whole(redis_url: str, redis: Redis) -> None:
    async with opened(redis_url, ttl=TTL) as patient, opened(redis_url, ttl=0.15) as saver:
        root, _ = await two_namespaces(patient)
        assert len(await lifetimes(redis)) == KEYS
        assert await root.turn(saver) == 2
        seen = set()

        async def gone() -> bool:
            left = await lifetimes(redis)
            seen.add(len(left))
            return not left

        await until(gone)
        assert seen <= {KEYS, 0}
        assert await root.turn(saver) is None
        assert [each async for each in saver.thread_ids()] == []


async def test_without_a_ttl_nothing_expires_and_with_one_nothing_stays(redis_url: str, redis: Redis) -> None:
    async with opened(redis_url, ttl=None) as eternal, opened(redis_url, ttl=TTL) as mortal:
        root, _ = await two_namespaces(eternal)
        await eternal.acopy_thread(root.thread_id, "copy")
        assert set(await lifetimes(redis)) == {-1}
        await root.turn(mortal)
        await mortal.aprune(["copy"])
        assert -1 not in await lifetimes(redis)
        await root.turn(eternal)
        await eternal.aget_tuple(config_of("copy"))
        assert set(await lifetimes(redis)) == {-1}


async def test_what_is_deleted_leaves_nothing_behind(saver: RedisSaver, redis: Redis) -> None:
    root, _ = await two_namespaces(saver)
    await saver.adelete_thread(root.thread_id)
    assert await redis.keys(OF_THREADS) == []
    root, _ = await two_namespaces(saver)
    await saver.aprune([root.thread_id], strategy="delete")
    assert await redis.keys(OF_THREADS) == []
    config, checkpoint, metadata, versions = Thread("a").next_put(saver)
    await saver.aput(config, checkpoint, {**metadata, "run_id": "run"}, versions)
    await saver.adelete_for_runs(["run"])
    assert await redis.keys(OF_THREADS) == []


async def test_values_go_with_the_last_checkpoint_that_refers_to_them(
    saver: RedisSaver, redis: Redis
) -> None:
    thread = Thread("a")
    await thread.put(saver)
    shared = thread.newest
    _, checkpoint, metadata, _ = thread.next_put(saver)
    first = await saver.aget_tuple(shared)
    assert first is not None
    checkpoint["channel_versions"] = dict(first.checkpoint["channel_versions"])
    await saver.aput(shared, checkpoint, metadata, {})  # shows the values of the first one
    blobs = next(key for key in await keys_in(redis) if key.endswith(b":blobs"))
    assert await redis.hlen(blobs) == 1
    await saver.aprune(["a"])
    newest = await saver.aget_tuple(thread.config)
    assert newest is not None
    assert newest.checkpoint["channel_values"]["messages"] == ["message 1"]
    assert newest.parent_config is None
    await thread.put(saver)
    await saver.aprune(["a"])
    assert await redis.hlen(blobs) == 1
    assert await thread.turn(saver) == 3


@pytest.mark.parametrize("lost", range(KEYS))
async def test_a_thread_that_redis_has_evicted_in_part_is_never_read(
    lost: int, saver: RedisSaver, redis: Redis
) -> None:
    root, sub = await two_namespaces(saver)
    await redis.delete(sorted(await redis.keys(OF_THREADS))[lost])
    for call in (
        root.turn(saver),
        sub.turn(saver),
        root.put(saver),
        listed(saver, root.config),
        saver.aprune([root.thread_id]),
        saver.acopy_thread(root.thread_id, "copy"),
    ):
        with pytest.raises(ThreadDamagedError, match="evicted a part of the thread '"):
            await call
    await saver.adelete_thread(root.thread_id)
    assert await redis.keys(OF_THREADS) == []
    await two_namespaces(saver)


async def test_writes_alone_are_not_read_when_their_count_is_lost(saver: RedisSaver, redis: Redis) -> None:
    await saver.aput_writes(config_of("a", "", "1"), [("x", 1)], "task")
    (meta,) = [key for key in await keys_in(redis) if key.endswith(b":meta")]
    await redis.delete(meta)
    with pytest.raises(ThreadDamagedError):
        await saver.aget_tuple(config_of("a"))


async def test_only_writes_to_special_channels_alone_replace_what_is_there(saver: RedisSaver) -> None:
    thread = Thread("a")
    await thread.put(saver)
    for turn in ("first", "second"):
        await saver.aput_writes(thread.newest, [("messages", turn), ("__interrupt__", turn)], "mixed")
        await saver.aput_writes(thread.newest, [("__interrupt__", turn), ("__resume__", turn)], "special")
    found = await saver.aget_tuple(thread.config)
    assert found is not None
    assert found.pending_writes is not None
    assert sorted(found.pending_writes) == [
        ("mixed", "__interrupt__", "first"),
        ("mixed", "messages", "first"),
        ("special", "__interrupt__", "second"),
        ("special", "__resume__", "second"),
    ]


async def test_a_checkpoint_that_is_not_older_than_another_is_not_listed_before_it(saver: RedisSaver) -> None:
    thread = Thread("a")
    await thread.put(saver)
    for before, there in ((1, False), (2, True)):
        found = await listed(saver, thread.newest, before=config_of("a", "", numbered_id(before)))
        assert bool(found) is there


# ------------------------------------------------------------------ pruning


async def test_a_call_goes_with_all_that_it_wrote(saver: RedisSaver, redis: Redis) -> None:
    root, call = Thread("a"), Thread("a", "call:1")
    await root.put(saver)
    config, checkpoint, metadata, versions = call.next_put(saver)
    metadata["parents"] = {"": root.newest["configurable"]["checkpoint_id"]}
    call.newest = await saver.aput(config, checkpoint, metadata, versions)
    await saver.aput(call.newest, checkpoint, metadata, {**versions, "messages": "a value of no checkpoint"})
    await saver.aput_writes(config_of("a", "call:1", "never put"), [("x", 1)], "task")
    await saver.aprune(["a"])
    assert await call.turn(saver) == 1, "the root checkpoint that it started from is kept"
    await root.put(saver)
    await saver.aprune(["a"])
    assert await saver.aget_tuple(call.config) is None
    assert [type(each) async for each in saver.export_thread("a")] == [StoredCheckpoint]
    (blobs,) = [key for key in await keys_in(redis) if key.endswith(b":blobs")]
    assert await redis.hlen(blobs) == 1


async def test_an_old_format_is_completed_after_pruning_as_before(saver: RedisSaver) -> None:
    thread = Thread("a")
    for _ in range(3):
        config, checkpoint, metadata, versions = thread.next_put(saver)
        thread.newest = await saver.aput(config, {**checkpoint, "v": 1}, metadata, versions)
        await saver.aput_writes(thread.newest, [("__pregel_tasks", thread.number)], "task")
    before = await saver.aget_tuple(thread.config)
    await saver.aprune(["a"])
    assert exact(await saver.aget_tuple(thread.config)) == exact(before)
    assert before is not None
    assert before.checkpoint["channel_values"]["__pregel_tasks"] == [2]
    assert len(await listed(saver, thread.config)) == 2


async def test_pruning_what_is_pruned_prolongs_the_thread(saver: RedisSaver, redis: Redis) -> None:
    await Thread("a").put(saver)
    for key in await redis.keys(OF_THREADS):
        await redis.pexpire(key, 5_000)
    await saver.aprune(["a"])
    assert min(await lifetimes(redis)) > 5_000


# ------------------------------------------------------------------ at the same time


async def test_many_writers_of_one_thread_lose_nothing(redis_url: str) -> None:
    async with opened(redis_url) as one, opened(redis_url) as two:
        threads = [Thread("a", "sub" * (number % 2)) for number in range(20)]
        for number, thread in enumerate(threads):
            thread.number = 10 * number

        async def early(thread: Thread, saver: RedisSaver) -> None:
            for _ in range(5):
                config = config_of("a", thread.config["configurable"]["checkpoint_ns"])
                config["configurable"]["checkpoint_id"] = numbered_id(thread.number + 1)
                await asyncio.gather(saver.aput_writes(config, [("x", 1)], "task"), thread.put(saver))

        await asyncio.gather(*(early(thread, (one, two)[i % 3 == 0]) for i, thread in enumerate(threads)))
        for namespace in ("", "sub"):
            found = await listed(one, config_of("a", namespace))
            assert len(found) == 50
            assert all(each.pending_writes == [("task", "x", 1)] for each in found)


async def test_pruning_while_others_write_never_shows_a_hole(redis_url: str) -> None:
    async with opened(redis_url) as writer, opened(redis_url) as pruner:
        thread = Thread("a")
        await thread.put(writer)
        done = asyncio.Event()

        async def prune() -> None:
            while not done.is_set():
                await pruner.aprune(["a"])

        pruning = asyncio.create_task(prune())
        for _ in range(100):
            await thread.put(writer)
            assert await thread.turn(writer) == thread.number
        done.set()
        await pruning
        await pruner.aprune(["a"])
        assert len(await listed(writer, thread.config)) == 1


async def test_a_copy_is_seen_as_a_whole_or_not_at_all(redis_url: str) -> None:
    async with opened(redis_url) as saver, opened(redis_url) as reader:
        root, sub = await two_namespaces(saver)
        everywhere: Any = {"configurable": {"thread_id": "copy"}}
        copying = asyncio.create_task(saver.acopy_thread(root.thread_id, "copy"))
        seen = set()
        while not copying.done():
            seen.add(len(await listed(reader, everywhere)))
        await copying
        assert seen <= {0, 4}
        assert 0 in seen
        assert len(await listed(reader, everywhere)) == 4
        for each in (root, sub):
            namespace = each.config["configurable"]["checkpoint_ns"]
            ours = await saver.aget_tuple(each.config)
            copied = await saver.aget_tuple(config_of("copy", namespace))
            assert ours is not None
            assert copied is not None
            assert exact(copied[1:3]) == exact(ours[1:3])
            assert copied.pending_writes == ours.pending_writes
        with pytest.raises(ThreadExistsError, match="has data already") as caught:
            await saver.acopy_thread(root.thread_id, "copy")
        assert isinstance(caught.value, ValueError)
        await saver.acopy_thread("no such thread", "nothing")
        assert await listed(saver, {"configurable": {"thread_id": "nothing"}}) == []


async def test_a_thread_that_is_pruned_while_it_is_copied_is_copied_anew(
    saver: RedisSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    for _ in range(3):
        await thread.put(saver)
    pruned: list[Any] = []
    export = saver._history.export

    async def export_and_prune(*args: Any, **options: Any) -> AsyncIterator[Any]:
        async for item in export(*args, **options):
            yield item
            if not pruned:
                await saver.aprune(["a"])
                pruned.append("a")

    monkeypatch.setattr("glasspoint.history.in_redis._LOADED_AT_ONCE", 1)
    monkeypatch.setattr(saver._history, "export", export_and_prune)
    await saver.acopy_thread("a", "copy")
    copied = await listed(saver, config_of("copy"))
    assert [each.metadata["step"] for each in copied] == [3], "one state of the source, not two mixed"


@pytest.mark.parametrize(
    "options", [{}, {"target": Target("db", "5432", "app")}], ids=["alone", "of a target"]
)
async def test_a_copy_is_done_also_if_its_last_step_is_repeated(
    options: dict[str, Any], redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the first attempt was lost. And the list of threads is a few milliseconds old."""
    monkeypatch.setattr("glasspoint.history.in_redis.HEARD_SECONDS", 0.0)
    async with opened(redis_url, **options) as saver:
        root, _ = await two_namespaces(saver)
        run = saver._steps.run

        async def repeated(step: str, scope: Any, keys: Any, *args: Any) -> list[Any]:
            if step == "adopt" and options:
                seconds, microseconds = await redis.time()
                since = seconds * 1000 + microseconds // 1000 - int(args[1][:1], 16) % 6
                await redis.zadd(keys[-1], {"!since": -since})
            result = await run(step, scope, keys, *args)
            return await run(step, scope, keys, *args) if step == "adopt" and args[1][-1] < "8" else result

        monkeypatch.setattr(saver._steps, "run", repeated)
        for number in range(40):
            await saver.acopy_thread(root.thread_id, f"copy {number}")
            assert len(await listed(saver, {"configurable": {"thread_id": f"copy {number}"}})) == 4


async def test_a_copy_of_which_something_is_lost_is_made_anew(
    saver: RedisSaver, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await two_namespaces(saver)
    lost: list[Any] = []
    adopt = saver._history.adopt

    async def lose_and_adopt(*args: Any) -> Any:
        if not lost:
            lost.extend([key for key in await keys_in(redis) if b":copy:" in key and key.endswith(b":ids")])
            await redis.delete(*lost)
        return await adopt(*args)

    monkeypatch.setattr(saver._history, "adopt", lose_and_adopt)
    await saver.acopy_thread(root.thread_id, "copy")
    assert lost
    assert len(await listed(saver, {"configurable": {"thread_id": "copy"}})) == 4


# ------------------------------------------------------------------ when Redis fails


async def test_scripts_that_redis_has_forgotten_are_sent_again(saver: RedisSaver, redis: Redis) -> None:
    root, _ = await two_namespaces(saver)
    for use in USES.values():
        await redis.script_flush()
        await use(saver, root)
    await redis.script_flush()
    await saver.adelete_thread(root.thread_id)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_redis_that_does_not_answer_is_an_error_in_time(how: str, own_redis: EmbeddedRedis) -> None:
    async with opened(own_redis.url) as patient, opened(own_redis.url, timeout_seconds=0.2) as saver:
        root, _ = await two_namespaces(patient)
        own_redis.kill() if how == "killed" else own_redis.freeze()
        said = "Redis did not answer" if how == "killed" else r"Redis did not answer within 0\.2 s"
        for name, use in {
            **USES,
            "ping": lambda saver, _: saver.ping(),
            "thread_ids": lambda saver, _: anext(saver.thread_ids()),
        }.items():
            started = monotonic()
            with pytest.raises(RedisUnavailableError, match=said) as caught:
                await use(saver, root)
            assert ("whether the write was done" in str(caught.value)) == (name in ("aput", "aput_writes"))
            assert isinstance(caught.value, ConnectionError)
            assert monotonic() - started < 10
        with pytest.raises(RedisUnavailableError):
            await create_redis_checkpointer(own_redis.url, timeout_seconds=0.2)
        if how == "frozen":
            own_redis.thaw()
            assert await until(lambda: root.turn(patient))


async def dump(redis: Redis) -> dict[bytes, bytes]:
    """Everything that Redis has of threads, but for when they expire."""
    found: dict[Any, Any] = {key: await redis.dump(key) async for key in redis.scan_iter(OF_THREADS)}
    return found


async def test_a_full_redis_refuses_writes_stores_nothing_and_can_be_read_pruned_and_drained(
    own_redis: EmbeddedRedis,
) -> None:
    async with Redis.from_url(own_redis.url) as redis, opened(own_redis.url) as saver:
        root, _ = await two_namespaces(saver)
        before = await dump(redis)
        await redis.config_set("maxmemory", 1)
        for call in (
            root.put(saver),
            saver.aput_writes(root.newest, [("messages", 1)], "another task"),
            saver.acopy_thread(root.thread_id, "copy"),
        ):
            with pytest.raises(RedisRefusedError, match="nothing was stored: it has no memory left"):
                await call
        assert await dump(redis) == before
        root.number -= 1
        assert await root.turn(saver) == 2
        await saver.aprune([root.thread_id])
        assert await root.turn(saver) == 2
        token = await saver.seal_thread(root.thread_id, lease_seconds=60)
        assert token
        assert len([each async for each in saver.export_thread(root.thread_id)]) == 2
        assert await saver.retire_thread(root.thread_id, token, marker_seconds=60)


async def test_a_value_that_is_larger_than_redis_takes_spoils_no_connection(own_redis: EmbeddedRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis, opened(own_redis.url) as saver:
        await redis.config_set("proto-max-bulk-len", 2**20)
        thread = Thread("a")
        await thread.put(saver)
        for size in (2**20, 2**20 + 2**16, 3 * 2**19, 20 * 2**20):
            with pytest.raises(RedisRefusedError, match="a value is larger than the proto-max-bulk-len"):
                await thread.put(saver, large=["x" * size])
            thread.number -= 1
            # Whichever connection comes next is one that nothing half-written was sent on.
            assert [await thread.turn(saver) for _ in range(3)] == [1, 1, 1]
            assert await thread.turn(saver) == 1


async def test_a_read_only_redis_refuses_writes_and_is_read(own_redis: EmbeddedRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis, opened(own_redis.url) as saver:
        root, _ = await two_namespaces(saver)
        await redis.replicaof("127.0.0.1", 1)
        with pytest.raises(RedisRefusedError, match="nothing was stored: it is a read-only replica"):
            await root.put(saver)
        with pytest.raises(RedisRefusedError, match="read-only replica"):
            await saver.adelete_thread(root.thread_id)
        root.number -= 1
        assert await root.turn(saver) == 2


async def test_a_user_who_may_not_is_told_so_without_the_password(own_redis: EmbeddedRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        await redis.execute_command(
            "ACL", "SETUSER", "bob", "on", f">{PASSWORD}", "~*", "+@all", "-@scripting"
        )
        url = own_redis.url.replace("redis://", f"redis://bob:{PASSWORD}@")
        with pytest.raises(RedisRefusedError, match=r"'bob' may not run EVALSHA, EVAL\.") as caught:
            await create_redis_checkpointer(url)
        assert not any(half in shown(caught.value) for half in HALVES)
        await redis.execute_command("ACL", "SETUSER", "bob", "+@scripting")
        async with opened(url) as saver:
            await redis.execute_command("ACL", "SETUSER", "bob", "-@scripting")
            with pytest.raises(RedisRefusedError, match="this user may not run") as caught:
                await Thread("a").put(saver)
            assert not any(half in shown(caught.value) for half in HALVES)
        await redis.execute_command("ACL", "SETUSER", "bob", "resetpass")
    with pytest.raises(RedisRefusedError, match="refuses this user or password") as caught:
        await create_redis_checkpointer(url)
    assert not any(half in shown(caught.value) for half in HALVES)


async def test_data_of_somebody_else_under_the_prefix_is_an_error(saver: RedisSaver, redis: Redis) -> None:
    root, _ = await two_namespaces(saver)
    (ids,) = [key for key in await keys_in(redis) if key.endswith(b":ids")]
    await redis.delete(ids)
    await redis.set(ids, "x")
    with pytest.raises(RedisRefusedError, match="does nobody else use the key prefix"):
        await root.turn(saver)


async def test_a_cancelled_call_leaves_a_working_saver(own_redis: EmbeddedRedis) -> None:
    async with opened(own_redis.url, timeout_seconds=30) as saver:
        thread = Thread("a")
        await thread.put(saver)
        own_redis.freeze()
        calls = [asyncio.create_task(thread.turn(saver)) for _ in range(5)]
        for _ in range(10):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        assert all(
            isinstance(each, asyncio.CancelledError)
            for each in await asyncio.gather(*calls, return_exceptions=True)
        )
        own_redis.thaw()
        assert await thread.turn(saver) == 1


# ------------------------------------------------------------------ opening and closing


async def test_close_waits_for_what_is_under_way_and_then_nothing_works(own_redis: EmbeddedRedis) -> None:
    saver = await create_redis_checkpointer(own_redis.url, timeout_seconds=30)
    thread = Thread("a")
    await thread.put(saver)
    own_redis.freeze()
    call = asyncio.create_task(thread.turn(saver))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(saver.close())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    own_redis.thaw()
    assert await call == 1
    await closing
    await saver.close()
    for use in (*USES.values(), lambda saver, _: saver.ping(), lambda saver, _: anext(saver.thread_ids())):
        with pytest.raises(SaverClosedError):
            await use(saver, thread)
    with pytest.raises(SaverClosedError):
        async with saver:
            pass


async def test_a_loop_that_nobody_goes_on_with_does_not_keep_the_saver_open(redis_url: str) -> None:
    saver = await create_redis_checkpointer(redis_url)
    for number in range(3):
        await Thread(str(number)).put(saver)
    found = saver.thread_ids()
    assert await anext(found)
    await saver.close()
    await found.aclose()  # type: ignore[attr-defined]


async def test_a_client_that_was_passed_in_stays_open(redis: Redis) -> None:
    saver = RedisSaver(redis, telemetry=create_telemetry(registry=CollectorRegistry()))
    async with saver:
        await Thread("a").put(saver)
    assert await redis.ping()


async def test_a_clone_with_an_allowlist_shares_all_but_the_serde(redis_url: str) -> None:
    async with opened(redis_url, serde=JsonPlusSerializer(allowed_msgpack_modules=None)) as saver:
        clone = saver.with_allowlist([("states", "State")])
        thread = Thread("a")
        await thread.put(clone)
        assert await thread.turn(saver) == 1
        await saver.close()
        with pytest.raises(SaverClosedError):
            await thread.turn(clone)


# ------------------------------------------------------------------ bad input


async def test_a_config_that_names_no_thread_is_refused_before_anything_is_touched(
    saver: RedisSaver, redis: Redis
) -> None:
    await Thread("a").put(saver)
    before = await dump(redis)
    for what, (config, says) in CONFIGS.items():
        for name, call in CALLS.items():
            if not config and name == "alist":
                continue  # lists all threads
            with pytest.raises(InvalidConfigError, match=says) as caught:
                await call(saver, config)  # type: ignore[arg-type]
            assert isinstance(caught.value, ValueError), f"{name}, {what}"
    for bad in ("", "a\0b", "\ud800", None, 7):
        for refused in (
            lambda bad=bad: saver.adelete_thread(bad),
            lambda bad=bad: saver.aprune(["a", bad]),
            lambda bad=bad: saver.acopy_thread("a", bad),
            lambda bad=bad: saver.acopy_thread(bad, "b"),
            lambda bad=bad: saver.seal_thread(bad, lease_seconds=1),
            lambda bad=bad: saver.retire_thread(bad, "token", marker_seconds=1),
            lambda bad=bad: anext(saver.export_thread(bad)),
        ):
            with pytest.raises(InvalidConfigError, match="thread_id"):
                await refused()
    assert await dump(redis) == before


async def test_arguments_that_cannot_be_meant_are_errors_that_say_what_is_right(saver: RedisSaver) -> None:
    for call, error, says in (
        (lambda: saver.aprune("a"), TypeError, r"pass \[thread_id\]"),
        (lambda: saver.adelete_for_runs("a"), TypeError, r"pass \[run_id\]"),
        (lambda: saver.aprune(["a"], strategy="all"), ConfigurationError, "'keep_latest', 'delete'"),
        (lambda: saver.seal_thread("a", lease_seconds=0), ConfigurationError, "lease_seconds is 0"),
        (lambda: saver.retire_thread("a", "t", marker_seconds=-1), ConfigurationError, "marker_seconds"),
        (lambda: anext(saver.alist(None, limit=-1)), ConfigurationError, "limit is -1"),
        (lambda: anext(saver.alist(None, filter={"a": object()})), ConfigurationError, "filter"),
        (lambda: saver.aput_writes(config_of("a"), [("x", 1)], "t"), InvalidConfigError, "no checkpoint_id"),
        (
            lambda: saver.aput_writes(config_of("a", "", "1"), [("\ud800", 1)], "t"),
            SerializationError,
            "not valid Unicode",
        ),
    ):
        with pytest.raises(error, match=says) as caught:
            await call()
        assert isinstance(caught.value, GlasspointError)


async def test_a_redis_that_cannot_be_used_is_refused(redis_url: str) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as decoding:
        for redis, options, says in (
            (decoding, {}, "decode_responses=True"),
            (object(), {}, "must be a redis.asyncio.Redis or a redis.asyncio.RedisCluster, not builtins"),
            ("mysql://host", {}, "must begin with one of redis://"),
            (f"redis://a:{PASSWORD}@b@c", {}, "percent-encoded"),
            (redis_url, {"ttl": 0}, "ttl is 0"),
            (redis_url, {"ttl": float("nan")}, "ttl is nan"),
            (redis_url, {"timeout_seconds": 0}, "timeout_seconds is 0"),
        ):
            with pytest.raises(ConfigurationError, match=says) as caught:
                await create_redis_checkpointer(redis, **options)  # type: ignore[arg-type]
            assert not any(half in shown(caught.value) for half in HALVES)


async def test_threads_whose_names_look_alike_do_not_meet(saver: RedisSaver) -> None:
    scopes = [("a", ""), ("a", "x}:"), ("a}:x", ""), ("a}", ":x"), ("{a}", ""), ("%7Ba", ""), ("{a", "")]
    threads = [Thread(*scope) for scope in scopes]
    for number, thread in enumerate(threads):
        thread.number = number
        await thread.put(saver)
    assert [await each.turn(saver) for each in threads] == [each.number for each in threads]
    assert {each async for each in saver.thread_ids()} == {thread_id for thread_id, _ in scopes}
    async with opened(saver._steps._redis, key_prefix="*") as other:
        assert [each async for each in other.thread_ids()] == []


# ------------------------------------------------------------------ delta channels


async def test_turns_and_forks_of_a_delta_graph_end_as_in_memory(saver: RedisSaver) -> None:
    assert await play(saver) == await play(InMemorySaver())


async def test_the_delta_history_of_every_checkpoint_is_as_defined(saver: RedisSaver) -> None:
    await play(saver)
    seeds = writes = 0
    for config in (CONFIG, *(each.config for each in await listed(saver, CONFIG))):
        ours = await saver.aget_delta_channel_history(config=config, channels=CHANNELS)
        defined = await BaseCheckpointSaver.aget_delta_channel_history(
            saver, config=config, channels=CHANNELS
        )
        assert exact(ours) == exact(defined)
        seeds += "seed" in ours["log"]
        writes += bool(ours["log"]["writes"])
    assert seeds
    assert writes
    nothing = await saver.aget_delta_channel_history(config=config_of("nobody"), channels=["log"])
    assert nothing == {"log": {"writes": []}}


async def test_a_long_delta_history_is_walked_in_steps(
    saver: RedisSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play(saver)
    whole = await saver.aget_delta_channel_history(config=CONFIG, channels=CHANNELS)
    monkeypatch.setattr("glasspoint.history.in_redis._ANCESTORS_AT_ONCE", 1)
    in_steps = await saver.aget_delta_channel_history(config=CONFIG, channels=CHANNELS)
    assert exact(in_steps) == exact(whole)


class Log(TypedDict):
    log: Annotated[list[Any], DeltaChannel(extend, snapshot_frequency=4)]


def make_log_graph(saver: BaseCheckpointSaver[Any]) -> CompiledStateGraph[Any]:
    """A graph whose only delta channel has a snapshot now and then, so that there is something to prune."""
    builder = StateGraph(Log)
    builder.add_node("one", lambda state: {"log": [f"one saw {len(state['log'])}"]})
    builder.add_node("two", lambda state: {"log": [f"two saw {len(state['log'])}"]})
    builder.add_edge(START, "one").add_edge("one", "two").add_edge("two", END)
    return builder.compile(saver)


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5])
async def test_a_delta_graph_goes_on_after_pruning_as_if_nothing_had_been_pruned(
    turns: int, saver: RedisSaver
) -> None:
    graph, pruned = make_log_graph(saver), config_of("pruned")
    for turn in range(turns):
        await graph.ainvoke({"log": [f"turn {turn}"]}, CONFIG)
    await saver.acopy_thread(CONFIG["configurable"]["thread_id"], "pruned")
    counts_of_kept: list[int] = []
    for turn in range(3):
        await saver.aprune(["pruned"])
        counts_of_kept.append(len(await listed(saver, pruned)))
        whole, rest = [(await graph.aget_state(config)).values for config in (CONFIG, pruned)]
        assert rest == whole
        for config in (CONFIG, pruned):
            await graph.ainvoke({"log": [f"later {turn}"]}, config)
    whole, rest = [(await graph.aget_state(config)).values for config in (CONFIG, pruned)]
    assert rest == whole
    assert len(whole["log"]) == 3 * (turns + 3)
    assert max(counts_of_kept) <= 6, "more is kept than since the last snapshot"
    assert max(counts_of_kept) > 1, "no delta channel needed an ancestor"


async def test_a_run_that_delta_channels_need_is_not_deleted(saver: RedisSaver, redis: Redis) -> None:
    graph = make_graph(saver)
    for turn in range(4):
        run = {**CONFIG, "metadata": {"run_id": f"run {turn}"}}
        await graph.ainvoke({"log": [f"turn {turn}"]}, run)  # type: ignore[call-overload]
    other = Thread("other")
    config, checkpoint, metadata, versions = other.next_put(saver)
    await saver.aput(config, checkpoint, {**metadata, "run_id": "run 0"}, versions)
    before = len(await listed(saver, None))
    with pytest.raises(DeltaChainError, match="thread '대화' is rebuilt from checkpoints of these runs"):
        await saver.adelete_for_runs(["run 0"])
    assert len(await listed(saver, None)) == before, "nothing is deleted, of no thread"
    await saver.adelete_for_runs(["run 3"])
    runs = {each.metadata["run_id"] for each in await listed(saver, CONFIG)}
    assert runs == {"run 0", "run 1", "run 2"}
    assert len((await graph.aget_state(CONFIG)).values["log"]) == 9
    await saver.adelete_for_runs(["run 0", "run 1", "run 2", "run 3"])
    assert await redis.keys(OF_THREADS) == []


async def test_a_delta_thread_that_is_written_while_it_is_pruned_is_decided_anew(
    saver: RedisSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork from an old checkpoint, between the decision and the removal, needs what was to be removed."""
    graph = make_log_graph(saver)
    for turn in range(4):
        await graph.ainvoke({"log": [f"turn {turn}"]}, CONFIG)
    history = await listed(saver, CONFIG)
    old = next(each for each in history[8:] if "log" not in each.checkpoint["channel_values"])
    forked: list[Any] = []
    outline = saver._history.outline

    async def outline_and_then_fork(thread_id: str) -> Any:
        answer = await outline(thread_id)
        if not forked:
            fork = {**old.checkpoint, "id": numbered_id(0).replace("1f", "ff", 1)}
            forked.append(await saver.aput(old.config, fork, {"source": "fork", "step": 99}, {}))  # type: ignore[arg-type]
            forked.append(await saver.aget_delta_channel_history(config=CONFIG, channels=["log"]))
        return answer

    monkeypatch.setattr(saver._history, "outline", outline_and_then_fork)
    await saver.aprune([CONFIG["configurable"]["thread_id"]])
    whole = await saver.aget_delta_channel_history(config=CONFIG, channels=["log"])
    assert exact(whole) == exact(forked[1])
    assert whole["log"]["writes"]
    assert 1 < len(await listed(saver, CONFIG)) < len(history)


# ------------------------------------------------------------------ telemetry


async def test_every_call_is_one_span_with_its_round_trips_and_no_content(
    redis_url: str, recorder: Recorder
) -> None:
    thread = Thread("a")
    async with opened(redis_url, telemetry=recorder.telemetry) as saver:
        await thread.put(saver, secret=[CANARY])
        await thread.put_writes(saver, CANARY)
        await thread.turn(saver)
        await listed(saver, thread.config)
        await saver.aprune([thread.thread_id])
    assert recorder.forest() == [
        ("checkpoint.put", [("checkpoint.redis.put", [])]),
        ("checkpoint.put_writes", [("checkpoint.redis.put_writes", [])]),
        ("checkpoint.get_tuple", [("checkpoint.redis.read", [])]),
        ("checkpoint.list", [("checkpoint.redis.page", []), ("checkpoint.redis.load", [])]),
        ("checkpoint.prune", [("checkpoint.redis.outline", [])]),
    ]
    (call,), (step,) = recorder.named("checkpoint.get_tuple"), recorder.named("checkpoint.redis.read")
    assert step.kind is SpanKind.CLIENT
    assert (
        attributes(step).items()
        >= {
            "db.system.name": "redis",
            "db.operation.name": "EVALSHA",
            "db.stored_procedure.name": "read",
            "server.address": "127.0.0.1",
            "gen_ai.conversation.id": thread.thread_id,
        }.items()
    )
    assert (
        attributes(call).items()
        >= {
            "glasspoint.tier": "redis",
            "glasspoint.served_by": "redis",
            "langgraph.checkpoint.id": numbered_id(1),
            "langgraph.checkpoint.step": 1,
            "langgraph.checkpoint.source": "loop",
        }.items()
    )
    assert attributes(call)["glasspoint.bytes"] > 0
    assert "glasspoint.l1.result" not in attributes(call)
    assert CANARY not in "".join(span.to_json() for span in recorder.spans)
    operations = counts(recorder.registry, "glasspoint_operation_duration_seconds_count", "operation")
    assert operations == {"put": 1, "put_writes": 1, "get_tuple": 1, "list": 1, "prune": 1}
    assert counts(recorder.registry, "glasspoint_l1_reads_total", "result") == {}
    assert counts(recorder.registry, "glasspoint_write_through_total", "l1") == {}


async def test_the_tier_and_the_version_of_redis_are_shown(redis_url: str, redis: Redis) -> None:
    registry = CollectorRegistry()
    async with opened(redis_url, telemetry=create_telemetry(registry=registry)):
        (version,) = counts(registry, "glasspoint_info", "redis")
        assert version == (await redis.info("server"))["redis_version"]
        assert counts(registry, "glasspoint_active_tier", "tier") == {"redis": 1}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def test_no_step_fails_on_a_redis_that_does_not_know_the_scripts(own_redis: EmbeddedRedis) -> None:
    """A failed command would be red in the traces of the Redis client."""
    async with (
        await create_redis_checkpointer(own_redis.url) as saver,
        Redis.from_url(own_redis.url) as redis,
    ):
        at_opening = await redis.info("errorstats")  # it has tried which commands it may run
        thread = Thread("a")
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        assert await thread.turn(saver) == 1
        assert await redis.info("errorstats") == at_opening
        await redis.script_flush()  # as after a restart
        assert await thread.turn(saver) == 1


async def test_the_wait_for_the_first_thread_of_a_tier_is_a_span(redis_url: str) -> None:
    """It lasts 0.6 s, until the processes of the tier above have noticed."""
    recorder = Recorder()
    telemetry, target = recorder.telemetry, Target("db", "5432", "app")
    async with await create_redis_checkpointer(redis_url, telemetry=telemetry, target=target) as saver:
        thread = Thread("a")
        await thread.put(saver)
        await thread.put(saver)
    [waited] = recorder.named("checkpoint.announce_tier")
    assert waited.kind is SpanKind.INTERNAL
    assert attributes(waited)["glasspoint.result"] == "heard"
    assert attributes(waited)["gen_ai.conversation.id"] == "a"
