"""A PostgreSQL whose first files are copied, not made: making them takes half a second of processor time.

All copies of a process have one system identifier. A test that tells servers apart by it makes their files.
"""

from __future__ import annotations

import atexit
import functools
import subprocess
from pathlib import Path

from glasspoint.embedded import EmbeddedPostgres

__all__ = ["CopiedPostgres"]


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
