"""What is compressed in Redis is what went in, whoever reads it; bytes that only look so hurt nobody."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from conformance_suite import check_conformance
from glasspoint import CachedPostgresSaver, create_telemetry, get_checkpointer
from glasspoint.errors import ConfigurationError
from glasspoint.l1 import compression, entry
from glasspoint.l1.compression import LARGEST, Packer, unpack
from glasspoint.l1.entry import TamperedImageError, UnusableImageError, decode_image, image_fields
from glasspoint.model.codec import Encoded, EncodedWrite, StoredCheckpoint
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import SIZE, Signer
from states import counts, exact, numbered_id, open_saver, open_upstream
from steps import Thread, seeded_dice, settled

SCOPE = Scope("t", "ns")
SIGNER = Signer(b"sixteen bytes..!")
PROSE = "One sentence of a conversation that goes on and on, and is compressed well. " * 40
CAN_BE_PACKED = ("head", "c:messages", "w:")


def stored(data: bytes = PROSE.encode(), type_: str = "msgpack") -> StoredCheckpoint:
    versions = {"messages": "1.5", "gone": "1.5"}
    document = {"id": numbered_id(1), "channel_values": {"note": PROSE}, "channel_versions": versions}
    return StoredCheckpoint(
        scope=SCOPE,
        checkpoint_id=numbered_id(1),
        parent_id=None,
        document=document,
        metadata={"step": 1},
        values={"messages": ("1.5", Encoded(type_, data))},
        writes=[EncodedWrite("task", 0, "messages", Encoded(type_, data), "~path")],
        document_json=json.dumps(document),
        metadata_json='{"step": 1}',
    )


def fields_of(image: StoredCheckpoint, packer: Packer | None = None) -> dict[bytes, bytes]:
    flat = [part.encode() if isinstance(part, str) else part for part in image_fields(image, SIGNER, packer)]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decoded(fields: dict[bytes, bytes]) -> StoredCheckpoint:
    return decode_image(SCOPE, [part for pair in fields.items() for part in pair], SIGNER)


def signed(name: bytes, value: bytes) -> bytes:
    """A field that our own key has signed, whatever it holds."""
    signed_name = b"head:" + numbered_id(1).encode() if name == b"head" else name
    return value + SIGNER.of(SCOPE).sign(signed_name, value)


def content(image: StoredCheckpoint) -> dict[str, Any]:
    """All of it but for the texts that it was parsed from, and their length."""
    parsed_from = {"document_json", "metadata_json", "document_bytes"}
    return {f.name: getattr(image, f.name) for f in dataclasses.fields(image) if f.name not in parsed_from}


# ------------------------------------------------------------------ the entry


@given(data=st.binary() | st.binary(min_size=1).map(lambda b: b * 500), type_=st.text(max_size=8))
@example(data=b"\0" * 5000, type_="")
@example(data=zstandard.compress(b"x" * 5000), type_="zstd")
def test_the_entry_gives_back_what_went_in(data: bytes, type_: str) -> None:
    image = stored(data, type_.replace("\0", ""))
    fields = fields_of(image, Packer(min_bytes=0))
    assert content(decoded(fields)) == content(image)
    assert fields.keys() == fields_of(image).keys()


def test_what_is_long_takes_less_and_what_is_short_stays_as_it_is() -> None:
    packed, plain = fields_of(stored(), Packer()), fields_of(stored())
    for name in plain:
        if name.decode().startswith(CAN_BE_PACKED):
            assert len(packed[name]) < len(plain[name]) / 5
        else:
            assert packed[name] == plain[name]
    short = stored(b"x" * (compression.MIN_BYTES - 1))
    name = b"c:messages"
    assert fields_of(short, Packer())[name] == fields_of(short)[name]
    just = stored(b"x" * compression.MIN_BYTES)
    assert fields_of(just, Packer())[name] != fields_of(just)[name]
    assert fields_of(just, Packer(min_bytes=2000))[name] == fields_of(just)[name]


def test_what_gains_nothing_and_what_is_too_large_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Packer().pack(random.Random(1).randbytes(100_000)) is None
    monkeypatch.setattr(compression, "LARGEST", 9_999)
    assert Packer().pack(b"x" * 9_999) is not None
    assert Packer().pack(b"x" * 10_000) is None


def test_the_size_that_is_measured_is_that_of_the_state_not_of_the_frames() -> None:
    assert decoded(fields_of(stored(), Packer())).size == decoded(fields_of(stored())).size


def test_packed_and_plain_fields_stand_beside_each_other() -> None:
    """A put of one process leaves channels of another."""
    packed, plain = fields_of(stored(), Packer()), fields_of(stored())
    for name in packed:
        assert content(decoded({**plain, name: packed[name]})) == content(stored())
        assert content(decoded({**packed, name: plain[name]})) == content(stored())


def test_the_scripts_see_the_same_version_before_the_first_nul() -> None:
    packed, plain = fields_of(stored(), Packer()), fields_of(stored())
    for name in (b"c:messages", b"c:gone"):
        assert packed[name].split(b"\0")[0] == plain[name].split(b"\0")[0] == b"1.5"


def test_nothing_is_unpacked_that_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[bytes] = []
    right = fields_of(stored(), Packer())

    def spy(frame: bytes) -> bytes:
        unpacked.append(frame)
        return unpack(frame)

    monkeypatch.setattr(entry, "unpack", spy)
    decoded(right)
    frames = list(unpacked)
    packed = [name for name in right if name.decode().startswith(CAN_BE_PACKED)]
    assert len(frames) == len(packed) == 3
    for number, name in enumerate(packed):
        own = right[name]
        for wrong in (own[:-1] + bytes([own[-1] ^ 1]), own[:60] + b"x" + own[61:], own[:-SIZE]):
            unpacked.clear()
            with pytest.raises(TamperedImageError):
                decoded({**right, name: wrong})
            assert unpacked == frames[:number]


# ------------------------------------------------------------------ frames that nobody here made


def without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def lying(frame: bytes, size: int) -> bytes:
    """The frame, its header saying that so much is in it: eight bytes behind magic number and descriptor."""
    made = zstandard.ZstdCompressor().compress(b"\0" * (1 << 17))  # four bytes of size, one segment
    assert made[:5] == b"\x28\xb5\x2f\xfd\xa0"
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + frame[9:]


ZEROS = zstandard.ZstdCompressor().compress(b"\0" * (1 << 17))
FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(PROSE.encode())
BAD_FRAMES: dict[str, bytes] = {
    "nothing": b"",
    "no frame": b"no frame at all",
    "cut": FRAME[:-1],
    "cut in the header": FRAME[:5],
    "something behind it": FRAME + b"x",
    "another frame behind it": FRAME + FRAME,
    "a damaged checksum": FRAME[:-1] + bytes([FRAME[-1] ^ 1]),
    "no size": without_size(PROSE.encode()),
    "a gigabyte, it says": lying(ZEROS, 1 << 30),
    "an exabyte, it says": lying(ZEROS, 1 << 60),
    "one more than may be": lying(ZEROS, LARGEST + 1),
    "more than there is": lying(ZEROS, LARGEST),
    "less than there is": lying(ZEROS, 1000),
    "a skippable frame": b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
}


@pytest.mark.parametrize("name", ["head", "c:messages", f"w:{numbered_id(1)}:task:0"])
@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_bad_frame_makes_an_image_unusable_even_if_it_is_signed(frame: bytes, name: str) -> None:
    right, field = fields_of(stored(), Packer()), name.encode()
    start = right[field].split(b"\x28\xb5\x2f\xfd")[0]
    assert content(decoded({**right, field: signed(field, right[field][:-SIZE])})) == content(stored())
    with pytest.raises(UnusableImageError, match="unreadable"):
        decoded({**right, field: signed(field, start + frame)})


def test_a_bomb_is_refused_before_it_takes_any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def decompress(self, *_: object, **__: object) -> bytes:
            raise AssertionError("it was unpacked")

    monkeypatch.setattr(compression._contexts, "decompressor", Never())
    for name in ("no size", "a gigabyte, it says", "one more than may be"):
        with pytest.raises(ValueError, match="size"):
            unpack(BAD_FRAMES[name])
    with pytest.raises(AssertionError):
        unpack(FRAME)


def test_a_flipped_bit_in_a_frame_never_makes_another_value() -> None:
    """Also of random letters, most of which stand in the frame as they are."""
    letters = "".join(random.Random(1).choices("abcdefgh", k=2000))
    for text in (PROSE.encode(), letters.encode()):
        frame = Packer().pack(text)
        assert frame is not None
        for bit in range(8 * len(frame)):
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            with suppress(ValueError, zstandard.ZstdError):
                assert unpack(bytes(damaged)) == text


# ------------------------------------------------------------------ savers


@asynccontextmanager
async def counted(
    database: str, redis_url: str, **options: Any
) -> AsyncIterator[tuple[CachedPostgresSaver, Callable[[], dict[str, int]]]]:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry, **options) as saver:
        yield saver, lambda: dict(counts(registry, "glasspoint_l1_reads_total", "result"))


@pytest.mark.dice
async def test_processes_that_differ_in_it_hit_each_others_entries_and_answer_as_postgres(
    database: str, redis_url: str
) -> None:
    dice = seeded_dice()
    async with (
        counted(database, redis_url) as (off, off_reads),
        counted(database, redis_url, l1_compression="zstd") as (zstd, zstd_reads),
        counted(database, redis_url, l1_compression="zstd", l1_compression_min_bytes=0) as (
            everything,
            all_reads,
        ),
        open_upstream(database) as upstream,
        Redis.from_url(redis_url) as redis,
    ):
        savers = [off, zstd, everything]
        thread = Thread("t")
        for _ in range(30):
            more = {"other": PROSE[: dice.randrange(3000)].split(" ")} if dice.random() < 0.7 else {}
            writer = dice.choice(savers)
            await thread.put(writer, **more)
            await settled(writer)
            for task in range(dice.randrange(3)):
                writer = dice.choice(savers)
                await thread.put_writes(writer, PROSE[: dice.randrange(3000)], f"task {task}")
                await settled(writer)
            if dice.random() < 0.3:
                await redis.flushall()
            expected = exact(await upstream.aget_tuple(thread.config))
            for saver in dice.sample(savers, 3):
                assert exact(await saver.aget_tuple(thread.config)) == expected
    for reads in (off_reads(), zstd_reads(), all_reads()):
        assert reads["hit"] > 15
        assert reads.keys() <= {"hit", "miss"}


async def test_redis_holds_less_and_postgres_the_same(database: str, redis_url: str) -> None:
    taken: dict[str, Any] = {}
    async with Redis.from_url(redis_url) as redis:
        for compression_ in ("off", "zstd"):
            thread = Thread(compression_)
            async with open_saver(database, redis_url, l1_compression=compression_) as saver:
                await thread.put(saver, other=[PROSE])
                await thread.put_writes(saver, PROSE)
                await settled(saver)
                (key,) = await redis.keys()
                taken[compression_] = await redis.memory_usage(key, samples=0)
                await redis.delete(key)
                await saver.aget_tuple(thread.config)  # a warm-up compresses, too
                now: Any = await redis.memory_usage(key, samples=0)
                assert abs(now - taken[compression_]) < 200
                await redis.delete(key)
    assert taken["zstd"] < taken["off"] / 3


@pytest.mark.parametrize("capability", ["get_tuple", "put", "put_writes"])
@pytest.mark.usefixtures("checkpoint_format")
async def test_conforms_with_everything_compressed(capability: str, database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    await check_conformance(
        capability,
        "compressed",
        lambda: open_saver(
            database,
            redis_url,
            telemetry=telemetry,
            l1_compression="zstd",
            l1_compression_min_bytes=0,
        ),
    )
    reads = counts(registry, "glasspoint_l1_reads_total", "result")
    assert reads["hit"]
    assert reads.keys() <= {"hit", "miss", "absent", "historical", "bypassed"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"l1_compression": "gzip"}, '"off" or "zstd"'),
        ({"l1_compression": True}, '"off" or "zstd"'),
        ({"l1_compression_min_bytes": -1}, "whole number of bytes, 0 or more"),
    ],
)
async def test_what_cannot_be_had_is_an_error_that_says_what_can(
    options: dict[str, Any], says: str, database: str, redis_url: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        async with open_saver(database, redis_url, **options):
            pass


async def test_the_environment_turns_it_on(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CHECKPOINT_L1_COMPRESSION", "zstd")
    monkeypatch.setenv("CHECKPOINT_L1_COMPRESSION_MIN_BYTES", "3000")
    telemetry = create_telemetry(registry=CollectorRegistry())
    thread = Thread("t")
    async with get_checkpointer(telemetry=telemetry) as chain, Redis.from_url(redis_url) as redis:
        await thread.put(chain, longer=["x" * 3000], shorter=["x" * 2900])
        saver = chain._chain.saver
        assert isinstance(saver, CachedPostgresSaver)
        await settled(saver)
        (key,) = await redis.keys("*{t}*")
        assert await redis.hstrlen(key, "c:longer") < 200
        assert await redis.hstrlen(key, "c:shorter") > 2900
