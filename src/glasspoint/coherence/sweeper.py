"""The sweeper: sweeps the journal every second, and before L1 is trusted again.

If L1 does not receive a write, the write leaves a row in the journal. A sweep has three steps:

    L2: read the pending rows   all committed rows, even those that another process is sweeping
    L1: DROP their entries      this also disarms writers under way, and takes each reader's lease
    L2: delete these rows       by id, if the generation is still the same

After that, no older image hides a write whose row was read. Every process sweeps about once a second, which
limits how long other processes may read the old image. A process also sweeps before it trusts L1 again: at
the first contact, after a failed step, after an outage, in a new epoch.

In a Redis Cluster, each master is trusted on its own. The rows of a master that does not respond stay, and a
sweep makes only the other masters trusted.

After an outage, the sweep begins only when the breaker has closed. In the other order, a write could be
missed: L2 commits it after the sweep has read the rows, and the breaker then holds back its COMMIT.
"""

from __future__ import annotations

import asyncio
import os
import random
import weakref
from collections import Counter
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from glasspoint.errors import L1Error
from glasspoint.l2.faults import FORESEEN
from glasspoint.logs import get_logger
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.events import ForeignWrites, Invalidated
from glasspoint.telemetry.quiet import quiet_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from glasspoint.coherence.identity import IdentityKeeper
    from glasspoint.coherence.purging import Purger
    from glasspoint.l1.cache import Cache
    from glasspoint.l1.cluster import L1, Finder
    from glasspoint.l2.identity import JournalRow
    from glasspoint.l2.journal import Journal
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import SaverStatus, Telemetry

__all__ = ["Sweeper"]

_log = get_logger("glasspoint.l1")

# How many rows are swept at once. A read waits for at most one such batch.
_BATCH = 256

# How many looks there are until the identity fits: it is made, adopted, confirmed; and one more if another
# process was faster.
_LOOKS = 4

# The timeout of one sweep, or of one other task, in the background.
_TIMEOUT_SECONDS = 10.0

# How long reads go to L2 without another sweep, after a sweep that failed.
_PAUSE_SECONDS = 1.0

# How often the rows are counted while Redis stays away, and the number of rows from which they are compacted.
_COUNT_EVERY_SECONDS = 10.0
_COMPACT_FROM = 1000

# How long a sweeper does not clean up at first: the opening of a saver and its first calls would need a
# second connection.
_TIDY_AFTER_SECONDS = 1.0

# How often the data of unused caches are deleted from PostgreSQL.
_RETIRE_EVERY_SECONDS = 3600.0

# How many scopes in quarantine are tried at once. If Redis refuses all of them, this sweep tries no others.
_TRIES = 16


class Sweeper:
    """Sweeps one journal, for one cache."""

    def __init__(
        self,
        cache: L1,
        journal: Journal,
        identity: IdentityKeeper,
        telemetry: Telemetry,
        status: SaverStatus,
        *,
        every_seconds: float,
        timeout_seconds: float,
        purger: Purger | None = None,
        expire_fences: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take the cache and the journal.

        Args:
            cache: The cache whose entries are dropped, and which is then trusted. The probes of its breakers
                are made here.
            journal: The journal.
            identity: Tells which entries belong to L2, and which rows are pending.
            telemetry: Receives an event for each dropped entry.
            status: Shows how many rows are pending.
            every_seconds: The time between two sweeps in the background.
            timeout_seconds: How long a read waits for a sweep.
            purger: Deletes entries of older epochs; `None`: they stay until they expire.
            expire_fences: Deletes the fences of dead processes.
        """
        self._cache = cache
        self._journal = journal
        self._identity = identity
        self._breaker = cache.breaker
        self._telemetry = telemetry
        self._status = status
        self._every = every_seconds
        self._timeout = timeout_seconds
        self._purger = purger
        self._expire = expire_fences
        self._lock = asyncio.Lock()
        self._attempts = 0
        self._not_before = 0.0
        self._backlog = False
        self._count_at = 0.0
        self._tidy_from = monotonic() + _TIDY_AFTER_SECONDS
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
        self._trust = cache.trust
        self._trust.be_revalidated_by(self.revalidate, look_soon=self.look_soon)

    def start(self) -> None:
        """Begin to sweep in the background. A second call does nothing.

        The task ends with `stop`, or when this object is collected: the task has only a weak reference to it.
        """
        if self._task is None:
            self._task = asyncio.create_task(
                _keep_sweeping(weakref.ref(self), self._soon),
                name="glasspoint-sweeper",
                context=quiet_context(),
            )

    async def stop(self) -> None:
        """End the background task, and wait for its end."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    def look_soon(self) -> None:
        """Begin the next round at once, because something has changed."""
        self._soon.set()

    async def revalidate(self) -> bool:
        """Sweep for a read that waits. Other reads that arrive meanwhile wait for the same sweep.

        Returns:
            Whether L1 is trusted now. `False` at once in three cases: the breaker is not closed, a sweep has
            just failed, or there are more rows than a read should wait for.
        """
        attempts = self._attempts
        if not self._breaker.is_closed or self._backlog or monotonic() < self._not_before:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                async with self._lock:
                    if self._trust.is_trusted or self._attempts != attempts:
                        return self._trust.is_trusted
                    return await self._try(self._sweep_one_batch)
        self._not_before = monotonic() + _PAUSE_SECONDS
        return False

    async def settle(self) -> None:
        """Sweep now, if Redis responds. A saver calls this before it uses L1 for the first time."""
        self._not_before = 0.0
        await self.revalidate()

    async def round(self) -> float:
        """Do one round in the background: probe Redis, sweep, or count the rows, as the state requires.

        Returns:
            The seconds until the next round.
        """
        shards = self._cache.shards
        if len(shards) > 1:
            await self._round_of(shards)
        else:
            if shards[0].breaker.begin_probe():
                await self._probe(shards[0])
            if self._breaker.is_closed:
                async with self._lock:
                    await self._try(self._sweep_all)
        if not self._breaker.is_closed or not self._cache.is_identified:
            await self._try(self._count)
        pause = self._every * random.uniform(0.8, 1.0)
        if any(not shard.breaker.is_closed for shard in self._cache.shards):
            pause = min(pause, self._breaker.seconds_to_probe)
        return max(pause, self._background.pause)

    def failed(self, error: Exception) -> float:
        """Report an unforeseen error of a round. Return how long to pause, in seconds."""
        return self._background.failed(error)

    @property
    def is_time_to_tidy(self) -> bool:
        """Whether to clean up after this round: not while the saver is opened."""
        return monotonic() >= self._tidy_from

    async def tidy(self) -> None:
        """Clean up after a round.

        Delete a part of the entries of older epochs; and once an hour, the data of caches that are not used
        any more, and the fences of dead processes.
        """
        if monotonic() >= self._retire_at:
            self._retire_at = monotonic() + _RETIRE_EVERY_SECONDS * random.uniform(0.8, 1.0)
            await self._try_to_tidy(self._journal.retire)
            await self._try_to_tidy(self._expire_fences)
        if self._purger is not None and self._trust.is_trusted and self._breaker.is_closed:
            await self._try_to_tidy(self._purger.advance)

    # ---------------------------------------------------------------- helpers

    async def _expire_fences(self) -> None:
        if self._expire is not None:
            await self._expire()

    async def _try_to_tidy(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await work()
        except FORESEEN as exc:
            _log.debug("what the past has left is yet to be deleted (%s)", type(exc).__name__)

    async def _round_of(self, shards: Sequence[Cache | Finder]) -> None:
        """Probe the masters of a cluster that failed, and sweep for the others.

        Both at the same time, because a master that hangs must not delay the sweep. The sweep makes no master
        trusted whose breaker was not closed when the sweep began.
        """
        probes = [self._probe(shard) for shard in shards if shard.breaker.begin_probe()]
        if not self._breaker.is_closed:
            await asyncio.gather(*probes)
            return
        async with self._lock:
            await asyncio.gather(self._try(self._sweep_all), *probes)

    async def _probe(self, shard: Cache | Finder) -> None:
        reason = "cancelled"
        try:
            await shard.probe()
            reason = ""
        except Exception as exc:
            reason = type(exc.__cause__ or exc).__name__
            if not isinstance(exc, L1Error):
                raise
        finally:
            shard.breaker.end_probe(succeeded=not reason, reason=reason)

    async def _try(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Run a task, and return whether it succeeded. Errors are not raised: another round follows soon."""
        self._attempts += 1
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                done = await work()
        except FORESEEN as exc:
            _log.debug("the journal was not swept (%s)", type(exc).__name__)
            done = False
        except Exception as exc:  # not raised into a waiting read either: PostgreSQL answers it
            self._background.failed(exc)
            done = False
        else:
            self._background.worked()
        self._not_before = 0.0 if done else monotonic() + max(_PAUSE_SECONDS, self._background.pause)
        return done

    async def _sweep_all(self) -> bool:
        await self._cache.look_again()
        return await self._sweep_for_trust(None)

    async def _sweep_one_batch(self) -> bool:
        return await self._sweep_for_trust(_BATCH)

    async def _sweep_for_trust(self, at_most: int | None) -> bool:
        """Sweep, and trust L1 if nothing has gone wrong since the sweep began."""
        for _ in range(_LOOKS):
            if not self._trust.is_trusted:
                await self._cache.connect()
            suspicions: Any = self._trust.suspicions
            swept = await self._sweep(at_most)
            if swept == "all":
                return self._trust.trust(suspicions)
            if swept == "some":
                self.look_soon()
            if swept != "changed":
                break
        return False

    async def _sweep(self, at_most: int | None) -> Literal["all", "some", "changed", "unusable"]:
        """Drop the pending entries while the identity stays the same. Return how far the sweep went.

        If Redis refuses the key of a scope, its rows stay. The scope is then in quarantine, in each process
        that sweeps. So these rows do not prevent L1 from being trusted for all other scopes.
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
                self._status.journal_pending = sum(self._cache.is_away(row.scope) for row in kept)
                self._backlog = False
                self._compact_from = _COMPACT_FROM
                if at_most is None:
                    await self._try_quarantined(kept, generation, refused)
                return "all"
            if at_most is not None and swept >= at_most:
                self._backlog = True
                return "some"

    async def _drop(self, batch: list[JournalRow], generation: str, refused: set[Scope]) -> list[JournalRow]:
        """Drop the entries of some rows, and delete the rows.

        Args:
            refused: The scopes whose key Redis refuses. New ones are added here.

        Returns:
            The rows that stay.
        """
        scopes = {entry.scope for entry in batch if entry.scope not in self._cache.quarantine}
        self._status.journal_pending = sum(entry.scope in scopes for entry in batch)
        refused |= await self._cache.forget(scopes)
        done = scopes - refused
        await self._forgotten(done, batch, generation)
        return [entry for entry in batch if entry.scope not in done]

    async def _try_quarantined(self, kept: list[JournalRow], generation: str, refused: set[Scope]) -> None:
        """Drop the entries of scopes in quarantine, and release the scopes for which that succeeds.

        Args:
            kept: The rows that stayed.
            refused: The scopes that Redis has refused in this sweep already.
        """
        quarantine = self._cache.quarantine
        waiting = [
            scope
            for scope in quarantine.longest_untried()
            if scope not in refused and not self._cache.is_away(scope)
        ]
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
        """Delete the rows of scopes whose DROP has succeeded."""
        if swept := [entry for entry in rows if entry.scope in scopes]:
            for _ in {entry.scope for entry in swept if entry.scope.is_cached}:
                self._telemetry.emit(Invalidated("journal"))
            for table, rows_of_others in Counter(await self._journal.delete(swept, generation)).items():
                self._telemetry.emit(ForeignWrites(table, rows_of_others))
            _log.debug("%d rows of the journal were swept", len(swept))

    async def _count(self) -> bool:
        """Count the rows while Redis is not used, and compact them so that they do not grow without limit."""
        if not self._cache.is_absent and monotonic() >= self._count_at:
            self._count_at = monotonic() + _COUNT_EVERY_SECONDS
            pending = await self._journal.count()
            if pending >= self._compact_from:
                await self._journal.compact()
                pending = await self._journal.count()
                self._compact_from = max(_COMPACT_FROM, 2 * pending)
            self._status.journal_pending = pending
        return True


async def _keep_sweeping(sweeper_ref: weakref.ref[Sweeper], soon: asyncio.Event) -> None:
    """Run rounds until the sweeper is collected; between rounds, hold no reference to it."""
    pause, process_id = 0.0, os.getpid()
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await soon.wait()
        soon.clear()
        sweeper = sweeper_ref()
        if sweeper is None or os.getpid() != process_id:  # in a child, the connections belong to the parent
            return
        try:
            pause = await sweeper.round()
            if sweeper.is_time_to_tidy:
                await sweeper.tidy()
        except Exception as exc:
            pause = sweeper.failed(exc)
            del sweeper
            await asyncio.sleep(pause)  # `soon` must not end this pause: the round would fail again at once
            continue
        del sweeper
