"""Fences: while a fence stands in a scope, a reader of L2 must not warm L1 up with that scope.

Open this file when a scope is not warmed up although nothing is written to it any more.

A fence is a row of an UNLOGGED table: the scope, the saver that holds it, the burst of writes that it belongs
to, and until when it stands by PostgreSQL's clock. The first write of a burst inserts the fence, in the same
transaction. Further writes check it. A read returns whether a fence stands.

A crash of PostgreSQL empties the table, and a standby does not have it. So a write that finds no fence of its
own confirms its intent in Redis.

A saver holds one fence for each scope: that of its latest burst. The fences of ended bursts are removed
together, a moment later.
"""

from __future__ import annotations

import asyncio
import secrets
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from glasspoint.l2.deadline import within
from glasspoint.l2.sql import query
from glasspoint.l2.writing import FenceParams, columns
from glasspoint.logs import get_logger
from glasspoint.telemetry.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from glasspoint.l2.connections import Connections
    from glasspoint.l2.writing import Announced
    from glasspoint.model.scope import Scope

__all__ = ["Fences"]

_log = get_logger("glasspoint.l2")

REMOVE_SECONDS: Final = 0.5
"""How long the fences of ended bursts are gathered before they are removed together."""

_TIMEOUT_SECONDS: Final = 2.0
"""The timeout of one removal. No call waits for it, so it must not keep a connection for longer."""

_AGAIN_SECONDS: Final = 1.0

_AT_ONCE: Final = 5_000

_REMOVE = query("remove_fences")
_EXPIRE = query("expire_fences")


class Fences:
    """The fences of one saver."""

    def __init__(
        self,
        connections: Connections,
        *,
        cache: str,
        stand_seconds: float,
        margin_seconds: float,
        in_background: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """Take the connections to use.

        Args:
            connections: All statements go through them.
            cache: The name of the cache: the key prefix.
            stand_seconds: How long a fence stands: longer than a burst and the statements of its last writes.
            margin_seconds: How long a statement can run at most.
            in_background: Runs a coroutine that no caller waits for.
        """
        self._connections = connections
        self._cache = cache
        self._in_background = in_background
        self.holder = secrets.token_hex(8)
        """The name of this saver, which holds the fences."""
        self.stand_seconds = stand_seconds
        self.margin_seconds = margin_seconds
        self._ended: dict[Scope, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._failed_at = 0.0
        self._is_closed = False

    def params(self, announced: Sequence[Announced]) -> FenceParams:
        """Return the parameters for the statement of some writes."""
        return FenceParams(announced, self.holder, self._cache, self.stand_seconds, self.margin_seconds)

    def ended(self, scope: Scope, burst: str) -> None:
        """Remove the fence of a burst that has ended, a moment later."""
        self._ended[scope] = burst
        self._remove_later(REMOVE_SECONDS)

    def _remove_later(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._remove_soon)

    def _remove_soon(self) -> None:
        self._timer = None
        self._in_background(self.remove())

    async def remove(self) -> None:
        """Remove the fences of ended bursts. In an outage, try again until they have expired anyway."""
        now, ended = monotonic(), list(self._ended.items())
        self._ended = {}
        try:
            for start in range(0, len(ended), _AT_ONCE):
                some = ended[start : start + _AT_ONCE]
                rows = [(*scope, burst) for scope, burst in some]
                params = columns(("threads", "namespaces", "bursts"), rows)
                async with within(_TIMEOUT_SECONDS), self._connections.checkout() as conn:
                    await conn.execute(_REMOVE, {"holder": self.holder, **params})
        except Exception as exc:
            _log.debug("the fences of ended bursts were not removed (%s)", type(exc).__name__)
            self._failed_at = self._failed_at or now
            if not self._is_closed and now - self._failed_at < self.stand_seconds:
                self._ended = {**dict(ended), **self._ended}  # a scope may have a newer burst by now
                self._remove_later(_AGAIN_SECONDS)
        else:
            self._failed_at = 0.0

    async def close(self) -> None:
        """Remove the fences of ended bursts now. A failure is not repeated."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ended:
            with quiet():
                await self.remove()

    async def expire(self) -> None:
        """Remove the expired fences of all savers."""
        async with self._connections.checkout() as conn:
            await conn.execute(_EXPIRE)
