"""The judge: pure functions from what was done to what must never have happened.

An operation counts as acknowledged from the moment that its worker saw it return, and a read as begun from
the moment that its worker called it. Both are on the safe side: what is called a violation here, is one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chaos.history import Operation, Pending, Truth, replaces
from chaos.windows import Cut, Outage, Windows, deletions

__all__ = ["FINAL", "WHATS", "Verdict", "Violation", "judge", "longest_without_writing"]

FINAL = "final"
"""The worker who reads everything once more when all is over."""

WHATS = {
    "lost": "an acknowledged write is not in PostgreSQL in the end",
    "stale": "a read began after a write was acknowledged, and does not know it",
    "phantom": "a read returned what PostgreSQL does not have (any more), or nobody wrote",
    "crossed": "one database, or a read of it, shows a message of another one",
    "damaged": "a checkpoint in PostgreSQL lacks values that its writer put",
    "twice": "a task was run again after its writes were acknowledged",
    "forgotten": "an answered turn is not in the conversation any more",
    "backwards": "what one had read, acknowledged or not, another no longer found later",
    "differs": "in the end, a read is not what PostgreSQL has",
}
"""Every kind of violation, and what it means."""

Scope = tuple[str, str]
"""Thread and namespace."""


class Violation(NamedTuple):
    """One promise that was broken.

    Attributes:
        what: One of `WHATS`.
        where: Thread, namespace.
        said: What is wrong, for people.
        evidence: The operations that show it, the one that noticed last.
        since: The moment from which on it should not have been, if that is not when the evidence begins.
    """

    what: str
    where: Scope
    said: str
    evidence: tuple[Operation, ...]
    since: float | None = None

    @property
    def span(self) -> tuple[float, float]:
        """From the beginning of what was missed to the moment at which that was noticed."""
        begun = min(each.start for each in self.evidence) if self.since is None else self.since
        return begun, self.evidence[-1].start

    def __str__(self) -> str:
        return "\n    ".join([f"{self.what} in {self.where}: {self.said}", *map(str, self.evidence)])


@dataclass
class Verdict:
    """What was found.

    Attributes:
        violations: What must not be.
        in_window: What may be, because a write could not reach Redis while another process could, or because
            PostgreSQL went back to an earlier moment, and is not older than the bound.
        upset: Turns that ended with an error of LangGraph's because PostgreSQL went back meanwhile, or just
            before.
        checked: How many reads, acknowledged writes, task runs and answered turns were judged: nothing found
            in nothing done says nothing.
    """

    violations: list[Violation] = field(default_factory=list)
    in_window: list[Violation] = field(default_factory=list)
    upset: list[Operation] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> int:
        """How many violations there are of one kind."""
        return sum(violation.what == what for violation in self.violations)


def judge(
    done: Iterable[Operation],
    truths: Mapping[str, Truth],
    *,
    bound_seconds: float,
    outages: Sequence[Outage] = (),
    cuts: Sequence[Cut] = (),
) -> Verdict:
    """Compare everything that was done with itself, and with what PostgreSQL has in the end.

    Args:
        done: All operations of all workers, and the reads of `FINAL`.
        truths: What each database has when all is over.
        bound_seconds: For so long after a write whose last step Redis did not confirm, a read may miss it.
            For so long after a cut, a read may find what is gone. If nobody could reach the servers then, the
            time counts from the end of that.
        outages: When that was.
        cuts: When PostgreSQL lost something. (Threads that were deleted are known from `done`.)
    """
    done = list(done)
    put_in = {
        each.checkpoint: each.database for each in done if each.kind == "put" and each.checkpoint is not None
    }
    verdict = Verdict()
    totals = dict.fromkeys(("reads", "writes", "runs", "turns"), 0)
    cuts = [*cuts, *deletions(done)]
    for database, truth in truths.items():
        windows = Windows(bound_seconds, outages, [cut for cut in cuts if cut.database == database])
        history = _History([each for each in done if each.database == database], windows)
        for violation, excused in (
            *history.crossed(truth, database, put_in),
            *history.lost(truth),
            *history.damaged(truth),
            *history.phantoms(truth),
            *history.stale(),
            *history.backwards(),
            *history.differs(truth),
            *history.twice(),
            *history.forgotten(),
        ):
            (verdict.in_window if excused else verdict.violations).append(violation)
        verdict.upset += history.upset()
        totals["reads"] += sum(read.ok for read in history.reads)
        totals["writes"] += sum(write.ok for write in history.writes)
        totals["runs"] += len(history.runs)
        totals["turns"] += sum(turn.ok for turn in history.turns)
    verdict.checked = totals
    return verdict


def longest_without_writing(done: Iterable[Operation]) -> tuple[float, str]:
    """The longest time that a conversation could not write: from a write that failed or a turn that was
    broken off, to the end of the next write of this conversation that succeeded.

    A node that stumbles is no such failure: it is the application's own.

    Returns:
        Seconds, and the thread; a thread that never could write again counts until the end.
    """
    done = list(done)
    last_sign = _last_signs(done)
    events: dict[tuple[str, str], list[tuple[float, Operation]]] = defaultdict(list)
    for each in done:
        if each.kind in ("put", "put_writes", "turn"):
            events[each.database, each.thread].append((each.end or last_sign[each.worker], each))
    longest = (0.0, "")
    for (_, thread), known in events.items():
        since: float | None = None
        known.sort(key=lambda event: event[0])
        for at, each in known:
            if each.kind == "turn" and not each.ok:
                since = since if since is not None or each.outcome == "StumbledError" else at
            elif each.kind == "turn":
                since = None  # there was nothing left to write
            elif not each.ok:
                since = min(since, each.start) if since is not None else each.start
            elif since is not None and each.start > since:
                longest, since = max(longest, (at - since, thread)), None
        if since is not None:
            longest = max(longest, (known[-1][0] - since, thread))
    return longest


Finding = tuple[Violation, bool]
"""A violation, and whether the window excuses it."""


class _History:
    """What was done on one database."""

    def __init__(self, done: list[Operation], windows: Windows) -> None:
        self._windows = windows
        self._last_sign = _last_signs(done)
        self._final = [each for each in done if each.worker == FINAL and each.kind == "read"]
        self.reads = [each for each in done if each.kind == "read"]
        self.runs = [each for each in done if each.kind == "run"]
        self.turns = [each for each in done if each.kind == "turn"]
        self.writes = [each for each in done if each.kind in ("put", "put_writes")]
        self._puts = _by(self.writes, "put", lambda w: (w.thread, w.namespace))
        self._put = _by(self.writes, "put", lambda w: (w.thread, w.namespace, w.checkpoint))
        self._put_writes = _by(self.writes, "put_writes", lambda w: (w.thread, w.namespace, w.checkpoint))
        self._turns_of = _by(self.turns, "turn", lambda t: (t.worker, t.thread))
        self._excused_reads: dict[str, list[Operation]] = defaultdict(list)
        self._excused_damage: dict[str, list[Operation]] = defaultdict(list)

    # ------------------------------------------------------------ against the other databases

    def crossed(self, truth: Truth, database: str, put_in: Mapping[str, str]) -> Iterator[Finding]:
        """Each database shows its own messages only. Nothing excuses another one's."""
        for read in self.reads:
            others = {*read.said_in, put_in.get(read.checkpoint or "", database)} - {database}
            if others:
                said = f"a read shows what was said in {', '.join(sorted(others))}"
                yield Violation("crossed", (read.thread, read.namespace), said, (read,)), False
        for key, names in truth.said_in.items():
            if others := set(names) - {database}:
                said = f"checkpoint {key[2]} in PostgreSQL holds what was said in {', '.join(sorted(others))}"
                puts = self._put[key] or [Operation("?", "put", key[0], 0.0, namespace=key[1])]
                yield Violation("crossed", key[:2], said, (puts[-1],)), False

    # ------------------------------------------------------------ against PostgreSQL

    def lost(self, truth: Truth) -> Iterator[Finding]:
        """What was acknowledged is there in the end, if PostgreSQL did not go back. No window excuses it."""
        for write in self.writes:
            if not write.ok or self._may_be_gone(write, float("inf")):
                continue
            scope, key = (write.thread, write.namespace), _key(write)
            if write.kind == "put":
                if key not in truth.checkpoints:
                    yield Violation("lost", scope, "an acknowledged checkpoint is not there", (write,)), False
                continue
            for task, channel, _ in write.pending:
                kept = truth.pending.get((*key, task, channel))
                if kept not in self._written(key, task, channel):
                    said = "another value stands there" if kept else "it is not there"
                    what = f"an acknowledged pending write of {task} to {channel}: {said}"
                    yield Violation("lost", scope, what, (write,)), False

    def damaged(self, truth: Truth) -> Iterator[Finding]:
        """A checkpoint in PostgreSQL has the values that its writer put.

        A turn that was under way when PostgreSQL went back may refer to values that are gone, whatever saver
        it uses. So may a turn that began in the window. No later one may.
        """
        for key, kept in truth.checkpoints.items():
            puts = self._put[key]
            if puts and kept not in {put.value for put in puts}:
                said = f"checkpoint {key[2]} does not have the values that were put"
                excused = self._may_damage(puts[-1])
                if excused:
                    self._excused_damage[key[0]].append(puts[-1])
                yield Violation("damaged", key[:2], said, (puts[-1],)), excused

    def phantoms(self, truth: Truth) -> Iterator[Finding]:
        """What was read was written by somebody, and PostgreSQL has it."""
        for read in self.reads:
            if not read.ok or read.checkpoint is None:
                continue
            scope, key = (read.thread, read.namespace), _key(read)
            puts = self._put[key]
            if found := self._imagined(read, puts, is_kept=key in truth.checkpoints, what="this checkpoint"):
                yield found
            elif read.value not in {put.value for put in puts}:
                damaging = [put for put in puts if self._may_damage(put)]
                self._excused_damage[read.thread] += damaging
                if not damaging and read.value != truth.checkpoints.get(key):
                    said = "nobody ever wrote these values"
                    yield Violation("phantom", scope, said, (*puts, read)), False
            for task, channel, value in read.pending:
                name = f"the write of {task} to {channel}"
                writes = [each for each in self._put_writes[key] if (task, channel) in _names(each.pending)]
                is_kept = (*key, task, channel) in truth.pending
                if found := self._imagined(read, writes, is_kept=is_kept, what=name):
                    yield found
                elif value not in self._written(key, task, channel):
                    said = f"nobody ever wrote this value of {task} to {channel}"
                    yield Violation("phantom", scope, said, (read,)), False

    def _imagined(
        self, read: Operation, writes: list[Operation], *, is_kept: bool, what: str
    ) -> Finding | None:
        """What a read found was there then: PostgreSQL has it, or has lost it since.

        Args:
            writes: All that wrote it.
            is_kept: PostgreSQL has it in the end.
        """
        scope = read.thread, read.namespace
        gone = [self._windows.gone(write, self._over(write), read) for write in writes]
        if writes and None not in gone:
            cut, in_window = max(filter(None, gone), key=lambda found: found[1])
            if in_window:
                self._excused_reads[read.thread].append(read)
            said = f"{what} was gone: {cut.what}, {read.start - cut.until[1]:.2f} s before"
            return Violation("phantom", scope, said, (writes[-1], read), cut.until[1]), in_window
        if not is_kept and not any(
            self._windows.may_have_gone_since(write, self._over(write), read) for write in writes
        ):
            return Violation("phantom", scope, f"PostgreSQL does not have {what}", (*writes, read)), False
        return None

    def differs(self, truth: Truth) -> Iterator[Finding]:
        """When all is over, everybody reads what PostgreSQL has: nobody who was killed or failed has left
        an older state behind, whether it was acknowledged or not."""
        newest: dict[Scope, str] = {}
        for *scope, checkpoint in truth.checkpoints:
            where = (scope[0], scope[1])
            newest[where] = max(checkpoint, newest.get(where, ""))
        pending: dict[tuple[str, ...], set[Pending]] = defaultdict(set)
        for (*key, task, channel), value in truth.pending.items():
            pending[tuple(key)].add((task, channel, value))
        for read in self._final:
            scope_ = (read.thread, read.namespace)
            there = (*scope_, newest.get(scope_, ""))
            if not read.ok or (
                _key(read) == there
                and read.value == truth.checkpoints.get(there)
                and set(read.pending) == pending[there]
            ):
                continue
            said = f"{read.checkpoint} with {len(read.pending)} pending writes was read; PostgreSQL has " + (
                f"{there[2] or None} with {len(pending[there])}"
            )
            # Somebody's write to what stands there was not confirmed by Redis, and it is not long ago.
            writers = [*self._put[there], *self._put_writes[there]]
            excused = any(self._windows.excuses(w, self._over(w), read.start) for w in writers)
            yield Violation("differs", scope_, said, (read,)), excused

    # ------------------------------------------------------------ against itself

    def stale(self) -> Iterator[Finding]:
        """A read knows everything that was acknowledged before it began."""
        for read in self.reads:
            if not read.ok:
                continue
            worst: tuple[Violation, bool] | None = None
            for missing, said in self._missed(read):
                excused = self._windows.excuses(missing, self._over(missing), read.start)
                if worst is None or not excused:
                    scope = (read.thread, read.namespace)
                    worst = Violation("stale", scope, said, (missing, read)), excused
                if not excused:
                    break
            if worst is not None:  # one finding a read: what nothing excuses, if there is such
                if worst[1]:
                    self._excused_reads[read.thread].append(read)
                yield worst

    def backwards(self) -> Iterator[Finding]:
        """Once a state was read, everybody reads it or a newer one, acknowledged or not.

        From the moment on at which its write is over: while it is under way and Redis forgets everything, one
        reader may have it from PostgreSQL, and the next one still the state before.
        """
        seen = defaultdict(list)
        for read in self.reads:
            if read.ok and read.wanted is None:
                seen[read.thread, read.namespace].append(read)
        for scope, reads in seen.items():
            for earlier, read in _newest_before(reads):
                gone: set[tuple[str, str]] = set()
                if read.checkpoint == earlier.checkpoint:
                    gone = _names(earlier.pending) - _names(read.pending)
                if (read.checkpoint or "") >= (earlier.checkpoint or "") and not gone:
                    continue
                writers = self._made(earlier, gone)
                if any(
                    self._over(write) >= read.start or self._may_be_gone(write, read.end or read.start)
                    for write in writers
                ):
                    continue
                excused = any(self._windows.excuses(w, self._over(w), read.start) for w in writers)
                if excused:
                    self._excused_reads[read.thread].append(read)
                said = f"{read.checkpoint} after {earlier.checkpoint}, without {len(gone)} pending writes"
                yield Violation("backwards", scope, said, (*writers, earlier, read)), excused

    def twice(self) -> Iterator[Finding]:
        """A task whose writes were acknowledged before a call of the graph began is not run by that call."""
        finished: dict[tuple[str, str], list[Operation]] = defaultdict(list)
        for write in self.writes:
            if write.kind == "put_writes" and write.ok and not all(replaces(c) for _, c, _ in write.pending):
                finished[write.thread, write.pending[0][0]].append(write)
        for run in self.runs:
            before = [
                write
                for write in finished[run.thread, run.task]
                if write.before(run.within) and not self._may_be_gone(write, run.start)
            ]
            if before:
                # Excused if this very call of the graph began with a read that was.
                excused = any(
                    read.turn and read.worker == run.worker and run.within <= read.start <= run.start
                    for read in self._excused_reads[run.thread]
                )
                said = f"task {run.task} was run again after its writes were acknowledged"
                yield Violation("twice", (run.thread, run.namespace), said, (before[0], run)), excused

    def forgotten(self) -> Iterator[Finding]:
        """What a user sees of it all: an answered turn stays in the conversation."""
        answered: dict[str, list[Operation]] = defaultdict(list)
        for turn in self.turns:
            if turn.ok:
                answered[turn.thread].append(turn)
        for thread, turns in answered.items():
            missed: set[int] = set()
            for turn in turns:
                gone = [
                    t
                    for t in turns
                    if t.before(turn.start)
                    and t.turn not in {*turn.answered, *missed}
                    and not self._may_be_gone(t, turn.end or turn.start)
                ]
                missed |= {t.turn for t in gone}
                for each in gone:
                    said = f"turn {each.turn} was answered, and is not in the conversation any more"
                    since, until = each.end or 0.0, turn.end or turn.start
                    excused = any(
                        read.turn and since <= read.start <= until for read in self._excused_reads[thread]
                    ) or any(since <= put.start <= until for put in self._excused_damage[thread])
                    yield Violation("forgotten", (thread, ""), said, (each, turn)), excused

    def upset(self) -> list[Operation]:
        """Return the turns whose error a cut explains: the conversation changed under them."""
        return [
            turn
            for turn in self.turns
            if turn.unexpected and self._windows.is_upset(turn, turn.end or turn.start)
        ]

    # ------------------------------------------------------------ helpers

    def _missed(self, read: Operation) -> Iterator[tuple[Operation, str]]:
        """The acknowledged writes that a read does not know of."""
        scope = (read.thread, read.namespace)
        candidates = self._put[(*scope, read.wanted)] if read.wanted else self._puts[scope]
        for put in candidates:
            if (
                put.ok
                and put.before(read.start)
                and (put.checkpoint or "") > (read.checkpoint or "")
                and not self._may_be_gone(put, read.end or read.start)
            ):
                yield put, f"read {read.checkpoint}, but {put.checkpoint} was acknowledged before"
        if read.checkpoint is None:
            return
        key, there = _key(read), _names(read.pending)
        puts = self._put[key]
        for put in puts if len(puts) > 1 else ():  # other software has changed it in place
            if (
                put.ok
                and put.before(read.start)
                and read.value not in {each.value for each in puts if not each.before(put.start)}
                and not self._may_be_gone(put, read.end or read.start)
            ):
                yield put, "with older values than acknowledged"
        values = {(task, channel): value for task, channel, value in read.pending}
        for write in self._put_writes[key]:
            if not (write.ok and write.before(read.start)):
                continue
            if self._may_be_gone(write, read.end or read.start):
                continue
            for task, channel, value in write.pending:
                if (task, channel) not in there:
                    yield write, f"without the acknowledged pending write of {task} to {channel}"
                elif replaces(channel) and values[task, channel] not in self._possible(write, value, channel):
                    yield write, f"with an older pending write of {task} to {channel}"

    def _possible(self, write: Operation, value: str, channel: str) -> set[str]:
        """What may stand in place of a write that another one may have replaced, or not: everything but what
        was over before it began."""
        task = write.pending[0][0]
        others = self._put_writes[_key(write)]
        return {value} | {
            v
            for other in others
            if not other.before(write.start)
            for t, c, v in other.pending
            if (t, c) == (task, channel)
        }

    def _may_be_gone(self, operation: Operation, at: float) -> bool:
        """Whether PostgreSQL may have forgotten it by then."""
        return self._windows.may_be_gone(operation, self._over(operation), at)

    def _may_damage(self, put: Operation) -> bool:
        """Whether a put belongs to a turn into which a cut fell, or the window after it."""
        turns = [turn for turn in self._turns_of[put.worker, put.thread] if turn.start <= put.start]
        return any(self._windows.is_upset(turn, self._over(put)) for turn in turns[-1:])

    def _over(self, write: Operation) -> float:
        """When nobody was at it any more: it returned, or its worker was dead."""
        return write.end if write.end is not None else self._last_sign[write.worker]

    def _made(self, read: Operation, gone: set[tuple[str, str]]) -> list[Operation]:
        """The writes that made what a read found: its checkpoint, or these pending writes of it."""
        if not gone:
            return self._put[_key(read)]
        return [write for write in self._put_writes[_key(read)] if _names(write.pending) & gone]

    def _written(self, key: tuple[str, str, str], task: str, channel: str) -> set[str]:
        return {
            value
            for write in self._put_writes[key]
            for t, c, value in write.pending
            if (t, c) == (task, channel)
        }


def _key(operation: Operation) -> tuple[str, str, str]:
    return operation.thread, operation.namespace, operation.checkpoint or ""


def _names(pending: Iterable[Pending]) -> set[tuple[str, str]]:
    return {(task, channel) for task, channel, _ in pending}


def _last_signs(done: Iterable[Operation]) -> dict[str, float]:
    """When each worker last wrote something down: if it was killed, it was right after that."""
    last: dict[str, float] = defaultdict(float)
    for each in done:
        last[each.worker] = max(last[each.worker], each.start, each.end or 0.0)
    return last


def _by(
    operations: Iterable[Operation], kind: str, key: Callable[[Operation], object]
) -> dict[object, list[Operation]]:
    found: dict[object, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == kind:
            found[key(operation)].append(operation)
    return found


def _newest_before(reads: list[Operation]) -> Iterator[tuple[Operation, Operation]]:
    """Each read, with the newest state that had been answered before it began."""
    ended = sorted((read for read in reads if read.end is not None), key=lambda read: read.end or 0)
    ends = [read.end or 0 for read in ended]
    newest: list[Operation] = []
    for read in ended:
        newest.append(max([read, *newest[-1:]], key=lambda r: (r.checkpoint or "", len(r.pending))))
    for read in reads:
        index = bisect_left(ends, read.start)
        if index:
            yield newest[index - 1], read
