"""Each rule of the entry protocol, by the sequence of steps that would break a promise without it.

The steps are the real ones on a real Redis; what PostgreSQL would have answered is said by the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from redis.asyncio import Redis

from glasspoint import Telemetry, codec
from glasspoint.codec import EncodedPut, EncodedWrite, StoredCheckpoint
from glasspoint.identity import Identity
from glasspoint.l1.cache import Cache
from glasspoint.l1.entry import decode_image
from glasspoint.l1.signature import Signer
from glasspoint.scope import Scope
from states import config_of, numbered_id
from steps import until

SCOPE = Scope("t", "")
SERDE = JsonPlusSerializer()
SECRET, GENERATION = b"a key of 16 byte", "1" * 16
SIGNER = Signer(SECRET, GENERATION)


def make_put(number: int, values: dict[str, Any] | None = None, **versions: str) -> EncodedPut:
    """The `number`th checkpoint; `versions` are the channels that it names but does not bring."""
    values = {"messages": [number]} if values is None else values
    new = dict.fromkeys(values, f"{number}.5")
    checkpoint: Any = {
        "v": 4,
        "id": numbered_id(number),
        "channel_values": values,
        "channel_versions": new | versions,
        "versions_seen": {},
    }
    return codec.encode_put(SERDE, config_of("t"), None, checkpoint, {"step": number}, new)


def make_writes(value: Any, task_id: str = "task") -> list[EncodedWrite]:
    return codec.encode_writes(SERDE, [("messages", value)], task_id, "", last_wins=False)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def make_cache(redis: Redis, *, intent_seconds: float = 60) -> Cache:
    cache = Cache(
        redis,
        Telemetry("test", ()),
        key_prefix="test",
        ttl_seconds=60,
        intent_seconds=intent_seconds,
        timeout_seconds=5,
    )
    server = await cache.connect()
    cache.identify(Identity("0" * 12, GENERATION, server.reign, SECRET))
    return cache


@pytest.fixture
async def cache(redis: Redis) -> Cache:
    return await make_cache(redis)


async def put(cache: Cache, number: int, **options: Any) -> str:
    intent = await cache.begin(SCOPE)
    return await cache.commit_put(intent, make_put(number), **{"newest": True, "known_writes": []} | options)


async def seen(cache: Cache) -> tuple[str, int | None]:
    """What a read gets: the answer of L1, and which checkpoint."""
    reading = await cache.read(SCOPE, None)
    found = reading.image.values["messages"][1] if reading.image else None
    return reading.result, SERDE.loads_typed(found)[0] if found else None


async def stored(redis: Redis) -> StoredCheckpoint:
    """The image that stands in Redis, as PostgreSQL would hand it to a warm-up."""
    (key,) = await redis.keys()
    fields = [part for pair in (await redis.hgetall(key)).items() for part in pair]
    image = decode_image(SCOPE, fields, SIGNER)
    as_put = make_put(1)
    image.document_json, image.metadata_json = as_put.document_json, as_put.metadata_json
    return image


async def until_nobody_is_busy(cache: Cache) -> Any:
    """Read until no live intent is met; the first other answer."""
    give_up = monotonic() + 30
    while (reading := await cache.read(SCOPE, None)).result == "busy":
        assert monotonic() < give_up
    return reading


async def test_a_put_is_read_and_its_write_with_it(cache: Cache) -> None:
    assert await put(cache, 1) == "applied"
    intent = await cache.begin(SCOPE)
    assert await cache.commit_writes(intent, numbered_id(1), make_writes("x"), overwrote=False) == "applied"
    reading = await cache.read(SCOPE, None)
    assert reading.image is not None
    assert [write.task_id for write in reading.image.writes] == ["task"]


async def test_while_a_write_is_under_way_nobody_reads_the_image(cache: Cache) -> None:
    await put(cache, 1)
    intent = await cache.begin(SCOPE)
    assert await seen(cache) == ("busy", None)
    await cache.abort(intent)
    assert await seen(cache) == ("hit", 1)


async def test_a_writer_that_died_leaves_nothing_that_is_believed(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    await (await make_cache(redis, intent_seconds=0.05)).begin(SCOPE)
    assert (await until_nobody_is_busy(cache)).result == "miss"


async def test_a_put_whose_intent_was_evicted_does_not_follow_a_warm_up(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    intent = await cache.begin(SCOPE)
    await redis.flushdb()
    reading = await cache.read(SCOPE, None)
    assert reading.lease is not None
    assert await cache.warm_up(SCOPE, reading.lease, before) == "stored"
    assert await cache.commit_put(intent, make_put(2), newest=True, known_writes=[]) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_writes_whose_intent_was_evicted_discard_what_was_warmed_up(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    intent = await cache.begin(SCOPE)
    await redis.flushdb()
    reading = await cache.read(SCOPE, None)
    assert reading.lease is not None
    await cache.warm_up(SCOPE, reading.lease, before)
    assert await cache.commit_writes(intent, numbered_id(1), make_writes("x"), overwrote=False) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_late_commit_takes_the_lease_of_who_looked_before_it(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    intent = await (await make_cache(redis, intent_seconds=0.05)).begin(SCOPE)
    reading = await until_nobody_is_busy(cache)  # looks at PostgreSQL now: still 1
    assert await cache.commit_put(intent, make_put(2), newest=True, known_writes=[]) == "discarded"
    assert await cache.warm_up(SCOPE, reading.lease, before) == "refused"


async def test_a_write_that_begins_takes_the_lease_away(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    await redis.flushdb()
    reading = await cache.read(SCOPE, None)
    assert reading.lease is not None
    intent = await cache.begin(SCOPE)
    assert await cache.commit_put(intent, make_put(2), newest=True, known_writes=[]) == "applied"
    assert await cache.warm_up(SCOPE, reading.lease, before) == "refused"
    assert await seen(cache) == ("hit", 2)


async def test_beginning_alone_takes_the_lease_away(cache: Cache, redis: Redis) -> None:
    """The write may be of another process, which is killed; or be aborted, as here."""
    await put(cache, 1)
    before = await stored(redis)
    await redis.flushdb()
    reading = await cache.read(SCOPE, None)
    assert reading.lease is not None
    await cache.abort(await cache.begin(SCOPE))
    assert await cache.warm_up(SCOPE, reading.lease, before) == "refused"


async def test_only_the_last_of_several_readers_may_warm_up(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    await redis.flushdb()
    leases = [(await cache.read(SCOPE, None)).lease for _ in range(2)]
    assert leases[0] is not None
    assert leases[1] is not None
    assert [await cache.warm_up(SCOPE, lease, before) for lease in leases] == ["refused", "stored"]


async def test_a_put_that_is_not_the_newest_is_not_shown(cache: Cache) -> None:
    await put(cache, 1)
    assert await put(cache, 2, newest=False) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_two_puts_that_commit_in_another_order_than_in_postgres(cache: Cache) -> None:
    """Each was the newest when PostgreSQL was asked."""
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    assert await cache.commit_put(second, make_put(2), newest=True, known_writes=[]) == "applied"
    assert await cache.commit_put(first, make_put(1), newest=True, known_writes=[]) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_put_without_an_image_to_take_the_other_channels_from_is_a_miss(cache: Cache) -> None:
    intent = await cache.begin(SCOPE)
    part = make_put(2, other="1.5")
    assert await cache.commit_put(intent, part, newest=True, known_writes=[]) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_put_that_continues_an_image_takes_its_other_channels(cache: Cache) -> None:
    intent = await cache.begin(SCOPE)
    whole = make_put(1, {"messages": [1], "other": [1]})
    await cache.commit_put(intent, whole, newest=True, known_writes=[])
    intent = await cache.begin(SCOPE)
    part = make_put(2, other="1.5")
    assert await cache.commit_put(intent, part, newest=True, known_writes=[]) == "applied"
    assert await seen(cache) == ("hit", 2)


@pytest.mark.parametrize(
    ("early", "result"), [([], "discarded"), (["other"], "discarded"), (["task"], "applied")]
)
async def test_a_put_whose_known_writes_are_not_here_is_not_shown(
    early: list[str], result: str, cache: Cache
) -> None:
    """By name: one that is missing and one that PostgreSQL stored later would make the number right."""
    intent = await cache.begin(SCOPE)
    for task_id in early:
        writing = await cache.begin(SCOPE)
        writes = make_writes("x", task_id)
        assert await cache.commit_writes(writing, numbered_id(1), writes, overwrote=False) == "early"
    assert await cache.commit_put(intent, make_put(1), newest=True, known_writes=["task:0"]) == result


@pytest.mark.parametrize("comes", [True, False])
async def test_a_put_waits_a_moment_for_a_known_write_that_is_under_way(comes: bool, cache: Cache) -> None:
    putting, writing = await cache.begin(SCOPE), await cache.begin(SCOPE)

    async def write() -> str:
        if not comes:
            return "never"
        return await cache.commit_writes(writing, numbered_id(1), make_writes("x"), overwrote=False)

    result, written = await asyncio.gather(
        cache.commit_put(putting, make_put(1), newest=True, known_writes=["task:0"]), write()
    )
    assert (result, written) == (("applied", "early") if comes else ("discarded", "never"))


async def test_a_channel_without_a_value_does_not_hide_one_that_was_stored_meanwhile(cache: Cache) -> None:
    await put(cache, 1)
    intent = await cache.begin(SCOPE)
    void = make_put(2, {"other": [2]}, messages="1.5")
    void.voids["messages"] = "1.5"  # PostgreSQL had no value at this version when it was asked
    await cache.commit_put(intent, void, newest=True, known_writes=[])
    assert await seen(cache) == ("hit", 1)


async def test_a_write_that_a_deletion_overtook_leaves_no_phantom(cache: Cache) -> None:
    writing, deleting = await cache.begin(SCOPE), await cache.begin(SCOPE)
    await cache.drop(deleting)
    putting = await cache.begin(SCOPE)
    result = await cache.commit_writes(writing, numbered_id(1), make_writes("x"), overwrote=False)
    assert result == "discarded"
    assert await cache.commit_put(putting, make_put(1), newest=True, known_writes=[]) == "discarded"


async def test_a_put_that_a_deletion_overtook_leaves_no_phantom(cache: Cache) -> None:
    putting, deleting = await cache.begin(SCOPE), await cache.begin(SCOPE)
    await cache.drop(deleting)
    assert await seen(cache) == ("busy", None)
    assert await cache.commit_put(putting, make_put(1), newest=True, known_writes=[]) == "discarded"


async def test_two_writes_of_which_one_overwrote_the_other(cache: Cache) -> None:
    """PostgreSQL says which overwrote; in which order the two come here says nothing."""
    await put(cache, 1)
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    result = await cache.commit_writes(second, numbered_id(1), make_writes("second"), overwrote=True)
    assert result == "discarded"
    result = await cache.commit_writes(first, numbered_id(1), make_writes("first"), overwrote=False)
    assert result == "discarded"


@pytest.mark.parametrize(("overwrote", "stays"), [(True, "second"), (False, "first")])
async def test_a_write_replaces_another_only_if_it_did_in_postgres(
    overwrote: bool, stays: str, cache: Cache
) -> None:
    await put(cache, 1)
    for value, replaces in (("first", False), ("second", overwrote)):
        intent = await cache.begin(SCOPE)
        await cache.commit_writes(intent, numbered_id(1), make_writes(value), overwrote=replaces)
    reading = await cache.read(SCOPE, None)
    assert reading.image is not None
    assert [SERDE.loads_typed(write.value) for write in reading.image.writes] == [stays]


@pytest.mark.parametrize("here", [True, False])
async def test_a_write_that_postgres_had_already_must_stand_in_the_image(here: bool, cache: Cache) -> None:
    """Its first writer may have died before L1 heard of it."""
    await put(cache, 1)
    if here:
        intent = await cache.begin(SCOPE)
        await cache.commit_writes(intent, numbered_id(1), make_writes("x"), overwrote=False)
    again = await cache.begin(SCOPE)
    result = await cache.commit_writes(again, numbered_id(1), [], overwrote=False, ignored=make_writes("x"))
    assert result == ("applied" if here else "discarded")


async def test_writes_of_an_older_checkpoint_are_skipped_and_go_with_it(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    intent = await cache.begin(SCOPE)
    await cache.commit_writes(intent, numbered_id(1), make_writes("x"), overwrote=False)
    await put(cache, 2)
    intent = await cache.begin(SCOPE)
    assert await cache.commit_writes(intent, numbered_id(1), make_writes("y"), overwrote=False) == "skipped"
    (key,) = await redis.keys()
    assert not [name for name in await redis.hkeys(key) if name.startswith(b"w:")]


@pytest.mark.parametrize("evicted", [False, True])
async def test_while_a_statement_may_still_run_readers_stay_away(
    evicted: bool, redis: Redis, cache: Cache
) -> None:
    for seconds in (60, 0.05):
        await redis.flushdb()
        await put(cache, 1)
        writer = await make_cache(redis, intent_seconds=seconds)
        intent = await writer.begin(SCOPE)
        if evicted:
            await redis.flushdb()
        await writer.drop(intent, still_running=True)
        if seconds == 60:
            assert (await cache.read(SCOPE, None)).result == "busy"
    assert (await until_nobody_is_busy(cache)).result == "miss", "once the statement's time is up"


async def test_after_a_write_that_ended_in_doubt_the_next_read_asks_postgres(cache: Cache) -> None:
    await put(cache, 1)
    await cache.drop(await cache.begin(SCOPE))
    assert await seen(cache) == ("miss", None)


async def test_an_image_that_was_replaced_is_not_refused_for_its_predecessor(cache: Cache) -> None:
    await put(cache, 2)
    assert (await cache.refuse(SCOPE, numbered_id(1))).lease is None
    assert await seen(cache) == ("hit", 2)
    assert (await cache.refuse(SCOPE, numbered_id(2))).lease is not None
    assert await seen(cache) == ("miss", None)


async def test_begin_alone_changes_nothing_while_a_write_is_under_way(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    writing = await cache.begin(SCOPE)
    (key,) = await redis.keys()
    before = await redis.hgetall(key)
    assert await cache.begin_alone(SCOPE) is None
    assert await redis.hgetall(key) == before
    await cache.abort(writing)
    alone = await cache.begin_alone(SCOPE)
    assert alone is not None
    assert (await seen(cache))[0] == "busy"
    await cache.abort(alone)
    assert await seen(cache) == ("hit", 1)


async def test_begin_alone_does_not_heed_a_writer_that_died_long_ago(cache: Cache, redis: Redis) -> None:
    await (await make_cache(redis, intent_seconds=0.05)).begin(SCOPE)
    await until(lambda: cache.begin_alone(SCOPE))
