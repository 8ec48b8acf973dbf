"""docs/performance.md: its tables and its picture, made from the JSON of a run.

What is generated stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from comparison.measuring import Figure, Spread
from comparison.peers import ALL, FLOOR, OURS
from comparison.report import said, told, verdict_cells
from comparison.targets import judged

_GENERATED: Final = re.compile(r"(<!-- generated: ([\w ,]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Run:
    """What a run has left."""

    document: dict[str, Any]
    figures: list[Figure]

    @classmethod
    def read(cls, file: Path) -> Run:
        document = json.loads(file.read_text("utf-8"))
        return cls(document, [Figure.from_json(each) for each in document["figures"]])


def renewed(text: str, run: Run, with_uvloop: Run | None) -> str:
    """Return the page with its generated parts made anew."""
    special: dict[str, Callable[[], str]] = {
        "facts": lambda: facts(run),
        "targets": lambda: targets(run, with_uvloop),
        "turn cost": lambda: turn_costs(run.figures),
    }

    def part(found: re.Match[str]) -> str:
        name = found[2]
        made = special[name]() if name in special else workload(run.figures, name)
        return f"{found[1]}\n{made}\n{found[3]}"

    return _GENERATED.sub(part, text)


def facts(run: Run) -> str:
    """Where and how it was measured."""
    document = run.document
    lines = [
        *document["facts"].values(),
        *document["notes"],
    ]
    return "".join(f"- {line}\n" for line in lines)


def targets(run: Run, with_uvloop: Run | None) -> str:
    """The targets, and what was measured."""
    head = ["target", "against", "wanted", "measured", "met"]
    rows = [list(verdict_cells(each)) for each in judged(run.figures)]
    if with_uvloop is not None:
        head.append("with uvloop")
        for row, verdict in zip(rows, judged(with_uvloop.figures), strict=True):
            row.append(told(verdict.measured) if verdict.measured else "not measured")
    return table(head, rows)


def workload(figures: Sequence[Figure], name: str) -> str:
    """One workload: medians and quartiles of a call's milliseconds, or of calls a second."""
    found = [each for each in figures if each.workload == name]
    names = [each for each in (*ALL, FLOOR) if any(each == figure.contender for figure in found)]
    rows = []
    for _, of_variant in groupby(found, key=lambda each: (each.group, said(each.variant))):
        of_name = {each.contender: each for each in of_variant}
        first = next(iter(of_name.values()))
        rows.append([_named(first)])
        rows[-1] += [_cell(of_name[each]) if each in of_name else "" for each in names]
    return table([name, *names], rows)


def turn_costs(figures: Sequence[Figure]) -> str:
    """What a turn takes of the process's processor, and Glasspoint's of Redis."""
    found = [each for each in figures if each.workload == "turn"]
    names = [each for each in ALL if any(each == figure.contender for figure in found)]
    rows = []
    for _, of_variant in groupby(found, key=lambda each: (each.group, said(each.variant))):
        of_name = {each.contender: each for each in of_variant}
        ours = of_name[OURS]
        counted = (ours.counted("redis_steps"), ours.counted("redis_kb"))
        rows.append(
            [
                f"{said(ours.variant)}: ms",
                *(told(of_name[name].spread("cpu_ms")) if name in of_name else "" for name in names),
                *(told(each) if each else "not measured" for each in counted),
            ]
        )
    return table(["processor time a turn", *names, "Redis: steps", "Redis: kB"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(figure: Figure) -> str:
    statements = figure.rounds[0].statements
    if statements is not None:
        done = Spread.of([1000 * each.calls / each.per_second for each in figure.rounds])
        return f"{told(done)} ms, {statements} statements"
    if not figure.is_throughput:
        return told(figure.spread("p50_ms"))
    spread = figure.spread("per_second")
    return f"{spread.median:,.0f} ({spread.low:,.0f}-{spread.high:,.0f})"


def _named(figure: Figure) -> str:
    if figure.rounds[0].statements is not None:
        return said(figure.variant)
    return f"{said(figure.variant)}: {'calls/s' if figure.is_throughput else 'ms'}"
