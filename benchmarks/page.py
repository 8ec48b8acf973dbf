"""Renews docs/performance.md, its picture, and docs/scaling.md: `make bench WHAT=page` measures, too.

python benchmarks/page.py
"""

from __future__ import annotations

from pathlib import Path

from capacity.page import renewed as renewed_scaling
from comparison.page import Run, renewed
from comparison.plot import draw

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Write all three."""
    run, with_uvloop = Run.read(DOCS / "performance.json"), DOCS / "performance-uvloop.json"
    page = DOCS / "performance.md"
    made = renewed(page.read_text("utf-8"), run, Run.read(with_uvloop) if with_uvloop.exists() else None)
    page.write_text(made, "utf-8")
    draw(run.figures, DOCS / "pictures" / "performance.png")
    scaling = DOCS / "scaling.md"
    scaling.write_text(renewed_scaling(scaling.read_text("utf-8"), DOCS), "utf-8")


if __name__ == "__main__":
    main()
