"""Reads spans from files of OTLP JSON lines, as OpenTelemetry's file exporters write them.

A file may be far larger than memory, and a conversation is a small part of it. So the file is read twice:
first to find the traces that name the conversation, and then to read their spans (the span of a node or a
model does not name it). Only one line and the wanted spans are in memory. Lines that contain neither the name
nor a wanted trace id are not parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glasspoint.errors import ConfigurationError
from glasspoint.trace.otlp import parse_json, spans_of, trace_id_of
from glasspoint.trace.spans import conversation_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from glasspoint.trace.spans import Span

__all__ = ["Reading", "read_files"]

LONGEST_LINE = 64 * 1024 * 1024
_KEPT_NAMES = 1000
_WRITTEN_AS_IT_IS = re.compile(r"[A-Za-z0-9_.:@-]+")
_TRACE_ID = re.compile(rb'"traceId"\s*:\s*"([^"]{1,64})"')


@dataclass
class Reading:
    """The result of reading.

    Attributes:
        spans: The spans of each trace that names the conversation.
        others: Other conversations in the data, the last ones found. Filled only if there are no `spans`.
        unnamed_calls: The number of checkpointer calls that name no conversation, because of
            `CHECKPOINT_TELEMETRY_THREAD_IDS=none`. Counted only if there are no `spans`.
        remarks: Notes about gaps in the data.
    """

    spans: list[Span] = field(default_factory=list)
    others: dict[str, None] = field(default_factory=dict)
    unnamed_calls: int = 0
    remarks: list[str] = field(default_factory=list)


def read_files(paths: Collection[Path], wanted: Collection[str]) -> Reading:
    """Read all spans of the traces that name a conversation.

    Args:
        paths: The files.
        wanted: The names that the conversation may have on spans: its id, plain and hashed.

    Raises:
        ConfigurationError: A file cannot be read, or no file has a span.
    """
    reading = Reading()
    may_name = _may_name(wanted)
    trace_ids = {
        span.trace_id
        for path in paths
        for span in _spans(path, reading.remarks, may_name)
        if conversation_of(span) in wanted
    }
    if not trace_ids:
        _look_around(paths, reading)
        return reading
    reading.spans = [
        span
        for path in paths
        for span in _spans(path, [], lambda line: _holds(line, trace_ids))
        if span.trace_id in trace_ids
    ]
    return reading


def _look_around(paths: Collection[Path], reading: Reading) -> None:
    """Find out which other conversations the files hold, because the wanted one is not there."""
    are_there = False
    for path in paths:
        for span in _spans(path, [], lambda line: True):
            are_there = True
            if name := conversation_of(span):
                reading.others.pop(name, None)
                reading.others[name] = None
                if len(reading.others) > _KEPT_NAMES:
                    del reading.others[next(iter(reading.others))]
            elif span.is_call and "langgraph.checkpoint.ns" in span.attributes:
                reading.unnamed_calls += 1
    if not are_there:
        names = ", ".join(path.name for path in paths)
        raise ConfigurationError(
            f"{names}: no spans in it. It has to hold OTLP JSON lines, as `glasspoint demo --spans FILE` "
            "or the file exporter of an OpenTelemetry collector (format json, not compressed) writes them."
        )


def _may_name(wanted: Collection[str]) -> Callable[[bytes], bool]:
    """Return a test of whether a line may name the conversation.

    If JSON has more than one way to write a name, every line may.
    """
    if not all(_WRITTEN_AS_IT_IS.fullmatch(name) for name in wanted):
        return lambda line: True
    names = [name.encode() for name in wanted]
    return lambda line: any(name in line for name in names)


def _holds(line: bytes, trace_ids: Collection[str]) -> bool:
    return any(
        trace_id_of(found.decode("ascii", "replace")) in trace_ids for found in set(_TRACE_ID.findall(line))
    )


def _spans(path: Path, remarks: list[str], is_wanted: Callable[[bytes], bool]) -> Iterator[Span]:
    """Yield the spans of the wanted lines of a file, and add remarks on lines that cannot be read."""
    broken, cut_off = 0, False
    for line in _lines(path):
        text = line.strip()
        if not text:
            continue
        if len(line) >= LONGEST_LINE:
            broken += 1
            continue
        try:
            if not (text.startswith(b"{") and text.endswith(b"}")):
                raise ValueError
            found = parse_json(text) if is_wanted(text) else None
        except ValueError:  # also raised if the line is not UTF-8
            broken += 1
            cut_off = not line.endswith(b"\n")
            continue
        yield from spans_of(found)
    if cut_off:
        broken -= 1
        remarks.append(f"{path.name}: the last line is cut off; its writer was stopped, or is still writing.")
    if broken:
        lines = "1 line is" if broken == 1 else f"{broken:,} lines are"
        remarks.append(f"{path.name}: {lines} no OTLP JSON, and left out.")


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file. A line that is too long is cut to `LONGEST_LINE` bytes."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is no file; it has to be one, because it is read twice.")
        with path.open("rb") as file:
            is_continued = False
            while line := file.readline(LONGEST_LINE):
                if not is_continued:
                    yield line
                is_continued = len(line) == LONGEST_LINE and not line.endswith(b"\n")
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}."
        ) from None
