"""How things are measured: slices of calls, whose order is shuffled anew in every round.

A machine changes from one moment to the next. So nothing is measured first and something else afterwards:
a round has a short slice of each contender, and contenders are compared within rounds.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from time import perf_counter, process_time
from typing import Any, Final, Literal

from glasspoint.savers.bursts import QUIET_SECONDS

Call = Callable[[], Awaitable[Any]]
"""One call, its arguments made already."""

Metric = Literal["p50_ms", "p99_ms", "per_second", "cpu_ms"]

Count = Literal["redis_steps", "redis_kb", "redis_ms"]

SETTLE_SECONDS: Final = QUIET_SECONDS + 0.1
"""How long Glasspoint is left alone until its background work for earlier writes is done: a burst ends after
`QUIET_SECONDS` without a write. Glasspoint then tells Redis about it."""


@dataclass(frozen=True)
class Sample:
    """One slice: what the calls of one contender took in one round.

    Attributes:
        calls: How many there were.
        p50_ms, p99_ms: What a caller waited for one.
        per_second: How many were done in a second, by all callers together.
        cpu_ms: What one took of this process's processor time, the servers' not included.
        statements: How many statements PostgreSQL was sent, where that was counted.
        redis_steps: How many commands Redis was sent for one, where that was counted.
        redis_kb: How many kB went to Redis and came from it for one, where that was counted.
        redis_ms: What one took of Redis's processor time, of all its servers, where that was counted.
    """

    calls: int
    p50_ms: float
    p99_ms: float
    per_second: float
    cpu_ms: float
    statements: int | None = None
    redis_steps: float | None = None
    redis_kb: float | None = None
    redis_ms: float | None = None


Slice = Callable[[], Awaitable[Sample]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Figure:
    """All rounds of one contender in one variant of a workload.

    Attributes:
        variant: What sets it apart, as `{"messages": 10, "callers": 1}`.
        group: Figures of one group were measured in the same rounds, so that they may be compared.
    """

    workload: str
    variant: dict[str, Any]
    contender: str
    group: int
    rounds: list[Sample] = field(repr=False)

    def spread(self, metric: Metric) -> Spread:
        """Sum the rounds up."""
        return Spread.of([getattr(each, metric) for each in self.rounds])

    def counted(self, count: Count) -> Spread | None:
        """Sum up what was counted; nothing, if it was not."""
        values = [value for each in self.rounds if (value := getattr(each, count)) is not None]
        return Spread.of(values) if values else None

    @property
    def is_throughput(self) -> bool:
        """Whether what counts is how many calls are done, not how long one takes."""
        return any(self.variant.get(name, 1) != 1 for name in ("callers", "conversations"))

    def as_json(self) -> dict[str, Any]:
        """With a list of each quantity, a number for each round."""
        rounds = {
            each.name: [_short(getattr(sample, each.name)) for sample in self.rounds]
            for each in fields(Sample)
        }
        return {**vars(self), "rounds": rounds}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Figure:
        """The opposite."""
        names, values = document["rounds"].keys(), zip(*document["rounds"].values(), strict=True)
        return cls(
            **{**document, "rounds": [Sample(**dict(zip(names, each, strict=True))) for each in values]}
        )


def _short(value: float | None) -> float | None:
    """Five digits are enough."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def ratio(of: Figure, to: Figure, metric: Metric) -> Spread:
    """How many times as much one is as another, round by round."""
    if of.group != to.group:
        raise ValueError(f"{of} and {to} were not measured in the same rounds")
    pairs = zip(of.rounds, to.rounds, strict=True)
    return Spread.of([getattr(a, metric) / getattr(b, metric) for a, b in pairs])


def speed(of: Figure, to: Figure) -> Spread:
    """How many times as fast one is as another: by throughput, or by the median where one caller waits."""
    return ratio(of, to, "per_second") if of.is_throughput else ratio(to, of, "p50_ms")


async def clocked(
    shares: Sequence[Sequence[Call]], *, counts_as: int = 1, before: Sequence[Call] = ()
) -> Sample:
    """Let callers make their calls, each caller one after the other, all callers at once.

    Args:
        shares: For each caller its calls.
        counts_as: How many calls one of these stands for: a batch.
        before: Calls that are made first, all at once, and are not measured.
    """
    seconds: list[float] = []
    _collect()
    await asyncio.gather(*(call() for call in before))
    started, started_cpu = perf_counter(), process_time()
    await asyncio.gather(*(_caller(calls, seconds) for calls in shares))
    return _sample(seconds, perf_counter() - started, process_time() - started_cpu, counts_as)


async def clocked_apart(calls: Sequence[Call], before: Sequence[Call | None]) -> Sample:
    """Let one caller make its calls. What stands `before` a call is done first, and is not measured."""
    seconds, cpu = [], 0.0
    _collect()
    for call, prepare in zip(calls, before, strict=True):
        if prepare is not None:
            await prepare()
        started, started_cpu = perf_counter(), process_time()
        await call()
        seconds.append(perf_counter() - started)
        cpu += process_time() - started_cpu
    return _sample(seconds, sum(seconds), cpu, 1)


async def settled(measure: Slice) -> Sample:
    """Measure a slice of calls that write, and wait until the work that they have left is done.

    The processor time of that work counts as the slice's. The next contender does not pay for it.
    """
    sample = await measure()
    started_cpu = process_time()
    await asyncio.sleep(SETTLE_SECONDS)
    later_ms = 1000 * (process_time() - started_cpu) / sample.calls
    return replace(sample, cpu_ms=sample.cpu_ms + later_ms)


def _collect() -> None:
    """Begin with nothing to collect. While nothing is frozen nothing is measured, and it would take long."""
    if gc.get_freeze_count():
        gc.collect()


def _sample(seconds: list[float], wall: float, cpu: float, counts_as: int) -> Sample:
    seconds.sort()
    calls = len(seconds) * counts_as
    return Sample(
        calls=calls,
        p50_ms=1000 * statistics.median(seconds),
        p99_ms=1000 * seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)],
        per_second=calls / wall,
        cpu_ms=1000 * cpu / calls,
    )


async def interleaved(
    slices: Mapping[Any, Slice], dice: random.Random, *, seconds: float, at_least: int, warm_up: bool = True
) -> dict[Any, list[Sample]]:
    """Measure as many rounds of all slices as there is time for, after one that warms up, and does not count.

    What the warm-up has left is frozen: garbage collection then costs what the calls leave behind.

    Args:
        seconds: How long to go on, but for so many rounds `at_least`.
    """
    taken: dict[Any, list[Sample]] = {name: [] for name in slices}
    names = list(slices)
    gc.collect()
    gc.freeze()
    try:
        for name in names if warm_up else ():
            await slices[name]()
        gc.freeze()
        started, rounds = perf_counter(), 0
        while rounds < at_least or perf_counter() - started < seconds:
            dice.shuffle(names)
            for name in names:
                taken[name].append(await slices[name]())
            rounds += 1
    finally:
        gc.unfreeze()
    return taken


async def _caller(calls: Sequence[Call], seconds: list[float]) -> None:
    for call in calls:
        started = perf_counter()
        await call()
        seconds.append(perf_counter() - started)
