"""Deleting, copying and pruning threads.

    L2: begin; delete, copy         rows are locked, readers do not notice
    L1 BEGIN, every cached scope    readers are sent to L2 from here on
    L2: commit
    L1 DROP, each

Only the rows say which scopes are touched, so BEGIN comes after the work and before the commit. That is soon
enough: until the commit, what L1 has is what L2 answers. A reader that warms up before it loses its lease to
BEGIN, a put that is under way is disarmed by DROP, and both look at L2 again. After a crash between BEGIN and
DROP the intents stand until their deadline, readers ask L2, and then the entry is discarded. After a crash
before the commit, L2 has rolled back, and the same happens for nothing. Nothing slow may happen between BEGIN
and the commit, or the intents would be gone before the rows are.

That a transaction is rolled back is known, so ABORT takes the intents back and leaves the images; only a
COMMIT that was not answered leaves it open, and then readers stay away until the deadline.

Scopes that Redis could not be told of before the commit go into the journal, in the same transaction; those
that it could not be told of after it, in another one, before the caller is answered.
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
from glasspoint.savers.opening import ManagedSaver
from glasspoint.telemetry.background import for_each
from glasspoint.telemetry.events import Invalidated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator
    from uuid import UUID

    from glasspoint.l2.pruning import Barrier, Plan
    from glasspoint.model.generics import ResultT
    from glasspoint.savers.retention import Sums
    from glasspoint.telemetry.events import InvalidationSource

__all__ = ["MaintainedSaver", "PruneReport"]

_STRATEGIES = ("keep_latest", "delete")

# How many entries are handled at a time; a thread has one for each call of a subgraph.
_SCOPES_AT_ONCE = 16

# How often a transaction is tried that loses against another one, or its connection.
_ATTEMPTS = 5

_THREADS_AT_ONCE = 200
_THREADS_A_PAGE = 1000

# A write may be saved before its checkpoint: it is an orphan only when that cannot be any more.
_NO_ORPHAN_BEFORE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a run of `aprune_older_than` has removed, or would remove.

    Attributes:
        cutoff: What is older than this is old; fixed when the run began.
        dry_run: Whether it was only counted.
        threads: Threads of which anything went.
        checkpoints, writes, blobs: Rows of the three tables.
        bytes: What the checkpoints, their metadata and the values took in storage, compressed as they are;
            rows' headers and indexes not counted.
        batches: Transactions.
        skipped_threads: Threads left alone: another run had them in hand, or one was to go whole while
            something was being written to it.
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


class MaintainedSaver(ManagedSaver):
    """What changes whole threads, with L1 kept right."""

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints and writes of a thread, in all its namespaces.

        A run of the thread that goes on is not stopped: what it stores afterwards is stored, without what
        was deleted.

        Args:
            thread_id: The thread.

        Raises:
            InvalidConfigError: No thread can have this id.
            L2UnavailableError: PostgreSQL did not answer; whether it deleted is not known.
        """
        validate_thread_id(thread_id)

        async def delete(barrier: Barrier) -> None:
            async def block_readers(namespaces: list[str]) -> Collection[Scope]:
                await barrier.block([Scope(thread_id, namespace) for namespace in namespaces])
                barrier.committing()
                return barrier.untold()

            await self._l2.delete_thread(thread_id, block_readers)

        with self._lifetime.call(), self._telemetry.operation("delete_thread", Scope(thread_id, "")):
            await self._bursts.end_threads([thread_id])
            await self._change("delete_thread", "delete", delete)

    async def adelete_for_runs(self, run_ids: Sequence[str | UUID]) -> None:
        """Delete all checkpoints of some runs, with their writes, and the values that nobody else refers to.

        Checkpoints that stay keep the ids of their parents. All or nothing is deleted.

        LangGraph's tables have no index on the run: this looks through all checkpoints once. If you call it
        often, make one: `CREATE INDEX CONCURRENTLY checkpoints_run_id_idx ON checkpoints
        ((metadata ->> 'run_id')) WHERE (metadata ->> 'run_id') IS NOT NULL`.

        Args:
            run_ids: The runs, as in the checkpoints' metadata under `run_id`, as texts or UUIDs. Unknown ones
                are ignored.

        Raises:
            DeltaChainError: A `DeltaChannel` of a checkpoint that stays is rebuilt from one of these.
            InvalidConfigError: No run can have such an id.
            ConfigurationError: This is a single string (a TypeError, too).
            L2DeadlineError: Others kept the rows locked. Nothing was deleted.
            L2UnavailableError: PostgreSQL did not answer; whether it deleted is not known.
        """
        runs = run_ids_of(list_of_ids("run_ids", run_ids))
        with self._lifetime.call(), self._telemetry.operation("delete_for_runs", None):
            if runs:
                await self._change(
                    "delete_for_runs",
                    "delete",
                    lambda barrier: self._pruner.delete_for_runs(runs, barrier),
                )

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread: all its checkpoints, writes and values, in all its namespaces, as they are now.

        A source that does not exist is no error: nothing is copied, and the target does not exist afterwards.
        (LangGraph's interface says nothing of that.) Where the metadata name the thread, as LangGraph Server
        has it, the copy's name the copy.

        Args:
            source_thread_id: The thread to copy; it is not changed.
            target_thread_id: What the copy is called; there must be nothing of this name.

        Raises:
            ThreadExistsError: The target is there already, in whatever part.
            ThreadInUseError: Something is being written to the target.
            InvalidConfigError: No thread can have such an id, or the two are the same.
            L2DeadlineError: Others kept the rows locked. Nothing was copied.
            L2UnavailableError: PostgreSQL did not answer; whether it copied is not known.
        """
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

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune some threads, all of them or, after an error, none.

        `"keep_latest"` keeps the newest checkpoint of each namespace, with its pending writes and values, and
        what it needs: where it has a `DeltaChannel` without a value of its own, the ancestors that the value
        is rebuilt from, back to the last snapshot; for formats before 4 the parent that holds pending sends.
        A subgraph call's namespace goes with the root checkpoint that the call started from. It may be done
        in the middle of a run, which goes on as if nothing had happened; but not while a run starts from an
        older checkpoint than the newest. An ancestor that was kept is there for the newest checkpoint's sake:
        with several delta channels it may lack what its own state would be rebuilt from.

        `"delete"` deletes everything of the threads. If a write to one of them is on its way at that moment,
        through any saver of this kind on the same Redis, nothing is done, and this fails. A run that is
        between two writes cannot be seen, nor one that writes in a subgraph without a memory of its own, nor
        one when Redis does not answer; what it stores afterwards is stored, without what was deleted. So end
        a thread's runs before you delete it.

        Args:
            thread_ids: The threads. Those that are not there are ignored.
            strategy: `"keep_latest"` or `"delete"`.

        Raises:
            ConfigurationError: The strategy is unknown, or this is a single string (a TypeError, too).
            InvalidConfigError: No thread can have such an id.
            ThreadInUseError: Something is being written to a thread that is to be deleted.
            L2DeadlineError: Others kept the rows locked. Nothing was done.
            L2UnavailableError: PostgreSQL did not answer; whether it pruned is not known.
        """
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

    async def aprune_older_than(
        self,
        age: timedelta,
        *,
        keep_latest: bool = True,
        batch_size: int = 1000,
        dry_run: bool = False,
        on_batch: Callable[[PruneReport], object] | None = None,
    ) -> PruneReport:
        """Remove the checkpoints of all threads that are older than `age`, but for those that are needed.

        Needed are the newest of each namespace, and what younger or newest ones need: see `aprune`. Their
        writes go with them, old writes that have no checkpoint, and values that nothing refers to any more.
        A checkpoint is as old as its id says (a UUID of version 6, which LangGraph makes), or else its `ts`;
        one of which neither tells the time is never old.

        It works in batches, each a short transaction: an error, a crash or a cancellation undoes only the
        batch under way. Live runs are not disturbed, but one that starts from an old checkpoint may find it
        gone. Several runs at once share the threads: what one has in hand, another skips.

        Args:
            age: How old; greater than 0.
            keep_latest: `False`: a thread whose newest checkpoint is old goes whole.
            batch_size: About how many checkpoints one transaction removes.
            dry_run: Only count; nothing is locked or written.
            on_batch: Called after each batch with the sums so far. What it raises ends the run.

        Returns:
            What was removed.

        Raises:
            ConfigurationError: `age` or `batch_size` is out of its range.
            L1UnavailableError: Redis could not be told of a batch, which was therefore not removed.
            L2DeadlineError: Others kept the rows of a batch locked, or PostgreSQL gave a statement up.
            L2UnavailableError: PostgreSQL did not answer; whether it removed the last batch is not known.
        """
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

    def prune_older_than(
        self,
        age: timedelta,
        *,
        keep_latest: bool = True,
        batch_size: int = 1000,
        dry_run: bool = False,
        on_batch: Callable[[PruneReport], object] | None = None,
    ) -> PruneReport:
        """Remove old checkpoints: see `aprune_older_than`. `on_batch` is called on the saver's event loop."""
        return self._wait_for(
            "aprune_older_than",
            lambda saver: saver.aprune_older_than(
                age, keep_latest=keep_latest, batch_size=batch_size, dry_run=dry_run, on_batch=on_batch
            ),
        )

    # ---------------------------------------------------------------- helpers

    async def _prune_for_retention(self, age: timedelta, on_batch: Callable[[Sums], object]) -> Sums:
        return await self.aprune_older_than(age, on_batch=on_batch)

    @property
    def _pruner(self) -> Pruner:
        return Pruner(self._l2.connections, self._l2.journal)

    async def _find(self, run: _Run, after: str | None) -> list[tuple[str, int]]:
        with self._lifetime.call():
            return await self._pruner.find_threads(
                run.cutoff, after, _THREADS_A_PAGE, keep_latest=run.keep_latest
            )

    async def _prune_batch(self, run: _Run, threads: Sequence[str]) -> None:
        """Remove, or count, what is old of these threads; of a single one perhaps in several transactions."""
        plan: Plan | None = None
        while threads:
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
        """Run a transaction behind a barrier; again, if it was certainly rolled back and that may help."""
        barriers: list[_Intents] = []
        await self._ready_l1()

        async def attempt() -> ResultT:
            async with self._barrier(operation, source, must_tell_l1=must_tell_l1) as barrier:
                barriers.append(barrier)
                return await transaction(barrier)

        return await self._retries.run(
            operation, attempt, may_repeat=lambda: not barriers[-1].in_doubt, attempts=_ATTEMPTS
        )

    @asynccontextmanager
    async def _barrier(
        self, operation: str, source: InvalidationSource, *, must_tell_l1: bool
    ) -> AsyncIterator[_Intents]:
        barrier = _Intents(self, operation, source, must_tell_l1=must_tell_l1)
        try:
            yield barrier
        except BaseException as exc:
            # The transaction is rolled back, unless its COMMIT is the very thing that was not answered.
            barrier.in_doubt = barrier.is_committing and not certainly_unchanged(exc)
            await self._lifetime.settle(
                barrier.drop(in_doubt=True) if barrier.in_doubt else barrier.take_back()
            )
            raise
        await self._lifetime.settle(barrier.drop(in_doubt=False))


class _Intents:
    """The barrier: an intent on every scope."""

    def __init__(
        self, saver: MaintainedSaver, operation: str, source: InvalidationSource, *, must_tell_l1: bool
    ) -> None:
        self._l1 = saver._l1
        self._journal = saver._l2.journal
        self._retries = saver._retries
        self._lifetime = saver._lifetime
        self._telemetry = saver._telemetry
        self._operation = operation
        self._source = source
        self._must_tell_l1 = must_tell_l1 or saver._must_tell_l1
        self._heeds_quarantine = not saver._must_tell_l1
        self._intents: list[Intent] = []
        self._beginning = asyncio.Event()
        self._beginning.set()
        self.is_committing = False
        self.in_doubt = False

    async def block(self, scopes: Collection[Scope], *, alone: Collection[str] = ()) -> None:
        self._beginning.clear()
        # To its end: an intent that nobody knows would send readers away until its deadline.
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
            """Return what could not be dropped."""
            if not await self._l1.drop(intent, still_running=in_doubt):
                return intent
            self._telemetry.note(Invalidated(self._source))
            return None

        left = [intent for intent in await for_each(self._intents, drop) if intent is not None]
        if left and not in_doubt and not self._l1.is_absent:
            if begun := [intent.scope for intent in left if intent.name]:  # the others are recorded already
                await self._retries.run(self._operation, lambda: self._journal.record_now(begun))
            for intent in left:
                self._l1.doubt(intent.scope)

    def _is_settled(self, intent: Intent) -> bool:
        """Whether Redis was told, or refuses this key alone: then a row of the journal is enough."""
        return bool(intent.name) or (self._heeds_quarantine and intent.scope in self._l1.quarantine)

    async def _begin(self, scopes: Sequence[Scope], alone: frozenset[str]) -> set[str]:
        """Leave the intents; return the threads that are not alone, if any, and go no further then."""
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
                    # Redis does not answer. Rows are locked: do not wait for it once for each of the others.
                    self._intents += [Intent(scope, b"") for scope in scopes[start + _SCOPES_AT_ONCE :]]
                    break
        finally:
            self._beginning.set()
        return set()


@dataclass(slots=True)
class _Run:
    """A run of `aprune_older_than`, and how far it has come."""

    report: PruneReport
    cutoff: Cutoff
    keep_latest: bool
    batch_size: int
    on_batch: Callable[[PruneReport], object] | None
    _last_thread: str | None = field(default=None, init=False)

    def add(self, removed: Removed) -> None:
        """Sum up, and say so."""
        sums = self.report
        self.report = replace(
            sums,
            # A thread that takes several batches is one.
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
        """Leave these alone."""
        self.report = replace(self.report, skipped_threads=self.report.skipped_threads + len(threads))


def _batches(found: Sequence[tuple[str, int]], batch_size: int) -> Iterator[list[str]]:
    """Put threads together, up to about so many old checkpoints; one with more than that is alone."""
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
