"""The entry: converts a stored checkpoint into the fields of one Redis hash, and back. Pure, no I/O.

| field | holds |
|---|---|
| `id` | checkpoint id of the image |
| `head` | JSON (scope, parent id, snapshots, metadata, checkpoint without the values of fields), signature |
| `c:<channel>` | version NUL type NUL value signature, or version NUL signature: no value at this version |
| `w:<checkpoint id>:<task id>:<idx>` | channel NUL type NUL task path NUL value signature |

Snapshots are channels that have both a field and a mark in the checkpoint, in the place of the value.
LangGraph stores the snapshots of delta channels in this way. Without its field, such a channel is incomplete.

The signature (see `signature`) covers all bytes before it, the scope, and the field's name; in the head, also
the checkpoint id. A field is verified before it is parsed. Only two things are done before that: fields are
looked up by name, and a channel's version is compared with the version in the verified head.

A packed field holds a compressed value (see `compression`), and a mark (0xFF) that tells so:

| field, packed | holds |
|---|---|
| `head` | mark, frame of the JSON, signature |
| `c:<channel>` | version NUL mark type NUL frame signature |
| `w:<checkpoint id>:<task id>:<idx>` | channel NUL mark type NUL task path NUL frame signature |

The signature covers the frame, so a frame is verified before it is unpacked. An entry can hold packed and
plain fields.

NUL is the separator, because none of the texts can hold NUL: PostgreSQL refuses it, and so does `codec`. The
Lua scripts know the fields `id` and `lease`, and the prefixes `i:` and `w:`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glasspoint.errors import GlasspointError
from glasspoint.l1.compression import unpack
from glasspoint.model.codec import (
    Encoded,
    EncodedPut,
    EncodedWrite,
    StoredCheckpoint,
    is_readable,
    version_text,
    versions_of,
)
from glasspoint.model.scope import is_ordered_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from glasspoint.l1.compression import Packer
    from glasspoint.model.scope import Scope
    from glasspoint.redis.signature import ScopeSigner, Signer

    _WriteKey: TypeAlias = tuple[str, str, int]  # checkpoint id, task id, idx

__all__ = [
    "Changes",
    "TamperedImageError",
    "UnusableImageError",
    "decode_image",
    "image_fields",
]

_FORMAT = 3

# The mark of a packed field. It is not valid UTF-8, so neither JSON nor a type begins with it.
_PACKED = b"\xff"

# The head is signed with this text and the checkpoint id, in place of a field name.
_HEAD = b"head:"

# Made once, and without a search for white space: `json.loads` takes a third longer for a short text.
_parse_json = json.JSONDecoder().raw_decode


class UnusableImageError(GlasspointError):
    """An image must not be used, and is a miss: it is incomplete, of another scope, or not readable."""


class TamperedImageError(UnusableImageError):
    """The signature of a field is wrong: somebody changed the field, or another saver has another key."""


def image_fields(stored: StoredCheckpoint, signer: Signer, packer: Packer | None = None) -> list[bytes | str]:
    """Return a whole image as field, value, field, value …, for WARM_UP."""
    scope_signer = signer.of(stored.scope)
    fields: list[bytes | str] = ["id", stored.checkpoint_id]
    inline = stored.document.get("channel_values") or {}
    snapshots = [channel for channel in stored.values if channel in inline]
    fields += _head(stored.scope, stored, snapshots, scope_signer, packer)
    for channel, version in versions_of(stored.document).items():
        if channel in stored.values:
            fields += _channel(channel, *stored.values[channel], scope_signer, packer)
        elif channel not in inline:
            fields += _void(channel, version_text(version), scope_signer)
    return fields + _writes(stored.checkpoint_id, stored.writes, scope_signer, packer)


@dataclass(slots=True)
class Changes:
    """The changes in the entry of a scope by all writes of a burst.

    Attributes:
        newest: The newest checkpoint that was put; `None` if none was.
        writes: (checkpoint id, task id, idx) -> pending write.
        needed: Such keys, of writes that L2 had before the burst. The image must hold these writes.
        can_follow: Whether these changes make the entry equal to L2. If not, the entry must be dropped.
        size: The size of the values, in bytes.
    """

    newest: EncodedPut | None = None
    writes: dict[_WriteKey, EncodedWrite] = field(default_factory=dict)
    needed: set[_WriteKey] = field(default_factory=set)
    can_follow: bool = True
    size: int = 0
    _channels: dict[str, tuple[str, EncodedPut]] = field(default_factory=dict)

    def put(self, put: EncodedPut, *, is_as_sent: bool, known_writes: Iterable[str]) -> None:
        """Add a put that L2 has.

        Args:
            is_as_sent: Whether it was the newest checkpoint of its scope, and L2 has all its values as sent.
            known_writes: `<task id>:<idx>` of each pending write that L2 had for it already.
        """
        self.size += put.size
        if not (put.cacheable and is_as_sent):
            self.can_follow = False
        if self.newest is not None and self.newest.checkpoint_id == put.checkpoint_id:
            self.can_follow = False  # L2 has one of the two puts, and it is not known which
        for channel in (*put.blobs, *put.voids):
            before = self._channels.get(channel)
            if before is None or before[0] < put.checkpoint_id:
                self._channels[channel] = put.checkpoint_id, put
            if before is not None and _is_shadowed(channel, before[1], put):
                self.can_follow = False
        if self.newest is None or self.newest.checkpoint_id < put.checkpoint_id:
            self.newest = put
        for name in known_writes:
            task_id, idx = name.rsplit(":", 1)
            self._need((put.checkpoint_id, task_id, int(idx)))

    def put_writes(
        self, checkpoint_id: str, stored: Iterable[EncodedWrite], ignored: Iterable[EncodedWrite]
    ) -> None:
        """Add pending writes that L2 has.

        Args:
            stored: The writes that L2 stored. Some may have replaced older ones.
            ignored: The writes that L2 did not store, because it had them already.
        """
        # Other ids have no image, and the scripts rely on the length of an id in the names of `w:` fields.
        if not is_ordered_id(checkpoint_id):
            return
        for write in stored:
            self.size += len(write.value.data)
            key = checkpoint_id, write.task_id, write.idx
            self.writes[key] = write
            self.needed.discard(key)
        for write in ignored:
            self._need((checkpoint_id, write.task_id, write.idx))

    def give_up(self) -> None:
        """Record that these changes cannot make the entry equal to L2."""
        self.can_follow = False

    def _need(self, key: _WriteKey) -> None:
        if key not in self.writes:
            self.needed.add(key)

    @property
    def is_whole(self) -> bool:
        """Whether the burst holds every channel that its newest checkpoint names."""
        put = self.newest
        return put is not None and all(
            channel in put.inline or channel in self._channels for channel in put.channels
        )

    @property
    def image_bytes(self) -> int:
        """The size of the image after the burst, if the burst is whole: as `StoredCheckpoint.size` counts."""
        put = self.newest
        if put is None:
            return 0
        values = sum(
            len(by.blobs[channel][1].data)
            for channel, (_, by) in self._channels.items()
            if channel in by.blobs
        )
        writes = sum(
            len(write.value.data) for (id_, *_), write in self.writes.items() if id_ == put.checkpoint_id
        )
        return len(put.document_json) + len(put.metadata_json) + values + writes

    def fields(self, scope: Scope, signer: Signer, packer: Packer | None = None) -> list[bytes | str]:
        """Return the head and the changed channels, as field, value and so on."""
        put, scope_signer = self.newest, signer.of(scope)
        if put is None:
            return []
        fields = _head(scope, put, put.snapshots, scope_signer, packer)
        for channel, (_, by) in self._channels.items():
            if channel in by.blobs:
                fields += _channel(channel, *by.blobs[channel], scope_signer, packer)
            else:
                fields += _void(channel, by.voids[channel], scope_signer)
        return fields

    def write_fields(self, scope: Scope, signer: Signer, packer: Packer | None = None) -> list[bytes | str]:
        """Return the pending writes of the newest checkpoint and of later ones, as field, value and so on."""
        newest, scope_signer = self.newest.checkpoint_id if self.newest else "", signer.of(scope)
        fields: list[bytes | str] = []
        for (checkpoint_id, *_), write in self.writes.items():
            if checkpoint_id >= newest:
                fields += _writes(checkpoint_id, [write], scope_signer, packer)
        return fields

    def needed_names(self) -> list[str]:
        """Return the names of the fields that the entry must already hold."""
        return [f"w:{checkpoint_id}:{task_id}:{idx}" for checkpoint_id, task_id, idx in sorted(self.needed)]


def _is_shadowed(channel: str, one: EncodedPut, other: EncodedPut) -> bool:
    """Whether only one of two puts has a value of a channel, although both name the same version of it.

    L2 then shows the value in both checkpoints. But it does not report that for puts that run side by side.
    """
    versions = [put.blobs[channel][0] if channel in put.blobs else put.voids[channel] for put in (one, other)]
    return versions[0] == versions[1] and (channel in one.blobs) != (channel in other.blobs)


def decode_image(scope: Scope, fields: Sequence[bytes], signer: Signer) -> StoredCheckpoint:
    """Decode the image in a hash's fields, given as field, value and so on.

    Raises:
        TamperedImageError: The signature of a field is wrong.
        UnusableImageError: The image is of another scope or format, a channel has no field of exactly the
            version that the head names, or the bytes cannot be parsed.
    """
    try:
        return _decode(scope, fields, signer)
    except UnusableImageError:
        raise
    except Exception as exc:  # any error of a parser: the image is refused, and L2 answers
        raise UnusableImageError(f"unreadable: {type(exc).__name__}") from exc


def _decode(scope: Scope, fields: Sequence[bytes], signer: Signer) -> StoredCheckpoint:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    verified = signer.of(scope).verified
    id_ = by_name[b"id"]
    head_json = verified(_HEAD + id_, by_name[b"head"])
    if head_json is None:
        raise TamperedImageError("the signature of the head is wrong")
    if head_json.startswith(_PACKED):
        head_json = unpack(head_json[len(_PACKED) :])
    head, _ = _parse_json(head_json.decode())
    checkpoint_id = id_.decode()
    if head["format"] != _FORMAT or head["scope"] != list(scope):
        raise UnusableImageError("of another scope or format")
    document = head["checkpoint"]
    if document["id"] != checkpoint_id:
        raise UnusableImageError("the head is of another checkpoint")
    values: dict[str, tuple[str, Encoded]] = {}
    if not is_readable(document):
        raise UnusableImageError("unreadable: the channel versions")
    inline = document.get("channel_values") or {}
    for channel, version in versions_of(document).items():
        name = b"c:" + channel.encode()
        signed = by_name.get(name)
        wanted = version_text(version)
        start = wanted.encode() + b"\0"
        if signed is None or not signed.startswith(start):
            if channel in inline and channel not in head["snapshots"]:
                continue
            if signed is not None and verified(name, signed) is None:
                raise TamperedImageError("the signature of a channel's value is wrong")
            raise UnusableImageError("incomplete: a channel has another version here")
        raw = verified(name, signed)
        if raw is None:
            raise TamperedImageError("the signature of a channel's value is wrong")
        if len(raw) > len(start):
            _, type_, data = raw.split(b"\0", 2)
            values[channel] = wanted, _encoded(type_, data)
    writes: list[EncodedWrite] = []
    prefix = b"w:%b:" % id_
    for name, signed in by_name.items():
        if name.startswith(prefix):
            raw = verified(name, signed)
            if raw is None:
                raise TamperedImageError("the signature of a pending write is wrong")
            task_id, idx = name[len(prefix) :].decode().rsplit(":", 1)
            written_to, type_, path, data = raw.split(b"\0", 3)
            value = _encoded(type_, data)
            writes.append(EncodedWrite(task_id, int(idx), written_to.decode(), value, path.decode()))
    return StoredCheckpoint(
        scope=scope,
        checkpoint_id=checkpoint_id,
        parent_id=head["parent_id"],
        document=document,
        metadata=head["metadata"],
        values=values,
        writes=writes,
        document_bytes=len(head_json),
    )


def _encoded(type_: bytes, data: bytes) -> Encoded:
    """Make a value of a type and its data. If the type has the mark, unpack the data."""
    if type_.startswith(_PACKED):
        return Encoded(type_[len(_PACKED) :].decode(), unpack(data))
    return Encoded(type_.decode(), data)


def _type_and_data(value: Encoded, packer: Packer | None) -> tuple[bytes, bytes]:
    """Return the type and the data of a value for a field: the reverse of `_encoded`."""
    frame = packer.pack(value.data) if packer else None
    if frame is None:
        return value.type.encode(), value.data
    return _PACKED + value.type.encode(), frame


def _head(
    scope: Scope,
    of: StoredCheckpoint | EncodedPut,
    snapshots: list[str],
    signer: ScopeSigner,
    packer: Packer | None,
) -> list[bytes | str]:
    # The texts are joined, because the two long parts are JSON already.
    start = json.dumps({"format": _FORMAT, "scope": scope, "parent_id": of.parent_id, "snapshots": snapshots})
    text = f'{start[:-1]}, "metadata": {of.metadata_json}, "checkpoint": {of.document_json}}}'
    head = text.encode()
    frame = packer.pack(head) if packer else None
    if frame is not None:
        head = _PACKED + frame
    return ["head", head + signer.sign(_HEAD + of.checkpoint_id.encode(), head)]


def _channel(
    channel: str, version: str, value: Encoded, signer: ScopeSigner, packer: Packer | None
) -> list[bytes | str]:
    return _signed(f"c:{channel}", b"%b\0%b\0%b" % (version.encode(), *_type_and_data(value, packer)), signer)


def _void(channel: str, version: str, signer: ScopeSigner) -> list[bytes | str]:
    return _signed(f"c:{channel}", version.encode() + b"\0", signer)


def _writes(
    checkpoint_id: str, writes: Iterable[EncodedWrite], signer: ScopeSigner, packer: Packer | None
) -> list[bytes | str]:
    fields: list[bytes | str] = []
    for write in writes:
        type_, data = _type_and_data(write.value, packer)
        raw = b"%b\0%b\0%b\0%b" % (write.channel.encode(), type_, write.task_path.encode(), data)
        fields += _signed(_write_name(checkpoint_id, write), raw, signer)
    return fields


def _write_name(checkpoint_id: str, write: EncodedWrite) -> str:
    return f"w:{checkpoint_id}:{write.task_id}:{write.idx}"


def _signed(name: str, value: bytes, signer: ScopeSigner) -> list[bytes | str]:
    return [name, value + signer.sign(name.encode(), value)]
