"""Remembers what was acknowledged, and finds what another server of Redis does not have of it.

Redis copies to its replicas asynchronously. So when a replica is promoted, what the former master has
acknowledged last may be missing; a server that restarts with older files lacks what was stored since. No
server says so: the threads are only shorter. A `RedisSaver` looks now and then whether the same servers have
its threads. If not, it asks for what it has stored since its last look, and for the newest checkpoint and
pending write before that. A server has everything up to some moment, so the older ones need not be asked for.

Open this when such a loss is not reported, or is reported although nothing was lost.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Literal, Protocol

from glasspoint.errors import ThreadDamagedError, ThreadMovedError
from glasspoint.history.interface import Position
from glasspoint.logs import get_logger
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from typing import Any

    from glasspoint.history.interface import Found
    from glasspoint.model.codec import EncodedWrite

__all__ = ["Acknowledged"]

_log = get_logger("glasspoint")

# A thread of which nothing is there may have been drained by another process, if its marker is gone.
_SECONDS = 60.0

# The most threads that are remembered, the most namespaces of each, and the most checkpoints of a namespace
# between two looks.
_THREADS = 10_000
_NAMESPACES = 4
_CHECKPOINTS = 16

# How many threads are asked for at once.
_AT_ONCE = 8

# How many threads a log line names.
_NAMED_AT_MOST = 20


class _Place(Protocol):
    """The history on the servers that are asked."""

    async def metadata(self, positions: Sequence[Position]) -> list[dict[str, Any] | None]: ...

    def positions(self, scope: Scope, *, before: str | None) -> AsyncGenerator[list[Position], None]: ...

    async def removals(self, thread_id: str) -> bytes: ...

    async def has_list(self, thread_id: str) -> bool: ...

    def load(
        self, positions: Sequence[Position], *, sealed_too: bool = False
    ) -> AsyncGenerator[Found, None]: ...


@dataclass(slots=True)
class _Newest:
    """What was acknowledged last of a thread.

    Attributes:
        checkpoints: Namespace -> checkpoints that were stored there, the oldest first: the newest that the
            last look has seen, and those since. Of each, its id, and when, by the clock of this process.
        writes: Position -> task and index of the pending write that was stored last there.
        at: When that was, by the clock of this process.
    """

    checkpoints: OrderedDict[str, list[tuple[str, float]]] = field(default_factory=OrderedDict)
    writes: tuple[Position, tuple[str, int]] | None = None
    at: float = 0.0


class Acknowledged:
    """The threads that a saver has written to last, and those that were found to be shorter."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.shortened = 0
        """How many threads were found to lack what was acknowledged."""
        self._newest: OrderedDict[str, _Newest] = OrderedDict()
        self._unchecked: dict[str, _Newest] = {}
        self._grown: dict[str, _Newest] = {}  # those with several checkpoints of a namespace
        self._checking = asyncio.Lock()

    def checkpoint(self, scope: Scope, checkpoint_id: str) -> None:
        """Record that a checkpoint was stored."""
        newest = self._touch(scope.thread_id)
        stored = newest.checkpoints.setdefault(scope.checkpoint_ns, [])
        stored.append((checkpoint_id, newest.at))
        if len(stored) > 1:
            self._grown[scope.thread_id] = newest
        if len(stored) > _CHECKPOINTS:
            del stored[len(stored) // 2]  # what was lost is more likely at either end
        newest.checkpoints.move_to_end(scope.checkpoint_ns)
        if len(newest.checkpoints) > _NAMESPACES:
            newest.checkpoints.popitem(last=False)
        newest.writes = None  # a server that has the checkpoint has what was stored before it

    def writes(self, scope: Scope, checkpoint_id: str, writes: Sequence[EncodedWrite]) -> None:
        """Record that pending writes were stored."""
        if writes:
            self._touch(scope.thread_id).writes = Position(scope, checkpoint_id), writes[-1][:2]

    def forget(self, thread_id: str) -> None:
        """Forget a thread of which something was removed, or that has left."""
        self._newest.pop(thread_id, None)
        self._unchecked.pop(thread_id, None)
        self._grown.pop(thread_id, None)

    def settle(self, until: float) -> None:
        """Record that a look has found the same servers: what they had replaced by then is not needed.

        Args:
            until: When the look began, by `monotonic`.
        """
        grown, self._grown = self._grown, {}
        for thread_id, newest in grown.items():
            for stored in newest.checkpoints.values():
                del stored[: max(0, sum(at <= until for _, at in stored) - 1)]
            if any(len(stored) > 1 for stored in newest.checkpoints.values()):
                self._grown[thread_id] = newest

    def expect(self, earlier: Acknowledged) -> None:
        """Expect what an earlier saver of this process has acknowledged."""
        if earlier is not self:
            self.shortened += earlier.shortened
            self._newest |= earlier._newest
            self._unchecked |= earlier._unchecked
            self._grown |= earlier._grown

    def moved(self) -> None:
        """Record that other servers are asked from now on: everything has to be checked there."""
        self._unchecked |= self._newest
        self._newest.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was acknowledged that could be lost."""
        return not (self._newest or self._unchecked)

    @property
    def is_checked(self) -> bool:
        """Whether nothing has to be checked."""
        return not self._unchecked

    async def check(self, place: _Place, *, name: str, ttl_seconds: float | None) -> list[str]:
        """Check that a server has what was acknowledged, and log which threads are shorter there.

        Args:
            place: The history there. Reading from it must not change how long the threads live.
            name: The server's name or address, for the log.
            ttl_seconds: How long a thread lives after its last use; `None`: for ever.

        Returns:
            The threads that were found to be shorter. Each is returned once.

        Raises:
            RedisUnavailableError, RedisRefusedError: The server cannot be asked now. Call this again.
        """
        async with self._checking:
            checked, lost, gone, is_any_there = 0, dict[str, float](), dict[str, float](), False
            try:
                while some := list(self._unchecked.items())[:_AT_ONCE]:
                    found = await asyncio.gather(
                        *(_state_of(place, *each, ttl_seconds=ttl_seconds) for each in some)
                    )
                    for (thread_id, newest), state in zip(some, found, strict=True):
                        if self._unchecked.get(thread_id) is newest:
                            del self._unchecked[thread_id]
                        checked += 1
                        match state:
                            case "shorter" | "missing":
                                lost[thread_id] = newest.at
                                is_any_there |= state == "shorter"
                            case "gone":
                                gone[thread_id] = newest.at
                            case "ended":
                                pass
                            case "there":
                                is_any_there = True
                                self._newest.setdefault(thread_id, newest)
            finally:
                # A server that lacks one write lacks all that came after it; perhaps it has nothing at all.
                since = min(lost.values(), default=math.inf) if is_any_there or not lost else -math.inf
                lost |= {thread_id: at for thread_id, at in gone.items() if at >= since}
                self.shortened += len(lost)
                if lost:
                    _report(list(lost), checked, name)
            return list(lost)

    def _touch(self, thread_id: str) -> _Newest:
        newest = self._newest.get(thread_id)
        if newest is None:
            newest = self._newest[thread_id] = _Newest()
        self._newest.move_to_end(thread_id)
        newest.at = monotonic()
        if len(self._newest) > _THREADS:
            oldest, _ = self._newest.popitem(last=False)
            self._grown.pop(oldest, None)
        return newest


async def _state_of(
    place: _Place, thread_id: str, newest: _Newest, *, ttl_seconds: float | None
) -> Literal["there", "shorter", "missing", "gone", "ended"]:
    """Tell what a server has of a thread.

    Returns:
        `there`: all that was acknowledged. `shorter`: a part of that. `missing`: nothing. `gone`: nothing,
        but it may have been moved, or deleted elsewhere. `ended`: it has moved or expired.
    """
    ids = {namespace: [id_ for id_, _ in stored] for namespace, stored in newest.checkpoints.items()}
    positions = [Position(Scope(thread_id, namespace), id_) for namespace in ids for id_ in ids[namespace]]
    last = [Position(Scope(thread_id, namespace), some[-1]) for namespace, some in ids.items()]
    try:
        if positions:
            told = zip(positions, await _are_there(place, positions), strict=True)
            missing = {position for position, found in told if found is None}
            age = monotonic() - newest.at
            if len(missing) == len(positions):
                if ttl_seconds is not None and age > ttl_seconds:
                    return "ended"
                if any([await _ends_earlier(place, each) for each in last]):
                    return "shorter"
                return "gone" if age > _SECONDS and await place.has_list(thread_id) else "missing"
            # Older ones may have been removed by another process; then Redis has counted that.
            if missing.intersection(last) or (missing and not await place.removals(thread_id)):
                return "shorter"
        if newest.writes is None:
            return "there"
        position, write = newest.writes
        async for each in place.load([position], sealed_too=True):
            is_there = any((stored.task_id, stored.idx) == write for stored in each.stored.writes)
            return "there" if is_there else "shorter"
        # Its checkpoint is not there. If it was acknowledged, that is found above; if not, nobody knows.
        return "there"
    except ThreadMovedError:
        return "ended"
    except ThreadDamagedError:
        return "shorter"


async def _ends_earlier(place: _Place, position: Position) -> bool:
    """Tell whether a namespace has checkpoints, all older than one that was there. Ids grow with time."""
    async for page in place.positions(position.scope, before=None):
        return page[0].checkpoint_id < position.checkpoint_id
    return False


async def _are_there(place: _Place, positions: Sequence[Position]) -> list[object | None]:
    with suppress(ThreadMovedError):
        return list(await place.metadata(positions))
    # The thread is sealed, or has moved: then this raises the same error.
    there = {
        (each.stored.scope, each.stored.checkpoint_id): each
        async for each in place.load(positions, sealed_too=True)
    }
    return [there.get((each.scope, each.checkpoint_id)) for each in positions]


def _report(lost: list[str], checked: int, name: str) -> None:
    names = ", ".join(map(repr, lost[:_NAMED_AT_MOST])) + (", …" if len(lost) > _NAMED_AT_MOST else "")
    _log.error(
        "Redis has lost acknowledged writes, at a failover or at a restart with older files: %s lacks the "
        "end of %d of the %d threads that this process remembers: %s. These threads are shorter now, or "
        "gone. docs/reliability.md says how min-replicas-to-write and appendonly prevent that.",
        name,
        len(lost),
        checked,
        names,
    )
