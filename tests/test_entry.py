"""Whatever bytes stand in an entry, a reader gets the right value or asks PostgreSQL."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from redis.asyncio import Redis

from glasspoint import codec
from glasspoint.codec import StoredCheckpoint
from glasspoint.l1.entry import UnusableImageError, decode_image, image_fields
from glasspoint.l1.signature import Signer
from glasspoint.scope import Scope
from states import exact, numbered_id, open_saver
from steps import Thread

SCOPE = Scope("t", "ns")
SERDE = JsonPlusSerializer()
VERSIONS = {"messages": "1.5", "turn": "1.5", "gone": "1.5"}


def stored() -> StoredCheckpoint:
    document = {
        "v": 4,
        "id": numbered_id(1),
        "channel_values": {"turn": 1},
        "channel_versions": VERSIONS,
        "versions_seen": {},
    }
    return StoredCheckpoint(
        scope=SCOPE,
        checkpoint_id=numbered_id(1),
        parent_id=None,
        document=document,
        metadata={"step": 1},
        values={"messages": ("1.5", codec.Encoded(*SERDE.dumps_typed(["hello"])))},
        writes=codec.encode_writes(SERDE, [("messages", "x"), ("turn", None)], "a:b", "~p", last_wins=False),
        document_json=json.dumps(document),
        metadata_json='{"step": 1}',
    )


def as_bytes(fields: list[bytes | str]) -> list[bytes]:
    return [part.encode() if isinstance(part, str) else part for part in fields]


FIELDS = as_bytes(image_fields(stored()))
SIGNER = Signer(b"k" * 16)
SIGNED_FIELDS = as_bytes(image_fields(stored(), SIGNER))
RIGHT = exact(codec.decode_tuple(SERDE, stored()))


def decoded(fields: list[bytes], signer: Signer | None = None) -> Any:
    """The tuple in a strict form, or `None` for a miss."""
    try:
        return exact(codec.decode_tuple(SERDE, decode_image(SCOPE, fields, signer)))
    except UnusableImageError:
        return None


def test_an_image_reads_back_as_what_was_stored() -> None:
    assert decoded(FIELDS) == RIGHT


@pytest.mark.parametrize("missing", [b"head", b"c:messages", b"c:gone"])
def test_an_image_without_one_of_its_fields_is_a_miss(missing: bytes) -> None:
    at = FIELDS.index(missing)
    assert decoded(FIELDS[:at] + FIELDS[at + 2 :]) is None


@pytest.mark.parametrize("version", [b"1.4", b"1.50", b"", b"1"])
@pytest.mark.parametrize("channel", [b"c:messages", b"c:gone"])
def test_a_channel_of_another_version_is_a_miss(channel: bytes, version: bytes) -> None:
    fields = list(FIELDS)
    at = fields.index(channel) + 1
    fields[at] = fields[at].replace(b"1.5", version, 1)
    assert decoded(fields) is None


@pytest.mark.parametrize("scope", [Scope("t", ""), Scope("T", "ns"), Scope("ns", "t")])
def test_an_image_of_another_scope_is_a_miss(scope: Scope) -> None:
    with pytest.raises(UnusableImageError):
        decode_image(scope, FIELDS)


def test_fields_of_others_do_not_matter() -> None:
    others = {"i:1": "9:1", "lease": "x", "c:old": "1", f"w:{numbered_id(2)}:t:0": "early"}
    assert decoded([*FIELDS, *as_bytes([part for pair in others.items() for part in pair])]) == RIGHT


@pytest.mark.parametrize("idx", [b"+0", b"00", b" 0", b"0_0", "٠".encode()])
def test_a_pending_write_whose_number_is_spelt_otherwise_is_a_miss(idx: bytes) -> None:
    name = f"w:{numbered_id(1)}:a:b:0".encode()
    fields = list(FIELDS)
    fields[fields.index(name)] = name[:-1] + idx
    assert decoded(fields) is None


@pytest.mark.parametrize("name", [n for n in FIELDS[::2] if n != b"id"])
def test_a_field_that_is_signed_is_a_miss_without_the_key_and_one_that_is_not_with_it(name: bytes) -> None:
    """One alone: a put of a saver without a key leaves the other channels as they are."""
    at = FIELDS.index(name) + 1
    for ours, theirs, signer in ((FIELDS, SIGNED_FIELDS, None), (SIGNED_FIELDS, FIELDS, SIGNER)):
        assert decoded(list(ours), signer) == RIGHT
        with pytest.raises(UnusableImageError):
            decode_image(SCOPE, [*ours[:at], theirs[at], *ours[at + 1 :]], signer)


@given(st.lists(st.tuples(st.sampled_from([*FIELDS[::2], b"c:x", b"w:", b""]), st.binary())))
def test_random_fields_never_raise(pairs: list[tuple[bytes, bytes]]) -> None:
    fields = [part for pair in pairs for part in pair]
    with pytest.raises(UnusableImageError):  # no head that could be right is ever drawn
        decode_image(SCOPE, fields)


@given(st.integers(0, len(FIELDS) // 2 - 1), st.data())
def test_a_damaged_field_never_raises(number: int, data: st.DataObject) -> None:
    """Values themselves are the serializer's: that they are damaged, only a signature could tell."""
    fields = list(FIELDS)
    raw = fields[2 * number + 1]
    cut, length = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 8))
    fields[2 * number + 1] = raw[:cut] + data.draw(st.binary(max_size=8)) + raw[cut + length :]
    with suppress(UnusableImageError):
        decode_image(SCOPE, fields)


@pytest.mark.parametrize("field", ["id", "head", "c:messages", "w"])
@pytest.mark.parametrize("garbage", [b"", b"\0", b"\xff\xfe", b"{}", b"[1]", b"1\0msgpack\0\xc1"])
async def test_a_damaged_entry_is_answered_by_postgres_and_healed(
    field: str, garbage: bytes, database: str, redis_url: str
) -> None:
    thread = Thread("t")
    async with open_saver(database, redis_url) as saver, Redis.from_url(redis_url) as redis:
        await thread.put(saver)
        await thread.put_writes(saver, "pending")
        before = exact(await saver.aget_tuple(thread.config))
        (key,) = await redis.keys()
        name = f"w:{numbered_id(1)}:task:0" if field == "w" else field
        assert await redis.hexists(key, name)
        await redis.hset(key, name, garbage)
        assert exact(await saver.aget_tuple(thread.config)) == before
        assert await redis.hget(key, name) != garbage
        assert exact(await saver.aget_tuple(thread.config)) == before


async def test_a_value_that_cannot_be_deserialised_is_answered_by_postgres_and_healed(
    database: str, redis_url: str
) -> None:
    thread = Thread("t")
    async with open_saver(database, redis_url) as saver, Redis.from_url(redis_url) as redis:
        await thread.put(saver)
        before = exact(await saver.aget_tuple(thread.config))
        (key,) = await redis.keys()
        right = await redis.hget(key, "c:messages")
        await redis.hset(key, "c:messages", right.split(b"\0")[0] + b"\0msgpack\0\xc1")
        assert exact(await saver.aget_tuple(thread.config)) == before
        assert await redis.hget(key, "c:messages") == right
