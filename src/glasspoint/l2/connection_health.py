"""Checks connections before they are used, and replaces those that cannot be used any more.

Open this file when a call receives a dead connection, or waits for a connection long after an outage.

While a model works for a minute, the connection of its conversation is idle. A firewall, a pooler or the
server itself may close it. The pool's own `check` is not used, for two reasons. It costs a round trip for
every call. And after each connection that fails it, the pool pauses: for a second, then two, then four; after
a restart of the server, all connections fail it.
"""

from __future__ import annotations

import asyncio
import random
import select
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from glasspoint.l2.deadline import within
from glasspoint.l2.faults import classify
from glasspoint.model.cancellation import run_to_the_end
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.quiet import quiet, quiet_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from glasspoint.l2.types import Connection, Pool
    from glasspoint.telemetry.events import Telemetry

    Greet = Callable[[Connection], Coroutine[Any, Any, None]]

__all__ = ["ConnectionHealth", "Reconnector"]

# A connection that was idle for longer is checked by a round trip: the socket does not show that its peer
# has vanished without a word (a firewall that forgot the connection).
_IDLE_SECONDS = 5.0
_ANSWER_SECONDS = 2.0

_RENEWAL_PAUSE_SECONDS = 1.0

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0


class ConnectionHealth:
    """Hands out the connections of a pool, except dead ones."""

    def __init__(self) -> None:
        self._returned_at: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self._renewed_at = -_RENEWAL_PAUSE_SECONDS
        self.in_use = 0
        """The number of connections that are handed out."""
        self.greet: Greet | None = None
        """Awaited with each new connection, before it is handed out."""

    async def get_idle(self, pool: Pool) -> Connection | None:
        """Check out a connection that is idle now, without waiting. `None`: no connection is idle."""
        return await pool.getconn() if pool.get_stats().get("pool_available") else None

    def hand_out(self, connection: Connection) -> bool:
        """Hand out a connection that is checked out, if it may be used without a check.

        Returns:
            Whether it was handed out: it was used moments ago, is open, and no data has come on it. If not,
            pass it to `getconn`.
        """
        if not self._is_young(connection):
            return False
        self.in_use += 1
        return True

    async def getconn(self, pool: Pool, connection: Connection | None = None) -> Connection:
        """Check out a connection. Dead ones that come first are replaced.

        The call may be cancelled at any time, and more than once: a connection that is not handed out goes
        back to the pool. (`AsyncConnectionPool.getconn` loses none either. If a caller is cancelled while it
        receives a connection, the pool takes the connection back. Before psycopg_pool 3.3.1, the caller
        receives the connection nevertheless.)

        Args:
            connection: A connection that is checked out already. It is checked first.

        Raises:
            PoolTimeout: No connection came free within the pool's timeout.
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
            # A context of its own: the greeting does not belong into the trace of the first call.
            await asyncio.create_task(
                self.greet(connection), name="glasspoint-greet", context=quiet_context()
            )
            self._returned_at[connection] = monotonic()

    async def putconn(self, pool: Pool, connection: Connection) -> None:
        """Give a connection back."""
        _close_unless_idle(connection)
        self.in_use -= 1
        self._returned_at[connection] = monotonic()
        await pool.putconn(connection)

    async def after(self, error: BaseException, pool: Pool, connection: Connection) -> None:
        """Close a connection on which this error occurred, if the error would only occur again."""
        if not classify(error).fresh or connection.closed:
            return
        _close(connection)
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            await self.renew(pool)

    async def renew(self, pool: Pool) -> None:
        """Replace all connections: idle ones now, others when they come back. At most once a second."""
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
                with quiet():
                    await AsyncConnectionPool.check_connection(connection)
        except TimeoutError:
            # A firewall that drops the packets of this connection has likely forgotten the others too.
            # Checking each of them would use up the caller's time.
            await self.renew(pool)
            return False
        except (psycopg.Error, OSError):
            return False
        return True


class Reconnector:
    """Makes a pool try to connect for as long as a caller waits for a connection.

    The pool itself doubles its pauses. After an outage of five seconds, no caller would get a connection for
    two more seconds; after an outage of a minute, for half a minute more.
    """

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        """Begin idle.

        Args:
            telemetry: Receives an event for each unexpected failure.
        """
        self._background = BackgroundTask(
            "reconnector", telemetry, means="Meanwhile callers wait longer for a PostgreSQL that is back."
        )
        self._task: asyncio.Task[None] | None = None

    async def reconnect_failed(self, pool: Pool) -> None:
        """Start to reconnect. The pool calls this when it gives up making a connection."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._reconnect(pool), name="glasspoint-reconnector", context=quiet_context()
            )

    async def _reconnect(self, pool: Pool) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not pool.closed:
            try:
                if not _is_waited_for(pool):
                    return
                await asyncio.sleep(random.uniform(0.5, 1) * pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                # A request makes the pool connect. This one joins the end of the queue, and leaves at once.
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

    The pool would roll the transaction back, and wait for as long as the server does not respond.
    """
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        _close(connection)


def _has_news(connection: Connection) -> bool:
    """Tell whether unrequested data has come: an end of file, a shutdown message, or only a notice.

    This costs a system call, not a round trip.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
