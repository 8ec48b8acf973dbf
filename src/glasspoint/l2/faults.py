"""What can go wrong with PostgreSQL, and what is done about it: one table, and the functions that read it.

Open this file when a call is repeated that should not be, or the other way round.

Every call that is repeated stores the same again. `savers.cached` makes sure that this is safe for L1.
`docs/reliability.md` says the same in words; a test holds it against this file.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from glasspoint.errors import GlasspointError, L2RefusedError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glasspoint.telemetry.events import RetryReason

__all__ = [
    "FAULTS",
    "FORESEEN",
    "REFUSALS",
    "Fault",
    "Refusal",
    "certainly_unchanged",
    "classify",
    "is_passing",
    "may_still_run",
    "naming_refusals",
]

FORESEEN = (GlasspointError, psycopg.Error, OSError, TimeoutError)
"""The errors that a background task expects. Any other is a mistake of ours, or of a client library."""


_OF_THE_CONNECTION = (psycopg.OperationalError, psycopg.InternalError)
"""The errors of psycopg which, without a SQLSTATE, mean that the connection cannot be used any more."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong.

    Attributes:
        says: What happened, for the log.
        sqlstates: Its codes in PostgreSQL, or their beginnings. Empty: it is recognized by something else.
        reason: The word for it in metrics and logs. `None`: it is not retried.
        unchanged: Whether PostgreSQL is certainly as it was before.
        fresh: Whether the connection cannot be used any more: the next attempt needs another one.
    """

    says: str
    sqlstates: tuple[str, ...]
    reason: RetryReason | None
    unchanged: bool
    fresh: bool


_LOST = Fault("the connection broke", ("08", "40003"), "connection_lost", unchanged=False, fresh=True)

# A pool's timeout is not retried. The caller has waited for as long as it may, and the pool has tried to
# connect all that time. Another attempt would only join the end of the same queue.
_NO_CONNECTION = Fault("no connection came free in time", (), None, unchanged=True, fresh=False)

_OTHER = Fault("PostgreSQL refused", (), None, unchanged=True, fresh=False)

# Not an error of PostgreSQL: our own mistake, a deadline, a cancellation. The statement may have been done.
_UNKNOWN = Fault("the call was cut off", (), None, unchanged=False, fresh=False)

# The first row that fits is taken. So a longer code stands before a shorter one that it begins with.
FAULTS = (
    _LOST,
    Fault("the database was dropped", ("57P04",), None, unchanged=False, fresh=True),
    # 57P01 also comes if somebody terminates one connection. It is not known whether the statement was done:
    # the server may have committed it, and the connection was closed before the result arrived.
    Fault(
        "the server closed the connection, or restarts",
        ("57P",),
        "server_restart",
        unchanged=False,
        fresh=True,
    ),
    # A failover has demoted the primary, and its connections are still open. The host name may lead to the
    # new primary by now.
    Fault("the server takes no writes", ("25006",), "read_only", unchanged=True, fresh=True),
    # Comes from poolers, on open connections. A full server itself only refuses new connections.
    Fault(
        "the server has no connection to give", ("53300",), "too_many_connections", unchanged=True, fresh=True
    ),
    Fault("a deadlock was resolved against this call", ("40P01",), "deadlock", unchanged=True, fresh=False),
    Fault("another transaction came first", ("40001",), "serialization", unchanged=True, fresh=False),
    Fault("others keep the rows locked", ("55P03",), "lock_timeout", unchanged=True, fresh=False),
    # The statement's time was up, or somebody cancelled it on purpose.
    Fault("the statement was cancelled", ("57014",), None, unchanged=True, fresh=False),
    # Disk full, out of memory: the next attempt would fail too, and each attempt makes it worse.
    Fault("the server lacks a resource", ("53", "58"), None, unchanged=True, fresh=False),
    _NO_CONNECTION,
    _OTHER,
    _UNKNOWN,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason why PostgreSQL refuses a call. Such a call is not repeated.

    Attributes:
        says: What happened.
        sqlstates: Its codes in PostgreSQL, or their beginnings. Empty: any other code.
        do: What to do about it.
        of_tables: Whether the tables are the cause: then it is a `SchemaError`, else an `L2RefusedError`.
    """

    says: str
    sqlstates: tuple[str, ...]
    do: str
    of_tables: bool = False


# The first row that fits is taken.
REFUSALS = (
    Refusal(
        "the disk of the server is full",
        ("53100",),
        "Make room on the disk, for example with glasspoint prune and VACUUM. Then repeat the call.",
    ),
    Refusal(
        "the server has no memory left",
        ("53200",),
        "Look at the memory and the log of the server. Then repeat the call.",
    ),
    Refusal(
        "the server has reached a limit", ("53",), "Look at the log of the server. Then repeat the call."
    ),
    Refusal(
        "something is too large for PostgreSQL",
        ("54",),
        "Use a shorter thread id, namespace, task id or channel name: together they must fit into an index "
        "(2,700 bytes). Keep texts of more than 250 MB outside of the state.",
    ),
    Refusal(
        "the server cannot read or write its files",
        ("58",),
        "Look at the disk and the log of the server. Then repeat the call.",
    ),
    Refusal(
        "a stored checkpoint cannot be taken apart",
        ("22023",),
        "Its channel_versions must be a JSON object: correct them, or delete the checkpoint.",
    ),
    Refusal(
        "PostgreSQL cannot represent a value",
        ("22",),
        "Use a database whose encoding is UTF8, and filters without NUL, NaN and infinity.",
    ),
    Refusal("a constraint refuses the row", ("23",), "Look at constraints that were added to the tables."),
    Refusal(
        "a trigger or a function refuses",
        ("P0", "38", "39"),
        "Look at triggers that were added to the tables.",
    ),
    Refusal(
        "a pooler in transaction mode is in between",
        ("26000", "42P05"),
        "Set prepare_threshold to None (CHECKPOINT_PREPARE_THRESHOLD=none).",
    ),
    Refusal(
        "the tables are not as this version needs them",
        ("42", "3F000"),
        "Run `glasspoint setup` (or `await saver.setup()`) once, as after every upgrade. Look at what was "
        "changed or restored.",
        of_tables=True,
    ),
    Refusal(
        "the server reports damaged data or a mistake of its own",
        ("XX",),
        "Look at the log of the server, and make sure that there is a backup.",
    ),
    Refusal("the server refuses, and the table does not know why", (), "Look at the log of the server."),
)

# Errors that other modules name, because they know more: lost connections, cancelled statements, missing
# tables and missing rights.
_NAMED_ELSEWHERE = ("08", "57", "42P01", "42501")


@contextmanager
def naming_refusals() -> Iterator[None]:
    """Turn a refusal of PostgreSQL in the block into an error that says what to do.

    Errors that are retried stay as they are, and so do those that do not come from PostgreSQL.

    Raises:
        SchemaError, L2RefusedError: PostgreSQL refused. The text names tables and constraints, but no values.
    """
    try:
        yield
    except psycopg.Error as exc:
        state = exc.sqlstate
        if state is None or state.startswith(_NAMED_ELSEWHERE) or classify(exc).reason is not None:
            raise
        if isinstance(exc, psycopg.errors.ProgramLimitExceeded) and exc.diag.constraint_name:
            raise  # an id is too long for an index: an `InvalidConfigError`, as in the other tiers
        refusal = next(each for each in REFUSALS if state.startswith(each.sqlstates or ("",)))
        names = [type(exc).__name__, state]
        if exc.diag.table_name:
            names.append(f"table {exc.diag.table_name}")
        if exc.diag.constraint_name:
            names.append(f"constraint {exc.diag.constraint_name}")
        message = (
            f"PostgreSQL refused, and nothing was done: {refusal.says} ({', '.join(names)}). {refusal.do}"
        )
        if refusal.of_tables:
            raise SchemaError(message) from exc
        raise L2RefusedError(message, sqlstate=state, is_passing=is_passing(exc)) from exc


def classify(error: BaseException) -> Fault:
    """Look an error up: an error of psycopg, or one of ours that was caused by such an error."""
    cause = error.__cause__ if isinstance(error, GlasspointError) else error
    if isinstance(cause, PoolTimeout | PoolClosed | TooManyRequests):
        return _NO_CONNECTION
    if not isinstance(cause, psycopg.Error):
        return _UNKNOWN
    if cause.sqlstate is None:
        # The client library itself has raised this error, not the server: "the connection is lost", "server
        # closed the connection unexpectedly", "SSL error: bad length", "AsyncPipeline [BAD]". Or an
        # InternalError, "received 2 results from command 'COMMIT'": a pooler has passed on why its server
        # closed the connection, and then said that it did. Any other is our own mistake, and is not retried.
        return _LOST if isinstance(cause, _OF_THE_CONNECTION) else _UNKNOWN
    return next((fault for fault in FAULTS if cause.sqlstate.startswith(fault.sqlstates)), _OTHER)


def certainly_unchanged(error: BaseException) -> bool:
    """Tell whether a failed statement has certainly left PostgreSQL as it was.

    It has if PostgreSQL itself returned an error (a single statement is rolled back whole), or if it was
    never sent. After a broken connection, a shutdown of the server, a deadline or a cancellation, this is not
    known.
    """
    return classify(error).unchanged


def is_passing(error: BaseException) -> bool:
    """Tell whether the same call may succeed some time later: after a full disk, a lock, a restart.

    If PostgreSQL refuses a call because of its content, it will refuse the same call again.
    """
    return classify(error) not in (_OTHER, _UNKNOWN)


def may_still_run(connection: Any) -> bool:
    """Tell whether a statement that failed, or was cancelled, may still be running in PostgreSQL.

    It is not running if its connection is idle again: then psycopg has received the end of its result.
    """
    if not isinstance(connection, psycopg.AsyncConnection) or connection.closed:
        return True
    return connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE
