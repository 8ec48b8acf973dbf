"""Whatever stands in Redis, a caller gets PostgreSQL's answer and never an exception.

Every field is signed, so a change of it is refused, whatever the change is. What is left is that a pending
write can be missing: nothing shows that. Bytes that are signed and wrong all the same (another release, a
fault of ours) are a miss, too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from entries import FIELDS, SCOPE, SERDE, SIGNER, stored
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.l1.entry import TamperedImageError, UnusableImageError, decode_image
from glasspoint.model import codec
from glasspoint.model.scope import scope_of
from glasspoint.redis.signature import SIZE
from states import counts, exact, open_saver, open_upstream
from steps import Thread, seeded_dice, settled

Fields = dict[bytes, bytes]
ROUNDS = 200

# ------------------------------------------------------------------ the entry alone

RIGHT = dict(zip(FIELDS[::2], FIELDS[1::2], strict=True))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@st.composite
def damaged(draw: st.DrawFn, right: Fields) -> Fields:
    """The fields of an entry after one to three changes."""
    fields = dict(right)
    for _ in range(draw(st.integers(1, 3))):
        if not fields:
            break
        name, other = draw(st.sampled_from(sorted(fields))), draw(st.sampled_from(sorted(right)))
        raw = fields[name]
        match draw(st.sampled_from(["flip", "splice", "swap", "cut", "rename", "remove", "add"])):
            case "flip" if raw:
                at = draw(st.integers(0, len(raw) - 1))
                fields[name] = raw[:at] + bytes([raw[at] ^ (1 << draw(st.integers(0, 7)))]) + raw[at + 1 :]
            case "splice":
                start, length = draw(st.integers(0, len(raw))), draw(st.integers(0, 20))
                fields[name] = raw[:start] + draw(st.binary(max_size=20)) + raw[start + length :]
            case "swap":
                fields[name], fields[other] = right[other], raw
            case "cut":
                fields[name] = raw[:-SIZE]
            case "rename":
                cut = draw(st.integers(0, len(name)))
                fields[name[:cut] + draw(st.binary(max_size=3)) + name[cut:]] = fields.pop(name)
            case "remove":
                del fields[name]
            case "add":
                fields[draw(st.sampled_from([b"c:", b"w:", name])) + draw(st.binary(max_size=5))] = raw
    return fields


def flat(fields: Fields) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


@given(damaged(RIGHT))
def test_a_damaged_entry_is_a_miss_or_right(fields: Fields) -> None:
    right = stored()
    right.writes = [
        w for w in right.writes if f"w:{right.checkpoint_id}:{w.task_id}:{w.idx}".encode() in fields
    ]
    with suppress(UnusableImageError):
        assert exact(codec.decode_tuple(SERDE, decode_image(SCOPE, flat(fields), SIGNER))) == exact(
            codec.decode_tuple(SERDE, right)
        )


def with_head(head: bytes) -> list[bytes]:
    """The entry with a head that our own key has signed, whatever it holds."""
    name = b"head:" + RIGHT[b"id"]
    return flat(RIGHT | {b"head": head + SIGNER.of(SCOPE).sign(name, head)})


def test_a_head_that_is_signed_as_these_tests_do_is_read() -> None:
    assert decode_image(SCOPE, with_head(RIGHT[b"head"][:-SIZE]), SIGNER).scope == SCOPE


@given(st.data())
def test_a_signed_head_of_any_json_is_a_miss_or_of_this_scope(data: st.DataObject) -> None:
    """Another value at any place of it."""
    right = json.loads(RIGHT[b"head"][:-SIZE])
    head = json.loads(RIGHT[b"head"][:-SIZE])
    at = head
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(anything)
    try:
        image = decode_image(SCOPE, with_head(json.dumps(head).encode()), SIGNER)
    except UnusableImageError:
        return
    assert (image.scope, image.checkpoint_id) == (SCOPE, RIGHT[b"id"].decode())
    assert [head[each] for each in ("format", "scope")] == [right[each] for each in ("format", "scope")]
    versions = {channel: version for channel, (version, _) in image.values.items()}
    named = image.document["channel_versions"]
    assert versions.items() <= {c: codec.version_text(v) for c, v in named.items()}.items()


@pytest.mark.parametrize(
    "head",
    [b"[" * 200_000, b"1" * 10_000, b'{"format": 1' * 10_000, b"\xff\xfe[\0]\0", b'"\\ud800"'],
    ids=repr,
)
def test_a_head_that_is_hard_on_a_parser_is_not_parsed_and_a_miss_even_if_it_is_signed(head: bytes) -> None:
    with pytest.raises(TamperedImageError):
        decode_image(SCOPE, flat(RIGHT | {b"head": head}), SIGNER)
    with pytest.raises(UnusableImageError, match="unreadable"):
        decode_image(SCOPE, with_head(head), SIGNER)


# ------------------------------------------------------------------ through the whole saver


def splice(dice: random.Random, raw: bytes) -> bytes:
    start, length = dice.randrange(len(raw) + 1), dice.choice([0, 1, 1, 4, 40])
    return raw[:start] + dice.randbytes(dice.choice([0, 1, 4])) + raw[start + length :]


def flip(dice: random.Random, raw: bytes) -> bytes:
    at = dice.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ (1 << dice.randrange(8))]) + raw[at + 1 :]


def of(fields: Fields, prefix: bytes, dice: random.Random) -> bytes:
    return dice.choice([name for name in sorted(fields) if name.startswith(prefix)])


def change_version(dice: random.Random, fields: Fields, _: Fields) -> None:
    name = of(fields, b"c:", dice)
    version, *rest = fields[name].split(b"\0")
    fields[name] = b"\0".join([flip(dice, version).replace(b"\0", b"x"), *rest])


def change_content(dice: random.Random, fields: Fields, _: Fields) -> None:
    name = dice.choice([name for name in sorted(fields) if name != b"id"])
    fields[name] = dice.choice([splice, flip])(dice, fields[name])


def swap(dice: random.Random, fields: Fields, _: Fields) -> None:
    one, other = (of(fields, b"c:", dice) for _ in range(2))
    fields[one], fields[other] = fields[other], fields[one]


def add_intent(dice: random.Random, fields: Fields, _: Fields) -> None:
    fields[b"i:" + dice.randbytes(3)] = dice.choice(
        [b"", b"x", b"1:1", b"1:2", b"9999999999999:0", dice.randbytes(9)]
    )


Change = Callable[[random.Random, Fields, Fields], Any]

CHANGES: list[Change] = [
    lambda dice, fields, _: fields.update({b"id": flip(dice, fields[b"id"])}),
    lambda dice, fields, _: fields.update({b"id": splice(dice, fields[b"id"]) + b"x"}),
    lambda dice, fields, _: fields.update(
        {b"head": fields[b"head"][: dice.randrange(len(fields[b"head"]) - 1)]}
    ),
    lambda dice, fields, other: fields.update({b"head": other[b"head"]}),
    lambda dice, fields, other: (fields.clear(), fields.update(other)),  # type: ignore[func-returns-value]
    lambda dice, fields, _: fields.pop(of(fields, b"c:", dice)),
    lambda dice, fields, _: fields.pop(b"head"),
    lambda dice, fields, _: fields.update({b"lease": dice.randbytes(5)}),
    lambda dice, fields, _: fields.update({of(fields, b"c:", dice) + b"x": dice.randbytes(9)}),
    lambda dice, fields, _: fields.update({b"c:messages": b"\0" + dice.randbytes(9)}),
    change_version,
    add_intent,
    change_content,
    change_content,
    change_content,
    swap,
    lambda dice, fields, other: fields.update({b"c:messages": other[b"c:messages"]}),
    lambda dice, fields, _: fields.update({of(fields, b"w:", dice): dice.randbytes(30)}),
    lambda dice, fields, _: fields.update({of(fields, b"w:", dice)[:-1] + b"5": b"turn\0null\0\0"}),
]


@pytest.mark.dice
async def test_whatever_stands_in_an_entry_the_answer_is_postgress(database: str, redis_url: str) -> None:
    dice, registry = seeded_dice(), CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with (
        open_saver(database, redis_url, telemetry=telemetry) as saver,
        open_upstream(database) as upstream,
        Redis.from_url(redis_url) as redis,
    ):
        threads = [Thread("t", "ns"), Thread("u", "ns")]
        for thread in threads:
            await thread.put(saver)
            await thread.put_writes(saver, "pending")
            await thread.put_writes(saver, ["more"], "task2")
        await settled(saver)
        names = [_key(saver, thread) for thread in threads]
        found: list[Any] = [await redis.hgetall(name) for name in names]
        right, foreign = found
        assert {b"id", b"head", b"c:messages"} <= right.keys()
        expected = exact(await upstream.aget_tuple(threads[0].config))
        for number in range(ROUNDS):
            change = CHANGES[number % len(CHANGES)]
            fields = dict(right)
            change(dice, fields, foreign)
            await redis.delete(names[0])
            await redis.hset(names[0], mapping=fields)
            assert exact(await saver.aget_tuple(threads[0].config)) == expected, (number, fields)
    results = counts(registry, "glasspoint_l1_reads_total", "result")
    assert results["hit"]
    assert results["incomplete"] > ROUNDS / 4


async def test_a_key_that_holds_no_entry_at_all_is_survived(database: str, redis_url: str) -> None:
    thread = Thread("t")
    async with open_saver(database, redis_url) as saver, Redis.from_url(redis_url) as redis:
        await thread.put(saver)
        await redis.set(_key(saver, thread), "no hash")
        assert await thread.turn(saver) == 1
        await thread.put(saver)
        assert await thread.turn(saver) == 2


def _key(saver: CachedPostgresSaver, thread: Thread) -> bytes:
    assert saver._l1.epoch is not None
    return saver._l1.epoch.key(scope_of(thread.config))
