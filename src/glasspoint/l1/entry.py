"""The entry: between a stored checkpoint and the fields of one Redis hash. Pure, no I/O.

| field | holds |
|---|---|
| `id` | checkpoint id of the image |
| `head` | JSON: scope, parent id, metadata, the checkpoint without the values kept per channel |
| `c:<channel>` | version, or version NUL type NUL value |
| `w:<checkpoint id>:<task id>:<idx>` | channel NUL type NUL task path NUL value |

A signed field has its signature at the end (see `signature`), and a mark before its type, so that a saver
without a key takes it for unusable, not for a value with something behind it:

| field, signed | holds |
|---|---|
| `head` | the JSON, which names another format; signature |
| `c:<channel>` | version NUL mark signature, or version NUL mark type NUL value signature |
| `w:<checkpoint id>:<task id>:<idx>` | channel NUL mark type NUL task path NUL value signature |

A packed field holds a compressed value (see `compression`), and another mark that says so:

| field, packed | holds |
|---|---|
| `head` | mark, frame of the JSON |
| `c:<channel>` | version NUL mark type NUL frame |
| `w:<checkpoint id>:<task id>:<idx>` | channel NUL mark type NUL task path NUL frame |

In a signed field this mark stands behind the other one, and the signature is of all that: nothing is unpacked
that is not verified. The mark is no UTF-8, so a process older than packing finds such a field unreadable;
every other one reads packed and plain fields alike.

NUL separates because none of the texts can hold one: PostgreSQL refuses it, and so does `codec`. The scripts
beside this file know the fields `id`, `lease`, the prefixes `i:` and `w:`, and the NUL after a version.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from glasspoint.codec import (
    Encoded,
    EncodedPut,
    EncodedWrite,
    StoredCheckpoint,
    version_text,
    versions_of,
)
from glasspoint.errors import GlasspointError
from glasspoint.l1.compression import unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from glasspoint.l1.compression import Packer
    from glasspoint.l1.signature import Signer
    from glasspoint.scope import Scope

__all__ = [
    "TamperedImageError",
    "UnusableImageError",
    "decode_image",
    "image_fields",
    "put_fields",
    "void_fields",
    "write_fields",
]

_FORMAT, _SIGNED_FORMAT = 1, 2
_MARK = "\1"
_PACKED = b"\xff"


class UnusableImageError(GlasspointError):
    """An image that must not be used: incomplete, of another scope, or not readable. A miss."""


class TamperedImageError(UnusableImageError):
    """A field of an image is not signed with this saver's key: somebody changed it, or another saver has
    another key, or none."""


def image_fields(
    stored: StoredCheckpoint, signer: Signer | None = None, packer: Packer | None = None
) -> list[bytes | str]:
    """Return a whole image as field, value, field, value …, for WARM_UP."""
    fields: list[bytes | str] = ["id", stored.checkpoint_id]
    fields += ["head", _head(stored.scope, stored, signer, packer)]
    inline = stored.document.get("channel_values") or {}
    for channel, version in versions_of(stored.document).items():
        if channel in stored.values:
            fields += _channel(stored.scope, channel, *stored.values[channel], signer, packer)
        elif channel not in inline:
            fields += _channel(stored.scope, channel, version_text(version), None, signer)
    return fields + write_fields(stored.scope, stored.checkpoint_id, stored.writes, signer, packer)


def put_fields(
    scope: Scope, put: EncodedPut, signer: Signer | None = None, packer: Packer | None = None
) -> list[bytes | str]:
    """Return what a put changes, as field, value, …: the head and the channels with new values."""
    fields: list[bytes | str] = ["head", _head(scope, put, signer, packer)]
    for channel, (version, value) in put.blobs.items():
        fields += _channel(scope, channel, version, value, signer, packer)
    return fields


def void_fields(scope: Scope, put: EncodedPut, signer: Signer | None = None) -> list[bytes | str]:
    """Return the channels that have no value at their new version, as field, version, …"""
    voids = put.voids.items()
    return [part for c, version in voids for part in _channel(scope, c, version, None, signer)]


def write_fields(
    scope: Scope,
    checkpoint_id: str,
    writes: Iterable[EncodedWrite],
    signer: Signer | None = None,
    packer: Packer | None = None,
) -> list[bytes | str]:
    """Return pending writes as field, value, …"""
    fields: list[bytes | str] = []
    for write in writes:
        type_, data = _type_and_data(write.value, signer, packer)
        raw = b"%b\0%b\0%b\0%b" % (write.channel.encode(), type_, write.task_path.encode(), data)
        name = f"w:{checkpoint_id}:{write.task_id}:{write.idx}"
        fields += [name, _signed(signer, scope, name, raw)]
    return fields


def decode_image(scope: Scope, fields: Sequence[bytes], signer: Signer | None = None) -> StoredCheckpoint:
    """Read an image out of a hash's fields, given as field, value, …

    Args:
        signer: Believe only what this one signed; `None`: only what nobody did.

    Raises:
        TamperedImageError: A field that should be signed is not, or not so.
        UnusableImageError: Something is missing: the image is not of this scope, a channel has no field of
            exactly the version that the head names, or bytes are not what this version writes.
    """
    try:
        return _decode(scope, fields, signer)
    except UnusableImageError:
        raise
    except Exception as exc:  # whatever bytes can do to a parser; the image is refused, L2 answers
        raise UnusableImageError(f"unreadable: {type(exc).__name__}") from exc


def _decode(scope: Scope, fields: Sequence[bytes], signer: Signer | None) -> StoredCheckpoint:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    checkpoint_id = by_name[b"id"].decode()
    head_json = _verified(signer, scope, b"head", by_name[b"head"], by_name[b"id"])
    if head_json.startswith(_PACKED):
        head_json = unpack(head_json[len(_PACKED) :])
    head = json.loads(head_json)
    if head["format"] != _format(signer) or head["scope"] != list(scope):
        raise UnusableImageError("of another scope or format")
    document = head["checkpoint"]
    if document["id"] != checkpoint_id:
        raise UnusableImageError("the head is of another checkpoint")
    values: dict[str, tuple[str, Encoded]] = {}
    inline = document.get("channel_values") or {}
    for channel, version in versions_of(document).items():
        name = b"c:" + channel.encode()
        raw = by_name.get(name)
        wanted = version_text(version)
        start = wanted.encode()
        if raw is None or not (raw == start or raw.startswith(start + b"\0")):
            if channel in inline:
                continue
            raise UnusableImageError("incomplete: a channel has another version here")
        value = _decode_value(_verified(signer, scope, name, raw), signer)
        if value is not None:
            values[channel] = (wanted, value)
    return StoredCheckpoint(
        scope=scope,
        checkpoint_id=checkpoint_id,
        parent_id=head["parent_id"],
        document=document,
        metadata=head["metadata"],
        values=values,
        writes=_decode_writes(scope, by_name, f"w:{checkpoint_id}:".encode(), signer),
        document_bytes=len(head_json),
    )


def _decode_value(raw: bytes, signer: Signer | None) -> Encoded | None:
    _, *parts = raw.split(b"\0", 2)
    if len(parts) == 2:
        return _encoded(parts[0], parts[1], signer)
    if parts != ([_MARK.encode()] if signer else []):
        raise UnusableImageError("unreadable: a channel's field")
    return None


def _decode_writes(
    scope: Scope, by_name: dict[bytes, bytes], prefix: bytes, signer: Signer | None
) -> list[EncodedWrite]:
    writes = []
    for name, raw in by_name.items():
        if name.startswith(prefix):
            task_id, idx = name[len(prefix) :].decode().rsplit(":", 1)
            channel, type_, path, data = _verified(signer, scope, name, raw).split(b"\0", 3)
            if idx != str(int(idx)):
                raise UnusableImageError("unreadable: a pending write's number")
            value = _encoded(type_, data, signer)
            writes.append(EncodedWrite(task_id, int(idx), channel.decode(), value, path.decode()))
    return writes


def _encoded(type_: bytes, data: bytes, signer: Signer | None) -> Encoded:
    """Read the type, its marks, and what they say of the data."""
    mark = _MARK.encode()
    if type_.startswith(mark) != (signer is not None):
        raise UnusableImageError("signed, and this saver has no key")
    type_ = type_.removeprefix(mark)
    if type_.startswith(_PACKED):
        return Encoded(type_.removeprefix(_PACKED).decode(), unpack(data))
    return Encoded(type_.decode(), data)


def _type_and_data(value: Encoded, signer: Signer | None, packer: Packer | None) -> tuple[bytes, bytes]:
    """The other way round."""
    mark = _MARK if signer else ""
    frame = packer.pack(value.data) if packer else None
    if frame is None:
        return f"{mark}{value.type}".encode(), value.data
    return mark.encode() + _PACKED + value.type.encode(), frame


def _verified(
    signer: Signer | None, scope: Scope, name: bytes, raw: bytes, checkpoint_id: bytes = b""
) -> bytes:
    if signer is None:
        return raw
    value = signer.verified(scope, name, raw, checkpoint_id)
    if value is None:
        kind = {b"c:": "a channel's value", b"w:": "a pending write"}.get(name[:2], "the head")
        raise TamperedImageError(f"the signature of {kind} is not right")
    return value


def _signed(signer: Signer | None, scope: Scope, name: str, value: bytes, checkpoint_id: str = "") -> bytes:
    if signer is None:
        return value
    return value + signer.sign(scope, name.encode(), value, checkpoint_id.encode())


def _format(signer: Signer | None) -> int:
    return _FORMAT if signer is None else _SIGNED_FORMAT


def _head(
    scope: Scope, of: StoredCheckpoint | EncodedPut, signer: Signer | None, packer: Packer | None
) -> bytes:
    # Joined, not dumped: the two long parts are JSON already.
    start = json.dumps({"format": _format(signer), "scope": scope, "parent_id": of.parent_id})
    text = f'{start[:-1]}, "metadata": {of.metadata_json}, "checkpoint": {of.document_json}}}'
    head = text.encode()
    frame = packer.pack(head) if packer else None
    return _signed(signer, scope, "head", head if frame is None else _PACKED + frame, of.checkpoint_id)


def _channel(
    scope: Scope,
    channel: str,
    version: str,
    value: Encoded | None,
    signer: Signer | None,
    packer: Packer | None = None,
) -> list[bytes | str]:
    name = f"c:{channel}"
    if value is not None:
        raw = b"%b\0%b\0%b" % (version.encode(), *_type_and_data(value, signer, packer))
    else:
        raw = f"{version}\0{_MARK}".encode() if signer else version.encode()
    return [name, _signed(signer, scope, name, raw)]
