"""How large the tables are: for telemetry, which asks now and then and waits for nothing.

`known` may be called from any thread, also while PostgreSQL or the saver's event loop does not answer: it
returns what was found last, and when that is a minute old has the loop look again, in the background. A look
is one query, on a connection that is idle anyway; if there is none, the next scrape asks again.

Rows are estimated. The statistics count what comes and goes exactly, from the last VACUUM or ANALYZE that
they know of, or from the table's beginning; a crash or a failover loses them, and then the rows per page that
the planner goes by are the better guess.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import tuple_row

from glasspoint.l2.deadline import within
from glasspoint.l2.faults import FORESEEN
from glasspoint.l2.sql import query
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.events import TableSize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from glasspoint.l2.connections import Connections

__all__ = ["TABLES", "Sizes"]

_log = logging.getLogger("glasspoint.l2")

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "glasspoint_l1_journal")

_SET_STATEMENT_TIMEOUT: Final = query("set_statement_timeout")
_SIZES: Final = query("table_sizes")

_FRESH_SECONDS = 60.0
_UNTIL_SETUP_SECONDS = 5.0

# Nothing is shown any more when newer figures were asked for in vain for so long, or when nobody asked.
_IN_VAIN_SECONDS = 300.0
_OLD_SECONDS = 3600.0

# A size waits for whoever has locked the table (ALTER TABLE, VACUUM FULL).
_STATEMENT_TIMEOUT = "500ms"
_LOOK_SECONDS = 2.0
# The time being up may cost the connection, and where it is the only one calls have as long, too.
_LOOK_ON_ONLY_CONNECTION_SECONDS = 10.0


class Sizes:
    """The sizes of one store's tables."""

    def __init__(self, connections: Connections) -> None:
        """Take the connections to the database whose tables are measured.

        Args:
            connections: The running event loop is the one that they work on.
        """
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._process_id = os.getpid()
        self._found: Mapping[str, TableSize] = {}
        self._found_at = float("-inf")
        self._ask_from = float("-inf")
        self._asked_at: float | None = None  # the first time since figures came
        self._looking = False
        self._stopped = False
        self._warned = False
        self._task: asyncio.Task[None] | None = None
        self._background = BackgroundTask(
            "table_sizes", connections.telemetry, means="Meanwhile the sizes of the tables are not known."
        )

    def known(self) -> Mapping[str, TableSize]:
        """Return what is known of the tables that are there, and see that it is renewed. Never waits."""
        now = monotonic()
        if now >= self._ask_from:
            self.look_soon()
        in_vain = self._asked_at is not None and now - self._asked_at > _IN_VAIN_SECONDS
        return {} if in_vain or now - self._found_at > _OLD_SECONDS else self._found

    def look_soon(self) -> None:
        """Have the event loop look, when it has time. From any thread."""
        if self._looking or self._stopped:
            return
        self._looking = True  # also while the loop is busy: one look waits there, not one a scrape
        if self._asked_at is None:
            self._asked_at = monotonic()
        try:
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError:  # the loop has ended
            self._stopped = True

    async def stop(self) -> None:
        """Look no more; a look that is under way is broken off, and waited for."""
        self._stopped = True
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    # ---------------------------------------------------------------- helpers

    def _begin(self) -> None:
        if self._stopped or (self._task is not None and not self._task.done()):
            return
        if os.getpid() != self._process_id:  # somebody runs the parent's loop in a child
            return
        self._task = self._loop.create_task(
            self._look(),
            name="glasspoint-sizes",
            context=Context(),  # in nobody's trace
        )

    async def _look(self) -> None:
        try:
            if not self._connections.can_spare_a_connection:
                return
            self._ask_from = monotonic() + _FRESH_SECONDS
            pooled = self._connections.pool is not None
            async with within(_LOOK_SECONDS if pooled else _LOOK_ON_ONLY_CONNECTION_SECONDS):
                found = await self._query()
        except FORESEEN as exc:
            self._failed(exc)
        except Exception as exc:
            self._ask_from = monotonic() + self._background.failed(exc)
        else:
            self._background.worked()
            self._found, self._found_at, self._asked_at = found, monotonic(), None
            if not found:
                self._ask_from = monotonic() + _UNTIL_SETUP_SECONDS
        finally:
            self._looking = False

    async def _query(self) -> dict[str, TableSize]:
        async with (
            self._connections.checkout() as conn,
            conn.transaction(),
            conn.cursor(row_factory=tuple_row) as cursor,
        ):
            await cursor.execute(_SET_STATEMENT_TIMEOUT, {"timeout": _STATEMENT_TIMEOUT})
            await cursor.execute(_SIZES, {"tables": list(TABLES)})
            return {name: TableSize(size, max(0, rows)) for name, size, rows in await cursor.fetchall()}

    def _failed(self, exc: BaseException) -> None:
        """A server that does not answer is reported where callers meet it; one that refuses, here, once."""
        refused = isinstance(exc, psycopg.Error) and not isinstance(exc, psycopg.OperationalError)
        level = logging.WARNING if refused and not self._warned else logging.DEBUG
        self._warned = self._warned or refused
        _log.log(level, "The sizes of the tables are not known (%s).", type(exc).__name__)
