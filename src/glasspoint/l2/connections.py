"""Checks out, gives back and replaces the connections of one saver, and names their errors for callers.

Open this file when a call waits for a connection, loses one, or raises an error of psycopg.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from glasspoint.errors import (
    GlasspointError,
    InvalidConfigError,
    L2DeadlineError,
    L2UnavailableError,
    SaverClosedError,
    SchemaError,
)
from glasspoint.l2 import eager
from glasspoint.l2.connection_health import ConnectionHealth
from glasspoint.l2.deadline import give_up, is_late
from glasspoint.l2.faults import naming_refusals
from glasspoint.l2.pool import connect_beside, leads_to_primaries, why_not_connected
from glasspoint.l2.schema import GRANTS
from glasspoint.telemetry.events import PoolWaited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager
    from contextvars import Context

    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    from glasspoint.l2.connection_health import Greet
    from glasspoint.l2.types import Connection, Pool
    from glasspoint.model.generics import ResultT
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Telemetry

__all__ = ["Connections"]


class Connections:
    """The connection, or the pool of connections, of upstream's saver.

    Attributes:
        telemetry: Receives an event for every wait for a connection.
    """

    def __init__(self, upstream: AsyncPostgresSaver, telemetry: Telemetry) -> None:
        """Take the connections of upstream's saver.

        Args:
            upstream: The saver. If it has a single connection, calls queue on its lock.
            telemetry: Receives an event for every wait for a connection.
        """
        self.telemetry = telemetry
        self._upstream = upstream
        self._unfinished: set[asyncio.Task[Any]] = set()
        self._health = ConnectionHealth()
        self._waits: dict[object, Callable[[], int]] = {}

    @property
    def greet(self) -> Greet | None:
        """Awaited with each new connection of the pool, before its first use."""
        return self._health.greet

    @greet.setter
    def greet(self, greet: Greet) -> None:
        self._health.greet = greet

    @property
    def pool(self) -> Pool | None:
        """The pool. `None`: the saver has a single connection."""
        conn = self._upstream.conn
        return conn if isinstance(conn, AsyncConnectionPool) else None

    @property
    def is_saturated(self) -> bool:
        """Whether a call would have to wait for a connection now."""
        if self.pool is None:
            return self._upstream.lock.locked()
        stats = self.pool.get_stats()
        full = stats.get("pool_size", 0) >= stats["pool_max"] and not stats.get("pool_available", 0)
        return full or stats.get("requests_waiting", 0) > 0

    @property
    def can_spare_a_connection(self) -> bool:
        """Whether a connection can be used for a moment without delaying a call: one is idle, no call waits.

        This is also true for an empty pool that may be empty (`min_size` is 0). Any other empty pool has lost
        its connections, and would only try in vain to connect.
        """
        if self.pool is None:
            return not self._upstream.lock.locked()
        stats = self.pool.get_stats()
        is_asleep = not stats["pool_min"] and not stats.get("pool_size", 0)
        return (is_asleep or stats.get("pool_available", 0) > 0) and not stats.get("requests_waiting", 0)

    @property
    def in_use(self) -> int:
        """The number of the pool's connections that are handed out."""
        return self._health.in_use

    async def is_busy(self) -> bool:
        """Tell whether it is worth waiting for a connection: connect once, beside the pool.

        Returns:
            Whether the server accepts that connection, or refuses it while calls hold connections.

        Raises:
            psycopg.Error: The server cannot be reached.
        """
        is_in_use = self.in_use > 0 if self.pool is not None else self._upstream.lock.locked()
        return await connect_beside(self._upstream.conn) or is_in_use

    async def leave_standby(self) -> None:
        """Replace all connections, because one of them leads to a standby, which lags behind its primary.

        A pooler keeps a client's connection when it changes to another server. A new connection is refused if
        that server is a standby. So a call fails, instead of reading an older state. Nothing is done for a
        pool that may lead to a standby: the user wants it.
        """
        if self.pool is not None and leads_to_primaries(self.pool):
            await self._health.renew(self.pool)

    async def drain(self) -> None:
        """Wait until every connection is back in the pool, also those of cancelled calls."""
        while self._unfinished:
            await asyncio.wait(self._unfinished)

    @asynccontextmanager
    async def connection(self, scope: Scope | None) -> AsyncIterator[Connection]:
        """Check out a connection, measure the wait, and name errors."""
        started, has_connection = perf_counter(), False
        try:
            async with self.checked_out() as conn:
                has_connection = True
                self.telemetry.emit(PoolWaited(perf_counter() - started, scope))
                yield conn
        except BaseException as exc:
            if not has_connection:
                self.waited_in_vain(started, scope, exc)
            raise

    @asynccontextmanager
    async def checked_out(self, callers: Callable[[], int] = lambda: 1) -> AsyncIterator[Connection]:
        """Check out a connection, and name errors. See `checkout`."""
        with self._naming_faults():
            async with self.checkout(callers) as conn:
                yield conn

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a connection now. May be read in any thread."""
        return sum(callers() for callers in list(self._waits.values()))

    def waited_in_vain(self, started: float, scope: Scope | None, error: BaseException) -> None:
        """Emit that a caller has received no connection. Note on its error what it waited for.

        Args:
            started: When the caller began to wait, by `perf_counter`.
            scope: The scope of the call.
            error: What the caller gets.
        """
        seconds, is_past = perf_counter() - started, is_late(error)
        if is_past:
            error.add_note(self._why_none_came_free(seconds))
        is_timeout = is_past or isinstance(error.__cause__, PoolTimeout)
        self.telemetry.emit(PoolWaited(seconds, scope, error, is_timeout))

    @contextmanager
    def _waiting_for(self, callers: Callable[[], int]) -> Iterator[None]:
        key = object()
        self._waits[key] = callers
        try:
            yield
        finally:
            del self._waits[key]

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        started = perf_counter()
        try:
            with naming_refusals():
                yield
        except PoolTimeout as exc:
            raise L2UnavailableError(self._why_none_came_free(perf_counter() - started)) from exc
        except (psycopg.Error, PoolClosed) as exc:
            named = _named(exc, has_pool=self.pool is not None)
            if named is None:
                raise
            raise named from exc

    def _why_none_came_free(self, seconds: float) -> str:
        """Return the reason: the server gives no connection, or the pool is too small."""
        waited = f"No PostgreSQL connection came free within {seconds:.1f} s"
        if why := why_not_connected(self.pool):
            return f"{why} ({waited}.)"
        if self.pool is not None and self.in_use >= self.pool.max_size:
            return (
                f"{waited}: all {self.pool.max_size} of the pool are in use. It is too small for the load "
                "(pool_max_size), or statements take long."
            )
        return (
            f"{waited}: the server does not answer, or refuses new connections (the logger psycopg.pool says "
            "why), or the pool is too small for the load (pool_max_size)."
        )

    @asynccontextmanager
    async def checkout(self, callers: Callable[[], int] = lambda: 0) -> AsyncIterator[Connection]:
        """Check out a connection. The wait is not measured, and errors stay as they are.

        Args:
            callers: Returns how many callers of the saver wait for this connection. By default none, because
                it is for background work. It may be called in any thread.
        """
        conn = self._upstream.conn
        if not isinstance(conn, AsyncConnectionPool):
            with self._waiting_for(callers):
                await self._upstream.lock.acquire()
            try:
                yield conn
            finally:
                self._upstream.lock.release()
            return
        # Not `pool.connection()`. There a cancelled caller loses its connection for good in two cases: just
        # as it receives the connection, or while it waits for the pool's lock to give it back. So the parts
        # that have to wait run to their end in a task. Mostly no part has to wait.
        checked_out = await self._health.get_idle(conn)
        if checked_out is None or not self._health.hand_out(checked_out):
            getting = self.start(self._health.getconn(conn, checked_out))
            try:
                with self._waiting_for(callers):
                    checked_out = await asyncio.shield(getting)
            except asyncio.CancelledError:
                getting.add_done_callback(lambda got: self._give_back(conn, got))
                give_up(getting)  # otherwise `drain` would wait for it
                raise
        try:
            async with _finished(checked_out):
                yield checked_out
        except psycopg.Error as exc:
            await asyncio.shield(self.start(self._health.after(exc, conn, checked_out)))
            raise
        finally:
            await self._return(conn, checked_out)

    async def _return(self, pool: Pool, conn: Connection) -> None:
        if (rest := eager.start(self._health.putconn(pool, conn))) is not None:
            await asyncio.shield(self.start(rest))

    def start(
        self, work: Coroutine[Any, Any, ResultT], context: Context | None = None
    ) -> asyncio.Task[ResultT]:
        """Start a task that must end before the connections are closed: `drain` waits for it."""
        task = asyncio.create_task(work, context=context)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    def _give_back(self, pool: Pool, got: asyncio.Task[Connection]) -> None:
        if not got.cancelled() and got.exception() is None:
            self.start(self._health.putconn(pool, got.result()))


def _named(error: Exception, *, has_pool: bool) -> GlasspointError | None:
    """Return the error that callers get for an error of psycopg. `None`: they get psycopg's error."""
    match error:
        case PoolClosed():
            return SaverClosedError("The connection pool is not open: open it, or open a new saver.")
        case psycopg.errors.UndefinedTable() if "glasspoint_l1_journal" in str(error):
            return SchemaError(
                "Redis does not answer, which must be recorded in the table glasspoint_l1_journal, and "
                "that is not there: run `glasspoint setup` (or `await saver.setup()`) once, as after every "
                "upgrade."
            )
        case psycopg.errors.UndefinedTable():
            return SchemaError(
                "The checkpoint tables are not there: run `glasspoint setup` (or `await saver.setup()`) "
                "once, before the first use."
            )
        case psycopg.errors.InsufficientPrivilege():
            return SchemaError(
                f"The role that the saver connects with may not use the checkpoint tables: {GRANTS}."
            )
        case psycopg.errors.ReadOnlySqlTransaction():
            return L2UnavailableError(
                "PostgreSQL takes no writes here: a standby, or a primary that a failover has demoted. "
                "Connect to the primary."
            )
        case psycopg.errors.QueryCanceled():
            return L2DeadlineError(
                "PostgreSQL gave a statement up, after its statement_timeout or because somebody cancelled "
                "it. Nothing of it was done; the call may be repeated."
            )
        case psycopg.errors.ProgramLimitExceeded() if error.diag.constraint_name is not None:
            return InvalidConfigError(
                "An id is too long for an index of PostgreSQL, which takes 2704 bytes for a row: shorten the "
                "thread_id, the checkpoint_ns, or the names of channels. Nothing was stored."
            )
        case psycopg.OperationalError() | psycopg.InternalError() if _is_of_the_connection(error):
            remedy = (
                "Calls may be repeated: they store the same again."
                if has_pool
                else "The AsyncPostgresSaver works on this one connection, so that there is no other: open "
                "a new saver, or give it a pool."
            )
            return L2UnavailableError(
                f"The connection to PostgreSQL broke ({type(error).__name__}): the call was not answered. "
                f"{remedy}"
            )
    return None


def _is_of_the_connection(error: psycopg.Error) -> bool:
    """Tell whether the connection has failed, the server shuts down, or it takes no more connections."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P", "53300"))


def _finished(conn: Connection) -> AbstractAsyncContextManager[object]:
    """Commit or roll back the block at its end. In autocommit, where each statement does so, do nothing."""
    return nullcontext() if conn.autocommit else conn
