"""Spans from files of OTLP JSON lines, as OpenTelemetry's file exporters write them.

A file may be far larger than memory, and a conversation is a small part of it. So it is read twice: first to
find the traces in which the conversation is named, and then for their spans (a node's or a model's span does
not name it). What is in memory is one line, and what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glasspoint.errors import ConfigurationError
from glasspoint.trace.otlp import parse_json, spans_of
from glasspoint.trace.spans import conversation_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from glasspoint.trace.spans import Span

__all__ = ["Reading", "read_files"]

LONGEST_LINE = 64 * 1024 * 1024
_KEPT_NAMES = 1000


@dataclass
class Reading:
    """What was found.

    Attributes:
        spans: Of every trace in which the conversation is named.
        spans_seen: How many there are altogether.
        others: Conversations that are named there, the last ones that came up.
        unnamed_calls: How many calls of a checkpointer name no conversation: with
            `CHECKPOINT_TELEMETRY_THREAD_IDS=none` they do not.
        remarks: What a reader should know.
    """

    spans: list[Span] = field(default_factory=list)
    spans_seen: int = 0
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
    reading, trace_ids = Reading(), set()
    for path in paths:
        for span in _spans(path, reading.remarks):
            reading.spans_seen += 1
            name = conversation_of(span)
            if name in wanted:
                trace_ids.add(span.trace_id)
            elif name:
                reading.others.pop(name, None)
                reading.others[name] = None
                if len(reading.others) > _KEPT_NAMES:
                    del reading.others[next(iter(reading.others))]
            elif span.is_call and "langgraph.checkpoint.ns" in span.attributes:
                reading.unnamed_calls += 1
    if not reading.spans_seen:
        names = ", ".join(path.name for path in paths)
        raise ConfigurationError(
            f"{names}: no spans in it. It has to hold OTLP JSON lines, as `glasspoint demo --spans FILE` "
            "or the file exporter of an OpenTelemetry collector (format json, not compressed) writes them."
        )
    if trace_ids:
        # A batch that was sent again stands there twice.
        found = {
            (span.trace_id, span.span_id): span
            for path in paths
            for span in _spans(path, [])
            if span.trace_id in trace_ids
        }
        reading.spans = list(found.values())
    return reading


def _spans(path: Path, remarks: list[str]) -> Iterator[Span]:
    """Give a file's spans, and remark on what could not be read."""
    broken, cut_off = 0, False
    for line in _lines(path):
        cut_off = not line.endswith(b"\n")
        if not line.strip():
            continue
        if len(line) >= LONGEST_LINE:
            broken += 1
            continue
        try:
            found = parse_json(line)
        except ValueError:  # also for what is no UTF-8
            broken += 1
            continue
        cut_off = False
        yield from spans_of(found)
    if cut_off:
        broken -= 1
        remarks.append(f"{path.name}: the last line is cut off; its writer was stopped, or is still writing.")
    if broken > 0:
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
