"""Draining: moves a thread out of a history into another store, and from another store into a history.

    seal_thread --- token ---> export_thread ---> (the other store has all) ---> retire_thread
                                    |
                     seal_thread(token=…) now and then, to renew the seal

While a thread is sealed, and for some time after it was retired, each call on it raises `ThreadMovedError`.
So no write is acknowledged here that the other store will not have.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from glasspoint.errors import ConfigurationError, ThreadDamagedError, ThreadInUseError
from glasspoint.history.beginning import with_mark, without_mark
from glasspoint.model.codec import StoredCheckpoint
from glasspoint.model.lineage import relation_of
from glasspoint.model.scope import Scope, validate_thread_id
from glasspoint.telemetry.opened import OpenedSaver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.history.beginning import Beginning
    from glasspoint.history.interface import Held, History
    from glasspoint.model.codec import PendingWrites
    from glasspoint.model.lineage import Branch, Relation, SetAside
    from glasspoint.telemetry.events import Operation, SaverStatus, Served, Telemetry

__all__ = ["DrainableSaver"]


class DrainableSaver(OpenedSaver):
    """The calls with which a fallback chain moves threads into the tier above, and out of a tier below."""

    def __init__(
        self, history: History, status: SaverStatus, telemetry: Telemetry, serde: SerializerProtocol | None
    ) -> None:
        """Open a saver on a history.

        Args:
            history: The history to read and write.
            status, telemetry, serde: See `OpenedSaver`.
        """
        super().__init__(status, telemetry, serde)
        self._served_by: Served = "memory" if status.tier == "memory" else "redis"
        self._history = history
        self._beginning: Beginning | None = None
        self._written: OrderedDict[str, None] = OrderedDict()

    async def thread_ids(self, *, only_reads: bool = False) -> AsyncIterator[str]:
        """Yield the id of every thread that has data here. Sealed threads are included, moved ones are not.

        A thread that is written for the first time meanwhile may be missed.

        Args:
            only_reads: Whether a list of threads in Redis that may lack some is left as it is. By default, it
                is completed, so that the next call need not look at all keys.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        history = self._history.untouched() if only_reads else self._history
        async for thread_id in self._lifetime.each(history.thread_ids()):
            yield thread_id

    async def count(self) -> Held:
        """Count the threads that have data here, and their checkpoints.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        with self._lifetime.call():
            return await self._history.count()

    async def seal_thread(
        self, thread_id: str, *, lease_seconds: float, token: bytes | str | None = None
    ) -> str | None:
        """Keep all other callers from a thread, in order to drain it.

        Args:
            thread_id: The id of the thread.
            lease_seconds: How long the seal lasts, by the Redis server's clock. After that, the thread works
                as before.
            token: To renew a seal: the token from the first call.

        Returns:
            The token of the seal. `None`: another caller has the seal, or the thread has moved already; or
            the seal to renew has expired, and the thread may have been written to, so begin again.

        Raises:
            InvalidConfigError: The id cannot be stored.
            RedisUnavailableError: Redis did not respond.
        """
        validate_thread_id(thread_id)
        lease_ms = _milliseconds("lease_seconds", lease_seconds)
        renewed = _text(token) if token is not None else None
        with self._call("seal_thread", Scope(thread_id, "")):
            mine = renewed or secrets.token_hex(16)
            done = await self._history.seal(thread_id, lease_ms, mine, renew=renewed is not None)
        return mine if done else None

    async def export_thread(
        self, thread_id: str, *, keeps_ttl: bool = False
    ) -> AsyncIterator[StoredCheckpoint | PendingWrites]:
        """Yield everything of a thread, as it is stored. Nothing is decoded.

        Seal the thread first: otherwise it may change meanwhile.

        Args:
            thread_id: The id of the thread.
            keeps_ttl: Whether this read leaves the thread's time to live as it is.

        Yields:
            The checkpoints with their values and writes, oldest first in each namespace; then the pending
            writes whose checkpoint is not here.

        Raises:
            InvalidConfigError: The id cannot be stored.
            ThreadMovedError: The thread has moved already.
            ThreadDamagedError: Redis has evicted a part of the thread.
            RedisUnavailableError: Redis did not respond.
        """
        validate_thread_id(thread_id)
        history = self._history.untouched() if keeps_ttl else self._history
        async for item in self._lifetime.each(history.export(thread_id, sealed_too=True)):
            yield without_mark(item) if isinstance(item, StoredCheckpoint) else item

    async def retire_thread(
        self, thread_id: str, token: bytes | str, *, marker_seconds: float, moved_to: str | None = None
    ) -> bool:
        """Forget a sealed thread, because another store has all of it.

        Args:
            thread_id: The id of the thread.
            token: The token of the seal.
            marker_seconds: How long calls on the thread raise `ThreadMovedError` from now on. This must be
                longer than any client takes to notice where the thread is now.
            moved_to: The id of the thread in the other store, for this error. `None`: the same id.

        Returns:
            Whether it was done. If not, the seal has expired or is another one, and nothing was changed.

        Raises:
            InvalidConfigError: The id cannot be stored.
            RedisUnavailableError: Redis did not respond. The call may be repeated.
        """
        validate_thread_id(thread_id)
        marker_ms = _milliseconds("marker_seconds", marker_seconds)
        with self._call("retire_thread", Scope(thread_id, "")):
            return await self._history.retire(thread_id, _text(token), marker_ms, moved_to)

    async def check_takes_writes(self) -> None:
        """Check that the server can be reached.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        await self.ping()

    async def relate(self, thread_id: str, branch: Branch) -> Relation:
        """Compare a branch of another store with what is here of its thread and namespace.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not respond.
        """
        relation, _ = await self._relate(Scope(thread_id, branch.namespace), branch)
        return relation

    async def newest_held(self, thread_id: str, branch: Branch) -> str | None:
        """Return the newest checkpoint id of a branch that is here too, `None` if none is.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not respond.
        """
        scope = Scope(thread_id, branch.namespace)
        with self._call("relate", scope):
            for checkpoint_id in sorted(branch.ids, reverse=True):
                if await self._history.read(scope, checkpoint_id) is not None:
                    return checkpoint_id
        return None

    async def has_checkpoint(self, scope: Scope, checkpoint_id: str) -> bool:
        """Tell whether a checkpoint is here. A scope that has nothing here begins with its cached state.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not respond.
        """
        with self._call("relate", scope):
            if await self._history.read(scope, checkpoint_id) is not None:
                return True
            if await self._history.read(scope, None) is not None or not await self._take_cached_state(scope):
                return False
            return await self._history.read(scope, checkpoint_id) is not None

    async def has_thread(self, thread_id: str) -> bool:
        """Tell whether a thread has a history here, or in the cache, whose state is brought here then.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not respond.
        """
        scope = Scope(thread_id, "")
        with self._call("relate", scope):
            return await self._history.read(scope, None) is not None or await self._take_cached_state(scope)

    async def check_here(self, thread_id: str) -> None:
        """Check that calls on a thread can be made here.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not respond.
        """
        with self._call("relate", Scope(thread_id, "")):
            await self._history.removals(thread_id)

    async def note_set_aside(self, set_aside: SetAside) -> None:
        """Do nothing: the metadata of the checkpoints record this, and are drained with them."""

    async def set_aside_from(self, thread_id: str) -> list[SetAside]:
        """Return nothing: only the lowest tier is drained into this one, and its branch has the same name."""
        return []

    async def import_checkpoints(
        self, items: Sequence[StoredCheckpoint | PendingWrites], *, branch: Branch | None = None
    ) -> int:
        """Store items that another store has exported. What is here already stays, so this may be repeated.

        Args:
            items: Checkpoints with their values and writes, or writes alone; all of one scope.
            branch: The branch that the items begin. If the thread is here, and the branch does not continue
                it, nothing is stored.

        Returns:
            The number of checkpoints that were not here before.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not respond.
            RedisRefusedError: Redis refused an item, which was not stored.
            ThreadInUseError: The branch does not continue the thread. Nothing was stored.
        """
        validate_thread_id(items[0].scope.thread_id)
        newest = None
        if branch is not None:
            relation, newest = await self._relate(items[0].scope, branch)
            newest = newest or ""
            if relation == "apart":
                raise ThreadInUseError("Something else was stored in this thread meanwhile.")
        with self._call("import_checkpoints", items[0].scope):
            new = await self._history.add(_marked(items[0]), newest=newest)
            return new + sum([await self._history.add(_marked(item)) for item in items[1:]])

    # ---------------------------------------------------------------- helpers

    async def _relate(self, scope: Scope, branch: Branch) -> tuple[Relation, str | None]:
        """Compare a branch with what is here, and return also the id of the newest checkpoint here."""
        with self._call("relate", scope):
            try:
                found = await self._history.read(scope, None)
            except ThreadDamagedError:
                if not self._history.may_be_lost(scope.thread_id):
                    raise
                found = (
                    None  # the thread is lost; if only a part is lost, nothing can be stored beside the rest
                )
            if found is None and await self._take_cached_state(scope):
                found = await self._history.read(scope, None)
            if found is None:
                return "new", None
            newest, parent_id, seen = found.stored.checkpoint_id, found.stored.parent_id, {branch.tip}
            while parent_id is not None and parent_id not in seen:
                seen.add(parent_id)
                found = await self._history.read(scope, parent_id)
                parent_id = None if found is None else found.stored.parent_id
            has_tip = parent_id == branch.tip or await self._history.read(scope, branch.tip) is not None
            return relation_of(branch, newest, has_tip=has_tip), newest

    async def _take_cached_state(self, scope: Scope) -> bool:
        """Bring the cached state of a scope that has nothing here. Return whether the cache had one."""
        return self._beginning is not None and await self._beginning.take(scope)

    @contextmanager
    def _call(
        self, name: str, scope: Scope | None, config: RunnableConfig | None = None, **known: Any
    ) -> Iterator[Operation]:
        """Wrap a call of the saver: see `Telemetry.operation`."""
        with self._lifetime.call(), self._telemetry.operation(name, scope, config, **known) as operation:
            operation.tier = self._served_by
            yield operation
            operation.served_by = self._served_by


def _milliseconds(name: str, seconds: float) -> int:
    if not seconds > 0:
        raise ConfigurationError(f"{name} is {seconds!r}: it must be greater than 0 seconds.")
    return max(1, int(seconds * 1000))


def _marked(item: StoredCheckpoint | PendingWrites) -> StoredCheckpoint | PendingWrites:
    """Mark a checkpoint here, too, if the other store had it from the cache."""
    return with_mark(item) if isinstance(item, StoredCheckpoint) and item.is_brought else item


def _text(token: bytes | str) -> str:
    return token.decode() if isinstance(token, bytes) else token
