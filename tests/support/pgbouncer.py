"""A PgBouncer in transaction mode: a client gets a connection of the server for one transaction only."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg

from glasspoint.embedded import EmbeddedPostgres
from glasspoint.embedded.guarded import GuardedDirectory

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

_CONFIG = """
[databases]
* = host={socket_directory} port=5432 user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
"""


class Bouncer:
    """A PgBouncer that runs.

    Attributes:
        url: The URL of a database through it.
    """

    def __init__(self, url: str, config: Path, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._config = config
        self._process = process

    def switch(self, before: EmbeddedPostgres, after: EmbeddedPostgres) -> None:
        """Let it lead to another server: its configuration is changed, and it is told to read it (RELOAD)."""
        text = self._config.read_text()
        self._config.write_text(text.replace(str(before.directory), str(after.directory)))
        self._process.send_signal(signal.SIGHUP)


@contextmanager
def pgbouncer(server: EmbeddedPostgres, database: str, *, size: int) -> Iterator[str]:
    """Start one in front of a server, with so many connections for all clients.

    Yields:
        The URL of a database through it.
    """
    with bouncer(server, database, size=size) as running:
        yield running.url


@contextmanager
def bouncer(server: EmbeddedPostgres, database: str, *, size: int, more: str = "") -> Iterator[Bouncer]:
    """Do as `pgbouncer` does, with more settings."""
    assert PROGRAM is not None
    home = GuardedDirectory("glasspoint-pgbouncer-")
    try:
        port = _free_port()
        config = home.path / "pgbouncer.ini"
        config.write_text(
            f"{_CONFIG.format(socket_directory=server.directory, port=port, size=size)}{more}\n"
        )
        config.chmod(0o644)
        process = home.spawn([Path(PROGRAM), config], orphan_signal="KILL")
        url = f"postgresql://postgres@127.0.0.1:{port}/{quote(database, safe='')}?connect_timeout=2"
        try:
            _wait(url, process, home)
            yield Bouncer(url, config, process)
        finally:
            process.kill()
            process.wait()
            home.forget_process()
    finally:
        home.close()


def _wait(url: str, process: subprocess.Popen[bytes], home: GuardedDirectory) -> None:
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psycopg.OperationalError), psycopg.connect(url):
            return
        time.sleep(0.02)
    raise AssertionError(f"PgBouncer does not start:\n{home.log_tail()}")


def _free_port() -> int:
    while True:
        port = random.randrange(16_384, 32_768)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
