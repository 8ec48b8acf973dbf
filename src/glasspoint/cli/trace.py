"""`glasspoint trace`: finds a conversation's spans, and shows them in the terminal, as JSON, or as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from glasspoint._version import __version__
from glasspoint.console import plain
from glasspoint.errors import InvalidConfigError, TraceNotFoundError
from glasspoint.telemetry.thread_ids import VARIABLE, shown_as
from glasspoint.trace.conversation import conversation_from
from glasspoint.trace.files import read_files
from glasspoint.trace.page import write_page
from glasspoint.trace.tempo import Tempo
from glasspoint.trace.terminal import show_conversation, show_remarks, show_summary

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from glasspoint.trace.conversation import Conversation, Turn
    from glasspoint.trace.files import Reading
    from glasspoint.trace.spans import Span

__all__ = ["from_files", "from_tempo", "show"]

_NAMES_SHOWN = 5


def from_files(thread_id: str, paths: Sequence[Path]) -> Conversation:
    """Read a conversation from files of OTLP JSON lines.

    Raises:
        ConfigurationError: A file cannot be read, or no file holds spans.
        TraceNotFoundError: The files hold no span of this conversation.
    """
    wanted = _names_of(thread_id)
    return _conversation(thread_id, wanted, read_files(paths, wanted), ", ".join(path.name for path in paths))


def from_tempo(thread_id: str, tempo: Tempo, *, since_seconds: float, limit: int) -> Conversation:
    """Read a conversation from a Tempo.

    Args:
        thread_id: The conversation.
        tempo: The Tempo, opened.
        since_seconds: How far back to search.
        limit: The maximum number of traces.

    Raises:
        TraceUnavailableError: Tempo does not answer, or not as it should.
        TraceNotFoundError: Tempo has no span of this conversation.
    """
    wanted = _names_of(thread_id)
    reading = tempo.read(wanted, since_seconds=since_seconds, limit=limit)
    return _conversation(thread_id, wanted, reading, "Tempo, in the time that was searched (--since)")


def show(
    conversation: Conversation,
    console: Console,
    *,
    last: int | None,
    all_spans: bool,
    as_json: bool,
    page: Path | None,
) -> None:
    """Show a conversation.

    Args:
        conversation: The conversation.
        console: Receives the output.
        last: How many of the newest turns to show; all if `None`.
        all_spans: Whether the terminal shows also the spans inside the checkpointer's calls.
        as_json: Whether to print JSON instead of text.
        page: The path of a page to write; then only the summary is printed.

    Raises:
        ConfigurationError: The page cannot be written there.
    """
    turns = conversation.turns if last is None else conversation.last(last)
    if page is not None:
        write_page(page, conversation, turns)
    if as_json:
        # Without rich, which would wrap the JSON.
        console.file.write(json.dumps(_as_json(conversation, turns), ensure_ascii=False, indent=2) + "\n")
        return
    if page is None:
        console.print(show_conversation(conversation, turns, all_spans=all_spans), end="")
    console.print(show_summary(conversation, page=str(page or "")), end="")
    console.print(show_remarks(conversation), end="")


def _names_of(thread_id: str) -> list[str]:
    """Return the names that a conversation may have on its spans: its id, plain and hashed."""
    try:
        thread_id.encode()
    except UnicodeEncodeError:
        raise InvalidConfigError("The thread id is no UTF-8, so no span can hold it.") from None
    if not thread_id:
        raise InvalidConfigError("The thread id is empty.")
    return [thread_id, shown_as("hashed")(thread_id) or ""]


def _conversation(thread_id: str, wanted: Sequence[str], reading: Reading, where: str) -> Conversation:
    conversation = conversation_from(reading.spans, wanted, thread_id=thread_id, remarks=reading.remarks)
    if conversation.turns:
        return conversation
    told = [f"No span of the conversation {plain(thread_id)} in {where}, nor of its hash {wanted[1]}."]
    if reading.unnamed_calls:
        told.append(
            f"But {reading.unnamed_calls:,} calls of a checkpointer there name no conversation: with "
            f"{VARIABLE}=none they do not, and cannot be found by it."
        )
    else:
        told.append(f"Services with {VARIABLE}=none do not name conversations; was it sampled?")
    if reading.others:
        names = ", ".join(plain(each) for each in list(reading.others)[: -_NAMES_SHOWN - 1 : -1])
        told.append(f"There are others: {names}{', …' if len(reading.others) > _NAMES_SHOWN else ''}")
    raise TraceNotFoundError(" ".join((*told, *reading.remarks)))


def _as_json(conversation: Conversation, turns: Sequence[Turn]) -> dict[str, Any]:
    reads = conversation.reads
    return {
        "version": __version__,
        "thread_id": conversation.thread_id,
        "shown_as": conversation.shown_as,
        "turns": [_turn_json(turn) for turn in turns],
        "reads": {"served_by": reads.by_server, "l1": reads.by_result},
        "notes": list(conversation.remarks),
    }


def _turn_json(turn: Turn) -> dict[str, Any]:
    return {
        "number": turn.number,
        "trace_id": turn.trace_id,
        "start_unix_nano": turn.start,
        "milliseconds": _milliseconds(turn.duration),
        "checkpointer_milliseconds": _milliseconds(turn.saver_duration),
        "agent": turn.agent,
        "service": turn.service,
        "failed": turn.roots[0].span.failed,
        "goes_on_from": [
            {
                "turn": origin.turn.number if origin.turn else None,
                "trace_id": origin.trace_id,
                "checkpoint_id": origin.checkpoint_id,
            }
            for origin in turn.origins
        ],
        "fork": turn.is_fork,
        "calls": list(_calls_json(turn.calls)),
    }


def _calls_json(calls: Sequence[Span]) -> Iterator[dict[str, Any]]:
    for call in calls:
        yield {
            "name": call.name,
            "milliseconds": _milliseconds(call.duration),
            "l1": call.text("glasspoint.l1.result"),
            "served_by": call.text("glasspoint.served_by"),
            "tier": call.text("glasspoint.tier"),
            "checkpoint_ns": call.text("langgraph.checkpoint.ns"),
            "error": call.text("error.type") or None if call.failed else None,
        }


def _milliseconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
