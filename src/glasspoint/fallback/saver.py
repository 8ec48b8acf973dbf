"""FallbackSaver: a checkpointer that goes on working in a lower tier when a server is lost, and logs that.

Every call goes to the tier that works now. `controller` changes the tier, and `draining` moves what was
written meanwhile into PostgreSQL. `docs/fallback.md` says what each tier promises.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self, cast

from langgraph.checkpoint.serde.types import RESUME

from glasspoint.errors import L2UnavailableError
from glasspoint.fallback.branches import Placement
from glasspoint.model.codec import versions_of
from glasspoint.model.home import EndOfLoop, Home
from glasspoint.model.sync_methods import Done, SyncFace
from glasspoint.savers.cached import CachedPostgresSaver

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

    from glasspoint.fallback.branches import TierSaver
    from glasspoint.fallback.controller import Chain
    from glasspoint.model.generics import ResultT
    from glasspoint.model.threads import ThreadSummary
    from glasspoint.savers.maintenance import PruneReport

__all__ = ["FallbackSaver"]


class FallbackSaver(SyncFace):
    """The saver of a fallback chain, made by `get_checkpointer`.

    Its methods are those of `CachedPostgresSaver`, and do the same in every tier. But a lower tier has less
    to read: what was written there, and in `redis` the states of threads that Redis had cached.
    """

    def __init__(self, chain: Chain) -> None:
        """Take the chain of tiers.

        Args:
            chain: The open chain.
        """
        super().__init__(serde=chain.saver.serde)
        self.home = Home(self)
        self._chain = chain
        self._end_of_loop = EndOfLoop(type(self).__name__, self)

    @classmethod
    async def open(cls, chain: Chain) -> Self:
        """Open a chain's best tier, and the saver on it."""
        await chain.open()
        return cls(chain)

    @property
    def tier(self) -> str:
        """The tier that works now: `cached`, `redis` or `memory`."""
        return self._of_this_process()._chain.tier

    def close(self) -> Awaitable[None]:
        """Wait for the calls under way, and close the connections to all servers. May be called twice.

        On the saver's event loop, await the result. Everywhere else, the saver is closed when this returns.
        """
        return self._close_on_either_face(self._close, done=not self._chain.is_open)

    async def _close(self) -> None:
        self._end_of_loop.dismiss()
        await self._chain.close()

    def setup(self) -> Awaitable[None]:
        """Do nothing. The tables are created when PostgreSQL is first reached.

        This exists for code that is written for other savers. The result may be awaited, but need not be.

        Raises:
            SaverClosedError: The saver was closed.
        """
        _ = self._of_this_process()._chain.saver  # not after `close`
        return Done()

    # ---------------------------------------------------------------- reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint with its pending writes: see `CachedPostgresSaver.aget_tuple`."""
        is_below = not self._chain.works_in_best
        found = await self._run(config, lambda saver, placed: saver.aget_tuple(placed))
        configurable = config["configurable"]
        if is_below and not configurable.get("checkpoint_id") and not configurable.get("checkpoint_ns"):
            self._chain.branches.read_below(
                configurable["thread_id"], None if found is None else found.checkpoint["id"]
            )
        return found

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints, newest first: see `CachedPostgresSaver.alist`."""

        async def collect(saver: TierSaver, placed: RunnableConfig | None) -> list[CheckpointTuple]:
            return [each async for each in saver.alist(placed, filter=filter, before=before, limit=limit)]

        if not config:
            found = await self._run_on_several(lambda saver: collect(saver, None))
        else:
            found = await self._run(config, collect)
        for each in found:
            yield each

    async def alist_threads(
        self,
        *,
        filter: dict[str, Any] | None = None,
        limit: int | None = None,
        before: RunnableConfig | None = None,
    ) -> AsyncIterator[ThreadSummary]:
        """List threads, the one written last first: see `CachedPostgresSaver.alist_threads`.

        A lower tier has only the threads that were written or read in that tier.
        """

        async def collect(saver: TierSaver) -> list[ThreadSummary]:
            return [each async for each in saver.alist_threads(filter=filter, limit=limit, before=before)]

        for each in await self._run_on_several(collect):
            yield each

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Read the writes of ancestors: see `CachedPostgresSaver.aget_delta_channel_history`."""
        return await self._run(
            config, lambda saver, placed: saver.aget_delta_channel_history(config=placed, channels=channels)
        )

    # ---------------------------------------------------------------- writing

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint: see `CachedPostgresSaver.aput`."""

        def put(saver: TierSaver, placed: RunnableConfig) -> Awaitable[RunnableConfig]:
            mark = self._chain.branches.mark(config, placed)
            marked = cast("CheckpointMetadata", {**metadata, **mark}) if mark else metadata
            if self._chain.whole:
                return saver.aput(placed, checkpoint, marked, new_versions)
            # The unchanged values may stand in another tier, in which the run began. Store them here, too.
            values = checkpoint["channel_values"]
            all_versions = {c: v for c, v in versions_of(checkpoint).items() if c in values} | new_versions
            return saver.aput(placed, checkpoint, marked, all_versions)

        stored = await self._run(config, put, puts=checkpoint["id"])
        # A run under way knows its thread by this id, even if its branch has another one.
        stored["configurable"]["thread_id"] = config["configurable"]["thread_id"]
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote: see `CachedPostgresSaver.aput_writes`."""
        await self._run(
            config,
            lambda saver, placed: saver.aput_writes(placed, writes, task_id, task_path),
            resumes=any(channel == RESUME for channel, _ in writes),
        )

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the next version of a channel, which is greater than `current` and unique."""
        return self._chain.saver.get_next_version(current, channel)

    # ---------------------------------------------------------------- deleting, copying

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete a thread, in the tier that works and in lower tiers that may have it.

        See `CachedPostgresSaver.adelete_thread`. In a lower tier, PostgreSQL's copy of the thread stays.
        """
        self.home.check()
        await self._chain.delete_thread(thread_id, lambda saver: saver.adelete_thread(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str | UUID]) -> None:
        """Delete what these runs stored: see `CachedPostgresSaver.adelete_for_runs`."""
        await self._run_on_several(lambda saver: saver.adelete_for_runs(run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread: see `CachedPostgresSaver.acopy_thread`."""
        await self._run_on_several(lambda saver: saver.acopy_thread(source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune threads: see `CachedPostgresSaver.aprune`."""
        await self._run_on_several(lambda saver: saver.aprune(thread_ids, strategy=strategy))

    async def aprune_older_than(
        self,
        age: timedelta,
        *,
        keep_latest: bool = True,
        batch_size: int = 1000,
        dry_run: bool = False,
        on_batch: Callable[[PruneReport], object] | None = None,
    ) -> PruneReport:
        """Remove old checkpoints from PostgreSQL: see `CachedPostgresSaver.aprune_older_than`.

        Raises:
            L2UnavailableError: The saver works in a lower tier, without PostgreSQL.
        """
        self.home.check()
        saver = self._chain.saver  # not `_run`: pruning may take hours, and must not delay a switch of tiers
        if not isinstance(saver, CachedPostgresSaver):
            raise L2UnavailableError(
                f"The saver works in the tier {self.tier!r}, without PostgreSQL: prune when it is promoted."
            )
        return await saver.aprune_older_than(
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
        """Remove old checkpoints from PostgreSQL: see `aprune_older_than`."""
        return self._wait_for(
            "aprune_older_than",
            lambda saver: saver.aprune_older_than(
                age, keep_latest=keep_latest, batch_size=batch_size, dry_run=dry_run, on_batch=on_batch
            ),
        )

    # ---------------------------------------------------------------- helpers

    async def _run(
        self,
        config: RunnableConfig,
        call: Callable[[TierSaver, RunnableConfig], Awaitable[ResultT]],
        *,
        puts: str | None = None,
        resumes: bool = False,
    ) -> ResultT:
        """Make a call that concerns one thread, in the tier that the thread is in."""
        self.home.check()

        placement = Placement(config, puts, resumes)

        async def placed_call(saver: TierSaver) -> ResultT:
            placed = await self._chain.branches.place(saver, placement)
            return await call(self._with_own_serde(saver), placed)

        thread_id = placement.thread_id
        with self._chain.branches.putting(placement):
            return await self._chain.run(placed_call, thread_id="" if thread_id is None else thread_id)

    async def _run_on_several(self, call: Callable[[TierSaver], Awaitable[ResultT]]) -> ResultT:
        self.home.check()
        return await self._chain.run(lambda saver: call(self._with_own_serde(saver)))

    def _with_own_serde(self, saver: TierSaver) -> TierSaver:
        """Return the tier's saver with this saver's serde: a clone of `with_allowlist` has another one."""
        if saver.serde is self.serde:
            return saver
        clone = copy.copy(saver)
        clone.serde = self.serde
        return clone
