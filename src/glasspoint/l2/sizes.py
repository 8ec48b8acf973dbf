"""Estimates how large the tables are, for telemetry, without making a scrape or a call wait.

Open this file when the size of a table in the metrics is missing or wrong.

`known` may be called from any thread, also while PostgreSQL or the saver's event loop does not respond. It
returns the last figures. If they are a minute old, it makes the loop look again, in the background. A look is
one query, on a connection that is idle anyway. If no connection is idle, the next scrape tries again.

The numbers of rows are estimates. PostgreSQL's statistics count added and removed rows exactly, from the last
VACUUM or ANALYZE that they know of, or from the table's creation. A crash or a failover loses the statistics.
Then the planner's number of rows per page gives the better estimate.
"""

from __future__ import annotations

import asyncio
import logging
import os
from time import monotonic
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.rows import tuple_row

from glasspoint.l2.deadline import within
from glasspoint.l2.faults import FORESEEN
from glasspoint.l2.sql import query
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.events import TableSize
from glasspoint.telemetry.quiet import quiet_context

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

# No figures are shown if newer ones were asked for in vain for so long, or if the last ones are so old.
_IN_VAIN_SECONDS = 300.0
_OLD_SECONDS = 3600.0

# The query waits while another transaction has locked the table (ALTER TABLE, VACUUM FULL).
_STATEMENT_TIMEOUT = "500ms"
_LOOK_SECONDS = 2.0
# A timeout may break the connection. If it is the only one, a look may take as long as a call.
_LOOK_ON_ONLY_CONNECTION_SECONDS = 10.0


class Sizes:
    """The sizes of one store's tables."""

    def __init__(self, connections: Connections) -> None:
        """Take the connections to the database whose tables are measured.

        Args:
            connections: Connections that work on the running event loop.
        """
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._process_id = os.getpid()
        self._found: Mapping[str, TableSize] = {}
        self._found_at = float("-inf")
        self._ask_from = float("-inf")
        self._asked_at: float | None = None  # when a look was first asked for since the last figures came
        self._looking = False
        self._stopped = False
        self._warned = False
        self._task: asyncio.Task[None] | None = None
        self._background = BackgroundTask(
            "table_sizes", connections.telemetry, means="Meanwhile the sizes of the tables are not known."
        )

    def known(self) -> Mapping[str, TableSize]:
        """Return the last sizes of the tables that exist. Old ones are renewed later. Never waits."""
        now = monotonic()
        if now >= self._ask_from:
            self.look_soon()
        in_vain = self._asked_at is not None and now - self._asked_at > _IN_VAIN_SECONDS
        return {} if in_vain or now - self._found_at > _OLD_SECONDS else self._found

    def look_soon(self) -> None:
        """Make the event loop look, when it has time. May be called from any thread."""
        if self._looking or self._stopped:
            return
        self._looking = True  # also while the loop is busy: one look waits there, not one for each scrape
        if self._asked_at is None:
            self._asked_at = monotonic()
        try:
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError:  # the loop has ended
            self._stopped = True

    async def stop(self) -> None:
        """Stop looking: cancel a look that is under way, and wait for its end."""
        self._stopped = True
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    # ---------------------------------------------------------------- helpers

    def _begin(self) -> None:
        if self._stopped or (self._task is not None and not self._task.done()):
            return
        if os.getpid() != self._process_id:  # a child process runs its parent's loop
            return
        self._task = self._loop.create_task(
            self._look(),
            name="glasspoint-sizes",
            context=quiet_context(),
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
        """Warn once if the server refuses. If it does not respond, the calls report that."""
        refused = isinstance(exc, psycopg.Error) and not isinstance(exc, psycopg.OperationalError)
        level = logging.WARNING if refused and not self._warned else logging.DEBUG
        self._warned = self._warned or refused
        _log.log(level, "The sizes of the tables are not known (%s).", type(exc).__name__)
