"""Where the files are that tests read: the project, its docs, these modules, the package that is imported."""

from __future__ import annotations

from pathlib import Path

import glasspoint

__all__ = ["DOCS", "ROOT", "SRC", "SUPPORT"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SUPPORT = ROOT / "tests" / "support"
SRC = Path(glasspoint.__file__).parent
