"""Where things are that tests read: the project, its docs, and the package as it is imported."""

from __future__ import annotations

from pathlib import Path

import glasspoint

__all__ = ["DOCS", "ROOT", "SRC"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SRC = Path(glasspoint.__file__).parent
