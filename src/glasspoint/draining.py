"""Draining: what a lower tier holds goes into the one above, a thread at a time.

A thread is sealed (its callers wait), exported oldest first, imported above, and retired: from then on its
callers are sent after it. Importing is idempotent, so a drain that was cut off anywhere, by a crash too, is
simply done again: the seal of the dead expires, and what was imported already is found there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from glasspoint.errors import SaverClosedError
from glasspoint.telemetry.logs import get_logger

if TYPE_CHECKING:
    from typing import TypeAlias

    from glasspoint.codec import PendingWrites, StoredCheckpoint

    Item: TypeAlias = StoredCheckpoint | PendingWrites

__all__ = ["LowerTier", "UpperTier", "drain"]

_log = get_logger("glasspoint")

# How long a seal outlives a drainer that died, and how long a retired thread's late callers are still sent
# after it: longer than it takes every process to see that the tier above is back.
_LEASE_SECONDS = 10.0
_MARKER_SECONDS = 60.0

# Few, so that each thread's callers wait for little more than their own.
_THREADS_AT_ONCE = 2

_BYTES_AT_ONCE = 2**20
_ITEMS_AT_ONCE = 100


class UpperTier(Protocol):
    """What can be drained into."""

    async def import_checkpoints(self, items: Sequence[Item]) -> int:
        """Store checkpoints of one scope with their writes, or writes alone, as they are.

        Returns:
            How many checkpoints were new.
        """


class LowerTier(Protocol):
    """What can be drained."""

    def thread_ids(self) -> AsyncIterator[str]:
        """Yield every thread that has something here."""

    async def seal_thread(
        self, thread_id: str, *, lease_seconds: float, token: str | None = None
    ) -> str | None:
        """Keep everybody from a thread for so long; with the token again, for longer.

        Returns:
            The token, `None` if somebody else holds the seal.
        """

    def export_thread(self, thread_id: str) -> AsyncIterator[Item]:
        """Yield what a thread holds, oldest first in each namespace."""

    async def retire_thread(self, thread_id: str, token: str, *, marker_seconds: float) -> bool:
        """Forget a sealed thread, and send late callers away for so long. False: the seal was lost."""


async def drain(
    lower: LowerTier, upper: UpperTier, *, imported: Callable[[int], None], stuck: set[str]
) -> bool:
    """Move every thread of a lower tier into an upper one.

    Args:
        imported: Told how many checkpoints were new above.
        stuck: Threads to leave alone; those that fail for another reason than a lost server are added, and
            an error is logged: one thread must not keep all others from the tier above.

    Returns:
        Whether nothing was there: only then is the lower tier empty. Threads that come meanwhile, or that
        another process is draining, are for the next time.
    """
    found = False
    slots = asyncio.Semaphore(_THREADS_AT_ONCE)

    async def move(thread_id: str) -> None:
        try:
            await _move_thread(lower, upper, thread_id, imported)
        except (ConnectionError, TimeoutError, SaverClosedError):
            raise
        except Exception as exc:  # its text may quote a value
            stuck.add(thread_id)
            _log.error(
                "Thread %r cannot be drained (%s): it stays in the lower tier, where nobody reads it.",
                thread_id,
                type(exc).__name__,
            )
        finally:
            slots.release()

    try:
        async with asyncio.TaskGroup() as moving:
            async for thread_id in lower.thread_ids():
                if thread_id in stuck:
                    continue
                found = True
                await slots.acquire()
                moving.create_task(move(thread_id), name="glasspoint-drain-thread")
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # they fail together: a tier is gone
    return not found


async def _move_thread(
    lower: LowerTier, upper: UpperTier, thread_id: str, imported: Callable[[int], None]
) -> None:
    token = await lower.seal_thread(thread_id, lease_seconds=_LEASE_SECONDS)
    if token is None:
        return
    renew_at = monotonic() + _LEASE_SECONDS / 2
    async for items in _in_batches(lower.export_thread(thread_id)):
        imported(await upper.import_checkpoints(items))
        if monotonic() > renew_at:
            if await lower.seal_thread(thread_id, lease_seconds=_LEASE_SECONDS, token=token) is None:
                return
            renew_at = monotonic() + _LEASE_SECONDS / 2
    await lower.retire_thread(thread_id, token, marker_seconds=_MARKER_SECONDS)


async def _in_batches(items: AsyncIterator[Item]) -> AsyncIterator[list[Item]]:
    """Put items of one scope together, as long as they are small."""
    batch: list[Item] = []
    size = 0
    async for item in items:
        if batch and (item.scope != batch[0].scope or size > _BYTES_AT_ONCE or len(batch) == _ITEMS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += sum(len(write.value.data) for write in item.writes)
        size += sum(len(value.data) for _, value in getattr(item, "values", {}).values())
    if batch:
        yield batch
