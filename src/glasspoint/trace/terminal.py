"""Shows a conversation in the terminal: turn by turn, and a summary."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from glasspoint.console import Block, plain
from glasspoint.trace.facts import moment, title_of, took
from glasspoint.trace.tree import SpanTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from glasspoint.trace.conversation import Conversation, Origin, Reads, Turn
    from glasspoint.trace.spans import Span

__all__ = ["show_conversation", "show_remarks", "show_summary", "where_from"]

_SERVERS = {"l1": "L1 Redis", "l2": "L2 PostgreSQL", "redis": "Redis alone", "memory": "memory"}
_SLOWEST = 3
_NAMED = 3


def show_conversation(
    conversation: Conversation, turns: Sequence[Turn], *, all_spans: bool
) -> RenderableType:
    """Return a conversation as text.

    Args:
        conversation: The conversation.
        turns: The turns to show.
        all_spans: Whether to show also the spans inside the checkpointer's calls.
    """
    services = {turn.service for turn in conversation.turns}
    parts: list[RenderableType] = [Block(_heading(conversation, turns), indent=0)]
    for turn in turns:
        parts.append(
            Block(
                _turn_heading(turn, conversation.turns, with_service=len(services) > 1),
                indent=0,
                lines_after=0,
            )
        )
        parts.append(Block(SpanTree(turn.roots, since=turn.start, is_folded=not all_spans), indent=0))
    return Group(*parts)


def show_summary(conversation: Conversation, *, page: str = "") -> RenderableType:
    """Return a summary: reads by server, the checkpointer's share of the time, the slowest turns, failures.

    Args:
        conversation: The conversation.
        page: The path of its page, if one was written.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=12)
    grid.add_column(overflow="fold")
    for name, text in _sums(conversation):
        grid.add_row(Text(name, "bold"), text)
    if page:
        grid.add_row(Text("page", "bold"), plain(page))
    return Group(Text("── all of it", "dim"), Block(grid, indent=0, lines_after=0))


def show_remarks(conversation: Conversation) -> RenderableType:
    """Return the notes about gaps in the data."""
    return Group(
        *(
            Block(Text(f"note  {plain(each)}", "yellow"), indent=0, lines_after=0)
            for each in conversation.remarks
        )
    )


def where_from(turn: Turn, turns: Sequence[Turn]) -> Iterator[str]:
    """Yield a line for each link: what the turn continues."""
    for origin in turn.origins:
        yield _where_from(turn, origin)
    if not turn.origins and turn.is_turn and any(each.is_turn for each in turns[: turns.index(turn)]):
        yield "not linked to any turn before it"


def _where_from(turn: Turn, origin: Origin) -> str:
    verb = "goes on" if turn.is_turn else "reads"
    if origin.turn is None:
        return f"{verb} from trace {origin.trace_id}, which is not here"
    later = turn.start - origin.turn.end
    when = f", {took(later)} later" if later > 0 else ""
    if turn.is_fork:
        return f"a fork: {verb} from {title_of(origin.turn)}{when}"
    return f"{verb} from {title_of(origin.turn)}{when}"


def _heading(conversation: Conversation, turns: Sequence[Turn]) -> Text:
    text = Text.assemble(("conversation ", "dim"), (plain(conversation.thread_id), "bold"))
    if conversation.shown_as != conversation.thread_id:
        text.append(f"  (on its spans: {plain(conversation.shown_as)})", "dim")
    if len(turns) < len(conversation.turns):
        text.append(f"\nthe last {len(turns)} of {len(conversation.turns)}", "dim")
    return text


def _turn_heading(turn: Turn, turns: Sequence[Turn], *, with_service: bool) -> RenderableType:
    told = [f"{moment(turn.start)} UTC", took(turn.duration), plain(turn.agent)]
    if with_service:
        told.append(plain(turn.service))
    line = Text.assemble(
        ("── ", "dim"), (title_of(turn), "bold"), ("  " + " · ".join(filter(None, told)), "dim")
    )
    if turn.failed and turn.is_turn and turn.roots[0].span.failed:
        line.append("  failed", "bold red")
    lines = [line, *(Text(f"   {each}", "cyan") for each in where_from(turn, turns))]
    return Group(*lines)


def _sums(conversation: Conversation) -> Iterator[tuple[str, Text]]:
    turns = conversation.numbered or conversation.turns
    whole = sum(turn.duration for turn in turns)
    saver = sum(turn.saver_duration for turn in turns)
    span_count = sum(len(turn.spans) for turn in conversation.turns)
    count = len(conversation.numbered)
    outside = len(conversation.turns) - count
    what = [f"{count}"] if count else ["none: the application does not use conversation_turn"]
    if outside:
        what.append(f"{outside} {'trace' if outside == 1 else 'traces'} outside of them")
    yield "turns", Text(f"{', '.join(what)}; {span_count:,} spans")
    if conversation.turns:
        first, last = conversation.turns[0].start, max(turn.end for turn in conversation.turns)
        yield "from, to", Text(f"{moment(first)} to {moment(last)} UTC")
    yield "reads", _reads_text(conversation.reads)
    share = f" ({saver / whole:.0%})" if whole else ""
    yield "time", Text(f"{took(whole)} in all, {took(saver)} of it with the checkpointer at work{share}")
    slowest = sorted(turns, key=lambda turn: -turn.duration)[:_SLOWEST]
    if len(slowest) > 1:
        yield "slowest", Text(", ".join(f"{title_of(turn)}: {took(turn.duration)}" for turn in slowest))
    calls = [(call, turn) for turn in conversation.turns for call in turn.calls]
    if calls:
        call, turn = max(calls, key=lambda pair: pair[0].duration)
        yield "slowest call", Text(f"{plain(call.name)} of {title_of(turn)}: {took(call.duration)}")
    if failed := [(span, turn) for turn in conversation.turns for span in turn.failed]:
        yield "failed", Text(_failures(failed), "red")


def _reads_text(reads: Reads) -> Text:
    if not reads.total:
        return Text("none")
    told = [
        f"{count} from {_SERVERS.get(server, plain(server))}"
        for server, count in sorted(reads.by_server.items())
    ]
    text = Text(", ".join(told))
    if hits := reads.by_result.get("hit"):
        text.append(f" ({hits / reads.total:.0%} hits)", "green")
    misses = [
        f"{count} {plain(result)}" for result, count in sorted(reads.by_result.items()) if result != "hit"
    ]
    if misses:
        text.append(f"; not hits: {', '.join(misses)}", "yellow")
    return text


def _failures(failed: Sequence[tuple[Span, Turn]]) -> str:
    counted = Counter(f"{plain(span.name)} ({title_of(turn)})" for span, turn in failed)
    first = [name if count == 1 else f"{count} × {name}" for name, count in list(counted.items())[:_NAMED]]
    return f"{len(failed)} spans: {', '.join(first)}{', …' if len(counted) > _NAMED else ''}"
