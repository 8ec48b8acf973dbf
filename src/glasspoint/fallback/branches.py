"""Sends the calls of a run to its branch, if the branch was set aside while the run was under way.

A run that began in a lower tier uses the id of its thread. But above, the checkpoints of the run may have
been stored under another id (see `draining`), because the thread has another history there. So the calls of
this run are sent to the branch. The checkpoint that a call starts from tells which run it belongs to.

In two cases, no branch exists yet: the run began in a lower tier with nothing, and puts its first checkpoint
after the tier was switched; or its checkpoints stand in a lower tier that was lost before it was drained. If
the tier above has a history of the thread, the first put of the run makes the branch.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from glasspoint.logs import get_logger
from glasspoint.model.lineage import UNKNOWN_TIME, SetAside, mark_of, set_aside_at
from glasspoint.savers.cached import CachedPostgresSaver
from glasspoint.telemetry.events import ThreadDrained

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from langchain_core.runnables import RunnableConfig

    from glasspoint.savers.memory_saver import MemorySaver
    from glasspoint.savers.redis_saver import RedisSaver
    from glasspoint.telemetry.events import Telemetry

    TierSaver: TypeAlias = CachedPostgresSaver | RedisSaver | MemorySaver

__all__ = ["UNDER_WAY", "Branches"]

_log = get_logger("glasspoint")

UNDER_WAY = timedelta(hours=1)
"""How long a run may be under way and is still sent to its branch."""

# LangGraph may store the writes of a checkpoint's tasks before the checkpoint itself. Until the checkpoint is
# there, nobody knows which run they belong to. So a call waits for it, at most so long.
_PUT_SECONDS = 5.0
_STEP_SECONDS = 0.01


@dataclass
class _Known:
    """A branch, and the checkpoints that are known to belong to it, or not to."""

    set_aside: SetAside
    until: float
    ids: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)  # checkpoints that do not belong to it


class Branches:
    """The branches of one chain that were set aside within the last hour (`UNDER_WAY`)."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Begin without any branch.

        Args:
            telemetry: Receives an event for each branch that is made here.
        """
        self._telemetry = telemetry
        self._of: dict[str, list[_Known]] = defaultdict(list)
        self._anew: dict[str, float] = {}

    def add(self, set_aside: SetAside, ids: Iterable[str] = ()) -> None:
        """Remember a branch that was set aside, and some of its checkpoints."""
        self._expire()
        for known in self._of[set_aside.original]:
            if known.set_aside.thread_id == set_aside.thread_id:
                known.ids.update(ids)
                return
        self._of[set_aside.original].append(_Known(set_aside, _until(), set(ids)))

    def begun_anew(self, thread_ids: Iterable[str]) -> None:
        """Remember threads in which runs may have begun with nothing in a lower tier."""
        self._anew.update(dict.fromkeys(thread_ids, _until()))

    async def place(
        self, saver: TierSaver, config: RunnableConfig, *, puts: str | None = None
    ) -> RunnableConfig:
        """Return a call's config with the thread that the call belongs to: its own, or a branch.

        Args:
            saver: The saver of the tier that works.
            config: The config of the call.
            puts: If the call is a put: the id of its checkpoint.
        """
        thread_id = config.get("configurable", {}).get("thread_id")
        if thread_id not in self._of and thread_id not in self._anew:
            return config
        start = _start_of(config)
        if start is None:
            known = await self._first(saver, config, thread_id, puts) if puts is not None else None
        else:
            known = await self._branch_with(saver, config, thread_id, start, is_put=puts is not None)
            if known is None and puts is not None and not await self._comes(saver, config, thread_id, start):
                known = await self._first(saver, config, thread_id, puts)
        if known is None:
            if puts is not None:
                for each in self._of.get(thread_id, ()):
                    each.foreign.add(puts)
            return config
        if puts is not None:
            known.ids.add(puts)
        return _with_thread(config, known.set_aside.thread_id)

    def mark(self, config: RunnableConfig, placed: RunnableConfig) -> dict[str, Any]:
        """Return the metadata that mark a checkpoint of a branch. For the thread itself: none."""
        if placed is config:
            return {}
        thread_id, branch_id = (each["configurable"]["thread_id"] for each in (config, placed))
        for known in self._of.get(thread_id, ()):
            if known.set_aside.thread_id == branch_id and known.set_aside.began_at != UNKNOWN_TIME:
                return mark_of(known.set_aside)
        return {}

    # ---------------------------------------------------------------- helpers

    async def _comes(self, saver: TierSaver, config: RunnableConfig, thread_id: str, start: str) -> bool:
        """Return whether the thread has the checkpoint that a put starts from.

        A graph puts its checkpoints one after the other. But the first put of a subgraph may overtake the put
        of the checkpoint that its run stands at, so it waits for that one.
        """
        is_of_subgraph = bool(config.get("configurable", {}).get("checkpoint_ns"))
        give_up_at = monotonic() + (_PUT_SECONDS if is_of_subgraph else 0.0)
        while not await _holds(saver, thread_id, start):
            if monotonic() >= give_up_at or thread_id not in self._anew:
                return False
            await asyncio.sleep(_STEP_SECONDS)
        return True

    async def _first(
        self, saver: TierSaver, config: RunnableConfig, thread_id: str, puts: str
    ) -> _Known | None:
        """Make the branch at the first put of a run that began in a lower tier.

        Returns:
            The branch. `None`: the run needs none.
        """
        if self._anew.get(thread_id, 0.0) < monotonic():
            return None
        # If one of these calls fails, the put is repeated, and is still a first one.
        newest = await saver.aget_tuple(cast("Any", {"configurable": {"thread_id": thread_id}}))
        if newest is None:
            if isinstance(saver, CachedPostgresSaver):  # only PostgreSQL knows that no history exists
                self._anew.pop(thread_id, None)
            return None
        set_aside = set_aside_at(thread_id, puts)
        await saver.note_set_aside(set_aside)
        self._anew.pop(thread_id, None)
        self.add(set_aside)
        self._telemetry.emit(ThreadDrained("set_aside"))
        _log.warning(
            "A run in thread %r began in a lower tier, and this tier has another history of the thread. "
            "The run writes to the thread %r.",
            thread_id,
            set_aside.thread_id,
        )
        return self._of[thread_id][-1]

    async def _branch_with(
        self, saver: TierSaver, config: RunnableConfig, thread_id: str, start: str, *, is_put: bool
    ) -> _Known | None:
        self._expire()
        known = list(self._of.get(thread_id, ()))
        give_up_at = monotonic() + _PUT_SECONDS
        while known:
            for each in known:
                if start in each.ids:
                    return each
            if all(start in each.foreign for each in known):
                return None
            # Look in the thread itself first: a branch also holds the checkpoint that it goes on from.
            is_own = await _holds(saver, thread_id, start)
            for each in known:
                if not is_own and await _holds(saver, each.set_aside.thread_id, start):
                    each.ids.add(start)
                    return each
            if is_own or is_put or monotonic() > give_up_at:
                for each in known:
                    each.foreign.add(start)
                return None
            await asyncio.sleep(_STEP_SECONDS)  # the checkpoint is not stored yet
        return None

    def _expire(self) -> None:
        now = monotonic()
        for thread_id in list(self._of):
            self._of[thread_id] = [each for each in self._of[thread_id] if each.until > now]
            if not self._of[thread_id]:
                del self._of[thread_id]
        for thread_id in [each for each, until in self._anew.items() if until < now]:
            del self._anew[thread_id]


def _until() -> float:
    return monotonic() + UNDER_WAY.total_seconds()


def _start_of(config: RunnableConfig) -> str | None:
    """Return the root graph's checkpoint that a call starts from. A call of a subgraph has it in a map."""
    configurable = config.get("configurable", {})
    above = configurable.get("checkpoint_map") or {}
    start = above.get("") or configurable.get("checkpoint_id")
    return start if isinstance(start, str) else None


def _with_thread(config: RunnableConfig, thread_id: str) -> RunnableConfig:
    return {**config, "configurable": {**config["configurable"], "thread_id": thread_id}}


async def _holds(saver: TierSaver, thread_id: str, checkpoint_id: str) -> bool:
    configurable = {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}
    return await saver.aget_tuple(cast("Any", {"configurable": configurable})) is not None
