"""The entry: between a stored checkpoint and the fields of one Redis hash. Pure, no I/O.

| field | holds |
|---|---|
| `id` | checkpoint id of the image |
| `head` | JSON: scope, parent id, metadata, the checkpoint without the values kept per channel |
| `c:<channel>` | version, or version NUL type NUL value |
| `w:<checkpoint id>:<task id>:<idx>` | channel NUL type NUL task path NUL value |

NUL separates because none of the texts can hold one: PostgreSQL refuses it, and so does `codec`. The scripts
beside this file know the fields `id`, `lease`, the prefixes `i:` and `w:`, and the NUL after a version.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from glasspoint.codec import Encoded, EncodedPut, EncodedWrite, StoredCheckpoint, version_text
from glasspoint.errors import GlasspointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from glasspoint.scope import Scope

__all__ = ["UnusableImageError", "decode_image", "image_fields", "put_fields", "void_fields", "write_fields"]

_FORMAT = 1


class UnusableImageError(GlasspointError):
    """An image that must not be used: incomplete, of another scope, or not readable. A miss."""


def image_fields(stored: StoredCheckpoint) -> list[bytes | str]:
    """Return a whole image as field, value, field, value …, for WARM_UP."""
    fields: list[bytes | str] = [
        "id",
        stored.checkpoint_id,
        "head",
        _head(stored.scope, stored.parent_id, stored.document_json, stored.metadata_json),
    ]
    inline = stored.document.get("channel_values") or {}
    for channel, version in stored.document["channel_versions"].items():
        if channel in stored.values:
            fields += [f"c:{channel}", _value(*stored.values[channel])]
        elif channel not in inline:
            fields += [f"c:{channel}", version_text(version)]
    return fields + write_fields(stored.checkpoint_id, stored.writes)


def put_fields(scope: Scope, put: EncodedPut) -> list[bytes | str]:
    """Return what a put changes, as field, value, …: the head and the channels with new values."""
    fields: list[bytes | str] = [
        "head",
        _head(scope, put.parent_id, put.document_json, put.metadata_json),
    ]
    for channel, (version, value) in put.blobs.items():
        fields += [f"c:{channel}", _value(version, value)]
    return fields


def void_fields(put: EncodedPut) -> list[str]:
    """Return the channels that have no value at their new version, as field, version, …"""
    return [part for channel, version in put.voids.items() for part in (f"c:{channel}", version)]


def write_fields(checkpoint_id: str, writes: Iterable[EncodedWrite]) -> list[bytes | str]:
    """Return pending writes as field, value, …"""
    fields: list[bytes | str] = []
    for write in writes:
        texts = f"{write.channel}\0{write.value.type}\0{write.task_path}\0"
        fields += [f"w:{checkpoint_id}:{write.task_id}:{write.idx}", texts.encode() + write.value.data]
    return fields


def decode_image(scope: Scope, fields: Sequence[bytes]) -> StoredCheckpoint:
    """Read an image out of a hash's fields, given as field, value, …

    Raises:
        UnusableImageError: Something is missing: the image is not of this scope, a channel has no field of
            exactly the version that the head names, or bytes are not what this version writes.
    """
    try:
        return _decode(scope, fields)
    except UnusableImageError:
        raise
    except Exception as exc:  # whatever bytes can do to a parser; the image is refused, L2 answers
        raise UnusableImageError(f"unreadable: {type(exc).__name__}") from exc


def _decode(scope: Scope, fields: Sequence[bytes]) -> StoredCheckpoint:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    checkpoint_id = by_name[b"id"].decode()
    head = json.loads(by_name[b"head"])
    if head["format"] != _FORMAT or head["scope"] != list(scope):
        raise UnusableImageError("of another scope or format")
    document = head["checkpoint"]
    if document["id"] != checkpoint_id:
        raise UnusableImageError("the head is of another checkpoint")
    values: dict[str, tuple[str, Encoded]] = {}
    inline = document["channel_values"]
    for channel, version in document["channel_versions"].items():
        raw = by_name.get(b"c:" + channel.encode())
        parts = raw.split(b"\0", 2) if raw is not None else []
        wanted = version_text(version)
        if not parts or parts[0].decode() != wanted:
            if channel in inline:
                continue
            raise UnusableImageError("incomplete: a channel has another version here")
        if len(parts) == 3:
            values[channel] = (wanted, Encoded(parts[1].decode(), parts[2]))
        elif len(parts) != 1:
            raise UnusableImageError("unreadable: a channel's field")
    return StoredCheckpoint(
        scope=scope,
        checkpoint_id=checkpoint_id,
        parent_id=head["parent_id"],
        document=document,
        metadata=head["metadata"],
        values=values,
        writes=_decode_writes(by_name, f"w:{checkpoint_id}:".encode()),
        document_bytes=len(by_name[b"head"]),
    )


def _decode_writes(by_name: dict[bytes, bytes], prefix: bytes) -> list[EncodedWrite]:
    writes = []
    for name, raw in by_name.items():
        if name.startswith(prefix):
            task_id, idx = name[len(prefix) :].rsplit(b":", 1)
            channel, type_, path, data = raw.split(b"\0", 3)
            value = Encoded(type_.decode(), data)
            writes.append(EncodedWrite(task_id.decode(), int(idx), channel.decode(), value, path.decode()))
    return writes


def _head(scope: Scope, parent_id: str | None, document_json: str, metadata_json: str) -> str:
    # Joined, not dumped: the two long parts are JSON already.
    start = json.dumps({"format": _FORMAT, "scope": scope, "parent_id": parent_id})
    return f'{start[:-1]}, "metadata": {metadata_json}, "checkpoint": {document_json}}}'


def _value(version: str, value: Encoded) -> bytes:
    return f"{version}\0{value.type}\0".encode() + value.data
