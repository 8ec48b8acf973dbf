"""Draws spans as a tree in the terminal: their names, facts, starts and durations."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.text import Text

from glasspoint.console import WIDTH, milliseconds, plain, styled_result
from glasspoint.trace.conversation import Node, tier_durations, walk
from glasspoint.trace.spans import work_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from glasspoint.trace.spans import Event, Span, Work

__all__ = ["SpanTree", "events_of", "facts_of", "merged", "took"]

_STYLES: dict[Work, str] = {
    "turn": "bold",
    "saver": "bold cyan",
    "model": "magenta",
    "tool": "blue",
}
_WARNING_RESULTS = {"journalled", "discarded", "error", "unavailable", "incomplete"}
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
            facts.append("  ").append_text(fact)
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


def took(nanoseconds: float) -> str:
    """Return a duration in the unit that suits it.

    Example:
        >>> took(1_500_000), took(2_340_000_000), took(3 * 3600 * 10**9)
        ('1.50 ms', '2.34 s', '3 h 0 min')
    """
    seconds = nanoseconds / 1e9
    if seconds < 1:
        return milliseconds(nanoseconds)
    if seconds < 60:
        return f"{seconds:.{1 if seconds >= 10 else 2}f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} days"


def facts_of(node: Node, *, is_folded: bool = False) -> Iterator[Text]:
    """Yield the facts of a span beside its name: L1's result, the store that served it, failures, …."""
    span = node.span
    result = plain(span.text("glasspoint.l1.result"))
    if span.name == "checkpoint.get_tuple":
        yield styled_result(result or "?")
        if served_by := span.text("glasspoint.served_by"):  # a read that failed was served by nothing
            yield Text(f"from {plain(served_by).upper()}")
    elif span.is_call and is_folded and result:
        yield Text(result, "yellow" if result in _WARNING_RESULTS else "dim")
    if span.is_call and (node_name := span.text("langgraph.node")):
        yield Text(f"of {plain(node_name)}", "dim")
    if span.is_call and (tier := span.text("glasspoint.tier")) not in ("", "cached"):
        yield Text(f"tier {plain(tier)}", "yellow")
    if any(each.failed for each in node.spans):
        error = plain(span.text("error.type", "exception.type")).rpartition(".")[2]
        yield Text(f"failed: {error}".removesuffix(": "), "red")
    if is_folded and span.is_call:
        inner = (each for below, _ in walk(node.children) for each in below.spans)
        for step in dict.fromkeys(each.name.removeprefix("checkpoint.") for each in inner if each.failed):
            yield Text(f"{plain(step)} failed", "red")
    if is_folded or span.name == "checkpoint.get_tuple":
        namespace = span.text("langgraph.checkpoint.ns") if span.is_call else ""
        if namespace:
            yield Text(f"({plain(namespace)})", "dim")
    # These come last, because a narrow terminal cuts them off.
    if is_folded:
        if span.is_call and (times := _tier_times(node)):
            yield Text(times, "dim")
        yield from _of_a_model(span)


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
        key = (node.span.name, *(fact.plain for fact in facts_of(node)))
        group = groups.setdefault(key, Node([]))
        group.spans += node.spans
        group.children += node.children
    for group in groups.values():
        group.children = merged(group.children)
    return list(groups.values())


def _tier_times(call: Node) -> str:
    """Return `L1 0.93 · L2 2.1 ms`: the servers' times in a call; empty for a read of one server alone."""
    spent = tier_durations(call)
    if call.span.name == "checkpoint.get_tuple" and spent.keys() <= {call.span.text("glasspoint.served_by")}:
        return ""
    names = {tier: tier if tier == "wait" else tier.upper() for tier in spent}
    if any(each >= 10**9 for each in spent.values()):
        return " · ".join(f"{names[tier]} {took(each)}" for tier, each in spent.items())
    times = " · ".join(f"{names[tier]} {_two_digits(each / 1e6)}" for tier, each in spent.items())
    return f"{times} ms" if times else ""


def _two_digits(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2}f}"


def _of_a_model(span: Span) -> Iterator[Text]:
    if work_of(span) != "model":
        return
    if model := span.text("gen_ai.response.model", "gen_ai.request.model", "llm.model_name"):
        yield Text(plain(model), "magenta")
    read = span.text("gen_ai.usage.input_tokens", "llm.token_count.prompt")
    written = span.text("gen_ai.usage.output_tokens", "llm.token_count.completion")
    if read or written:
        yield Text(f"{plain(read) or '?'} → {plain(written) or '?'} tokens", "dim")


def _event_text(event: Event, room: int) -> Text:
    told = " ".join(f"{plain(key)}={plain(str(value))}" for key, value in event.attributes.items())
    name = plain(event.name.removeprefix(_OURS))
    text = Text().append(f"! {name}", "yellow").append(f"  {told}", "dim")
    text.truncate(max(room, _NARROWEST_NAME), overflow="ellipsis")
    return text


def _cut(text: str, room: int) -> str:
    return text if cell_len(text) <= room else f"{set_cell_size(text, room - 1).rstrip()}…"
