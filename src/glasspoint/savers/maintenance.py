"""Deletes, copies and prunes threads, and keeps L1 true to L2.

    L2: begin; delete, copy         rows are locked, readers do not notice
    L1 BEGIN, every cached scope    readers are sent to L2 from here on
    L2: commit
    L1 DROP, every cached scope

BEGIN comes after the statements of L2, because only the rows say which scopes are changed. It comes before
the commit, and that is early enough: until then, L1 and L2 return the same. BEGIN takes the lease of a reader
that is about to warm up, and DROP disarms a write that is under way, so both use L2.

Nothing slow may happen between BEGIN and the commit: the intents must not expire before the rows are removed.

What happens after a failure:

- A crash between BEGIN and DROP: the intents stay until their deadline. Until then, readers use L2; then the
  entry is discarded. (If L2 rolled back, that was not necessary, and does no harm.)
- The transaction is certainly rolled back: ABORT takes the intents back, and the images stay.
- COMMIT got no response, so the outcome is unknown: readers use L2 until the deadline.
- Redis did not confirm BEGIN: the scope goes into the journal, in the same transaction.
- Redis did not confirm DROP: the scope goes into the journal before the call returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from glasspoint.errors import (
    ConfigurationError,
    InvalidConfigError,
    L1UnavailableError,
    ThreadInUseError,
)
from glasspoint.l1.cache import Intent
from glasspoint.l2.faults import certainly_unchanged
from glasspoint.l2.pruning import Cutoff, Pruner, Removed, in_use
from glasspoint.model.scope import FIRST_TIME, Scope, first_id_of, list_of_ids, run_ids_of, validate_thread_id
from glasspoint.telemetry.background import for_each
from glasspoint.telemetry.events import Invalidated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator
    from uuid import UUID

    from glasspoint.l2.pruning import Barrier, Plan
    from glasspoint.model.generics import ResultT
    from glasspoint.savers.parts import Parts
    from glasspoint.telemetry.events import InvalidationSource

__all__ = ["Maintenance", "PruneReport"]

_STRATEGIES = ("keep_latest", "delete")

# How many entries are handled at a time. A thread has one for each namespace that is cached.
_SCOPES_AT_ONCE = 16

# The most attempts at a transaction that loses against another one, or loses its connection.
_ATTEMPTS = 5

_THREADS_AT_ONCE = 200
_THREADS_A_PAGE = 1000

# A write may be stored before its checkpoint. So only an older write without a checkpoint is an orphan.
_NO_ORPHAN_BEFORE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a run of `aprune_older_than` has removed; with `dry_run`, what it would remove.

    Attributes:
        cutoff: The time before which a checkpoint is old (UTC), fixed when the run began.
        dry_run: Whether the rows were only counted.
        threads: Number of threads that lost anything.
        checkpoints, writes, blobs: Number of rows, in each of the three tables.
        bytes: Size of these rows' checkpoints, metadata and values, compressed as PostgreSQL stores them.
            Headers of rows and indexes are not included.
        batches: Number of transactions.
        skipped_threads: Number of threads left alone: another run was working on the thread, or all of it was
            old and something was being written to it; or their master of a Redis Cluster was away.
    """

    cutoff: datetime
    dry_run: bool = False
    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    blobs: int = 0
    bytes: int = 0
    batches: int = 0
    skipped_threads: int = 0


class Maintenance:
    """Deletes, copies and prunes threads for a `CachedPostgresSaver`."""

    def __init__(self, parts: Parts) -> None:
        """Take the parts of the saver."""
        self._parts = parts
        self._lifetime = parts.lifetime
        self._telemetry = parts.telemetry
        self._bursts = parts.bursts
        self._pruner = Pruner(parts.l2.connections, parts.l2.journal)

    async def delete_thread(self, thread_id: str) -> None:
        """Delete a thread: see `CachedPostgresSaver.adelete_thread`."""
        validate_thread_id(thread_id)

        async def delete(barrier: Barrier) -> None:
            async def block_readers(namespaces: list[str]) -> Collection[Scope]:
                await barrier.block([Scope(thread_id, namespace) for namespace in namespaces])
                barrier.committing()
                return barrier.untold()

            await self._parts.l2.delete_thread(thread_id, block_readers)

        with (
            self._lifetime.call(),
            self._telemetry.operation("delete_thread", Scope(thread_id, "")),
        ):
            await self._bursts.end_threads([thread_id])
            await self._change("delete_thread", "delete", delete)

    async def delete_for_runs(self, run_ids: Sequence[str | UUID]) -> None:
        """Delete the checkpoints of runs: see `CachedPostgresSaver.adelete_for_runs`."""
        runs = run_ids_of(list_of_ids("run_ids", run_ids))
        with self._lifetime.call(), self._telemetry.operation("delete_for_runs", None):
            if runs:
                await self._change(
                    "delete_for_runs",
                    "delete",
                    lambda barrier: self._pruner.delete_for_runs(runs, barrier),
                )

    async def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread: see `CachedPostgresSaver.acopy_thread`."""
        source, target = validate_thread_id(source_thread_id), validate_thread_id(target_thread_id)
        if source == target:
            raise InvalidConfigError(
                f"A thread cannot be copied to itself ({source!r}): name another target."
            )
        with self._lifetime.call(), self._telemetry.operation("copy_thread", Scope(target, "")):
            await self._bursts.end_threads([target])
            await self._change(
                "copy_thread", "copy", lambda barrier: self._pruner.copy_thread(source, target, barrier)
            )

    async def prune(self, thread_ids: Sequence[str], *, strategy: str) -> None:
        """Prune threads: see `CachedPostgresSaver.aprune`."""
        if strategy not in _STRATEGIES:
            names = " and ".join(f'"{name}"' for name in _STRATEGIES)
            raise ConfigurationError(f"Unknown strategy {strategy!r}: there are {names}.")
        threads = [validate_thread_id(each) for each in list_of_ids("thread_ids", thread_ids)]
        with self._lifetime.call(), self._telemetry.operation("prune", None):
            await self._bursts.end_threads(threads)
            if threads and strategy == "delete":
                await self._change(
                    "prune", "delete", lambda barrier: self._pruner.delete_threads(threads, barrier)
                )
            elif threads:
                await self._change(
                    "prune", "prune", lambda barrier: self._pruner.keep_latest(threads, barrier)
                )

    async def prune_older_than(
        self,
        age: timedelta,
        *,
        keep_latest: bool = True,
        batch_size: int = 1000,
        dry_run: bool = False,
        on_batch: Callable[[PruneReport], object] | None = None,
    ) -> PruneReport:
        """Remove old checkpoints: see `CachedPostgresSaver.aprune_older_than`."""
        _check_age(age)
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size!r}: it must be at least 1.")
        now = datetime.now(UTC)
        try:
            cutoff = now - age
        except OverflowError:
            cutoff = FIRST_TIME
        cutoff = max(cutoff, FIRST_TIME)
        run = _Run(
            PruneReport(cutoff, dry_run),
            Cutoff(
                first_id_of(cutoff),
                cutoff.strftime("%Y-%m-%dT%H:%M:%S"),
                first_id_of(min(cutoff, now - _NO_ORPHAN_BEFORE)),
            ),
            keep_latest,
            batch_size,
            on_batch,
        )
        after: str | None = None
        while found := await self._find(run, after):
            after = found[-1][0]
            for threads in _batches(found, batch_size):
                await self._prune_batch(run, threads)
            if len(found) < _THREADS_A_PAGE:
                break
        return run.report

    # ---------------------------------------------------------------- helpers

    async def _find(self, run: _Run, after: str | None) -> list[tuple[str, int]]:
        with self._lifetime.call():
            return await self._pruner.find_threads(
                run.cutoff, after, _THREADS_A_PAGE, keep_latest=run.keep_latest
            )

    async def _prune_batch(self, run: _Run, threads: Sequence[str]) -> None:
        """Remove or count what is old in some threads. A single thread may take several transactions."""
        plan: Plan | None = None
        while threads := self._without_lost(run, threads):
            try:
                with self._lifetime.call(), self._telemetry.operation("prune_older_than", None):
                    removed = await self._remove(run, threads, plan)
            except ThreadInUseError as exc:
                run.skip(exc.thread_ids)
                threads = [each for each in threads if each not in exc.thread_ids]
                continue
            run.add(removed)
            if removed.rest is None:
                return
            plan = removed.rest.plan

    def _without_lost(self, run: _Run, threads: Sequence[str]) -> Sequence[str]:
        """Leave out the threads whose master of a Redis Cluster is away: the next run removes what is old.

        If nobody there is asked now, nothing is left out, and the run fails.
        """
        cluster = self._parts.cluster
        if run.report.dry_run or cluster is None or not cluster.asked:
            return threads
        lost = {each for each in threads if cluster.is_away(Scope(each, ""))}
        run.skip(lost)
        return [each for each in threads if each not in lost]

    async def _remove(self, run: _Run, threads: Sequence[str], plan: Plan | None) -> Removed:
        if run.report.dry_run:
            return await self._pruner.count_older(threads, run.cutoff, keep_latest=run.keep_latest)
        await self._bursts.end_threads(threads)
        return await self._change(
            "prune_older_than",
            "prune",
            lambda barrier: self._pruner.remove_older(
                threads,
                run.cutoff,
                barrier,
                keep_latest=run.keep_latest,
                at_most=run.batch_size,
                plan=plan,
            ),
            must_tell_l1=True,
        )

    async def _change(
        self,
        operation: str,
        source: InvalidationSource,
        transaction: Callable[[Barrier], Awaitable[ResultT]],
        *,
        must_tell_l1: bool = False,
    ) -> ResultT:
        """Run a transaction behind a barrier. Repeat it if L2 certainly did not change, and that may help."""
        barriers: list[_Intents] = []
        await self._parts.identify_l1()

        async def attempt() -> ResultT:
            async with self._barrier(operation, source, must_tell_l1=must_tell_l1) as barrier:
                barriers.append(barrier)
                return await transaction(barrier)

        return await self._parts.retries.run(
            operation, attempt, may_repeat=lambda: not barriers[-1].in_doubt, attempts=_ATTEMPTS
        )

    @asynccontextmanager
    async def _barrier(
        self, operation: str, source: InvalidationSource, *, must_tell_l1: bool
    ) -> AsyncIterator[_Intents]:
        barrier = _Intents(self._parts, operation, source, must_tell_l1=must_tell_l1)
        try:
            yield barrier
        except BaseException as exc:
            # The transaction is rolled back, unless it was COMMIT that got no response.
            barrier.in_doubt = barrier.is_committing and not certainly_unchanged(exc)
            await self._lifetime.settle(
                barrier.drop(in_doubt=True) if barrier.in_doubt else barrier.take_back()
            )
            raise
        await self._lifetime.settle(barrier.drop(in_doubt=False))


class _Intents:
    """The barrier of one transaction: an intent in the entry of every cached scope that it changes."""

    def __init__(
        self, parts: Parts, operation: str, source: InvalidationSource, *, must_tell_l1: bool
    ) -> None:
        self._l1 = parts.l1
        self._journal = parts.l2.journal
        self._retries = parts.retries
        self._lifetime = parts.lifetime
        self._telemetry = parts.telemetry
        self._operation = operation
        self._source = source
        self._must_tell_l1 = must_tell_l1 or parts.must_tell_l1
        self._heeds_quarantine = not parts.must_tell_l1
        self._intents: list[Intent] = []
        self._beginning = asyncio.Event()
        self._beginning.set()
        self.is_committing = False
        self.in_doubt = False

    async def block(self, scopes: Collection[Scope], *, alone: Collection[str] = ()) -> None:
        self._beginning.clear()
        # `settle` runs it to its end: an intent that nobody knows would keep readers away until its deadline.
        cached = sorted(scope for scope in scopes if scope.is_cached)
        busy = await self._lifetime.settle(self._begin(cached, frozenset(alone)))
        if busy:
            raise in_use(busy)
        if self._must_tell_l1 and not all(map(self._is_settled, self._intents)):
            raise L1UnavailableError(
                "Redis does not answer, and could not be told of what is removed: nothing more was removed. "
                "Repeat when it is back."
            )

    def untold(self) -> Collection[Scope]:
        if self._l1.is_absent:
            self._l1.wrote_unannounced(intent.scope for intent in self._intents)
            return []
        return [intent.scope for intent in self._intents if not self._l1.is_heeded(intent)]

    def changed(self) -> Collection[Scope]:
        return [intent.scope for intent in self._intents]

    def committing(self) -> None:
        self.is_committing = True

    async def take_back(self) -> None:
        await self._beginning.wait()
        await for_each([i for i in self._intents if i.name], self._l1.abort)

    async def drop(self, *, in_doubt: bool) -> None:
        await self._beginning.wait()

        async def drop(intent: Intent) -> Intent | None:
            """Return the intent, if Redis did not confirm DROP."""
            if not await self._l1.drop(intent, still_running=in_doubt):
                return intent
            self._telemetry.emit(Invalidated(self._source))
            return None

        left = [intent for intent in await for_each(self._intents, drop) if intent is not None]
        if left and not in_doubt and not self._l1.is_absent:
            if begun := [intent.scope for intent in left if intent.name]:  # the others are in the journal
                await self._retries.run(self._operation, lambda: self._journal.record_now(begun))
            for intent in left:
                self._l1.suspect(intent.scope)

    def _is_settled(self, intent: Intent) -> bool:
        """Whether Redis confirmed BEGIN; or refuses this key only, so that a row in the journal is enough."""
        return bool(intent.name) or (self._heeds_quarantine and intent.scope in self._l1.quarantine)

    async def _begin(self, scopes: Sequence[Scope], alone: frozenset[str]) -> set[str]:
        """Send BEGIN for the scopes, until a thread of `alone` has another intent. Return such threads."""
        try:
            for start in range(0, len(scopes), _SCOPES_AT_ONCE):
                chunk = scopes[start : start + _SCOPES_AT_ONCE]
                begun = await asyncio.gather(
                    *(
                        (self._l1.begin_alone if scope.thread_id in alone else self._l1.begin)(scope)
                        for scope in chunk
                    )
                )
                self._intents += [intent for intent in begun if intent is not None]
                if busy := {s.thread_id for s, intent in zip(chunk, begun, strict=True) if intent is None}:
                    return busy
                if not any(map(self._is_settled, self._intents[-len(chunk) :])):
                    # Redis does not respond. Rows are locked, so do not wait for Redis again for each chunk.
                    self._intents += [Intent(scope, b"") for scope in scopes[start + _SCOPES_AT_ONCE :]]
                    break
        finally:
            self._beginning.set()
        return set()


@dataclass(slots=True)
class _Run:
    """The options of a run of `aprune_older_than`, and its sums so far."""

    report: PruneReport
    cutoff: Cutoff
    keep_latest: bool
    batch_size: int
    on_batch: Callable[[PruneReport], object] | None
    _last_thread: str | None = field(default=None, init=False)

    def add(self, removed: Removed) -> None:
        """Add a batch to the sums, and pass them to `on_batch`."""
        sums = self.report
        self.report = replace(
            sums,
            # A thread that takes several batches is counted once.
            threads=sums.threads + len(removed.threads - {self._last_thread}),
            checkpoints=sums.checkpoints + removed.checkpoints,
            writes=sums.writes + removed.writes,
            blobs=sums.blobs + removed.blobs,
            bytes=sums.bytes + removed.bytes,
            batches=sums.batches + 1,
            skipped_threads=sums.skipped_threads + len(removed.skipped),
        )
        if len(removed.threads) == 1:
            (self._last_thread,) = removed.threads
        if self.on_batch is not None:
            self.on_batch(self.report)

    def skip(self, threads: Collection[str]) -> None:
        """Count threads that are left alone."""
        self.report = replace(self.report, skipped_threads=self.report.skipped_threads + len(threads))


def _batches(found: Sequence[tuple[str, int]], batch_size: int) -> Iterator[list[str]]:
    """Group threads into batches of about so many old checkpoints. A larger thread is alone in its batch."""
    batch: list[str] = []
    size = 0
    for thread_id, old in found:
        if batch and (size + old > batch_size or len(batch) == _THREADS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(thread_id)
        size += old
    if batch:
        yield batch


def _check_age(age: object) -> None:
    if not isinstance(age, timedelta) or age <= timedelta():
        raise ConfigurationError(f"age is {age!r}: it must be a timedelta greater than 0.")
