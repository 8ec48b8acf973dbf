"""docs/scaling.md: its tables, made from the measured figures.

What is generated stands between `<!-- generated: NAME -->` and `<!-- end -->`, as in docs/performance.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from capacity.arithmetic import Arithmetic
from capacity.figures import Figures

NAMES: Final = ("facts", "turn", "carries", "open", "redis", "million")

_GENERATED: Final = re.compile(r"(<!-- generated: ([\w ,]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables(figures: Figures) -> dict[str, Callable[[], str]]:
    """What makes each table, by name."""
    arithmetic = Arithmetic(figures)
    return {name: getattr(arithmetic, name) for name in NAMES}


def renewed(text: str, docs: Path) -> str:
    """Return the page with its generated parts made anew.

    Args:
        docs: Where the figures are.
    """
    made = tables(Figures.read(docs))
    return _GENERATED.sub(lambda found: f"{found[1]}\n{made[found[2]]().strip()}\n\n{found[4]}", text)
