"""A PostgreSQL whose first files are copied, not made: making them takes half a second of processor time.

All copies of a process have one system identifier. A test that tells servers apart by it makes their files.

`make_cheap` saves a third of what a start of a server takes.
"""

from __future__ import annotations

import atexit
import functools
import subprocess
from pathlib import Path
from typing import Final, LiteralString

import psycopg

from glasspoint.embedded import EmbeddedPostgres

__all__ = ["CopiedPostgres", "make_cheap"]

# Autovacuum would also change what the tables are planned with, in the middle of a test.
_CHEAP: Final[tuple[LiteralString, ...]] = (
    "ALTER SYSTEM SET autovacuum = off",
    "ALTER SYSTEM SET io_method = sync",
    "ALTER SYSTEM SET shared_buffers = '32MB'",
    "SELECT pg_reload_conf()",
)


def make_cheap(server: EmbeddedPostgres) -> None:
    """Let a server work without processes of its own that no test needs, and with less memory.

    Autovacuum ends at once, the rest takes effect at the next start.
    """
    with psycopg.connect(server.url, autocommit=True) as connection:
        for statement in _CHEAP:
            connection.execute(statement)


class CopiedPostgres(EmbeddedPostgres):
    """A server of its own, with the files of a server that was started once and stopped."""

    def _initialise(self, initdb: Path, data: Path) -> None:
        subprocess.run(["cp", "-a", _files(), data], check=True)  # with their owner


@functools.cache
def _files() -> Path:
    """Return the files of a new server. They are there until this process ends."""
    server = EmbeddedPostgres()
    server.start()
    server.stop()
    atexit.register(server.close)
    return server.directory / "data"
