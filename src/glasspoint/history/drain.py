"""Draining: a thread's way out of a history into another store, and from another store into it.

    seal_thread --- token ---> export_thread ---> (the other store has all) ---> retire_thread
                                    |
                     seal_thread(token=…) now and then, to renew

While a thread is sealed, and for a while after it was retired, every call that concerns it raises
`ThreadMovedError`: so no write is acknowledged here that the other store will not have.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from glasspoint.errors import ConfigurationError, ThreadDamagedError, ThreadInUseError
from glasspoint.history.beginning import with_mark, without_mark
from glasspoint.history.opened import OpenedSaver
from glasspoint.model.codec import StoredCheckpoint
from glasspoint.model.lineage import relation_of
from glasspoint.model.scope import Scope, validate_thread_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from glasspoint.model.codec import PendingWrites
    from glasspoint.model.lineage import Branch, Relation, SetAside

__all__ = ["DrainableSaver"]


class DrainableSaver(OpenedSaver):
    """What a fallback chain needs to bring the threads into the tier above, and out of the one below."""

    async def thread_ids(self) -> AsyncIterator[str]:
        """Find every thread that has data here, sealed ones included, those that have moved not.

        One that is written meanwhile may be missed.

        Raises:
            RedisUnavailableError: Redis did not answer.
        """
        async for thread_id in self._lifetime.each(self._history.thread_ids()):
            yield thread_id

    async def seal_thread(
        self, thread_id: str, *, lease_seconds: float, token: bytes | str | None = None
    ) -> str | None:
        """Keep everybody else from a thread, to drain it.

        Args:
            thread_id: The thread.
            lease_seconds: After so long on the Redis server's clock the seal is gone, and the thread works as
                before.
            token: To renew a seal: what the first call returned.

        Returns:
            The seal's token. `None` if another holds the seal, if the thread has moved already, or if the
            seal to renew has expired: somebody may have written since, so begin again.

        Raises:
            InvalidConfigError: No thread can have this id.
            RedisUnavailableError: Redis did not answer.
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
        """Give out all of a thread as it is stored; nothing is decoded. Only under a seal is it one state.

        Args:
            thread_id: The thread.
            keeps_ttl: The thread lives as long as it would have, unread.

        Yields:
            Its checkpoints with their values and writes, oldest first in each namespace; then the pending
            writes whose checkpoint is not here.

        Raises:
            InvalidConfigError: No thread can have this id.
            ThreadMovedError: It has moved already.
            ThreadDamagedError: Redis has evicted a part of it.
            RedisUnavailableError: Redis did not answer.
        """
        validate_thread_id(thread_id)
        history = self._history.untouched() if keeps_ttl else self._history
        async for item in self._lifetime.each(history.export(thread_id, sealed_too=True)):
            yield without_mark(item) if isinstance(item, StoredCheckpoint) else item

    async def retire_thread(
        self, thread_id: str, token: bytes | str, *, marker_seconds: float, moved_to: str | None = None
    ) -> bool:
        """Forget a thread whose seal is alive, because another store has all of it.

        Args:
            thread_id: The thread.
            token: Of the seal.
            marker_seconds: For so long calls that concern the thread raise `ThreadMovedError`: longer than
                any client may take to notice where the thread is now.
            moved_to: The id that the thread has in the other store, `None` if it kept its own; the error
                says it.

        Returns:
            Whether it was done. If not, the seal has expired or is another one, and nothing was done.

        Raises:
            InvalidConfigError: No thread can have this id.
            RedisUnavailableError: Redis did not answer; the call may be repeated.
        """
        validate_thread_id(thread_id)
        marker_ms = _milliseconds("marker_seconds", marker_seconds)
        with self._call("retire_thread", Scope(thread_id, "")):
            return await self._history.retire(thread_id, _text(token), marker_ms, moved_to)

    async def check_takes_writes(self) -> None:
        """Make sure that it can be reached.

        Raises:
            RedisUnavailableError: Redis did not answer.
        """
        await self.ping()

    async def relate(self, thread_id: str, branch: Branch) -> Relation:
        """Tell how a branch of another store stands to what is here of its thread and namespace.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not answer.
        """
        scope = Scope(thread_id, branch.namespace)
        with self._call("relate", scope):
            try:
                found = await self._history.read(scope, None)
            except ThreadDamagedError:
                if not self._history.list_is_lost:
                    raise
                found = None  # what was here is lost; if a part of it is, nothing can be stored beside that
            if found is None and self._beginning is not None and await self._beginning.take(scope):
                found = await self._history.read(scope, None)
            if found is None:
                return "new"
            newest, parent_id, seen = found.stored.checkpoint_id, found.stored.parent_id, {branch.tip}
            while parent_id is not None and parent_id not in seen:
                seen.add(parent_id)
                found = await self._history.read(scope, parent_id)
                parent_id = None if found is None else found.stored.parent_id
            has_tip = parent_id == branch.tip or await self._history.read(scope, branch.tip) is not None
            return relation_of(branch, newest, has_tip=has_tip)

    async def newest_held(self, thread_id: str, branch: Branch) -> str | None:
        """Return the newest checkpoint of another store's branch that is here, too, `None` if none is.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not answer.
        """
        scope = Scope(thread_id, branch.namespace)
        with self._call("relate", scope):
            for checkpoint_id in sorted(branch.ids, reverse=True):
                if await self._history.read(scope, checkpoint_id) is not None:
                    return checkpoint_id
        return None

    async def note_set_aside(self, set_aside: SetAside) -> None:
        """Do nothing: the checkpoints' metadata say it, and are drained with them."""

    async def import_checkpoints(
        self, items: Sequence[StoredCheckpoint | PendingWrites], *, branch: Branch | None = None
    ) -> int:
        """Store what another store gave out. What is here already stays, so it may be repeated.

        Args:
            items: Checkpoints with their values and writes, or writes alone; all of one scope.
            branch: What these are the beginning of, to be refused if it is apart from what is here.

        Returns:
            How many checkpoints were not here before.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            RedisUnavailableError: Redis did not answer.
            RedisRefusedError: Redis refused; nothing was stored.
            ThreadInUseError: The branch is apart. Nothing was stored.
        """
        validate_thread_id(items[0].scope.thread_id)
        if branch is not None and await self.relate(items[0].scope.thread_id, branch) == "apart":
            raise ThreadInUseError("Something else was stored in this thread meanwhile.")
        with self._call("import_checkpoints", items[0].scope):
            return sum([await self._history.add(_marked(item)) for item in items])


def _milliseconds(name: str, seconds: float) -> int:
    if not seconds > 0:
        raise ConfigurationError(f"{name} is {seconds!r}: it must be greater than 0 seconds.")
    return max(1, int(seconds * 1000))


def _marked(item: StoredCheckpoint | PendingWrites) -> StoredCheckpoint | PendingWrites:
    """Keep it in mind that another lower tier has not made a checkpoint, either."""
    return with_mark(item) if isinstance(item, StoredCheckpoint) and item.is_brought else item


def _text(token: bytes | str) -> str:
    return token.decode() if isinstance(token, bytes) else token
