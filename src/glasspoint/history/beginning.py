"""How a thread begins in a lower tier: from its cached state, anew, or not at all.

PostgreSQL is away, so nobody can tell whether a thread has a history there. If the cache has the state of the
thread, the thread goes on from that. If not, `CHECKPOINT_FALLBACK_UNKNOWN` decides: the thread begins anew
(and is set aside later, if it has a history), or it is refused.

A run's subgraph is not cached (`Scope.is_cached`). If its run began in PostgreSQL, its state is there alone,
and it cannot go on here: as if it were new, it would run its finished tasks again. It may have begun there if
its task belongs to a checkpoint that was brought here from the cache. Such checkpoints are marked, for all
processes that work in this tier. A task of a checkpoint that was made here has begun here.
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
"""The key in the metadata of a checkpoint that was brought here from the cache. Neither callers nor the tier
above see it."""

# How many threads are remembered; 100 bytes or so each.
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
    """What the cache holds, as far as it can be believed without PostgreSQL."""

    async def find(self, scope: Scope) -> StoredCheckpoint | None:
        """Return the cached state of a scope, `None` if there is none."""

    async def forget(self, scope: Scope) -> None:
        """Delete it."""


class Beginning:
    """Decides for each thread that has nothing here yet."""

    def __init__(self, history: History, states: CachedStates | None, *, unknown: Unknown) -> None:
        """Take where threads begin, and what becomes of unknown ones.

        Args:
            history: Where threads go on.
            states: Where their beginnings may be; `None`: nowhere.
            unknown: Whether a thread of which nothing is found begins anew.
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
        """Threads that began here with nothing, in this process or in another one.

        A run may have begun then, and may not have written yet.
        """
        return frozenset(self._anew)

    async def meet(self, scope: Scope) -> None:
        """Find out, once, how a thread has begun that stands here. If this place is lost, nobody can tell."""
        if scope.thread_id in self._met or scope.checkpoint_ns:
            return
        oldest = await self._history.oldest(scope)
        if oldest is not None and oldest.stored.parent_id is None:
            remember(self._anew, scope.thread_id)
        remember(self._met, scope.thread_id)

    async def read(self, scope: Scope, above: Mapping[str, str]) -> bool:
        """Bring the cached state of a scope here, of which nothing is here.

        Args:
            above: Namespace -> checkpoint, of the graphs around this one, as a run names them.

        Returns:
            Whether there was one.

        Raises:
            ThreadUnknownError: There was none, and nothing else of the thread is here; such are refused. Or
                it is a run's subgraph whose state PostgreSQL may have.
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
        """Bring the cached state of a scope here, if there is one, and tell whether there was."""
        if self._states is None or scope.thread_id in self._deleted or not scope.is_cached:
            return False
        state = await self._states.find(scope)
        if state is None:
            return False
        await self._history.add(with_mark(state))
        return True

    async def _may_have_begun_above(self, scope: Scope, above: Mapping[str, str]) -> bool:
        """Tell whether the task that a run's subgraph belongs to is one of a checkpoint from the cache."""
        around = sorted(_namespaces_around(scope.checkpoint_ns), key=len, reverse=True)
        named = [Scope(scope.thread_id, each) for each in around if each in above]
        if named:  # the innermost is the graph whose task it is
            position = Position(named[0], above[named[0].checkpoint_ns])
            [metadata] = await self._history.metadata([position])
            return metadata is not None and _FROM_CACHE in metadata
        for each in around:  # somebody looks at its state
            newest = await self._history.read(Scope(scope.thread_id, each), None)
            if newest is not None and _FROM_CACHE in newest.stored.metadata:
                return True
        return False

    async def check_writes(self, scope: Scope, checkpoint_id: str, writes: Sequence[tuple[str, Any]]) -> None:
        """Refuse the answer to an interrupt of a thread that begins anew, and all that its run stores.

        Raises:
            ThreadUnknownError: This is one.
        """
        thread_id = scope.thread_id
        if any(channel == RESUME for channel, _ in writes) and thread_id in self._anew:
            # The run puts its first checkpoint at the same time, which has to wait for this.
            self._deciding[thread_id] = decided = asyncio.Event()
            try:
                if await self._history.read(scope, checkpoint_id) is None:
                    remember(self._resumed, thread_id)
            finally:
                self._deciding.pop(thread_id, None)
                decided.set()
        await self.check_put(scope)

    async def check_put(self, scope: Scope) -> None:
        """Refuse what a run stores that was to be resumed, and could not.

        Raises:
            ThreadUnknownError: This is one.
        """
        if (decided := self._deciding.get(scope.thread_id)) is not None:
            await decided.wait()
        if scope.thread_id in self._resumed:
            raise ThreadUnknownError(_NOTHING_TO_RESUME)

    async def forget(self, thread_id: str, scopes: Sequence[Scope]) -> None:
        """Keep a thread that was deleted here from going on from its cached states."""
        remember(self._deleted, thread_id)
        if self._states is not None:
            for scope in scopes:
                await self._states.forget(scope)


def without_mark(stored: StoredCheckpoint) -> StoredCheckpoint:
    """Return a checkpoint as others see it, who need not know that it was brought here from the cache."""
    metadata = unmarked(stored.metadata)
    if metadata is stored.metadata:
        return stored
    return replace(stored, metadata=metadata, metadata_json=json.dumps(metadata), is_brought=True)


def with_mark(stored: StoredCheckpoint) -> StoredCheckpoint:
    """Return a checkpoint that says for all processes that this tier has not made it."""
    return replace(stored, metadata={**stored.metadata, _FROM_CACHE: True}, metadata_json="")


def unmarked(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without that mark; the very same object, if it is not there."""
    if _FROM_CACHE not in metadata:
        return metadata
    return {key: value for key, value in metadata.items() if key != _FROM_CACHE}


def _namespaces_around(namespace: str) -> list[str]:
    """Return the root's namespace, and those that this one begins with."""
    parts = namespace.split("|")
    return ["|".join(parts[:count]) for count in range(len(parts))]


def remember(threads: OrderedDict[str, None], thread_id: str) -> None:
    """Add a thread to some that are remembered; of too many, the one that was added longest ago goes."""
    threads[thread_id] = None
    threads.move_to_end(thread_id)
    if len(threads) > _REMEMBERED:
        threads.popitem(last=False)
