"""Bursts: the writes of one saver to one scope that follow each other closely.

    first write      BEGIN (L1) -> statement and fence (L2) -> CONFIRM (L1) -> result
    further writes   statement (L2) -> result                                        no trip to Redis
    0.1 s later      COMMIT (L1): the image as it is after the burst; then the fence is removed

BEGIN leaves an intent in the entry, which sends readers to L2 during the burst. The fence tells these readers
not to warm L1 up. So no stale image is stored, even if Redis evicts the intent. `docs/protocol.md` says why
each step is needed.

The bursts of one scope do not overlap: BEGIN of the next one is sent after the result of COMMIT of the last.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from glasspoint.l1.entry import Changes
from glasspoint.telemetry.events import BurstEnded

if TYPE_CHECKING:
    from glasspoint.l1.cache import Intent, Reading
    from glasspoint.l1.cluster import L1
    from glasspoint.l2.fences import Fences
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import BurstEnd, Telemetry

__all__ = ["BURST_SECONDS", "Burst", "Bursts"]

QUIET_SECONDS: Final = 0.1
"""A burst ends this long after its last write."""

BURST_SECONDS: Final = 5.0
"""The age at which a burst takes no more writes. Its intent and its fence outlive its last statement."""

_BYTES_AT_MOST = 1024 * 1024


@dataclass(eq=False)
class Burst:
    """The writes of one burst, and what they change.

    Attributes:
        id: The name of the burst in its fence.
        begun: The task of BEGIN, which returns the intent.
        after: The burst before this one, if it is not closed yet.
        writers: Number of writes under way.
        writes: Number of writes so far.
        is_covered: Whether a statement with the fence was committed, and the intent still stood after that.
        is_fenced: Whether a statement with the fence was sent.
        is_contested: Whether another writer was found: then nothing may be installed.
        is_lost: Whether Redis does not know of a write, or a write is in doubt: then nothing is installed.
        is_in_doubt: Whether the outcome of a statement is unknown: it may set the fence later.
        must_drop: Whether the intent may stand in an entry that was not forgotten.
        is_closing: Whether it takes no more writes.
        is_committing: Whether COMMIT was started.
        closed: Done when COMMIT has a result.
        then_read: The checkpoint id that a reader of this saver waits for; `""`: the newest.
        reading: The result for this reader.
        context: The context of the last write, so that COMMIT is in the same trace.
    """

    scope: Scope
    id: str
    begun: asyncio.Task[Intent]
    started_at: float
    after: Burst | None = None
    changes: Changes = field(default_factory=Changes)
    last_at: float = 0.0
    writers: int = 0
    writes: int = 0
    is_covered: bool = False
    is_fenced: bool = False
    is_contested: bool = False
    is_lost: bool = False
    is_in_doubt: bool = False
    must_drop: bool = False
    is_closing: bool = False
    is_committing: bool = False
    then_read: str | None = None
    reading: Reading | None = None
    context: Context = field(default_factory=copy_context)
    closed: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def may_begin(self) -> None:
        """Wait until the burst before this one is closed.

        A write awaits this before it takes a connection. Otherwise two writes could wait for each other: a
        write of the burst before may need the same connection, or go into the same statement, and BEGIN of
        this burst is sent only after that write.
        """
        if self.after is not None:
            await asyncio.shield(self.after.closed)
            self.after = None

    @property
    def takes_writes(self) -> bool:
        """Whether another write may join the burst."""
        return not (
            self.is_closing
            or self.is_lost
            or self.changes.size > _BYTES_AT_MOST
            or monotonic() - self.started_at > BURST_SECONDS
        )


class Bursts:
    """The bursts of one saver: at most one of each scope is open."""

    def __init__(
        self,
        l1: L1,
        fences: Fences,
        telemetry: Telemetry,
        *,
        in_background: Callable[[Coroutine[Any, Any, None], Context], object],
    ) -> None:
        """Begin without any burst.

        Args:
            l1: Receives BEGIN and COMMIT of each burst.
            fences: Removes the fences of bursts that have ended.
            telemetry: Receives an event at the end of each burst.
            in_background: Runs work in a context. No caller waits for it; closing the saver does.
        """
        self._l1 = l1
        self._fences = fences
        self._telemetry = telemetry
        self._in_background = in_background
        self._open: dict[Scope, Burst] = {}

    def join(self, scope: Scope) -> Burst:
        """Add a write to the burst of its scope, or to a new one. Call `leave` when the write is done."""
        burst = self._open.get(scope)
        if burst is None or not burst.takes_writes:
            last, burst = burst, self._begin(scope, after=burst)
            if last is not None:
                self._close(last)
        burst.writers += 1
        burst.writes += 1
        return burst

    def leave(self, burst: Burst) -> None:
        """Take a write out of its burst: it is done, or has failed."""
        burst.writers -= 1
        burst.last_at = monotonic()
        burst.context = copy_context()
        if not burst.writers:
            if burst.takes_writes:
                self._look_later(burst)
            else:
                self._close(burst)

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Reading | None:
        """End the burst of a scope for a reader of this saver, and read in the same trip to Redis.

        Returns:
            The result of the read. `None`: the reader has to ask Redis itself, because no burst is open, its
            writes are under way, it was ending already, or COMMIT failed.
        """
        burst = self._open.get(scope)
        if burst is None or burst.writers:
            return None
        if not burst.is_closing:
            burst.then_read = checkpoint_id or ""
            burst.context = copy_context()
            self._close(burst)
            await asyncio.shield(burst.closed)
            return burst.reading
        await asyncio.shield(burst.closed)
        return None

    async def end(self, scopes: Collection[Scope]) -> None:
        """End the bursts of scopes as soon as their writes are done, and wait until they are committed."""
        ending = [self._open[scope] for scope in scopes if scope in self._open]
        for burst in ending:
            self._close(burst)
        for burst in ending:
            await asyncio.shield(burst.closed)

    async def end_threads(self, thread_ids: Collection[str]) -> None:
        """End the bursts of all scopes of some threads: see `end`."""
        threads = frozenset(thread_ids)
        await self.end([scope for scope in self._open if scope.thread_id in threads])

    async def end_all(self) -> None:
        """End all bursts: see `end`."""
        await self.end(list(self._open))

    async def close(self) -> None:
        """End all bursts, and remove their fences. After this, nothing is written any more."""
        await self.end_all()
        await self._fences.close()

    # ---------------------------------------------------------------- helpers

    def _begin(self, scope: Scope, *, after: Burst | None) -> Burst:
        async def begin() -> Intent:
            if after is not None:
                await asyncio.shield(after.closed)
            return await self._l1.begin(scope)

        burst = Burst(scope, _new_id(), asyncio.create_task(begin()), monotonic(), after)
        self._open[scope] = burst
        return burst

    def _look_later(self, burst: Burst) -> None:
        asyncio.get_running_loop().call_later(QUIET_SECONDS, self._look, burst)

    def _look(self, burst: Burst) -> None:
        """Close a burst that has had no write for `QUIET_SECONDS`. Each write that ends schedules this."""
        if not burst.writers and not burst.is_closing and monotonic() - burst.last_at >= QUIET_SECONDS * 0.9:
            self._close(burst)

    def _close(self, burst: Burst) -> None:
        """Take no more writes, and commit as soon as none is under way."""
        burst.is_closing = True
        if not burst.writers and not burst.is_committing:
            burst.is_committing = True
            self._in_background(self._commit(burst), burst.context)

    async def _commit(self, burst: Burst) -> None:
        end: BurstEnd = "lost"
        try:
            intent = await burst.begun
            if self._l1.is_heeded(intent) and not burst.is_lost:
                end = await self._settle(burst, intent)
            elif burst.must_drop:
                await self._l1.drop(intent)
        finally:
            if self._open.get(burst.scope) is burst:
                del self._open[burst.scope]
            if burst.is_fenced and not burst.is_in_doubt:
                self._fences.ended(burst.scope, burst.id)
            burst.closed.set_result(None)
            is_whole = end == "applied" and burst.changes.is_whole
            self._telemetry.emit(
                BurstEnded(end, burst.writes, burst.changes.image_bytes if is_whole else None)
            )

    async def _settle(self, burst: Burst, intent: Intent) -> BurstEnd:
        if burst.is_contested:
            return "contested" if await self._l1.drop(intent) else "error"
        result, burst.reading = await self._l1.commit(intent, burst.changes, then_read=burst.then_read)
        if result == "error":
            # COMMIT may have been done or not. Until the entry is dropped, the intent keeps readers away.
            await self._l1.drop(intent)
        return result


def _new_id() -> str:
    return secrets.token_hex(8)
