"""Sends the calls of a run to its branch, if the branch was set aside while the run was under way.

A run that began in a lower tier uses the id of its thread. But above, the checkpoints of the run may have
been stored under another id (see `draining`), because the thread has another history there. So the calls of
this run are sent to the branch. The checkpoint that a call starts from tells which run it belongs to.

In two cases, no branch exists yet: the run began in a lower tier with nothing, and puts its first checkpoint
after the tier was switched; or its checkpoints stand in a lower tier that was lost before it was drained. If
the tier above has a history of the thread, the first put of the run makes the branch.

A call may come before the checkpoint that it starts from, because LangGraph does not wait for a put. Nobody
waits for that checkpoint here: a call that waits must not keep others from passing, for example the put that
it waits for, while the tier is switched. So `place` raises `NotStoredYetError`, and the chain calls it again.
With `durability="exit"`, that checkpoint never comes. Then what the run has read at its beginning tells where
its subgraphs belong.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from glasspoint.errors import ThreadMovedError
from glasspoint.history.interface import Position
from glasspoint.logs import get_logger
from glasspoint.model.lineage import UNKNOWN_TIME, SetAside, mark_of, set_aside_at
from glasspoint.model.scope import Scope, time_of_id
from glasspoint.savers.cached import CachedPostgresSaver
from glasspoint.telemetry.events import ThreadDrained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from langchain_core.runnables import RunnableConfig

    from glasspoint.savers.memory_saver import MemorySaver
    from glasspoint.savers.redis_saver import RedisSaver
    from glasspoint.telemetry.events import Telemetry

    TierSaver: TypeAlias = CachedPostgresSaver | RedisSaver | MemorySaver

__all__ = ["UNDER_WAY", "Branches", "NotStoredYetError", "Placement"]

_log = get_logger("glasspoint")

UNDER_WAY = timedelta(hours=1)
"""How long a run may be under way and is still sent to its branch."""

# How often what has expired is removed: that takes a look at all threads that began below.
_EXPIRE_SECONDS = 60.0

# How many times a call looks for its checkpoint although no put of the thread is under way in this process.
# Between two looks, the event loop runs whatever can run: a put that LangGraph has handed over begins.
_LOOKS = 20

# How many of a thread's own checkpoints are known without a look into the tier: those of the runs under way.
_OWN_AT_MOST = 16

# How many reads of a thread are known, and of how many threads.
_READS_AT_MOST = 16
_READ_THREADS_AT_MOST = 10_000


class NotStoredYetError(Exception):
    """The checkpoint that a call starts from is not stored yet: call `place` again in a moment."""


@dataclass
class Placement:
    """A call that has to be placed.

    Attributes:
        config: The config of the call.
        puts: If the call is a put: the id of its checkpoint.
        resumes: Whether the call stores the answer to an interrupt. The run has read the thread itself, and
            it may be refused. Its first put waits for that, so this call waits for no put.
        looks: How many times the call has looked for its checkpoint while nothing was put.
    """

    config: RunnableConfig
    puts: str | None = None
    resumes: bool = False
    looks: int = 0

    @property
    def thread_id(self) -> Any:
        """The thread that the caller names."""
        return self.config.get("configurable", {}).get("thread_id")

    @property
    def starts(self) -> list[Position]:
        """The checkpoints that the call starts from: of the root graph first, then of its subgraph."""
        configurable = self.config.get("configurable", {})
        namespace, checkpoint_id = configurable.get("checkpoint_ns") or "", configurable.get("checkpoint_id")
        named = [("", (configurable.get("checkpoint_map") or {}).get("")), (namespace, checkpoint_id)]
        found = {
            each: Position(Scope(self.thread_id, each), id_) for each, id_ in named if isinstance(id_, str)
        }
        return list(found.values())

    @property
    def is_of_subgraph(self) -> bool:
        """Whether a subgraph makes the call."""
        return bool(self.config.get("configurable", {}).get("checkpoint_ns"))


@dataclass
class _Known:
    """A branch, and the checkpoints that are known to belong to it, or not to.

    Attributes:
        foreign: The checkpoints that do not belong to it, each with the tier in which that is so.
        awaits_root: Whether a subgraph has made the branch, and its run has not put a checkpoint yet.
        left_at: When it left the tier that this process works in: the runs that were under way there belong
            to it. `UNKNOWN_TIME`: it has not left that tier.
    """

    set_aside: SetAside
    until: float
    ids: set[str] = field(default_factory=set)
    foreign: set[tuple[str, str]] = field(default_factory=set)
    awaits_root: bool = False
    left_at: datetime = UNKNOWN_TIME


@dataclass
class _Anew:
    """A thread in which runs may have begun with nothing in a lower tier.

    Attributes:
        since: When the tier was switched: such a run has begun before.
        was_read: Whether a run may have begun since.
        own: Some of the checkpoints that are known to belong to the thread itself, each with its tier: in the
            tier above, the checkpoint may belong to a branch.
    """

    until: float
    since: datetime
    was_read: bool = False
    own: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_OWN_AT_MOST))


class Branches:
    """The branches of one chain that were set aside within the last hour (`UNDER_WAY`)."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Begin without any branch.

        Args:
            telemetry: Receives an event for each branch that is made here.
        """
        self._telemetry = telemetry
        self._of: dict[str, list[_Known]] = defaultdict(list)
        self._anew: dict[str, _Anew] = {}
        self._reads: OrderedDict[str, deque[tuple[datetime, str | None]]] = OrderedDict()
        self._puts: Counter[object] = Counter()  # thread -> puts under way
        self._root_puts: Counter[object] = Counter()  # the same, of root graphs
        self._making = asyncio.Lock()
        self._expire_at = 0.0

    def add(self, set_aside: SetAside, ids: Iterable[str] = (), *, has_left: bool = False) -> None:
        """Remember a branch that was set aside.

        Args:
            set_aside: The branch.
            ids: Some of its checkpoints.
            has_left: Whether it has left the tier that this process works in just now.
        """
        self._expire()
        known = next((each for each in self._of[set_aside.original] if _is(each, set_aside)), None)
        if known is None:
            known = _Known(set_aside, _until())
            self._of[set_aside.original].append(known)
        known.ids.update(ids)
        if known.set_aside.began_at == UNKNOWN_TIME:  # of this branch, only the name was known
            known.set_aside = set_aside
        if has_left and known.left_at == UNKNOWN_TIME:
            known.left_at = datetime.now(UTC)

    def switched(self, begun_anew: Iterable[str]) -> None:
        """Forget what the tier that is left now had of each thread: it may be lost.

        Args:
            begun_anew: The threads in which runs may have begun with nothing in that tier.
        """
        for known in itertools.chain.from_iterable(self._of.values()):
            known.foreign.clear()
        for anew in self._anew.values():
            anew.own.clear()
        self._anew.update({each: _Anew(_until(), datetime.now(UTC)) for each in begun_anew})

    def left_before(self, begun_anew: Iterable[str]) -> None:
        """Remember threads that have left the tier before this process, and in which runs may have begun.

        Args:
            begun_anew: Those in which runs may have begun with nothing in that tier.
        """
        for each in begun_anew:
            self._anew.setdefault(each, _Anew(_until(), datetime.now(UTC)))

    def read_below(self, thread_id: str, checkpoint_id: str | None) -> None:
        """Remember what a read has found while this process works in a lower tier: a run may begin from it.

        Args:
            thread_id: The thread.
            checkpoint_id: Its newest checkpoint; `None`: nothing was found.
        """
        reads = self._reads.setdefault(thread_id, deque(maxlen=_READS_AT_MOST))
        self._reads.move_to_end(thread_id)
        if not reads or reads[-1][1] != checkpoint_id:
            reads.append((datetime.now(UTC), checkpoint_id))
        if len(self._reads) > _READ_THREADS_AT_MOST:
            self._reads.popitem(last=False)

    def ids_of(self, thread_id: object) -> list[str]:
        """Return the ids of the branches of a thread."""
        return [known.set_aside.thread_id for known in self._of.get(cast("str", thread_id), ())]

    @contextmanager
    def putting(self, placement: Placement) -> Iterator[None]:
        """Wrap a call: while it puts a checkpoint, calls that start from that checkpoint wait for it."""
        if placement.puts is None:
            yield
            return
        counters = [self._puts] if placement.is_of_subgraph else [self._puts, self._root_puts]
        for counter in counters:
            counter[placement.thread_id] += 1
        try:
            yield
        finally:
            for counter in counters:
                counter[placement.thread_id] -= 1
                if not counter[placement.thread_id]:
                    del counter[placement.thread_id]

    async def place(self, saver: TierSaver, placement: Placement) -> RunnableConfig:
        """Return a call's config with the thread that the call belongs to: its own, or a branch.

        Args:
            saver: The saver of the tier that works.
            placement: The call. The same object each time that it is placed again.

        Raises:
            NotStoredYetError: The checkpoint that the call starts from is not stored yet.
            ThreadMovedError: The branch has moved up from this tier.
        """
        config, puts, thread_id = placement.config, placement.puts, placement.thread_id
        if thread_id not in self._of and thread_id not in self._anew:
            return config
        self._expire()
        known = await self._branch_of(saver, placement)
        if known is None:
            if puts is not None:
                self._note_own(saver.status.tier, thread_id, puts)
            return config
        await _check_that_stays(saver, placement, known)
        if puts is not None:
            known.ids.add(puts)
            known.awaits_root &= placement.is_of_subgraph
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

    async def _branch_of(self, saver: TierSaver, placement: Placement) -> _Known | None:
        """Return the branch that a call belongs to. `None`: it belongs to the thread itself."""
        starts, puts, thread_id = placement.starts, placement.puts, placement.thread_id
        branches = list(self._of.get(thread_id, ()))
        if not starts:
            return await self._of_newcomer(saver, placement, branches)
        ids = [each.checkpoint_id for each in starts]
        for known in branches:
            if not known.ids.isdisjoint(ids):
                return known
        tier = saver.status.tier
        if placement.resumes or self._is_own(tier, thread_id, ids[0]):
            return None
        # Look in the thread itself first: a branch also holds the checkpoint that it goes on from.
        for start in starts if puts is None else starts[:1]:
            if await saver.has_checkpoint(*start):
                self._note_own(tier, thread_id, start.checkpoint_id)
                return None
            for known in branches:
                if await _has(saver, known, start):
                    return known
        # A graph puts its checkpoints one after the other. All other calls may overtake a put.
        if puts is None or placement.is_of_subgraph:
            self._await(placement)
        if placement.is_of_subgraph:  # with `durability="exit"`, its run puts nothing before the end
            made_at = time_of_id(ids[0])
            beginning = self._beginning_of_run(thread_id, made_at)
            if beginning is not None:
                if await saver.has_checkpoint(*beginning):
                    self._note_own(tier, thread_id, ids[0])
                    return None
                for known in branches:
                    if await _has(saver, known, beginning):
                        return known
            for known in reversed(branches):
                if made_at < known.left_at:
                    return known
        # Of a checkpoint that does not come, nothing is noted: the next put of its run may make a branch.
        return None if puts is None else await self._of_orphan(saver, placement, branches)

    def _beginning_of_run(self, thread_id: str, at: datetime) -> Position | None:
        """Return the checkpoint from which the run began that was under way at a time, if that is known.

        Runs of one thread follow each other, so that is the last read before.
        """
        found = (id_ for read_at, id_ in reversed(self._reads.get(thread_id, ())) if read_at <= at)
        checkpoint_id = next(found, None)
        return None if checkpoint_id is None else Position(Scope(thread_id, ""), checkpoint_id)

    def _is_own(self, tier: str, thread_id: str, checkpoint_id: str) -> bool:
        """Tell whether a checkpoint is known to belong to the thread itself, as a tier has it."""
        if (anew := self._anew.get(thread_id)) is not None and (tier, checkpoint_id) in anew.own:
            return True
        branches = self._of.get(thread_id, ())
        return bool(branches) and all((tier, checkpoint_id) in each.foreign for each in branches)

    def _note_own(self, tier: str, thread_id: str, checkpoint_id: str) -> None:
        if (anew := self._anew.get(thread_id)) is not None:
            anew.own.append((tier, checkpoint_id))
        for each in self._of.get(thread_id, ()):
            each.foreign.add((tier, checkpoint_id))

    def _await(self, placement: Placement) -> None:
        """Wait for a checkpoint, as long as it may come.

        Raises:
            NotStoredYetError: It may come.
        """
        # Puts of subgraphs do not wait for each other, because they would wait forever.
        under_way = self._puts if placement.puts is None else self._root_puts
        if under_way[placement.thread_id]:
            placement.looks = 0
            raise NotStoredYetError
        if placement.looks < _LOOKS:
            placement.looks += 1
            raise NotStoredYetError

    async def _of_newcomer(
        self, saver: TierSaver, placement: Placement, branches: Sequence[_Known]
    ) -> _Known | None:
        """Return the branch of a call that starts from nothing: of the first put of a run, or of a read."""
        if placement.puts is None:
            anew = self._anew.get(placement.thread_id)
            if anew is not None and not placement.is_of_subgraph:
                anew.was_read = True
            return None
        for known in branches:
            if known.awaits_root and not placement.is_of_subgraph:
                return known
        return await self._first(saver, placement, branches)

    async def _of_orphan(
        self, saver: TierSaver, placement: Placement, branches: Sequence[_Known]
    ) -> _Known | None:
        """Return the branch of a put that starts from a checkpoint that this tier does not have."""
        if not placement.is_of_subgraph:
            return await self._first(saver, placement, branches)
        # With `durability="exit"`, a subgraph puts before its run does.
        for start in placement.starts[1:]:
            if await saver.has_checkpoint(*start):
                return None
            for known in branches:
                if await _has(saver, known, start):
                    return known
        anew = self._anew.get(placement.thread_id)
        if anew is None or (anew.was_read and time_of_id(placement.starts[0].checkpoint_id) >= anew.since):
            return None
        return await self._first(saver, placement, branches)

    async def _first(
        self, saver: TierSaver, placement: Placement, branches: Sequence[_Known]
    ) -> _Known | None:
        """Make the branch at the first put of a run that began in a lower tier.

        Returns:
            The branch. `None`: the run needs none.

        Raises:
            NotStoredYetError: Another put has made a branch meanwhile: it may be of the same run.
        """
        thread_id, puts = placement.thread_id, cast("str", placement.puts)
        async with self._making:
            if list(self._of.get(thread_id, ())) != branches:
                raise NotStoredYetError
            if thread_id not in self._anew:
                return None
            # If one of these calls fails, the put is repeated, and is still a first one.
            if not await saver.has_thread(thread_id):
                if isinstance(saver, CachedPostgresSaver):  # only PostgreSQL knows that no history exists
                    self._anew.pop(thread_id, None)
                return None
            set_aside = set_aside_at(thread_id, puts)
            await saver.note_set_aside(set_aside)
            known = _Known(set_aside, _until(), {each.checkpoint_id for each in placement.starts})
            known.awaits_root = placement.is_of_subgraph
            self._of[thread_id].append(known)
        self._telemetry.emit(ThreadDrained("set_aside"))
        _log.warning(
            "A run in thread %r began in a lower tier, and this tier has another history of the thread. "
            "The run writes to the thread %r.",
            thread_id,
            set_aside.thread_id,
        )
        return known

    def _expire(self) -> None:
        now = monotonic()
        if now < self._expire_at:
            return
        self._expire_at = now + _EXPIRE_SECONDS
        for thread_id in list(self._of):
            self._of[thread_id] = [each for each in self._of[thread_id] if each.until > now]
            if not self._of[thread_id]:
                del self._of[thread_id]
        for thread_id in [each for each, anew in self._anew.items() if anew.until < now]:
            del self._anew[thread_id]


def _until() -> float:
    return monotonic() + UNDER_WAY.total_seconds()


def _with_thread(config: RunnableConfig, thread_id: str) -> RunnableConfig:
    return {**config, "configurable": {**config["configurable"], "thread_id": thread_id}}


def _is(known: _Known, set_aside: SetAside) -> bool:
    return known.set_aside.thread_id == set_aside.thread_id


async def _has(saver: TierSaver, known: _Known, start: Position) -> bool:
    """Tell whether a branch has a checkpoint, and remember that it has."""
    scope = Scope(known.set_aside.thread_id, start.scope.checkpoint_ns)
    if not await saver.has_checkpoint(scope, start.checkpoint_id):
        return False
    known.ids.add(start.checkpoint_id)
    return True


async def _check_that_stays(saver: TierSaver, placement: Placement, known: _Known) -> None:
    """Check that a branch has not moved up from a lower tier, as a part of its thread.

    Only the thread has a marker there. If the branch began anew beside it, its state would have holes.
    """
    if isinstance(saver, CachedPostgresSaver):
        return
    try:
        await saver.check_here(placement.thread_id)
    except ThreadMovedError as exc:
        if not exc.moved or exc.moved_to == known.set_aside.thread_id:
            raise
