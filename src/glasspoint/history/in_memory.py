"""A history in the memory of this process, for `MemorySaver`.

No method here waits for anything, and each one holds a lock. So it is done completely or not at all, like a
script in Redis, even if savers in several threads, on several event loops, share one history.
"""

from __future__ import annotations

import json
import threading
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from langgraph.checkpoint.serde.types import TASKS

from glasspoint.errors import DeltaChainError, ThreadInUseError, ThreadMovedError
from glasspoint.history.interface import Ancestor, Channel, Found, Held, Holding, Outline, Position, Removal
from glasspoint.history.records import inline_mark
from glasspoint.model.codec import (
    Encoded,
    EncodedWrite,
    PendingWrites,
    StoredCheckpoint,
    is_old_format,
    version_text,
    versions_of,
)
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
    from typing import Any

    from glasspoint.history.interface import Adopted
    from glasspoint.model.codec import EncodedPut

__all__ = ["MemoryHistory"]

_Value = tuple[str, str]  # channel, version


@dataclass(slots=True)
class _Record:
    parent_id: str | None
    document_json: str
    metadata_json: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.document_json)
        return document

    @property
    def versions(self) -> dict[str, str]:
        return {c: version_text(v) for c, v in versions_of(self.document).items()}


@dataclass(slots=True)
class _Namespace:
    checkpoints: dict[str, _Record] = field(default_factory=dict)
    values: dict[_Value, Encoded] = field(default_factory=dict)
    writes: dict[str, dict[tuple[str, int], EncodedWrite]] = field(default_factory=dict)

    def add_writes(self, checkpoint_id: str, writes: Sequence[EncodedWrite], *, replaces: bool) -> None:
        """Add writes. Those of the same name stay; with `replaces`, only their task path does."""
        there = self.writes.setdefault(checkpoint_id, {})
        for write in writes:
            old = there.get((write.task_id, write.idx))
            if old is None:
                there[write.task_id, write.idx] = write
            elif replaces:
                there[write.task_id, write.idx] = write._replace(task_path=old.task_path)


@dataclass(slots=True)
class _Thread:
    namespaces: dict[str, _Namespace] = field(default_factory=dict)
    revision: int = 0
    removals: int = 0
    seal: str = ""
    sealed_until: float = 0.0

    def namespace(self, name: str) -> _Namespace:
        self.revision += 1
        return self.namespaces.setdefault(name, _Namespace())


_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def _as_a_whole(
    method: Callable[Concatenate[MemoryHistory, _Given], Awaitable[_Result]],
) -> Callable[Concatenate[MemoryHistory, _Given], Coroutine[Any, Any, _Result]]:
    """Make a method, which waits for nothing, hold the history's lock."""

    @wraps(method)
    async def locked(self: MemoryHistory, /, *args: _Given.args, **options: _Given.kwargs) -> _Result:
        with self._lock:
            return await method(self, *args, **options)

    return locked


def _step_by_step(
    method: Callable[Concatenate[MemoryHistory, _Given], AsyncGenerator[_Result, None]],
) -> Callable[Concatenate[MemoryHistory, _Given], AsyncGenerator[_Result, None]]:
    """Make a generator, which waits for nothing, hold the history's lock while it makes an item."""

    @wraps(method)
    async def locked(
        self: MemoryHistory, /, *args: _Given.args, **options: _Given.kwargs
    ) -> AsyncGenerator[_Result, None]:
        async with aclosing(method(self, *args, **options)) as items:
            while True:
                with self._lock:
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item

    return locked


class MemoryHistory:
    """All threads of one saver, or of the savers that share it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stored_at = monotonic()
        self._threads: dict[str, _Thread] = {}
        self._moved: dict[str, tuple[float, str | None]] = {}  # id -> when this entry expires, and the new id
        self._copies: WeakValueDictionary[str, MemoryHistory] = WeakValueDictionary()

    # ---------------------------------------------------------------- writing

    @_as_a_whole
    async def put(self, scope: Scope, put: EncodedPut) -> None:
        """Store a checkpoint and its new values."""
        namespace = self._to_write(scope)
        for channel, (version, value) in put.blobs.items():
            namespace.values.setdefault((channel, version), value)
        there = namespace.checkpoints.get(put.checkpoint_id)
        parent_id = there.parent_id if there else put.parent_id
        record = _Record(parent_id, put.document_json, put.metadata_json)
        namespace.checkpoints[put.checkpoint_id] = record

    @_as_a_whole
    async def put_writes(
        self, scope: Scope, checkpoint_id: str, writes: Sequence[EncodedWrite], *, replaces: bool
    ) -> None:
        """Store pending writes. With `replaces`, they replace those of the same name; else, those stay."""
        self._to_write(scope).add_writes(checkpoint_id, writes, replaces=replaces)

    @_as_a_whole
    async def add(self, item: StoredCheckpoint | PendingWrites, *, newest: str | None = None) -> bool:
        """Store an item from another store: see `History.add`."""
        there = self._of(item.scope.thread_id).namespaces.get(item.scope.checkpoint_ns, _Namespace())
        if newest is not None and max(there.checkpoints, default="") != newest:
            raise ThreadInUseError("Something else was stored in this thread meanwhile.")
        namespace, new = self._to_write(item.scope), False
        if isinstance(item, StoredCheckpoint):
            for channel, (version, value) in item.values.items():
                namespace.values.setdefault((channel, version), value)
            new = item.checkpoint_id not in namespace.checkpoints
            record = _Record(item.parent_id, item.document_json, item.metadata_json)
            namespace.checkpoints.setdefault(item.checkpoint_id, record)
        for write in item.writes:
            namespace.add_writes(item.checkpoint_id, [write], replaces=write.idx < 0)
        return new

    @_as_a_whole
    async def delete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        self._of(thread_id)
        self._threads.pop(thread_id, None)

    @_as_a_whole
    async def remove(self, thread_id: str, removals: Sequence[Removal], revision: str) -> bool:
        """Remove checkpoints, if the thread still has a revision (`""`: any)."""
        thread = self._of(thread_id)
        if revision and str(thread.revision) != revision:
            return False
        thread.revision += 1
        thread.removals += 1
        for removal in removals:
            namespace = thread.namespaces[removal.namespace]
            for checkpoint_id in removal.checkpoint_ids:
                namespace.checkpoints.pop(checkpoint_id, None)
                namespace.writes.pop(checkpoint_id, None)
            for checkpoint_id in removal.orphans:
                if checkpoint_id in namespace.checkpoints:
                    namespace.checkpoints[checkpoint_id].parent_id = None
            referred = {
                value for record in namespace.checkpoints.values() for value in record.versions.items()
            }
            namespace.values = {k: v for k, v in namespace.values.items() if k in referred}
            if removal.whole and not namespace.checkpoints:
                del thread.namespaces[removal.namespace]
        return True

    def untouched(self) -> MemoryHistory:
        """Return this history: nothing expires here."""
        return self

    def beside(self, token: str) -> MemoryHistory:
        """Return a place where a copy is built, which no other caller sees. Not adopted, it is garbage."""
        return self._copies.setdefault(token, MemoryHistory())

    @_as_a_whole
    async def adopt(self, thread_id: str, token: str, checkpoints: int, writes: int) -> Adopted:
        """Make the copy that was built under a token the thread."""
        if self._of(thread_id).namespaces:
            return "exists"
        self._threads[thread_id] = self._copies[token]._threads[thread_id]
        return "adopted"

    # ---------------------------------------------------------------- reading

    @_as_a_whole
    async def read(self, scope: Scope, checkpoint_id: str | None) -> Found | None:
        """Return a checkpoint, the newest if no id is given."""
        thread = self._of(scope.thread_id)
        namespace = thread.namespaces.get(scope.checkpoint_ns, _Namespace())
        wanted = checkpoint_id or max(namespace.checkpoints, default="")
        return _found(thread, Position(scope, wanted))

    @_as_a_whole
    async def removals(self, thread_id: str) -> bytes:
        """Return a value that changes each time that checkpoints are removed from a thread."""
        return b"%d" % self._of(thread_id).removals

    @_as_a_whole
    async def namespaces(self, thread_id: str, *, sealed_too: bool = False) -> list[str]:
        """Return the namespaces in which a thread has checkpoints."""
        thread = self._of(thread_id, sealed_too=sealed_too)
        return sorted(name for name, each in thread.namespaces.items() if each.checkpoints)

    @_step_by_step
    async def positions(self, scope: Scope, *, before: str | None) -> AsyncGenerator[list[Position], None]:
        """Return the positions of a scope's checkpoints, newest first."""
        namespace = self._of(scope.thread_id).namespaces.get(scope.checkpoint_ns, _Namespace())
        yield [
            Position(scope, each)
            for each in sorted(namespace.checkpoints, reverse=True)
            if before is None or each < before
        ]

    @_as_a_whole
    async def newest(self, scope: Scope) -> str | None:
        """Return the id of a scope's newest checkpoint, `None` if it has none."""
        namespace = self._of(scope.thread_id).namespaces.get(scope.checkpoint_ns, _Namespace())
        return max(namespace.checkpoints, default=None)

    @_as_a_whole
    async def oldest(self, scope: Scope) -> Found | None:
        """Return a scope's oldest checkpoint, `None` if it has none."""
        namespace = self._of(scope.thread_id).namespaces.get(scope.checkpoint_ns, _Namespace())
        return await self.read(scope, min(namespace.checkpoints)) if namespace.checkpoints else None

    @_as_a_whole
    async def metadata(self, positions: Sequence[Position]) -> list[dict[str, Any] | None]:
        """Return the metadata of some checkpoints of one thread, `None` for one that does not exist."""
        thread = self._of(positions[0].scope.thread_id)
        records = [_record(thread, each) for each in positions]
        return [json.loads(record.metadata_json) if record else None for record in records]

    @_step_by_step
    async def load(
        self, positions: Sequence[Position], *, sealed_too: bool = False
    ) -> AsyncGenerator[Found, None]:
        """Return some checkpoints of one thread, in this order, without those that do not exist."""
        thread = self._of(positions[0].scope.thread_id, sealed_too=sealed_too)
        for found in [_found(thread, each) for each in positions]:
            if found is not None:
                yield found

    @_step_by_step
    async def ancestors(
        self, scope: Scope, checkpoint_id: str | None, channels: Sequence[str]
    ) -> AsyncGenerator[Ancestor, None]:
        """Walk up from a checkpoint (the newest if no id is given) until each channel has a value."""
        namespace = self._of(scope.thread_id).namespaces.get(scope.checkpoint_ns, _Namespace())
        start = namespace.checkpoints.get(checkpoint_id or max(namespace.checkpoints, default=""))
        current, wanted, seen = start.parent_id if start else None, set(channels), set[str]()
        steps = []
        while wanted and current is not None and current in namespace.checkpoints:
            if current in seen:
                raise DeltaChainError.of_circle(current)
            record, writes = namespace.checkpoints[current], namespace.writes.get(current, {}).values()
            values = {c: v for c, v in _values_at(namespace, record) if c in wanted}
            steps.append(Ancestor(current, [w for w in writes if w.channel in wanted], values))
            seen.add(current)
            wanted -= values.keys()
            current = record.parent_id
        for step in steps:
            yield step

    @_as_a_whole
    async def outline(self, thread_id: str) -> tuple[str, list[Outline]]:
        """Return the thread's revision, and what pruning has to know of all its checkpoints."""
        thread = self._of(thread_id)
        outlines = [
            _outline(thread, name, checkpoint_id, record)
            for name, namespace in thread.namespaces.items()
            for checkpoint_id, record in namespace.checkpoints.items()
        ]
        return str(thread.revision), outlines

    @_as_a_whole
    async def may_hold(self, thread_id: str, run_ids: Sequence[str]) -> bool:
        """Tell whether a thread may have checkpoints of one of these runs. Here, any thread may."""
        self._of(thread_id)
        return True

    @_step_by_step
    async def thread_ids(self) -> AsyncGenerator[str, None]:
        """Return the id of every thread that has data here."""
        for thread_id in [each for each, thread in self._threads.items() if thread.namespaces]:
            yield thread_id

    # ---------------------------------------------------------------- draining

    @property
    def is_empty(self) -> bool:
        """Whether no thread has data here."""
        with self._lock:
            return not any(thread.namespaces for thread in self._threads.values())

    def may_be_lost(self, thread_id: str) -> bool:
        """Return `False`: the history is lost with the process only."""
        return False

    @_as_a_whole
    async def holds(self, thread_id: str | None) -> Holding:
        """Return which threads stand here, for a chain that works in the tier above."""
        thread = None if thread_id is None else self._threads.get(thread_id)
        here = thread is not None and bool(thread.namespaces)
        return Holding(not self.is_empty, here, monotonic() - self._stored_at)

    @_as_a_whole
    async def count(self) -> Held:
        """Count the threads with data, and their checkpoints."""
        held = [thread.namespaces.values() for thread in self._threads.values() if thread.namespaces]
        return Held(len(held), sum(len(each.checkpoints) for thread in held for each in thread))

    def forget_moved(self) -> None:
        """Forget which threads have moved. Only when no saver is left that worked here before they moved."""
        with self._lock:
            self._moved.clear()

    @_as_a_whole
    async def seal(self, thread_id: str, lease_ms: int, token: str, *, renew: bool) -> bool:
        """Keep all other callers from a thread, or renew the seal that does so."""
        thread = self._threads.get(thread_id)
        if thread is None:
            return False
        alive = thread.sealed_until > monotonic()
        if alive != renew or (renew and thread.seal != token):
            return False
        thread.seal, thread.sealed_until = token, monotonic() + lease_ms / 1000
        return True

    @_step_by_step
    async def export(
        self, thread_id: str, *, sealed_too: bool
    ) -> AsyncGenerator[StoredCheckpoint | PendingWrites, None]:
        """Return all of a thread: its checkpoints, oldest first in each namespace, then the other writes."""
        thread = self._of(thread_id, sealed_too=sealed_too)
        for name, namespace in list(thread.namespaces.items()):
            scope = Scope(thread_id, name)
            for checkpoint_id in sorted(namespace.checkpoints):
                found = _found(thread, Position(scope, checkpoint_id))
                if found is not None:
                    yield found.stored
            for checkpoint_id, writes in list(namespace.writes.items()):
                if checkpoint_id not in namespace.checkpoints and writes:
                    yield PendingWrites(scope, checkpoint_id, list(writes.values()))

    @_as_a_whole
    async def retire(self, thread_id: str, token: str, marker_ms: int, moved_to: str | None) -> bool:
        """Forget a sealed thread. For some time, calls raise an error that names the thread's new id."""
        thread = self._threads.get(thread_id)
        if thread is None or thread.seal != token or thread.sealed_until <= monotonic():
            return False
        del self._threads[thread_id]
        self._moved[thread_id] = monotonic() + marker_ms / 1000, moved_to
        return True

    # ---------------------------------------------------------------- helpers

    def _of(self, thread_id: str, *, sealed_too: bool = False) -> _Thread:
        """Return a thread, or an empty one if it does not exist.

        Raises:
            ThreadMovedError: The thread is sealed, or has moved.
        """
        until, moved_to = self._moved.get(thread_id, (0.0, None))
        if until > monotonic():
            raise ThreadMovedError(
                "This thread stands in another store now: ask that one.", moved=True, moved_to=moved_to
            )
        thread = self._threads.get(thread_id)
        if thread is not None and thread.sealed_until > monotonic() and not sealed_too:
            raise ThreadMovedError(
                "This thread is being drained into another store: ask again in a moment.", moved=False
            )
        return thread or _Thread()

    def _to_write(self, scope: Scope) -> _Namespace:
        thread = self._of(scope.thread_id)
        self._stored_at = monotonic()
        return self._threads.setdefault(scope.thread_id, thread).namespace(scope.checkpoint_ns)


def _record(thread: _Thread, position: Position) -> _Record | None:
    namespace = thread.namespaces.get(position.scope.checkpoint_ns)
    return namespace.checkpoints.get(position.checkpoint_id) if namespace else None


def _found(thread: _Thread, position: Position) -> Found | None:
    record = _record(thread, position)
    if record is None:
        return None
    scope, checkpoint_id = position
    namespace = thread.namespaces[scope.checkpoint_ns]
    values = {
        c: (v, namespace.values[c, v]) for c, v in record.versions.items() if (c, v) in namespace.values
    }
    stored = StoredCheckpoint(
        scope=scope,
        checkpoint_id=checkpoint_id,
        parent_id=record.parent_id,
        document=record.document,
        metadata=json.loads(record.metadata_json),
        values=values,
        writes=list(namespace.writes.get(checkpoint_id, {}).values()),
        document_json=record.document_json,
        metadata_json=record.metadata_json,
        document_bytes=len(record.document_json) + len(record.metadata_json),
    )
    return Found(stored, _sends(thread, record.parent_id) if stored.needs_parent else [])


def _sends(thread: _Thread, parent_id: str | None) -> list[EncodedWrite]:
    """Return a checkpoint id's TASKS writes in all namespaces, to complete children of an old format."""
    return [
        write
        for namespace in thread.namespaces.values()
        for write in namespace.writes.get(parent_id or "", {}).values()
        if write.channel == TASKS
    ]


def _values_at(namespace: _Namespace, record: _Record) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """Yield the values of a checkpoint: a channel's blob, or its inline value other than null."""
    document, versions = record.document, record.versions
    inline = document.get("channel_values") or {}
    for channel in versions.keys() | inline.keys():
        value = namespace.values.get((channel, versions.get(channel, "")))
        if value is not None and value.type != "empty":
            yield channel, ("b", f"{value.type}\0".encode() + value.data)
        elif inline.get(channel) is not None:
            known = channel in versions
            yield channel, ("i", record.document_json.encode()) if known else ("x", b"")


def _outline(thread: _Thread, name: str, checkpoint_id: str, record: _Record) -> Outline:
    document, versions, metadata = record.document, record.versions, json.loads(record.metadata_json)
    inline, values = document.get("channel_values") or {}, thread.namespaces[name].values
    sends = thread.namespaces[name].writes.get(record.parent_id or "", {}).values()
    run_id = metadata.get("run_id")
    return Outline(
        namespace=name,
        checkpoint_id=checkpoint_id,
        parent_id=record.parent_id,
        old_format=is_old_format(document),
        run_id=run_id if isinstance(run_id, str) else None,
        channels={
            channel: Channel(
                versioned=channel in versions,
                mark=inline_mark(inline[channel]) if channel in inline else "",
                blob=(channel, versions.get(channel, "")) in values,
            )
            for channel in versions.keys() | inline.keys()
        },
        metadata=metadata,
        parent_has_sends=any(write.channel == TASKS for write in sends),
    )
