"""Who can write to Redis, but not to PostgreSQL, runs no code in the application.

LangGraph's serializer calls what a value names (CVE-2026-27794, CVE-2026-28277). With its defaults that is
any importable callable, and only a warning is logged. So no value from Redis is given to the serializer
before its signature is verified.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import create_telemetry
from glasspoint.l1.entry import decode_image, image_fields
from glasspoint.model import codec
from glasspoint.model.codec import Encoded, EncodedWrite, StoredCheckpoint
from glasspoint.model.scope import Scope, scope_of
from glasspoint.redis.signature import SIZE, Signer
from payloads import PAYLOADS, Fields, armed
from states import counts, exact, open_saver, open_upstream
from steps import Thread, settled

KEY = b"sixteen bytes..!"
OPTIONS: dict[str, Any] = {}

HEAD, VALUE, VOID, INLINE = b"head", b"c:messages", b"c:branch:to:agent", b"c:turn"


# ------------------------------------------------------------------ bytes that run code: it makes a directory


# ------------------------------------------------------------------ where they are put


def forged(scope: Scope, own: Fields, payload: Encoded, signer: Signer) -> Fields:
    """A whole entry with the payload in it, as a process with this signer would have stored it."""
    head = json.loads(own[HEAD][:-SIZE])
    document, metadata = head["checkpoint"], head["metadata"]
    image = StoredCheckpoint(
        scope=scope,
        checkpoint_id=document["id"],
        parent_id=head["parent_id"],
        document=document,
        metadata=metadata,
        values={"messages": (document["channel_versions"]["messages"], payload)},
        writes=[EncodedWrite("task", 0, "messages", payload, "")],
        document_json=json.dumps(document),
        metadata_json=json.dumps(metadata),
    )
    parts = [part.encode() if isinstance(part, str) else part for part in image_fields(image, signer)]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def places(scope: Scope, own: Fields, payload: Encoded) -> Iterator[tuple[str, Fields]]:
    """What to change of an entry so that the payload is in it."""
    type_, data = payload.type.encode(), payload.data
    frame = zstandard.compress(data)
    of = {name: own[name][-SIZE:] for name in (HEAD, VALUE, VOID)}
    version = own[VALUE].split(b"\0")[0]
    write = b"w:%b:task:0" % own[b"id"]
    value = b"%b\0%b\0%b" % (version, type_, data)
    pending = b"messages\0%b\0\0%b" % (type_, data)

    yield "a value", {VALUE: value}
    yield (
        "a value, as an older release marked what is signed",
        {VALUE: b"%b\0\1%b\0%b" % (version, type_, data) + of[VALUE]},
    )
    yield "a value, with the right one's signature", {VALUE: value + of[VALUE]}
    yield "a packed value", {VALUE: b"%b\0\xff%b\0%b" % (version, type_, frame) + of[VALUE]}
    yield "where there is no value", {VOID: value + of[VOID]}
    yield "where the head has the value", {INLINE: value}
    yield "a pending write", {write: pending + own[write][-SIZE:]}
    yield "a packed pending write", {write: b"messages\0\xff%b\0\0%b" % (type_, frame) + own[write][-SIZE:]}
    yield "a pending write that nobody made", {b"w:%b:other:0" % own[b"id"]: pending}
    yield "an error that nobody made", {b"w:%b:task:-1" % own[b"id"]: b"__error__\0%b\0\0%b" % (type_, data)}
    yield "the head", {HEAD: data + of[HEAD]}
    yield "a packed head", {HEAD: b"\xff" + frame + of[HEAD]}
    yield "a whole entry of another secret", forged(scope, own, payload, Signer(b"another sixteen!"))
    yield "a whole entry of another generation", forged(scope, own, payload, Signer(KEY, "another"))


@pytest.mark.parametrize("what", PAYLOADS)
async def test_bytes_that_run_code_are_refused_unread_wherever_they_stand(
    what: str, database: str, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "made"
    serde, payload = armed(what, path)

    registry, thread = CollectorRegistry(), Thread("t")
    scope, telemetry = scope_of(thread.config), create_telemetry(registry=registry)
    invalidations = partial(counts, registry, "glasspoint_l1_invalidations_total", "source")
    reads = partial(counts, registry, "glasspoint_l1_reads_total", "result")
    async with (
        open_saver(
            database, redis_url, serde=serde, telemetry=telemetry, audit_ratio=1.0, **OPTIONS
        ) as saver,
        open_upstream(database) as upstream,
        Redis.from_url(redis_url) as redis,
    ):
        await thread.put(saver)
        await thread.put_writes(saver, "pending")
        await settled(saver)
        expected = exact(await upstream.aget_tuple(thread.config))
        (key,) = await redis.keys()
        right: Any = await redis.hgetall(key)
        put_there = list(places(scope, right, payload))
        for where, fields in put_there:
            await redis.delete(key)
            await redis.hset(key, mapping=right | fields)
            before = reads(), invalidations()
            assert exact(await saver.aget_tuple(thread.config)) == expected, where
            assert reads() - before[0] == {"incomplete": 1}, where
            assert invalidations() - before[1] == {"tampered": 1}, where
            assert exact(await saver.aget_tuple(thread.config)) == expected, where
            assert reads() - before[0] == {"incomplete": 1, "hit": 1}, where
            assert not path.exists(), where
        assert payload.data not in serde.read
    assert invalidations() == {"tampered": len(put_there)}
    assert not path.exists()


def test_only_the_signature_stands_between_such_an_entry_and_the_serializer(tmp_path: Path) -> None:
    """Such an entry runs code if it is signed with the right key: what is refused above is well made."""
    _, make = PAYLOADS["a call"]
    thread, path = Thread("t"), tmp_path / "made"
    scope, signer = scope_of(thread.config), Signer(KEY, "generation")
    checkpoint = thread.next_put(InMemorySaver())[1]
    head = json.dumps({"parent_id": None, "metadata": {}, "checkpoint": {**checkpoint, "channel_values": {}}})
    entry = forged(scope, {HEAD: head.encode() + bytes(SIZE)}, make(path), signer)
    image = decode_image(scope, [part for pair in entry.items() for part in pair], signer)
    codec.decode_tuple(JsonPlusSerializer(), image)
    assert path.exists()
