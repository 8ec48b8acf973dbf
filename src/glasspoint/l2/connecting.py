"""Tells why a connection to PostgreSQL cannot be made: an outage, or a mistake in the configuration.

Open this file when a failed connection is taken for the wrong one of these, or its error gives wrong advice.

A fallback chain falls when PostgreSQL cannot be reached. It must not fall when PostgreSQL responds and
refuses (a wrong password, no such database): the refusal would stay, and a process would work without its
history.

psycopg sets no SQLSTATE on an error of this kind: libpq passes on the text alone. So the table is looked up
by the words of libpq and of the server. libpq speaks English; a server may not (`lc_messages`). When a server
refuses in words that the table does not know, `ask_sqlstates` connects once more and reads the SQLSTATE from
libpq's trace.

`docs/reliability.md` holds the same table; a test holds the two against each other.
"""

from __future__ import annotations

import os
import re
import select
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "NOT_REACHED",
    "NO_PRIMARY",
    "REFUSED",
    "TROUBLES",
    "Diagnosis",
    "Trouble",
    "ask_sqlstates",
    "diagnose",
]


@dataclass(frozen=True, slots=True)
class Trouble:
    """One reason why a connection cannot be made.

    Attributes:
        says: What happened.
        words: The words of libpq or the server. `None`: the row is for errors that no other row knows.
        sqlstates: Its codes in PostgreSQL, or their beginnings. Empty: it comes from libpq, or from a pooler.
        is_outage: Whether it passes without a change of settings.
        do: What to do about it.
        is_up: Whether the server is up, and serves the connections that are open.
    """

    says: str
    words: re.Pattern[str] | None
    sqlstates: tuple[str, ...]
    is_outage: bool
    do: str
    is_up: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a connection was not made.

    Attributes:
        trouble: The row of the table that fits.
        line: The line of the error that says so. For an outage: the whole error. May hold a password.
        is_unknown: Whether a server refused in words that the table does not know.
    """

    trouble: Trouble
    line: str
    is_unknown: bool = False


def _outage(says: str, *words: str, codes: tuple[str, ...] = (), do: str, is_up: bool = False) -> Trouble:
    return Trouble(says, re.compile("|".join(words), re.IGNORECASE), codes, True, do, is_up)


def _mistake(says: str, *words: str, codes: tuple[str, ...] = (), do: str) -> Trouble:
    return Trouble(says, re.compile("|".join(words), re.IGNORECASE), codes, False, do, True)


_WAIT = "Bring the server back; the connection string may be right."

REFUSED = Trouble(
    "the server refuses, and the table does not know why",
    None,
    (),
    False,
    "See what the server says, and its log.",
    True,
)
NOT_REACHED = Trouble("libpq says anything else", None, (), True, _WAIT)

NO_PRIMARY = _outage(
    "no server is of the kind that target_session_attrs wants",
    r"session is (not )?read-only|server is (not )?in hot standby mode",
    do="Connect to the primary: a standby lags behind it.",
)

# The first row that fits a line is taken. A pooler quotes what its server has said, so poolers come first.
TROUBLES = (
    _outage(
        "PgBouncer cannot reach its server",
        r"server login has been failing",
        r"(cannot connect|connect failed) to server|: +connect failed$|pgbouncer cannot connect",
        r"(query_wait|client_login|server_login|server_connect)_(timeout|retry)",
        r"server conn crashed|server DNS lookup failed",
        do="Look at the server behind PgBouncer, and at the log of PgBouncer.",
    ),
    _outage(
        "PgBouncer has no connection to give",
        r"no more connections allowed",
        do="Raise its max_client_conn, or ask for fewer with CHECKPOINT_POOL_MAX_SIZE.",
        is_up=True,
    ),
    _outage(
        "the server starts, stops or recovers",
        r"the database system is (starting up|shutting down|in recovery mode|not (yet )?accepting)",
        r"terminating connection due to",
        codes=("57P",),
        do="Wait until the server is up.",
    ),
    _outage(
        "the server has no connection to give",
        r"too many clients already|remaining connection slots are reserved",
        r"too many connections for (role|database)",
        r"could not fork new process for connection",
        codes=("53",),
        do="Raise max_connections or the CONNECTION LIMIT, or ask for fewer with CHECKPOINT_POOL_MAX_SIZE.",
        is_up=True,
    ),
    NO_PRIMARY,
    _outage(
        "the server took too long",
        r"canceling authentication due to timeout",
        r"connection timeout expired|timeout expired|connection timed out",
        codes=("57014",),
        do="Look at the server and the network, or raise CHECKPOINT_CONNECT_TIMEOUT.",
    ),
    _outage(
        "the server closed the connection",
        r"server closed the connection unexpectedly|connection reset by peer|broken pipe",
        r"unexpected eof|server sent an error response during SSL exchange",
        do="Look at the server's log.",
    ),
    _outage(
        "nothing listens there",
        r"connection refused|on socket .* failed: No such file or directory",
        r"no route to host|network is unreachable|host is down",
        do="Bring the server up, or correct host and port.",
    ),
    _outage(
        "the name of the host is not known",
        r"failed to resolve host|could not translate host name",
        do="Look at the name service, or correct the host.",
    ),
    _mistake(
        "the password is wrong or missing",
        r"password authentication failed|no password supplied|empty password",
        codes=("28P01",),
        do="Correct user and password.",
    ),
    _mistake(
        "the server does not let this user in from here",
        r"no pg_hba\.conf entry|pg_hba\.conf rejects connection|authentication failed for user",
        r'role "[^"]*" does not exist|is not permitted to log in|no such user',
        codes=("28",),
        do="Correct the user, make the role (LOGIN), or add a line to pg_hba.conf.",
    ),
    _mistake(
        "there is no such database",
        r'database "[^"]*" does not exist|no such database|bouncer config error',
        codes=("3D000",),
        do="Correct the name of the database, or create it.",
    ),
    _mistake(
        "the database takes no connections",
        r"is not currently accepting connections|cannot connect to invalid database",
        codes=("55000",),
        do="ALTER DATABASE … ALLOW_CONNECTIONS true, or name another database.",
    ),
    _mistake(
        "the role may not use the database",
        r"permission denied for database",
        codes=("42501",),
        do="GRANT CONNECT ON DATABASE … TO the role.",
    ),
    _mistake(
        "the settings for TLS or GSSAPI do not fit the server",
        r"but (SSL|GSSAPI) was required|does not support (SSL|GSSAPI)|GSSAPI encryption required",
        r"certificate verify failed|certificate file|private key|does not match host name",
        r"certificate revocation list|could not (load|read) .*certificate|weak sslmode",
        r"channel binding|authentication method requirement|requirepeer|peer user name",
        r"SSL error|alert (unknown ca|bad certificate|certificate required|handshake failure)",
        do="Correct sslmode, sslrootcert, sslcert, sslkey, gssencmode, channel_binding or require_auth.",
    ),
    _mistake(
        "a parameter of the connection string cannot be used",
        r"invalid .*value|invalid port number|invalid connection option",
        r"could not match \d+|could not parse|is too long|definition of service|service file",
        r"unrecognized configuration parameter|unsupported startup parameter|permission denied to set",
        codes=("22023", "42704"),
        do="Correct the parameter that it names.",
    ),
    _mistake(
        "what answers is no PostgreSQL",
        r"expected authentication request from server|received invalid response to",
        r"unsupported frontend protocol|protocol version .* is not supported",
        codes=("0A000",),
        do="Correct host and port.",
    ),
    REFUSED,
    NOT_REACHED,
)

# A server's error, as libpq writes it: the severity, a colon and two spaces. The severity may be translated.
_SERVER_SAYS = re.compile(r"failed: [^:]+:  ")

_ALL_FAILURES = "Multiple connection attempts failed. All failures were:\n"
_BEFORE_THE_REASON = re.compile(r"^(- host: .*?, hostaddr: \S+: )?(connection (failed|is bad): )?")

# The severity without translation, then the SQLSTATE. Both come before the message.
_TRACED = re.compile(rb'^B\t\d+\tErrorResponse\t.*? V "[A-Z]+" C "(\w{5})"', re.MULTILINE)
_TRACE_BYTES = 100_000

_UNDER_WAY = (pq.PollingStatus.READING, pq.PollingStatus.WRITING)


def diagnose(error: Exception, sqlstates: Collection[str] = ()) -> Diagnosis:
    """Look up why a connection was not made. With several hosts, one host that reports a mistake decides.

    Args:
        error: What psycopg raised.
        sqlstates: What `ask_sqlstates` returned, for an error whose diagnosis is unknown.
    """
    text = str(error).rpartition(_ALL_FAILURES)[2]  # before it, the last failure stands a second time
    found = [each for line in text.splitlines() if (each := _of_line(line.strip(), sqlstates))]
    for each in found:
        if not each.trouble.is_outage:
            return each
    trouble = found[0].trouble if found else NOT_REACHED
    return Diagnosis(trouble, " ".join(text.split()))


def ask_sqlstates(conninfo: str, seconds: float) -> set[str]:
    """Connect once more, and return the SQLSTATEs that the server sends. Blocks, so run it in a thread.

    libpq writes them into its trace, whatever the language of the server. The trace stays in memory.

    Returns:
        The codes. Empty if the server accepts the connection, if it does not respond, or if libpq cannot
        trace (before version 18, or on another system than Linux).
    """
    deadline = monotonic() + seconds
    with suppress(OSError, AttributeError, psycopg.Error):
        trace = os.memfd_create("glasspoint-trace")
        try:
            connection = pq.PGconn.connect_start(conninfo.encode())
            try:
                connection.trace(trace)
                connection.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
                wants = int(pq.PollingStatus.WRITING)
                while wants in _UNDER_WAY and (left := deadline - monotonic()) > 0:
                    poll = select.poll()
                    is_writing = wants == pq.PollingStatus.WRITING
                    poll.register(connection.socket, select.POLLOUT if is_writing else select.POLLIN)
                    poll.poll(1000 * left)
                    wants = connection.connect_poll()
                connection.untrace()  # writes out what it has kept back
            finally:
                connection.finish()
            return {code.decode() for code in _TRACED.findall(os.pread(trace, _TRACE_BYTES, 0))}
        finally:
            os.close(trace)
    return set()


def _of_line(line: str, sqlstates: Collection[str]) -> Diagnosis | None:
    reason = _BEFORE_THE_REASON.sub("", line)
    for trouble in TROUBLES:
        if trouble.words is not None and trouble.words.search(line):
            return Diagnosis(trouble, reason)
    if not _SERVER_SAYS.search(line):
        return None
    known = [found for code in sqlstates if (found := _of_sqlstate(code))]
    if known:
        return Diagnosis(min(known, key=lambda trouble: trouble.is_outage), reason)
    return Diagnosis(REFUSED, reason, is_unknown=True)


def _of_sqlstate(code: str) -> Trouble | None:
    fits = (trouble for trouble in TROUBLES if trouble.sqlstates and code.startswith(trouble.sqlstates))
    return next(fits, None)
