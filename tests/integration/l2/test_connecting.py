"""A PostgreSQL that refuses is told from one that cannot be reached, in every way that we can make."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pgbouncer as bouncers
from glasspoint import Settings, create_telemetry, get_checkpointer
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import ConfigurationError, L2UnavailableError
from glasspoint.l2 import connecting
from glasspoint.l2.connecting import NOT_REACHED, REFUSED, TROUBLES, Trouble
from glasspoint.l2.pool import open_pool, postgres_conninfo
from places import DOCS
from states import open_saver
from steps import OTHER_CONNECTIONS, until

PASSWORD = "geheim"


class TcpPostgres(EmbeddedPostgres):
    """A PostgreSQL that also listens on loopback, with what a test adds to its command line."""

    def __init__(self) -> None:
        super().__init__()
        self._PORT = bouncers._free_port()
        self.options: dict[str, str] = {}

    def _run_until(self, done: Callable[[int], bool], argv: Any) -> None:
        if Path(argv[0]).name == "postgres":
            options = {"listen_addresses": "127.0.0.1", **self.options}
            argv = [*argv, *(part for each in options.items() for part in ("-c", "=".join(each)))]
        super()._run_until(done, argv)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def address(self, **parts: Any) -> str:
        """A connection string over TCP."""
        given: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self._PORT,
            "dbname": "test",
            "user": "postgres",
        } | parts
        return make_conninfo(**{name: value for name, value in given.items() if value is not None})

    def sql(self, *statements: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def restart_with(self, **options: str) -> None:
        self.stop()
        self.options = options
        self.start()

    @contextmanager
    def launched(self, **options: str) -> Iterator[None]:
        """Run it in a way in which it never becomes ready."""
        self.stop()
        home = self._opened_home()
        argv = [self._programs / "postgres", "-D", self.data, "-p", str(self._PORT)]  # type: ignore[operator]
        options |= {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.directory)}
        process = home.spawn(
            [*argv, *(part for each in options.items() for part in ("-c", "=".join(each)))],
            orphan_signal="QUIT",
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()
            home.forget_process()
            self.start()


@pytest.fixture(scope="module")
def server() -> Iterator[TcpPostgres]:
    """A server with roles, a database and a pg_hba.conf to be refused by."""
    with TcpPostgres() as server:
        server.create_database("test")
        server.sql(
            f"CREATE ROLE alice LOGIN PASSWORD '{PASSWORD}'",
            "CREATE ROLE no_login",
            "CREATE ROLE stranger LOGIN",
            "CREATE ROLE crowded LOGIN CONNECTION LIMIT 0",
            "CREATE ROLE nobody LOGIN",
        )
        (server.data / "pg_hba.conf").write_text(
            "local all all trust\n"
            "host all alice 127.0.0.1/32 scram-sha-256\n"
            "host all stranger 127.0.0.1/32 reject\n"
            "host all postgres,no_login,crowded,unheard_of 127.0.0.1/32 trust\n"
        )
        server.restart_with()
        yield server


@asynccontextmanager
async def behind_tls(server: TcpPostgres, folder: Path) -> AsyncIterator[str]:
    """TLS in front of the server, which was built without: with a certificate of its own making.

    Yields:
        The port.
    """
    key, crt = folder / "server.key", folder / "server.crt"
    subject = ["-subj", "/CN=elsewhere", "-days", "1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        *subject,
        "-keyout",
        str(key),
        "-out",
        str(crt),
    ]
    await asyncio.to_thread(subprocess.run, command, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while some := await reader.read(65536):
                writer.write(some)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(context)
            there = await asyncio.open_connection("127.0.0.1", server._PORT)
            await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()

    front = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield str(front.sockets[0].getsockname()[1])
    finally:
        front.close()


async def try_to_open(conninfo: str) -> None:
    pool = await open_pool(
        conninfo,
        min_size=1,
        max_size=1,
        timeout_seconds=2,
        connect_timeout_seconds=2,
        prepare_threshold=0,
        statement_timeout_seconds=2,
    )
    await pool.close()


def row(says: str) -> Trouble:
    """The row of the table that begins like this."""
    [found] = [trouble for trouble in TROUBLES if trouble.says.startswith(says)]
    return found


async def assert_is(trouble: Trouble, conninfo: str, *, says: str = "") -> None:
    """Opening fails as the table has it, in one line, without the password."""
    expected = L2UnavailableError if trouble.is_outage else ConfigurationError
    with pytest.raises((L2UnavailableError, ConfigurationError)) as caught:
        await try_to_open(conninfo)
    message = str(caught.value)
    assert type(caught.value) is expected, message
    assert "\n" not in message
    assert says in message
    assert PASSWORD not in message
    if not trouble.is_outage:
        assert trouble.says in message
        assert trouble.do in message
    # And it is this very row.
    with pytest.raises(psycopg.Error) as raised:
        await psycopg.AsyncConnection.connect(postgres_conninfo(conninfo), connect_timeout=2)
    assert connecting.diagnose(raised.value).trouble is trouble, str(raised.value)


MISTAKES = [
    ("the password is wrong", {"user": "alice", "password": f"{PASSWORD}x"}, 'failed for user "alice"'),
    ("the password is wrong", {"user": "alice"}, "no password supplied"),
    ("the server does not let", {"user": "stranger"}, "pg_hba.conf rejects connection"),
    ("the server does not let", {"user": "nobody"}, "no pg_hba.conf entry"),
    ("the server does not let", {"user": "unheard_of"}, 'role "unheard_of" does not exist'),
    ("the server does not let", {"user": "no_login"}, "not permitted to log in"),
    ("there is no such database", {"dbname": "nowhere"}, 'database "nowhere" does not exist'),
    ("the settings for TLS", {"channel_binding": "require"}, "channel binding"),
    ("the settings for TLS", {"gssencmode": "require"}, "GSSAPI"),
    ("the settings for TLS", {"require_auth": "md5"}, "authentication method requirement"),
    ("a parameter", {"sslmode": "bogus"}, "bogus"),
    ("a parameter", {"port": "abc"}, "abc"),
    ("a parameter", {"port": "99999"}, "99999"),
    ("a parameter", {"port": "1,2,3", "host": "127.0.0.1,localhost"}, "3 port numbers to 2 hosts"),
    ("a parameter", {"hostaddr": "bogus"}, "bogus"),
    ("a parameter", {"host": "/" + "n" * 200}, "too long"),
    ("a parameter", {"target_session_attrs": "bogus"}, "bogus"),
    ("a parameter", {"keepalives": "abc"}, "abc"),
    ("a parameter", {"require_auth": "bogus"}, "bogus"),
    ("a parameter", {"service": "nowhere"}, "nowhere"),
    ("a parameter", {"client_encoding": "bogus"}, "bogus"),
    ("a parameter", {"options": "-c nowhere=1"}, "nowhere"),
]
TLS: list[tuple[dict[str, str], str]] = [
    ({"sslmode": "verify-full", "sslrootcert": "/no/such.crt"}, "/no/such.crt"),
    ({"sslmode": "verify-ca", "sslrootcert": "system"}, "weak sslmode"),
    ({"sslmode": "verify-full", "sslrootcert": "system"}, "certificate verify failed"),
    ({"sslmode": "require", "sslcert": "{crt}", "sslkey": "/no.key"}, "/no.key"),
    ({"sslmode": "verify-full", "sslrootcert": "{crt}"}, "does not match host name"),
]
OUTAGES = [
    ("nothing listens there", {"port": "1"}, "Connection refused"),
    ("nothing listens there", {"host": "/no/such/directory"}, "No such file or directory"),
    ("the name of the host", {"host": "nowhere.invalid"}, "nowhere.invalid"),
    ("the server has no connection", {"user": "crowded"}, "too many connections for role"),
    ("no server is of the kind", {"target_session_attrs": "read-only"}, "session is not read-only"),
    ("no server is of the kind", {"target_session_attrs": "standby"}, "not in hot standby"),
]


def name_of(value: object) -> str:
    return ",".join(f"{k}={v}"[:40] for k, v in value.items()) if isinstance(value, dict) else str(value)[:20]


@pytest.mark.parametrize(("trouble", "parts", "says"), [*MISTAKES, *OUTAGES], ids=name_of)
async def test_the_opening_says_what_is_wrong(
    trouble: str, parts: dict[str, str], says: str, server: TcpPostgres
) -> None:
    await assert_is(row(trouble), server.address(**parts), says=says)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
async def test_tls_that_does_not_fit_is_a_mistake(server: TcpPostgres, tmp_path: Path) -> None:
    trouble = row("the settings for TLS")
    for parts, says in TLS:
        async with behind_tls(server, tmp_path) as port:
            given = {name: value.format(crt=tmp_path / "server.crt") for name, value in parts.items()}
            await assert_is(trouble, server.address(port=port, **given), says=says)


async def test_tls_that_the_server_does_not_have_is_a_mistake(server: TcpPostgres) -> None:
    for mode in ("require", "verify-full"):
        address = server.address(sslmode=mode)
        await assert_is(row("the settings for TLS"), address, says="but SSL was required")


@pytest.mark.parametrize(
    ("trouble", "done", "undone", "parts"),
    [
        (
            "the database takes no",
            "ALTER DATABASE test ALLOW_CONNECTIONS false",
            "ALTER DATABASE test ALLOW_CONNECTIONS true",
            {},
        ),
        (
            "the database takes no",
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'test'",
            "UPDATE pg_database SET datconnlimit = -1 WHERE datname = 'test'",
            {},
        ),
        (
            "the role may not use",
            "REVOKE CONNECT ON DATABASE test FROM PUBLIC",
            "GRANT CONNECT ON DATABASE test TO PUBLIC",
            {"user": "alice", "password": PASSWORD},
        ),
        (
            "the server has no connection",
            "ALTER DATABASE test CONNECTION LIMIT 0",
            "ALTER DATABASE test CONNECTION LIMIT -1",
            {"user": "alice", "password": PASSWORD},
        ),
    ],
)
async def test_a_database_that_turns_clients_away(
    trouble: str, done: str, undone: str, parts: dict[str, str], server: TcpPostgres
) -> None:
    server.sql(done)
    try:
        await assert_is(row(trouble), server.address(**parts))
    finally:
        server.sql(undone)


async def test_what_the_table_does_not_know_is_a_mistake_if_the_server_says_it(server: TcpPostgres) -> None:
    """A trigger on login may refuse in any words."""
    with psycopg.connect(server.address(), autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF session_user = 'alice' THEN RAISE EXCEPTION 'not on Thursdays'; END IF; END $$"
        )
        admin.execute("CREATE EVENT TRIGGER refusing ON login EXECUTE FUNCTION refuse()")
        try:
            await assert_is(REFUSED, server.address(user="alice", password=PASSWORD), says="not on Thursdays")
        finally:
            admin.execute("DROP EVENT TRIGGER refusing")
            admin.execute("DROP FUNCTION refuse")


async def test_slots_that_are_reserved_or_used_up_are_an_outage(server: TcpPostgres) -> None:
    full = row("the server has no connection")
    server.restart_with(max_connections="4", superuser_reserved_connections="1", reserved_connections="1")
    try:
        with ExitStack() as stack:
            for says, by in (("pg_use_reserved", 2), ("SUPERUSER attribute", 1), ("too many clients", 1)):
                for _ in range(by):
                    stack.enter_context(psycopg.connect(server.address()))
                user = {} if says == "too many clients" else {"user": "alice", "password": PASSWORD}
                await assert_is(full, server.address(**user), says=says)
    finally:
        server.restart_with()


async def test_a_server_that_shuts_down_is_an_outage(server: TcpPostgres) -> None:
    with psycopg.connect(server.address()):
        os.kill(server.pid, signal.SIGTERM)  # "smart shutdown": it waits for this session

        async def is_refused() -> bool:
            connection = await connected(server.address())
            if connection is not None:
                await connection.close()
            return connection is None

        await until(is_refused)
        await assert_is(row("the server starts, stops"), server.address(), says="shutting down")
    server.restart_with()


async def test_a_standby_that_takes_no_sessions_is_an_outage(server: TcpPostgres) -> None:
    signal_file = server.data / "standby.signal"
    signal_file.touch()
    try:
        with server.launched(hot_standby="off"):

            async def answers() -> bool:
                with pytest.raises(psycopg.OperationalError) as caught:
                    await psycopg.AsyncConnection.connect(server.address())
                return "FATAL" in str(caught.value)

            await until(answers)
            await assert_is(row("the server starts, stops"), server.address())
            signal_file.unlink()
    finally:
        signal_file.unlink(missing_ok=True)
        server.restart_with()


async def test_with_several_hosts_one_that_refuses_is_enough(server: TcpPostgres) -> None:
    port = conninfo_to_dict(server.address())["port"]
    wrong = {"user": "alice", "password": f"{PASSWORD}x"}
    for ports in (f"1,{port}", f"{port},1"):
        several = server.address(host="127.0.0.1,127.0.0.1", port=ports, **wrong)
        await assert_is(row("the password is wrong"), several)
    away = server.address(host="127.0.0.1,/no/such/directory", port="1,1")
    with pytest.raises(L2UnavailableError):
        await try_to_open(away)


# ------------------------------------------------------------------ what no PostgreSQL says


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def answering(reply: bytes | None) -> AsyncIterator[str]:
    """A port that answers every client with these bytes and closes; `None`: it says nothing."""
    over = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        if reply is None:
            await over.wait()
        writer.write(reply or b"")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"host=127.0.0.1 port={port} user=me dbname=test sslmode=disable"
    finally:
        over.set()
        server.close()


def refusal(severity: str, sqlstate: str, message: str) -> bytes:
    """An ErrorResponse of PostgreSQL's protocol."""
    fields = {"S": severity, "V": "FATAL", "C": sqlstate, "M": message}
    body = b"".join(f"{name}{text}\0".encode() for name, text in fields.items()) + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "reply"),
    [
        ("what answers is no", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("the server closed", b""),
        ("the server took too long", None),
    ],
)
async def test_a_port_where_no_postgresql_answers(trouble: str, reply: bytes | None) -> None:
    async with answering(reply) as conninfo:
        await assert_is(row(trouble), conninfo)


async def test_what_libpq_says_of_anything_else_is_an_outage() -> None:
    found = connecting.diagnose(psycopg.OperationalError("connection is bad: no connection to the server"))
    assert found.trouble is NOT_REACHED


@pytest.mark.parametrize(
    ("severity", "sqlstate", "message", "is_outage"),
    [
        ("치명적오류", "57P03", "데이터베이스 시스템이 새로 가동 중입니다.", True),
        ("치명적오류", "53300", "최대 동시 접속자 수를 초과했습니다.", True),
        ("치명적오류", "28P01", '사용자 "me"의 password 인증을 실패했습니다', False),
        ("치명적오류", "3D000", '"test" 데이터베이스 없음', False),
        # What a server sends whose encoding has no such letters.
        ("?????", "57P03", "?????? ???? ?? ????", True),
        ("?????", "XX000", "?????? ???? ?? ????", False),
    ],
)
async def test_a_server_of_another_language_is_understood_by_its_sqlstate(
    severity: str, sqlstate: str, message: str, is_outage: bool
) -> None:
    """(The words are PostgreSQL 15's own, with lc_messages ko_KR.UTF-8.)"""
    async with answering(refusal(severity, sqlstate, message)) as conninfo:
        with pytest.raises(L2UnavailableError if is_outage else ConfigurationError):
            await try_to_open(conninfo)


async def test_without_libpq_s_trace_another_language_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on another system than Linux: nobody knows what the server says, and that is said aloud."""
    monkeypatch.delattr("os.memfd_create")
    async with answering(refusal("?????", "57P03", "?????? ???? ?? ????")) as conninfo:
        with pytest.raises(ConfigurationError, match="the table does not know why"):
            await try_to_open(conninfo)


# ------------------------------------------------------------------ PgBouncer


@pytest.mark.slow
@pytest.mark.skipif(bouncers.PROGRAM is None, reason="there is no pgbouncer")
async def test_pgbouncer_without_its_server_or_without_room(
    server: TcpPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = bouncers._CONFIG.replace("port=5432", f"port={server._PORT}")

    def use(config: str, *, wait: bool = True) -> None:
        monkeypatch.setattr(bouncers, "_CONFIG", config)
        if not wait:
            monkeypatch.setattr(bouncers, "_wait", wait_until_it_listens)

    use(behind.replace("max_client_conn = 200", "max_client_conn = 1"))
    with bouncers.pgbouncer(server, "test", size=2) as url:
        connection = await until(lambda: connected(url))
        await assert_is(row("PgBouncer has no connection"), url, says="no more connections allowed")
        await connection.close()
    use(behind.replace("* = host", "other = host"), wait=False)
    with bouncers.pgbouncer(server, "test", size=2) as url:
        await assert_is(row("there is no such database"), url)
    # It passes on what its server says; and while that is down, its clients wait.
    use(behind.replace("user=postgres", "user=unheard_of"), wait=False)
    with bouncers.pgbouncer(server, "test", size=2) as url, pytest.raises(ConfigurationError):
        await try_to_open(url)
    use(behind.replace(f"port={server._PORT}", "port=1"), wait=False)
    with bouncers.pgbouncer(server, "test", size=2) as url:
        await assert_is(row("the server took too long"), url)


@pytest.mark.parametrize(
    "message",
    [
        "pgbouncer cannot connect to server",
        "server login has been failing, try again later (server_login_retry)",
        "server login has been failing, cached error: password authentication failed (server_login_retry)",
        "query_wait_timeout",
        "client_login_timeout (server down)",
        "server conn crashed?",
    ],
)
async def test_other_words_of_pgbouncer_are_an_outage(message: str) -> None:
    """(From its source; what makes a real one say them depends on its version and on luck.)"""
    async with answering(refusal("FATAL", "08P01", message)) as conninfo:
        await assert_is(row("PgBouncer cannot reach"), conninfo)


def wait_until_it_listens(url: str, *_: object) -> None:
    port = int(str(conninfo_to_dict(url)["port"]))
    deadline = monotonic() + 10
    while monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return


async def connected(url: str) -> psycopg.AsyncConnection[Any] | None:
    try:
        return await psycopg.AsyncConnection.connect(url)
    except psycopg.OperationalError:
        return None


# ------------------------------------------------------------------ the chain


def settings_of(postgres_url: str, redis_url: str) -> Settings:
    return Settings(postgres_url=postgres_url, redis_url=redis_url, probe_interval=0.05, connect_timeout=2.0)


@pytest.mark.parametrize(
    "parts",
    [{"user": "alice", "password": f"{PASSWORD}x"}, {"dbname": "nowhere"}, {"sslmode": "bogus"}],
    ids=name_of,
)
async def test_a_chain_does_not_fall_because_of_a_mistake(
    parts: dict[str, str], server: TcpPostgres, redis_url: str
) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry())
    opening = get_checkpointer(settings_of(server.address(**parts), redis_url), telemetry=telemetry)
    with pytest.raises(ConfigurationError, match="cannot be used with this connection string"):
        async with opening:
            pass


async def test_a_connect_timeout_that_is_no_number_is_a_mistake(server: TcpPostgres) -> None:
    with pytest.raises(ConfigurationError, match="connect_timeout"):
        await try_to_open(server.address(connect_timeout="soon"))


async def test_a_mistake_that_shows_in_a_lower_tier_is_said_once(
    server: TcpPostgres,
    own_redis: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PostgreSQL was away at the start; it comes back, and refuses. Nobody else would say so."""
    telemetry = create_telemetry(registry=CollectorRegistry())
    url = server.address(user="alice", password=PASSWORD)
    server.stop()
    try:
        async with get_checkpointer(settings_of(url, own_redis.url), telemetry=telemetry) as saver:
            assert saver.tier == "redis"

            def said() -> list[str]:
                return [each for each in caplog.messages if "cannot be used as it is configured" in each]

            climb, climbs = saver._chain._climb, []

            async def counted() -> None:
                climbs.append(1)
                await climb()

            async def probes(times: int) -> None:
                before = len(climbs)
                await until(lambda: len(climbs) > before + times)

            monkeypatch.setattr(saver._chain, "_climb", counted)
            server.start()
            server.sql("REVOKE CONNECT ON DATABASE test FROM PUBLIC")
            await until(said)
            await probes(3)
            assert len(said()) == 1
            assert "permission denied for database" in said()[0]
            assert PASSWORD not in said()[0]
            server.sql("GRANT CONNECT ON DATABASE test TO PUBLIC")
            # Connected, it may not make the tables: another message.
            await until(lambda: len(said()) == 2)
            assert "may not" in said()[1]
            server.sql("REVOKE CONNECT ON DATABASE test FROM PUBLIC")
            await probes(3)
            assert len(said()) == 2
            assert saver.tier == "redis"
            server.sql("GRANT CONNECT ON DATABASE test TO PUBLIC")
            with psycopg.connect(server.address(), autocommit=True) as admin:
                admin.execute("GRANT CREATE, USAGE ON SCHEMA public TO alice")
            await until(lambda: saver.tier == "cached")
    finally:
        server.restart_with()
        server.sql("GRANT CONNECT ON DATABASE test TO PUBLIC")


async def test_a_mistake_in_the_best_tier_does_not_keep_a_process_in_the_last(
    server: TcpPostgres, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """Both servers are away at the start. PostgreSQL comes back and refuses; Redis comes back."""
    telemetry = create_telemetry(registry=CollectorRegistry())
    url = server.address(dbname="nowhere")
    own_redis.stop()
    server.stop()
    try:
        async with get_checkpointer(settings_of(url, own_redis.url), telemetry=telemetry) as saver:
            assert saver.tier == "memory"
            server.start()
            own_redis.start()
            await until(lambda: saver.tier == "redis")
            await until(lambda: 'database "nowhere" does not exist' in caplog.text)
    finally:
        server.restart_with()


# ------------------------------------------------------------------ how many connections an opening makes


@pytest.mark.parametrize(("options", "left"), [({}, 1), ({"pool_min_size": 3}, 3)], ids=["default", "three"])
async def test_an_opening_makes_the_connections_of_the_pool_and_no_other(
    options: dict[str, Any], left: int, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[psycopg.AsyncConnection[Any]] = []
    connect = psycopg.AsyncConnection.connect

    async def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(await connect(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", counted)
    async with open_saver(database, redis_url, sweep_interval_seconds=3600, **options) as saver:
        assert saver._l1.trust.is_trusted, "the cache is ready"
        assert len(made) == left
        assert not any(each.closed for each in made)


async def test_a_pool_that_may_be_empty_keeps_no_connection_of_its_opening(database: str) -> None:
    options = {"timeout_seconds": 5, "connect_timeout_seconds": 5, "statement_timeout_seconds": 5}
    pool = await open_pool(database, min_size=0, max_size=2, prepare_threshold=0, **options)  # type: ignore[arg-type]
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as watcher:

        async def others() -> tuple[Any, ...] | None:
            return await (await watcher.execute(OTHER_CONNECTIONS)).fetchone()

        await until(lambda: _is_none(others))
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
            assert await others() == (1,)
        await pool.close()


async def _is_none(others: Callable[[], Any]) -> bool:
    return bool(await others() == (0,))


# ------------------------------------------------------------------ the table in the docs


def test_the_table_in_the_documentation_is_the_one_in_the_code() -> None:
    section = (DOCS / "reliability.md").read_text("utf-8").partition("## When PostgreSQL cannot be opened")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.partition("\n## ")[0].splitlines()
        if line.startswith("| ") and not line.startswith("| what happened")
    ]
    documented = [(says, tuple(re.findall(r"`(\w+)`", codes)), kind, do) for says, codes, kind, do in rows]
    assert documented == [
        (each.says, each.sqlstates, "outage" if each.is_outage else "configuration", each.do)
        for each in TROUBLES
    ]
