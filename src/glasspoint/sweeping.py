"""When L1 may be believed: the journal is swept, every second and before every new beginning.

A write that L1 could not be told of has left a row in the journal. Whoever sweeps it drops the entries of its
scopes, and deletes the rows then:

    L2: what is pending?        committed rows, those included that another process has in hand
    L1: DROP, each              also disarms who is under way, and takes every reader's lease
    L2: delete these rows       by id, if the generation is still the same

so that a write whose row was seen is hidden by no older image any more. Every process does that about once a
second, which bounds how long others may read the old image; and always before it trusts L1 again: at first
contact, after a step that failed, after an outage, in a new epoch.

After an outage the breaker closes first, and the sweep begins then. The other way round, a write could slip
through: committed in L2 after the sweep has looked, and its COMMIT held back by the breaker.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from collections import Counter
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Literal

from glasspoint.errors import L1Error
from glasspoint.telemetry.events import ForeignWrites, Invalidated
from glasspoint.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.coherence.identity import IdentityKeeper
    from glasspoint.l1.breaker import Breaker
    from glasspoint.l1.cache import Cache
    from glasspoint.l2.journal import Journal
    from glasspoint.telemetry.events import Telemetry, Vitals

__all__ = ["Sweeper"]

_log = get_logger("glasspoint.l1")

# Rows that are swept at a time; a read that waits for its turn waits for no more than these.
_BATCH = 256

# Looks until the identity fits: it is made, adopted, confirmed; and once more if another process was faster.
_LOOKS = 4

# How long one look at the journal may take, in the background.
_PATIENCE_SECONDS = 10.0

# After a sweep that failed, reads go to L2 for so long without trying another.
_PAUSE_SECONDS = 1.0

# How often the rows are counted while Redis stays away, and from how many on they are compacted.
_COUNT_EVERY_SECONDS = 10.0
_COMPACT_FROM = 1000


class Sweeper:
    """Keeps one cache true to one journal."""

    def __init__(
        self,
        cache: Cache,
        journal: Journal,
        identity: IdentityKeeper,
        breaker: Breaker,
        telemetry: Telemetry,
        vitals: Vitals,
        *,
        every_seconds: float,
        timeout_seconds: float,
    ) -> None:
        """Args:
        cache: What is dropped from, and trusted or not.
        journal: What is swept.
        identity: Tells which entries belong to L2, and what is pending.
        breaker: Whether Redis is asked at all; it is probed here.
        telemetry: Who is told of each entry that is dropped.
        vitals: Where it is written down how many rows wait.
        every_seconds: How often, in the background.
        timeout_seconds: How long a read waits for it.
        """
        self._cache = cache
        self._journal = journal
        self._identity = identity
        self._breaker = breaker
        self._telemetry = telemetry
        self._vitals = vitals
        self._every = every_seconds
        self._timeout = timeout_seconds
        self._lock = asyncio.Lock()
        self._attempts = 0
        self._not_before = 0.0
        self._backlog = False
        self._count_at = 0.0
        self._compact_from = _COMPACT_FROM
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        cache.regain_trust = self.regain_trust
        cache.wake = self.look_soon

    def start(self) -> None:
        """Begin to sweep in the background; again is harmless. It ends with `stop`, or when nobody holds this
        object any more: the task does not."""
        if self._task is None:
            self._task = asyncio.create_task(
                _keep_sweeping(weakref.ref(self), self._soon),
                name="glasspoint-sweeper",
                context=Context(),  # not in the trace of whoever opens the saver
            )

    async def stop(self) -> None:
        """End that, and wait for it."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    def look_soon(self) -> None:
        """Do not wait for the next round: something has changed."""
        self._soon.set()

    async def regain_trust(self) -> bool:
        """Sweep, for a read that waits; others that come meanwhile wait with it.

        Returns:
            Whether L1 may be believed now. `False` at once if Redis is left alone, if it was tried in vain
            just now, or if there is more to sweep than a read should wait for.
        """
        attempts = self._attempts
        if not self._breaker.is_closed or self._backlog or monotonic() < self._not_before:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                async with self._lock:
                    if self._cache.trusted or self._attempts != attempts:
                        return self._cache.trusted
                    return await self._try(self._sweep_one_batch)
        self._not_before = monotonic() + _PAUSE_SECONDS
        return False

    async def settle(self) -> None:
        """Sweep now, if Redis answers: for those who are about to use L1 for the first time."""
        self._not_before = 0.0
        await self.regain_trust()

    async def round(self) -> float:
        """What is done in the background: probe, sweep or count, as it may be.

        Returns:
            After how many seconds again.
        """
        if self._breaker.begin_probe():
            await self._probe()
        if self._breaker.is_closed:
            async with self._lock:
                await self._try(self._sweep_all)
        if not self._breaker.is_closed or not self._cache.is_identified:
            await self._try(self._count)
        pause = self._every * random.uniform(0.8, 1.0)
        return pause if self._breaker.is_closed else min(pause, self._breaker.seconds_to_probe)

    # ---------------------------------------------------------------- helpers

    async def _probe(self) -> None:
        reason = "cancelled"
        try:
            await self._cache.probe()
            reason = ""
        except L1Error as exc:
            reason = type(exc.__cause__ or exc).__name__
        finally:
            self._breaker.end_probe(succeeded=not reason, reason=reason)

    async def _try(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do it, whatever happens: both servers may be away, and the next round is not far."""
        self._attempts += 1
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                done = await work()
        except Exception as exc:
            _log.debug("the journal was not swept (%s)", type(exc).__name__)
            done = False
        self._not_before = 0.0 if done else monotonic() + _PAUSE_SECONDS
        return done

    async def _sweep_all(self) -> bool:
        return await self._sweep_for_trust(None)

    async def _sweep_one_batch(self) -> bool:
        return await self._sweep_for_trust(_BATCH)

    async def _sweep_for_trust(self, at_most: int | None) -> bool:
        """Sweep, and trust L1 if nothing has gone wrong since this began."""
        for _ in range(_LOOKS):
            if not self._cache.trusted:
                await self._cache.connect()
            doubts = self._cache.doubts
            swept = await self._sweep(at_most)
            if swept == "all":
                return self._cache.believe(doubts)
            if swept == "some":
                self.look_soon()
            if swept != "changed":
                break
        return False

    async def _sweep(self, at_most: int | None) -> Literal["all", "some", "changed", "unusable"]:
        """Drop what is pending, as long as the identity stays what it is. Returns how far that went."""
        after, swept = 0, 0
        while True:
            status, batch, generation = await self._identity.look(limit=_BATCH, after=after)
            if status != "fits":
                return status
            self._vitals.journal_pending = len(batch)
            if batch:
                scopes = {row.scope for row in batch}
                await self._cache.forget(scopes)
                for _ in scopes:
                    self._telemetry.note(Invalidated("journal"))
                deleted = await self._journal.delete(batch, generation)
                for table, rows in Counter(deleted).items():
                    self._telemetry.note(ForeignWrites(table, rows))
                after, swept = batch[-1].id, swept + len(batch)
                _log.debug("%d entries were dropped for the journal", len(scopes))
            if len(batch) < _BATCH:
                self._vitals.journal_pending = 0
                self._backlog = False
                self._compact_from = _COMPACT_FROM
                return "all"
            if at_most is not None and swept >= at_most:
                self._backlog = True
                return "some"

    async def _count(self) -> bool:
        """Redis is not used: say how much is waiting, and see that it does not grow without end."""
        if not self._cache.is_absent and monotonic() >= self._count_at:
            self._count_at = monotonic() + _COUNT_EVERY_SECONDS
            pending = await self._journal.count()
            if pending >= self._compact_from:
                await self._journal.compact()
                pending = await self._journal.count()
                self._compact_from = max(_COMPACT_FROM, 2 * pending)
            self._vitals.journal_pending = pending
        return True


async def _keep_sweeping(sweeper_ref: weakref.ref[Sweeper], soon: asyncio.Event) -> None:
    """Do a round now and then, holding the sweeper only meanwhile."""
    pause = 0.0
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await soon.wait()
        soon.clear()
        sweeper = sweeper_ref()
        if sweeper is None:
            return
        pause = await sweeper.round()
        del sweeper
