"""The write path of `CachedPostgresSaver`: one write to both levels, as a part of a burst.

Open this file when a write fails, is slow, or leaves L1 behind. `docs/protocol.md` says why a read never
returns an older state than an acknowledged one.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from glasspoint.errors import L1UnavailableError, L2DeadlineError
from glasspoint.l2.deadline import answered_within, explained, within
from glasspoint.l2.faults import certainly_unchanged, classify, may_still_run
from glasspoint.l2.writing import Announced, FenceResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.l1.cache import Intent
    from glasspoint.l1.entry import Changes
    from glasspoint.model.codec import EncodedPut
    from glasspoint.model.generics import ResultT
    from glasspoint.model.scope import Scope
    from glasspoint.savers.bursts import Burst
    from glasspoint.savers.parts import Parts
    from glasspoint.telemetry.events import Operation, WriteResult

__all__ = ["WriteThrough", "begin_write"]


async def begin_write(
    parts: Parts, operation: Operation, scope: Scope, *, opens: bool = False
) -> WriteThrough:
    """Begin a write to both levels, as soon as it is known which keys L1 uses.

    Args:
        parts, operation, scope, opens: See `WriteThrough`.
    """
    if scope.is_cached:
        await parts.identify_l1()
    return WriteThrough(parts, operation, scope, opens=opens)


class WriteThrough:
    """One write to both levels, as a part of a burst.

    The constructor sends BEGIN of a new burst. So BEGIN and the wait for a connection to PostgreSQL overlap.
    BEGIN is awaited before the first statement.

    The write to L2 may take several attempts. An attempt is in doubt if nobody knows whether it changed L2.
    Then the result of the next attempt does not say how this write is ordered among others, so L1 cannot
    follow, and forgets the entry.

    A scope that is not cached has no entry: neither Redis nor the journal receives anything.
    """

    def __init__(self, parts: Parts, operation: Operation, scope: Scope, *, opens: bool = False) -> None:
        """Begin the write: see `begin_write`.

        Args:
            parts: The parts of the saver.
            operation: The call, which the write completes with what it has measured.
            scope: The scope that the write changes.
            opens: Whether the statement sets the fence of its burst, even if the fence stands.
        """
        self._l1 = parts.l1
        self._lifetime = parts.lifetime
        self._journal = parts.l2.journal
        self._retries = parts.retries
        self._deadline = parts.write_deadline_seconds
        self._must_tell_l1 = parts.must_tell_l1
        self._identity = parts.identity
        self._bursts = parts.bursts
        self._scope = scope
        self._operation = operation
        self._burst = self._bursts.join(scope) if scope.is_cached else None
        self._always_opens = opens
        self._opens = opens
        self._sent_on: object = None
        self._sent_at: float | None = None
        self._in_doubt = False
        self._still_running = False
        self._last_fault: str | None = None
        self._is_journalled = False

    @property
    def is_among_others(self) -> bool:
        """Whether another write of the burst is under way."""
        return self._burst is not None and self._burst.writers > 1

    def judged(self, put: EncodedPut) -> EncodedPut:
        """Return the put as it is sent now.

        After an attempt in doubt, a newer checkpoint may be the put's own, so forks cannot be found.
        """
        return replace(put, follows_newest=False, follows_own=False) if self._in_doubt else put

    async def ready(self, connection: object) -> Announced:
        """Wait until Redis sends readers to L2. After this, PostgreSQL may change.

        Returns:
            What else the statement has to do. If Redis has confirmed BEGIN: set the fence of the burst, or
            look for it. If not: record the scope in the journal.

        Raises:
            L1UnavailableError: Redis has not confirmed BEGIN, and `on_l1_outage` is `"raise"`.
        """
        burst = self._burst
        if burst is None:
            self._sending(connection)
            return Announced()
        intent = burst.begun.result() if burst.begun.done() else await asyncio.shield(burst.begun)
        is_heeded = self._l1.is_heeded(intent)
        if self._must_tell_l1 and not is_heeded:
            raise L1UnavailableError(
                'Redis does not do its part, and on_l1_outage is "raise": nothing was written. Repeat the '
                "call when Redis is back."
            )
        self._sending(connection)
        self._is_journalled = False
        if is_heeded:
            self._opens = self._always_opens or not burst.is_covered
            burst.is_fenced = burst.is_fenced or self._opens
            return Announced(burst=burst.id, opens=self._opens)
        burst.is_lost = True
        if self._l1.is_absent:
            # The cache's tables may be made while this write is under way. So remember it: it goes into the
            # journal before the tables are used.
            self._l1.wrote_unannounced([self._scope])
            return Announced()
        self._is_journalled = True
        return Announced(is_journalled=True)

    async def to_l2(self, statement: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run the statement within the deadline, and repeat it if that may help."""
        try:
            async with within(self._deadline):
                if self._burst is not None:
                    await self._burst.may_begin()
                result = await self._retries.run(self._operation.name, statement, failed=self._attempt_failed)
        except BaseException as exc:
            self._failed(exc)
            if self._burst is not None:
                await self._lifetime.settle(self._abandon(self._burst))
            if isinstance(exc, TimeoutError) and not isinstance(exc, L2DeadlineError):
                outcome = "whether it has it is not known" if self._in_doubt else "it does not have it"
                before = f" (before, {self._last_fault})" if self._last_fault else ""
                text = (
                    f"PostgreSQL did not finish a write within {self._deadline} s{before}; {outcome}. The "
                    "write may be repeated: it stores the same again."
                )
                raise L2DeadlineError(explained(exc, text)) from exc
            raise
        assert self._sent_at is not None
        self._operation.l2_seconds = perf_counter() - self._sent_at
        return result

    async def to_l1(self, fence: FenceResult, change: Callable[[Changes], None]) -> None:
        """Add the write to its burst.

        L1 receives something only after a first write, or if something went wrong. That runs in a task of its
        own, so that a cancelled caller does not leave half a step behind.

        Args:
            fence: What the statement has found out about fences.
            change: Adds the changes that L1 has to follow.

        Raises:
            L1UnavailableError: Redis did not do its part, and `on_l1_outage` is `"raise"`.
            L2UnavailableError, L2DeadlineError: Redis did not do its part, and the journal was not written.
        """
        burst = self._burst
        if burst is None:
            self._operation.l1_write = "bypassed"
            return
        intent = burst.begun.result()
        if fence.identity is not None and self._l1.is_heeded(intent):
            self._identity.is_of(fence.identity)  # if it is another identity, the intent is not heeded now
        if self._opens or self._in_doubt or not (fence.stands and self._l1.is_heeded(intent)):
            await self._lifetime.settle(self._tell(burst, fence, change))
            return
        self._l1.wrote(intent)
        _add(burst, fence, change)
        self._operation.l1_write = "contested" if burst.is_contested else "covered"
        self._bursts.leave(burst)

    async def _tell(self, burst: Burst, fence: FenceResult, change: Callable[[Changes], None]) -> None:
        intent, started = burst.begun.result(), perf_counter()
        asks_l1 = not self._l1.is_left_alone(self._scope)
        try:
            if self._in_doubt or self._is_journalled:
                # If Redis responds again, no reader has to wait until the sweep finds the journal's row.
                result = await self._forget(burst, intent)
            elif burst.is_lost and not intent.name:
                result = "skipped"
            else:
                result = await self._confirm(burst, intent, fence, change)
            if asks_l1 and result != "skipped":
                self._operation.l1_seconds = perf_counter() - started
            self._operation.l1_write = "skipped" if result == "error" and self._l1.is_absent else result
            if self._operation.l1_write == "error":
                burst.is_lost = True
                await self._fall_behind()
        finally:
            self._bursts.leave(burst)

    async def _confirm(
        self, burst: Burst, intent: Intent, fence: FenceResult, change: Callable[[Changes], None]
    ) -> WriteResult:
        """Check that no reader can install the state from before this write."""
        confirmed = await self._l1.confirm(intent)
        if confirmed is None:
            burst.must_drop = True
            return "error"
        # Without the fence, the next write is a first one again.
        burst.is_covered = self._opens
        burst.is_contested = burst.is_contested or not confirmed
        _add(burst, fence, change)
        return "contested" if burst.is_contested else "announced"

    async def _fall_behind(self) -> None:
        """Record the write in the journal, because L2 has it and L1 may not know.

        This must be done before the caller gets a result. A sweep, in any process, finds the row and drops
        the entry.
        """
        if not self._is_journalled:
            async with answered_within(
                self._deadline,
                f"PostgreSQL has the write, but Redis could not be told of it, nor the journal within "
                f"{self._deadline} s. The write may be repeated: it stores the same again.",
            ):
                await self._retries.run(self._operation.name, lambda: self._journal.record_now([self._scope]))
        self._l1.suspect(self._scope)
        self._operation.l1_write = "journalled"
        if self._must_tell_l1:
            raise L1UnavailableError(
                'PostgreSQL has the write, but Redis did not do its part, and on_l1_outage is "raise". The '
                "write may be repeated: it stores the same again."
            )

    def _attempt_failed(self, error: Exception) -> None:
        self._last_fault = classify(error).says
        self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Remember how the statement that is under way, if any, has ended."""
        if self._sent_on is not None and not certainly_unchanged(error):
            self._in_doubt = True
            self._still_running = self._still_running or may_still_run(self._sent_on)
        self._sent_on = None

    def _sending(self, connection: object) -> None:
        self._sent_on = connection
        self._sent_at = self._sent_at or perf_counter()

    async def _abandon(self, burst: Burst) -> None:
        try:
            intent = await burst.begun
            if self._in_doubt:
                await self._forget(burst, intent)
        finally:
            self._bursts.leave(burst)

    async def _forget(self, burst: Burst, intent: Intent) -> WriteResult:
        """Make L1 forget the entry, because L1 cannot follow."""
        burst.is_lost = True
        burst.is_in_doubt = burst.is_in_doubt or self._in_doubt
        return "discarded" if await self._l1.drop(intent, still_running=self._still_running) else "error"


def _add(burst: Burst, fence: FenceResult, change: Callable[[Changes], None]) -> None:
    burst.is_contested = burst.is_contested or fence.is_contested
    change(burst.changes)
