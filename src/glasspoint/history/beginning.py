"""Decides how a thread begins in a lower tier: from its cached state, anew, or not at all.

PostgreSQL is away, so nobody can tell whether a thread has a history there. If the cache has the thread's
state, the thread goes on from it. If not, `CHECKPOINT_FALLBACK_UNKNOWN` decides: the thread begins anew (and
is set aside later, if it has a history), or it is refused.

A run's subgraph is not cached (`Scope.is_cached`). If it began while PostgreSQL was there, only PostgreSQL
has its state. It cannot go on here: it would look new, and run its finished tasks again. It may have begun
there if its task belongs to a checkpoint that was brought here from the cache. Such checkpoints are marked,
for all processes in this tier. If its task belongs to a checkpoint that was made here, it began here.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from langgraph.checkpoint.serde.types import RESUME

from glasspoint.errors import ThreadUnknownError
from glasspoint.history.interface import Position
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from glasspoint.history.interface import History
    from glasspoint.model.codec import StoredCheckpoint

__all__ = ["Beginning", "CachedStates", "Unknown", "remember", "unmarked", "with_mark", "without_mark"]

Unknown = Literal["begin", "refuse"]

_FROM_CACHE = "glasspoint_from_cache"
"""The metadata key that marks a checkpoint that was brought here from the cache. Neither callers nor the tier
above see it."""

# The maximum number of threads in each memory; a thread takes about 100 bytes.
_REMEMBERED = 100_000

_REFUSED = (
    "PostgreSQL is away, and Redis does not hold this thread: whether it has a history is not known. Ask "
    "again when PostgreSQL is back."
)
_NOTHING_TO_RESUME = (
    "There is nothing to resume: PostgreSQL is away, and Redis does not hold this thread. Resume it when "
    "PostgreSQL is back; before that, all its tasks would run again."
)

_IN_A_SUBGRAPH = (
    "PostgreSQL is away, and the run stands in a subgraph that is not cached: only PostgreSQL has its state. "
    "Resume it when PostgreSQL is back; before that, its finished tasks would run again."
)


class CachedStates(Protocol):
    """The states in the cache that can be trusted without PostgreSQL."""

    async def find(self, scope: Scope) -> StoredCheckpoint | None:
        """Return the cached state of a scope, `None` if the cache has none."""

    async def forget(self, scope: Scope) -> None:
        """Delete the cached state of a scope."""

    async def close(self) -> None:
        """Close the connections that were opened for this."""


class Beginning:
    """Decides how each thread begins that has nothing here yet."""

    def __init__(self, history: History, states: CachedStates | None, *, unknown: Unknown) -> None:
        """Take the history and the cached states.

        Args:
            history: The history of this tier.
            states: Finds cached states. `None`: the cache cannot be used.
            unknown: Whether a thread without a cached state begins anew, or is refused.
        """
        self._history = history
        self._states = states
        self._unknown = unknown
        self._anew: OrderedDict[str, None] = OrderedDict()
        self._met: OrderedDict[str, None] = OrderedDict()
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._resumed: OrderedDict[str, None] = OrderedDict()
        self._deciding: dict[str, asyncio.Event] = {}

    @property
    def anew(self) -> frozenset[str]:
        """The threads that began here with nothing, in this process or in another one.

        A run of such a thread may be under way, and may not have written yet.
        """
        return frozenset(self._anew)

    async def meet(self, scope: Scope) -> None:
        """Find out, once, whether a thread that is here began with nothing.

        This is done at the first read: if the server is lost later, nobody can tell any more.
        """
        if scope.thread_id in self._met or scope.checkpoint_ns:
            return
        oldest = await self._history.oldest(scope)
        if oldest is not None and oldest.stored.parent_id is None:
            remember(self._anew, scope.thread_id)
        remember(self._met, scope.thread_id)

    async def read(self, scope: Scope, above: Mapping[str, str]) -> bool:
        """Bring the cached state of a scope that has nothing here.

        Args:
            scope: The scope.
            above: Namespace -> checkpoint of the graphs around this one, from the config of the run.

        Returns:
            Whether the cache had a state.

        Raises:
            ThreadUnknownError: The cache had none, nothing else of the thread is here, and unknown threads
                are refused. Or the scope is a run's subgraph whose state PostgreSQL may have.
        """
        self._resumed.pop(scope.thread_id, None)
        if not scope.is_cached and await self._may_have_begun_above(scope, above):
            raise ThreadUnknownError(_IN_A_SUBGRAPH)
        if await self.take(scope):
            return True
        if scope.checkpoint_ns and await self._history.namespaces(scope.thread_id):
            return False  # a subgraph that was not called yet
        if self._unknown == "refuse" and scope.thread_id not in self._deleted:
            raise ThreadUnknownError(_REFUSED)
        if not scope.checkpoint_ns:
            remember(self._anew, scope.thread_id)
        return False

    async def take(self, scope: Scope) -> bool:
        """Bring the cached state of a scope here, and return whether the cache had one."""
        if self._states is None or scope.thread_id in self._deleted or not scope.is_cached:
            return False
        state = await self._states.find(scope)
        if state is None:
            return False
        await self._history.add(with_mark(state))
        return True

    async def _may_have_begun_above(self, scope: Scope, above: Mapping[str, str]) -> bool:
        """Tell whether the task of a run's subgraph may belong to a checkpoint from the cache."""
        around = sorted(_namespaces_around(scope.checkpoint_ns), key=len, reverse=True)
        named = [Scope(scope.thread_id, each) for each in around if each in above]
        if named:  # the innermost graph is the one that has the task
            position = Position(named[0], above[named[0].checkpoint_ns])
            [metadata] = await self._history.metadata([position])
            return metadata is not None and _FROM_CACHE in metadata
        for each in around:  # no run, but a look at the subgraph's state
            newest = await self._history.read(Scope(scope.thread_id, each), None)
            if newest is not None and _FROM_CACHE in newest.stored.metadata:
                return True
        return False

    async def check_writes(self, scope: Scope, checkpoint_id: str, writes: Sequence[tuple[str, Any]]) -> None:
        """Refuse a run that resumes a thread which began anew: there is no interrupt to resume from.

        Raises:
            ThreadUnknownError: These are writes of such a run.
        """
        thread_id = scope.thread_id
        if any(channel == RESUME for channel, _ in writes) and thread_id in self._anew:
            # The run puts its first checkpoint at the same time. The put waits until this is decided.
            self._deciding[thread_id] = decided = asyncio.Event()
            try:
                if await self._history.read(scope, checkpoint_id) is None:
                    remember(self._resumed, thread_id)
            finally:
                self._deciding.pop(thread_id, None)
                decided.set()
        await self.check_put(scope)

    async def check_put(self, scope: Scope) -> None:
        """Refuse a put of a run that resumes a thread which began anew: see `check_writes`.

        Raises:
            ThreadUnknownError: This is a put of such a run.
        """
        if (decided := self._deciding.get(scope.thread_id)) is not None:
            await decided.wait()
        if scope.thread_id in self._resumed:
            raise ThreadUnknownError(_NOTHING_TO_RESUME)

    async def forget(self, thread_id: str, scopes: Sequence[Scope]) -> None:
        """Delete the cached states of a thread that is deleted here, so that it does not go on from them."""
        remember(self._deleted, thread_id)
        if self._states is not None:
            for scope in scopes:
                await self._states.forget(scope)


def without_mark(stored: StoredCheckpoint) -> StoredCheckpoint:
    """Return a checkpoint without the mark that it was brought here from the cache, for other callers."""
    metadata = unmarked(stored.metadata)
    if metadata is stored.metadata:
        return stored
    return replace(stored, metadata=metadata, metadata_json=json.dumps(metadata), is_brought=True)


def with_mark(stored: StoredCheckpoint) -> StoredCheckpoint:
    """Return a checkpoint with the mark that this tier has not made it, which all processes see."""
    return replace(stored, metadata={**stored.metadata, _FROM_CACHE: True}, metadata_json="")


def unmarked(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without the mark. Without a mark, the same object is returned."""
    if _FROM_CACHE not in metadata:
        return metadata
    return {key: value for key, value in metadata.items() if key != _FROM_CACHE}


def _namespaces_around(namespace: str) -> list[str]:
    """Return the namespaces of the graphs around this one, from the root's on."""
    parts = namespace.split("|")
    return ["|".join(parts[:count]) for count in range(len(parts))]


def remember(threads: OrderedDict[str, None], thread_id: str) -> None:
    """Add a thread to a memory. If the memory is full, forget the thread that was added longest ago."""
    threads[thread_id] = None
    threads.move_to_end(thread_id)
    if len(threads) > _REMEMBERED:
        threads.popitem(last=False)
