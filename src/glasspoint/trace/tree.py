"""Draws spans as a tree in the terminal: their names, facts, starts and durations."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.text import Text

from glasspoint.console import WIDTH, plain
from glasspoint.trace.conversation import Node, walk
from glasspoint.trace.facts import facts_of, took
from glasspoint.trace.spans import work_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from glasspoint.trace.spans import Event, Work

__all__ = ["SpanTree", "events_of", "merged"]

_STYLES: dict[Work, str] = {
    "turn": "bold",
    "saver": "bold cyan",
    "model": "magenta",
    "tool": "blue",
}
_NARROWEST_NAME = 12
_OURS = "glasspoint."


class SpanTree:
    """Trees of spans, one line for each span.

    Args:
        roots: The spans at the top.
        since: If given, each line also shows how long after this the span began; nanoseconds since 1970.
        is_folded: Whether to leave out the spans inside a call of the checkpointer. The call's line then
            shows how long each server took.
    """

    def __init__(self, roots: Sequence[Node], *, since: int | None = None, is_folded: bool = False) -> None:
        self._roots = roots
        self._since = since
        self._is_folded = is_folded

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDTH)
        for guides, node, event in self._rows():
            # Long guides are cut, so that there is room for a name at any depth.
            shown = guides if len(guides) <= width // 3 else f"⋯{guides[len(guides) - width // 3 + 1 :]}"
            line = Text().append(shown, "dim")
            right = self._times(node) if event is None else self._offset(event.at)
            room = width - len(shown) - cell_len(right) - 1
            line.append_text(self._label(node, room) if event is None else _event_text(event, room))
            line.append(" " * (width - line.cell_len - cell_len(right)))
            line.append(right, "dim")
            line.rstrip()
            yield from line.render(console)
            yield Segment.line()

    def _rows(self) -> Iterator[tuple[str, Node, Event | None]]:
        waiting: list[tuple[str, str, Node, Event | None]] = []
        for root in reversed(self._roots):
            waiting.append(("", "", root, None))
        while waiting:
            guides, below, node, event = waiting.pop()
            yield guides, node, event
            if event is not None:
                continue
            is_folded = self._is_folded and node.span.is_call
            inner: list[tuple[Node, Event | None]] = [
                (node, each) for each in events_of(node, inner=is_folded)
            ]
            if not is_folded:
                inner += [(child, None) for child in node.children]
            for position, (each, of_each) in reversed(list(enumerate(inner))):
                is_last = position == len(inner) - 1
                guide, further = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
                waiting.append((below + guide, below + further, each, of_each))

    def _label(self, node: Node, room: int) -> Text:
        facts = Text()
        if len(node.spans) > 1:
            facts.append(f" ×{len(node.spans)}", "bold")
        for fact in facts_of(node, is_folded=self._is_folded):
            facts.append("  ").append(fact.text, fact.style)
        name = plain(node.span.name) or "(no name)"
        if self._is_folded and node.span.is_call:
            name = name.removeprefix("checkpoint.")  # leaves LangGraph's name of the method
        for_name = max(_NARROWEST_NAME, room - facts.cell_len)
        label = Text().append(_cut(name, for_name), _STYLES.get(work_of(node.span), ""))
        label.append_text(facts)
        label.truncate(max(room, _NARROWEST_NAME), overflow="ellipsis")
        return label

    def _times(self, node: Node) -> str:
        kind = "median " if len(node.spans) > 1 else ""
        # The median, because in a new pool the first call is much slower than the rest.
        duration = f"{kind}{took(median(span.duration for span in node.spans))}"
        return duration if self._since is None else f"{self._offset(node.span.start)} {duration:>8}"

    def _offset(self, at: int) -> str:
        if self._since is None:
            return ""
        after = at - self._since
        return f"{'+' if after >= 0 else '-'}{took(abs(after))}"


def events_of(node: Node, *, inner: bool) -> Iterator[Event]:
    """Yield Glasspoint's events of a span: a retry, a change of tier, ….

    Args:
        node: The span.
        inner: Whether to include the events of the spans under it.
    """
    nodes: Iterable[Node] = (each for each, _ in walk([node])) if inner else [node]
    for each in nodes:
        for span in each.spans:
            yield from (event for event in span.events if event.name.startswith(_OURS))


def merged(nodes: Sequence[Node]) -> list[Node]:
    """Merge siblings of the same name and facts into one line."""
    groups: dict[tuple[str, ...], Node] = {}
    for node in nodes:
        key = (node.span.name, *(fact.text for fact in facts_of(node)))
        group = groups.setdefault(key, Node([]))
        group.spans += node.spans
        group.children += node.children
    for group in groups.values():
        group.children = merged(group.children)
    return list(groups.values())


def _event_text(event: Event, room: int) -> Text:
    told = " ".join(f"{plain(key)}={plain(str(value))}" for key, value in event.attributes.items())
    name = plain(event.name.removeprefix(_OURS))
    text = Text().append(f"! {name}", "yellow").append(f"  {told}", "dim")
    text.truncate(max(room, _NARROWEST_NAME), overflow="ellipsis")
    return text


def _cut(text: str, room: int) -> str:
    return text if cell_len(text) <= room else f"{set_cell_size(text, room - 1).rstrip()}…"
