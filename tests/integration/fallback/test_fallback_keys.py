"""What stands in the tier `redis` belongs to one target, and is never forgotten without a word.

A thread that Redis evicts, in part or as a whole, raises: `None` is the answer for a thread that never was.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from itertools import combinations
from typing import Any

import pytest
from redis.asyncio import Redis

from chains import NOWHERE, chain
from databases import with_tables
from glasspoint import RedisSaver, create_redis_checkpointer
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import RedisRefusedError, ThreadDamagedError
from glasspoint.history.keys import Keyspace
from glasspoint.l2.target import Target
from passwords import PASSWORD
from redis_savers import USES, listed, two_namespaces
from redis_tier import KEY, TARGET, opened
from states import config_of, numbered_id, open_upstream
from steps import Thread, keys_in, until

REGISTRY = Keyspace("glasspoint", target=TARGET.id).registry_of("")
LONG = 60.0


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def saver(redis: Redis) -> AsyncIterator[RedisSaver]:
    async with opened(redis) as opened_saver:
        yield opened_saver


async def registered(redis: Redis) -> set[str]:
    """The threads in the list. What else stands there has negative scores."""
    members: list[Any] = await redis.zrangebyscore(REGISTRY, "(0", "+inf")
    return {member.decode() for member in members}


async def evict(redis: Redis, thread_id: str) -> None:
    """All that Redis holds of a thread, but for the list of threads."""
    doomed = [key for key in await redis.keys() if b"{%b}" % thread_id.encode() in key]
    assert doomed
    await redis.delete(*doomed)


# ------------------------------------------------------------------ whose it is


async def test_a_saver_by_itself_stores_what_it_always_stored(redis: Redis) -> None:
    """Byte for byte: threads of other releases are read, and read this one's."""
    thread = Thread("a", "sub")
    async with opened(redis, target=None, signing_key=None) as saver:
        await thread.put(saver)
        await thread.put(saver)
        await saver.aput_writes(thread.newest, [("messages", 1)], "task", "~p")
    names = [f"sub\0{numbered_id(number)}".encode() for number in (1, 2)]
    versions = [f"{number:032}.5".encode() for number in (1, 2)]
    head = b"\0\0\0messages\0%b\0\0turn\0%b\0v\0branch:to:agent\0%b\0\0"
    key = "glasspoint:history:1:{a}:"
    docs: Any = await redis.hgetall(key + "docs")
    assert {name: docs[name] for name in docs if not name.startswith(b"d")} == {
        b"h" + names[0]: head % (versions[0], versions[0], versions[0]),
        b"h" + names[1]: numbered_id(1).encode() + head % (versions[1], versions[1], versions[1]),
        b"m" + names[0]: b'{"source": "loop", "step": 1, "parents": {}}',
        b"m" + names[1]: b'{"source": "loop", "step": 2, "parents": {}}',
    }
    assert docs[b"d" + names[0]].startswith(b'{"v": 4, "id": "1f000000-')
    assert docs[b"d" + names[0]].endswith(b'"updated_channels": null}')
    assert await redis.hgetall(key + "blobs") == {
        b"sub\0messages\0" + version: b"msgpack\0\x91\xa9message %d" % number
        for number, version in enumerate(versions, start=1)
    }
    assert await redis.hgetall(key + "writes") == {names[1] + b"\0task\0000": b"messages\0msgpack\0~p\0\x01"}
    assert await redis.hgetall(key + "meta") == {b"blobs": b"2", b"revision": b"3"}
    assert len(await redis.keys()) == 7, "the list of threads, too"
    assert await redis.zrange("glasspoint:history:1:index", 0, -1) == [b"a"]


async def test_two_applications_and_a_saver_by_itself_never_meet_in_one_redis(redis_url: str) -> None:
    async with (
        chain(f"{NOWHERE}/production", redis_url, probe_interval=1000) as production,
        chain(f"{NOWHERE}/staging", redis_url, probe_interval=1000) as staging,
        await create_redis_checkpointer(redis_url) as alone,
        Redis.from_url(redis_url) as redis,
    ):
        assert production.tier == staging.tier == "redis"
        savers = (production, staging, alone)
        for number, saver in enumerate(savers, start=1):
            thread = Thread("42")
            for _ in range(number):
                await thread.put(saver)
        assert [await Thread("42").turn(saver) for saver in savers] == [1, 2, 3]
        for number, saver in enumerate(savers, start=1):
            assert len(await listed(saver, None)) == number  # type: ignore[arg-type]
        await production.adelete_thread("42")
        assert [await Thread("42").turn(saver) for saver in savers] == [None, 2, 3]
        ids = [Target.of(f"{NOWHERE}/{name}").id for name in ("production", "staging")]
        begins = {key.decode().rpartition("{")[0] for key in await keys_in(redis, "*{*")}
        assert begins == {f"glasspoint:fallback:1:{ids[1]}:", "glasspoint:history:1:"}


async def test_only_what_belongs_to_a_target_is_drained_into_it(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with (
        chain(f"{NOWHERE}/staging", redis_url, probe_interval=1000) as staging,
        await create_redis_checkpointer(redis_url) as alone,
        chain(url, redis_url) as saver,
    ):
        for thread, its_saver in (
            (Thread("staging"), staging),
            (Thread("alone"), alone),
            (Thread("mine"), saver),
        ):
            await thread.put(its_saver)
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await until(lambda: saver._chain.whole)
        assert await Thread("staging").turn(staging) == 1
        assert await Thread("alone").turn(alone) == 1
        async with open_upstream(url) as upstream:
            found = {each.config["configurable"]["thread_id"] async for each in upstream.alist(None)}
        assert found == {"mine"}


async def test_the_password_is_another_key_and_the_setting_outlives_it(redis_url: str) -> None:
    def url(password: str) -> str:
        return f"postgresql://me:{password}@127.0.0.1:1/db"

    fixed: dict[str, Any] = {"l1_signing_key": KEY.decode(), "probe_interval": 1000}
    async with (
        chain(url("old"), redis_url, probe_interval=1000) as old,
        chain(url("old"), redis_url, **fixed) as one,
    ):
        await Thread("by password").put(old)
        await Thread("by key").put(one)
        async with chain(url("new"), redis_url, probe_interval=1000) as new:
            with pytest.raises(ThreadDamagedError, match="not signed with this process's key"):
                await Thread("by password").turn(new)
        async with chain(url("new"), redis_url, **fixed) as other:
            assert await Thread("by key").turn(other) == 1
        assert await Thread("by password").turn(old) == 1, "it was refused, not taken away"


async def test_a_tier_without_a_key_says_so_once(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glasspoint.fallback.factory._unsigned", set())
    caplog.set_level(logging.WARNING, "glasspoint")
    url = "postgresql://me@127.0.0.1:1/without_a_password"
    for _ in range(2):
        async with chain(url, redis_url, probe_interval=1000) as saver:
            await Thread("a").put(saver)
            assert await Thread("a").turn(saver) == 1
    (line,) = [each for each in caplog.messages if "is not signed" in each]
    assert "127.0.0.1:1/without_a_password" in line
    assert "CHECKPOINT_L1_SIGNING_KEY" in line
    caplog.clear()
    async with chain(f"{NOWHERE}/with_a_password", redis_url, probe_interval=1000):
        assert "is not signed" not in caplog.text
    assert PASSWORD not in caplog.text


# ------------------------------------------------------------------ the list of threads


async def test_a_thread_is_listed_from_its_first_write_until_it_leaves_on_purpose(
    saver: RedisSaver, redis: Redis
) -> None:
    await Thread("put").put(saver)
    await saver.aput_writes(config_of("writes alone", "", "1"), [("x", 1)], "task")
    await saver.acopy_thread("put", "copy")
    items = [each async for each in saver.export_thread("put")]
    async with opened(redis, key_prefix="other") as other:
        await other.import_checkpoints(items)
        assert [each async for each in other.thread_ids()] == ["put"]
    everything = {"put", "writes alone", "copy"}
    assert await registered(redis) == {"put", "writes%20alone", "copy"}
    assert sorted([each async for each in saver.thread_ids()]) == sorted(everything), "each once"

    await saver.adelete_thread("put")
    config, checkpoint, metadata, versions = Thread("of a run").next_put(saver)
    await saver.aput(config, checkpoint, {**metadata, "run_id": "run"}, versions)
    await saver.adelete_for_runs(["run"])
    token = await saver.seal_thread("copy", lease_seconds=LONG)
    assert token
    assert await saver.retire_thread("copy", token, marker_seconds=LONG)
    assert await registered(redis) == {"writes%20alone"}
    for gone in ("put", "of a run"):
        assert await saver.aget_tuple(config_of(gone)) is None


async def test_a_thread_that_expires_leaves_the_list(redis: Redis) -> None:
    async with opened(redis, ttl=0.05) as hasty, opened(redis, ttl=LONG) as saver:
        await Thread("a").put(hasty)
        await Thread("b").put(hasty)
        assert await Thread("b").turn(saver) == 1
        await until(lambda: gone(redis, "a"))
        assert await Thread("a").turn(saver) is None, "it has expired, and was not evicted"
        assert [each async for each in saver.thread_ids()] == ["b"]
        await evict(redis, "b")
        with pytest.raises(ThreadDamagedError):
            await Thread("b").turn(saver)

        async def is_forgotten() -> bool:
            await Thread("c").put(saver)
            return await registered(redis) == {"b", "c"}

        await until(is_forgotten)


async def gone(redis: Redis, thread_id: str) -> bool:
    return not await redis.keys(f"*{{{thread_id}}}*")


async def test_without_a_ttl_a_thread_is_listed_for_ever(redis: Redis) -> None:
    async with opened(redis, ttl=None) as saver:
        await Thread("a").put(saver)
        assert await redis.zscore(REGISTRY, "a") == float("inf")
        await evict(redis, "a")
        with pytest.raises(ThreadDamagedError):
            await Thread("a").turn(saver)
        assert [each async for each in saver.thread_ids()] == ["a"]


# ------------------------------------------------------------------ when Redis evicts


async def test_a_thread_that_was_evicted_as_a_whole_is_damaged_not_unknown(
    saver: RedisSaver, redis: Redis
) -> None:
    root, _ = await two_namespaces(saver, "a")
    await evict(redis, "a")
    for name, use in USES.items():
        with pytest.raises(ThreadDamagedError, match="or all of it"):
            await use(saver, root)
        assert await gone(redis, "a"), name
    with pytest.raises(ThreadDamagedError):
        await anext(saver.export_thread("a"))
    assert [each async for each in saver.thread_ids()] == ["a"], "it is named, not forgotten"
    other = Thread("other")
    await other.put(saver)
    assert await other.turn(saver) == 1
    await saver.adelete_thread("a")
    assert await saver.aget_tuple(root.config) is None
    await two_namespaces(saver, "a")


async def test_whatever_keys_of_a_thread_are_evicted_it_is_damaged(saver: RedisSaver, redis: Redis) -> None:
    root, sub = await two_namespaces(saver, "a")
    keys = sorted(await redis.keys("*{a}*"))
    assert len(keys) == 6
    before = {key: await redis.dump(key) for key in keys}
    for count in range(1, 7):
        for lost in combinations(keys, count):
            await redis.delete(*lost)
            for thread in (root, sub):
                with pytest.raises(ThreadDamagedError):
                    await thread.turn(saver)
            for key in lost:
                await redis.restore(key, 0, before[key])  # type: ignore[arg-type]
    assert await root.turn(saver) == 2


async def test_a_checkpoint_alone_that_is_evicted_is_damaged_without_a_target(redis: Redis) -> None:
    """Redis evicts one key after the other: the values and their count can be the last that is left."""
    async with opened(redis, target=None) as saver:
        await Thread("a").put(saver)
        await redis.delete(*await redis.keys("*:ids"), *await redis.keys("*:docs"))
        with pytest.raises(ThreadDamagedError):
            await Thread("a").turn(saver)


async def test_when_the_list_is_evicted_nothing_is_unknown_any_more(saver: RedisSaver, redis: Redis) -> None:
    stays, lost = Thread("stays"), Thread("lost")
    await stays.put(saver)
    await lost.put(saver)
    assert await Thread("never").turn(saver) is None
    await evict(redis, "lost")
    await redis.delete(REGISTRY)
    for _ in range(2):
        assert await stays.turn(saver) == 1
        for thread in (lost, Thread("never")):
            for read in (
                "aget_tuple",
                "alist",
                "alist of one namespace",
                "aget_delta_channel_history",
                "aprune",
            ):
                with pytest.raises(ThreadDamagedError, match="lost the list of the threads"):
                    await READS[read](saver, thread)
        # Another process opens, and makes the list anew: that does not make the lost thread an unknown one.
        async with opened(redis) as other:
            assert await lost.turn(other) is None, "a process that opens now cannot know"
            await Thread("new").put(other)
    assert await Thread("new").turn(saver) == 1


READS: dict[str, Any] = {
    **USES,
    "alist": lambda saver, thread: listed(saver, {"configurable": {"thread_id": thread.thread_id}}),
    "alist of one namespace": lambda saver, thread: listed(saver, thread.config),
}


@pytest.mark.parametrize("list_evicted", [False, True], ids=["", "the list, too"])
async def test_a_redis_that_evicts_makes_no_thread_an_unknown_one(
    list_evicted: bool, own_redis: EmbeddedRedis
) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used + 8 * 2**20)
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        async with opened(redis) as saver:
            for number in range(300):
                await Thread(f"thread {number}").put(saver, large=["x" * 40_000])
            if list_evicted:
                await redis.delete(REGISTRY)
            whole = damaged = 0
            for number in range(300):
                try:
                    assert await Thread(f"thread {number}").turn(saver) == 1
                    whole += 1
                except ThreadDamagedError:
                    damaged += 1
    assert whole + damaged == 300
    assert whole
    assert damaged


async def test_the_list_of_threads_does_not_keep_a_full_redis_from_being_read_and_drained(
    own_redis: EmbeddedRedis,
) -> None:
    async with Redis.from_url(own_redis.url) as redis, opened(redis) as saver:
        thread = Thread("a")
        await thread.put(saver)
        await redis.config_set("maxmemory", 1)
        with pytest.raises(RedisRefusedError, match="nothing was stored: it has no memory left"):
            await Thread("b").put(saver)
        assert await registered(redis) == {"a"}
        async with opened(redis) as other:
            assert await thread.turn(other) == 1
        token = await saver.seal_thread("a", lease_seconds=LONG)
        assert token
        assert len([each async for each in saver.export_thread("a")]) == 1
        assert await saver.retire_thread("a", token, marker_seconds=LONG)
        assert await registered(redis) == set()


@pytest.mark.parametrize("options", [{}, {"target": None, "signing_key": None}], ids=["of a target", "alone"])
@pytest.mark.parametrize(
    ("policy", "limit", "warns"),
    [
        ("noeviction", 2**30, False),
        ("allkeys-lru", 0, False),
        ("allkeys-lru", 2**30, True),
        ("volatile-ttl", 2**30, True),
    ],
)
async def test_a_redis_that_may_evict_is_named_when_a_saver_opens(
    policy: str,
    limit: int,
    warns: bool,
    options: dict[str, Any],
    own_redis: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("glasspoint.savers.redis_saver._named", set())
    caplog.set_level(logging.WARNING, "glasspoint")
    async with Redis.from_url(own_redis.url) as redis:
        await redis.config_set("maxmemory-policy", policy)
        await redis.config_set("maxmemory", limit)
        for _ in range(2):  # a fallback chain opens it again and again, to see whether it holds something
            async with opened(own_redis.url, **options):
                pass
    said = [each for each in caplog.messages if "may evict conversations" in each]
    assert len(said) == warns
    assert not warns or (policy in said[0] and "noeviction" in said[0])
