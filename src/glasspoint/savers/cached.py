"""CachedPostgresSaver: the read path and the write path of the cache, top to bottom.

    read                                 first write of a burst               further writes
    ----                                 ----------------------               --------------
    L1 READ --- hit ----------> result   L1 BEGIN    readers go to L2 now     L2      the fence stands
       |                                 L2          with the fence           result
      miss, busy, historical, …          L1 CONFIRM  no reader holds a lease
       |                                 result                               0.1 s after the last write
    L2 SELECT                                                                 --------------------------
       |                                                                      L1 COMMIT    the image follows
    result
       |
      after a miss, without a fence:
      L1 WARM_UP

A run's subgraph is not cached (`Scope.is_cached`): its reads and writes use L2 alone.

Open this file when a read returns the wrong state, or when a call is slow. `docs/protocol.md` says why a read
never returns an older state than an acknowledged one; each file in `l1/scripts` says the rule of its step.
The write path is in `write_through`, and `bursts` explains bursts. Opening is in `opening`; deleting, pruning
and copying are in `maintenance`.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import WRITES_IDX_MAP

from glasspoint.errors import InvalidConfigError, L2UnavailableError
from glasspoint.l1.entry import Changes
from glasspoint.l2.deadline import answered_within
from glasspoint.l2.writing import FenceResult
from glasspoint.logs import get_logger
from glasspoint.model import codec, traceparent
from glasspoint.model.index_rows import check_put, check_writes
from glasspoint.model.lineage import relation_of
from glasspoint.model.listing_options import check_limit, plain_filter
from glasspoint.model.scope import Scope, checkpoint_id_of, listed_scope_of, scope_of
from glasspoint.model.threads import choose_threads
from glasspoint.savers.forks import kind_of
from glasspoint.savers.opening import ManagedSaver
from glasspoint.savers.write_through import begin_write
from glasspoint.telemetry.events import WarmUpSkipped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta
    from uuid import UUID

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )

    from glasspoint.l2.contents import Holding
    from glasspoint.model.codec import PendingWrites, StoredCheckpoint
    from glasspoint.model.generics import ResultT
    from glasspoint.model.lineage import Branch, Relation, SetAside
    from glasspoint.model.threads import ThreadSummary
    from glasspoint.savers.maintenance import PruneReport
    from glasspoint.telemetry.events import Operation

__all__ = ["CachedPostgresSaver"]

_log = get_logger("glasspoint")


class CachedPostgresSaver(ManagedSaver):
    """A LangGraph checkpointer on PostgreSQL, cached in Redis. Every step is traced and counted.

    It returns what `AsyncPostgresSaver` returns on the same database. Both savers may be used on one database
    in turn. A write returns when PostgreSQL has stored it. While Redis does not respond, reads and writes use
    PostgreSQL alone.

    Example:
        ```python
        async with CachedPostgresSaver.from_conn_string(POSTGRES_URL, redis_url=REDIS_URL) as saver:
            await saver.setup()  # once: makes the tables
            graph = builder.compile(checkpointer=saver)
            await graph.ainvoke(inputs, {"configurable": {"thread_id": "42"}})
        ```
    """

    # ---------------------------------------------------------------- reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint with its pending writes, from Redis or else from PostgreSQL.

        If Redis does not have the newest checkpoint, it receives what PostgreSQL returned, in the background.

        Args:
            config: The thread, the namespace and, optionally, the checkpoint id. Without an id, the newest
                checkpoint is fetched.

        Returns:
            The checkpoint, or `None` if it does not exist.

        Raises:
            InvalidConfigError: The config has no thread id, or an id that cannot be stored.
            L2UnavailableError: PostgreSQL was needed, and did not respond.
            L2DeadlineError: PostgreSQL did not respond in time: see `write_deadline_seconds`.
        """
        scope, checkpoint_id = scope_of(config), checkpoint_id_of(config)
        with self._lifetime.call(), self._telemetry.operation("get_tuple", scope, config) as operation:
            found = await self._get_tuple(operation, scope, checkpoint_id, config)
            if checkpoint_id is None:
                self._forks.read_newest(scope, found)
            if found is not None and found.pending_writes:
                self._telemetry.read_writes(scope, found.pending_writes)
            return found

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints, newest first, from PostgreSQL.

        Args:
            config: The thread and, optionally, the namespace and the checkpoint id. `None` or `{}`: all
                threads.
            filter: Only checkpoints whose metadata contain this.
            before: Only checkpoints that are older than the one in this config.
            limit: The maximum number of checkpoints.

        Raises:
            InvalidConfigError: The config has no thread id, or an id that cannot be stored.
            ConfigurationError: The filter is not JSON that PostgreSQL can store, or the limit is negative.
            L2UnavailableError: PostgreSQL did not respond.
        """
        # Check every argument before PostgreSQL receives it: its own errors are harder to understand.
        scope = listed_scope_of(config)
        for named in (config or None, before):
            if named is not None:
                checkpoint_id_of(named)
        check_limit(limit)
        filter = plain_filter(filter)
        with self._lifetime.call(), self._telemetry.operation("list", scope) as operation:
            if traceparent.is_asked_for(filter):
                return
            tuples = await self._retries.run(
                "list",
                lambda: self._l2.list(scope, self.serde, config, filter=filter, before=before, limit=limit),
            )
            operation.served_by = "l2"
        for each in tuples:
            yield each

    async def alist_threads(
        self,
        *,
        filter: dict[str, Any] | None = None,
        limit: int | None = None,
        before: RunnableConfig | None = None,
    ) -> AsyncIterator[ThreadSummary]:
        """List threads from PostgreSQL, in the order of their newest checkpoints, newest first.

        Without a filter, the query takes two look-ups in the primary key for each thread, and reads only the
        checkpoints that it returns. So its time grows with the number of threads, not of checkpoints. With a
        filter, it reads the newest checkpoint of every thread.

        Args:
            filter: Only threads whose newest checkpoint's metadata contain this, as in PostgreSQL's `@>`.
            limit: The maximum number of threads.
            before: Only threads whose newest checkpoint is older than the one in this config. For the next
                page, pass `config` of the last thread of this page.

        Yields:
            A summary of each thread, from the newest checkpoint of its root graph. All threads are read
            before the first is yielded.

        Raises:
            ConfigurationError: The filter is not plain JSON, or the limit is negative.
            InvalidConfigError: `before` has no checkpoint id, or one that cannot be stored.
            L2UnavailableError: PostgreSQL did not respond.
        """
        choice = choose_threads(filter=filter, limit=limit, before=before)
        with self._lifetime.call(), self._telemetry.operation("list_threads", None) as operation:
            if choice.nothing:
                return
            found = await self._retries.run("list_threads", lambda: self._l2.list_threads(choice))
            operation.served_by = "l2"
        for each in found:
            yield each

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Read what a checkpoint's ancestors wrote to some channels, from PostgreSQL.

        Args:
            config: The thread, the namespace and, optionally, the checkpoint id; by default the newest.
            channels: The names of the channels.

        Returns:
            For each channel: its writes, oldest first, and the value that they start from, if it exists.

        Raises:
            DeltaChainError: The ancestors form a cycle, and a channel has no value in it.
        """
        scope = scope_of(config)
        checkpoint_id_of(config)
        with self._lifetime.call(), self._telemetry.operation("delta_history", scope) as operation:
            found = await self._retries.run(
                "delta_history", lambda: self._l2.delta_history(scope, self.serde, config, channels)
            )
            operation.served_by = "l2"
            return found

    # ---------------------------------------------------------------- writing

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.

        When this returns, PostgreSQL has stored the checkpoint, and no later read returns an older one. (For
        the exception, an outage of Redis, see `on_l1_outage`.)

        Args:
            config: The thread, the namespace and, as `checkpoint_id`, the id of the parent.
            checkpoint: The checkpoint to store.
            metadata: The metadata of the checkpoint.
            new_versions: The channels that have changed, with their new versions.

        Returns:
            The config of the new checkpoint.

        Raises:
            InvalidConfigError: The config has no thread id, or an id that cannot be stored.
            SerializationError: A value cannot be serialised. Nothing was stored.
            L2UnavailableError: PostgreSQL did not respond. It may have stored the checkpoint.
            L2DeadlineError: PostgreSQL did not respond before the write's deadline. The message says whether
                it may have stored the checkpoint.
            L2RefusedError: PostgreSQL refused: its disk is full, or a value is too large. Nothing was stored.
            L1UnavailableError: Redis did not do its part, and `on_l1_outage` is `"raise"`. The message says
                whether PostgreSQL has the checkpoint.
            ThreadForkedError: The checkpoint forks its thread, and `on_fork` is `"raise"`. It was not stored.
        """
        scope, parent_id = scope_of(config), checkpoint_id_of(config)
        with (
            self._lifetime.call(),
            self._telemetry.operation(
                "put", scope, config, checkpoint_id=checkpoint["id"], step=metadata.get("step")
            ) as operation,
        ):
            started = perf_counter()
            put = codec.encode_put(
                self.serde,
                config,
                parent_id,
                checkpoint,
                metadata,
                new_versions,
                traceparent=operation.traceparent,
                **self._forks.judgement(scope, config, checkpoint["id"], metadata),
            )
            operation.encode_seconds = perf_counter() - started
            operation.checkpoint_id, operation.step, operation.source = (
                put.checkpoint_id,
                put.step,
                put.source,
            )
            operation.bytes_written = put.size
            check_put(scope, put)
            fork = self._forks.check(scope, put)
            write = await begin_write(self._parts, operation, scope)
            result = await write.to_l2(lambda: self._l2.put(scope, write.judged(put), write.ready))
            if fork is None and result.forked_by is not None:
                fork = kind_of(put, result.forked_by)
            if fork is not None:
                self._forks.tell(fork, scope, put, result.forked_by)
            is_refused = result.forked_by is not None and self._forks.refuses

            def follow(changes: Changes) -> None:
                if is_refused:
                    changes.give_up()
                else:
                    changes.put(put, is_as_sent=result.followable, known_writes=result.known_writes)

            await write.to_l1(result.fence, follow)
            if fork is not None and is_refused:
                raise self._forks.error(fork, scope, put)
            own_id = self._forks.wrote(scope, checkpoint["id"])
        return {"configurable": {**scope._asdict(), "checkpoint_id": own_id}}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of a task, which are pending until the task's superstep ends.

        Args:
            config: The thread, the namespace and the id of the checkpoint that the task started from.
            writes: Pairs of channel and value.
            task_id: The id of the task.
            task_path: The task's position in its superstep. Writes are applied in the order of this.

        Raises:
            GlasspointError: The same errors as from `aput`.
        """
        scope, checkpoint_id = scope_of(config), checkpoint_id_of(config)
        with (
            self._lifetime.call(),
            self._telemetry.operation(
                "put_writes",
                scope,
                config,
                checkpoint_id=checkpoint_id,
                task_id=task_id,
                task_path=task_path,
            ) as operation,
        ):
            started = perf_counter()
            upsert = all(channel in WRITES_IDX_MAP for channel, _ in writes)
            encoded = codec.encode_writes(self.serde, writes, task_id, task_path, last_wins=upsert)
            operation.encode_seconds = perf_counter() - started
            operation.bytes_written = sum(len(w.value.data) for w in encoded)
            if checkpoint_id is None:
                raise InvalidConfigError("The config names no checkpoint_id: writes belong to a checkpoint.")
            if not encoded:
                return
            check_writes(scope, checkpoint_id, task_id)
            interrupts = self._telemetry.storing_writes(scope, task_id, writes)
            write = await begin_write(self._parts, operation, scope)
            result = await write.to_l2(
                lambda: self._l2.put_writes(scope, checkpoint_id, encoded, write.ready, upsert=upsert)
            )

            def follow(changes: Changes) -> None:
                changes.put_writes(checkpoint_id, result.stored, result.ignored)
                if result.overwrote and write.is_among_others:
                    changes.give_up()  # the write that it has replaced may be added to the burst after it

            await write.to_l1(result.fence, follow)
            self._telemetry.stored(scope, task_id, interrupts)

    # ---------------------------------------------------------------- deleting, copying, pruning

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints and writes of a thread, in all its namespaces.

        A run that is still working on the thread is not stopped. What it stores later stays, without what was
        deleted.

        Args:
            thread_id: The id of the thread.

        Raises:
            InvalidConfigError: The id cannot be stored.
            L1UnavailableError: Redis did not do its part, and `on_l1_outage` is `"raise"`. Nothing was
                deleted.
            L2DeadlineError: Other transactions kept the rows locked. Nothing was deleted.
            L2UnavailableError: PostgreSQL did not respond. It may have deleted the thread.
        """
        await self._maintenance.delete_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str | UUID]) -> None:
        """Delete all checkpoints of some runs, with their writes, and the values that no other one uses.

        Either everything is deleted, or nothing. The other checkpoints keep the ids of their parents, even of
        deleted ones.

        LangGraph's tables have no index on the run id, so each call reads all checkpoints once. If you call
        this often, make an index: `CREATE INDEX CONCURRENTLY checkpoints_run_id_idx ON checkpoints
        ((metadata ->> 'run_id')) WHERE (metadata ->> 'run_id') IS NOT NULL`.

        Args:
            run_ids: The ids of the runs, as strings or UUIDs: the `run_id` in the checkpoints' metadata.
                Unknown ids are ignored.

        Raises:
            DeltaChainError: A checkpoint that stays has a `DeltaChannel` that is rebuilt from one of these.
            InvalidConfigError: An id cannot be stored.
            ConfigurationError: `run_ids` is a single string. (The error is a `TypeError`, too.)
            L1UnavailableError: Redis did not do its part, and `on_l1_outage` is `"raise"`. Nothing was
                deleted.
            L2DeadlineError: Other transactions kept the rows locked. Nothing was deleted.
            L2UnavailableError: PostgreSQL did not respond. It may have deleted the checkpoints.
        """
        await self._maintenance.delete_for_runs(run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread: all its checkpoints, writes and values, in all its namespaces, as they are now.

        If the source does not exist, nothing is copied, and no error is raised. (LangGraph's interface leaves
        that open.) If the metadata contain the id of the thread, as LangGraph Server stores them, the copy's
        metadata contain the id of the copy.

        Args:
            source_thread_id: The id of the thread to copy. The thread is not changed.
            target_thread_id: The id of the copy. No thread may have this id yet.

        Raises:
            ThreadExistsError: The target exists already, even if only a part of it.
            ThreadInUseError: Something is being written to the target.
            InvalidConfigError: An id cannot be stored, or the two are the same.
            L1UnavailableError: Redis did not do its part, and `on_l1_outage` is `"raise"`. Nothing was
                copied.
            L2DeadlineError: Other transactions kept the rows locked. Nothing was copied.
            L2UnavailableError: PostgreSQL did not respond. It may have copied the thread.
        """
        await self._maintenance.copy_thread(source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune some threads: keep what their newest checkpoints need, or delete them.

        Either all of the threads are pruned, or none.

        `"keep_latest"` keeps the newest checkpoint of each namespace, with its pending writes and its values.
        It also keeps the ancestors that this checkpoint needs:

        - If a `DeltaChannel` has no value in it: the ancestors from which the value is rebuilt, back to the
          last snapshot.
        - In formats before 4: the parent, which holds pending sends.

        The other checkpoints are removed. The namespace of a subgraph call is removed together with the root
        checkpoint that the call started from. You may prune in the middle of a run, which goes on
        undisturbed. But do not prune while a run starts from a checkpoint that is not the newest. A kept
        ancestor serves the newest checkpoint only: with several delta channels, its own state may be
        incomplete.

        `"delete"` deletes everything of the threads. If a saver of this class, on the same Redis, is writing
        to one of them, nothing is deleted, and this fails. Some runs are not noticed: a run between two
        writes, a run that writes in a subgraph without a memory of its own, and any run while Redis does not
        respond. What such a run stores later stays, without what was deleted. So end the runs of a thread
        before you delete it.

        Args:
            thread_ids: The ids of the threads. Unknown ids are ignored.
            strategy: `"keep_latest"` or `"delete"`.

        Raises:
            ConfigurationError: The strategy is unknown; or `thread_ids` is a single string, and the error is
                a `TypeError`, too.
            InvalidConfigError: An id cannot be stored.
            ThreadInUseError: Something is being written to a thread that is to be deleted.
            L1UnavailableError: Redis did not do its part, and `on_l1_outage` is `"raise"`. Nothing was
                pruned.
            L2DeadlineError: Other transactions kept the rows locked. Nothing was pruned.
            L2UnavailableError: PostgreSQL did not respond. It may have pruned the threads.
        """
        await self._maintenance.prune(thread_ids, strategy=strategy)

    async def aprune_older_than(
        self,
        age: timedelta,
        *,
        keep_latest: bool = True,
        batch_size: int = 1000,
        dry_run: bool = False,
        on_batch: Callable[[PruneReport], object] | None = None,
    ) -> PruneReport:
        """Remove the checkpoints of all threads that are older than `age`, unless they are needed.

        Needed are the newest checkpoint of each namespace, and the ancestors that this one or a younger one
        needs: see `aprune`. Also removed are the writes of removed checkpoints, old writes without a
        checkpoint, and values that no checkpoint uses any more. The age of a checkpoint is in its id (a UUID
        of version 6, as LangGraph makes it), or else in its `ts`. If neither has a time, the checkpoint is
        never old.

        The work is done in batches, each in a short transaction: an error, a crash or a cancellation undoes
        only the current batch. Active runs are not disturbed, except a run that starts from an old
        checkpoint, which may be gone. Several calls at once share the work: each skips the threads that
        another one works on. While a master of a Redis Cluster is away, its threads are skipped, too.

        Args:
            age: Checkpoints that are older than this are old; greater than 0.
            keep_latest: `False`: a thread whose newest checkpoint is old is removed as a whole.
            batch_size: How many checkpoints one transaction removes, approximately; at least 1.
            dry_run: Only count. Nothing is locked or written.
            on_batch: Called after each batch with the sums so far. If it raises an error, the call ends.

        Returns:
            What was removed.

        Raises:
            ConfigurationError: `age` or `batch_size` is out of its range.
            L1UnavailableError: Redis did not confirm a batch, so this batch was not removed.
            L2DeadlineError: Other transactions kept the rows of a batch locked, or PostgreSQL cancelled a
                statement that took too long.
            L2UnavailableError: PostgreSQL did not respond. It may have removed the last batch.
        """
        return await self._maintenance.prune_older_than(
            age, keep_latest=keep_latest, batch_size=batch_size, dry_run=dry_run, on_batch=on_batch
        )

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

    # ---------------------------------------------------------------- for other tiers

    async def import_checkpoints(
        self, items: Sequence[StoredCheckpoint | PendingWrites], *, branch: Branch | None = None
    ) -> int:
        """Store items from another tier, byte for byte: checkpoints with their writes, or writes alone.

        Args:
            items: The items, all of one scope. Storing an item again changes nothing.
            branch: The branch that the items begin. If PostgreSQL has the thread, and the branch does not
                continue it, nothing is stored.

        Returns:
            The number of checkpoints that PostgreSQL did not have before.

        Raises:
            GlasspointError: The same errors as from `aput`. Either nothing was stored, or everything.
            ThreadInUseError: The branch does not continue the thread. Nothing was stored.
        """
        scope = items[0].scope
        with self._lifetime.call(), self._telemetry.operation("import_checkpoints", scope) as operation:
            write = await begin_write(self._parts, operation, scope, opens=True)
            new = await write.to_l2(lambda: self._l2.import_items(scope, items, write.ready, branch=branch))
            await write.to_l1(FenceResult(), Changes.give_up)
        return new

    async def holding_of(self, thread_id: str) -> Holding:
        """Return the names of the checkpoints, writes and values that PostgreSQL has of a thread.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        with self._lifetime.call():
            return await self._l2.holding_of(thread_id)

    async def check_takes_writes(self) -> None:
        """Check that PostgreSQL takes writes now.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached, or takes no writes.
        """
        with self._lifetime.call():
            if not await self._l2.ping():
                raise L2UnavailableError("PostgreSQL takes no writes here: connect to the primary.")

    async def relate(self, thread_id: str, branch: Branch) -> Relation:
        """Compare a branch of another tier with what PostgreSQL has of its thread and namespace.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        scope = Scope(thread_id, branch.namespace)
        with self._lifetime.call(), self._telemetry.operation("relate", scope):
            newest, has_tip = await self._l2.newest_and_whether(scope, tip=branch.tip)
            return relation_of(branch, newest, has_tip=has_tip)

    async def newest_held(self, thread_id: str, branch: Branch) -> str | None:
        """Return the newest checkpoint id of a branch that PostgreSQL has too, `None` if it has none.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        scope = Scope(thread_id, branch.namespace)
        with self._lifetime.call(), self._telemetry.operation("relate", scope):
            return await self._l2.newest_of(scope, branch.ids)

    async def has_checkpoint(self, scope: Scope, checkpoint_id: str) -> bool:
        """Tell whether PostgreSQL has a checkpoint.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        with self._lifetime.call(), self._telemetry.operation("relate", scope):
            return await self._ask_l2(lambda: self._l2.newest_of(scope, [checkpoint_id])) is not None

    async def has_thread(self, thread_id: str) -> bool:
        """Tell whether PostgreSQL has a history of a thread.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        scope = Scope(thread_id, "")
        with self._lifetime.call(), self._telemetry.operation("relate", scope):
            newest, _ = await self._ask_l2(lambda: self._l2.newest_and_whether(scope, tip=""))
            return newest is not None

    async def note_set_aside(self, set_aside: SetAside) -> None:
        """Record that a branch of another tier becomes a thread of its own. Repeating this changes nothing.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        with self._lifetime.call():
            await self._l2.note_set_aside(set_aside)

    async def set_aside_from(self, thread_id: str) -> list[SetAside]:
        """Return the branches of a thread that have become threads of their own, the newest first.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        with self._lifetime.call():
            return await self._l2.set_aside_from(thread_id)

    async def set_aside_since(self, age: timedelta) -> list[SetAside]:
        """Return the branches that have become threads of their own within the last `age`.

        Raises:
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        with self._lifetime.call():
            return await self._l2.set_aside_since(age)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the next version of a channel, which is greater than `current` and unique."""
        return self._parts.upstream.get_next_version(current, channel)

    # ---------------------------------------------------------------- helpers

    async def _get_tuple(
        self, operation: Operation, scope: Scope, checkpoint_id: str | None, config: RunnableConfig
    ) -> CheckpointTuple | None:
        # End this saver's own burst of the scope early: then this read can be a hit.
        reading = await self._bursts.read(scope, checkpoint_id)
        reading = reading or await self._l1.read(scope, checkpoint_id)
        if reading.image is not None:
            try:
                result = self._decode(operation, reading.image)
            except Exception as exc:
                # The serializer cannot read the bytes: L2 has the right ones, or raises the right error. The
                # text of this error may quote the value, so only its type is logged.
                _log.debug("an image was refused: its values cannot be read (%s)", type(exc).__name__)
                reading = await self._l1.refuse(scope, reading.image.checkpoint_id)
            else:
                operation.l1_result, operation.served_by = reading.result, "l1"
                self._parts.auditor.sample(scope, reading.fields)
                return result
        operation.l1_result = reading.result
        warms_up = reading.lease is not None and checkpoint_id is None
        stored = await self._ask_l2(lambda: self._l2.select(scope, checkpoint_id, warms_up=warms_up))
        operation.served_by = "l2"
        if stored is None:
            if reading.result == "miss":
                operation.l1_result = "absent"
            return None
        if stored.needs_parent:
            operation.checkpoint_id = stored.checkpoint_id
            operation.stored_traceparent = stored.metadata.get(traceparent.KEY)
            return await self._ask_l2(lambda: self._l2.get_tuple(scope, self.serde, config))
        if reading.lease is None or not warms_up or stored.is_fenced or not stored.cacheable:
            if warms_up and stored.is_fenced:
                self._telemetry.emit(WarmUpSkipped("fenced"))
            return self._decode(operation, stored)
        image = stored.detached()
        result = self._decode(operation, stored)
        await self._lifetime.follow_up(self._l1.warm_up(scope, reading.lease, image))
        return result

    async def _ask_l2(self, query: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Read one checkpoint from L2, and repeat that if it may help."""
        seconds = self._parts.read_deadline_seconds
        async with answered_within(seconds, f"PostgreSQL did not answer a read within {seconds} s."):
            return await self._retries.run("get_tuple", query)

    def _decode(self, operation: Operation, stored: StoredCheckpoint) -> CheckpointTuple:
        started = perf_counter()
        result = codec.decode_tuple(self.serde, stored)
        operation.decode_seconds = perf_counter() - started
        operation.bytes_read = stored.size
        operation.checkpoint_id = stored.checkpoint_id
        operation.step, operation.source = stored.metadata.get("step"), stored.metadata.get("source")
        operation.stored_traceparent = stored.metadata.get(traceparent.KEY)
        return result
