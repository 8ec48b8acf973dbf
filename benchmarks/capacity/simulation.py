"""Pods, a Redis and a PostgreSQL as queues: what a turn waits for its storage as the load rises.

Each core is a queue: a pod's event loop is one, Redis is one, PostgreSQL has some. A write goes to Redis,
through the pod's pool to PostgreSQL, waits there for the log to be flushed (whoever commits meanwhile shares
the next flush), goes to Redis again, and is answered. Its cost falls with the number of calls under way in
its pod: they share statements and pipelines (`Cost.among`). `AsyncPostgresSaver` has one call at a time.
Service times are lognormal, with the measured means; the spread is that of one caller's latencies, which is
more than that of the work alone. Turns arrive at random (Poisson).

Left out: faults, retries, timeouts (so queues grow without a bound above saturation), garbage collection,
vacuum and checkpoints of PostgreSQL, locks on rows, the journal's sweep, large states.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, Final, Literal

import simpy

from capacity.figures import KINDS, THINKS_BEFORE, TURN, Cost, Figures, Kind
from comparison.peers import OURS, POOL, POOL_SIZE
from comparison.turns import Durability

Steps = Generator[simpy.Event, Any, Any]
Contender = Literal["Glasspoint", "upstream, pool"]

STATEMENTS_AT_ONCE: Final = 32
"""Calls that a statement of Glasspoint's stands for, at most: see `l2/batching.py`."""

MODEL_SECONDS: Final = 2.0
TOOL_SECONDS: Final = 0.3
THINKING_SIGMA: Final = 0.5
HUMAN_SECONDS: Final = 30.0
"""Between an answer and the next question."""


@dataclass(frozen=True)
class System:
    """What is simulated.

    Attributes:
        postgres_cores: That PostgreSQL may use at once.
        round_trip_ms: To either server.
        shared_cores: All stand on one machine with so many cores, as in `make bench`; 0: on their own.
        hit_ratio: Of the reads of known conversations.
        thinks: Whether models and tools take their time.
    """

    contender: Contender = "Glasspoint"
    durability: Durability = "sync"
    pods: int = 1
    postgres_cores: int = 1
    round_trip_ms: float = 0.5
    shared_cores: int = 0
    hit_ratio: float = 1.0
    thinks: bool = True

    @property
    def thinking_seconds(self) -> float:
        """What models and tools take in a turn, on the mean."""
        return 2 * MODEL_SECONDS + TOOL_SECONDS if self.thinks else 0.0


@dataclass(frozen=True)
class Turn:
    """One turn: when it began and ended, and what it waited for its checkpoints."""

    began_ms: float
    ended_ms: float
    storage_ms: float


@dataclass
class Outcome:
    """What came of it, within a window of time: what begins and ends outside of it does not count.

    Attributes:
        busy: The share of its cores' time that each server worked: `pod` is the mean of all pods.
    """

    turns: list[Turn] = field(default_factory=list)
    from_ms: float = 0.0
    until_ms: float = math.inf
    busy: dict[str, float] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Turns that ended, a second."""
        ended = sum(self.from_ms < each.ended_ms <= self.until_ms for each in self.turns)
        return 1000 * ended / (self.until_ms - self.from_ms)

    @property
    def turn_ms(self) -> float:
        """The median turn, thinking included."""
        return median(each.ended_ms - each.began_ms for each in self.turns)

    def storage_ms(self, cut: int, from_ms: float | None = None, until_ms: float | None = None) -> float:
        """A percentile of the storage part of the turns that began in the window, or in another."""
        start, end = (
            self.from_ms if from_ms is None else from_ms,
            self.until_ms if until_ms is None else until_ms,
        )
        values: Sequence[float] = [each.storage_ms for each in self.turns if start <= each.began_ms < end]
        if len(values) < 2:
            return values[0] if values else math.nan
        return quantiles(values, n=100, method="inclusive")[cut - 1]


class Model:
    """One run of it."""

    def __init__(self, figures: Figures, system: System, seed: int, scale: Cost | None = None) -> None:
        """Args:
        scale: Multiplies the pod's time for a call; by default so that a turn takes what was measured.
        """
        self.env = simpy.Environment()
        self.system = system
        self._dice = random.Random(seed)
        if scale is None:
            scale = figures.scale(system.contender, system.durability)
        self._calls = {kind: figures.call(system.contender, kind, scale) for kind in KINDS}
        self._graph_ms = figures.graph_ms(system.durability)
        self._pieces = len(TURN[system.durability]) + 1
        self._flush_median, self._flush_sigma = figures.flush_ms
        machine = [simpy.Resource(self.env, system.shared_cores)] if system.shared_cores else []
        self._loops = [[simpy.Resource(self.env), *machine] for _ in range(system.pods)]
        self._redis = [simpy.Resource(self.env), *machine]
        self._postgres = [
            simpy.Resource(self.env, max(system.postgres_cores, system.shared_cores)),
            *machine,
        ]
        at_once = POOL_SIZE * STATEMENTS_AT_ONCE if system.contender == OURS else 1
        self._connections = [simpy.Resource(self.env, at_once) for _ in range(system.pods)]
        self._under_way = [0] * system.pods
        self._flushing: simpy.Event | None = None
        self._next_flush: simpy.Event | None = None
        self._worked = {"pod": 0.0, "redis": 0.0, "postgres": 0.0}
        self._before: dict[str, float] = dict(self._worked)
        self._cold: set[int] = set()
        self.flushed_at_ms = 0.0

    def turns(self, per_second: float, turns: int, *, flushed: int = 0) -> Outcome:
        """Let turns arrive at random; what counts is what happens in the last two thirds of that time.

        Args:
            flushed: Redis loses everything when two thirds have arrived: so many conversations, of any of
                which each turn is one.
        """
        outcome = Outcome()

        def arriving() -> Steps:
            for number in range(turns):
                if number == turns // 3:
                    outcome.from_ms, self._before = self.env.now, dict(self._worked)
                if flushed and number == 2 * turns // 3:
                    self._cold, self.flushed_at_ms = set(range(flushed)), self.env.now
                yield self.env.timeout(self._dice.expovariate(per_second / 1000))
                conversation = self._dice.randrange(flushed) if flushed else None
                self.env.process(self._turn(number % self.system.pods, outcome, conversation))
            self._close(outcome)

        self.env.process(arriving())
        self.env.run()
        return outcome

    def conversations(self, count: int, turns: int) -> Outcome:
        """So many conversations, each of which goes on as soon as a turn is over, as in `make bench`."""
        outcome = Outcome()

        def conversing() -> Steps:
            for _ in range(turns):
                yield self.env.process(self._turn(0, outcome, None))

        for _ in range(count):
            self.env.process(conversing())
        self.env.run()
        self._close(outcome)
        return outcome

    def reads(self, count: int, kind: Kind) -> float:
        """So many at once: milliseconds until all are answered."""
        for _ in range(count):
            self.env.process(self._call(0, kind))
        self.env.run()
        return float(self.env.now)

    def _close(self, outcome: Outcome) -> None:
        outcome.until_ms = self.env.now
        cores = {"pod": self.system.pods, "redis": 1, "postgres": self.system.postgres_cores}
        lasted = outcome.until_ms - outcome.from_ms
        outcome.busy = {
            name: (self._worked[name] - self._before[name]) / lasted / cores[name] for name in cores
        }

    # ------------------------------------------------------------------ a turn

    def _turn(self, pod: int, outcome: Outcome, conversation: int | None) -> Steps:
        started, waited = self.env.now, 0.0
        thinks = THINKS_BEFORE[self.system.durability] if self.system.thinks else {}
        for i, planned in enumerate(TURN[self.system.durability]):
            yield from self._graph(pod)
            for what in thinks.get(i, "").split():
                yield self.env.timeout(self._thinking_ms(what))
            before = self.env.now
            yield from self._call(pod, self._kind(planned, conversation))
            waited += self.env.now - before
        yield from self._graph(pod)
        outcome.turns.append(Turn(started, self.env.now, waited))

    def _graph(self, pod: int) -> Steps:
        """LangGraph's own work between two calls."""
        milliseconds = self._graph_ms.among(self._under_way[pod] + 1) / self._pieces
        yield from self._work("pod", self._loops[pod], milliseconds)

    def _kind(self, planned: Kind, conversation: int | None) -> Kind:
        if planned != "hit":
            return planned
        if conversation in self._cold:
            self._cold.discard(conversation)
            return "miss"
        return "hit" if self._dice.random() < self.system.hit_ratio else "miss"

    def _call(self, pod: int, kind: Kind) -> Steps:
        call, loop = self._calls[kind], self._loops[pod]
        self._under_way[pod] += 1
        among = self._under_way[pod]
        pod_ms, redis_ms, postgres_ms = (
            self._spread(each.among(among), call.sigma)
            for each in (call.pod_ms, call.redis_ms, call.postgres_ms)
        )
        yield from self._work("pod", loop, pod_ms / 2)
        if self.system.contender == POOL:
            with self._connections[pod].request() as alone:
                yield alone
                yield from self._statement(kind, postgres_ms)
        elif kind == "hit":
            yield from self._to_redis(redis_ms)
        else:
            yield from self._to_redis(redis_ms / 2)
            with self._connections[pod].request() as connection:
                yield connection
                yield from self._statement(kind, postgres_ms)
            yield from self._to_redis(redis_ms / 2)
        yield from self._work("pod", loop, pod_ms / 2)
        self._under_way[pod] -= 1

    def _to_redis(self, milliseconds: float) -> Steps:
        yield self.env.timeout(self.system.round_trip_ms)
        yield from self._work("redis", self._redis, milliseconds)

    def _statement(self, kind: Kind, milliseconds: float) -> Steps:
        yield self.env.timeout(self.system.round_trip_ms)
        yield from self._work("postgres", self._postgres, milliseconds)
        if kind in ("put", "put_writes"):
            yield from self._flushed()

    def _flushed(self) -> Steps:
        """Wait for the next flush that begins: what is under way came too early for this commit."""
        if self._flushing is None:
            self._flushing = self.env.process(self._flush())
            yield self._flushing
            return
        if self._next_flush is None:
            self._next_flush = self.env.process(self._flush(after=self._flushing))
        yield self._next_flush

    def _flush(self, after: simpy.Event | None = None) -> Steps:
        if after is not None:
            yield after
            self._flushing, self._next_flush = self._next_flush, None
        yield self.env.timeout(self._dice.lognormvariate(math.log(self._flush_median), self._flush_sigma))
        if self._next_flush is None:
            self._flushing = None

    # ------------------------------------------------------------------ queues and dice

    def _work(self, server: str, queues: list[simpy.Resource], milliseconds: float) -> Steps:
        requests = []
        for queue in queues:
            requests.append(queue.request())
            yield requests[-1]
        yield self.env.timeout(milliseconds)
        self._worked[server] += milliseconds
        for queue, request in zip(queues, requests, strict=True):
            queue.release(request)

    def _spread(self, mean: float, sigma: float) -> float:
        return self._dice.lognormvariate(math.log(mean) - sigma**2 / 2, sigma) if mean > 0 else 0.0

    def _thinking_ms(self, what: str) -> float:
        seconds = MODEL_SECONDS if what == "model" else TOOL_SECONDS
        return self._spread(1000 * seconds, THINKING_SIGMA)


def seeded(seed: int, *what: object) -> int:
    """A seed of its own for each run, so that a run more does not change the others."""
    return random.Random(f"{seed} {what}").randrange(2**32)
