"""docs/scaling.md: its tables, made from the measured figures.

What is generated stands between `<!-- generated: NAME -->` and `<!-- end -->`, as in docs/performance.md.
The last of them is a fingerprint of the figures and of the other tables: it tells, without simulating again,
whether the page is made of these figures, and whether somebody has edited a table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from capacity.arithmetic import Arithmetic
from capacity.figures import Figures
from capacity.simulated import TURNS, Simulated

__all__ = ["ON_PAPER", "SEED", "SIMULATED", "TURNS", "fingerprint", "renewed", "shown", "tables"]

SEED: Final = 7
"""Of the page; `benchmarks/scaling.py --seed` takes others."""

ON_PAPER: Final = ("facts", "turn", "carries", "worked", "open", "redis", "million", "day", "masters", "idle")
SIMULATED: Final = ("validated", "rising", "fleet", "cluster", "flushed", "stampede")

_FINGERPRINT: Final = "fingerprint"
_GENERATED: Final = re.compile(r"(<!-- generated: ([\w ,]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables(figures: Figures, seed: int = SEED, turns: int = TURNS) -> dict[str, Callable[[], str]]:
    """What makes each table, by name."""
    arithmetic, simulated = Arithmetic(figures), Simulated(figures, seed, turns)
    return {
        **{name: getattr(arithmetic, name) for name in ON_PAPER},
        **{name: getattr(simulated, name) for name in SIMULATED},
    }


def renewed(text: str, docs: Path) -> str:
    """Return the page with its generated parts made anew.

    Args:
        docs: Where the figures are.
    """
    made = tables(Figures.read(docs))
    text = _filled(text, {name: make() for name, make in made.items()})
    return _filled(text, {_FINGERPRINT: fingerprint(text, docs)})


def shown(text: str) -> dict[str, str]:
    """The generated parts of a page, by name."""
    return {found[2]: found[3].strip() for found in _GENERATED.finditer(text)}


def fingerprint(text: str, docs: Path) -> str:
    """Of what this page should show: the figures that it is made of, and the tables that it has."""
    figures = Figures.read(docs)
    parts = {name: part for name, part in shown(text).items() if name != _FINGERPRINT}
    whole = repr(
        (figures.performance, figures.servers, figures.entries, figures.cluster, sorted(parts.items()))
    )
    return f"<!-- made of {hashlib.sha256(whole.encode()).hexdigest()[:16]} -->"


def _filled(text: str, made: dict[str, str]) -> str:
    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n{made[found[2]].strip()}\n\n{found[4]}" if found[2] in made else found[0]

    return _GENERATED.sub(part, text)
