"""How the story looks in the terminal: a turn's dialogue, its times, its trace as a tree, its counters.

Everything here returns something that rich can print at any width. What colour says is always said in words
too, for pipes and for `NO_COLOR`.
"""

from __future__ import annotations

from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from opentelemetry.trace import StatusCode
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from glasspoint.demo.acts import Turn
    from glasspoint.demo.telemetry import Moved

    Children = Mapping[int | None, list[ReadableSpan]]

__all__ = ["WIDTH", "Block", "heading", "milliseconds", "show_turn", "styled_result", "summary", "trace_tree"]

WIDTH = 80
"""Nothing gets wider: on a wide terminal the eye would lose the line from a name to its duration."""

_SIDE_BY_SIDE_WIDTH = 70
_RESULT_STYLES = {"hit": "green", "miss": "yellow", "unavailable": "red"}
_TIERS = {"l1": "L1 Redis", "l2": "L2 PostgreSQL"}


def heading(title: str, explanation: str) -> RenderableType:
    """Return the opening of an act."""
    return Group(Text.assemble(("── ", "dim"), (title, "bold")), Block(Text(explanation, "dim")))


def show_turn(turn: Turn) -> RenderableType:
    """Return all that was seen of a turn: dialogue, tiers, trace, counters, log lines and the verdict."""
    dialogue = _facts_grid(
        [
            (Text("you", "cyan"), Text(turn.act.says)),
            (Text("agent", "magenta"), Text(turn.answer.text, "bold")),
        ]
    )
    said = [(Text("log", "yellow"), Text(line)) for line in turn.warnings]
    if turn.prepared.remark:
        said.append((Text("note", "cyan"), Text(turn.prepared.remark)))
    said += [(Text("WRONG", "bold red"), Text(problem, "red")) for problem in turn.problems]
    if not turn.problems:
        as_expected = Text.assemble("as expected, L1 says ", styled_result(turn.result))
        said.append((Text("ok", "bold green"), as_expected))
    parts = [
        dialogue,
        _tier_times(turn.spans),
        trace_tree(turn.spans),
        _Counters(turn.moved),
        _facts_grid(said),
    ]
    return Group(*(Block(part) for part in parts))


def summary(turns: Sequence[Turn]) -> RenderableType:
    """Return the story in one table, and its verdict."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("turn", justify="right")
    table.add_column("what happened")
    table.add_column("L1")
    table.add_column("read", justify="right", no_wrap=True)
    table.add_column("answer")
    for turn in turns:
        table.add_row(
            str(turn.number),
            turn.act.title,
            styled_result(turn.result),
            milliseconds(turn.read_nanoseconds),
            Text(turn.answer.text, "bold red" if turn.problems else ""),
        )
    wrong = sum(bool(turn.problems) for turn in turns)
    verdict = (
        Text(f"WRONG  {wrong} of {len(turns)} turns did not go as they should; see above.", "bold red")
        if wrong
        else Text.assemble(("ok  ", "bold green"), f"The name was remembered in all {len(turns)} turns.")
    )
    return Group(Block(table, indent=0, lines_after=0), Block(verdict, indent=0))


def styled_result(result: str) -> Text:
    """Return an L1 result as a coloured word."""
    return Text(result, _RESULT_STYLES.get(result, ""))


def milliseconds(nanoseconds: float) -> str:
    """Return a duration as text, with three significant digits.

    Example:
        >>> milliseconds(1_234_000), milliseconds(42_000_000)
        ('1.23 ms', '42.0 ms')
    """
    value = nanoseconds / 1e6
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} ms"


def trace_tree(spans: Sequence[ReadableSpan]) -> RenderableType:
    """Return a trace as a tree. Siblings of the same name and result share one line, with their count."""
    known = {span.context.span_id for span in spans if span.context}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in spans:
        parent = span.parent.span_id if span.parent and span.parent.span_id in known else None
        children.setdefault(parent, []).append(span)
    roots = children.get(None, [])
    if not roots:
        return Text("no spans", "red")
    tree = Tree(_span_line(roots[:1]), guide_style="dim")
    _grow(tree, roots, children)
    return tree


def _grow(node: Tree, parents: Sequence[ReadableSpan], children: Children) -> None:
    groups: dict[tuple[str, ...], list[ReadableSpan]] = {}
    for parent in parents:
        for child in children.get(parent.context.span_id if parent.context else None, []):
            groups.setdefault((child.name, *_facts(child)), []).append(child)
    for group in groups.values():
        _grow(node.add(_span_line(group)), group, children)


def _span_line(group: Sequence[ReadableSpan]) -> RenderableType:
    line = Text(group[0].name)
    if len(group) > 1:
        line.append(f" ×{len(group)}", "bold")
    for fact in _facts(group[0]):
        line.append("  ").append_text(styled_result(fact))
    kind = "median " if len(group) > 1 else ""
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(line, Text(f"{kind}{milliseconds(_duration(group))}", "dim"))
    return grid


def _facts(span: ReadableSpan) -> tuple[str, ...]:
    """Return what a reader wants to know of a span beside its name: L1's word, who answered, what failed."""
    attributes = span.attributes or {}
    facts = []
    if span.name == "checkpoint.get_tuple":
        facts.append(str(attributes.get("glasspoint.l1.result", "?")))
        facts.append(f"from {str(attributes.get('glasspoint.served_by', '?')).upper()}")
        if namespace := attributes.get("langgraph.checkpoint.ns"):
            facts.append(f"({namespace})")
    if span.status.status_code is StatusCode.ERROR:
        facts.append(f"failed: {str(attributes.get('error.type', '')).rpartition('.')[2]}")
    return tuple(facts)


def _tier_times(spans: Iterable[ReadableSpan]) -> RenderableType:
    """Return a line for each tier: which steps, how often, and how long one took."""
    rows = []
    steps = [(span.name.split("."), span) for span in spans if span.name.count(".") == 2]
    for tier, title in _TIERS.items():
        by_step: dict[str, list[ReadableSpan]] = {}
        for (_, of_tier, step), span in steps:
            if of_tier == tier:
                by_step.setdefault(step, []).append(span)
        texts = [_step_text(step, group) for step, group in by_step.items()] or [Text("not asked", "dim")]
        rows.append((Text(title, "bold"), Text(" · ").join(texts)))
    return _facts_grid(rows)


def _step_text(step: str, spans: Sequence[ReadableSpan]) -> Text:
    text = Text(f"{step} ")
    if len(spans) > 1:
        text.append(f"{len(spans)}× ", "dim")
    text.append(milliseconds(_duration(spans)))
    if failed := sum(span.status.status_code is StatusCode.ERROR for span in spans):
        text.append(" failed" if failed == len(spans) else f" ({failed} failed)", "red")
    return text


def _duration(spans: Iterable[ReadableSpan]) -> float:
    """Return the median, in nanoseconds: in a fresh pool, the first of several is no measure for the rest."""
    return median((span.end_time or 0) - (span.start_time or 0) for span in spans)


class _Counters:
    """The counters that moved, a line for each metric; on a narrow terminal, two lines."""

    def __init__(self, moved: Iterable[Moved]) -> None:
        by_metric = groupby(sorted(moved, key=lambda one: one.metric), key=lambda one: one.metric)
        self._rows = [
            (Text(metric.removeprefix("glasspoint_"), "blue"), Text(_movements(list(group))))
            for metric, group in by_metric
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("counters that moved (glasspoint_…)", "dim")
        if options.max_width >= _SIDE_BY_SIDE_WIDTH:
            yield _facts_grid(self._rows)
            return
        for metric, movements in self._rows:
            yield metric
            yield Padding(movements, (0, 0, 0, 2))


def _movements(moved: Sequence[Moved]) -> str:
    """Return how the children of one metric moved; those that differ in the last label only share a place."""
    merged: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for one in moved:
        labels = [label for label in one.labels if label != "ok"]
        merged.setdefault((tuple(labels[:-1]), one.by), []).extend(labels[-1:])
    return " · ".join(
        f"{'/'.join([*head, ','.join(last)])} +{by}".strip() for (head, by), last in merged.items()
    )


def _facts_grid(rows: Iterable[tuple[Text, Text]]) -> Table:
    """Return label and text side by side; a long text wraps beside its label, not under it."""
    grid = Table.grid(padding=(0, 2))
    for label, text in rows:
        grid.add_row(label, text)
    return grid


class Block:
    """Something indented, with an empty line after it, and no spaces at the end of its lines.

    (Rich fills lines up with spaces, which then stand in every file that the output is piped into.)
    """

    def __init__(self, content: RenderableType, *, indent: int = 3, lines_after: int = 1) -> None:
        self._content = content
        self._lines_after = lines_after
        self._indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDTH) - self._indent
        for line in console.render_lines(self._content, options.update_width(width), pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                yield Segment(" " * self._indent)
                yield from line[:-1]
                yield Segment(line[-1].text.rstrip(), line[-1].style)
            yield Segment.line()
        yield from [Segment.line()] * self._lines_after
