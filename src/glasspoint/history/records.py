"""The records: between what `codec` makes of a checkpoint and what stands in Redis. Pure, no I/O.

The layout stands in `scripts/prelude.lua`; what is packed here is read there, and the other way round.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from glasspoint.codec import Encoded, EncodedWrite, StoredCheckpoint, is_old_format, version_text
from glasspoint.errors import SerializationError
from glasspoint.history.interface import Channel, Outline
from glasspoint.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "checkpoint_arguments",
    "member",
    "split_member",
    "to_outline",
    "to_stored",
    "to_writes",
    "value_arguments",
    "write_arguments",
]

Argument = bytes | str | int


def member(namespace: str, checkpoint_id: str) -> str:
    """Return the name under which a checkpoint stands in its thread."""
    return f"{namespace}\0{checkpoint_id}"


def split_member(raw: bytes) -> tuple[str, str]:
    """Return the namespace and the checkpoint id of such a name."""
    namespace, checkpoint_id = raw.decode().split("\0", 1)
    return namespace, checkpoint_id


def checkpoint_arguments(
    namespace: str,
    checkpoint_id: str,
    parent_id: str | None,
    document_json: str,
    metadata_json: str,
) -> list[Argument]:
    """Return what PUT and IMPORT take of a checkpoint, from the namespace to the document."""
    document = json.loads(document_json)
    run = json.loads(metadata_json).get("run_id")
    run_id = run if isinstance(run, str) and "\0" not in run else ""
    head = [_flag(is_old_format(document)), run_id, *_marks(document)]
    rest_of_head = "".join(f"{text}\0" for text in head)
    return [namespace, checkpoint_id, parent_id or "", rest_of_head, run_id, metadata_json, document_json]


def value_arguments(values: dict[str, tuple[str, Encoded]]) -> list[Argument]:
    """Return values as channel, version, packed value, …"""
    arguments: list[Argument] = []
    for channel, (version, value) in values.items():
        arguments += [channel, version, f"{value.type}\0".encode() + value.data]
    return arguments


def write_arguments(writes: Iterable[EncodedWrite]) -> list[Argument]:
    """Return pending writes as task and index, channel, type, task path, bytes, …

    Raises:
        SerializationError: A name in them is not valid Unicode.
    """
    arguments: list[Argument] = []
    for write in writes:
        texts = (f"{write.task_id}\0{write.idx}", write.channel, write.value.type, write.task_path)
        try:
            arguments += [text.encode() for text in texts]
        except UnicodeEncodeError:
            raise SerializationError(
                "Cannot store a write: its task id, task path or channel name is not valid Unicode. Nothing "
                "was stored."
            ) from None
        arguments.append(write.value.data)
    return arguments


def to_stored(thread_id: str, record: Sequence[Any]) -> tuple[StoredCheckpoint, list[EncodedWrite]]:
    """Read a checkpoint out of a script's answer.

    Returns:
        The checkpoint, and the TASKS writes of its parent if it is of a format that is completed with them.
    """
    raw_member, head, metadata, document, values, writes, sends = record
    namespace, checkpoint_id = split_member(raw_member)
    parent_id, _ = head.split(b"\0", 1)
    stored = StoredCheckpoint(
        scope=Scope(thread_id, namespace),
        checkpoint_id=checkpoint_id,
        parent_id=parent_id.decode() or None,
        document=json.loads(document),
        metadata=json.loads(metadata),
        values={
            channel.decode(): (version.decode(), _value(raw))
            for channel, version, raw in zip(values[::3], values[1::3], values[2::3], strict=True)
        },
        writes=to_writes(writes),
        document_json=document.decode(),
        metadata_json=metadata.decode(),
        document_bytes=len(document) + len(metadata),
    )
    return stored, to_writes(sends)


def to_writes(flat: Sequence[bytes]) -> list[EncodedWrite]:
    """Read pending writes out of name, value, name, value, …"""
    writes = []
    for name, raw in zip(flat[::2], flat[1::2], strict=True):
        _, _, task_id, idx = name.decode().split("\0")
        channel, type_, path, data = raw.split(b"\0", 3)
        value = Encoded(type_.decode(), data)
        writes.append(EncodedWrite(task_id, int(idx), channel.decode(), value, path.decode()))
    return writes


def to_outline(record: Sequence[bytes]) -> Outline:
    """Read an outline out of a script's answer."""
    raw_member, head, metadata, blobs, sends = record
    namespace, checkpoint_id = split_member(raw_member)
    parent_id, old_format, run_id, *marks = head.decode().split("\0")[:-1]
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
    """Return the mark of a value that stands in a document."""
    return "n" if value is None else "t" if value is True else "v"


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


def _flag(flag: bool) -> str:
    return "1" if flag else ""
