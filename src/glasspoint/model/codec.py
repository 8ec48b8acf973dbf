"""Serialises checkpoints once, so that the same bytes are stored in L2 and in L1, and decodes them.

Encoding splits a checkpoint as LangGraph's PostgreSQL schema wants it: small values stand inline in the
checkpoint's JSON, and each other value is a blob of its channel and version. A warm-up copies the bytes from
L2 to L1 unchanged. Decoding puts a `CheckpointTuple` together again.

A small value that PostgreSQL's jsonb refuses (a text with NUL, a lone surrogate, NaN, infinity) becomes a
blob, too. `AsyncPostgresSaver` can read such a blob, though it cannot write one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_serializable_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel

from glasspoint.errors import SerializationError
from glasspoint.model import traceparent as traceparents
from glasspoint.model.scope import Scope, is_ordered_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import PendingWrite
    from langgraph.checkpoint.serde.base import SerializerProtocol

__all__ = [
    "Encoded",
    "EncodedPut",
    "EncodedWrite",
    "PendingWrites",
    "StoredCheckpoint",
    "decode_tuple",
    "encode_found",
    "encode_put",
    "encode_writes",
    "is_old_format",
    "is_readable",
    "version_text",
    "versions_of",
]

# The first checkpoint format that holds its pending sends in its own values. Upstream completes an older one
# with writes of its *parent*. No entry of the cache follows these writes.
_SENDS_INLINE_SINCE = 4


class Encoded(NamedTuple):
    """A serialised value: the serializer's name of the format, and the bytes."""

    type: str
    data: bytes


class EncodedWrite(NamedTuple):
    """One pending write, as L1 and L2 store it."""

    task_id: str
    idx: int
    channel: str
    value: Encoded
    task_path: str


class PendingWrites(NamedTuple):
    """Pending writes without their checkpoint.

    They can arrive before the put of their checkpoint. Or a run began in one tier and continues in another.
    """

    scope: Scope
    checkpoint_id: str
    writes: list[EncodedWrite]


@dataclass(slots=True)
class StoredCheckpoint:
    """A checkpoint as it is stored, at either level. The channel values are not decoded.

    Attributes:
        document: The checkpoint without the values stored as blobs, parsed from its JSON.
        metadata: Its metadata, parsed from JSON.
        values: Channel -> (version, value) for the values stored as blobs, at the versions that `document`
            names.
        document_json, metadata_json: The JSON texts of the two, if a warm-up may need them.
        document_bytes: The length of the JSON.
        is_fenced: Whether a burst of writes was under way in L2, so that L1 must not be warmed up with this.
        is_brought: Whether a lower tier holds a copy of it, to continue its thread, but did not create it.
    """

    scope: Scope
    checkpoint_id: str
    parent_id: str | None
    document: dict[str, Any]
    metadata: dict[str, Any]
    values: dict[str, tuple[str, Encoded]]
    writes: list[EncodedWrite]
    document_json: str = ""
    metadata_json: str = ""
    document_bytes: int = 0
    is_fenced: bool = False
    is_brought: bool = False

    @property
    def size(self) -> int:
        """The size of the checkpoint, its values and its writes, in bytes."""
        values = sum(len(value.data) for _, value in self.values.values())
        return self.document_bytes + values + sum(len(write.value.data) for write in self.writes)

    def detached(self) -> StoredCheckpoint:
        """Return a copy that can still become an image after `decode_tuple`.

        The checkpoint that `decode_tuple` returns shares its channel versions with this object, and LangGraph
        changes them.
        """
        return replace(self, document={**self.document, "channel_versions": dict(versions_of(self.document))})

    @property
    def needs_parent(self) -> bool:
        """Whether upstream completes this old format with the parent's writes. Then it is not cached."""
        return completes_from_parent(self.document, self.parent_id)

    @property
    def needs_ancestors(self) -> bool:
        """Whether a delta channel is rebuilt from the ancestors: the checkpoint alone is not the state."""
        if "delta_writes_versioned" in self.metadata:  # LangGraph.js marks the thread, not the channels
            return True
        counters = self.metadata.get("counters_since_delta_snapshot")
        inline = self.document.get("channel_values") or {}
        versioned = versions_of(self.document)
        return isinstance(counters, dict) and any(
            each in versioned and each not in self.values and each not in inline for each in counters
        )

    @property
    def cacheable(self) -> bool:
        """Whether L1 may hold an image of it: see `EncodedPut.cacheable`."""
        return (
            is_ordered_id(self.checkpoint_id)
            and not self.needs_parent
            and is_readable(self.document)
            and self.document.get("id") == self.checkpoint_id
        )


@dataclass(slots=True)
class EncodedPut:
    """A checkpoint on its way into storage.

    Attributes:
        blobs: Channel -> (version, value), of the new values that are stored as blobs.
        voids: Channel -> version, of the channels that changed at this version and have no value.
        inline: Channel -> version, of the channels whose value stands in `document_json`.
        snapshots: The channels among `blobs` that are snapshots of delta channels: `document_json` holds the
            mark `true` for them.
        channels: All channels that the checkpoint names.
        cacheable: Whether L1 may hold an image of it. It may not in three cases: the id is not a UUID (L1 and
            L2 may order other ids differently); the format is older than 4 and there is a parent (upstream
            then adds some of the parent's writes); the channel versions are not a mapping.
        follows_newest: Whether the parent was read as the newest of its scope, or the scope was empty.
        follows_own: Whether the parent is the last checkpoint that the same run has put.
    """

    checkpoint_id: str
    parent_id: str | None
    document_json: str
    metadata_json: str
    blobs: dict[str, tuple[str, Encoded]]
    voids: dict[str, str]
    inline: dict[str, str]
    channels: list[str]
    cacheable: bool
    step: int | None = None
    source: str | None = None
    snapshots: list[str] = field(default_factory=list)
    follows_newest: bool = False
    follows_own: bool = False
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = (
            len(self.document_json)
            + len(self.metadata_json)
            + sum(len(value.data) for _, value in self.blobs.values())
        )


def encode_put(
    serde: SerializerProtocol,
    config: RunnableConfig,
    parent_id: str | None,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
    *,
    traceparent: str | None = None,
    follows_newest: bool = False,
    follows_own: bool = False,
) -> EncodedPut:
    """Serialise a checkpoint, split as `AsyncPostgresSaver.aput` splits it.

    Args:
        new_versions: The channels that changed. The blobs of other channels are not sent again, because they
            are stored already, at their versions.
        traceparent: The span that writes the checkpoint, stored with the metadata: see `model.traceparent`.
        follows_newest, follows_own: See `EncodedPut`.

    Raises:
        SerializationError: A value cannot be serialised, or PostgreSQL cannot store it.
    """
    # Channel versions may be absent or of another type: upstream stores such a checkpoint, too.
    versions = versions_of(checkpoint)
    small: dict[str, Any] = {}
    large: dict[str, Any] = {}
    for channel, value in checkpoint["channel_values"].items():
        if isinstance(value, _DeltaSnapshot):
            large[channel] = value
            small[channel] = True
        elif value is None or isinstance(value, (str, int, float, bool)):
            small[channel] = value
        else:
            large[channel] = value
    document: dict[str, Any] = {**checkpoint, "channel_values": small}
    document_json = _jsonb(document)
    apart: set[str] = set()
    if document_json is None:
        apart = _not_inline(small, versions)
        large |= {channel: small.pop(channel) for channel in apart}
        document_json = _to_json(document, "the checkpoint")
    blobs: dict[str, tuple[str, Encoded]] = {}
    voids: dict[str, str] = {}
    for channel, version in new_versions.items():
        if channel in large:
            what = f"channel {channel!r}"
            encode = _encode_apart if channel in apart else _encode
            at = versions[channel] if channel in apart else version
            blobs[_text(what, channel)] = (_version(what, at), encode(serde, large[channel], what))
        elif channel not in small and channel in versions:
            voids[channel] = version_text(version)
    inline = {c: version_text(versions[c]) for c in small if c in versions and c not in blobs}
    return EncodedPut(
        checkpoint_id=checkpoint["id"],
        parent_id=parent_id,
        document_json=document_json,
        metadata_json=_to_json(_metadata(config, metadata, traceparent), "the metadata"),
        blobs=blobs,
        voids=voids,
        inline=inline,
        channels=list(versions),
        cacheable=is_ordered_id(checkpoint["id"])
        and not completes_from_parent(document, parent_id)
        and is_readable(document),
        step=metadata.get("step"),
        source=metadata.get("source"),
        snapshots=[channel for channel in blobs if channel in small],
        follows_newest=follows_newest,
        follows_own=follows_own,
    )


def encode_writes(
    serde: SerializerProtocol,
    writes: Sequence[tuple[str, Any]],
    task_id: str,
    task_path: str,
    *,
    last_wins: bool,
) -> list[EncodedWrite]:
    """Serialise a task's writes, numbered as upstream numbers them.

    Args:
        last_wins: Whether the last of several writes with the same number stays; otherwise the first stays.

    Raises:
        SerializationError: A value cannot be serialised, or PostgreSQL cannot store it.
    """
    _text(f"writes of the task id {task_id!r}", task_id)
    _text(f"writes with the task path {task_path!r}", task_path)
    encoded: dict[int, EncodedWrite] = {}
    for position, (channel, value) in enumerate(writes):
        idx = WRITES_IDX_MAP.get(channel, position)
        write = EncodedWrite(
            task_id,
            idx,
            _text(f"a write to channel {channel!r}", channel),
            _encode(serde, value, f"the write to channel {channel!r}"),
            task_path,
        )
        if last_wins or idx not in encoded:
            encoded[idx] = write
    return list(encoded.values())


def encode_found(serde: SerializerProtocol, found: CheckpointTuple) -> StoredCheckpoint:
    """Serialise a checkpoint that another saver returned, to be stored as it is.

    A tuple lacks two facts, so they are made up. A write's number is its position among its task's writes. If
    the tasks are not in the order of their ids, a task's path is its position, so that the order stays.

    Raises:
        SerializationError: A value cannot be serialised, or PostgreSQL cannot store it; or a channel has no
            version, so that its value would not be found again.
    """
    configurable = found.config["configurable"]
    scope = Scope(configurable["thread_id"], configurable.get("checkpoint_ns") or "")
    parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
    if not isinstance(found.checkpoint.get("id"), str):
        raise SerializationError("Cannot store a checkpoint without an id.")
    values = found.checkpoint.get("channel_values") or {}
    checkpoint = cast("Checkpoint", {**found.checkpoint, "channel_values": values})
    versions = versions_of(checkpoint)
    put = encode_put(serde, {"configurable": {}}, parent, checkpoint, {}, cast("ChannelVersions", versions))
    document = json.loads(put.document_json)
    for channel in values:
        if channel not in put.blobs and channel not in document["channel_values"]:
            raise SerializationError(
                f"Cannot store channel {channel!r}: the checkpoint has no version of it."
            )
    metadata_json = _to_json(found.metadata or {}, "the metadata")
    return StoredCheckpoint(
        scope=scope,
        checkpoint_id=put.checkpoint_id,
        parent_id=parent,
        document=document,
        metadata=json.loads(metadata_json),
        values=dict(put.blobs),
        writes=_numbered(serde, found.pending_writes or ()),
        document_json=put.document_json,
        metadata_json=metadata_json,
        document_bytes=len(put.document_json) + len(metadata_json),
    )


def _numbered(serde: SerializerProtocol, pending: Sequence[PendingWrite]) -> list[EncodedWrite]:
    by_task: dict[str, list[tuple[str, Any]]] = {}
    for task_id, channel, value in pending:
        by_task.setdefault(task_id, []).append((channel, value))
    is_in_order = list(by_task) == sorted(by_task)
    encoded: list[EncodedWrite] = []
    for position, (task_id, writes) in enumerate(by_task.items()):
        path = "" if is_in_order else f"{position:010}"
        encoded += encode_writes(serde, writes, task_id, path, last_wins=True)
    return encoded


def decode_tuple(serde: SerializerProtocol, stored: StoredCheckpoint) -> CheckpointTuple:
    """Return the tuple that `AsyncPostgresSaver` would return for this checkpoint."""
    loads = serde.loads_typed
    scope = stored.scope
    values = dict(stored.document.get("channel_values") or {})
    for channel, (_, value) in stored.values.items():
        if value.type != "empty":
            values[channel] = loads(value)
    stored.writes.sort(key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx))
    return CheckpointTuple(
        _config(scope, stored.checkpoint_id),
        cast("Checkpoint", {**stored.document, "channel_values": values}),
        cast("CheckpointMetadata", traceparents.without(stored.metadata)),
        _config(scope, stored.parent_id) if stored.parent_id else None,
        [(w.task_id, w.channel, loads(w.value)) for w in stored.writes],
    )


def versions_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the channel versions of a checkpoint, empty if they are absent or not a mapping."""
    versions = document.get("channel_versions")
    return versions if isinstance(versions, dict) else {}


def is_readable(document: Mapping[str, Any]) -> bool:
    """Whether PostgreSQL can read the values that a checkpoint names.

    If the versions are not a JSON object, the query fails, upstream's query and ours. So L1 must not answer.
    """
    return isinstance(document.get("channel_versions", {}), dict)


def completes_from_parent(document: Mapping[str, Any], parent_id: str | None) -> bool:
    """Whether upstream adds some of the parent's writes to this checkpoint."""
    return bool(parent_id) and is_old_format(document)


def is_old_format(document: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has a format that upstream completes from its parent, if there is one."""
    version = document.get("v", 0)
    return not isinstance(version, int | float) or version < _SENDS_INLINE_SINCE


def version_text(version: str | int | float) -> str:
    """Return a channel version as `jsonb_each_text` shows it: blobs are looked up by this text."""
    if isinstance(version, float):
        return format(Decimal(repr(version)), "f")  # jsonb has no exponents
    return version if isinstance(version, str) else _json_dumps(version)


def _metadata(
    config: RunnableConfig, metadata: CheckpointMetadata, traceparent: str | None
) -> dict[str, Any]:
    given = cast("dict[str, Any]", get_serializable_checkpoint_metadata(config, metadata))
    stored = traceparents.without(given)
    return stored if traceparent is None else {**stored, traceparents.KEY: traceparent}


def _config(scope: Scope, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": scope.thread_id,
            "checkpoint_ns": scope.checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }


def _not_inline(small: Mapping[str, Any], versions: Mapping[str, Any]) -> set[str]:
    """Return the channels with a small value that jsonb refuses. These values are stored as blobs.

    Raises:
        SerializationError: A channel has no version, so that its blob would not be found again; or the name
            of a channel cannot be stored.
    """
    for channel in (*small, *versions):
        _text(f"channel {channel!r}", channel)
    refused = {channel for channel, value in small.items() if _jsonb(value) is None}
    for channel in refused - versions.keys():
        _to_json(small[channel], f"channel {channel!r}")
    return refused


def _encode(serde: SerializerProtocol, value: Any, what: str) -> Encoded:
    try:
        type_, data = serde.dumps_typed(value)
    except Exception as exc:
        place, part = _culprit(value, lambda part: not _can_encode(serde, part))
        # The serializer's own message may quote the value. So it stays in the exception chain only.
        raise SerializationError(
            f"Cannot serialise {what}{place} ({type(part).__name__}): {type(exc).__name__}. Nothing was "
            "stored. Put only serialisable values into the state, or give the saver a serde that knows this "
            "type."
        ) from exc
    return Encoded(type_, data if type(data) is bytes else bytes(data))


def _can_encode(serde: SerializerProtocol, value: Any) -> bool:
    try:
        serde.dumps_typed(value)
    except Exception:
        return False
    return True


def _encode_apart(serde: SerializerProtocol, value: Any, what: str) -> Encoded:
    """Serialise a small value that jsonb refuses, so that reading returns the same value.

    LangGraph's serializer silently turns a lone surrogate into "?". But it can read JSON, and JSON can hold a
    lone surrogate, so JSON is written instead. Other serializers are not bypassed, because they may encrypt.
    """
    encoded = _encode(serde, value, what)
    if _is_read_back(serde, encoded, value):
        return encoded
    if type(serde).dumps_typed is JsonPlusSerializer.dumps_typed:
        encoded = Encoded("json", json.dumps(value).encode())
        if _is_read_back(serde, encoded, value):
            return encoded
    raise SerializationError(
        f"Cannot store {what}: {_why_not(value)}, and the serde does not give it back as it was. Nothing was "
        "stored. Clean the value before you put it into the state."
    )


def _is_read_back(serde: SerializerProtocol, encoded: Encoded, value: Any) -> bool:
    try:
        found = serde.loads_typed(encoded)
    except Exception:
        return False
    is_nan = value != value  # NaN alone is not equal to itself
    return bool(found != found if is_nan else found == value)


def _version(what: str, version: str | int | float) -> str:
    return _text(f"the version of {what}", version_text(version))


def _text(what: str, value: str) -> str:
    if "\0" in value:
        raise SerializationError(f"Cannot store {what}: it holds a NUL character. Nothing was stored.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SerializationError(
                f"Cannot store {what}: it is not valid Unicode. Nothing was stored."
            ) from None
    return value


# A NUL in JSON text is \u0000 with an odd number of backslashes. json.dumps writes a lone surrogate for text
# that is not Unicode. PostgreSQL's jsonb accepts neither.
_JSON_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_JSON_SURROGATES = re.compile(r"(?<!\\)(?:\\\\)*\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")
_JSON_SURROGATE = re.compile(r"(?<!\\)(?:\\\\)*\\ud[89a-f][0-9a-f]{2}")


def _to_json(value: Any, what: str) -> str:
    text = _jsonb(value)
    if text is not None:
        return text
    place, part = _culprit(value, lambda part: _jsonb(part) is None)
    raise SerializationError(
        f"Cannot store {what}{place} as JSON: {_why_not(part)}. Nothing was stored. PostgreSQL takes texts "
        "without NUL that are valid Unicode, and finite numbers. Only the value of a channel that has a "
        "version may be another text or number."
    )


def _jsonb(value: Any) -> str | None:
    """Return JSON that PostgreSQL's jsonb accepts, `None` if it would refuse the value."""
    try:
        text = _json_dumps(value)
    except Exception:
        return None
    if "\\u0000" in text and _JSON_NUL.search(text):
        return None
    if "\\ud" in text and _JSON_SURROGATE.search(_JSON_SURROGATES.sub("", text)):
        return None
    if "e+" in text or "-0.0" in text:
        text = _json_dumps(json.loads(text, parse_float=_as_jsonb))
    return text


def _why_not(part: Any) -> str:
    """Return why jsonb refuses a value, without showing what the value holds."""
    if isinstance(part, str):
        return "a text holds a NUL character" if "\0" in part else "a text is not valid Unicode"
    if isinstance(part, float):
        return "a number is NaN or infinite"
    if isinstance(part, int):
        return "a number has too many digits"
    return f"{type(part).__name__} is no JSON"


# A limit, because a value that contains itself has no innermost part.
_DEEPEST = 30

# Keys that an error may show: names of fields, but no text that a user may have written.
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


def _culprit(value: Any, is_bad: Callable[[Any], bool]) -> tuple[str, Any]:
    """Find the innermost bad part of a value; the first, if there are several.

    Returns:
        The place of the part, such as `['messages'][3].additional_kwargs`, and the part.
    """
    place = ""
    for _ in range(_DEEPEST):
        found = next(((step, part) for step, part in _parts(value) if is_bad(part)), None)
        if found is None:
            break
        place, value = place + found[0], found[1]
    return place, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, each with the text that leads to it."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield " (a key)", key
            is_field = isinstance(key, str) and _FIELD.fullmatch(key)
            yield f"[{key!r}]" if is_field else "[…]", part
    elif isinstance(value, list | tuple | set | frozenset):
        for number, part in enumerate(value):
            yield f"[{number}]", part
    elif isinstance(value, BaseModel):
        for name, part in value:
            yield f".{name}", part
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield f".{each.name}", getattr(value, each.name, None)


# Made once: `json.dumps` makes a new encoder for each call with `allow_nan=False`.
_json_dumps = json.JSONEncoder(allow_nan=False).encode


def _as_jsonb(number: str) -> float | int:
    """Return a number as PostgreSQL's jsonb returns it, because L1 must return what L2 returns.

    jsonb stores numbers as decimals. It writes 1e+16 as 10000000000000000, which is read back as an integer.
    It has no negative zero.
    """
    return int(Decimal(number)) if "e+" in number else float(number) or 0.0
