"""What can go wrong with PostgreSQL, and what is done about each: one table, and who looks things up in it.

Every call that is repeated is one that stores the same again; whether that is safe for L1 is the business of
`savers.cached`. `docs/reliability.md` says the same in words; a test holds it against this.
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
"""What a background task expects of its servers. Anything else is a mistake of ours, or of a client's."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong.

    Attributes:
        says: What happened, for the log.
        sqlstates: What PostgreSQL calls it; these, or what begins so. None: it is told by something else.
        reason: The word for it in metrics and logs, if it is retried; `None`: it is not.
        unchanged: Whether PostgreSQL is certainly as it was.
        fresh: Whether the connection is of no more use: the next attempt needs another.
    """

    says: str
    sqlstates: tuple[str, ...]
    reason: RetryReason | None
    unchanged: bool
    fresh: bool


_LOST = Fault("the connection broke", ("08", "40003"), "connection_lost", unchanged=False, fresh=True)

# A pool's timeout is not retried: the caller has waited for a connection as long as it was told to, all that
# time the pool has tried to connect, and another round would only stand at the end of the same queue again.
_NO_CONNECTION = Fault("no connection came free in time", (), None, unchanged=True, fresh=False)

_OTHER = Fault("PostgreSQL refused", (), None, unchanged=True, fresh=False)

# Not PostgreSQL's: our own mistake, a deadline, a cancellation. What was sent may have been done.
_UNKNOWN = Fault("the call was cut off", (), None, unchanged=False, fresh=False)

# The first that fits, so a longer code stands before what it begins with.
FAULTS = (
    _LOST,
    Fault("the database was dropped", ("57P04",), None, unchanged=False, fresh=True),
    # 57P01 also when somebody terminates one connection. Whether the statement was done is not known: the
    # server may have committed it, and said so into a connection that was closed first.
    Fault(
        "the server closed the connection, or restarts",
        ("57P",),
        "server_restart",
        unchanged=False,
        fresh=True,
    ),
    # A primary that a failover has demoted, whose connections live on. The name may lead elsewhere by now.
    Fault("the server takes no writes", ("25006",), "read_only", unchanged=True, fresh=True),
    # From poolers, once connected: a server that is full turns the pool's own attempts away.
    Fault(
        "the server has no connection to give", ("53300",), "too_many_connections", unchanged=True, fresh=True
    ),
    Fault("a deadlock was resolved against this call", ("40P01",), "deadlock", unchanged=True, fresh=False),
    Fault("another transaction came first", ("40001",), "serialization", unchanged=True, fresh=False),
    Fault("others keep the rows locked", ("55P03",), "lock_timeout", unchanged=True, fresh=False),
    # Its time was used up already, or somebody wanted it to end.
    Fault("the statement was cancelled", ("57014",), None, unchanged=True, fresh=False),
    # Disk full, out of memory: it would be so again, and each attempt makes it worse.
    Fault("the server lacks a resource", ("53", "58"), None, unchanged=True, fresh=False),
    _NO_CONNECTION,
    _OTHER,
    _UNKNOWN,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason for which PostgreSQL refuses a call that nobody repeats.

    Attributes:
        says: What happened.
        sqlstates: What PostgreSQL calls it; these, or what begins so. None: any other.
        do: What to do about it.
        of_tables: Whether the tables are to blame: a `SchemaError`. Otherwise an `L2RefusedError`.
    """

    says: str
    sqlstates: tuple[str, ...]
    do: str
    of_tables: bool = False


# The first that fits.
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
        "Call `await saver.setup()` once, as after every upgrade. Look at what was changed or restored.",
        of_tables=True,
    ),
    Refusal(
        "the server reports damaged data or a mistake of its own",
        ("XX",),
        "Look at the log of the server, and make sure that there is a backup.",
    ),
    Refusal("the server refuses, and the table does not know why", (), "Look at the log of the server."),
)

# Named elsewhere, with more than is known here: lost connections, cancelled statements, missing tables and
# missing rights.
_NAMED_ELSEWHERE = ("08", "57", "42P01", "42501")


@contextmanager
def naming_refusals() -> Iterator[None]:
    """Name what PostgreSQL refuses in a block.

    What is retried stays as it is, and so does what never reached PostgreSQL.

    Raises:
        SchemaError, L2RefusedError: PostgreSQL refused. Of the row, only names of the schema are told.
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
    """Look an error up: one of psycopg's, or one of ours that psycopg's caused."""
    cause = error.__cause__ if isinstance(error, GlasspointError) else error
    if isinstance(cause, PoolTimeout | PoolClosed | TooManyRequests):
        return _NO_CONNECTION
    if not isinstance(cause, psycopg.Error):
        return _UNKNOWN
    if cause.sqlstate is None:
        # "the connection is lost", "server closed the connection unexpectedly", "SSL error: bad length",
        # "AsyncPipeline [BAD]": the client library's own words, in which the server had no part. What it
        # complains of without being an OperationalError is our own mistake, and stays one.
        return _LOST if isinstance(cause, psycopg.OperationalError) else _UNKNOWN
    return next((fault for fault in FAULTS if cause.sqlstate.startswith(fault.sqlstates)), _OTHER)


def certainly_unchanged(error: BaseException) -> bool:
    """Tell whether a failed statement has certainly left PostgreSQL as it was.

    It has if PostgreSQL itself answered with an error (a single statement is rolled back whole), or if it was
    never sent. A broken connection, a server that shuts down, a deadline or a cancellation leave it open.
    """
    return classify(error).unchanged


def is_passing(error: BaseException) -> bool:
    """Tell whether the same call may be answered some time later: a full disk, a lock, a restart.

    What PostgreSQL refuses for what it was sent, it refuses again.
    """
    return classify(error) not in (_OTHER, _UNKNOWN)


def may_still_run(connection: Any) -> bool:
    """Tell whether a statement that failed, or was cancelled, may still be running in PostgreSQL.

    Not if its connection is idle again: psycopg has had the server's last word on it then.
    """
    if not isinstance(connection, psycopg.AsyncConnection) or connection.closed:
        return True
    return connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE
