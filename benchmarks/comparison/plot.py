"""The picture in docs/performance.md: speed beside upstream's, and what history costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from comparison.measuring import Figure, speed
from comparison.peers import FLOOR, ONE, OURS, POOL, REDIS
from comparison.report import said
from comparison.targets import TARGETS

SHOWN: Final = ("hit", "miss", "put", "put_writes", "first turn", "turn", "put, network", "turn, network")
MARKS: Final = {
    OURS: ("o", "#1f77b4", 7),
    FLOOR: ("s", "#7f7f7f", 4),
    ONE: ("d", "#ff7f0e", 4),
    REDIS: ("^", "#d62728", 4),
}
"""Marker, colour, size. Not InMemorySaver: it is up to a hundred times as fast, and gone with its process."""
DEPTHS: Final = {"hit, depth": "-", "miss, depth": "--", "put, depth": ":"}


def draw(figures: Sequence[Figure], file: Path) -> None:
    """Draw it into a PNG."""
    canvas = Canvas(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2, width_ratios=(3, 2))
    _speeds(left, [each for each in figures if each.workload in SHOWN])
    _depths(right, figures)
    canvas.savefig(file, dpi=100, metadata={"Software": None})


def _speeds(axes: Any, figures: Sequence[Figure]) -> None:
    labels = []
    shown: set[str] = set()
    for row, (_, group) in enumerate(groupby(figures, key=lambda each: (each.group, said(each.variant)))):
        of_name = {each.contender: each for each in group}
        ours, pool = of_name[OURS], of_name[POOL]
        labels.append(f"{ours.workload.removesuffix(', network')}, {said(ours.variant)}")
        for name, (marker, colour, size) in MARKS.items():
            if name in of_name:
                spread = speed(of_name[name], pool)
                axes.plot([spread.low, spread.high], [row, row], color=colour, linewidth=1.5)
                label = None if name in shown else name
                axes.plot(spread.median, row, marker, color=colour, markersize=size, label=label)
                shown.add(name)
        for target in TARGETS:
            wanted = (target.workload, target.variant, target.against, target.what)
            if wanted == (ours.workload, ours.variant, "pool", "speed"):
                limit = target.limit if target.kind == "at least" else 1 / target.limit
                label = None if "wanted" in shown else "wanted of Glasspoint"
                axes.plot(limit, row, "|", color="black", markersize=14, label=label)
                shown.add("wanted")
    axes.axvline(1, color="#bbbbbb", zorder=0)
    axes.set_xscale("log")
    axes.set_xticks((0.25, 0.5, 1, 2, 5, 10, 20), ("¼", "½", "1", "2", "5", "10", "20"))
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "times as fast as AsyncPostgresSaver on a pool\n(one caller: the median call; more: calls a second)"
    )
    axes.legend(loc="lower left", fontsize=8)


def _depths(axes: Any, figures: Sequence[Figure]) -> None:
    for workload, line in DEPTHS.items():
        for name, colour in ((OURS, "#1f77b4"), (POOL, "#ff7f0e")):
            found = [
                each
                for each in figures
                if (each.workload, each.contender) == (workload, name) and each.variant["analyzed"] == "no"
            ]
            found.sort(key=lambda each: int(each.variant["depth"]))
            spreads = [each.spread("p50_ms") for each in found]
            depths = [each.variant["depth"] for each in found]
            label = f"{workload.removesuffix(', depth')}, {name}"
            axes.plot(depths, [each.median for each in spreads], line, marker="o", color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("checkpoints in the thread\n(tables never analyzed)")
    axes.set_ylabel("ms, median")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
