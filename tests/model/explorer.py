"""Every schedule of a scenario: depth first, again from the start for each, never twice from the same state.

A state is what the rest of a run depends on and will be judged by (`World.state`). Two schedules that meet in
one go on as one; how many they stand for is counted. So a report says both: how many runs were made, and how
many schedules they cover.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace

import pytest

from glasspoint.coherence.identity import IdentityKeeper
from glasspoint.coherence.sweeper import Sweeper
from glasspoint.embedded import EmbeddedRedis
from glasspoint.l1.cache import Cache
from glasspoint.l1.cluster import ClusterCache
from glasspoint.l1.epoch import EpochKeeper
from glasspoint.l2.retrying import Retries
from glasspoint.redis.watched import WatchedTopology
from glasspoint.savers.bursts import Bursts
from model.cast import clock, new_token
from model.frozen import FrozenLoop, NoSleep
from model.slot_world import SlotWorld
from model.terms import Move, Outcome, Scenario, Touched, Violation
from model.two_masters import TwoMasters
from model.world import World

FAULTS = (
    "crash",
    "evict",
    "lapse",
    "restart",
    "failover",
    "unsaid",
    "unheard",
    "cut",
    "refuse",
    "cancel",
    "cut_off",
    "open",
    "forbid",
    "lose_fences",
)
"""Kinds of faults: `crash` a process ends; `evict` the entry is gone; `lapse` an intent expires although its
writer lives; `restart`, `failover` another Redis reigns, with what the entry held some time ago, without or
with its scripts; `unsaid`, `unheard` a step gets no answer from Redis, and was not done or was; `cut` the
connection to PostgreSQL breaks, a statement may or may not take effect; `refuse` PostgreSQL answers with an
error; `cancel` the caller gives up; `cut_off` a process does not reach Redis from now on, until it does
again; `open` its breaker opens; `forbid` Redis refuses it the key of the scope from now on, until it does
not any more; `lose_fences` all fences are gone. Also `reboot`: a restart that is one; and in a cluster
`promote`: a replica of the slot's master takes over, with what it has of the entry. What happens to
PostgreSQL itself: `terms.CHANGES`."""


class Counterexample(AssertionError):
    """A schedule after which an invariant does not hold."""


@dataclass
class Report:
    """What was explored.

    Attributes:
        schedules: How many schedules were covered; of a bounded exploration, at least so many.
        runs: How often the savers were run from the start.
        states: How many different states were met.
        steps: How many actions were taken, those of replays not counted.
        faults: Kind -> how often it was injected, in different states.
        reads: How many reads were judged.
        excused: How many reads were not, because the process was behind.
        exhaustive: Whether that is all there is.
    """

    scenario: str
    schedules: int = 0
    runs: int = 0
    states: int = 0
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    excused: int = 0
    exhaustive: bool = True


@dataclass
class _Frame:
    """A state on the way to the present one.

    Attributes:
        done: Move -> the state that it leads to, and what it touches.
    """

    state: int
    path: tuple[Move, ...]
    outcomes: tuple[Outcome, ...]
    untried: list[Move]
    schedules: int = 0
    done: dict[Move, tuple[int, Touched | None]] = field(default_factory=dict)


_End = tuple[tuple[Move, ...], tuple[Outcome, ...]]
"""A path, and what Redis did on it but for the last move."""


def explore(
    scenario: Scenario,
    server: EmbeddedRedis | TwoMasters,
    *,
    faults: Sequence[str] = (),
    budget: int = 1,
    at_most: int | None = None,
    seed: int = 0,
    start: Sequence[Move] = (),
    elsewhere: EmbeddedRedis | None = None,
) -> Report:
    """Run a scenario through its schedules, with up to `budget` faults in each.

    Args:
        server: A Redis for this alone, which will reign anew many times; or a cluster.
        faults: Kinds that may happen, of `FAULTS` and `CHANGES`.
        at_most: Runs; beyond that the exploration is bounded, in an order that `seed` decides.
        start: What every schedule begins with; not for bounded ones.
        elsewhere: Another Redis, likewise, if the scenario has processes there.

    Raises:
        Counterexample: An invariant does not hold.
    """
    with _patched():
        loop = FrozenLoop()
        try:
            world = (
                SlotWorld(loop, server, scenario)
                if isinstance(server, TwoMasters)
                else World(loop, server, scenario, elsewhere)
            )
            try:
                return _Search(world, faults, budget, at_most, random.Random(seed), start).report()
            finally:
                world.close()
        finally:
            loop.close()


@contextmanager
def _patched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # The globals that their functions see, which of a mutated module are not the module's own.
        cache = Cache.read.__globals__
        patch.setitem(cache, "_new_token", new_token)
        # Each saver asks for the texts anew when another Redis reigns.
        epoch = EpochKeeper.meet.__globals__
        patch.setitem(epoch, "_script_texts", lru_cache(maxsize=8)(epoch["_script_texts"]))
        bursts = Bursts.join.__globals__
        patch.setitem(bursts, "_new_id", new_token)
        patch.setitem(bursts, "monotonic", lambda: 0.0)
        cluster = ClusterCache.connect.__globals__
        patch.setitem(cluster, "monotonic", lambda: 0.0)
        patch.setitem(WatchedTopology.read.__globals__, "random", SimpleNamespace(shuffle=lambda _: None))
        patch.setitem(cache, "asyncio", NoSleep())
        patch.setitem(Retries.run.__globals__, "asyncio", NoSleep())
        sweeping = Sweeper.round.__globals__
        patch.setitem(sweeping, "_PAUSE_SECONDS", 0.0)
        patch.setitem(sweeping, "monotonic", lambda: 0.0)
        patch.setitem(IdentityKeeper.look.__globals__, "monotonic", clock)
        yield


class _Search:
    def __init__(
        self,
        world: World,
        faults: Sequence[str],
        budget: int,
        at_most: int | None,
        rng: random.Random,
        start: Sequence[Move],
    ) -> None:
        self._world = world
        self._faults = faults
        self._budget = budget
        self._at_most = at_most
        self._rng = rng
        self._start = tuple(start)
        self._report = Report(world.scenario.name)
        self._covered: dict[int, int] = {}
        self._next: dict[tuple[int, Move], int] = {}

    def report(self) -> Report:
        try:
            if self._at_most is None:
                self._search()
            else:
                self._sample(self._at_most)
        except Violation as exc:
            raise Counterexample(
                "\n".join(
                    [f"{self._world.scenario.name}: {exc}", *self._world.told_so_far, f"({self._report})"]
                )
            ) from exc
        self._report.states = len(self._covered)
        self._report.reads = self._world.reads
        self._report.excused = self._world.promise.excused
        return self._report

    def _search(self) -> None:
        """Depth first."""
        self._begin((), ())
        for move in self._start:
            self._do(move)
        stack: list[_Frame] = []
        path = self._start
        while True:
            state = self._world.state()
            if stack:
                self._remember(stack[-1], path[-1], state)
            covers = self._covered.get(state)
            if covers is None:
                if untried := self._moves()[::-1]:
                    frame = _Frame(state, path, tuple(self._world.outcomes), untried)
                    if stack:
                        self._spare(frame, stack[-1], path[-1])
                    if frame.untried:
                        stack.append(frame)
                    else:
                        covers = self._covered[state] = frame.schedules
                else:
                    self._world.finish()
                    covers = self._covered[state] = 1
            if covers is not None:
                while stack:
                    stack[-1].schedules += covers
                    if stack[-1].untried:
                        break
                    frame = stack.pop()
                    covers = self._covered[frame.state] = frame.schedules
                else:
                    self._report.schedules = covers
                    return
                self._begin(stack[-1].path, stack[-1].outcomes)
                if self._world.state() != stack[-1].state:
                    raise AssertionError(f"a replay went astray: {self._world.trace}")
            frame = stack[-1]
            path = (*frame.path, frame.untried.pop())
            self._do(path[-1])

    def _remember(self, frame: _Frame, move: Move, state: int) -> None:
        """A move leads from the state of a frame to another state."""
        frame.done[move] = state, self._world.touched
        self._next[frame.state, move] = state

    def _spare(self, frame: _Frame, before: _Frame, move: Move) -> None:
        """Leave out the moves of a state that lead where another order of the same two moves has led.

        The move that led here and one that was done instead may touch nothing in common. Then both orders do
        the same, and end in one state, and the other order was walked already, to its end.
        """
        _, touched = before.done[move]
        for other in list(frame.untried):
            first, touches = before.done.get(other, (None, None))
            if touched is None or touches is None or first is None or not touched.is_apart_from(touches):
                continue
            state = self._next.get((first, move))
            if state is not None and state in self._covered:
                frame.untried.remove(other)
                frame.schedules += self._covered[state]
                frame.done[other] = state, touches
                self._next[frame.state, other] = state

    def _sample(self, at_most: int) -> None:
        """From a move that was seen and not made, taken at random, always on to the end."""
        # Kinds apart, because there are many more steps after a fault than faults, and than steps before it;
        # and of some kinds of faults there are many more than of others.
        before: list[_End] = [((), ())]
        faults: dict[str, list[_End]] = {kind: [] for kind in self._faults}
        after: list[_End] = []
        while True:
            faults_left = [ends for ends in faults.values() if ends]
            kinds = [kind for kind in (faults_left, faults_left, [before], [after]) if any(kind)]
            if not kinds:
                return
            if self._report.runs == at_most:
                self._report.exhaustive = False
                return
            ends = self._rng.choice(self._rng.choice(kinds))
            chosen = self._rng.randrange(len(ends))
            ends[chosen], ends[-1] = ends[-1], ends[chosen]
            path, outcomes = ends.pop()
            self._begin(path[:-1], outcomes)
            if path:
                self._do(path[-1])
            while (state := self._world.state()) not in self._covered:
                self._covered[state] = 0
                moves = self._moves()
                if not moves:
                    self._world.finish()
                    self._report.schedules += 1
                    break
                self._rng.shuffle(moves)
                moves.sort(key=lambda move: move[0] in self._faults)
                outcomes = tuple(self._world.outcomes)
                steps = after if self._world.faults else before
                for move in moves[1:]:
                    faults.get(move[0], steps).append(((*path, move), outcomes))
                path = (*path, moves[0])
                self._do(moves[0])

    def _begin(self, path: tuple[Move, ...], outcomes: tuple[Outcome, ...]) -> None:
        self._report.runs += 1
        self._world.begin(path, outcomes)

    def _do(self, move: Move) -> None:
        self._world.do(move)
        self._report.steps += 1
        if move[0] in self._faults:
            self._report.faults[move[0]] += 1

    def _moves(self) -> list[Move]:
        left = len(self._world.faults) < self._budget
        return self._world.moves(self._faults if left else ())


def table(reports: Iterable[Report]) -> str:
    """Print-ready: a line a scenario."""
    rows: list[tuple[str, ...]] = [
        ("scenario", "schedules", "runs", "states", "steps", "faults", "reads", "")
    ]
    for each in reports:
        counts = (each.schedules, each.runs, each.states, each.steps, each.faults.total(), each.reads)
        rows.append((each.scenario, *(f"{n:,}" for n in counts), "all" if each.exhaustive else "bounded"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in (0, 7) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
