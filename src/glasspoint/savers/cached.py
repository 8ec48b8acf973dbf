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
Bursts are explained in `bursts`, opening and closing in `opening`, deleting, pruning and copying in
`maintenance`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import WRITES_IDX_MAP

from glasspoint.errors import InvalidConfigError, L1UnavailableError, L2DeadlineError, L2UnavailableError
from glasspoint.l1.entry import Changes
from glasspoint.l2.deadline import answered_within, within
from glasspoint.l2.faults import certainly_unchanged, classify, may_still_run
from glasspoint.l2.writing import Announced, FenceAnswer
from glasspoint.logs import get_logger
from glasspoint.model import codec, traceparent
from glasspoint.model.index_rows import check_put, check_writes
from glasspoint.model.lineage import relation_of
from glasspoint.model.listing_options import check_limit, plain_filter
from glasspoint.model.scope import Scope, checkpoint_id_of, listed_scope_of, scope_of
from glasspoint.model.threads import choose_threads
from glasspoint.savers.forks import kind_of
from glasspoint.savers.maintenance import MaintainedSaver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )

    from glasspoint.l1.cache import Intent
    from glasspoint.l2.contents import Holding
    from glasspoint.model.codec import EncodedPut, PendingWrites, StoredCheckpoint
    from glasspoint.model.generics import ResultT
    from glasspoint.model.lineage import Branch, Relation, SetAside
    from glasspoint.model.threads import ThreadSummary
    from glasspoint.savers.bursts import Burst
    from glasspoint.telemetry.events import Operation, WriteResult

__all__ = ["CachedPostgresSaver"]

_log = get_logger("glasspoint")


class CachedPostgresSaver(MaintainedSaver):
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
        with self._lifetime.call(), self._telemetry.operation("get_tuple", scope) as operation:
            found = await self._get_tuple(operation, scope, checkpoint_id, config)
            if checkpoint_id is None:
                self._forks.read_newest(scope, found)
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
            operation.served_by = "l2"
            if traceparent.is_asked_for(filter):
                return
            tuples = await self._retries.run(
                "list",
                lambda: self._l2.list(scope, self.serde, config, filter=filter, before=before, limit=limit),
            )
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
            operation.served_by = "l2"
            if choice.nothing:
                return
            found = await self._retries.run("list_threads", lambda: self._l2.list_threads(choice))
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
            operation.served_by = "l2"
            return await self._retries.run(
                "delta_history", lambda: self._l2.delta_history(scope, self.serde, config, channels)
            )

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
        with self._lifetime.call(), self._telemetry.operation("put", scope) as operation:
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
            write = await self._begin_write(operation, scope)
            answer = await write.to_l2(lambda: self._l2.put(scope, write.judged(put), write.ready))
            if fork is None and answer.forked_by is not None:
                fork = kind_of(put, answer.forked_by)
            if fork is not None:
                self._forks.tell(fork, scope, put, answer.forked_by)
            is_refused = answer.forked_by is not None and self._forks.refuses

            def follow(changes: Changes) -> None:
                if is_refused:
                    changes.give_up()
                else:
                    changes.put(put, is_as_sent=answer.followable, known_writes=answer.known_writes)

            await write.to_l1(answer.fence, follow)
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
        with self._lifetime.call(), self._telemetry.operation("put_writes", scope) as operation:
            started = perf_counter()
            upsert = all(channel in WRITES_IDX_MAP for channel, _ in writes)
            encoded = codec.encode_writes(self.serde, writes, task_id, task_path, last_wins=upsert)
            operation.encode_seconds = perf_counter() - started
            operation.checkpoint_id = checkpoint_id
            operation.bytes_written = sum(len(w.value.data) for w in encoded)
            if checkpoint_id is None:
                raise InvalidConfigError("The config names no checkpoint_id: writes belong to a checkpoint.")
            if not encoded:
                return
            check_writes(scope, checkpoint_id, task_id)
            write = await self._begin_write(operation, scope)
            answer = await write.to_l2(
                lambda: self._l2.put_writes(scope, checkpoint_id, encoded, write.ready, upsert=upsert)
            )

            def follow(changes: Changes) -> None:
                changes.put_writes(checkpoint_id, answer.stored, answer.ignored)
                if answer.overwrote and write.is_among_others:
                    changes.give_up()  # the write that it has replaced may be added to the burst after it

            await write.to_l1(answer.fence, follow)

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
            write = await self._begin_write(operation, scope, opens=True)
            new = await write.to_l2(lambda: self._l2.import_items(scope, items, write.ready, branch=branch))
            await write.to_l1(FenceAnswer(), Changes.give_up)
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
        return self._upstream.get_next_version(current, channel)

    # ---------------------------------------------------------------- helpers

    async def _get_tuple(
        self, operation: Operation, scope: Scope, checkpoint_id: str | None, config: RunnableConfig
    ) -> CheckpointTuple | None:
        # End this saver's own burst of the scope early: then this read can be a hit.
        reading = await self._bursts.read(scope, checkpoint_id)
        reading = reading or await self._l1.read(scope, checkpoint_id)
        if reading.image is not None:
            try:
                answer = self._decode(operation, reading.image)
            except Exception as exc:
                # The serializer cannot read the bytes: L2 has the right ones, or raises the right error. The
                # text of this error may quote the value, so only its type is logged.
                _log.debug("an image was refused: its values cannot be read (%s)", type(exc).__name__)
                reading = await self._l1.refuse(scope, reading.image.checkpoint_id)
            else:
                operation.l1_result, operation.served_by = reading.result, "l1"
                self._auditor.sample(scope, reading.fields)
                return answer
        operation.l1_result, operation.served_by = reading.result, "l2"
        warms_up = reading.lease is not None and checkpoint_id is None
        stored = await self._ask_l2(lambda: self._l2.select(scope, checkpoint_id, warms_up=warms_up))
        if stored is None:
            return None
        if stored.needs_parent:
            operation.checkpoint_id = stored.checkpoint_id
            operation.stored_traceparent = stored.metadata.get(traceparent.KEY)
            return await self._ask_l2(lambda: self._l2.get_tuple(scope, self.serde, config))
        if reading.lease is None or not warms_up or stored.is_fenced or not stored.cacheable:
            return self._decode(operation, stored)
        image = stored.detached()
        answer = self._decode(operation, stored)
        await self._lifetime.follow_up(self._l1.warm_up(scope, reading.lease, image))
        return answer

    async def _begin_write(self, operation: Operation, scope: Scope, *, opens: bool = False) -> _WriteThrough:
        if scope.is_cached:
            await self._ready_l1()
        return _WriteThrough(self, operation, scope, opens=opens)

    async def _ask_l2(self, query: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Read one checkpoint from L2, and repeat that if it may help."""
        seconds = self._read_deadline
        async with answered_within(seconds, f"PostgreSQL did not answer a read within {seconds} s."):
            return await self._retries.run("get_tuple", query)

    def _decode(self, operation: Operation, stored: StoredCheckpoint) -> CheckpointTuple:
        started = perf_counter()
        answer = codec.decode_tuple(self.serde, stored)
        operation.decode_seconds = perf_counter() - started
        operation.bytes_read = stored.size
        operation.checkpoint_id = stored.checkpoint_id
        operation.step, operation.source = stored.metadata.get("step"), stored.metadata.get("source")
        operation.stored_traceparent = stored.metadata.get(traceparent.KEY)
        return answer


class _WriteThrough:
    """One write to both levels, as a part of a burst.

    The constructor sends BEGIN of a new burst. So BEGIN and the wait for a connection to PostgreSQL overlap.
    BEGIN is awaited before the first statement.

    The write to L2 may take several attempts. An attempt is in doubt if nobody knows whether it changed L2.
    Then the result of the next attempt does not say how this write is ordered among others, so L1 cannot
    follow, and forgets the entry.

    A scope that is not cached has no entry: neither Redis nor the journal receives anything.
    """

    def __init__(
        self, saver: CachedPostgresSaver, operation: Operation, scope: Scope, *, opens: bool = False
    ) -> None:
        self._l1 = saver._l1
        self._lifetime = saver._lifetime
        self._journal = saver._l2.journal
        self._retries = saver._retries
        self._deadline = saver._write_deadline
        self._must_tell_l1 = saver._must_tell_l1
        self._scope = scope
        self._operation = operation
        self._identity = saver._identity
        self._bursts = saver._bursts
        self._burst = saver._bursts.join(scope) if scope.is_cached else None
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
                answer = await self._retries.run(self._operation.name, statement, failed=self._attempt_failed)
        except BaseException as exc:
            self._failed(exc)
            if self._burst is not None:
                await self._lifetime.settle(self._abandon(self._burst))
            if isinstance(exc, TimeoutError) and not isinstance(exc, L2DeadlineError):
                outcome = "whether it has it is not known" if self._in_doubt else "it does not have it"
                before = f" (before, {self._last_fault})" if self._last_fault else ""
                raise L2DeadlineError(
                    f"PostgreSQL did not finish a write within {self._deadline} s{before}; {outcome}. The "
                    "write may be repeated: it stores the same again."
                ) from exc
            raise
        assert self._sent_at is not None
        self._operation.l2_seconds = perf_counter() - self._sent_at
        return answer

    async def to_l1(self, fence: FenceAnswer, change: Callable[[Changes], None]) -> None:
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

    async def _tell(self, burst: Burst, fence: FenceAnswer, change: Callable[[Changes], None]) -> None:
        intent, started = burst.begun.result(), perf_counter()
        try:
            if self._in_doubt or self._is_journalled:
                # If Redis responds again, no reader has to wait until the sweep finds the journal's row.
                result = await self._forget(burst, intent)
            elif burst.is_lost and not intent.name:
                result = "skipped"
            else:
                result = await self._confirm(burst, intent, fence, change)
            self._operation.l1_seconds = perf_counter() - started
            self._operation.l1_write = "skipped" if result == "error" and self._l1.is_absent else result
            if self._operation.l1_write == "error":
                burst.is_lost = True
                await self._fall_behind()
        finally:
            self._bursts.leave(burst)

    async def _confirm(
        self, burst: Burst, intent: Intent, fence: FenceAnswer, change: Callable[[Changes], None]
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
        self._l1.doubt(self._scope)
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


def _add(burst: Burst, fence: FenceAnswer, change: Callable[[Changes], None]) -> None:
    burst.is_contested = burst.is_contested or fence.is_contested
    change(burst.changes)
