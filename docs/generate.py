"""Writes the tables of docs/telemetry.md from the code: `make generate`. A test holds that they are so.

What is generated stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from glasspoint.telemetry.catalogue import METRICS, SPANS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from glasspoint.telemetry.catalogue import Query

TELEMETRY = Path(__file__).with_name("telemetry.md")

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
}

if __name__ == "__main__":
    TELEMETRY.write_text(renewed(TELEMETRY.read_text("utf-8")), "utf-8")
