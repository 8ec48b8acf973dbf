"""Bursts: what one saver writes to one scope, with less than a moment between two writes.

    first write      BEGIN (L1) -> statement and fence (L2) -> CONFIRM (L1) -> answer
    further writes   statement (L2) -> answer                                        no trip to Redis
    a moment later   COMMIT (L1): the image as it is after the burst; then the fence is removed

The intent that BEGIN leaves stays for the burst, and sends readers to L2. The fence tells who reads the scope
from L2 meanwhile not to warm up; so no stale image comes about, even if the intent is evicted. Why each step
is needed: see `docs/protocol.md`.

Bursts of one scope follow one another: BEGIN of the next is not sent before COMMIT of the last is answered.
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
    from glasspoint.l1.cache import Cache, Intent, Reading
    from glasspoint.l2.fences import Fences
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import BurstEnd, Telemetry

__all__ = ["BURST_SECONDS", "Burst", "Bursts"]

QUIET_SECONDS: Final = 0.1
"""A burst ends when no write has come for so long."""

BURST_SECONDS: Final = 5.0
"""A burst takes no more writes when it is so old. Its intent and its fence outlive that by a statement."""

_BYTES_AT_MOST = 1024 * 1024


@dataclass(eq=False)
class Burst:
    """The writes of one burst, and what they change.

    Attributes:
        id: What its fence is called.
        begun: BEGIN, under way or answered.
        after: The burst before it, if that was not closed yet.
        writers: How many writes are under way.
        is_covered: A statement with the fence was committed, and the intent was there after that.
        is_fenced: A statement with the fence was sent.
        is_contested: Another writer has been there: nothing may be installed.
        is_lost: Redis was not told, or something was left in doubt: nothing is installed.
        is_in_doubt: Nobody knows what became of one of its statements, which may set the fence yet.
        must_drop: Its intent may stand in an entry that was not forgotten.
        is_closing: It takes no more writes.
        is_committing: COMMIT is under way, or was.
        closed: Done when COMMIT was answered.
        then_read: The checkpoint id that the saver's own reader waits for, `""` for the newest.
        reading: What it was answered.
        context: Of its last write, so that COMMIT stands in the same trace.
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
        """Return when the burst before it is closed.

        To be awaited before a write asks for a connection. A write of the burst before may need that
        connection, or go in the same statement, and BEGIN is not sent before that write was answered.
        """
        if self.after is not None:
            await asyncio.shield(self.after.closed)
            self.after = None

    @property
    def takes_writes(self) -> bool:
        """Whether another write may join it."""
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
        l1: Cache,
        fences: Fences,
        telemetry: Telemetry,
        *,
        in_background: Callable[[Coroutine[Any, Any, None], Context], object],
    ) -> None:
        """Begin without any burst.

        Args:
            l1: Where they are announced and committed.
            fences: Where those go whose burst has ended.
            telemetry: Who is told of each end.
            in_background: Runs what no caller waits for, in a context; closing the saver waits.
        """
        self._l1 = l1
        self._fences = fences
        self._telemetry = telemetry
        self._in_background = in_background
        self._open: dict[Scope, Burst] = {}

    def join(self, scope: Scope) -> Burst:
        """Return the burst that a write to a scope belongs to; it is to `leave` when it was answered."""
        burst = self._open.get(scope)
        if burst is None or not burst.takes_writes:
            last, burst = burst, self._begin(scope, after=burst)
            if last is not None:
                self._close(last)
        burst.writers += 1
        burst.writes += 1
        return burst

    def leave(self, burst: Burst) -> None:
        """A write of a burst was answered, or has failed."""
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
            What Redis has answered; `None`: it is to be asked, because there is no burst, writes of it are
            under way, or it could not be committed.
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
        """End the bursts of scopes now, once their writes are answered; return when Redis has answered."""
        ending = [self._open[scope] for scope in scopes if scope in self._open]
        for burst in ending:
            self._close(burst)
        for burst in ending:
            await asyncio.shield(burst.closed)

    async def end_threads(self, thread_ids: Collection[str]) -> None:
        """As `end`, for all scopes of threads."""
        threads = frozenset(thread_ids)
        await self.end([scope for scope in self._open if scope.thread_id in threads])

    async def end_all(self) -> None:
        """As `end`, for all scopes."""
        await self.end(list(self._open))

    async def close(self) -> None:
        """End all of them, and remove their fences: nothing is written any more."""
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
        """Close a burst in which nothing has happened for a moment; each answer has looked later."""
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
            self._telemetry.note(BurstEnded(end, burst.writes))

    async def _settle(self, burst: Burst, intent: Intent) -> BurstEnd:
        if burst.is_contested:
            return "contested" if await self._l1.drop(intent) else "error"
        result, burst.reading = await self._l1.commit(intent, burst.changes, then_read=burst.then_read)
        if result == "error":
            # It may have been done, or not: until somebody drops the entry, the intent sends readers away.
            await self._l1.drop(intent)
        return result


def _new_id() -> str:
    return secrets.token_hex(8)
