"""Draws the story in the terminal: a turn's dialogue, its times, its trace as a tree, its counters.

All functions return objects that rich can print at any width. Words always say what a colour says, for pipes
and for `NO_COLOR`.
"""

from __future__ import annotations

from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from glasspoint.console import Block, milliseconds, styled_result
from glasspoint.trace.conversation import forest
from glasspoint.trace.spans import Span, work_of
from glasspoint.trace.tree import SpanTree, merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from glasspoint.demo.acts import Turn
    from glasspoint.demo.telemetry import Moved
    from glasspoint.telemetry.live.timeline import Level

__all__ = ["heading", "show_turn", "source_of", "summary", "verdict"]

_LOWER_TIERS = ("redis", "memory")
_SIDE_BY_SIDE_WIDTH = 70
_TIERS = {"l1": "L1 Redis", "l2": "L2 PostgreSQL"}


def heading(title: str, explanation: str) -> RenderableType:
    """Return the opening of an act."""
    return Group(Text.assemble(("── ", "dim"), (title, "bold")), Block(Text(explanation, "dim")))


def show_turn(turn: Turn) -> RenderableType:
    """Return the picture of a turn: dialogue, servers' times, trace, counters, log lines and verdict."""
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
        says = f"as expected, {source_of(turn)}".removesuffix(turn.result)
        as_expected = Text.assemble(says, styled_result(turn.result))
        said.append((Text("ok", "bold green"), as_expected))
    parts = [
        dialogue,
        _tier_times(turn.spans),
        _trace_tree(turn.spans),
        _Counters(turn.moved),
        _facts_grid(said),
    ]
    return Group(*(Block(part) for part in parts))


def source_of(turn: Turn) -> str:
    """Return what has answered the first read of a turn, in words."""
    return f"the tier is {turn.result}" if turn.result in _LOWER_TIERS else f"L1 says {turn.result}"


def verdict(turns: Sequence[Turn]) -> tuple[str, Level]:
    """Return how the story went, in words, and the level of that: `good` or `error`."""
    if wrong := sum(bool(turn.problems) for turn in turns):
        return f"{wrong} of {len(turns)} turns did not go as they should; see above.", "error"
    return f"The name was remembered in all {len(turns)} turns.", "good"


def summary(turns: Sequence[Turn]) -> RenderableType:
    """Return the story in one table, and its verdict."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("turn", justify="right")
    table.add_column("what happened")
    table.add_column("L1 or tier")
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
    said, level = verdict(turns)
    shown = (
        Text(f"WRONG  {said}", "bold red")
        if level == "error"
        else Text.assemble(("ok  ", "bold green"), said)
    )
    return Group(Block(table, indent=0, lines_after=0), Block(shown, indent=0))


def _trace_tree(spans: Sequence[ReadableSpan]) -> RenderableType:
    """Return a trace as a tree. Siblings of the same name and result share one line, with their count."""
    read = [_as_read(span) for span in spans]
    ids, turn = {span.span_id for span in read}, next((s for s in read if work_of(s) == "turn"), None)
    for span in read:
        # Calls stand below the spans of graphs and nodes, which are not shown here.
        if turn is not None and span is not turn and span.parent_id not in ids:
            span.parent_id = turn.span_id
    roots = forest(read)
    return SpanTree(merged(roots)[:1]) if roots else Text("no spans", "red")


def _as_read(span: ReadableSpan) -> Span:
    """Return a span of the SDK in the form that `glasspoint trace` reads."""
    start = span.start_time or 0
    return Span(
        trace_id=format_trace_id(span.context.trace_id) if span.context else "",
        span_id=format_span_id(span.context.span_id) if span.context else "",
        parent_id=format_span_id(span.parent.span_id) if span.parent else "",
        name=span.name,
        start=start,
        end=span.end_time or start,
        attributes=dict(span.attributes or {}),  # type: ignore[arg-type]
        resource={},
        scope="glasspoint",
        failed=span.status.status_code is StatusCode.ERROR,
    )


def _tier_times(spans: Iterable[ReadableSpan]) -> RenderableType:
    """Return a line for L1 and one for L2: their steps, how often each ran, and how long one took."""
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
    """Return the median duration, in nanoseconds: in a new pool, the first call is slower than the rest."""
    return median((span.end_time or 0) - (span.start_time or 0) for span in spans)


class _Counters:
    """The counters that have grown, one line for each metric; on a narrow terminal, two lines."""

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
    """Return the growth of one metric's children. Children that differ only in the last label are joined."""
    merged: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for one in moved:
        labels = [label for label in one.labels if label != "ok"]
        merged.setdefault((tuple(labels[:-1]), one.by), []).extend(labels[-1:])
    return " · ".join(
        f"{'/'.join([*head, ','.join(last)])} +{by}".strip() for (head, by), last in merged.items()
    )


def _facts_grid(rows: Iterable[tuple[Text, Text]]) -> Table:
    """Return labels and texts side by side. A long text wraps beside its label, not under it."""
    grid = Table.grid(padding=(0, 2))
    for label, text in rows:
        grid.add_row(label, text)
    return grid
