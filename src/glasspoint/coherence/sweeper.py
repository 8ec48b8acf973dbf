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
import os
import random
import weakref
from collections import Counter
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Literal

from glasspoint.errors import L1Error
from glasspoint.l2.faults import FORESEEN
from glasspoint.logs import get_logger
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.events import ForeignWrites, Invalidated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.coherence.identity import IdentityKeeper
    from glasspoint.coherence.purging import Purger
    from glasspoint.l1.breaker import Breaker
    from glasspoint.l1.cache import Cache
    from glasspoint.l2.identity import JournalRow
    from glasspoint.l2.journal import Journal
    from glasspoint.model.scope import Scope
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

# How often what caches of the past have left in PostgreSQL is deleted.
_RETIRE_EVERY_SECONDS = 3600.0

# How many scopes in quarantine are tried at a time; if Redis refuses all of them, no more in this sweep.
_TRIES = 16


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
        purger: Purger | None = None,
        expire_fences: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take the cache and the journal.

        Args:
            cache: What is dropped from, and trusted or not.
            journal: What is swept.
            identity: Tells which entries belong to L2, and what is pending.
            breaker: Whether Redis is asked at all; it is probed here.
            telemetry: Who is told of each entry that is dropped.
            vitals: Where it is written down how many rows wait.
            every_seconds: How often, in the background.
            timeout_seconds: How long a read waits for it.
            purger: Deletes what older epochs have left; `None`: it stays until it expires.
            expire_fences: Deletes the fences of processes that have died.
        """
        self._cache = cache
        self._journal = journal
        self._identity = identity
        self._breaker = breaker
        self._telemetry = telemetry
        self._vitals = vitals
        self._every = every_seconds
        self._timeout = timeout_seconds
        self._purger = purger
        self._expire = expire_fences
        self._lock = asyncio.Lock()
        self._attempts = 0
        self._not_before = 0.0
        self._backlog = False
        self._count_at = 0.0
        self._retire_at = monotonic() + random.uniform(0, _RETIRE_EVERY_SECONDS)
        self._compact_from = _COMPACT_FROM
        self._compact_kept_from = _COMPACT_FROM
        self._background = BackgroundTask(
            "sweeper",
            telemetry,
            means="Meanwhile this process neither sweeps the journal nor probes a Redis that failed.",
        )
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        cache.regain_trust = self.regain_trust
        cache.wake = self.look_soon

    def start(self) -> None:
        """Begin to sweep in the background; again is harmless.

        It ends with `stop`, or when nobody holds this object any more: the task does not.
        """
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
        if not self._breaker.is_closed:
            pause = min(pause, self._breaker.seconds_to_probe)
        return max(pause, self._background.pause)

    def failed(self, error: Exception) -> float:
        """Report what nobody foresaw in a round; return how long to pause."""
        return self._background.failed(error)

    async def tidy(self) -> None:
        """Do what is done after a round, when there is time.

        Delete a part of what older epochs have left, and what caches have left that no process uses any more.
        """
        if monotonic() >= self._retire_at:
            self._retire_at = monotonic() + _RETIRE_EVERY_SECONDS * random.uniform(0.8, 1.0)
            await self._try_to_tidy(self._journal.retire)
            await self._try_to_tidy(self._expire_fences)
        if self._purger is not None and self._cache.trusted and self._breaker.is_closed:
            await self._try_to_tidy(self._purger.advance)

    # ---------------------------------------------------------------- helpers

    async def _expire_fences(self) -> None:
        if self._expire is not None:
            await self._expire()

    async def _try_to_tidy(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await work()
        except FORESEEN as exc:
            _log.debug("what the past has left is yet to be deleted (%s)", type(exc).__name__)

    async def _probe(self) -> None:
        reason = "cancelled"
        try:
            await self._cache.probe()
            reason = ""
        except Exception as exc:
            reason = type(exc.__cause__ or exc).__name__
            if not isinstance(exc, L1Error):
                raise
        finally:
            self._breaker.end_probe(succeeded=not reason, reason=reason)

    async def _try(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do it, whatever happens: both servers may be away, and the next round is not far."""
        self._attempts += 1
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                done = await work()
        except FORESEEN as exc:
            _log.debug("the journal was not swept (%s)", type(exc).__name__)
            done = False
        except Exception as exc:  # also for a read that waits: it is answered by PostgreSQL
            self._background.failed(exc)
            done = False
        else:
            self._background.worked()
        self._not_before = 0.0 if done else monotonic() + max(_PAUSE_SECONDS, self._background.pause)
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
        """Drop what is pending, as long as the identity stays what it is. Returns how far that went.

        Rows of scopes whose key Redis refuses stay: their scopes are in quarantine here, and in each process
        that sweeps. So they keep nobody from trusting what stands in Redis of all others.
        """
        after, swept = 0, 0
        refused: set[Scope] = set()
        kept: list[JournalRow] = []
        while True:
            status, batch, generation = await self._identity.look(limit=_BATCH, after=after)
            if status != "fits":
                return status
            if batch:
                kept += await self._drop(batch, generation, refused)
                after, swept = batch[-1].id, swept + len(batch)
            if len(batch) < _BATCH:
                self._vitals.journal_pending = 0
                self._backlog = False
                self._compact_from = _COMPACT_FROM
                if at_most is None:
                    await self._try_quarantined(kept, generation, refused)
                return "all"
            if at_most is not None and swept >= at_most:
                self._backlog = True
                return "some"

    async def _drop(self, batch: list[JournalRow], generation: str, refused: set[Scope]) -> list[JournalRow]:
        """Drop the entries of some rows, and delete the rows; add the scopes that Redis refuses.

        Returns:
            The rows that stay.
        """
        scopes = {entry.scope for entry in batch if entry.scope not in self._cache.quarantine}
        self._vitals.journal_pending = sum(entry.scope in scopes for entry in batch)
        refused |= await self._cache.forget(scopes)
        done = scopes - refused
        await self._forgotten(done, batch, generation)
        return [entry for entry in batch if entry.scope not in done]

    async def _try_quarantined(self, kept: list[JournalRow], generation: str, refused: set[Scope]) -> None:
        """Drop the entries of scopes in quarantine; those that this works for are trusted again.

        Args:
            kept: The rows that stayed.
            refused: Scopes that were tried in this sweep already.
        """
        quarantine = self._cache.quarantine
        waiting = [scope for scope in quarantine.longest_untried() if scope not in refused]
        for start in range(0, len(waiting), _TRIES):
            chunk = waiting[start : start + _TRIES]
            now = quarantine.now()
            done = set(chunk) - await self._cache.forget(chunk)
            await self._forgotten(done, kept, generation)
            for scope in done:
                quarantine.release(scope, now)
            if not done:
                break
        # Writes to a scope in quarantine go on, and each adds a row.
        if len(kept) >= self._compact_kept_from:
            await self._journal.compact()
            self._compact_kept_from = max(_COMPACT_FROM, 2 * len({entry.scope for entry in kept}))

    async def _forgotten(self, scopes: set[Scope], rows: list[JournalRow], generation: str) -> None:
        """Delete the rows of scopes whose DROP was confirmed."""
        if swept := [entry for entry in rows if entry.scope in scopes]:
            for _ in {entry.scope for entry in swept if entry.scope.is_cached}:
                self._telemetry.note(Invalidated("journal"))
            for table, rows_of_others in Counter(await self._journal.delete(swept, generation)).items():
                self._telemetry.note(ForeignWrites(table, rows_of_others))
            _log.debug("%d rows of the journal were swept", len(swept))

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
    pause, process_id = 0.0, os.getpid()
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await soon.wait()
        soon.clear()
        sweeper = sweeper_ref()
        if sweeper is None or os.getpid() != process_id:  # in a child, the connections are the parent's
            return
        try:
            pause = await sweeper.round()
            await sweeper.tidy()
        except Exception as exc:
            pause = sweeper.failed(exc)
            del sweeper
            await asyncio.sleep(pause)  # not to be cut short: what failed at once would fail again at once
            continue
        del sweeper
