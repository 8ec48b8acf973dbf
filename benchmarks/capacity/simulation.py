"""Pods, Redis and a PostgreSQL as queues: what a turn waits for its storage as the load rises.

Each core is a queue: a pod's event loop is one, each master of Redis is one, PostgreSQL has some. A write
goes through the pod's pool to PostgreSQL, waits there for the log to be flushed (whoever commits meanwhile
shares the next flush), and is answered. The first write of a burst goes to Redis before and after that, and
the burst ends with a step that nobody waits for. The cost of a call falls with the number of calls under way
in its pod: they share statements, and pipelines, if they go to the same master (`Cost.among`).
`AsyncPostgresSaver` has one call at a time.
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
from itertools import count
from statistics import median, quantiles
from typing import Any, Final, Literal

import simpy

from capacity.figures import KINDS, THINKS_BEFORE, TURN, UNCACHED, Cost, Figures, Kind
from comparison.peers import OURS, POOL, POOL_SIZE
from comparison.turns import Durability

ENDED: Final = 0.95
FULL: Final = 0.98
"""Saturated: fewer turns end than this share of those that begin, and a core is busier than this."""

Steps = Generator[simpy.Event, Any, Any]
Contender = Literal["Glasspoint", "upstream, pool"]

STATEMENTS_AT_ONCE: Final = 32
"""Calls that a statement of Glasspoint's stands for, at most: see `l2/batching.py`."""

BURST_IDLE_MS: Final = 100.0
"""A burst ends when no write has come for so long: see `savers/bursts.py`."""

BURST_STEPS: Final = 3
"""BEGIN, CONFIRM, COMMIT."""

MODEL_SECONDS: Final = 2.0
TOOL_SECONDS: Final = 0.3
THINKING_SIGMA: Final = 0.5
HUMAN_SECONDS: Final = 30.0
"""Between an answer and the next question."""


@dataclass(frozen=True)
class System:
    """What is simulated.

    Attributes:
        redis_masters: How many masters share the entries: each has a core.
        postgres_cores: That PostgreSQL may use at once.
        round_trip_ms: To either server.
        shared_cores: All stand on one machine with so many cores, as in `make bench`; 0: on their own.
        hit_ratio: Of the reads of known conversations.
        thinks: Whether models and tools take their time. That of models is multiplied by `haste`.
    """

    contender: Contender = "Glasspoint"
    durability: Durability = "sync"
    pods: int = 1
    redis_masters: int = 1
    postgres_cores: int = 1
    round_trip_ms: float = 0.5
    shared_cores: int = 0
    hit_ratio: float = 1.0
    thinks: bool = True
    haste: float = 1.0

    @property
    def thinking_seconds(self) -> float:
        """What models and tools take in a turn, on the mean."""
        return 2 * self.haste * MODEL_SECONDS + TOOL_SECONDS if self.thinks else 0.0

    @property
    def settling_seconds(self) -> float:
        """How long it takes until as many turns end as begin: nearly all of them are shorter."""
        return 1.0 + 2 * self.thinking_seconds


@dataclass(frozen=True)
class Turn:
    """One turn: when it began and ended, and what it waited for its checkpoints."""

    began_ms: float
    ended_ms: float
    storage_ms: float


@dataclass
class Outcome:
    """What came of it, within a window of time: a turn counts where it ends.

    Attributes:
        began: How many turns arrived in the window.
        busy: The share of its cores' time that each server worked: `pod` is the mean of all pods.
    """

    turns: list[Turn] = field(default_factory=list)
    from_ms: float = 0.0
    until_ms: float = math.inf
    began: int = 0
    busy: dict[str, float] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Turns that ended, a second."""
        ended = sum(self.from_ms < each.ended_ms <= self.until_ms for each in self.turns)
        return 1000 * ended / (self.until_ms - self.from_ms)

    @property
    def is_saturated(self) -> bool:
        """Whether fewer turns ended than began, because a core had no time left: waiting grows on and on."""
        began = 1000 * self.began / (self.until_ms - self.from_ms)
        return self.per_second < ENDED * began and max(self.busy.values()) > FULL

    @property
    def turn_ms(self) -> float:
        """The median turn, thinking included."""
        return median(each.ended_ms - each.began_ms for each in self.turns)

    def storage_ms(self, cut: int, from_ms: float | None = None, until_ms: float | None = None) -> float:
        """A percentile of the storage part: of the turns that ended in the window.

        Args:
            from_ms, until_ms: Of the turns that began in this time instead.
        """
        values: Sequence[float]
        if from_ms is None or until_ms is None:
            values = [each.storage_ms for each in self.turns if self.from_ms < each.ended_ms <= self.until_ms]
        else:
            values = [each.storage_ms for each in self.turns if from_ms <= each.began_ms < until_ms]
        if len(values) < 2:
            return values[0] if values else math.nan
        return quantiles(values, n=100, method="inclusive")[cut - 1]


@dataclass
class Scope:
    """The entry of a conversation, while a turn of it is under way.

    Attributes:
        master: Which master has it.
        burst_until_ms: When its burst of writes ends, if no write comes.
    """

    master: int
    burst_until_ms: float = -math.inf


class Model:
    """One run of it."""

    def __init__(self, figures: Figures, system: System, seed: int, scale: Cost | None = None) -> None:
        """Args:
        scale: Multiplies the pod's time for a call; by default so that a turn takes what was measured.
        """
        self.env = simpy.Environment()
        self.system = system
        self._dice = random.Random(seed)
        self._slots = random.Random(seeded(seed, "slots"))
        if scale is None:
            scale = figures.scale(system.contender, system.durability)
        in_postgres = figures.postgres_scale(system.contender, system.durability, thinks=system.thinks)
        self._calls = {kind: figures.call(system.contender, kind, scale, in_postgres) for kind in KINDS}
        self._graph_ms = figures.graph_ms(system.durability)
        self._pieces = len(TURN[system.durability]) + 1
        self._flush_median, self._flush_sigma = figures.flush_ms
        machine = [simpy.Resource(self.env, system.shared_cores)] if system.shared_cores else []
        self._loops = [[simpy.Resource(self.env), *machine] for _ in range(system.pods)]
        self._redis = [[simpy.Resource(self.env), *machine] for _ in range(system.redis_masters)]
        self._burst_ms = figures.burst_ms(system.durability)
        self._postgres = [
            simpy.Resource(self.env, max(system.postgres_cores, system.shared_cores)),
            *machine,
        ]
        at_once = POOL_SIZE * STATEMENTS_AT_ONCE if system.contender == OURS else 1
        self._connections = [simpy.Resource(self.env, at_once) for _ in range(system.pods)]
        self._under_way = [0] * system.pods
        self._to_master = [[0] * system.redis_masters for _ in range(system.pods)]
        self._flushing: simpy.Event | None = None
        self._next_flush: simpy.Event | None = None
        self._worked = {"pod": 0.0, "redis": 0.0, "postgres": 0.0}
        self._before: dict[str, float] = dict(self._worked)
        self._cold: set[int] = set()
        self.flushed_at_ms = 0.0

    def turns(self, per_second: float, seconds: float, *, flushed: int = 0) -> Outcome:
        """Let turns arrive at random, until some time after the window that counts.

        It settles before the window, so that as many turns end as begin. Turns go on to arrive after it, so
        that those that began in it end under the same load.

        Args:
            seconds: How long the window is.
            flushed: Redis loses everything when a third of the window is over: so many conversations, of any
                of which each turn is one.
        """
        outcome, settling_ms = Outcome(), 1000 * self.system.settling_seconds
        outcome.from_ms = settling_ms
        outcome.until_ms = settling_ms + 1000 * seconds

        def arriving() -> Steps:
            for number in count():
                yield self.env.timeout(self._dice.expovariate(per_second / 1000))
                outcome.began += outcome.from_ms < self.env.now <= outcome.until_ms
                conversation = self._dice.randrange(flushed) if flushed else None
                self.env.process(self._turn(number % self.system.pods, outcome, conversation))

        self.env.process(arriving())
        self.env.run(until=outcome.from_ms)
        self._before = dict(self._worked)
        if flushed:
            self.env.run(until=outcome.from_ms + 1000 * seconds / 3)
            self._cold, self.flushed_at_ms = set(range(flushed)), self.env.now
        self.env.run(until=outcome.until_ms)
        self._close(outcome)
        if flushed:
            self.env.run(until=outcome.until_ms + settling_ms)
        return outcome

    def conversations(self, number: int, turns: int) -> Outcome:
        """So many conversations, each of which goes on as soon as a turn is over, as in `make bench`."""
        outcome = Outcome()

        def conversing() -> Steps:
            for _ in range(turns):
                yield self.env.process(self._turn(0, outcome, None))

        for _ in range(number):
            self.env.process(conversing())
        self.env.run()
        outcome.until_ms = self.env.now
        self._close(outcome)
        return outcome

    def reads(self, number: int, kind: Kind) -> float:
        """So many at once: milliseconds until all are answered."""
        for _ in range(number):
            self.env.process(self._call(0, kind, self._scope()))
        self.env.run()
        return float(self.env.now)

    def _close(self, outcome: Outcome) -> None:
        system = self.system
        cores = {"pod": system.pods, "redis": system.redis_masters, "postgres": system.postgres_cores}
        lasted = outcome.until_ms - outcome.from_ms
        outcome.busy = {
            name: (self._worked[name] - self._before[name]) / lasted / cores[name] for name in cores
        }

    # ------------------------------------------------------------------ a turn

    def _turn(self, pod: int, outcome: Outcome, conversation: int | None) -> Steps:
        started, waited, scope = self.env.now, 0.0, self._scope()
        thinks = THINKS_BEFORE[self.system.durability] if self.system.thinks else {}
        for i, planned in enumerate(TURN[self.system.durability]):
            yield from self._graph(pod)
            for what in thinks.get(i, "").split():
                yield self.env.timeout(self._thinking_ms(what))
            before = self.env.now
            kind, is_cached = self._kind(planned, conversation), i not in UNCACHED[self.system.durability]
            yield from self._call(pod, kind, scope, is_cached=is_cached)
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

    def _scope(self) -> Scope:
        return Scope(self._slots.randrange(self.system.redis_masters))

    def _call(self, pod: int, kind: Kind, scope: Scope, *, is_cached: bool = True) -> Steps:
        """One call.

        Args:
            is_cached: Whether what is read or written may have an entry in Redis.
        """
        call, loop = self._calls[kind], self._loops[pod]
        self._under_way[pod] += 1
        self._to_master[pod][scope.master] += 1
        among, at_master = self._under_way[pod], self._to_master[pod][scope.master]
        pod_ms, postgres_ms = (
            self._spread(each.among(among), call.sigma) for each in (call.pod_ms, call.postgres_ms)
        )
        read_ms = self._spread(call.redis_ms.among(at_master), call.sigma)
        step_ms = self._spread(self._burst_ms.among(at_master) / BURST_STEPS, call.sigma)
        yield from self._work("pod", loop, pod_ms / 2)
        if self.system.contender == POOL:
            with self._connections[pod].request() as alone:
                yield alone
                yield from self._statement(kind, postgres_ms)
        elif not is_cached:
            yield from self._on_connection(pod, kind, postgres_ms)
        elif kind == "hit":
            yield from self._to_redis(scope, read_ms)
        elif kind == "miss":
            yield from self._to_redis(scope, read_ms / 2)
            yield from self._on_connection(pod, kind, postgres_ms)
            yield from self._to_redis(scope, read_ms / 2)
        elif self.env.now < scope.burst_until_ms:
            yield from self._on_connection(pod, kind, postgres_ms)
            scope.burst_until_ms = self.env.now + BURST_IDLE_MS
        else:
            scope.burst_until_ms = math.inf
            yield from self._to_redis(scope, step_ms)
            yield from self._on_connection(pod, kind, postgres_ms)
            yield from self._to_redis(scope, step_ms)
            scope.burst_until_ms = self.env.now + BURST_IDLE_MS
            self.env.process(self._commit(scope, step_ms))
        yield from self._work("pod", loop, pod_ms / 2)
        self._under_way[pod] -= 1
        self._to_master[pod][scope.master] -= 1

    def _commit(self, scope: Scope, milliseconds: float) -> Steps:
        """The end of a burst."""
        while (left := scope.burst_until_ms - self.env.now) > 0:
            yield self.env.timeout(left)
        yield from self._to_redis(scope, milliseconds)

    def _on_connection(self, pod: int, kind: Kind, milliseconds: float) -> Steps:
        with self._connections[pod].request() as connection:
            yield connection
            yield from self._statement(kind, milliseconds)

    def _to_redis(self, scope: Scope, milliseconds: float) -> Steps:
        yield self.env.timeout(self.system.round_trip_ms)
        yield from self._work("redis", self._redis[scope.master], milliseconds)

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
        seconds = self.system.haste * MODEL_SECONDS if what == "model" else TOOL_SECONDS
        return self._spread(1000 * seconds, THINKING_SIGMA)


def seeded(seed: int, *what: object) -> int:
    """A seed of its own for each run, so that a run more does not change the others."""
    return random.Random(f"{seed} {what}").randrange(2**32)
