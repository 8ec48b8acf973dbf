"""Records: translates between the checkpoints of `codec` and the arguments and results of scripts. No I/O.

`scripts/prelude.lua` describes the layout: what is packed here is read there, and the other way round. The
functions take the thread's `Fields`, which sign and verify what is stored, or leave it as it is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from glasspoint.errors import SerializationError
from glasspoint.history.interface import Ancestor, Channel, Outline
from glasspoint.model.codec import Encoded, EncodedWrite, StoredCheckpoint, is_old_format, version_text
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from glasspoint.history.signing import Fields

__all__ = [
    "checkpoint_arguments",
    "flag",
    "member",
    "split_member",
    "to_ancestor",
    "to_metadata",
    "to_outline",
    "to_stored",
    "to_writes",
    "value_arguments",
    "write_arguments",
]

Argument = bytes | str | int


def member(namespace: str, checkpoint_id: str) -> str:
    """Return the name of a checkpoint in its thread."""
    return f"{namespace}\0{checkpoint_id}"


def split_member(raw: bytes) -> tuple[str, str]:
    """Return the namespace and the checkpoint id from a checkpoint's name."""
    namespace, checkpoint_id = raw.decode().split("\0", 1)
    return namespace, checkpoint_id


def checkpoint_arguments(
    fields: Fields,
    namespace: str,
    checkpoint_id: str,
    parent_id: str | None,
    document_json: str,
    metadata_json: str,
) -> list[Argument]:
    """Return the arguments of PUT and IMPORT for a checkpoint, from the namespace to the document."""
    document = json.loads(document_json)
    run = json.loads(metadata_json).get("run_id")
    run_id = run if isinstance(run, str) and "\0" not in run else ""
    head = [flag(is_old_format(document)), run_id, *_marks(document)]
    rest_of_head = "".join(f"{text}\0" for text in head).encode()
    place, metadata = (namespace, checkpoint_id, rest_of_head), metadata_json.encode()
    return [
        namespace,
        checkpoint_id,
        fields.parent(namespace, checkpoint_id, parent_id or ""),
        rest_of_head,
        run_id,
        fields.metadata(*place, metadata),
        fields.document(*place, metadata, document_json.encode()),
    ]


def value_arguments(
    fields: Fields, namespace: str, values: Mapping[str, tuple[str, Encoded]]
) -> list[Argument]:
    """Return values as a flat list: channel, version, packed value, and again."""
    arguments: list[Argument] = []
    for channel, (version, value) in values.items():
        place = channel.encode(), version.encode()
        packed = f"{value.type}\0".encode() + value.data
        arguments += [*place, fields.value(namespace, *place, packed)]
    return arguments


def write_arguments(
    fields: Fields, namespace: str, checkpoint_id: str, writes: Iterable[EncodedWrite]
) -> list[Argument]:
    """Return pending writes as a flat list: task and index, channel, type, task path, bytes, and again.

    Raises:
        SerializationError: A name in a write is not valid Unicode.
    """
    arguments: list[Argument] = []
    for write in writes:
        texts = (f"{write.task_id}\0{write.idx}", write.channel, write.value.type, write.task_path)
        try:
            name, channel, type_, path = (text.encode() for text in texts)
        except UnicodeEncodeError:
            raise SerializationError(
                "Cannot store a write: its task id, task path or channel name is not valid Unicode. Nothing "
                "was stored."
            ) from None
        place = checkpoint_id.encode() + b"\0" + name
        path = fields.path(namespace, place, path)
        data = fields.data(namespace, place, channel, type_, write.value.data)
        arguments += [name, channel, type_, path, data]
    return arguments


def to_stored(
    fields: Fields, thread_id: str, record: Sequence[Any]
) -> tuple[StoredCheckpoint, list[EncodedWrite]]:
    """Read a checkpoint from a script's result.

    Returns:
        The checkpoint. If its format is old: also the TASKS writes of its parent, which complete it.

    Raises:
        ThreadTamperedError: A part of it has a wrong signature.
    """
    raw_member, head, signed_metadata, signed_document, values, writes, sends = record
    namespace, checkpoint_id = split_member(raw_member)
    parent_id, rest_of_head, metadata = _read_head(fields, namespace, checkpoint_id, head, signed_metadata)
    document = fields.read_document(namespace, checkpoint_id, rest_of_head, metadata, signed_document)
    stored = StoredCheckpoint(
        scope=Scope(thread_id, namespace),
        checkpoint_id=checkpoint_id,
        parent_id=parent_id or None,
        document=json.loads(document),
        metadata=json.loads(metadata),
        values={
            channel.decode(): (version.decode(), _value(fields.read_value(namespace, channel, version, raw)))
            for channel, version, raw in zip(values[::3], values[1::3], values[2::3], strict=True)
        },
        writes=to_writes(fields, writes),
        document_json=document.decode(),
        metadata_json=metadata.decode(),
        document_bytes=len(document) + len(metadata),
    )
    return stored, to_writes(fields, sends)


def to_writes(fields: Fields, flat: Sequence[bytes]) -> list[EncodedWrite]:
    """Read pending writes from a flat list: name, value, and again.

    Raises:
        ThreadTamperedError: A write has a wrong signature.
    """
    writes = []
    for name, raw in zip(flat[::2], flat[1::2], strict=True):
        namespace, _, task_id, idx = name.decode().split("\0")
        _, place = name.split(b"\0", 1)
        channel, type_, path, data = raw.split(b"\0", 3)
        path = fields.read_path(namespace, place, path)
        data = fields.read_data(namespace, place, channel, type_, data)
        value = Encoded(type_.decode(), data)
        writes.append(EncodedWrite(task_id, int(idx), channel.decode(), value, path.decode()))
    return writes


def to_metadata(
    fields: Fields, name: str, head: bytes | None, metadata: bytes | None
) -> dict[str, Any] | None:
    """Read the metadata of a checkpoint. Return `None` if the checkpoint does not exist.

    Raises:
        ThreadTamperedError: They have a wrong signature.
    """
    if head is None or metadata is None:
        return None
    found: dict[str, Any] = json.loads(_read_head(fields, *split_member(name.encode()), head, metadata)[2])
    return found


def to_ancestor(fields: Fields, namespace: str, step: Sequence[Any]) -> Ancestor:
    """Read one ancestor from a result of ANCESTORS.

    Raises:
        ThreadTamperedError: A part of it has a wrong signature.
    """
    raw_id, writes, head, signed_metadata, *found = step
    checkpoint_id = raw_id.decode()
    _, rest_of_head, metadata = _read_head(fields, namespace, checkpoint_id, head, signed_metadata)
    values = {}
    for raw_channel, raw_kind, raw, version in found:
        kind = raw_kind.decode()
        if kind == "b":
            raw = fields.read_value(namespace, raw_channel, version, raw)
        elif kind == "i":
            raw = fields.read_document(namespace, checkpoint_id, rest_of_head, metadata, raw)
        values[raw_channel.decode()] = kind, raw
    return Ancestor(checkpoint_id, to_writes(fields, writes), values)


def to_outline(fields: Fields, record: Sequence[bytes]) -> Outline:
    """Read an outline from a script's result.

    Raises:
        ThreadTamperedError: A part of it has a wrong signature.
    """
    raw_member, head, signed_metadata, blobs, sends = record
    namespace, checkpoint_id = split_member(raw_member)
    parent_id, rest_of_head, metadata = _read_head(fields, namespace, checkpoint_id, head, signed_metadata)
    old_format, run_id, *marks = rest_of_head.decode().split("\0")[:-1]
    channels = {
        name: Channel(mark == mark.lower(), mark.lower(), blob == "1")
        for name, mark, blob in zip(marks[::3], marks[2::3], blobs.decode(), strict=True)
    }
    return Outline(
        namespace,
        checkpoint_id,
        parent_id or None,
        old_format == "1",
        run_id or None,
        channels,
        json.loads(metadata),
        sends == b"1",
    )


def inline_mark(value: object) -> str:
    """Return the mark of an inline value: see `Channel.mark`."""
    return "n" if value is None else "t" if value is True else "v"


def _read_head(
    fields: Fields, namespace: str, checkpoint_id: str, head: bytes, signed_metadata: bytes
) -> tuple[str, bytes, bytes]:
    """Return the parent's id, the rest of the head, and the metadata."""
    signed_parent, rest_of_head = head.split(b"\0", 1)
    parent_id = fields.read_parent(namespace, checkpoint_id, signed_parent)
    metadata = fields.read_metadata(namespace, checkpoint_id, rest_of_head, signed_metadata)
    return parent_id.decode(), rest_of_head, metadata


def _marks(document: dict[str, Any]) -> list[str]:
    versions, inline = document.get("channel_versions") or {}, document.get("channel_values") or {}
    texts = []
    for channel, version in versions.items():
        mark = inline_mark(inline[channel]) if channel in inline else ""
        texts += [channel, version_text(version), mark]
    for channel, value in inline.items():
        if channel not in versions:
            texts += [channel, "", inline_mark(value).upper()]
    return texts


def _value(raw: bytes) -> Encoded:
    type_, data = raw.split(b"\0", 1)
    return Encoded(type_.decode(), data)


def flag(is_set: bool) -> str:
    """Return a flag as scripts take it."""
    return "1" if is_set else ""
