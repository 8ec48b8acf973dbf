"""What can go wrong with PostgreSQL, and what is done about each: one table, and who looks things up in it.

Every call that is repeated is one that stores the same again; whether that is safe for L1 is `saver`'s
business. `docs/reliability.md` says the same in words; a test holds it against this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from glasspoint.errors import GlasspointError

__all__ = [
    "FAULTS",
    "FORESEEN",
    "Fault",
    "RetryReason",
    "certainly_unchanged",
    "classify",
    "is_passing",
    "may_still_run",
]

FORESEEN = (GlasspointError, psycopg.Error, OSError, TimeoutError)
"""What a background task expects of its servers. Anything else is a mistake of ours, or of a client's."""

RetryReason = Literal[
    "connection_lost",
    "server_restart",
    "read_only",
    "too_many_connections",
    "deadlock",
    "serialization",
    "lock_timeout",
]


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
    """Tell whether the same call may be answered some time later: a full disk, a lock, a restart. What
    PostgreSQL refuses for what it was sent, it refuses again."""
    return classify(error) not in (_OTHER, _UNKNOWN)


def may_still_run(connection: Any) -> bool:
    """Tell whether a statement that failed, or was cancelled, may still be running in PostgreSQL.

    Not if its connection is idle again: psycopg has had the server's last word on it then.
    """
    if not isinstance(connection, psycopg.AsyncConnection) or connection.closed:
        return True
    return connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE
