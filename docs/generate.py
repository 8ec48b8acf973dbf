"""Writes the tables of docs/telemetry.md and CONTRIBUTING.md from the code: `make generate`.

Tests hold that they are so.

What is generated stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import grimp

from glasspoint.telemetry.catalogue import METRICS, SPANS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from glasspoint.telemetry.catalogue import Query

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "telemetry.md", ROOT / "CONTRIBUTING.md")
SRC = ROOT / "src" / "glasspoint"

_GENERATED = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return _GENERATED.sub(lambda found: f"{found[1]}\n{_PARTS[found[2]]()}\n{found[3]}", text)


def metrics() -> str:
    """Return the table of all metrics."""
    rows = [(f"`{m.name}`", m.kind, ", ".join(m.labels), m.answers) for m in METRICS.values()]
    return _table(("name", "type", "labels", "answers"), rows)


def metric_queries() -> str:
    """Return the questions and their PromQL."""
    return _queries("PromQL", (query for metric in METRICS.values() for query in metric.queries))


def spans() -> str:
    """Return the table of all spans."""
    rows = [
        (
            ", ".join(f"`{name}`" for name in (group.prefix + group.names[0], *_short(group.names[1:]))),
            group.kind,
            group.when,
            ", ".join(f"`{name}`" for name in group.attributes),
        )
        for group in SPANS
    ]
    return _table(("span", "kind", "when", "attributes"), rows)


def span_queries() -> str:
    """Return the questions and their TraceQL."""
    return _queries("TraceQL", (query for group in SPANS for query in group.queries))


def _short(names: Iterable[str]) -> Iterable[str]:
    return (f".{name}" if name else "invoke_agent" for name in names)


def house() -> str:
    """Return the table of the rooms, floor by floor: what each is for, and which rooms it imports from."""
    floors = [re.split(r"[ |:]+", floor) for floor in _floors()]
    uses = _arrows()
    rows = [
        (
            str(number),
            f"`{room}`",
            _summary(room),
            ", ".join(f"`{each}`" for each in sorted(uses.get(room, ()))),
        )
        for number, rooms in zip(range(len(floors), 0, -1), floors, strict=True)
        for room in rooms
    ]
    return _table(("floor", "room", "what it is for", "imports from"), rows)


def _floors() -> list[str]:
    """Return the floors as the contract has them, from the top, with the one that `import glasspoint` is."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    above = layers.index("demo") + 1
    return [*layers[1:above], "__init__", *layers[above:]]


def _arrows() -> dict[str, set[str]]:
    graph = grimp.build_graph("glasspoint", cache_dir=None)
    uses: dict[str, set[str]] = {}
    for module in graph.modules:
        for used in graph.find_modules_directly_imported_by(module):
            if (user := _room_of(module)) != (room := _room_of(used)):
                uses.setdefault(user, set()).add(room)
    return uses


def _room_of(module: str) -> str:
    _, _, rest = module.partition(".")
    return rest.partition(".")[0] or "__init__"


def _summary(room: str) -> str:
    path = SRC / room / "__init__.py"
    text = (
        ast.get_docstring(ast.parse((path if path.exists() else SRC / f"{room}.py").read_text("utf-8"))) or ""
    )
    return text.partition("\n\n")[0].replace("\n", " ")


def _queries(language: str, queries: Iterable[Query]) -> str:
    return _table(("question", language), [(query.question, f"`{query.text}`") for query in queries])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # A bar inside a cell would end it, in code too.
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


_PARTS: dict[str, Callable[[], str]] = {
    "metrics": metrics,
    "metric queries": metric_queries,
    "spans": spans,
    "span queries": span_queries,
    "house": house,
}

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text("utf-8")), "utf-8")
