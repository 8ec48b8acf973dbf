"""Writes a conversation as one HTML file, which needs only a browser, and no network.

The live page shows the same in a frame (`live_page_of`).

The page shows data that others wrote: thread ids and attributes that came over a network. Three measures keep
that safe:

- The data are in the page as JSON in which no tag can begin or end.
- The page's script turns them into text, never into markup.
- A Content-Security-Policy allows only that script to run; the file can neither load nor send anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import secrets
from contextlib import suppress
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from glasspoint.console import plain
from glasspoint.errors import ConfigurationError
from glasspoint.trace.conversation import Reads, walk
from glasspoint.trace.facts import facts_of, moment, title_of, took
from glasspoint.trace.spans import Value, step_tier, work_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from glasspoint.trace.conversation import Conversation, Node, Origin, Turn
    from glasspoint.trace.spans import Span

__all__ = ["LivePage", "live_page_of", "page_of", "write_page"]

_FILES = resources.files("glasspoint.trace")
_TEMPLATE, _STYLE, _SCRIPT = "page.html", "page.css", "page.js"
_GENERATOR = b'<meta name="generator" content="glasspoint trace">'
_LOOKED_AT_BYTES = 1024
_LONGEST_VALUE = 10_000


def write_page(path: Path, conversation: Conversation, turns: Sequence[Turn]) -> None:
    """Write the page, completely or not at all. It replaces a page of an earlier run, but no other file.

    Args:
        path: The file.
        conversation: The conversation.
        turns: The turns to show.

    Raises:
        ConfigurationError: The path is another file already, or it cannot be written.
    """
    text = page_of(conversation, turns).encode("utf-8", "replace")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.exists() and not _is_ours(path):
            raise ConfigurationError(
                f"{path} is there already, and no page of glasspoint trace: it stays. Name another file."
            )
        try:
            with beside.open("xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            with suppress(OSError):
                beside.unlink()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}.") from None


def page_of(conversation: Conversation, turns: Sequence[Turn]) -> str:
    """Return the HTML of the page, which contains its style, its script, and its own policy."""
    return _page(_page_data(conversation, turns)).text


def live_page_of(conversation: Conversation, *, at: Turn) -> LivePage:
    """Return the page as a server serves it.

    Args:
        conversation: The conversation, of which all turns are shown.
        at: The turn that the page begins with.
    """
    turns = conversation.turns
    return _page(_page_data(conversation, turns) | {"at": f"turn-{turns.index(at) + 1}"})


class LivePage(NamedTuple):
    """A page, and its Content-Security-Policy: the page contains it too, but a header cannot be late."""

    text: str
    policy: str


def _page(data: dict[str, Any]) -> LivePage:
    """Fill the template."""
    style, script = (_FILES.joinpath(name).read_text("utf-8") for name in (_STYLE, _SCRIPT))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    pieces = {
        "policy": policy,
        "title": html.escape(f"{data['thread_id']} · Glasspoint"),
        "style": style,
        "data": _json(data),
        "script": script,
    }
    page = []
    # The template is split before any piece is inserted, so a piece may itself hold `{{`.
    for number, part in enumerate(_FILES.joinpath(_TEMPLATE).read_text("utf-8").split("{{")):
        name, _, text = part.partition("}}") if number else ("", "", part)
        page += [pieces[name] if name else "", text]
    return LivePage("".join(page), policy)


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        raise ConfigurationError(f"{path} is no file, so no page is written there. Name another.")
    with path.open("rb") as file:
        return _GENERATOR in file.read(_LOOKED_AT_BYTES)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(found: object) -> str:
    """Return JSON that is safe in a `script` element: it contains neither `</script>` nor `<!--`."""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _page_data(conversation: Conversation, turns: Sequence[Turn]) -> dict[str, Any]:
    ids = {id(turn): f"turn-{number}" for number, turn in enumerate(turns, start=1)}
    known: dict[str, int] = {}
    reads = Reads()
    for turn in turns:
        reads.add(turn.reads)
    period = f"{moment(turns[0].start)} to {moment(max(turn.end for turn in turns))} UTC" if turns else ""
    notes = [plain(each) for each in conversation.remarks]
    if len(turns) < len(conversation.turns):
        notes.insert(0, f"The last {len(turns)} of {len(conversation.turns)}.")
    if conversation.shown_as != conversation.thread_id:
        notes.insert(0, f"On its spans, the conversation is called {plain(conversation.shown_as)}.")
    shown = [_turn_data(turn, turns, ids, known) for turn in turns]
    return {
        "thread_id": plain(conversation.thread_id),
        "period": period,
        "notes": notes,
        "reads": {plain(server): count for server, count in sorted(reads.by_server.items())},
        "hits": reads.by_result["hit"],
        "turns": shown,
        "resources": [json.loads(each) for each in known],
    }


def _turn_data(
    turn: Turn, turns: Sequence[Turn], ids: dict[int, str], known: dict[str, int]
) -> dict[str, Any]:
    root = turn.roots[0].span
    first = next((span for span in turn.calls if span.name == "checkpoint.get_tuple"), None)
    return {
        "id": ids[id(turn)],
        "number": turn.number,
        "title": title_of(turn).capitalize(),
        "when": f"{moment(turn.start)} UTC",
        "agent": plain(turn.agent),
        "service": plain(turn.service.removeprefix(f"{turn.agent}@")) if turn.service != turn.agent else "",
        "trace_id": turn.trace_id,
        "took": _microseconds(turn.duration),
        "span": _microseconds(turn.end - turn.start),
        "saver": _microseconds(turn.saver_duration),
        "failed": root.failed,
        "served_by": first.text("glasspoint.served_by") if first else "",
        "first_reads": [_read_data(server, count) for server, count in sorted(turn.reads.by_server.items())],
        "origins": [_origin_data(turn, each, ids) for each in turn.origins],
        "continued": [
            {"to": ids[id(later)], "text": title_of(later).capitalize()}
            for later in turns
            if any(origin.turn is turn for origin in later.origins)
        ],
        "spans": [_span_data(node, depth, turn.start, known) for node, depth in walk(turn.roots)],
    }


def _read_data(server: str, count: int) -> dict[str, Any]:
    return {
        "server": plain(server),
        "text": f"{count} {'read' if count == 1 else 'reads'} from {plain(server).upper()}",
    }


def _origin_data(turn: Turn, origin: Origin, ids: dict[int, str]) -> dict[str, Any]:
    if origin.turn is None:
        text = f"From trace {origin.trace_id[:8]}…, which is not here"
        return {"to": None, "text": text, "fork": False}
    later = turn.start - origin.turn.end
    text = f"{'fork of ' if turn.is_fork else ''}{title_of(origin.turn)}"
    text = text[0].upper() + text[1:]
    return {
        "to": ids.get(id(origin.turn)),
        "text": f"{text}, {took(later)} before" if later > 0 else text,
        "fork": turn.is_fork,
    }


def _span_data(node: Node, depth: int, since: int, known: dict[str, int]) -> dict[str, Any]:
    span = node.span
    work = work_of(span)
    resource = json.dumps(_pairs(span.resource), ensure_ascii=False)
    facts = [fact.text for fact in facts_of(node, is_folded=True)]
    return {
        "name": plain(span.name) or "(no name)",
        "depth": depth,
        "work": work,
        "tier": work if span.is_step and step_tier(span) and work in ("l1", "l2", "wait") else "",
        "at": _microseconds(span.start - since),
        "took": _microseconds(span.duration),
        "said": [fact for fact in facts if not fact.startswith("failed")],
        "failed": (f"failed: {plain(_error_of(span))}".removesuffix(": ") if span.failed else ""),
        "served_by": span.text("glasspoint.served_by") if span.name == "checkpoint.get_tuple" else "",
        "status": _shown(span.status),
        "kind": span.kind,
        "scope": plain(span.scope),
        "id": span.span_id,
        "attributes": _pairs(span.attributes),
        "events": [
            {
                "name": plain(event.name),
                "at": _microseconds(event.at - since),
                "attributes": _pairs(event.attributes),
            }
            for event in span.events
        ],
        "links": [
            [["trace id", link.trace_id], ["span id", link.span_id], *_pairs(link.attributes)]
            for link in span.links
        ],
        "resource": known.setdefault(resource, len(known)),
    }


def _error_of(span: Span) -> str:
    return span.text("error.type", "exception.type").rpartition(".")[2]


def _pairs(attributes: dict[str, Value]) -> list[list[str]]:
    return [[plain(key), _shown(value)] for key, value in sorted(attributes.items())]


def _shown(value: Value) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > _LONGEST_VALUE:
        text = f"{text[:_LONGEST_VALUE]}… ({len(text) - _LONGEST_VALUE:,} more characters)"
    return "\n".join(plain(line.replace("\t", "    ").removesuffix("\r")) for line in text.split("\n"))


def _microseconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1000, 1)
