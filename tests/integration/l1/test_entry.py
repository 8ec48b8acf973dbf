"""Whatever bytes stand in an entry, a reader gets the right value or asks PostgreSQL."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from entries import FIELDS, SCOPE, SERDE, SIGNER, as_bytes, stored
from glasspoint import create_telemetry
from glasspoint.l1.entry import TamperedImageError, UnusableImageError, decode_image, image_fields
from glasspoint.model import codec
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import SIZE, Signer
from states import counts, exact, numbered_id, open_saver
from steps import Thread, settled

RIGHT = exact(codec.decode_tuple(SERDE, stored()))


def decoded(fields: list[bytes]) -> Any:
    """The tuple in a strict form, or `None` for a miss."""
    try:
        return exact(codec.decode_tuple(SERDE, decode_image(SCOPE, fields, SIGNER)))
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
        decode_image(scope, FIELDS, SIGNER)


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
@pytest.mark.parametrize(
    "other",
    [Signer(b"o" * 16, "this generation"), Signer(b"k" * 16, "another generation"), Signer(b"k" * 16)],
    ids=["secret", "generation", "no generation"],
)
def test_a_field_of_another_secret_or_generation_is_refused(other: Signer, name: bytes) -> None:
    """One alone: a put leaves the other channels as they are."""
    at = FIELDS.index(name) + 1
    theirs = as_bytes(image_fields(stored(), other))
    assert exact(codec.decode_tuple(SERDE, decode_image(SCOPE, theirs, other))) == RIGHT
    with pytest.raises(TamperedImageError):
        decode_image(SCOPE, [*FIELDS[:at], theirs[at], *FIELDS[at + 1 :]], SIGNER)


@pytest.mark.parametrize("name", [n for n in FIELDS[::2] if n != b"id"])
@pytest.mark.parametrize("left", [0, 1, SIZE - 1])
def test_a_field_that_is_shorter_than_a_signature_is_refused(left: int, name: bytes) -> None:
    fields = list(FIELDS)
    at = fields.index(name) + 1
    fields[at] = fields[at][:left]
    assert decoded(fields) is None


@pytest.mark.parametrize("name", [n for n in FIELDS[::2] if n not in (b"id", b"c:gone")])
def test_nothing_of_a_field_is_parsed_that_is_not_verified(name: bytes) -> None:
    """Neither its value nor, of a pending write, its name."""
    at = FIELDS.index(name)
    right = FIELDS[at + 1]
    wrong = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(TamperedImageError):
        decode_image(SCOPE, [*FIELDS[:at], Sealed(name), Sealed(wrong), *FIELDS[at + 2 :]], SIGNER)
    with pytest.raises(UnusableImageError, match="unreadable: SealBrokenError"):  # a verified one is read
        decode_image(SCOPE, [*FIELDS[:at], Sealed(name), Sealed(right), *FIELDS[at + 2 :]], SIGNER)


class SealBrokenError(Exception):
    """Somebody has read what is sealed."""


class Sealed(bytes):
    """Bytes that can be copied, hashed and compared, but not decoded or taken apart."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return Sealed(found) if isinstance(found, bytes) else found

    def _break(self, *_: Any, **__: Any) -> NoReturn:
        raise SealBrokenError

    decode = split = rsplit = partition = rpartition = find = index = __iter__ = _break


@given(st.lists(st.tuples(st.sampled_from([*FIELDS[::2], b"c:x", b"w:", b""]), st.binary())))
def test_random_fields_never_raise(pairs: list[tuple[bytes, bytes]]) -> None:
    fields = [part for pair in pairs for part in pair]
    with pytest.raises(UnusableImageError):  # no head that could be right is ever drawn
        decode_image(SCOPE, fields, SIGNER)


@given(st.integers(0, len(FIELDS) // 2 - 1), st.data())
def test_a_damaged_field_is_a_miss(number: int, data: st.DataObject) -> None:
    fields = list(FIELDS)
    raw = fields[2 * number + 1]
    cut, length = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 8))
    damaged = raw[:cut] + data.draw(st.binary(max_size=8)) + raw[cut + length :]
    fields[2 * number + 1] = damaged
    assert decoded(fields) == (RIGHT if damaged == raw else None)


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


async def test_a_value_that_the_serializer_refuses_is_answered_by_postgres_and_warmed_up_again(
    database: str, redis_url: str
) -> None:
    class RefusesOnce(JsonPlusSerializer):
        refused = 0

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            self.refused += 1
            if self.refused == 1:
                raise ValueError("these bytes")
            return super().loads_typed(data)

    thread, serde, registry = Thread("t"), RefusesOnce(), CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with (
        open_saver(database, redis_url) as writer,
        open_saver(database, redis_url, serde=serde, telemetry=telemetry) as saver,
    ):
        await thread.put(writer)
        await settled(writer)
        assert [await thread.turn(saver) for _ in range(2)] == [1, 1]
    assert counts(registry, "glasspoint_l1_reads_total", "result") == {"incomplete": 1, "hit": 1}
