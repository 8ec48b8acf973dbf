"""Connections that live: looked at before they are used, and replaced when they are of no more use.

While a model thinks for a minute, its conversation's connection is idle, and a firewall, a pooler or the
server itself may close it. The pool's own `check` is not used: it is a round trip for every call, and after
each connection that fails it the pool pauses, for a second, then two, then four, and after a restart all of
them fail it.
"""

from __future__ import annotations

import asyncio
import random
import select
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from glasspoint.l2.deadline import within
from glasspoint.l2.faults import classify
from glasspoint.telemetry.background import BackgroundTask, run_to_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from glasspoint.l2.types import Connection, Pool
    from glasspoint.telemetry.events import Telemetry

    Greet = Callable[[Connection], Coroutine[Any, Any, None]]

__all__ = ["Liveness", "Reviver"]

# A connection that was idle for longer is asked before it is used: a peer that vanished without a word (a
# firewall that forgot it) does not show on the socket.
_IDLE_SECONDS = 5.0
_ANSWER_SECONDS = 2.0

_RENEWAL_PAUSE_SECONDS = 1.0

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0


class Liveness:
    """Hands out a pool's connections, but for dead ones."""

    def __init__(self) -> None:
        self._returned_at: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self._renewed_at = -_RENEWAL_PAUSE_SECONDS
        self.in_use = 0
        """How many connections are handed out."""
        self.greet: Greet | None = None
        """Awaited with a connection that is new, before it is handed out."""

    async def get_idle(self, pool: Pool) -> Connection | None:
        """Check a connection out that nobody uses now, without waiting; `None`: there is none."""
        return await pool.getconn() if pool.get_stats().get("pool_available") else None

    def hand_out(self, connection: Connection) -> bool:
        """Hand a connection out that is checked out, if it may be used as it is.

        Returns:
            Whether it may: it was used just now, is open, and nothing has come. If not, `getconn` sees to it.
        """
        if not self._is_young(connection):
            return False
        self.in_use += 1
        return True

    async def getconn(self, pool: Pool, connection: Connection | None = None) -> Connection:
        """Check a connection out; the dead ones that come first are replaced.

        May be cancelled at any time, and again: a connection that is not handed out goes back to the pool.
        (`AsyncConnectionPool.getconn` loses none either: one that is handed over to a caller who is cancelled
        at that moment is returned to the pool, or, before psycopg_pool 3.3.1, to the caller all the same.)

        Args:
            connection: One that is checked out already, to be looked at first.

        Raises:
            PoolTimeout: None came free within the pool's timeout.
        """
        deadline = monotonic() + pool.timeout
        while True:
            connection = connection or await pool.getconn(timeout=deadline - monotonic())
            try:
                if await self._answers(pool, connection):
                    await self._greet(connection)
                    self.in_use += 1
                    return connection
                _close(connection)
            except BaseException:
                await self._put_back(pool, connection)
                raise
            await self._put_back(pool, connection)
            connection = None

    async def _put_back(self, pool: Pool, connection: Connection) -> None:
        """Return a connection that was not handed out."""
        _close_unless_idle(connection)
        await run_to_the_end(pool.putconn(connection))

    async def _greet(self, connection: Connection) -> None:
        if self.greet is not None and connection not in self._returned_at:
            # Not in the trace of whoever happens to be the first to use it.
            await asyncio.create_task(self.greet(connection), name="glasspoint-greet", context=Context())
            self._returned_at[connection] = monotonic()

    async def putconn(self, pool: Pool, connection: Connection) -> None:
        """Give a connection back."""
        _close_unless_idle(connection)
        self.in_use -= 1
        self._returned_at[connection] = monotonic()
        await pool.putconn(connection)

    async def after(self, error: BaseException, pool: Pool, connection: Connection) -> None:
        """Part with a connection on which this went wrong, if it would only go wrong again."""
        if not classify(error).fresh or connection.closed:
            return
        _close(connection)
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            await self._renew(pool)

    async def _renew(self, pool: Pool) -> None:
        """Replace the idle ones too: they lead to the same server. Not for each caller who finds that out."""
        if monotonic() - self._renewed_at > _RENEWAL_PAUSE_SECONDS:
            self._renewed_at = monotonic()
            await pool.drain()

    def _is_young(self, connection: Connection) -> bool:
        returned_at = self._returned_at.get(connection)
        if returned_at is None or monotonic() - returned_at > _IDLE_SECONDS:
            return False
        return not connection.closed and not _has_news(connection)

    async def _answers(self, pool: Pool, connection: Connection) -> bool:
        if connection.closed:
            return False
        if self._is_young(connection):
            return True
        try:
            async with within(_ANSWER_SECONDS):
                await AsyncConnectionPool.check_connection(connection)
        except TimeoutError:
            # Whoever swallows what is sent here has likely forgotten the others too, and asking each of them
            # would use the caller's time up.
            await self._renew(pool)
            return False
        except (psycopg.Error, OSError):
            return False
        return True


class Reviver:
    """Keeps a pool trying to connect for as long as somebody waits for it.

    The pool itself doubles its pauses: after an outage of five seconds, nobody would get a connection for two
    more, and after one of a minute, for half a minute more.
    """

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        """Begin idle.

        Args:
            telemetry: Receives an event for each failure that nobody foresaw.
        """
        self._background = BackgroundTask(
            "reconnector", telemetry, means="Meanwhile callers wait longer for a PostgreSQL that is back."
        )
        self._task: asyncio.Task[None] | None = None

    async def reconnect_failed(self, pool: Pool) -> None:
        """Called by the pool, when it gives a connection up."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._revive(pool), name="glasspoint-reviver")

    async def _revive(self, pool: Pool) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not pool.closed:
            try:
                if not _is_waited_for(pool):
                    return
                await asyncio.sleep(random.uniform(0.5, 1) * pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                # Asking is what makes the pool connect. This stands at the end of the queue, and leaves at
                # once.
                with suppress(PoolTimeout, PoolClosed):
                    await pool.putconn(await pool.getconn(timeout=0.001))
            except Exception as exc:
                await asyncio.sleep(self._background.failed(exc))
            else:
                self._background.worked()


def _is_waited_for(pool: Pool) -> bool:
    return bool(pool.get_stats().get("requests_waiting"))


def _close(connection: Connection) -> None:
    """Close a connection of a pool; it stays checked out.

    `AsyncConnection.close` would return it alive, if the pool was made with `close_returns=True`.
    """
    connection.pgconn.finish()


def _close_unless_idle(connection: Connection) -> None:
    """Close a connection on which the end of a transaction was interrupted.

    The pool would roll it back, and wait for as long as the server does not answer.
    """
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        _close(connection)


def _has_news(connection: Connection) -> bool:
    """Whether something has come that nobody asked for: an end of file, a farewell, or only a notice.

    Costs a system call, not a round trip.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
