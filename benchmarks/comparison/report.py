"""What was measured, as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from comparison.measuring import Figure, Spread, speed
from comparison.peers import POOL
from comparison.targets import Verdict

COLUMNS = 80
COUNTED = ("messages", "callers", "conversations")


def table_of(figures: Sequence[Figure]) -> str:
    """One workload: medians of the rounds; `±`: what lies between their quartiles, per cent of the median."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column(figures[0].workload, min_width=18)
    for header in ("p50 ms", "±", "p99 ms", "calls/s", "±", "cpu ms", "x pool"):
        table.add_column(header, justify="right", no_wrap=True)
    for _, of_variant in groupby(figures, key=lambda each: (each.group, said(each.variant))):
        found = list(of_variant)
        table.add_row(said(found[0].variant))
        for figure in found:
            table.add_row(f"  {figure.contender}", *_cells(figure, found), end_section=figure is found[-1])
    return printed(table)


def target_table(verdicts: Sequence[Verdict]) -> str:
    """The targets beside what was measured."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("target", no_wrap=True)
    for header in ("against", "wanted", "measured", "met"):
        right = header in ("wanted", "measured")
        table.add_column(header, justify="right" if right else "left", no_wrap=True)
    for verdict in verdicts:
        table.add_row(*verdict_cells(verdict))
    return printed(table)


def verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    """One line of that table."""
    target, measured = verdict.target, verdict.measured
    met = {True: "yes", False: "no", None: ""}[verdict.met]
    return target.says, target.against, target.wanted, told(measured) if measured else "not measured", met


def printed(table: Table) -> str:
    """The table as text, without colours and spaces at line ends."""
    console = Console(highlight=False, width=COLUMNS, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def said(variant: dict[str, object]) -> str:
    """What sets figures apart, in words."""
    return ", ".join(_said(name, value) for name, value in variant.items())


def _said(name: str, value: object) -> str:
    if name == "burst":
        return str(value)
    if name not in COUNTED or not isinstance(value, int):
        return f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
    return f"{value:,} {name.removesuffix('s') if value == 1 else name}"


def told(spread: Spread) -> str:
    """Median and quartiles."""
    digits = 2 if spread.high < 9.95 else 1 if spread.high < 99.95 else 0
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}-{spread.high:,.{digits}f})"


def _cells(figure: Figure, beside: Iterable[Figure]) -> tuple[str, ...]:
    pool = next((each for each in beside if each.contender == POOL), None)
    p50, rate = figure.spread("p50_ms"), figure.spread("per_second")
    return (
        _three(p50.median),
        _per_cent(p50),
        _three(figure.spread("p99_ms").median),
        f"{rate.median:,.0f}",
        _per_cent(rate),
        _three(figure.spread("cpu_ms").median),
        "" if pool is None or pool is figure else told(speed(figure, pool)),
    )


def _per_cent(spread: Spread) -> str:
    return f"{100 * (spread.high - spread.low) / spread.median:.0f}"


def _three(value: float) -> str:
    """Three digits, where there are so many."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"
