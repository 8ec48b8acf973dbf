"""Each rule of the entry protocol, by the sequence of steps that would break a promise without it.

The steps are the real ones on a real Redis; what PostgreSQL would have answered is said by the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from time import monotonic
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from redis.asyncio import Redis

from glasspoint import Telemetry
from glasspoint.l1.cache import Cache, Intent
from glasspoint.l1.entry import Changes, decode_image
from glasspoint.model import codec
from glasspoint.model.codec import EncodedPut, EncodedWrite, StoredCheckpoint
from glasspoint.model.identity import Identity
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import Signer
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
    return codec.encode_put(SERDE, config_of("t"), None, checkpoint, {"step": number}, new)  # type: ignore[arg-type]


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


def of_put(
    number: int,
    values: dict[str, Any] | None = None,
    *,
    is_as_sent: bool = True,
    known_writes: Iterable[str] = (),
    **versions: str,
) -> Changes:
    """What a burst of one put changes; for `versions` see `make_put`."""
    changes = Changes()
    changes.put(make_put(number, values, **versions), is_as_sent=is_as_sent, known_writes=known_writes)
    return changes


def of_writes(number: int, *values: Any, ignored: Iterable[EncodedWrite] = ()) -> Changes:
    """What a burst of writes of the `number`th checkpoint changes: a task's for each value."""
    changes = Changes()
    stored = [write for n, value in enumerate(values, 1) for write in make_writes(value, f"task {n}")]
    changes.put_writes(numbered_id(number), stored, ignored)
    return changes


async def committed(cache: Cache, intent: Intent, changes: Changes) -> str:
    """What became of a burst."""
    return (await cache.commit(intent, changes)).result


async def put(cache: Cache, number: int) -> str:
    """A burst of one put."""
    return await committed(cache, await cache.begin(SCOPE), of_put(number))


async def begun_long_ago(redis: Redis) -> Intent:
    """The intent of a writer whose deadline has passed, or passes in a moment."""
    return await (await make_cache(redis, intent_seconds=0.05)).begin(SCOPE)


async def seen(cache: Cache) -> tuple[str, int | None]:
    """What a read gets: the answer of L1, and which checkpoint."""
    reading = await cache.read(SCOPE, None)
    found = reading.image.values["messages"][1] if reading.image else None
    return reading.result, SERDE.loads_typed(found)[0] if found else None


async def writes_seen(cache: Cache) -> dict[str, Any]:
    """The pending writes that a read gets: by their tasks."""
    reading = await cache.read(SCOPE, None)
    assert reading.image is not None, reading.result
    return {write.task_id: SERDE.loads_typed(write.value) for write in reading.image.writes}


async def lease_of(cache: Cache) -> bytes:
    """What a reader gets who finds nothing, and asks PostgreSQL now."""
    lease = (await cache.read(SCOPE, None)).lease
    assert lease is not None
    return lease


async def stored(redis: Redis) -> StoredCheckpoint:
    """The image that stands in Redis, as PostgreSQL would hand it to a warm-up."""
    (key,) = await redis.keys()
    fields: list[Any] = [part for pair in (await redis.hgetall(key)).items() for part in pair]
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


# ---------------------------------------------------------------- BEGIN


async def test_while_a_burst_is_under_way_nobody_reads_the_image(cache: Cache) -> None:
    await put(cache, 1)
    intent = await cache.begin(SCOPE)
    assert await seen(cache) == ("busy", None)
    await cache.confirm(intent)
    assert await seen(cache) == ("busy", None), "after the first write was acknowledged, too"
    await cache.abort(intent)
    assert await seen(cache) == ("hit", 1)


async def test_a_writer_that_died_leaves_nothing_that_is_believed(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    await begun_long_ago(redis)
    assert (await until_nobody_is_busy(cache)).result == "miss"


async def test_a_burst_that_begins_takes_the_lease_away(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    await redis.flushdb()
    lease = await lease_of(cache)
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(2)) == "applied"
    assert await cache.warm_up(SCOPE, lease, before) == "overtaken"
    assert await seen(cache) == ("hit", 2)


async def test_beginning_alone_takes_the_lease_away(cache: Cache, redis: Redis) -> None:
    """The write may be of another process, which is killed; or be aborted, as here."""
    await put(cache, 1)
    before = await stored(redis)
    await redis.flushdb()
    lease = await lease_of(cache)
    await cache.abort(await cache.begin(SCOPE))
    assert await cache.warm_up(SCOPE, lease, before) == "overtaken"


async def test_the_first_of_several_readers_warms_up(cache: Cache, redis: Redis) -> None:
    """They share a lease. If the last reader had it alone, one that reads again at once would never store."""
    await put(cache, 1)
    before = await stored(redis)
    await redis.flushdb()
    leases = [await lease_of(cache) for _ in range(3)]
    results = [await cache.warm_up(SCOPE, lease, before) for lease in leases]
    assert results == ["stored", "not_first", "not_first"]


async def test_a_write_takes_the_lease_from_all_readers(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    await redis.flushdb()
    leases = [await lease_of(cache) for _ in range(2)]
    await cache.abort(await cache.begin(SCOPE))
    assert await lease_of(cache) not in leases
    assert [await cache.warm_up(SCOPE, lease, before) for lease in leases] == ["not_first", "not_first"]


async def test_a_lease_lives_no_longer_because_others_share_it(cache: Cache, redis: Redis) -> None:
    await lease_of(cache)
    [key] = await redis.keys()
    await redis.pexpire(key, 5_000)
    await lease_of(cache)
    assert await redis.pttl(key) <= 5_000


@pytest.mark.parametrize("ends_first", ["first", "second"])
async def test_of_two_bursts_at_once_neither_installs(ends_first: str, cache: Cache) -> None:
    """Neither knows what the other one has changed. BEGIN of the second disarms the first, and it is born
    disarmed."""
    await put(cache, 1)
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    commits = [(first, of_put(2)), (second, of_put(3))]
    for intent, changes in commits if ends_first == "first" else reversed(commits):
        assert await committed(cache, intent, changes) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_burst_whose_rival_gave_up_does_not_install(cache: Cache) -> None:
    """The rival may have been in PostgreSQL, and not be heard of any more."""
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    await cache.abort(second)
    assert await committed(cache, first, of_put(1)) == "discarded"
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    await cache.abort(first)
    assert await committed(cache, second, of_put(1)) == "discarded"


async def test_readers_stay_away_until_the_last_of_several_bursts_ends(cache: Cache) -> None:
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    await committed(cache, first, of_put(1))
    assert (await seen(cache))[0] == "busy"
    await committed(cache, second, of_put(2))
    assert await seen(cache) == ("miss", None)
    assert await put(cache, 3) == "applied", "the next burst is alone again"


async def test_a_burst_does_not_heed_a_writer_that_died_long_ago(cache: Cache, redis: Redis) -> None:
    await begun_long_ago(redis)
    await until_nobody_is_busy(cache)
    assert await put(cache, 1) == "applied"


async def test_begin_alone_changes_nothing_while_a_burst_is_under_way(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    writing = await cache.begin(SCOPE)
    (key,) = await redis.keys()
    before = await redis.hgetall(key)
    assert await cache.begin_alone(SCOPE) is None
    assert await redis.hgetall(key) == before
    assert await committed(cache, writing, of_put(2)) == "applied"
    alone = await cache.begin_alone(SCOPE)
    assert alone is not None
    assert (await seen(cache))[0] == "busy"
    await cache.abort(alone)
    assert await seen(cache) == ("hit", 2)


async def test_begin_alone_does_not_heed_a_writer_that_died_long_ago(cache: Cache, redis: Redis) -> None:
    await begun_long_ago(redis)
    await until(lambda: cache.begin_alone(SCOPE))


# ---------------------------------------------------------------- CONFIRM


async def test_while_its_intent_is_there_a_burst_is_confirmed(cache: Cache) -> None:
    """And nothing is changed by that."""
    await put(cache, 1)
    intent = await cache.begin(SCOPE)
    assert await cache.confirm(intent)
    assert await cache.confirm(intent), "as often as it likes"
    assert await committed(cache, intent, of_put(2)) == "applied"


async def test_a_burst_that_another_one_disarmed_is_confirmed(cache: Cache) -> None:
    """Disarmed, its intent still sends readers away, and that is all that CONFIRM asks."""
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    assert await cache.confirm(first)
    assert await cache.confirm(second)
    assert (await seen(cache))[0] == "busy"
    assert await committed(cache, first, of_put(1)) == "discarded", "confirmed, and as disarmed as before"


async def test_whose_intent_was_evicted_is_not_confirmed_and_no_older_state_is_left(
    cache: Cache, redis: Redis
) -> None:
    await put(cache, 1)
    before = await stored(redis)
    intent = await cache.begin(SCOPE)
    await redis.flushdb()
    assert await cache.warm_up(SCOPE, await lease_of(cache), before) == "stored"
    assert await cache.confirm(intent) is False
    assert await seen(cache) == ("miss", None), "what was warmed up before the write is gone"


async def test_whose_intent_was_evicted_takes_the_lease_of_who_looked_before(
    cache: Cache, redis: Redis
) -> None:
    await put(cache, 1)
    before = await stored(redis)
    intent = await cache.begin(SCOPE)
    await redis.flushdb()
    lease = await lease_of(cache)
    assert await cache.confirm(intent) is False
    assert await cache.warm_up(SCOPE, lease, before) == "overtaken"


async def test_whose_intent_was_evicted_disarms_who_began_meanwhile(cache: Cache, redis: Redis) -> None:
    """The other burst's BEGIN found nobody there, and its image would be without this write."""
    first = await cache.begin(SCOPE)
    await redis.flushdb()
    second = await cache.begin(SCOPE)
    assert await cache.confirm(first) is False
    assert (await seen(cache))[0] == "busy"
    assert await committed(cache, second, of_put(1)) == "discarded"


@pytest.mark.parametrize("met", [True, False])
async def test_whose_time_was_up_is_not_confirmed(met: bool, cache: Cache, redis: Redis) -> None:
    """Met by a reader meanwhile, who took the intent away, or by nobody."""
    await put(cache, 1)
    before = await stored(redis)
    intent = await begun_long_ago(redis)
    if met:
        reading = await until_nobody_is_busy(cache)
        assert await cache.confirm(intent) is False
        assert await cache.warm_up(SCOPE, reading.lease, before) == "overtaken"
    else:

        async def is_refused() -> bool:
            return await cache.confirm(intent) is False

        await until(is_refused)
    assert await seen(cache) == ("miss", None)


async def test_what_was_dropped_meanwhile_is_confirmed_and_not_installed(cache: Cache) -> None:
    writing, deleting = await cache.begin(SCOPE), await cache.begin(SCOPE)
    await cache.drop(deleting)
    assert await cache.confirm(writing), "readers are still away"
    assert await committed(cache, writing, of_put(1)) == "discarded"


# ---------------------------------------------------------------- COMMIT


async def test_what_a_burst_has_changed_is_read_together(cache: Cache) -> None:
    """Each channel as it is at the end, and the pending writes of the newest checkpoint."""
    changes = of_put(1, {"messages": [1], "other": ["old"]})
    changes.put_writes(numbered_id(1), make_writes("of 1"), ())
    changes.put(make_put(2, other="1.5"), is_as_sent=True, known_writes=())
    changes.put_writes(numbered_id(2), make_writes("of 2"), ())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "applied"
    assert await seen(cache) == ("hit", 2)
    assert await writes_seen(cache) == {"task": "of 2"}
    image = (await cache.read(SCOPE, None)).image
    assert image is not None
    assert SERDE.loads_typed(image.values["other"][1]) == ["old"]


async def test_a_burst_whose_intent_was_evicted_does_not_follow_a_warm_up(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    for changes in (of_put(2), of_writes(1, "x")):
        await redis.flushdb()
        intent = await cache.begin(SCOPE)
        await redis.flushdb()
        assert await cache.warm_up(SCOPE, await lease_of(cache), before) == "stored"
        assert await committed(cache, intent, changes) == "discarded"
        assert await seen(cache) == ("miss", None)


async def test_a_late_commit_takes_the_lease_of_who_looked_before_it(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    before = await stored(redis)
    intent = await begun_long_ago(redis)
    reading = await until_nobody_is_busy(cache)  # looks at PostgreSQL now: still 1
    assert await committed(cache, intent, of_put(2)) == "discarded"
    assert await cache.warm_up(SCOPE, reading.lease, before) == "overtaken"


async def test_a_late_commit_that_nobody_has_met_discards(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    intent = await begun_long_ago(redis)
    field = f"i:{intent.name.decode()}"
    (key,) = await redis.keys()

    async def is_late() -> bool:
        seconds, micros = await redis.time()
        value: Any = await redis.hget(key, field)
        deadline = value.split(b":")[0]
        return int(deadline) < seconds * 1000 + micros // 1000

    await until(is_late)
    assert await committed(cache, intent, of_put(2)) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_burst_is_over_only_once(cache: Cache) -> None:
    """COMMIT that is repeated, because its answer was lost, does not install again over what came after."""
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(1)) == "applied"
    assert await put(cache, 2) == "applied"
    assert await committed(cache, intent, of_put(1)) == "discarded"
    assert await seen(cache) == ("miss", None)


@pytest.mark.parametrize("number", [2, 1])
async def test_a_burst_that_is_not_ahead_of_the_image_is_not_shown(number: int, cache: Cache) -> None:
    await put(cache, 2)
    assert await put(cache, number) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_put_that_postgres_did_not_take_as_sent_is_not_shown(cache: Cache) -> None:
    """It is not the newest, or another value stands at a version that it sent."""
    await put(cache, 1)
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(2, is_as_sent=False)) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_burst_that_l1_cannot_follow_is_not_shown_whatever_comes_after(cache: Cache) -> None:
    await put(cache, 1)
    changes = of_put(2)
    changes.give_up()
    changes.put(make_put(3), is_as_sent=True, known_writes=())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_put_without_an_image_to_take_the_other_channels_from_is_a_miss(cache: Cache) -> None:
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(2, other="1.5")) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_put_that_continues_an_image_takes_its_other_channels(cache: Cache) -> None:
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(1, {"messages": [1], "other": [1]})) == "applied"
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(2, other="1.5")) == "applied"
    assert await seen(cache) == ("hit", 2)


async def test_a_burst_that_brings_every_channel_needs_no_image(cache: Cache) -> None:
    """Its last put does not, but together they do."""
    changes = of_put(1, {"messages": [1], "other": [1]})
    changes.put(make_put(2, other="1.5"), is_as_sent=True, known_writes=())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "applied"
    assert await seen(cache) == ("hit", 2)


async def test_a_channel_that_lost_its_value_hides_the_older_one(cache: Cache) -> None:
    await put(cache, 1)
    void = make_put(2, {"other": [2]}, messages="2.5")
    void.voids["messages"] = "2.5"
    changes = Changes()
    changes.put(void, is_as_sent=True, known_writes=())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "applied"
    reading = await cache.read(SCOPE, None)
    assert reading.image is not None
    assert list(reading.image.values) == ["other"]


async def test_of_two_puts_of_one_checkpoint_none_is_shown(cache: Cache) -> None:
    """Side by side: each was the newest when PostgreSQL was asked, and only one of the two stands there."""
    changes = of_put(1, {"messages": [1]})
    changes.put(make_put(1, {"messages": [2]}), is_as_sent=True, known_writes=())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "discarded"
    assert await seen(cache) == ("miss", None)


@pytest.mark.parametrize("first", [1, 2])
async def test_a_channel_without_a_value_does_not_hide_one_that_was_stored_meanwhile(
    first: int, cache: Cache
) -> None:
    """Side by side: PostgreSQL had no value at this version when it was asked, and shows one now."""
    void = make_put(2, {"other": [2]}, messages="1.5")
    void.voids["messages"] = "1.5"
    puts, changes = [make_put(1), void], Changes()
    for each in puts if first == 1 else puts[::-1]:
        changes.put(each, is_as_sent=True, known_writes=())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_a_value_that_cannot_be_encoded_is_not_shown(cache: Cache) -> None:
    """L1 goes without, and keeps nothing of before."""
    await put(cache, 1)
    changes = of_put(2)
    assert changes.newest is not None
    changes.newest.blobs["messages"] = ("2.5", None)  # type: ignore[assignment]
    assert await committed(cache, await cache.begin(SCOPE), changes) == "discarded"
    assert await seen(cache) == ("miss", None)


# ---------------------------------------------------------------- pending writes


async def test_writes_alone_are_read_with_the_image(cache: Cache) -> None:
    await put(cache, 1)
    assert await committed(cache, await cache.begin(SCOPE), of_writes(1, "x", "y")) == "applied"
    assert await seen(cache) == ("hit", 1)
    assert await writes_seen(cache) == {"task 1": "x", "task 2": "y"}
    assert await committed(cache, await cache.begin(SCOPE), of_writes(1, "z")) == "applied"
    assert await writes_seen(cache) == {"task 1": "z", "task 2": "y"}


async def test_writes_that_come_a_burst_before_their_checkpoint_are_read_with_it(cache: Cache) -> None:
    """LangGraph may start a checkpoint's tasks before it puts the checkpoint."""
    assert await committed(cache, await cache.begin(SCOPE), of_writes(1, "x")) == "applied"
    assert await seen(cache) == ("miss", None)
    await committed(cache, await cache.begin(SCOPE), of_writes(1, "x"))  # the read's lease is of no use now
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(1, known_writes=["task 1:0"])) == "applied"
    assert await writes_seen(cache) == {"task 1": "x"}


async def test_writes_that_come_early_within_a_burst_are_read_with_their_checkpoint(cache: Cache) -> None:
    changes = of_writes(1, "x")
    changes.put(make_put(1), is_as_sent=True, known_writes=["task 1:0"])
    assert await committed(cache, await cache.begin(SCOPE), changes) == "applied"
    assert await writes_seen(cache) == {"task 1": "x"}


async def test_a_write_that_postgres_knew_before_it_was_told_of_in_a_burst_is_no_reason_to_discard(
    cache: Cache,
) -> None:
    """A put and a write side by side: which of the two answers comes first is up to chance."""
    changes = of_put(1, known_writes=["task 1:0"])
    changes.put_writes(numbered_id(1), make_writes("x", "task 1"), ())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "applied"
    assert await writes_seen(cache) == {"task 1": "x"}


@pytest.mark.parametrize("is_another_there", [False, True])
async def test_a_put_whose_known_writes_are_not_here_is_not_shown(
    is_another_there: bool, cache: Cache
) -> None:
    """By name: one that is missing and one that PostgreSQL stored later would make the number right."""
    if is_another_there:
        assert await committed(cache, await cache.begin(SCOPE), of_writes(1, "x")) == "applied"
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(1, known_writes=["another task:0"])) == "discarded"
    assert await seen(cache) == ("miss", None)


async def test_early_writes_of_who_was_not_alone_are_not_believed(cache: Cache) -> None:
    first, second = await cache.begin(SCOPE), await cache.begin(SCOPE)
    assert await committed(cache, first, of_writes(1, "x")) == "discarded"
    await cache.abort(second)
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, of_put(1, known_writes=["task 1:0"])) == "discarded"


@pytest.mark.parametrize("here", [True, False])
async def test_a_write_that_postgres_had_already_must_stand_in_the_image(here: bool, cache: Cache) -> None:
    """Its first writer may have died before L1 heard of it."""
    await put(cache, 1)
    if here:
        await committed(cache, await cache.begin(SCOPE), of_writes(1, "x"))
    again = of_writes(1, ignored=make_writes("x", "task 1"))
    intent = await cache.begin(SCOPE)
    assert await committed(cache, intent, again) == ("kept" if here else "discarded")
    assert await seen(cache) == (("hit", 1) if here else ("miss", None))


async def test_a_write_that_postgres_had_already_of_an_older_checkpoint_is_not_needed(cache: Cache) -> None:
    await put(cache, 2)
    again = of_writes(1, ignored=make_writes("x", "task 1"))
    assert await committed(cache, await cache.begin(SCOPE), again) == "kept"
    assert await seen(cache) == ("hit", 2)


async def test_the_first_of_two_writes_stays_unless_the_second_replaced_it_in_postgres(cache: Cache) -> None:
    await put(cache, 1)
    changes = of_writes(1, "first")
    changes.put_writes(numbered_id(1), (), make_writes("second", "task 1"))  # PostgreSQL kept the first
    assert await committed(cache, await cache.begin(SCOPE), changes) == "applied"
    assert await writes_seen(cache) == {"task 1": "first"}
    changes = of_writes(1, "third")
    changes.put_writes(numbered_id(1), make_writes("fourth", "task 1"), ())  # … and here replaced it
    assert await committed(cache, await cache.begin(SCOPE), changes) == "applied"
    assert await writes_seen(cache) == {"task 1": "fourth"}


async def test_writes_of_an_older_checkpoint_are_skipped_and_go_with_it(cache: Cache, redis: Redis) -> None:
    await put(cache, 1)
    await committed(cache, await cache.begin(SCOPE), of_writes(1, "x"))
    await put(cache, 2)
    assert await committed(cache, await cache.begin(SCOPE), of_writes(1, "y")) == "kept"
    assert await seen(cache) == ("hit", 2)
    (key,) = await redis.keys()
    assert not [name for name in await redis.hkeys(key) if name.startswith(b"w:")]  # type: ignore[arg-type]


async def test_writes_of_an_id_that_no_image_has_are_kept_out(cache: Cache, redis: Redis) -> None:
    """LangGraph's ids are UUIDs. Another one, of another length, would be taken for a field of another."""
    await put(cache, 1)
    changes = Changes()
    changes.put_writes("any id", make_writes("x"), ())
    assert await committed(cache, await cache.begin(SCOPE), changes) == "kept"
    (key,) = await redis.keys()
    assert not [name for name in await redis.hkeys(key) if name.startswith(b"w:")]  # type: ignore[arg-type]


# ---------------------------------------------------------------- DROP and REFUSE


async def test_a_burst_that_a_deletion_overtook_leaves_no_phantom(cache: Cache) -> None:
    for changes in (of_put(1), of_writes(1, "x")):
        writing, deleting = await cache.begin(SCOPE), await cache.begin(SCOPE)
        await cache.drop(deleting)
        assert await seen(cache) == ("busy", None)
        assert await committed(cache, writing, changes) == "discarded"
        assert await seen(cache) == ("miss", None)


async def test_the_journal_disarms_who_is_under_way(cache: Cache) -> None:
    """A sweep drops an entry without an intent of its own: the burst may not know what it was told of."""
    writing = await cache.begin(SCOPE)
    await cache.forget([SCOPE])
    assert await seen(cache) == ("busy", None)
    assert await committed(cache, writing, of_put(1)) == "discarded"


async def test_a_burst_that_begins_after_a_deletion_was_begun_leaves_no_phantom(cache: Cache) -> None:
    deleting, writing = await cache.begin(SCOPE), await cache.begin(SCOPE)
    assert await committed(cache, writing, of_put(1)) == "discarded"
    await cache.drop(deleting)
    assert await seen(cache) == ("miss", None)


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


async def test_while_a_statement_may_still_run_no_burst_installs(cache: Cache) -> None:
    """It may change PostgreSQL after the burst's own writes."""
    await cache.drop(await cache.begin(SCOPE), still_running=True)
    assert await put(cache, 1) == "discarded"
    assert (await seen(cache))[0] == "busy"


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


async def test_who_refuses_an_image_disarms_who_would_build_on_it(cache: Cache) -> None:
    await put(cache, 1)
    writing = await cache.begin(SCOPE)
    assert (await cache.refuse(SCOPE, numbered_id(1))).lease is None, "a burst is under way"
    assert await committed(cache, writing, of_put(2)) == "discarded"
