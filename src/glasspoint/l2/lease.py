"""The lease of the retention: which process removes old checkpoints, and when a run succeeded last.

One row of `glasspoint_retention`, by PostgreSQL's clock. Open this file when two processes prune at once.
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

_PATIENCE_SECONDS: Final = 5.0
"""How long a statement of these may take, and wait for a connection."""

_PATIENCE_ON_ONLY_CONNECTION_SECONDS: Final = 10.0
"""When the time is up, that may cost the connection. Where there is no other, calls have as long, too."""

_PATIENCE_AT_THE_END_SECONDS: Final = 2.0
"""How long giving the lease back may take. The caller closes its saver, and the lease runs out anyway."""

_LOOK: Final = query("look_at_lease")
_CLAIM: Final = query("claim_lease")
_RENEW: Final = query("renew_lease")
_GIVE_BACK: Final = query("give_lease_back")
_POSTPONE: Final = query("postpone_lease")
_FINISH: Final = query("finish_lease")


class Claim(NamedTuple):
    """What an attempt to take the lease has found.

    Attributes:
        is_mine: Whether the lease was taken.
        succeeded_at: When a run succeeded last, in seconds since 1970; `None` for never.
        now: What PostgreSQL's clock says, in seconds since 1970.
    """

    is_mine: bool
    succeeded_at: float | None
    now: float


class Lease:
    """The lease, as one saver sees it.

    Each method raises what PostgreSQL raises, or `TimeoutError`; and `SchemaError` if the table is missing,
    or may not be used.

    Attributes:
        may_be_held: Whether the row may name this saver; also if an answer was lost.
    """

    def __init__(self, connections: Connections) -> None:
        """Take the connections that are used.

        Args:
            connections: All statements go through them.
        """
        self._connections = connections
        self._holder = secrets.token_hex(8)
        self.may_be_held = False

    async def claim(self, seconds: float, *, every_seconds: float) -> Claim:
        """Take the lease, if nobody holds it, a run is due, and PostgreSQL takes writes.

        Args:
            seconds: How long it is held, unless it is renewed.
            every_seconds: A run is due so long after the last one that succeeded.
        """
        is_due, succeeded_at, now = await self._ask(_LOOK, every=every_seconds) or (False, None, 0.0)
        if not is_due:
            return Claim(False, succeeded_at, now)
        self.may_be_held = True
        self.may_be_held = await self._ask(_CLAIM, lease=seconds, every=every_seconds) is not None
        return Claim(self.may_be_held, succeeded_at, now)

    async def renew(self, seconds: float) -> bool:
        """Hold it for longer. Returns whether it was still held."""
        return await self._ask(_RENEW, lease=seconds) is not None

    async def give_back(self) -> None:
        """Let any process take it."""
        await self._ask(_GIVE_BACK, within_seconds=_PATIENCE_AT_THE_END_SECONDS)
        self.may_be_held = False

    async def postpone(self, seconds: float) -> None:
        """Let any process take it, but none before so many seconds."""
        await self._ask(_POSTPONE, pause=seconds)
        self.may_be_held = False

    async def finish(self) -> float | None:
        """Write down that the run succeeded, and give the lease back.

        Returns:
            When that was, in seconds since 1970; `None` if another process has the lease.
        """
        row = await self._ask(_FINISH)
        self.may_be_held = False
        return None if row is None else row[0]

    async def _ask(
        self, statement: str, *, within_seconds: float | None = None, **params: float
    ) -> tuple[Any, ...] | None:
        if self._connections.pool is None:
            within_seconds = _PATIENCE_ON_ONLY_CONNECTION_SECONDS
        try:
            async with (
                within(within_seconds or _PATIENCE_SECONDS),
                self._connections.checkout() as conn,
                conn.cursor(row_factory=tuple_row) as cursor,
            ):
                await cursor.execute(statement, {"holder": self._holder, **params})
                return await cursor.fetchone()
        except (errors.UndefinedTable, errors.InsufficientPrivilege) as exc:
            raise SchemaError(
                "The table glasspoint_retention is missing, or the role that the saver connects with may not "
                "use it: call `await saver.setup()` once, with a role that may make tables, and GRANT "
                "SELECT, INSERT, UPDATE ON glasspoint_retention."
            ) from exc
