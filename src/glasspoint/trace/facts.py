"""What is said about spans and turns, in the terminal and on the page alike.

Nothing here needs rich, which an extra installs: the live page shows turns without it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from glasspoint.console import milliseconds, plain, style_of_result
from glasspoint.trace.conversation import tier_durations, walk
from glasspoint.trace.spans import work_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glasspoint.trace.conversation import Node, Turn
    from glasspoint.trace.spans import Span

__all__ = ["Fact", "facts_of", "moment", "title_of", "took"]

_WARNING_RESULTS = {"journalled", "discarded", "error", "unavailable", "incomplete"}


class Fact(NamedTuple):
    """A fact about a span, and its style in the terminal."""

    text: str
    style: str = ""


def facts_of(node: Node, *, is_folded: bool = False) -> Iterator[Fact]:
    """Yield the facts of a span beside its name: L1's result, the store that served it, failures, …."""
    span = node.span
    result = plain(span.text("glasspoint.l1.result"))
    if span.name == "checkpoint.get_tuple":
        yield Fact(result or "?", style_of_result(result))
        if served_by := span.text("glasspoint.served_by"):  # a read that failed was served by nothing
            yield Fact(f"from {plain(served_by).upper()}")
    elif span.is_call and is_folded and result:
        yield Fact(result, "yellow" if result in _WARNING_RESULTS else "dim")
    if span.is_call and (node_name := span.text("langgraph.node")):
        yield Fact(f"of {plain(node_name)}", "dim")
    if span.is_call and (tier := span.text("glasspoint.tier")) not in ("", "cached"):
        yield Fact(f"tier {plain(tier)}", "yellow")
    if any(each.failed for each in node.spans):
        error = plain(span.text("error.type", "exception.type")).rpartition(".")[2]
        yield Fact(f"failed: {error}".removesuffix(": "), "red")
    if is_folded and span.is_call:
        inner = (each for below, _ in walk(node.children) for each in below.spans)
        for step in dict.fromkeys(each.name.removeprefix("checkpoint.") for each in inner if each.failed):
            yield Fact(f"{plain(step)} failed", "red")
    if is_folded or span.name == "checkpoint.get_tuple":
        namespace = span.text("langgraph.checkpoint.ns") if span.is_call else ""
        if namespace:
            yield Fact(f"({plain(namespace)})", "dim")
    # These come last, because a narrow terminal cuts them off.
    if is_folded:
        if span.is_call and (times := _tier_times(node)):
            yield Fact(times, "dim")
        yield from _of_a_model(span)


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


def moment(nanoseconds: int) -> str:
    """Return a time in UTC as text."""
    try:
        return f"{datetime.fromtimestamp(nanoseconds // 10**9, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return "?"


def title_of(turn: Turn) -> str:
    """Return the title of a turn: its number; or its trace, for a trace outside of turns."""
    return f"turn {turn.number}" if turn.is_turn else f"outside of turns, trace {turn.trace_id[:8]}"


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


def _of_a_model(span: Span) -> Iterator[Fact]:
    if work_of(span) != "model":
        return
    if model := span.text("gen_ai.response.model", "gen_ai.request.model", "llm.model_name"):
        yield Fact(plain(model), "magenta")
    read = span.text("gen_ai.usage.input_tokens", "llm.token_count.prompt")
    written = span.text("gen_ai.usage.output_tokens", "llm.token_count.completion")
    if read or written:
        yield Fact(f"{plain(read) or '?'} → {plain(written) or '?'} tokens", "dim")
