"""Where the files are that tests read (the project, its docs, these modules), and where servers write."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import glasspoint

__all__ = ["DOCS", "ROOT", "SRC", "SUPPORT", "in_memory"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SUPPORT = ROOT / "tests" / "support"
SRC = Path(glasspoint.__file__).parent

_IN_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 << 30


def in_memory() -> Path | None:
    """Return a folder in memory where servers can work; `None` if there is none, or too little room."""
    if not _IN_MEMORY.is_dir() or not os.access(_IN_MEMORY, os.W_OK):
        return None
    takes_programs = not os.statvfs(_IN_MEMORY).f_flag & os.ST_NOEXEC  # a container's often does not
    return _IN_MEMORY if takes_programs and shutil.disk_usage(_IN_MEMORY).free > _ROOM_BYTES else None
