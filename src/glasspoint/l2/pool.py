"""Reads connection strings in all their usual forms, and opens the pool that the hot path runs on.

Open this file when a connection string is rejected, or when a pool cannot be opened.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import parse_qsl, quote
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from glasspoint.errors import ConfigurationError, GlasspointError, L2UnavailableError
from glasspoint.l2 import connecting
from glasspoint.l2.connection_health import Reconnector
from glasspoint.l2.hosts import Hosts, count_hosts, wants_primary
from glasspoint.l2.search_path import enter_schema
from glasspoint.l2.sql import query
from glasspoint.logs import get_logger
from glasspoint.model.cancellation import run_to_the_end
from glasspoint.model.option_types import check_schema
from glasspoint.model.password import ask_password
from glasspoint.model.urls import split_url, without_secret
from glasspoint.telemetry.quiet import quiet_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from glasspoint.l2.types import Pool
    from glasspoint.model.password import Password
    from glasspoint.telemetry.events import Telemetry

__all__ = [
    "address_of",
    "bounds_statements",
    "close_pool",
    "connect",
    "connect_beside",
    "database_of",
    "follow_address",
    "in_one_line",
    "leads_to_primaries",
    "open_pool",
    "postgres_conninfo",
    "why_not_connected",
]

_log = get_logger("glasspoint.l2")

_SCHEMES = {"postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"}
_EXAMPLE = "postgresql://user:password@host:5432/dbname"

# asyncpg's `ssl` names what libpq calls `sslmode`.
_ASYNCPG_SSL = {"true": "require", "false": "disable"}

# Parameters of libpq, used only if the connection string does not set them. They detect a dead peer
# - on an idle connection: within about a minute (30 s idle, then 3 probes 10 s apart), instead of the
#   kernel's two hours;
# - if it does not acknowledge what is sent: within 20 s (Linux only);
# - while connecting: within 5 s, during which a worker of the pool hangs; with several hosts, 2 s for each.
#
# Who looks into pg_stat_activity sees the name, and so does `glasspoint check`.
_KEEPALIVE = {
    "fallback_application_name": "glasspoint",
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "connect_timeout": 5,
}

_CONNECT_TIMEOUT_OF_SEVERAL = {"connect_timeout": 2}

_CONFIGURE: Final = query("configure_session")

# The pools for which this module has set a statement timeout on the connections.
_bounded: WeakSet[Pool] = WeakSet()

# Why the last attempt to connect failed, and where connections lead, for each pool that was opened here.
_failures: WeakKeyDictionary[Pool, _Failures] = WeakKeyDictionary()
_hosts: WeakKeyDictionary[Pool, Hosts] = WeakKeyDictionary()

# How long the pool itself tries again to make a connection that failed. After that, `Reconnector` does.
_RECONNECT_SECONDS = 0.2

# How long the closing of a pool waits for connections that are being made.
_CLOSE_SECONDS = 1.0


def postgres_conninfo(conn_string: object) -> str:
    """Return a connection string in the form that libpq takes. Of several hosts, it asks for the primary.

    Args:
        conn_string: libpq's `key=value` form, or a URL: `postgresql://`, `postgres://`,
            `postgresql+asyncpg://`, `postgresql+psycopg://`. asyncpg's `ssl=…` is read as `sslmode=…`. A URL
            may name several hosts: `//h1:5432,h2:5432/db`, or SQLAlchemy's `?host=h1:5432&host=h2:5432`.

    Raises:
        ConfigurationError: It cannot be understood. The error does not quote it: it may hold a password.
    """
    if not isinstance(conn_string, str) or not conn_string.strip():
        raise ConfigurationError(f"The PostgreSQL connection string is empty: it must look like {_EXAMPLE}.")
    conninfo = _from_url(conn_string) if "://" in conn_string else conn_string
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as exc:
        unknown = str(exc).partition("invalid URI query parameter:")[2].strip()
        hint = f" libpq knows no parameter {unknown}." if unknown else ""
        raise ConfigurationError(
            f"The PostgreSQL connection string cannot be understood.{hint} It must look like {_EXAMPLE}, "
            "with special characters of the password percent-encoded."
        ) from None
    if not _is_whole_number(given.get("connect_timeout", 0)):
        raise ConfigurationError(
            "The PostgreSQL connection string cannot be understood: its connect_timeout must be a whole "
            "number of seconds."
        )
    own: dict[str, Any] = dict(_KEEPALIVE)
    if count_hosts(given) > 1:
        own |= _CONNECT_TIMEOUT_OF_SEVERAL | wants_primary(given)
    return make_conninfo(conninfo, **{k: v for k, v in own.items() if k not in given})


async def connect(
    conn_string: str,
    *,
    schema: str | None = None,
    password: Password | None = None,
    connect_timeout_seconds: float = 5.0,
    primary: bool = False,
) -> psycopg.AsyncConnection:
    """Open one connection for a command, direct or through a pooler: autocommit, no prepared statements.

    Args:
        conn_string, schema, password, connect_timeout_seconds: See `open_pool`.
        primary: Whether a standby is refused, as by `open_pool`. (Of several hosts, it always is.)

    Raises:
        ConfigurationError: The connection string, the password or the schema cannot be used.
        L2UnavailableError: The password cannot be obtained, or no host is a primary.
        psycopg.Error: The server cannot be reached, or refuses.
    """
    conninfo = postgres_conninfo(conn_string)
    if primary:
        conninfo = make_conninfo(conninfo, **wants_primary(conninfo_to_dict(conninfo)))
    if password is not None:
        own = await ask_password(password, timeout_seconds=connect_timeout_seconds)
        conninfo = make_conninfo(conninfo, password=own)
    try:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as exc:
        found = connecting.diagnose(exc)
        if found.trouble is not connecting.NO_PRIMARY:
            raise
        raise _no_primary(found, conninfo) from None
    if schema is not None:
        try:
            await enter_schema(connection, check_schema(schema))
        except BaseException:
            await connection.close()
            raise
    return connection


async def close_pool(pool: Pool) -> None:
    """Close a pool of `open_pool`, even if its server does not respond.

    The pool's workers may be connecting at the moment. Closing waits for them for a second at most. A
    connection that is made later is closed at once.
    """
    await run_to_the_end(pool.close(timeout=_CLOSE_SECONDS))


async def open_pool(
    conn_string: str,
    *,
    min_size: int,
    max_size: int,
    timeout_seconds: float,
    connect_timeout_seconds: float,
    prepare_threshold: int | None,
    statement_timeout_seconds: float,
    schema: str | None = None,
    password: Password | None = None,
    telemetry: Telemetry | None = None,
) -> Pool:
    """Open a pool of autocommit connections.

    Args:
        conn_string: See `postgres_conninfo`. A standby is refused, unless the connection string has a
            `target_session_attrs` that allows one.
        min_size, max_size: The number of connections that are kept open, and the most that are opened.
        timeout_seconds: How long a caller waits for a connection.
        connect_timeout_seconds: How long the first connection may take, with each of several hosts, and each
            request for the password.
        prepare_threshold: After how many uses a statement is prepared. 0: at once. `None`: never. Behind a
            pooler, none is prepared in any case.
        statement_timeout_seconds: PostgreSQL cancels a statement after this time. The timeout is not set
            behind a pooler, nor if statements are never prepared: it would stay on connections that others
            use too. Give the role a timeout instead.
        schema: Where the tables are. `None`: where the `search_path` leads. See `search_path`.
        password: Asked before each new connection. Replaces the password of the connection string.
        telemetry: Receives an event for each unexpected failure of the reconnector.

    Raises:
        ConfigurationError: The connection string cannot be used, or the server refuses: see `connecting`.
        L2UnavailableError: The server cannot be reached, or the password cannot be obtained.
    """
    conninfo = postgres_conninfo(conn_string)
    new = _NewConnections(
        make_conninfo(conninfo, **wants_primary(conninfo_to_dict(conninfo))),
        schema=None if schema is None else check_schema(schema),
        password=password,
        connect_timeout_seconds=connect_timeout_seconds,
        prepare_threshold=prepare_threshold,
        statement_timeout_seconds=statement_timeout_seconds,
    )
    first = await new.first()
    pool: Pool = AsyncConnectionPool(
        new.conninfo,
        connection_class=_remembering(new.failures, new.hosts, first),
        kwargs=new.kwargs if password is None else new.kwargs_with_password,
        min_size=min_size,
        max_size=max_size,
        timeout=timeout_seconds,
        max_idle=300,
        max_lifetime=1800,
        # The pool gives up soon. `Reconnector` goes on while a caller waits.
        reconnect_timeout=_RECONNECT_SECONDS,
        reconnect_failed=Reconnector(telemetry).reconnect_failed,
        configure=new.configure if new.is_configured else None,
        name="glasspoint",
        open=False,
    )
    _failures[pool], _hosts[pool] = new.failures, new.hosts
    _hand_out_the_last_used_first(pool)
    try:
        # The pool's workers get the context of this task: what they do belongs to no caller's trace.
        await asyncio.create_task(
            pool.open(wait=True, timeout=connect_timeout_seconds * new.hosts.number), context=quiet_context()
        )
    except BaseException as exc:  # also a cancellation: otherwise the pool's workers would run for ever
        await close_pool(pool)
        if not isinstance(exc, PoolTimeout):
            raise
        raise L2UnavailableError(
            why_not_connected(pool)
            or f"PostgreSQL gave fewer than {min_size} connections within {connect_timeout_seconds} s: check "
            "its max_connections, or ask for fewer with pool_min_size."
        ) from exc
    finally:
        await first.close()
    new.failures.is_open = True
    if new.has_session:
        _bounded.add(pool)
    return pool


class _NewConnections:
    """How a pool makes a connection: with which parameters, and what it sets on it before anybody uses it."""

    def __init__(
        self,
        conninfo: str,
        *,
        schema: str | None,
        password: Password | None,
        connect_timeout_seconds: float,
        prepare_threshold: int | None,
        statement_timeout_seconds: float,
    ) -> None:
        """Take the arguments of `open_pool`, checked."""
        self.conninfo = conninfo
        self.failures = _Failures(conninfo)
        self.hosts = Hosts(conninfo)
        # Autocommit: a call is one statement, and upstream's migrations cannot run in a transaction.
        self.kwargs: dict[str, Any] = {
            "autocommit": True,
            "prepare_threshold": prepare_threshold,
            "row_factory": dict_row,
        }
        self.has_session = prepare_threshold is not None
        """Whether what is set on a connection may stay on it. If not, a pooler is known to be in between."""
        self.is_configured = self.has_session or schema is not None
        """Whether `configure` has anything to do."""
        self._schema = schema
        self._password = password
        self._connect_timeout_seconds = connect_timeout_seconds
        self._statement_timeout_milliseconds = str(int(statement_timeout_seconds * 1000))

    async def first(self) -> _First:
        """Make the first connection, for the pool. The errors are those of `open_pool`."""
        conninfo = make_conninfo(self.conninfo, **await self._ask_password())
        # Until `configure` has looked for a pooler, nothing is prepared.
        kwargs = self.kwargs | {"prepare_threshold": None}
        connection = await _connect_first(conninfo, self._connect_timeout_seconds, kwargs)
        try:
            self.hosts.connected(connection)
            await self._enter_schema(connection)
        except BaseException as exc:
            await connection.close()
            if not isinstance(exc, psycopg.Error):
                raise
            raise L2UnavailableError(
                f"PostgreSQL gave a connection that broke ({type(exc).__name__})."
            ) from exc
        connection.prepare_threshold = self.kwargs["prepare_threshold"]
        return _First(connection)

    async def kwargs_with_password(self) -> dict[str, Any]:
        """Return the parameters of the next connection, with the password of now."""
        return self.kwargs | await self._ask_password()

    async def configure(self, connection: psycopg.AsyncConnection[DictRow]) -> None:
        """Set the statement timeout and the schema. Behind a pooler, set nothing, and prepare nothing."""
        try:
            if self.has_session and not await self._configure_session(connection):
                connection.prepare_threshold = None
            await self._enter_schema(connection)
        except (psycopg.Error, GlasspointError) as exc:  # the pool would try again without saying why
            self.failures.note(exc, is_connected=True)
            raise

    async def _configure_session(self, connection: psycopg.AsyncConnection[DictRow]) -> bool:
        """Set the settings of the session. Returns `False`, and sets none, if a pooler is in between."""
        params = {
            "milliseconds": self._statement_timeout_milliseconds,
            "pid": connection.info.backend_pid,
        }
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_CONFIGURE, params, prepare=False)
            row = await cursor.fetchone()
        return row is not None and bool(row[-1])

    async def _ask_password(self) -> dict[str, str]:
        """Return the password for a new connection, as a parameter. Empty: none is asked for."""
        if self._password is None:
            return {}
        try:
            own = await ask_password(self._password, timeout_seconds=self._connect_timeout_seconds)
        except GlasspointError as exc:
            self.failures.note(exc)
            raise
        self.failures.hide(own)
        return {"password": own}

    async def _enter_schema(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._schema is not None:
            await enter_schema(connection, self._schema, has_session=self.has_session)


class _First:
    """The first connection, which shows whether the server can be used, until the pool takes it."""

    def __init__(self, connection: psycopg.AsyncConnection[DictRow]) -> None:
        """Keep a connection that is open."""
        self._connection: psycopg.AsyncConnection[DictRow] | None = connection

    def take(self) -> psycopg.AsyncConnection[DictRow] | None:
        """Return the connection, once. `None`: it was taken, or the server has closed it."""
        connection, self._connection = self._connection, None
        return None if connection is None or connection.closed else connection

    async def close(self) -> None:
        """Close the connection if it was not taken."""
        if (connection := self.take()) is not None:
            await connection.close()


class _Failures:
    """Why a pool could not connect, the last time it tried."""

    def __init__(self, conninfo: str) -> None:
        """Begin without a failure.

        Args:
            conninfo: Where the pool connects to.
        """
        self.says: str | None = None
        """What happened, and what to do about it, in sentences. `None`: the last attempt succeeded."""
        self.is_open = False
        """Whether the pool was opened. Before, the caller that opens it receives the error."""
        self._is_logged = False
        self._conninfo = conninfo
        self._password = ""

    def hide(self, password: str) -> None:
        """Keep this password, which was asked for, out of `says`."""
        self._password = password

    def forget(self) -> None:
        """Record that an attempt has succeeded, and log that if a failure was logged."""
        self.says = None
        if self._is_logged:
            self._is_logged = False
            _log.warning("L2 (PostgreSQL) is back: it gives new connections again.")

    def note(self, error: psycopg.Error | GlasspointError, *, is_connected: bool = False) -> None:
        """Record that an attempt has failed. Only the text is kept: the error refers to the pool.

        Args:
            error: The error.
            is_connected: Whether the server accepted the connection, which then could not be used.
        """
        if isinstance(error, GlasspointError):
            self.says = str(error)
        elif is_connected:
            self.says = _why_unconfigured(error)
        else:
            found = connecting.diagnose(error)
            said = in_one_line(found.line, self._conninfo)
            said = without_secret(said, self._password)
            self.says = (
                f"PostgreSQL gives no new connection ({found.trouble.says}): {said}"
                f"{'' if said.endswith('?') else '.'} {found.trouble.do}"
            )
        if self.is_open and not is_connected and not self._is_logged:
            self._is_logged = True
            _log.warning(
                "L2: %s Calls that need a new connection wait for it, and then fail. This is logged once, "
                "until an attempt succeeds; the logger psycopg.pool has a line for each attempt.",
                self.says,
            )


def _remembering(failures: _Failures, hosts: Hosts, first: _First) -> type[psycopg.AsyncConnection[DictRow]]:
    """Return a class of connections that records why one could not be made, and where the others lead.

    Args:
        first: The connection that `connect` returns the first time, instead of a new one.
    """

    class Connection(psycopg.AsyncConnection[DictRow]):
        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
            if (made := first.take()) is not None:
                return cast("Self", made)
            try:
                connection = await super().connect(hosts.last_first(conninfo), **kwargs)
            except psycopg.Error as exc:
                failures.note(exc)
                raise
            failures.forget()
            hosts.connected(connection)
            return connection

    return Connection


def why_not_connected(pool: Pool | None) -> str | None:
    """Return why a pool's last attempt to connect failed, and what to do about it, in sentences.

    Returns:
        The sentences, which never hold a password. `None`: the last attempt succeeded, or the pool was not
        opened here.
    """
    failures = None if pool is None else _failures.get(pool)
    return None if failures is None else failures.says


class _LastUsedFirst(deque[Any]):
    """The idle connections of a pool. The one that came back last is taken first."""

    def popleft(self) -> Any:
        return self.pop()


def _hand_out_the_last_used_first(pool: Pool) -> None:
    """Make a pool hand out the connection that was used last, not the one that was used longest ago.

    A conversation then stays with one or two server processes, whose plans and caches know its statements:
    its turns take about a tenth less time. psycopg_pool has no setting for this. If a later version of it
    keeps its idle connections in another way, this has no effect, and a test fails.
    """
    if isinstance(getattr(pool, "_pool", None), deque):
        pool._pool = _LastUsedFirst(pool._pool)


def _why_unconfigured(error: psycopg.Error) -> str:
    said = (error.diag.message_primary or str(error) or type(error).__name__).rstrip(".")
    return f"PostgreSQL gave connections that cannot be used: {said}."


def bounds_statements(pool: Pool | None) -> bool:
    """Tell whether `open_pool` has set a `statement_timeout` on the pool's connections."""
    return pool in _bounded


def address_of(pool: Pool | None) -> tuple[str | None, int | None]:
    """Return the host (or the socket's folder) and the port that a pool connects to. `None`: not known.

    Of several hosts, it is the one that the newest connection leads to. A pool that was not opened here does
    not say which one that is: its hosts are separated by commas, and the port is only known if all of them
    have the same one.
    """
    if pool is None or not isinstance(pool.conninfo, str):
        return None, None
    if (hosts := _hosts.get(pool)) is not None and hosts.current is not None:
        return hosts.current
    given = conninfo_to_dict(pool.conninfo)
    host, ports = given.get("host"), set(str(given.get("port") or "").split(","))
    port = ports.pop() if len(ports) == 1 else ""  # several hosts may listen on one port, or on several
    return (str(host) if host else None), (int(port) if port.isdigit() else None)


def follow_address(pool: Pool | None, moved: Callable[[tuple[str | None, int | None]], object]) -> None:
    """Call a function with host and port whenever the connections of a pool lead to another server.

    It is never called for a pool that was not opened here.
    """
    if pool is not None and (hosts := _hosts.get(pool)) is not None:
        hosts.moved = moved


def leads_to_primaries(pool: Pool | None) -> bool:
    """Tell whether a pool that was opened here makes connections to a primary only."""
    hosts = None if pool is None else _hosts.get(pool)
    return hosts is not None and hosts.are_primary


def database_of(pool: Pool | None) -> str | None:
    """Return the name of the database that a pool connects to, as the connection string says; else `None`."""
    if pool is None or not isinstance(pool.conninfo, str):
        return None
    given = conninfo_to_dict(pool.conninfo)
    name = given.get("dbname") or given.get("user")
    return str(name) if name else None


async def connect_beside(given: Pool | psycopg.AsyncConnection[DictRow]) -> bool:
    """Connect once to the server that a pool, or a connection, leads to.

    Returns:
        Whether the server accepts the connection. `False`: it is up, and refuses. `True` also if the pool
        does not say where it connects to.

    Raises:
        psycopg.Error: The server cannot be reached.
    """
    if isinstance(given, psycopg.AsyncConnection):
        conninfo: object = make_conninfo(given.info.dsn, password=given.info.password)
        kwargs: object = {}
    else:
        conninfo, kwargs = given.conninfo, given.kwargs
    conninfo, kwargs = await _resolved(conninfo), await _resolved(kwargs)
    if not isinstance(conninfo, str) or not isinstance(kwargs or {}, dict):
        return True
    try:
        connection = await psycopg.AsyncConnection.connect(conninfo, **cast("dict[str, Any]", kwargs or {}))
    except psycopg.OperationalError as exc:
        if not connecting.diagnose(exc).trouble.is_up:
            raise
        return False
    await connection.close()
    return True


async def _resolved(given: object) -> object:
    """Return a value that a pool was given, or the result of a function that it was given instead."""
    result = cast("Callable[[], object]", given)() if callable(given) else given
    return await result if inspect.isawaitable(result) else result


async def _connect_first(
    conninfo: str, timeout_seconds: float, kwargs: Mapping[str, Any]
) -> psycopg.AsyncConnection[DictRow]:
    """Connect, and say why it fails: a pool would retry in the background, and report a timeout."""
    seconds = max(2, int(timeout_seconds))
    try:
        return await psycopg.AsyncConnection.connect(conninfo, connect_timeout=seconds, **kwargs)
    except psycopg.Error as exc:
        found = connecting.diagnose(exc)
        if found.is_unknown:
            codes = await asyncio.to_thread(connecting.ask_sqlstates, conninfo, seconds)
            found = connecting.diagnose(exc, codes)
        said = in_one_line(found.line, conninfo).removeprefix("connection is bad: ")
        said += "" if said.endswith("?") else "."
        if found.trouble is connecting.NO_PRIMARY:
            raise _no_primary(found, conninfo) from None
        if found.trouble.is_outage:
            raise L2UnavailableError(
                f"PostgreSQL cannot be reached: {said} Check the connection string and that the server is up."
            ) from None
        raise ConfigurationError(
            f"PostgreSQL cannot be used with this connection string ({found.trouble.says}): {said} "
            f"{found.trouble.do}"
        ) from None


def _no_primary(found: connecting.Diagnosis, conninfo: str) -> L2UnavailableError:
    said = in_one_line(found.line, conninfo)
    return L2UnavailableError(f"PostgreSQL cannot be used ({found.trouble.says}): {said}. {found.trouble.do}")


def in_one_line(said: object, conninfo: str) -> str:
    """Return a text of libpq on one line, without its full stop and without the connection's password."""
    line = " ".join(str(said).split()).rstrip(".")
    return without_secret(line, str(conninfo_to_dict(conninfo).get("password") or ""))


def _from_url(url: str) -> str:
    parts = split_url(url, "PostgreSQL", _SCHEMES, _EXAMPLE, many_hosts=True)
    query = [_libpq_parameter(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True)]
    query = _with_hosts_together(query)
    encoded = "&".join(f"{quote(k, safe='')}={quote(v, safe='/')}" for k, v in query)
    # Put together by hand: an empty host (a unix socket in the query) needs its two slashes.
    return f"postgresql://{parts.netloc}{parts.path}{'?' if encoded else ''}{encoded}"


def _with_hosts_together(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join several `host=name:port` into lists: libpq takes only the last of a repeated parameter."""
    hosts = [value for name, value in query if name == "host"]
    if len(hosts) < 2:
        return query
    pairs = [_host_and_port(each) for each in hosts]
    together = [(name, value) for name, value in query if name != "host"]
    together.append(("host", ",".join(host for host, _ in pairs)))
    if any(port for _, port in pairs):
        together.append(("port", ",".join(port for _, port in pairs)))
    return together


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):  # IPv6
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":")
    host, _, port = text.rpartition(":")
    return (host, port) if host and port.isdigit() else (text, "")


def _libpq_parameter(name: str, value: str) -> tuple[str, str]:
    return ("sslmode", _ASYNCPG_SSL.get(value.lower(), value)) if name == "ssl" else (name, value)


def _is_whole_number(value: object) -> bool:
    return str(value).strip().removeprefix("-").isdecimal()
