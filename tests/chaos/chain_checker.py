"""The judge of a chain run: pure functions from what was done to what must never have happened.

Some things make a later state lack what an earlier one had, and are no violation:

    not drained yet   the earlier one stands in a lower tier, and there was no moment since at which every
                      process was in `cached` and knew of nothing below: a *settled* moment
    set aside         the earlier one stands in a branch of its own in the end. That is right if the branch
                      began anew, or if another process may have written to the thread in `cached` meanwhile
    in the window     the earlier one was written by a process that could not reach Redis, up to 3 s before.
                      It stands in its thread all the same, not in one that was set aside
    taken over        a run was cut off after a task, and LangGraph leaves its puts to themselves; the attempt
                      went on from what the task wrote. So the same state stands in a checkpoint of each
    run beside its    a turn in another tier began before the earlier one was drained, and ended after it: the
    drain             thread has two lines, and the earlier one stands in its history
    cut off before    a run goes on with a task that was cut off before its subgraph had stored anything.
    its subgraph      LangGraph resumes the subgraph then, at the end of its last run: it does nothing
    a subgraph's      of the graph itself, the branch has nothing of its own: a subgraph has begun anew

An attempt counts as acknowledged from the moment that its worker saw the graph return, and a read as begun
from the moment that its worker asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from chaos.chain_history import Attempt, Ran, Stored

__all__ = [
    "WHATS",
    "WINDOW_SECONDS",
    "ChainVerdict",
    "ChainViolation",
    "Standing",
    "judge_chain",
    "settled_moments",
]

WHATS = {
    "lost": "an acknowledged state is neither in its thread in PostgreSQL nor in one set aside from it",
    "doubled": "an acknowledged state stands in two checkpoints",
    "shorter": "a state lacks what an acknowledged state of its thread had",
    "torn": "a state has a part of an acknowledged state, neither all of it nor nothing",
    "forgotten": "the memory of a subgraph lacks what the state of its graph has",
    "twice": "a task was run again after its turn was acknowledged",
    "needless": "a thread was set aside, although it goes on from what was there, and nothing else does",
    "unmarked": "a thread in PostgreSQL does not say from which one it was set aside",
    "error": "a call has failed with what no outage explains",
}
"""Every kind of violation, and what it means."""

WINDOW_SECONDS = 3.0
"""How long a read in `cached` may miss a write of a process that could not reach Redis: see `run`."""

_AT_LAST = float("inf")


class Standing(NamedTuple):
    """In which tier a place works, from a moment on.

    Attributes:
        place: The number of the place.
        since: Seconds.
        tier: `cached`, `redis` or `memory`; empty: nobody works there.
        whole: Whether all that is known there is in PostgreSQL.
    """

    place: int
    since: float
    tier: str
    whole: bool


class ChainViolation(NamedTuple):
    """One promise that was broken.

    Attributes:
        what: One of `WHATS`.
        thread: In which thread.
        said: What is wrong, for people.
        evidence: The attempts that show it.
    """

    what: str
    thread: str
    said: str
    evidence: tuple[Attempt, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.what} in {self.thread}: {self.said}", *map(str, self.evidence)])


@dataclass
class ChainVerdict:
    """What was found.

    Attributes:
        violations: What must not be.
        excused: What may be, because of the two tiers: each kind and how often.
        checked: How many of each were judged: nothing found in nothing done says nothing.
    """

    violations: list[ChainViolation] = field(default_factory=list)
    excused: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    checked: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def count(self, what: str) -> int:
        """How many violations there are of one kind."""
        return sum(violation.what == what for violation in self.violations)


def settled_moments(standings: Iterable[Standing]) -> list[tuple[float, float]]:
    """Return the spans in which every place was in `cached` and knew of nothing below."""
    known: dict[int, bool] = {}
    spans: list[tuple[float, float]] = []
    since: float | None = None
    standings = sorted(standings, key=lambda each: each.since)
    places = {each.place for each in standings}
    for each in standings:
        known[each.place] = each.tier == "cached" and each.whole
        settled = len(known) == len(places) and all(known.values())
        if settled and since is None:
            since = each.since
        elif not settled and since is not None:
            spans.append((since, each.since))
            since = None
    if since is not None:
        spans.append((since, _AT_LAST))
    return spans


def judge_chain(
    attempts: Sequence[Attempt],
    ran: Sequence[Ran],
    stored: Sequence[Stored],
    standings: Iterable[Standing],
    *,
    away: Sequence[tuple[float, float]] = (),
    full: Sequence[tuple[float, float]] = (),
) -> ChainVerdict:
    """Compare everything that was done with itself, and with what PostgreSQL has in the end.

    Args:
        attempts: All attempts of all workers.
        ran: All calls of nodes.
        stored: What PostgreSQL has when all is over.
        standings: In which tier each place worked, when.
        away: When PostgreSQL was certainly away.
        full: When it may have refused writes because of a full disk.
    """
    verdict = ChainVerdict()
    settled = settled_moments(standings)
    by_thread: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_thread[attempt.thread].append(attempt)
    runs: dict[str, list[Ran]] = defaultdict(list)
    for run in ran:
        runs[run.thread].append(run)
    # A run under way goes on in the thread that was set aside, and later turns may, too: unmarked.
    originals = {each.thread: each.original for each in stored if each.original}
    in_end: dict[str, list[Stored]] = defaultdict(list)
    for each in stored:
        original = originals.get(each.thread, "")
        in_end[original or each.thread].append(replace(each, original=original))
    for name in by_thread.keys() | in_end.keys():
        thread = _Thread(name, by_thread[name], runs[name], in_end[name], settled, away, verdict)
        verdict.violations += thread.judge()
    verdict.violations += _errors(attempts, full)
    verdict.checked["attempts"] = len(attempts)
    verdict.checked["acknowledged"] = sum(each.is_acknowledged for each in attempts)
    verdict.checked["runs"] = len(ran)
    verdict.checked["checkpoints"] = len(stored)
    return verdict


def _errors(attempts: Iterable[Attempt], full: Sequence[tuple[float, float]]) -> Iterator[ChainViolation]:
    for each in attempts:
        if each.outcome in ("ok", "killed", "CancelledError") or each.is_promised:
            continue
        if each.outcome == "TimeoutError":  # of the whole attempt: it waited for a drain
            continue
        end = each.end or each.start
        if each.outcome == "DiskFull" and any(a <= end and each.start <= b for a, b in full):
            continue
        # Between the read and the call, the thread came to stand elsewhere: there is nothing to go on with.
        if each.outcome == "EmptyInputError" and each.did == "went on" and each.tier != "cached":
            continue
        yield ChainViolation("error", each.thread, each.error, (each,))


class _Read(NamedTuple):
    """A state that somebody has read.

    Attributes:
        at: When the read began.
        worker: Which process.
        tier: In which tier.
        words: What was found.
        of: The attempt that it belongs to; `None`: it is PostgreSQL's in the end.
    """

    at: float
    worker: str
    tier: str
    words: list[str]
    of: Attempt | None


class _Thread:
    """What was done in one thread, and what has become of it."""

    def __init__(
        self,
        name: str,
        attempts: list[Attempt],
        ran: list[Ran],
        stored: list[Stored],
        settled: list[tuple[float, float]],
        away: Sequence[tuple[float, float]],
        verdict: ChainVerdict,
    ) -> None:
        self._name = name
        self._attempts = attempts
        self._acknowledged = [each for each in attempts if each.is_acknowledged]
        self._ran = ran
        self._settled = settled
        self._away = away
        self._verdict = verdict
        self._main = [each for each in stored if not each.original]
        self._aside: dict[str, list[Stored]] = defaultdict(list)
        for each in stored:
            if each.original:
                self._aside[each.thread].append(each)
        self._newest = max(self._main, key=lambda each: each.checkpoint, default=None)

    def judge(self) -> Iterator[ChainViolation]:
        yield from self._unmarked()
        yield from self._lost_or_doubled()
        yield from self._shorter_or_torn()
        yield from self._torn_in_the_end()
        yield from self._forgotten()
        yield from self._twice()
        yield from self._needless()

    # ------------------------------------------------------------ against PostgreSQL

    def _unmarked(self) -> Iterator[ChainViolation]:
        if not self._attempts:
            yield ChainViolation("unmarked", self._name, "nobody has used a thread of this name")

    def _lost_or_doubled(self) -> Iterator[ChainViolation]:
        everything = [*self._main, *(each for some in self._aside.values() for each in some)]
        where: dict[tuple[str, ...], set[str]] = defaultdict(set)
        places: dict[str, set[str]] = defaultdict(set)
        bases = {(name, base.checkpoint) for name in self._aside if (base := self._base_of(name))}
        for each in everything:
            if each.source == "input":  # it has the words of the checkpoint before
                continue
            where[tuple(each.words)].add(each.checkpoint)
            if (each.thread, each.checkpoint) not in bases:
                places[each.checkpoint].add(each.thread)
        for attempt in self._acknowledged:
            ids = where.get(tuple(attempt.words or ()), set())
            if not ids:
                said = f"{len(attempt.words or ())} words are nowhere"
                yield ChainViolation("lost", self._name, said, (attempt,))
            elif len(ids) > 1 and self._took_over(attempt):
                self._verdict.excused["taken over"] += 1
            elif len(ids) > 1:
                yield ChainViolation("doubled", self._name, f"in {sorted(ids)}", (attempt,))
            elif len(places[next(iter(ids))]) > 1 and attempt.tier_before != attempt.tier_after:
                # A put that a server did not answer, before it was lost, was made again in the next tier.
                self._verdict.excused["put in two tiers"] += 1
            elif len(places[next(iter(ids))]) > 1:
                said = f"in the threads {sorted(places[next(iter(ids))])}"
                yield ChainViolation("doubled", self._name, said, (attempt,))

    def _took_over(self, attempt: Attempt) -> bool:
        """Tell whether nobody had acknowledged a state before, and a task of another attempt made it."""
        words = attempt.words or [""]
        return words[-1] not in attempt.made and not any(
            each.words == words and (each.end or 0.0) <= attempt.start for each in self._acknowledged
        )

    def _torn_in_the_end(self) -> Iterator[ChainViolation]:
        """Each checkpoint has all that its parent had."""
        by_key = {(each.thread, each.checkpoint): each for some in self._branches() for each in some}
        for each in by_key.values():
            parent = by_key.get((each.thread, each.parent))
            if parent is not None and not _begins_with(each.words, parent.words):
                said = f"checkpoint {each.checkpoint} of {each.thread} lacks what its parent has"
                yield ChainViolation("torn", self._name, said)

    def _branches(self) -> list[list[Stored]]:
        return [self._main, *self._aside.values()]

    # ------------------------------------------------------------ against what was read

    def _shorter_or_torn(self) -> Iterator[ChainViolation]:
        reads = [
            _Read(each.found_at, each.worker, each.found_in, each.found, each)
            for each in self._attempts
            if each.found is not None and each.found_in
        ]
        if self._newest is not None:
            reads.append(_Read(_AT_LAST, "", "cached", self._newest.words, None))
        self._verdict.checked["reads"] += len(reads)
        for read in reads:
            self._verdict.checked["gone on"] += read.tier != "cached" and self._goes_on(read)
            for state in self._acknowledged:
                if state.end is None or state.end > read.at or _begins_with(read.words, state.words or []):
                    continue
                if read.tier != "cached" and not set(read.words) & set(state.words or ()):
                    self._verdict.excused["begun anew"] += 1
                    continue
                excuse = self._excuse(state, read)
                if excuse:
                    self._verdict.excused[excuse] += 1
                    continue
                what = "shorter" if _begins_with(state.words or [], read.words) or not read.words else "torn"
                when = f"read in {read.tier} at {read.at:.3f}" if read.of else "in the end"
                said = f"{len(read.words)} words {when}, ending with {read.words[-2:]}"
                yield ChainViolation(what, self._name, said, (state, *([read.of] if read.of else [])))
                break

    def _goes_on(self, read: _Read) -> bool:
        """Tell whether a read in a lower tier has found what was acknowledged in `cached`."""
        words = set(read.words)
        return any(
            each.tier == "cached" and (each.end or 0.0) < read.at and words.issuperset(each.words or ())
            for each in self._acknowledged
        )

    def _excuse(self, state: Attempt, read: _Read) -> str:
        """Return why a read may lack an acknowledged state; empty: it may not."""
        end = state.end or 0.0
        if state.tier != "cached":
            elsewhere = {state.tier_before, state.tier_after} != {read.tier} or (
                read.tier == "memory" and read.worker != state.worker
            )
            if elsewhere and not self._settles(end, read.at):
                return "not drained yet"
            if self._is_aside(state):
                return "set aside"
            return "run beside its drain" if self._ran_beside(state, read) else ""
        if self._misses_in_window(state, read):
            return "in the window"
        if read.tier == "cached":
            return ""
        # It may stand in a branch that had begun before: the state was written to the thread beside it.
        beside = any(
            each.tier != "cached" and each.start < end and not self._settles(each.start, read.at)
            for each in self._attempts
        )
        return "beside a branch" if beside else ""

    def _misses_in_window(self, state: Attempt, read: _Read) -> bool:
        """Tell whether it was read in the window that a write has which Redis did not hear of; or was said
        after such a read, in whichever tier it is found later: then there are two lines in the thread.
        `checker` judges the window itself."""
        end = state.end or 0.0
        if self._is_aside(state) and not any(each.words == state.words for each in self._main):
            return False
        if read.tier == "cached" and read.at <= end + WINDOW_SECONDS:
            return True
        return any(
            each.found is not None
            and each.found_in == "cached"
            and end < each.found_at <= end + WINDOW_SECONDS
            and not _begins_with(each.found, state.words or [])
            and self._words_of(each) & set(read.words)
            for each in self._attempts
        )

    def _ran_beside(self, state: Attempt, read: _Read) -> bool:
        """Tell whether what was read was said by an attempt in another tier that began before the state was
        drained into that: it cannot know all of it. Then there are two lines in the thread."""
        end = state.end or 0.0
        drained_at = self._settled_after(end)
        return any(
            each.start < drained_at
            and (each.end is None or each.end > end)
            and (
                each.tier_before != state.tier_before
                or each.tier_after != state.tier_after
                or (state.tier == "memory" and each.worker != state.worker)
            )
            and not set(state.words or ()).issuperset(own := self._words_of(each))
            and own & set(read.words)
            for each in self._attempts
        )

    @staticmethod
    def _words_of(attempt: Attempt) -> set[str]:
        """Return what an attempt has brought."""
        return {f"said {attempt.word}", *(attempt.words or ())} - set(attempt.found or ())

    def _settles(self, start: float, end: float) -> bool:
        """Tell whether all was in PostgreSQL at a moment between two."""
        return any(since <= end and until >= start for since, until in self._settled)

    def _is_aside(self, state: Attempt) -> bool:
        words = state.words or []
        return any(each.words == words for some in self._aside.values() for each in some)

    # ------------------------------------------------------------ the memory of a subgraph

    def _forgotten(self) -> Iterator[ChainViolation]:
        """Where all turns are acknowledged in one tier, the memory has what the state has.

        Otherwise it may begin anew: it may not be cached, or another line of the thread may have it.
        """
        for attempt in self._attempts:
            for word in attempt.lacks:
                maker = next((each for each in self._attempts if word in each.made), None)
                if maker is not None and maker.did in ("went on", "resumed") and maker.made[0] == word:
                    self._verdict.excused["cut off before its subgraph"] += 1
                    continue
                if maker is None or not self._in_one_tier(maker, attempt):
                    self._verdict.excused["memory begun anew"] += 1
                    continue
                yield ChainViolation("forgotten", self._name, f"the memory lacks {word}", (maker, attempt))
                break

    def _in_one_tier(self, first: Attempt, last: Attempt) -> bool:
        some = self._attempts[self._attempts.index(first) : self._attempts.index(last) + 1]
        tiers = {tier for each in some for tier in (each.tier_before, each.tier_after)}
        before = [each for each in some if each is not last]
        if len(tiers) != 1 or not all(each.is_acknowledged for each in before):
            return False
        if tiers == {"memory"}:
            return len({each.worker for each in some}) == 1
        return tiers != {"cached"} or last.start > max(each.end or 0.0 for each in before) + WINDOW_SECONDS

    # ------------------------------------------------------------ tasks

    def _twice(self) -> Iterator[ChainViolation]:
        """What was done for a turn is not done again once the turn, or its question, was answered."""
        for state in self._acknowledged:
            done = {tuple(word.split(" ")[:2]) for word in state.words or ()}
            # If a subgraph asks, LangGraph says nothing of a put of it that has failed, except with "sync".
            if state.asked and state.durability == "sync":
                said = [word for node, word in done if node == "said"]
                done |= {("prepare", word) for word in said}
            for each in self._ran:
                if state.end is None or each.at <= state.end or (each.node, each.word) not in done:
                    continue
                again = next((a for a in self._attempts if _holds(a, each)), None)
                read = _Read(again.start if again else each.at, each.worker, each.tier, [], again)
                if excuse := self._excuse(state, read):
                    self._verdict.excused[f"run again: {excuse}"] += 1
                    continue
                again_said = (
                    f"{each.node} for {each.word} ran again at {each.at:.3f}, {each.worker}, {each.tier}"
                )
                yield ChainViolation("twice", self._name, again_said, (state, *([again] if again else [])))
                break

    # ------------------------------------------------------------ what was set aside

    def _needless(self) -> Iterator[ChainViolation]:
        self._verdict.checked["set aside"] += len(self._aside)
        if any(each.tier == "memory" for each in self._attempts):
            return  # every process has a tier of its own: anybody may have written beside it
        for name, branch in self._aside.items():
            base = self._base_of(name)
            if base is None:
                continue
            if branch == [base]:
                self._verdict.excused["a subgraph's"] += 1
                continue
            own = [each for each in self._attempts if self._wrote(each, branch, base)]
            base_at = max(
                (
                    each.end or 0.0
                    for each in self._acknowledged
                    if each not in own and _begins_with(base.words, each.words or [])
                ),
                default=0.0,
            )
            until = self._settled_after(max((each.end or each.start for each in own), default=base_at))
            beside = [
                each
                for each in self._attempts
                if each not in own
                and (each.end is None or each.end > base_at)
                and each.start < until
                and self._may_have_written(each)
            ]
            if not beside:
                said = f"{name} goes on from {len(base.words)} words, and nobody wrote beside it"
                yield ChainViolation("needless", self._name, said, tuple(own[:1]))

    def _base_of(self, name: str) -> Stored | None:
        """Return the checkpoint that a branch and its thread have in common; `None`: it began anew."""
        first = min(self._aside[name], key=lambda each: each.checkpoint)
        return first if first.checkpoint in {each.checkpoint for each in self._main} else None

    @staticmethod
    def _wrote(attempt: Attempt, branch: list[Stored], base: Stored) -> bool:
        """Tell whether an attempt was made in a branch."""
        if attempt.tier == "cached":
            return False
        said = f"said {attempt.word}"
        own = {word for each in branch for word in each.words} - set(base.words)
        return said in own or bool(attempt.words and set(attempt.words) & own)

    def _may_have_written(self, attempt: Attempt) -> bool:
        # Of an attempt whose worker was killed, the tier is not known.
        if not {attempt.tier_before, attempt.tier_after} & {"cached", ""}:
            return False
        end = attempt.end
        return not (end is not None and any(a <= attempt.start and end <= b for a, b in self._away))

    def _settled_after(self, moment: float) -> float:
        return min(
            (max(since, moment) for since, until in self._settled if until >= moment), default=_AT_LAST
        )


def _begins_with(words: list[str], beginning: list[str]) -> bool:
    return words[: len(beginning)] == beginning


def _holds(attempt: Attempt, ran: Ran) -> bool:
    """Tell whether a node was called during an attempt."""
    end = attempt.end if attempt.end is not None else _AT_LAST
    return attempt.worker == ran.worker and attempt.start <= ran.at <= end
