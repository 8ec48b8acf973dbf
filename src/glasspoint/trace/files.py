"""Spans from files of OTLP JSON lines, as OpenTelemetry's file exporters write them.

A file may be far larger than memory, and a conversation is a small part of it. So it is read twice: first to
find the traces in which the conversation is named, and then for their spans (a node's or a model's span does
not name it). What is in memory is one line, and what was asked for; and a line in which neither stands is not
even parsed.
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
    """What was found.

    Attributes:
        spans: Of every trace in which the conversation is named.
        others: If there are none, what conversations are named there, the last ones that came up.
        unnamed_calls: If there are none, how many calls of a checkpointer name no conversation: with
            `CHECKPOINT_TELEMETRY_THREAD_IDS=none` they do not.
        remarks: What a reader should know.
    """

    spans: list[Span] = field(default_factory=list)
    others: dict[str, None] = field(default_factory=dict)
    unnamed_calls: int = 0
    remarks: list[str] = field(default_factory=list)


def read_files(paths: Collection[Path], wanted: Collection[str]) -> Reading:
    """Read a conversation's spans, and what else is in its traces.

    Args:
        wanted: How it may be named: its id, plain and hashed.

    Raises:
        ConfigurationError: A file cannot be read, or there is no span in any of them.
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
    """Find out what is there in place of the conversation."""
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
    """Return what tells whether a line may name it; a name that JSON can write in two ways may be in any."""
    if not all(_WRITTEN_AS_IT_IS.fullmatch(name) for name in wanted):
        return lambda line: True
    names = [name.encode() for name in wanted]
    return lambda line: any(name in line for name in names)


def _holds(line: bytes, trace_ids: Collection[str]) -> bool:
    return any(
        trace_id_of(found.decode("ascii", "replace")) in trace_ids for found in set(_TRACE_ID.findall(line))
    )


def _spans(path: Path, remarks: list[str], is_wanted: Callable[[bytes], bool]) -> Iterator[Span]:
    """Give the spans of those lines of a file that are wanted, and remark on what cannot be read."""
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
        except ValueError:  # also for what is no UTF-8
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
    """Give the lines of a file; of one that is too long, one piece that is as long as can be."""
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
