"""What the workers write down while they work, and how it is read again afterwards.

Each worker appends lines to a file of its own: one when an operation starts, one when it ends. They go to the
kernel at once, so a worker that is killed has said everything up to that instant; an operation without an end
is one of which nobody knows what became of it. Times are of CLOCK_MONOTONIC, which is one for the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple

__all__ = [
    "HistoryFile",
    "Operation",
    "Pending",
    "Truth",
    "digest",
    "digest_of_values",
    "pending_of",
    "read_histories",
    "replaces",
]

Pending = tuple[str, str, str]
"""A pending write: task id, channel, digest of the value."""


def digest(value: Any) -> str:
    """A short name of a value; equal values have equal names, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, default=repr, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def digest_of_values(values: Mapping[str, Any]) -> str:
    """A short name of a checkpoint's values: of what the graph's nodes wrote.

    Without what LangGraph itself keeps there for a node that waits for several: that is a set which it goes
    on changing in place, so with `durability="async"` the one that a put is given may be newer than its
    checkpoint. (PostgreSQL has the right one: its version has not changed, so it is not stored again.)
    """
    return digest({channel: value for channel, value in values.items() if not channel.startswith("join:")})


def pending_of(found: CheckpointTuple) -> list[Pending]:
    """The pending writes of a checkpoint that was read."""
    return sorted((task, channel, digest(value)) for task, channel, value in found.pending_writes or ())


@dataclass
class Operation:
    """One thing that a worker did.

    Attributes:
        worker: Who: `worker1-003` is the third process in the place of that number.
        database: The name of the database.
        kind: `read`, `put`, `put_writes`; `delete` (a whole thread); `turn` (one call of the graph, perhaps a
            resumed one); `run` (a task's function was called).
        start, end: Seconds; no end: the worker was killed meanwhile, or wrote nothing more.
        outcome: `ok`: acknowledged, or answered. Otherwise the error's class, `killed` if there is no end.
        unexpected: The error itself, if it is none that Glasspoint promises while a server is away.
        namespace: Of the checkpoints, `` for the graph's own.
        checkpoint: Its id: of what was put or written to, or found; a read that found nothing has none.
        wanted: The checkpoint that a read asked for, none for the newest.
        value: Digest of the channels' values.
        pending: What a read found, or what was written.
        said_in: Of a read: the databases whose messages it shows.
        confirmed: Of a write: Redis answered its first step or its last one, so readers know of it.
        hit: Of a read: Redis answered it.
        turn: Of a turn, its number; the turns that the conversation holds are in `answered`. Of a read: the
            number of the turn that it belongs to, 0 if it belongs to none.
        task: Of a run: the task's id.
        within: Of a run: when the call of the graph began that it belongs to.
        number: Which one it is of its worker.
    """

    worker: str
    kind: str
    thread: str
    start: float
    end: float | None = None
    database: str = ""
    outcome: str = "killed"
    unexpected: str = ""
    namespace: str = ""
    checkpoint: str | None = None
    wanted: str | None = None
    value: str | None = None
    pending: list[Pending] = field(default_factory=list)
    said_in: list[str] = field(default_factory=list)
    confirmed: bool = False
    hit: bool = False
    turn: int = 0
    answered: list[int] = field(default_factory=list)
    task: str = ""
    within: float = 0.0
    number: int = 0

    @property
    def ok(self) -> bool:
        """Whether it was acknowledged, or answered."""
        return self.outcome == "ok"

    def before(self, moment: float) -> bool:
        """Whether it was over by then."""
        return self.end is not None and self.end < moment

    def __str__(self) -> str:
        over = f"{self.end:.4f}" if self.end is not None else "…"
        scope = f"{self.database}:{self.thread}|{self.namespace}"
        facts = [f"{self.start:.4f}..{over} {self.worker} {self.kind} {self.outcome} {scope}"]
        if self.kind in ("read", "put", "put_writes"):
            facts.append(f"{self.checkpoint} {self.value or ''} {len(self.pending)} pending")
            facts += [
                word
                for word, so in (("confirmed", self.confirmed), ("hit", self.hit), ("of", self.wanted))
                if so
            ]
            facts += [f"shows {name}" for name in self.said_in if name != self.database]
        return " ".join(facts + ([f"turn {self.turn} {self.answered}"] if self.kind == "turn" else []))


@dataclass(frozen=True)
class Truth:
    """What one database has in the end.

    Attributes:
        checkpoints: (thread, namespace, checkpoint id) -> digest of the values.
        pending: (thread, namespace, checkpoint id, task id, channel) -> digest of the value.
        said_in: (thread, namespace, checkpoint id) -> the databases whose messages stand there.
    """

    checkpoints: Mapping[tuple[str, str, str], str]
    pending: Mapping[tuple[str, str, str, str, str], str]
    said_in: Mapping[tuple[str, str, str], Collection[str]] = field(default_factory=dict)


class HistoryFile:
    """The file that a worker writes its operations down in."""

    def __init__(self, path: Path, worker: str) -> None:
        self.worker = worker
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._number = 0

    @contextmanager
    def operation(self, kind: str, thread: str, **facts: Any) -> Iterator[Operation]:
        """Write the start down, then what the caller has learned, with the end."""
        self._number += 1
        found = Operation(self.worker, kind, thread, monotonic(), number=self._number, **facts)
        self._write({"number": found.number, "kind": kind, "thread": thread, "start": found.start, **facts})
        try:
            yield found
            found.outcome = "ok"
        except BaseException as exc:
            found.outcome = type(exc).__name__
            raise
        finally:
            found.end = monotonic()
            self._write({name: value for name, value in vars(found).items() if value or name == "end"})

    def confirm(self, operation: Operation) -> None:
        """Write down at once that Redis has heard of a write: its worker may be killed before it is over."""
        operation.confirmed = True
        self._write({"number": operation.number, "confirmed": True})

    def note(self, kind: str, thread: str, **facts: Any) -> None:
        """Write down what happens at this instant."""
        now = monotonic()
        self._number += 1
        entry = {"kind": kind, "thread": thread, "start": now, "end": now, "outcome": "ok"}
        self._write({"number": self._number, **entry, **facts})

    def _write(self, entry: dict[str, Any]) -> None:
        os.write(self._file, f"{json.dumps(entry)}\n".encode())


def read_histories(paths: Iterable[Path]) -> list[Operation]:
    """Everything that all workers have done, in the order in which it started."""
    done = [operation for path in paths for operation in _read_history(path)]
    return sorted(done, key=lambda operation: operation.start)


def _read_history(path: Path) -> list[Operation]:
    entries: dict[int, dict[str, Any]] = {}
    lines: Sequence[str] = path.read_text().splitlines(keepends=True)
    for line in lines:
        if not line.endswith("\n"):
            break  # killed in the middle of a word
        entry = json.loads(line)
        entries.setdefault(entry["number"], {}).update(entry)
    for entry in entries.values():
        entry["worker"] = path.stem
        entry["pending"] = [tuple(each) for each in entry.get("pending", ())]
    return [Operation(**entry) for entry in entries.values()]


def replaces(channel: str) -> bool:
    """Whether a later write of the same task to this channel takes the place of an earlier one."""
    return channel in WRITES_IDX_MAP
