"""Remembers what was acknowledged, and finds what another server of Redis does not have of it.

Redis copies to its replicas asynchronously. So when a replica is promoted, what the former master has
acknowledged last may be missing; a server that restarts with older files lacks what was stored since. No
server says so: the threads are only shorter. A `RedisSaver` therefore asks for the newest checkpoint and the
newest pending write of each thread that it has written to. A server has everything up to some moment, so the
older ones need not be asked for.

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

# The most threads that are remembered, and the most namespaces of each.
_THREADS = 10_000
_NAMESPACES = 4

# How many threads are asked for at once.
_AT_ONCE = 8

# How many threads a log line names.
_NAMED_AT_MOST = 20


class _Place(Protocol):
    """The history of the new master."""

    async def metadata(self, positions: Sequence[Position]) -> list[dict[str, Any] | None]: ...

    def positions(self, scope: Scope, *, before: str | None) -> AsyncGenerator[list[Position], None]: ...

    def load(
        self, positions: Sequence[Position], *, sealed_too: bool = False
    ) -> AsyncGenerator[Found, None]: ...


@dataclass(slots=True)
class _Newest:
    """What was acknowledged last of a thread.

    Attributes:
        checkpoints: Namespace -> id of the checkpoint that was stored last there.
        writes: Position -> task and index of the pending write that was stored last there.
        at: When that was, by the clock of this process.
    """

    checkpoints: OrderedDict[str, str] = field(default_factory=OrderedDict)
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
        self._checking = asyncio.Lock()

    def checkpoint(self, scope: Scope, checkpoint_id: str) -> None:
        """Record that a checkpoint was stored."""
        newest = self._touch(scope.thread_id)
        newest.checkpoints[scope.checkpoint_ns] = checkpoint_id
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

    def expect(self, earlier: Acknowledged) -> None:
        """Expect what an earlier saver of this process has acknowledged."""
        if earlier is not self:
            self.shortened += earlier.shortened
            self._newest |= earlier._newest
            self._unchecked |= earlier._unchecked

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
            checked, lost, gone = 0, dict[str, float](), dict[str, float]()
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
                            case "shorter":
                                lost[thread_id] = newest.at
                            case "gone":
                                gone[thread_id] = newest.at
                            case "there":
                                self._newest.setdefault(thread_id, newest)
            finally:
                # A server that lacks one write lacks all that came after it.
                since = min(lost.values(), default=math.inf)
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
            self._newest.popitem(last=False)
        return newest


async def _state_of(
    place: _Place, thread_id: str, newest: _Newest, *, ttl_seconds: float | None
) -> Literal["there", "shorter", "gone"]:
    """Tell what a server has of a thread. `gone`: nothing, but it may have been moved, or deleted elsewhere.

    A thread that has moved or expired counts as `there`.
    """
    positions = [
        Position(Scope(thread_id, namespace), checkpoint_id)
        for namespace, checkpoint_id in newest.checkpoints.items()
    ]
    try:
        if positions:
            found = [each is not None for each in await _are_there(place, positions)]
            age = monotonic() - newest.at
            if not any(found) and ttl_seconds is not None and age > ttl_seconds:
                return "there"
            if not any(found) and age > _SECONDS:
                return "shorter" if any([await _ends_earlier(place, each) for each in positions]) else "gone"
            if not all(found):
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
        return "there"
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
        "end of %d of the %d threads that this process has written to: %s. These threads are shorter now, or "
        "gone. docs/reliability.md says how min-replicas-to-write and appendonly prevent that.",
        name,
        len(lost),
        checked,
        names,
    )
