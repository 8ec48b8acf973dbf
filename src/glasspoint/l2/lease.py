"""The lease of the retention: which process removes old checkpoints, and when a run succeeded last.

The lease is one row of `glasspoint_retention`; its times are by PostgreSQL's clock. Open this file when two
processes prune at the same time.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from psycopg import errors
from psycopg.rows import tuple_row

from glasspoint.errors import SchemaError
from glasspoint.l2.deadline import within
from glasspoint.l2.sql import query

if TYPE_CHECKING:
    from glasspoint.l2.connections import Connections

__all__ = ["Claim", "Lease"]

_TIMEOUT_SECONDS: Final = 5.0
"""The timeout of one statement, including the wait for a connection."""

_TIMEOUT_ON_ONLY_CONNECTION_SECONDS: Final = 10.0
"""The timeout if the saver has a single connection, which a timeout may break. Calls have as long, too."""

_TIMEOUT_AT_THE_END_SECONDS: Final = 2.0
"""The timeout for giving the lease back. The caller is closing its saver, and the lease expires anyway."""

_LOOK: Final = query("look_at_lease")
_CLAIM: Final = query("claim_lease")
_RENEW: Final = query("renew_lease")
_GIVE_BACK: Final = query("give_lease_back")
_POSTPONE: Final = query("postpone_lease")
_FINISH: Final = query("finish_lease")


class Claim(NamedTuple):
    """The result of an attempt to take the lease.

    Attributes:
        is_mine: Whether the lease was taken.
        succeeded_at: When a run succeeded last, in seconds since 1970. `None`: never.
        now: The time on PostgreSQL's clock, in seconds since 1970.
    """

    is_mine: bool
    succeeded_at: float | None
    now: float


class Lease:
    """The lease, as one saver sees it.

    Each method raises the errors of PostgreSQL, `TimeoutError`, or `SchemaError` if the table is missing or
    this role may not use it.

    Attributes:
        may_be_held: Whether the row may name this saver. Stays true if a result was lost.
    """

    def __init__(self, connections: Connections) -> None:
        """Take the connections to use.

        Args:
            connections: All statements go through them.
        """
        self._connections = connections
        self._holder = secrets.token_hex(8)
        self.may_be_held = False

    async def claim(self, seconds: float, *, every_seconds: float) -> Claim:
        """Take the lease, if no process holds it, a run is due, and PostgreSQL takes writes.

        Args:
            seconds: How long the lease is held, unless it is renewed.
            every_seconds: A run is due this long after the last one that succeeded.
        """
        is_due, succeeded_at, now = await self._ask(_LOOK, every=every_seconds) or (False, None, 0.0)
        if not is_due:
            return Claim(False, succeeded_at, now)
        self.may_be_held = True
        self.may_be_held = await self._ask(_CLAIM, lease=seconds, every=every_seconds) is not None
        return Claim(self.may_be_held, succeeded_at, now)

    async def renew(self, seconds: float) -> bool:
        """Hold the lease for longer. Returns whether it was still held."""
        return await self._ask(_RENEW, lease=seconds) is not None

    async def give_back(self) -> None:
        """Let any process take the lease."""
        await self._ask(_GIVE_BACK, within_seconds=_TIMEOUT_AT_THE_END_SECONDS)
        self.may_be_held = False

    async def postpone(self, seconds: float) -> None:
        """Let any process take the lease, but only after so many seconds."""
        await self._ask(_POSTPONE, pause=seconds)
        self.may_be_held = False

    async def finish(self) -> float | None:
        """Record that the run succeeded, and give the lease back.

        Returns:
            When the run succeeded, in seconds since 1970. `None`: another process has the lease.
        """
        row = await self._ask(_FINISH)
        self.may_be_held = False
        return None if row is None else row[0]

    async def _ask(
        self, statement: str, *, within_seconds: float | None = None, **params: float
    ) -> tuple[Any, ...] | None:
        if self._connections.pool is None:
            within_seconds = _TIMEOUT_ON_ONLY_CONNECTION_SECONDS
        try:
            async with (
                within(within_seconds or _TIMEOUT_SECONDS),
                self._connections.checkout() as conn,
                conn.cursor(row_factory=tuple_row) as cursor,
            ):
                await cursor.execute(statement, {"holder": self._holder, **params})
                return await cursor.fetchone()
        except (errors.UndefinedTable, errors.InsufficientPrivilege) as exc:
            raise SchemaError(
                "The table glasspoint_retention is missing, or the role that the saver connects with may not "
                "use it: run `glasspoint setup` (or `await saver.setup()`) once, with a role that may make "
                "tables, and GRANT "
                "SELECT, INSERT, UPDATE ON glasspoint_retention."
            ) from exc
