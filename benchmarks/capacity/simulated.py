"""What the simulation says: the other tables of docs/scaling.md."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any, Final

from capacity.arithmetic import MODES, PODS_OF_A_CLUSTER, POSTGRES_CORES, TARGET, Arithmetic
from capacity.figures import ONE, Cost, Figures
from capacity.simulation import HUMAN_SECONDS, Contender, Model, Outcome, System, seeded
from comparison.page import table
from comparison.peers import OURS, POOL
from comparison.turns import Durability

PODS: Final = (1, 4, 7, 10, 16)
LOADS: Final = (0.25, 0.5, TARGET, 0.9, 1.25)
"""Offered to one pod, as shares of its limit."""
AT_ONCE: Final = (64, 256, 1024)
MASTERS: Final = (6, 10, 14)

HASTE: Final = 0.15
"""Models take so much of their time in a simulated run: 0.3 s, so that bursts still end meanwhile."""

_CLUSTER: Final = System(pods=PODS_OF_A_CLUSTER, postgres_cores=64, hit_ratio=0.95, haste=HASTE)

TURNS: Final = 1000
"""Of the window that counts, in each simulated run, at least."""
_WINDOW_SECONDS: Final = 0.5
"""How long that window is, at least."""

# As `make bench` has it: one machine for all, no network, models that answer at once.
_ONE_MACHINE: Final[dict[str, Any]] = {"shared_cores": 2, "round_trip_ms": 0.05, "thinks": False}

_SYSTEMS: Final[tuple[tuple[str, Contender, float], ...]] = (
    ("Glasspoint, 95 % hits", "Glasspoint", 0.95),
    ("Glasspoint, no hit", "Glasspoint", 0.0),
    ("upstream, pool", "upstream, pool", 0.0),
)


class Simulated:
    """These tables."""

    def __init__(self, figures: Figures, seed: int, turns: int) -> None:
        """Args:
        turns: Of the window that counts, in each run.
        """
        self._figures = figures
        self._seed = seed
        self._turns = turns
        self._pod = Arithmetic(figures).limits("sync")[0]

    def validated(self) -> str:
        """The model beside what was measured, both on one machine of two cores."""
        rows = []
        for contender in (OURS, POOL):
            for durability in MODES:
                parts = self._figures.parts_ms(contender, durability)
                turn = self._figures.pod_turn_ms(contender, durability)
                rows += [
                    _compared(f"{contender}, {durability}, CPU of a turn, {n}: ms", measured, made)
                    for n, measured, made in (
                        ("alone", turn.alone, parts.alone),
                        ("16 at once", turn.many, parts.many),
                    )
                ]
                rows += [self._throughput(contender, durability, count) for count in (1, 16)]
        rows.append(self._cold_start())
        return table(["", "measured", "model", "model / measured", "pod's core: measured, model"], rows)

    def rising(self) -> str:
        """One pod, from idle to saturated, with and without cache."""
        rows = []
        for name, contender, hit_ratio in _SYSTEMS:
            for load in LOADS:
                per_second = load * self._pod
                model = self._model(contender=contender, hit_ratio=hit_ratio, haste=HASTE)
                outcome = model.turns(per_second, self._seconds(per_second))
                rows.append([name, f"{per_second:.1f} ({load:.0%})", *_told(outcome)])
        head = ["one pod", "offered, turns a second (of the limit)", "served", "pod", "Redis"]
        return table([*head, "PostgreSQL, 1 core", "p50", "p99"], rows)

    def fleet(self) -> str:
        """More pods, each at the target: who is full first."""
        rows = []
        for pods in PODS:
            per_second = pods * TARGET * self._pod
            model = self._model(pods=pods, postgres_cores=POSTGRES_CORES, hit_ratio=0.95, haste=HASTE)
            outcome = model.turns(per_second, self._seconds(per_second))
            rows.append([f"{pods}", f"{per_second:,.0f}", *_told(outcome)])
        head = ["pods", "offered, turns a second", "served", "pods' cores", "Redis"]
        return table([*head, f"PostgreSQL, {POSTGRES_CORES} cores", "p50", "p99"], rows)

    def cluster(self) -> str:
        """A hundred pods at the target, on a Redis Cluster."""
        per_second = _CLUSTER.pods * TARGET * self._pod
        rows = []
        for masters in MASTERS:
            system = replace(_CLUSTER, redis_masters=masters)
            model = Model(self._figures, system, seeded(self._seed, system))
            outcome = model.turns(per_second, self._seconds(per_second))
            rows.append([f"{masters}", f"{per_second:,.0f}", *_told(outcome)])
        head = ["masters", "offered, turns a second", "served", "pods' cores", "each master"]
        return table([*head, f"PostgreSQL, {_CLUSTER.postgres_cores} cores", "p50", "p99"], rows)

    def flushed(self) -> str:
        """Redis loses everything under load."""
        per_second = TARGET * self._pod
        known = round(per_second * (HUMAN_SECONDS + System().thinking_seconds))
        model = self._model(haste=HASTE)
        outcome = model.turns(per_second, 3 * self._seconds(per_second), flushed=known)
        at, half = model.flushed_at_ms, (outcome.until_ms - model.flushed_at_ms) / 2
        rows = [
            [name, *(f"{outcome.storage_ms(cut, start, end):,.0f} ms" for cut in (50, 99))]
            for name, start, end in (
                ("before", outcome.from_ms, at),
                (f"the first {half / 1000:.0f} s after", at, at + half),
                (f"the next {half / 1000:.0f} s", at + half, outcome.until_ms),
            )
        ]
        return table([f"{per_second:.1f} turns a second, {known:,} conversations", "p50", "p99"], rows)

    def stampede(self) -> str:
        """All read at the same moment, in one pod."""
        rows = []
        for count in AT_ONCE:
            lasted = [self._model(scale=ONE).reads(count, kind) for kind in ("hit", "miss")]
            rows.append([f"{count:,}", *(f"{each:,.0f} ms" for each in lasted)])
        return table(["reads at once", "until all are answered: hits", "misses"], rows)

    def _seconds(self, per_second: float) -> float:
        """How long a window has enough turns."""
        return max(_WINDOW_SECONDS * self._turns / TURNS, self._turns / per_second)

    def _throughput(self, contender: str, durability: Durability, count: int) -> list[str]:
        variant = {"conversations": count, "durability": durability}
        measured, cpu_ms = (
            self._figures.bench("turn", contender, "per_second", **variant),
            self._figures.bench("turn", contender, "cpu_ms", **variant),
        )
        model = self._model(contender=contender, durability=durability, **_ONE_MACHINE)
        outcome = model.conversations(count, max(1, self._turns // 3 // count))
        name = f"{contender}, {durability}, {count} conversation{'s' * (count > 1)}: turns/s"
        busy = f"{measured * cpu_ms / 1000:.0%}, {outcome.busy['pod']:.0%}"
        return _compared(name, measured, outcome.per_second, busy)

    def _cold_start(self) -> list[str]:
        calls, per_second = (
            self._figures.rounds("cold start", OURS, "calls", conversations=256, callers=256),
            self._figures.rounds("cold start", OURS, "per_second", conversations=256, callers=256),
        )
        measured = median(1000 * n / rate for n, rate in zip(calls, per_second, strict=True))
        model = self._model(scale=ONE, **_ONE_MACHINE)
        return _compared("Glasspoint, 256 misses at once: ms", measured, model.reads(256, "miss"))

    def _model(self, scale: Cost | None = None, **system: Any) -> Model:
        made = System(**system)
        return Model(self._figures, made, seeded(self._seed, made), scale)


def _compared(name: str, measured: float, model: float, busy: str = "") -> list[str]:
    return [name, f"{measured:,.1f}", f"{model:,.1f}", f"{model / measured:.2f}", busy]


def _told(outcome: Outcome) -> list[str]:
    busy = [f"{outcome.busy[each]:.0%}" for each in ("pod", "redis", "postgres")]
    if outcome.is_saturated:
        return ["not all", *busy, "grows", "grows"]
    return ["all", *busy, *(f"{outcome.storage_ms(cut):,.0f} ms" for cut in (50, 99))]
