"""Reads what LangGraph's tables hold of one thread: names and sizes without values, and whole rows to copy.

`glasspoint history` and the sources of a migration read with it, each on a connection of its own: these
statements may take long, so they must not wait for the hot path's pool, or make it wait. Only `holding_of`
also runs on the pool of a saver: of the saver that a migration copies to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from psycopg.rows import tuple_row

from glasspoint.l2.sql import query
from glasspoint.l2.writing import columns
from glasspoint.model.codec import (
    Encoded,
    EncodedWrite,
    PendingWrites,
    StoredCheckpoint,
    version_text,
    versions_of,
)
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Sequence
    from typing import TypeAlias

    import psycopg

    Connection: TypeAlias = psycopg.AsyncConnection[Any]

__all__ = [
    "Holding",
    "Namespace",
    "Outline",
    "digest_of",
    "holding_of",
    "namespaces_of",
    "outlines_of",
    "parents_of",
    "read_missing",
    "thread_ids_of",
]

_CHECKPOINTS_AT_ONCE = 50
_WRITES_AT_ONCE = 500

_THREADS: Final = query("thread_ids")
_HELD_CHECKPOINTS: Final = query("held_checkpoints")
_HELD_WRITES: Final = query("held_writes")
_HELD_VALUES: Final = query("held_values")
_NAMESPACES: Final = query("namespaces")
_PARENTS: Final = query("parents")
_OUTLINES: Final = query("outlines")
_SOME_CHECKPOINTS: Final = query("some_checkpoints")
_SOME_VALUES: Final = query("some_values")
_SOME_WRITES: Final = query("some_writes")
_SOME_WRITES_WITHOUT_PATH: Final = query("some_writes_without_path")
_HAS_TASK_PATH: Final = query("has_task_path")


@dataclass(slots=True)
class Holding:
    """The names of what a store holds of a thread.

    Attributes:
        checkpoints: Namespace and id of each checkpoint.
        writes: Namespace, checkpoint id, task id and number of each pending write -> `digest_of` the write,
            if another write of the same name may replace it; else `None`.
        values: Namespace, channel and version of each value that is not empty.
    """

    checkpoints: set[tuple[str, str]]
    writes: dict[tuple[str, str, str, int], bytes | None]
    values: set[tuple[str, str, str]]


class Namespace(NamedTuple):
    """A namespace of a thread, the number of its checkpoints, and the id of the newest one."""

    name: str
    checkpoints: int
    newest: str


class Outline(NamedTuple):
    """A checkpoint, without its values.

    Attributes:
        metadata: Its metadata, parsed from JSON.
        document_bytes: The size of its JSON and of its metadata's.
        ts: When it was made, by its own timestamp.
        value_bytes: The size of its values that are stored by channel and version. Checkpoints share values.
        writes: The number of its pending writes.
        write_bytes: The size of the pending writes' values.
        interrupts: The number of pending writes that are interrupts.
        errors: The number of pending writes that are errors.
    """

    checkpoint_id: str
    parent_id: str | None
    metadata: dict[str, Any]
    document_bytes: int
    ts: str | None
    value_bytes: int
    writes: int
    write_bytes: int
    interrupts: int
    errors: int


def digest_of(write: EncodedWrite) -> bytes | None:
    """Return a digest that shows whether a pending write was replaced. `None`: it cannot be replaced.

    Only writes with a negative number can be.
    """
    return hashlib.sha256(write.value.data).digest() if write.idx < 0 else None


async def thread_ids_of(conn: Connection) -> list[str]:
    """Return every thread that has a checkpoint or a pending write."""
    return [thread_id for (thread_id,) in await _rows(conn, _THREADS, {})]


async def namespaces_of(conn: Connection, thread_id: str) -> list[Namespace]:
    """Return the namespaces of a thread that have checkpoints, the root's first."""
    return [Namespace(*row) for row in await _rows(conn, _NAMESPACES, {"thread_id": thread_id})]


async def parents_of(conn: Connection, scope: Scope) -> dict[str, str | None]:
    """Return the parent of each checkpoint of a scope."""
    return dict(cast("list[tuple[str, str | None]]", await _rows(conn, _PARENTS, scope._asdict())))


async def outlines_of(conn: Connection, scope: Scope, *, limit: int) -> list[Outline]:
    """Return the checkpoints of a scope, newest first.

    Args:
        limit: The most checkpoints to return.
    """
    rows = await _rows(conn, _OUTLINES, {**scope._asdict(), "limit": limit})
    return [Outline(id_, parent, json.loads(metadata), *rest) for id_, parent, metadata, *rest in rows]


async def holding_of(conn: Connection, thread_id: str) -> Holding:
    """Return the names of what is stored of a thread."""
    named = {"thread_id": thread_id}
    return Holding(
        cast("set[tuple[str, str]]", set(await _rows(conn, _HELD_CHECKPOINTS, named))),
        {
            (ns, id_, task, idx): digest
            for ns, id_, task, idx, digest in await _rows(conn, _HELD_WRITES, named)
        },
        cast("set[tuple[str, str, str]]", set(await _rows(conn, _HELD_VALUES, named))),
    )


async def read_missing(
    conn: Connection,
    thread_id: str,
    *,
    checkpoints: Sequence[tuple[str, str]],
    writes: Collection[tuple[str, str, str, int]],
    held_values: Collection[tuple[str, str, str]],
) -> AsyncIterator[StoredCheckpoint | PendingWrites]:
    """Read some checkpoints of a thread, and some pending writes.

    Args:
        checkpoints: Namespace and id of those to read, in this order.
        writes: The pending writes to read. Writes of these checkpoints come with them, others by themselves.
        held_values: The values that are not read again.
    """
    rows = await _rows(conn, _HAS_TASK_PATH, {})
    some_writes = _SOME_WRITES if rows[0][0] else _SOME_WRITES_WITHOUT_PATH
    done, of_checkpoint = set(held_values), dict[tuple[str, str], list[tuple[str, str, str, int]]]()
    for each in sorted(writes):
        of_checkpoint.setdefault(each[:2], []).append(each)
    for start in range(0, len(checkpoints), _CHECKPOINTS_AT_ONCE):
        some = checkpoints[start : start + _CHECKPOINTS_AT_ONCE]
        params = {"thread_id": thread_id, **columns(("namespaces", "ids"), some)}
        found = await _rows(conn, _SOME_CHECKPOINTS, params)
        documents = [json.loads(row[3]) for row in found]
        values = await _values(
            conn,
            thread_id,
            {
                name
                for row, document in zip(found, documents, strict=True)
                for name in _names(row[0], document)
                if name not in done
            },
        )
        names = [name for each in some for name in of_checkpoint.pop(each, ())]
        encoded = await _writes(conn, thread_id, some_writes, names)
        for (ns, id_, parent_id, text, metadata), document in zip(found, documents, strict=True):
            own = [name for name in _names(ns, document) if name in values and name not in done]
            done.update(own)
            yield StoredCheckpoint(
                scope=Scope(thread_id, ns),
                checkpoint_id=id_,
                parent_id=parent_id,
                document=document,
                metadata=json.loads(metadata),
                values={channel: (version, values[ns, channel, version]) for ns, channel, version in own},
                writes=encoded.get((ns, id_), []),
                document_json=text,
                metadata_json=metadata,
                document_bytes=len(text) + len(metadata),
            )
    rest = [name for names in of_checkpoint.values() for name in names]
    for start in range(0, len(rest), _WRITES_AT_ONCE):
        found_writes = await _writes(conn, thread_id, some_writes, rest[start : start + _WRITES_AT_ONCE])
        for (ns, id_), own_writes in found_writes.items():
            yield PendingWrites(Scope(thread_id, ns), id_, own_writes)


def _names(ns: str, document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(ns, channel, version_text(version)) for channel, version in versions_of(document).items()]


async def _values(
    conn: Connection, thread_id: str, names: Iterable[tuple[str, str, str]]
) -> dict[tuple[str, str, str], Encoded]:
    params = columns(("namespaces", "channels", "versions"), names)
    rows = await _rows(conn, _SOME_VALUES, {"thread_id": thread_id, **params})
    return {(ns, channel, version): Encoded(type_, blob) for ns, channel, version, type_, blob in rows}


async def _writes(
    conn: Connection, thread_id: str, statement: str, names: Sequence[tuple[str, str, str, int]]
) -> dict[tuple[str, str], list[EncodedWrite]]:
    params = {"thread_id": thread_id, **columns(("namespaces", "ids", "tasks", "idxs"), names)}
    found: dict[tuple[str, str], list[EncodedWrite]] = {}
    for ns, id_, task_id, idx, channel, type_, blob, path in await _rows(conn, statement, params):
        write = EncodedWrite(task_id, idx, channel, Encoded(type_ or "", blob), path)
        found.setdefault((ns, id_), []).append(write)
    return found


async def _rows(conn: Connection, sql: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    async with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
        await cursor.execute(sql, params)
        return await cursor.fetchall()
