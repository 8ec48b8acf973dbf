"""HistorySaver: the nine capabilities of a checkpointer, on a history that stands in one place.

`RedisSaver` is this with a history in Redis (`in_redis`), `MemorySaver` with one in memory (`in_memory`).
`opened` opens and closes it, and `drain` moves its threads into another store.
"""

from __future__ import annotations

import json
import random
from contextlib import aclosing
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import WRITES_IDX_MAP, writes_sort_key
from langgraph.checkpoint.serde.types import TASKS

from glasspoint.errors import ConfigurationError, InvalidConfigError
from glasspoint.history import listing, pruning
from glasspoint.history.beginning import Beginning, remember, without_mark
from glasspoint.history.copying import copy_thread
from glasspoint.history.drain import DrainableSaver
from glasspoint.model import codec, traceparent
from glasspoint.model.codec import Encoded
from glasspoint.model.index_rows import check_put, check_writes
from glasspoint.model.scope import (
    Scope,
    checkpoint_id_of,
    list_of_ids,
    run_ids_of,
    scope_of,
    validate_thread_id,
)
from glasspoint.model.threads import choose_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from uuid import UUID

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )

    from glasspoint.history.beginning import CachedStates, Unknown
    from glasspoint.history.interface import Ancestor, Found
    from glasspoint.model.threads import ThreadSummary
    from glasspoint.telemetry.events import Operation

__all__ = ["HistorySaver"]


class HistorySaver(DrainableSaver):
    """Reads and writes a history. Every call is done completely or not at all."""

    # ---------------------------------------------------------------- reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint with its pending writes.

        Args:
            config: The thread, the namespace and, optionally, the checkpoint id. Without an id, the newest
                checkpoint is fetched.

        Returns:
            The checkpoint, or `None` if it does not exist.
        """
        scope, checkpoint_id = scope_of(config), checkpoint_id_of(config)
        with self._call("get_tuple", scope, config) as operation:
            found = await self._history.read(scope, checkpoint_id)
            if found is None and await self._begins(scope, checkpoint_id, _above(config)):
                found = await self._history.read(scope, checkpoint_id)
            if found is not None and self._beginning is not None:
                await self._beginning.meet(scope)
            if found is None:
                return None
            result = self._decode(operation, found)
            if result.pending_writes:
                self._telemetry.read_writes(scope, result.pending_writes)
            return result

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints, newest first.

        Args:
            config: The thread and, optionally, the namespace and the checkpoint id. `None` or `{}`: all
                threads.
            filter: Only checkpoints whose metadata contain this, as in PostgreSQL's `@>`.
            before: Only checkpoints that are older than the one in this config.
            limit: The maximum number of checkpoints.

        Raises:
            ConfigurationError: The filter is not JSON that PostgreSQL can store, or the limit is negative.
        """
        chosen = listing.choose(config, filter=filter, before=before, limit=limit)
        with self._call("list", chosen.scope) as operation:
            tuples = []
            if chosen.scope is not None and self._beginning is not None:
                thread_id = chosen.scope.thread_id
                if not await self._history.namespaces(thread_id):
                    await self._begins(Scope(thread_id, ""), None)
            async with aclosing(listing.find(self._history, chosen)) as items:
                async for found in items:
                    tuples.append(self._decode(operation, found))
        for each in tuples:
            yield each

    async def alist_threads(
        self,
        *,
        filter: dict[str, Any] | None = None,
        limit: int | None = None,
        before: RunnableConfig | None = None,
    ) -> AsyncIterator[ThreadSummary]:
        """List threads in the order of their newest checkpoints, newest first.

        In Redis, this takes two round trips for each thread.

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
        """
        choice = choose_threads(filter=filter, limit=limit, before=before)
        with self._call("list_threads", None):
            found = await listing.find_threads(self._history, choice)
        for each in found:
            yield each

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Read what a checkpoint's ancestors wrote to some channels.

        Args:
            config: The thread, the namespace and, optionally, the checkpoint id; by default the newest.
            channels: The names of the channels.

        Returns:
            For each channel: its writes, oldest first, and the value that they start from, if it exists.

        Raises:
            DeltaChainError: The ancestors form a cycle, and a channel has no value in it.
        """
        scope, checkpoint_id = scope_of(config), checkpoint_id_of(config)
        with self._call("delta_history", scope):
            nearest_first = [each async for each in self._history.ancestors(scope, checkpoint_id, channels)]
            return {channel: self._delta_history(channel, nearest_first) for channel in channels}

    # ---------------------------------------------------------------- writing

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.

        Args:
            config: The thread, the namespace and, as `checkpoint_id`, the id of the parent.
            checkpoint: The checkpoint to store.
            metadata: The metadata of the checkpoint.
            new_versions: The channels that have changed, with their new versions.

        Returns:
            The config of the new checkpoint.

        Raises:
            SerializationError: A value cannot be serialised. Nothing was stored.
        """
        scope, parent_id = scope_of(config), checkpoint_id_of(config)
        with self._call(
            "put", scope, config, checkpoint_id=checkpoint["id"], step=metadata.get("step")
        ) as operation:
            started = perf_counter()
            put = codec.encode_put(
                self.serde,
                config,
                parent_id,
                checkpoint,
                metadata,
                new_versions,
                traceparent=operation.traceparent,
            )
            operation.encode_seconds = perf_counter() - started
            operation.checkpoint_id = put.checkpoint_id
            operation.step, operation.source = put.step, put.source
            operation.bytes_written = put.size
            check_put(scope, put)
            if self._beginning is not None:
                await self._beginning.check_put(scope)
            remember(self._written, scope.thread_id)
            await self._history.put(scope, put)
        return {"configurable": {**scope._asdict(), "checkpoint_id": checkpoint["id"]}}

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
            SerializationError: A value cannot be serialised. Nothing was stored.
        """
        scope, checkpoint_id = scope_of(config), checkpoint_id_of(config)
        with self._call(
            "put_writes", scope, config, checkpoint_id=checkpoint_id, task_id=task_id, task_path=task_path
        ) as operation:
            started = perf_counter()
            replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
            encoded = codec.encode_writes(self.serde, writes, task_id, task_path, last_wins=replaces)
            operation.encode_seconds = perf_counter() - started
            operation.bytes_written = sum(len(write.value.data) for write in encoded)
            if checkpoint_id is None:
                raise InvalidConfigError("The config names no checkpoint_id: writes belong to a checkpoint.")
            if encoded:
                check_writes(scope, checkpoint_id, task_id)
                if self._beginning is not None:
                    await self._beginning.check_writes(scope, checkpoint_id, writes)
                interrupts = self._telemetry.storing_writes(scope, task_id, writes)
                await self._history.put_writes(scope, checkpoint_id, encoded, replaces=replaces)
                self._telemetry.stored(scope, task_id, interrupts)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints and writes of a thread, in all its namespaces.

        Args:
            thread_id: The id of the thread.
        """
        validate_thread_id(thread_id)
        with self._call("delete_thread", Scope(thread_id, "")):
            if self._beginning is not None:
                namespaces = {"", *await self._history.namespaces(thread_id)}
                await self._beginning.forget(thread_id, [Scope(thread_id, each) for each in namespaces])
            await self._history.delete_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str | UUID]) -> None:
        """Delete all checkpoints of some runs, with their writes.

        This looks at all threads, and takes at least one round trip for each.

        Args:
            run_ids: The ids of the runs, as strings or UUIDs: the `run_id` in the checkpoints' metadata.

        Raises:
            InvalidConfigError: An id cannot be stored.
            ConfigurationError: `run_ids` is a single id. (The error is a `TypeError`, too.)
            DeltaChainError: A checkpoint that stays has a delta channel that is rebuilt from one of these.
                Nothing was deleted. Or a thread with delta channels kept changing meanwhile; nothing of this
                thread was deleted.
        """
        wanted = run_ids_of(list_of_ids("run_ids", run_ids))
        with self._call("delete_for_runs", None):
            await pruning.delete_for_runs(self._history, wanted)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread's whole history, in all its namespaces.

        If the source does not exist, nothing is copied, and no error is raised. Readers of the target see
        nothing of the copy, or all of it.

        Args:
            source_thread_id: The id of the thread to copy. It may be written to meanwhile.
            target_thread_id: The id of the copy.

        Raises:
            ThreadExistsError: The target has data already. Nothing was copied.
        """
        validate_thread_id(source_thread_id)
        validate_thread_id(target_thread_id)
        if source_thread_id == target_thread_id:
            raise InvalidConfigError(
                f"A thread cannot be copied to itself ({source_thread_id!r}): name another target."
            )
        with self._call("copy_thread", Scope(source_thread_id, "")):
            if not await self._history.namespaces(source_thread_id):
                await self._begins(Scope(source_thread_id, ""), None)
            await copy_thread(self._history, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune some threads: keep what their newest checkpoints need, or delete them.

        Args:
            thread_ids: The ids of the threads.
            strategy: `"keep_latest"` keeps the newest checkpoint of each namespace, and the ancestors that it
                needs, for example to rebuild its delta channels. The namespace of a subgraph call is removed
                together with the root checkpoint that the call started from. `"delete"` keeps nothing.

        Raises:
            ConfigurationError: The strategy is unknown.
            DeltaChainError: A thread with delta channels kept changing meanwhile. Nothing of this thread was
                deleted.
        """
        wanted = [validate_thread_id(each) for each in list_of_ids("thread_ids", thread_ids)]
        prune = pruning.STRATEGIES.get(strategy)
        if prune is None:
            names = ", ".join(map(repr, pruning.STRATEGIES))
            raise ConfigurationError(f"There is no pruning strategy {strategy!r}: choose one of {names}.")
        with self._call("prune", None):
            for thread_id in wanted:
                await prune(self._history, thread_id)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the next version of a channel, which is greater than `current` and unique."""
        number = int(str(current or 0).split(".")[0])  # older savers counted with integers
        return f"{number + 1:032}.{random.random():016}"

    # ---------------------------------------------------------------- as a tier

    def begin_from(self, states: CachedStates | None, *, unknown: Unknown) -> None:
        """Work as a lower tier of a fallback chain, in which threads go on from their cached states.

        Args:
            states: Finds the cached state of a thread; closed with this saver. `None`: the cache cannot be
                used.
            unknown: What happens to a thread without a cached state. `"begin"`: it begins anew. `"refuse"`:
                reading it raises `ThreadUnknownError`.
        """
        self._beginning = Beginning(self._history, states, unknown=unknown)
        if states is not None:
            self._lifetime.ends.append(states.close)

    @property
    def threads_written(self) -> frozenset[str]:
        """The threads to which this saver has put a checkpoint."""
        return frozenset(self._written)

    @property
    def begun_anew(self) -> frozenset[str]:
        """The threads that began here with nothing: see `Beginning.anew`."""
        return frozenset() if self._beginning is None else self._beginning.anew

    # ---------------------------------------------------------------- helpers

    async def _begins(
        self, scope: Scope, checkpoint_id: str | None, above: Mapping[str, str] = MappingProxyType({})
    ) -> bool:
        """Bring the cached state of a scope that has nothing here, and return whether one was found."""
        if self._beginning is None:
            return False
        if checkpoint_id is not None and await self._history.read(scope, None) is not None:
            return False
        return await self._beginning.read(scope, above)

    def _decode(self, operation: Operation, found: Found) -> CheckpointTuple:
        stored = without_mark(found.stored)
        started = perf_counter()
        if found.sends:
            self._complete(found)
        result = codec.decode_tuple(self.serde, stored)
        operation.decode_seconds = (operation.decode_seconds or 0.0) + perf_counter() - started
        operation.bytes_read = (operation.bytes_read or 0) + stored.size
        if operation.name == "get_tuple":
            operation.checkpoint_id = stored.checkpoint_id
            operation.step, operation.source = stored.metadata.get("step"), stored.metadata.get("source")
            operation.stored_traceparent = stored.metadata.get(traceparent.KEY)
        return result

    def _complete(self, found: Found) -> None:
        """Complete a checkpoint of an old format with its parent's TASKS writes, as upstream does."""
        found.sends.sort(key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx))
        sends = [self.serde.loads_typed(write.value) for write in found.sends]
        versions = found.stored.document["channel_versions"]
        version = max(versions.values()) if versions else self.get_next_version(None, None)
        found.stored.values[TASKS] = (version, Encoded(*self.serde.dumps_typed(sends)))
        versions[TASKS] = version

    def _delta_history(self, channel: str, nearest_first: Sequence[Ancestor]) -> DeltaChannelHistory:
        writes: list[codec.EncodedWrite] = []
        history: DeltaChannelHistory = {"writes": []}
        for ancestor in nearest_first:
            own = [write for write in ancestor.writes if write.channel == channel]
            own.sort(key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx), reverse=True)
            writes += own
            if channel in ancestor.values:
                kind, raw = ancestor.values[channel]
                if kind == "b":
                    type_, data = raw.split(b"\0", 1)
                    history["seed"] = self.serde.loads_typed((type_.decode(), data))
                elif kind == "i":
                    history["seed"] = json.loads(raw)["channel_values"][channel]
                break
        history["writes"] = [(w.task_id, channel, self.serde.loads_typed(w.value)) for w in reversed(writes)]
        return history


def _above(config: RunnableConfig) -> Mapping[str, str]:
    """Return the checkpoints of the graphs around a subgraph, by namespace, from the config of its run."""
    return config["configurable"].get("checkpoint_map") or {}
