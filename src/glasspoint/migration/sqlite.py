"""Reads a SQLite file of LangGraph's `SqliteSaver` or `AsyncSqliteSaver`, without changing it.

Python's own sqlite3 opens the file read-only. LangGraph's savers are not used: when opened, they make tables
and change the file's journal mode. (SQLite itself may leave an empty `-wal` and a `-shm` beside the file.)

A checkpoint is stored in one piece, and has to be taken apart into its values. No objects are made of the
values for that, because this process may not have the application's classes: for a class that it cannot
import, LangGraph's serializer returns a dictionary. So MessagePack's extension types are left as they are.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

import ormsgpack
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from glasspoint.errors import ConfigurationError, SerializationError
from glasspoint.migration.sources import ListedThread
from glasspoint.model.codec import Encoded, EncodedWrite, PendingWrites, encode_found
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.model.codec import StoredCheckpoint

__all__ = ["SqliteSource"]

# The number of the extension type that LangGraph's serializer uses for the snapshot of a delta channel.
_DELTA_SNAPSHOT = 7

_THREADS = "SELECT thread_id FROM checkpoints UNION SELECT thread_id FROM writes ORDER BY 1"
_CHECKPOINTS = """
SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata FROM checkpoints
WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id
"""
_WRITES = """
SELECT checkpoint_ns, checkpoint_id, task_id, idx, channel, type, value, task_path FROM writes
WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id, task_id, idx
"""
_WRITES_WITHOUT_PATH = """
SELECT checkpoint_ns, checkpoint_id, task_id, idx, channel, type, value, '' FROM writes
WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id, task_id, idx
"""


class SqliteSource:
    """The file, open for reading. Enter it with `with`."""

    serde: SerializerProtocol | None = None
    """None: the bytes of values are copied without a check."""

    def __init__(self, path: str | Path) -> None:
        """Open the file.

        Args:
            path: The path of the file.

        Raises:
            ConfigurationError: The file does not exist, or is not one of LangGraph's savers.
        """
        self._name = str(path)
        if not Path(path).is_file():
            raise ConfigurationError(f"There is no file {self._name}.")
        file = Path(path).absolute()
        # To read a file in WAL mode, SQLite makes two more files beside it. If this process may not make
        # them, it opens the file as one that no process writes to.
        is_sealed = not os.access(file.parent, os.W_OK) and not Path(f"{file}-wal").exists()
        uri = f"file:{quote(str(file))}?mode=ro{'&immutable=1' if is_sealed else ''}"
        try:
            self._file = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.Error as exc:
            raise ConfigurationError(f"The file {self._name} cannot be opened: {exc}.") from exc
        try:
            columns = {name for _, name, *_ in self._rows("PRAGMA table_info(writes)")}
            self._rows("SELECT 1 FROM checkpoints, writes LIMIT 0")
        except ConfigurationError:
            self._file.close()
            raise
        self._writes_sql = _WRITES if "task_path" in columns else _WRITES_WITHOUT_PATH

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    async def thread_ids(self) -> list[str]:
        """See `Source`."""
        return [thread_id for (thread_id,) in await asyncio.to_thread(self._rows, _THREADS)]

    @asynccontextmanager
    async def thread(self, thread_id: str) -> AsyncIterator[ListedThread]:
        """See `Source`."""
        yield await asyncio.to_thread(lambda: ListedThread(self._read(thread_id)))

    def _read(self, thread_id: str) -> list[StoredCheckpoint | PendingWrites]:
        self._rows("BEGIN")
        try:
            rows = self._rows(_CHECKPOINTS, thread_id)
            written = self._rows(self._writes_sql, thread_id)
        finally:
            self._rows("ROLLBACK")
        writes: dict[tuple[str, str], list[EncodedWrite]] = {}
        for ns, id_, task_id, idx, channel, type_, value, path in written:
            write = EncodedWrite(task_id, idx, channel, Encoded(type_ or "", bytes(value)), path)
            writes.setdefault((ns, id_), []).append(write)
        items: list[StoredCheckpoint | PendingWrites] = []
        for ns, id_, parent_id, type_, data, metadata in rows:
            stored = encode_found(
                _Apart(type_), self._tuple(Scope(thread_id, ns), id_, parent_id, type_, data, metadata)
            )
            items.append(replace(stored, writes=writes.pop((ns, id_), [])))
        items += [PendingWrites(Scope(thread_id, ns), id_, rest) for (ns, id_), rest in writes.items()]
        return items

    def _tuple(
        self, scope: Scope, id_: str, parent_id: str | None, type_: str, data: bytes, metadata: bytes | None
    ) -> CheckpointTuple:
        try:
            checkpoint = _Apart(type_).loads_typed((type_, data))
            told = json.loads(metadata) if metadata else {}
        except Exception as exc:
            raise SerializationError(
                f"The checkpoint {id_} cannot be taken apart ({type_}, {type(exc).__name__}). If it is "
                "encrypted or pickled, give the saver, with its serde, to glasspoint.migrate()."
            ) from exc
        configurable = scope._asdict()
        parent: Any = {"configurable": {**configurable, "checkpoint_id": parent_id}} if parent_id else None
        config: Any = {"configurable": {**configurable, "checkpoint_id": id_}}
        return CheckpointTuple(config, checkpoint, cast("Any", told), parent)

    def _rows(self, sql: str, *params: str) -> list[tuple[Any, ...]]:
        try:
            with closing(self._file.execute(sql, params)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as exc:
            raise ConfigurationError(
                f"The file {self._name} cannot be read as one of LangGraph's SqliteSaver: {exc}."
            ) from exc


class _Extension:
    """A value of one of LangGraph's extension types, as it is stored."""

    def __init__(self, tag: int, data: bytes) -> None:
        self.tag = tag
        self.data = data


class _Apart:
    """A serializer that makes no objects: it writes extension types as it has read them."""

    def __init__(self, type_: str) -> None:
        """Choose the type.

        Args:
            type_: The type of the checkpoint, `msgpack` or `json`. Its values are written in the same type.
        """
        self._is_json = type_ == "json"

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Read a checkpoint."""
        type_, raw = data
        if type_ == "json":
            return json.loads(raw)
        if type_ != "msgpack":
            raise NotImplementedError(type_)
        return ormsgpack.unpackb(raw, ext_hook=_kept, option=ormsgpack.OPT_NON_STR_KEYS)

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        """Write a value of a checkpoint."""
        if value is None:
            return "null", b""
        if isinstance(value, bytes):
            return "bytes", value
        if self._is_json:
            return "json", json.dumps(value).encode()
        if isinstance(value, _DeltaSnapshot):
            value = value.value
        return "msgpack", ormsgpack.packb(value, default=_as_it_was, option=ormsgpack.OPT_NON_STR_KEYS)


def _kept(tag: int, data: bytes) -> _Extension | _DeltaSnapshot:
    kept = _Extension(tag, data)
    return _DeltaSnapshot(kept) if tag == _DELTA_SNAPSHOT else kept


def _as_it_was(value: Any) -> ormsgpack.Ext:
    if isinstance(value, _Extension):
        return ormsgpack.Ext(value.tag, value.data)
    raise TypeError(type(value).__name__)
