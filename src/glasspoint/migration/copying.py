"""Copying: copies what the source has and the target lacks, thread by thread.

    compare   the names of what the source and the target have: only what is missing is copied
    refuse    a thread that has gone on in both, or that is another conversation in the target
    import    the newest checkpoint of each namespace, then the others, oldest first

So copying may be repeated at any time: after an interruption, or while the source is still written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from glasspoint.errors import (
    ConfigurationError,
    InvalidConfigError,
    L2RefusedError,
    NotFoundError,
    SerializationError,
    ThreadDamagedError,
    ThreadInUseError,
    ThreadMovedError,
)
from glasspoint.l2.contents import digest_of
from glasspoint.migration.sources import source_of
from glasspoint.model.batches import in_batches
from glasspoint.model.codec import Encoded, EncodedWrite, PendingWrites, StoredCheckpoint
from glasspoint.model.scope import validate_thread_id
from glasspoint.savers.cached import CachedPostgresSaver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.l2.contents import Holding
    from glasspoint.migration.sources import Source, SourceThread
    from glasspoint.model.batches import Item

__all__ = ["MigrationReport", "copy_threads", "migrate"]

# The types of values that LangGraph's serializer can read in every process.
_READABLE = {"null", "bytes", "bytearray", "json", "msgpack"}

_GONE_ON = (
    "The thread has gone on in the source and in the target: if it were copied, one of the two would hide "
    "the other. Nothing more was copied."
)

# Errors that concern one thread only: the other threads are copied all the same.
_OF_ONE_THREAD = (
    NotFoundError,
    SerializationError,
    InvalidConfigError,
    ThreadDamagedError,
    ThreadInUseError,
    ThreadMovedError,
    L2RefusedError,
)


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration has copied; with `dry_run`, what it would copy.

    Attributes:
        dry_run: Whether nothing was changed.
        threads: Number of threads that were looked at.
        copied: Number of these threads of which anything was copied.
        unchanged: Number of these threads of which the target had everything already.
        checkpoints: Number of checkpoints that were copied.
        writes: Number of pending writes that were copied.
        values: Number of channel values that were copied.
        bytes: Size of these values and writes.
        refused: Thread id -> why nothing, or not everything, of the thread was copied.
    """

    dry_run: bool = False
    threads: int = 0
    copied: int = 0
    unchanged: int = 0
    checkpoints: int = 0
    writes: int = 0
    values: int = 0
    bytes: int = 0
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


async def migrate(
    source: BaseCheckpointSaver[Any],
    target: CachedPostgresSaver,
    *,
    thread_ids: Iterable[str] | None = None,
    dry_run: bool = False,
    on_thread: Callable[[MigrationReport], object] | None = None,
) -> MigrationReport:
    """Copy whole histories from another saver into PostgreSQL. Only what is missing there is copied.

    Every checkpoint of every namespace is copied, with its values, metadata, parent and pending writes. Ids
    do not change. The source is only read. You may repeat the migration after an interruption, or to copy
    what was written to the source meanwhile.

    A thread is refused, and named in the report, in three cases: it has gone on in both places; the target
    has another conversation under its id; or a part of it cannot be stored. The other threads are copied.

    Args:
        source: An `AsyncPostgresSaver`, `InMemorySaver`, `RedisSaver`, `AsyncSqliteSaver`, or any other saver
            that can list its checkpoints.
        target: The saver that receives the threads. Its tables must exist: see `setup`.
        thread_ids: The threads to copy; by default all.
        dry_run: Only count. Nothing is changed.
        on_thread: Called after each thread with the sums so far. If it raises an error, the migration ends.

    Returns:
        What was copied, and which threads were refused.

    Raises:
        ConfigurationError: The target is not a `CachedPostgresSaver`, or the source is not another saver.
        SchemaError: The target's tables do not exist.
        L2UnavailableError, L2DeadlineError: PostgreSQL did not respond. What was copied before stays.
        RedisUnavailableError: The source did not respond. What was copied before stays. (Savers of other
            packages raise errors of their own.)

    Example:
        ```python
        async with (
            AsyncSqliteSaver.from_conn_string("checkpoints.sqlite") as source,
            CachedPostgresSaver.from_conn_string(POSTGRES_URL, redis_url=REDIS_URL) as target,
        ):
            await target.setup()
            report = await migrate(source, target)
        ```
    """
    if not isinstance(target, CachedPostgresSaver):
        raise ConfigurationError(
            f"The target must be a CachedPostgresSaver, not a {type(target).__name__}: open one with "
            "CachedPostgresSaver.create, or create_cached_postgres_checkpointer."
        )
    given: object = source
    if not isinstance(given, BaseCheckpointSaver) or source is target:
        what = "the target itself" if source is target else f"a {type(source).__name__}"
        raise ConfigurationError(f"The source must be another checkpointer, not {what}.")
    return await copy_threads(
        source_of(source), target, thread_ids=thread_ids, dry_run=dry_run, on_thread=on_thread
    )


async def copy_threads(
    source: Source,
    target: CachedPostgresSaver,
    *,
    thread_ids: Iterable[str] | None = None,
    dry_run: bool = False,
    on_thread: Callable[[MigrationReport], object] | None = None,
    on_begin: Callable[[int], object] | None = None,
) -> MigrationReport:
    """Copy threads from any `Source`. The promises are those of `migrate`.

    Args:
        on_begin: Called with the number of threads, before the first one is copied.
    """
    chosen = await source.thread_ids() if thread_ids is None else list(dict.fromkeys(thread_ids))
    if on_begin is not None:
        on_begin(len(chosen))
    report = MigrationReport(dry_run)
    for thread_id in chosen:
        copy = _Copy(source, target, thread_id, dry_run=dry_run, must_be_there=thread_ids is not None)
        try:
            await copy.run()
        except _OF_ONE_THREAD as exc:
            copy.refused = str(exc)
        report = copy.added_to(report)
        if on_thread is not None:
            on_thread(report)
    return report


class _Copy:
    """Copies one thread, and counts what was copied."""

    def __init__(
        self,
        source: Source,
        target: CachedPostgresSaver,
        thread_id: str,
        *,
        dry_run: bool,
        must_be_there: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._thread_id = thread_id
        self._dry_run = dry_run
        self._must_be_there = must_be_there
        self._may_replace = False
        self._checkpoints = self._writes = self._values = self._bytes = 0
        self.refused: str | None = None

    def added_to(self, sums: MigrationReport) -> MigrationReport:
        refused = sums.refused
        if self.refused is not None:
            refused = MappingProxyType({**refused, self._thread_id: self.refused})
        has_copied = bool(self._checkpoints or self._writes)
        return replace(
            sums,
            threads=sums.threads + 1,
            copied=sums.copied + has_copied,
            unchanged=sums.unchanged + (not has_copied and self.refused is None),
            checkpoints=sums.checkpoints + self._checkpoints,
            writes=sums.writes + self._writes,
            values=sums.values + self._values,
            bytes=sums.bytes + self._bytes,
            refused=refused,
        )

    async def run(self) -> None:
        validate_thread_id(self._thread_id)
        held = await self._target.holding_of(self._thread_id)
        async with self._source.thread(self._thread_id) as thread:
            missing = thread.checkpoints - held.checkpoints
            _check_that_fits(thread, held, missing)
            self._may_replace = held.checkpoints <= thread.checkpoints
            order = await _order(thread, missing)
            items = self._missing(thread.items(order, held), held)
            async for batch in in_batches(items):
                if not self._dry_run:
                    await self._target.import_checkpoints(batch)
                self._count(batch)
            if self._must_be_there and not thread.checkpoints and not self._writes:
                raise NotFoundError("The source has no thread of this id.")

    async def _missing(self, items: AsyncIterator[Item], held: Holding) -> AsyncIterator[Item]:
        """Leave out what the target has, and values that an earlier item brings."""
        async for item in items:
            place = (item.scope.checkpoint_ns, item.checkpoint_id)
            writes = [w for w in item.writes if self._is_missing(place, w, held)]
            writes = [w._replace(value=self._recoded(w.value, f"a write to {w.channel!r}")) for w in writes]
            if isinstance(item, PendingWrites):
                if writes:
                    yield item._replace(writes=writes)
                continue
            values = {}
            for channel, (version, value) in item.values.items():
                name = (item.scope.checkpoint_ns, channel, version)
                if name not in held.values:
                    held.values.add(name)
                    values[channel] = version, self._recoded(value, f"channel {channel!r}")
            yield replace(item, values=values, writes=writes)

    def _is_missing(self, place: tuple[str, str], write: EncodedWrite, held: Holding) -> bool:
        """Tell whether the target lacks a pending write, or has an older one that it replaced in the source.

        For example, the second question of a task replaces the first one.
        """
        name = (*place, write.task_id, write.idx)
        if name not in held.writes:
            return True
        return self._may_replace and held.writes[name] != digest_of(write)

    def _recoded(self, value: Encoded, what: str) -> Encoded:
        """Return a value in a form that the target's serializer can read."""
        theirs, ours = self._source.serde, self._target.serde
        if theirs is None or theirs is ours:
            return value
        is_plain = _is_plain(theirs) and _is_plain(ours)
        if is_plain and value.type in _READABLE:
            return value
        try:
            if is_plain:
                ours.loads_typed(value)
                return value
            type_, data = ours.dumps_typed(theirs.loads_typed(value))
        except Exception as exc:
            raise SerializationError(
                f"The value of {what} ({value.type}) cannot be read, or not stored so that the target reads "
                f"it ({type(exc).__name__}): give source and target a serde that can."
            ) from exc
        return Encoded(type_, bytes(data))

    def _count(self, batch: list[Item]) -> None:
        for item in batch:
            self._writes += len(item.writes)
            self._bytes += sum(len(w.value.data) for w in item.writes)
            if isinstance(item, StoredCheckpoint):
                self._checkpoints += 1
                self._values += len(item.values)
                self._bytes += sum(len(value.data) for _, value in item.values.values())


def _is_plain(serde: SerializerProtocol) -> bool:
    """Tell whether a serializer is LangGraph's own. Others may encrypt, each with a key of its own."""
    return type(serde).loads_typed is JsonPlusSerializer.loads_typed


def _check_that_fits(thread: SourceThread, held: Holding, missing: set[tuple[str, str]]) -> None:
    """Check that the copied checkpoints do not change the state that the target goes on from.

    Raises:
        ThreadInUseError: The target has checkpoints of its own, and the missing ones are not older; or both
            have pending writes of their own to one checkpoint.
    """
    theirs, ours = thread.checkpoints, held.checkpoints
    apart = {name[:2] for name in thread.writes.keys() - held.writes.keys()} & {
        name[:2] for name in held.writes.keys() - thread.writes.keys()
    }
    own = ours - theirs
    if apart and not own:
        raise ThreadInUseError(_GONE_ON)
    if not own or not missing:
        return
    if not ours & theirs:
        raise ThreadInUseError(
            "The target has a thread of this id, with none of the source's checkpoints: it is another "
            "conversation. Nothing was copied. Delete the thread in the target first, if it may go."
        )
    if max(id_ for _, id_ in missing) > min(id_ for _, id_ in own):
        raise ThreadInUseError(_GONE_ON)


async def _order(thread: SourceThread, missing: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the order of copying: the newest checkpoints first, so that readers soon have the state."""
    if not missing:
        return []
    tips = [each for each in await thread.tips() if each in missing]
    return [*tips, *sorted(missing.difference(tips))]
