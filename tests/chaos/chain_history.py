"""What the workers of a chain run write down, and how it is read again afterwards.

Each worker appends lines to a file of its own: one when an attempt starts, one when it ends, one for each
call of a node. A line goes to the kernel at once, so a worker that is killed has said everything up to that
instant. Times are of CLOCK_MONOTONIC, which is one for the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from glasspoint.errors import L2RefusedError

__all__ = ["Attempt", "ChainHistory", "Ran", "Stored", "read_chain_histories"]


@dataclass
class Attempt:
    """One call of the graph, with the read before it.

    Attributes:
        worker: The process: `worker1-003` is the third one in the place of that number.
        word: The word that the attempt says; a new one each time.
        start, end: Seconds; no end: the worker was killed meanwhile.
        outcome: `ok`: the graph has returned. Otherwise the error's class, `killed` if there is no end.
        error: The error itself.
        is_promised: Whether the error is one that Glasspoint promises for an outage.
        did: `said`, `resumed`, `went on`.
        tier_before, tier_after: The tier that worked at the beginning and at the end.
        found: The words of the state that was read before the call; `None`: it was not read.
        found_at: When that read began.
        found_in: The tier that it was read in; empty: that changed meanwhile.
        words: The words of the state that the graph has returned; `None`: it has returned none.
        asked: Whether the graph waits for an answer.
        made: The words that its nodes have made.
        lacks: The words of `tool` that the state had, and that the memory of `tool` had not.
        durability: Of the call.
    """

    worker: str
    thread: str
    word: str
    start: float
    end: float | None = None
    outcome: str = "killed"
    error: str = ""
    is_promised: bool = False
    did: str = ""
    tier_before: str = ""
    tier_after: str = ""
    found: list[str] | None = None
    found_at: float = 0.0
    found_in: str = ""
    words: list[str] | None = None
    asked: bool = False
    durability: str = ""
    made: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)

    @property
    def is_acknowledged(self) -> bool:
        """Whether the graph has returned a state."""
        return self.outcome == "ok" and bool(self.words)

    @property
    def tier(self) -> str:
        """The tier of an attempt; the lowest, if it began in one and ended in another."""
        order = ["memory", "redis", "cached"]
        tiers = [tier for tier in (self.tier_before, self.tier_after) if tier]
        return min(tiers, key=order.index) if tiers else ""

    def __str__(self) -> str:
        over = f"{self.end:.3f}" if self.end is not None else "…"
        tiers = f"{self.tier_before}>{self.tier_after}"
        tail = " ".join((self.words or [])[-4:])
        return (
            f"{self.start:.3f}..{over} {self.worker} {self.thread} {self.word} {self.did} {self.durability} "
            f"{tiers} {self.outcome} {self.error} found {len(self.found or ())} in {self.found_in or '?'}, "
            f"ends with: {tail}"
        )


@dataclass
class Ran:
    """A node's function was called.

    Attributes:
        word: What was said last in the state that it was given.
        node: `charge`, `tool` or `prepare`.
        at: Seconds.
        tier: The tier that worked then.
    """

    worker: str
    thread: str
    word: str
    node: str
    at: float
    tier: str = ""


@dataclass
class Stored:
    """A checkpoint in PostgreSQL, in the end.

    Attributes:
        thread: The thread that it stands in.
        original: The thread that it was set aside from; empty: it was not.
        parent: The id of its parent; empty: it has none.
        source: `input`, `loop`, as LangGraph's metadata have it.
    """

    thread: str
    checkpoint: str
    parent: str
    source: str
    words: list[str] = field(default_factory=list)
    original: str = ""


class ChainHistory:
    """The file in which a worker writes down what it does."""

    def __init__(self, path: Path, worker: str) -> None:
        self.worker = worker
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._number = 0

    @contextmanager
    def attempt(self, thread: str, word: str) -> Iterator[Attempt]:
        """Write down an attempt, when it begins and when it ends."""
        self._number += 1
        number = self._number
        attempt = Attempt(self.worker, thread, word, monotonic())
        self._write("begins", attempt, number)
        try:
            yield attempt
            attempt.outcome = "ok"
        except BaseException as exc:
            why = exc.__cause__ if isinstance(exc, L2RefusedError) else exc
            attempt.outcome, attempt.error = type(why).__name__, repr(exc)[:300]
            raise
        finally:
            attempt.end = monotonic()
            self._write("ends", attempt, number)

    def ran(self, thread: str, word: str, node: str, tier: str) -> None:
        """Write down that a node's function was called."""
        self._write("ran", Ran(self.worker, thread, word, node, monotonic(), tier), 0)

    def _write(self, what: str, record: Any, number: int) -> None:
        line = json.dumps({"what": what, "number": number, **asdict(record)})
        os.write(self._file, f"{line}\n".encode())


def read_chain_histories(paths: Iterable[Path]) -> tuple[list[Attempt], list[Ran]]:
    """Return all attempts, and all calls of nodes, in the order in which they began."""
    attempts: dict[tuple[Path, int], Attempt] = {}
    ran: list[Ran] = []
    for path in paths:
        for line in path.read_text().splitlines():
            facts = json.loads(line)
            what, number = facts.pop("what"), facts.pop("number")
            if what == "ran":
                ran.append(Ran(**facts))
            else:
                attempts[path, number] = Attempt(**facts)
    return sorted(attempts.values(), key=lambda each: each.start), sorted(ran, key=lambda each: each.at)
