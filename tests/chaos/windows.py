"""The windows that are documented, and the moments at which a database legitimately forgot something.

Open this when the checker excuses what it should not, or the other way round. Two different things are told
apart:

- A *window*: PostgreSQL has a write, and Redis does not know of it yet. A read may miss the write for as long
  as the bound.
- A *cut*: PostgreSQL itself lost something. A backup was restored, the tables were truncated, a thread was
  deleted by other software, or a crash took commits that nobody had made durable. What is gone may be missed
  from then on, and must not be read any more when the window after the cut is over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from chaos.history import Operation

__all__ = ["ALWAYS", "LANDS_SECONDS", "Cut", "Outage", "Span", "Windows", "deletions"]

LANDS_SECONDS = 2.0
"""For so long PostgreSQL may go on with a write that its worker has given up: its `statement_timeout`."""

Span = tuple[float, float]
"""Something happened at an unknown moment between these two."""

ALWAYS: Span = (float("-inf"), float("-inf"))
"""Before everything."""


class Outage(NamedTuple):
    """A time in which workers could not reach a server.

    Attributes:
        server: Redis lived on meanwhile; PostgreSQL may have been down.
        worker: The number of the only worker that the outage hit; `None`: all of them.
    """

    start: float
    end: float
    server: Literal["redis", "postgres"] = "redis"
    worker: int | None = None


class Cut(NamedTuple):
    """PostgreSQL forgot what was committed between two moments.

    Attributes:
        what: What happened, for people.
        database: Where.
        since: The moment that PostgreSQL went back to. What was acknowledged before it is still there.
        until: The moment of the cut. Nothing that began after it is touched. At the second one of the two,
            PostgreSQL answers again: the window begins.
        thread: The only thread that was touched; `None`: all of them.
        by: Only writes of workers whose name begins like this were touched; `None`: no write was, and nothing
            but the identity changed.
        is_sure: Everything between the two moments is gone. Otherwise it may be.
        renews: Glasspoint's processes have to agree on a new identity afterwards.
    """

    what: str
    database: str
    since: Span
    until: Span
    thread: str | None = None
    by: str | None = ""
    is_sure: bool = True
    renews: bool = False

    def may_take(self, write: Operation, over: float) -> bool:
        """Tell whether a write may be gone.

        Args:
            over: When nobody was at it any more.
        """
        return (
            self._concerns(write) and write.start <= self.until[1] and _landed(write, over) >= self.since[0]
        )

    def surely_takes(self, write: Operation, over: float) -> bool:
        """Tell whether a write is certainly gone."""
        return (
            self.is_sure
            and self._concerns(write)
            and write.start > self.since[1]
            and _landed(write, over) < self.until[0]
        )

    def _concerns(self, write: Operation) -> bool:
        return self.by is not None and write.worker.startswith(self.by)


class Windows:
    """All windows and cuts of one database."""

    def __init__(self, bound_seconds: float, outages: Sequence[Outage], cuts: Iterable[Cut]) -> None:
        """Args:
        bound_seconds: How long a window is, when both servers can be reached.
        outages: When they could not.
        cuts: Of this database.
        """
        self._bound = bound_seconds
        self._outages = sorted(outages)
        self._everywhere: list[Cut] = []
        self._of_threads: dict[str, list[Cut]] = defaultdict(list)
        for cut in cuts:
            (self._everywhere if cut.thread is None else self._of_threads[cut.thread]).append(cut)

    def excuses(self, write: Operation, over: float, moment: float) -> bool:
        """Tell whether Redis may not know yet, at a moment, of a write.

        Args:
            over: When nobody was at the write any more.
        """
        if write.confirmed and not self._was_misdirected(write, over):
            return False
        return moment <= self._until(write.start, _landed(write, over))

    def may_be_gone(self, write: Operation, over: float, at: float) -> bool:
        """Tell whether a cut before this moment may have taken a write."""
        return any(cut.may_take(write, over) and at >= cut.until[0] for cut in self._cuts(write.thread))

    def may_have_gone_since(self, write: Operation, over: float, read: Operation) -> bool:
        """Tell whether a cut may have taken a write that this read still found."""
        return any(
            cut.may_take(write, over) and read.start <= self._known(cut, read)
            for cut in self._cuts(write.thread)
        )

    def gone(self, write: Operation, over: float, read: Operation) -> tuple[Cut, bool] | None:
        """Return the cut that had certainly taken a write before a read began, and whether the read began in
        the window after the cut."""
        for cut in self._cuts(write.thread):
            if (
                read.start > cut.until[1]
                and cut.surely_takes(write, over)
                and not self._is_undone(cut, read.end or read.start)
            ):
                return cut, read.start <= self._known(cut, read)
        return None

    def is_upset(self, turn: Operation, until: float) -> bool:
        """Tell whether a cut, or the window after it, fell into a turn that went on until a moment."""
        return any(
            cut.by is not None and until >= cut.until[0] and turn.start <= self._known(cut, turn)
            for cut in self._cuts(turn.thread)
        )

    # ------------------------------------------------------------ helpers

    def _cuts(self, thread: str) -> list[Cut]:
        return [*self._everywhere, *self._of_threads.get(thread, ())]

    def _was_misdirected(self, write: Operation, over: float) -> bool:
        """Tell whether Redis may have been told under keys that other processes do not read any more."""
        return any(
            cut.renews and over >= cut.until[0] and write.start <= self._known(cut, write)
            for cut in self._everywhere
        )

    def _known(self, cut: Cut, operation: Operation) -> float:
        """Return when the worker of an operation must know of a cut."""
        return self._until(*cut.until, worker=_number(operation.worker))

    def _until(self, start: float, done: float, *, worker: int | None = None) -> float:
        """Return the end of the window of something that happened between two moments.

        A process that cannot reach Redis reads no old state there, so an outage of Redis counts only if it
        hid the write itself. A process that cannot reach PostgreSQL goes on with hits, and does not sweep.
        """
        until = done + self._bound
        for outage in self._outages:
            if outage.worker not in (None, worker) or outage.end < start:
                continue
            latest = done if outage.server == "redis" else until
            if outage.start < latest:
                until = max(until, outage.end + self._bound)
        return until

    def _is_undone(self, cut: Cut, at: float) -> bool:
        """Tell whether a restored backup may have brought back what a cut had taken."""
        return any(
            later is not cut
            and cut.until[1] >= later.since[0]
            and cut.until[0] <= later.until[1]
            and at >= later.until[0]
            for later in self._everywhere
        )


def deletions(done: Iterable[Operation]) -> list[Cut]:
    """Return the cuts that other software made by deleting threads."""
    return [
        Cut(
            "the thread was deleted",
            each.database,
            ALWAYS,
            (each.start, _landed(each, each.end or each.start)),
            thread=each.thread,
            is_sure=each.ok,
        )
        for each in done
        if each.kind == "delete"
    ]


def _landed(write: Operation, over: float) -> float:
    """Return when a write was certainly not under way any more."""
    return over if write.ok else over + LANDS_SECONDS


def _number(worker: str) -> int | None:
    """Return the number of a worker's place: 1 of `worker1-003`."""
    digits = worker.partition("-")[0].removeprefix("worker")
    return int(digits) if digits.isdigit() else None
