"""A PostgreSQL whose first files are copied, not made: making them takes most of a second of processor time.

They are made once for all processes of a run of the tests, which find them in `FILES`. So in the tests every
`EmbeddedPostgres` copies them (`copy_everywhere`), also that of a command that `preforked` starts. A test of
how they are made takes `made_anew`.

All copies have one system identifier. A test that tells servers apart by it asks for files of another
`origin`.

`make_cheap` saves a third of what a start of a server takes.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, LiteralString

import psycopg
import pytest

from glasspoint.embedded import EmbeddedPostgres
from glasspoint.embedded.guarded import GuardedDirectory

__all__ = ["CopiedPostgres", "copy_everywhere", "files_of_a_run", "made_anew", "make_cheap"]

FILES = "FILES_OF_POSTGRES"
"""The environment variable that names the folder where the files are, or will be."""

_initialise = EmbeddedPostgres._initialise
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

    def __init__(self, *, durable: bool = False, origin: str = "spare") -> None:
        """Args:
        origin: Which server that was.
        """
        super().__init__(durable=durable)
        self._origin = origin

    def _initialise(self, initdb: Path, data: Path) -> None:
        _copy(self._origin, data)


class _Made(EmbeddedPostgres):
    _initialise = _initialise


@contextmanager
def files_of_a_run() -> Iterator[None]:
    """Let this process and those that it starts find the files of one folder, until the end."""
    if FILES in os.environ:
        yield
        return
    folder = GuardedDirectory("glasspoint-tests-")
    os.environ[FILES] = str(folder.path)
    try:
        yield
    finally:
        del os.environ[FILES]
        folder.close()


def copy_everywhere() -> None:
    """Let every `EmbeddedPostgres` of this process copy its first files."""

    def initialise(self: EmbeddedPostgres, initdb: Path, data: Path) -> None:
        _copy("embedded", data)

    EmbeddedPostgres._initialise = initialise  # type: ignore[method-assign]


@contextmanager
def made_anew() -> Iterator[None]:
    """Let every `EmbeddedPostgres` of this process make its first files, as it does for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedPostgres, "_initialise", _initialise)
        yield


def _copy(origin: str, data: Path) -> None:
    subprocess.run(["cp", "-a", _files(origin), data], check=True)  # with their owner


@functools.cache
def _files(origin: str) -> Path:
    """Return the files of a new server; make them, if no process of this run has."""
    if FILES not in os.environ:
        server = _Made()
        server.start()
        server.stop()
        atexit.register(server.close)
        return server.directory / "data"
    files = Path(os.environ[FILES]) / origin
    with files.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not files.exists():
            with _Made() as server:
                server.stop()
                # Perhaps to another device, and with their owner.
                subprocess.run(["mv", server.directory / "data", files], check=True)
    return files
