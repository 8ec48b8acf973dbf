"""docs/scaling.md's tables: what was measured, what follows from it, what the simulation says.

What is generated stands between `<!-- generated: NAME -->` and `<!-- end -->`, as in docs/performance.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import median
from typing import Final

from capacity.figures import Figures
from capacity.simulation import HUMAN_SECONDS, MODEL_SECONDS, TOOL_SECONDS, Contender, Model, System, seeded
from comparison.page import table
from comparison.peers import OURS, POOL, POOL_SIZE
from comparison.turns import Durability

SEED: Final = 7
"""Of the page; `benchmarks/scaling.py --seed` takes others."""

TURNS: Final = 300
"""Of each simulated run."""

TARGET: Final = 0.7
"""How busy a core may be: above it, waiting grows faster than the load."""

POSTGRES_CORES: Final = 4
PODS: Final = (1, 4, 8, 16, 32)
LOADS: Final = (0.25, 0.5, 0.75, 0.9, 1.1)
DAY: Final = 86_400
MODES: Final[tuple[Durability, ...]] = ("sync", "exit")

_GENERATED: Final = re.compile(r"(<!-- generated: ([\w ,]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Tables:
    """All of them, by name: see `NAMES`."""

    def __init__(self, figures: Figures, seed: int = SEED, turns: int = TURNS) -> None:
        self._figures = figures
        self._seed = seed
        self._turns = turns

    # ------------------------------------------------------------------ arithmetic

    def facts(self) -> str:
        """Where it was measured."""
        of_servers = self._figures.servers["facts"]
        flush = self._figures.servers["flush_ms"]
        lines = [
            f"Pods: docs/performance.json, measured on {self._figures.performance['facts']['machine']}.",
            *(f"Note of that run: {each}" for each in self._figures.performance["notes"] if "run" in each),
            f"Servers: docs/scaling.json, measured on {of_servers['machine']}; {of_servers['postgres']}; "
            f"{of_servers['redis']}.",
            f"A commit waits {flush['p50']:.2f} ms for that disk (99 %: {flush['p99']:.1f} ms).",
        ]
        return "".join(f"- {line}\n" for line in lines)

    def turn_takes(self) -> str:
        """What a turn takes of each."""
        rows = []
        for durability in MODES:
            for contender in (OURS, POOL):
                of = lambda name, c=contender, d=durability: self._figures.turn(c, d, name)  # noqa: E731
                rows.append(
                    [
                        f"{durability}, {contender}",
                        f"{self._figures.pod_turn_ms(contender, durability):.1f} ms",
                        f"{of('redis_ms'):.2f} ms" if contender == OURS else "",
                        f"{of('redis_wire_bytes') / 1e3:.0f} kB" if contender == OURS else "",
                        f"{of('postgres_ms'):.2f} ms",
                        f"{of('wal_bytes') / 1e3:.1f} kB",
                    ]
                )
        head = ["a turn", "pod, CPU", "Redis, CPU", "Redis, wire", "PostgreSQL, CPU", "PostgreSQL, log"]
        return table(head, rows)

    def carries(self) -> str:
        """Turns a second of each, and how many pods one of the others stands for."""
        rows = []
        for durability in MODES:
            pod, redis, postgres = self._a_second(durability)
            rows.append(
                [
                    durability,
                    f"{TARGET * pod:,.0f} (limit {pod:,.0f})",
                    f"{TARGET * redis:,.0f} ({redis:,.0f}): {redis / pod:.0f} pods",
                    f"{TARGET * postgres:,.0f} ({postgres:,.0f}): {postgres / pod:.0f} pods",
                    _first(
                        {"Redis": redis, f"PostgreSQL, {POSTGRES_CORES} cores": POSTGRES_CORES * postgres}
                    ),
                ]
            )
        head = ["durability", "one pod", "one Redis", "one core of PostgreSQL", "of the servers, first full"]
        return table(head, rows)

    def open_turns(self) -> str:
        """What a pod has open, at the target, while models think."""
        thinking = System().thinking_seconds
        rows = []
        for durability in MODES:
            pod = TARGET * self._a_second(durability)[0]
            each = self._figures.pod_turn_ms(OURS, durability) / 1000
            rows.append(
                [
                    durability,
                    f"{pod:,.1f}",
                    f"{pod * (thinking + each):,.0f}",
                    f"{pod * (thinking + each + HUMAN_SECONDS):,.0f}",
                    f"{pod * (thinking + each + 300):,.0f}",
                    f"{100 // POOL_SIZE}",
                ]
            )
        head = [
            "durability",
            "turns a second",
            "turns under way",
            f"conversations, {HUMAN_SECONDS:.0f} s between turns",
        ]
        return table(
            [*head, "with 300 s", f"pods that {100 - 100 % POOL_SIZE} connections suffice for"], rows
        )

    def redis_memory(self) -> str:
        """Conversations a GB."""
        rows = [
            [
                f"{each.messages:,}",
                *(f"{size / 1e3:,.1f} kB" for size in sizes),
                *(f"{1e9 / size:,.0f}" for size in sizes),
            ]
            for each in self._figures.entries
            for sizes in [(each.plain, each.zstd)]
        ]
        return table(["messages", "entry", "with zstd", "conversations a GB", "with zstd"], rows)

    def a_day(self) -> str:
        """What a million turns leave behind."""
        rows = []
        for durability in MODES:
            of = lambda name, d=durability: 1e6 * self._figures.turn(OURS, d, name)  # noqa: E731
            tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
            rows.append(
                [
                    durability,
                    *(f"{of(f'{name}_rows') / 1e6:,.0f} M" for name in tables),
                    f"{sum(of(f'{name}_bytes') for name in tables) / 1e9:,.1f} GB",
                    f"{of('wal_bytes') / 1e9:,.1f} GB",
                    f"{of('redis_entries') / 1e6:,.1f} M, {of('redis_bytes') / 1e9:,.1f} GB",
                    f"{TARGET * self._a_second(durability)[0] * DAY / 1e6:,.1f} M turns",
                ]
            )
        head = [
            "durability",
            "checkpoints",
            "values",
            "writes",
            "tables grow by",
            "log",
            "new entries in Redis",
        ]
        return table([*head, "one pod a day, at most"], rows)

    # ------------------------------------------------------------------ simulation

    def validated(self) -> str:
        """The model beside what was measured, both on one machine of two cores."""
        rows = []
        for contender in (OURS, POOL):
            parts, turn = (
                of(contender, "sync") for of in (self._figures.parts_ms, self._figures.pod_turn_ms)
            )
            rows.append(
                [
                    f"{contender}, CPU of a sync turn, from single calls: ms",
                    f"{turn:.1f}",
                    f"{parts:.1f}",
                    _off(parts, turn),
                    "",
                ]
            )
            for durability in MODES:
                for count in (1, 16, 64):
                    variant = {"conversations": count, "durability": durability}
                    outcome = self._model(
                        contender=contender, durability=durability, **_ONE_MACHINE
                    ).conversations(count, max(2, 96 // count))
                    measured = self._figures.bench("turn", contender, "per_second", **variant)
                    cpu = self._figures.bench("turn", contender, "cpu_ms", **variant)
                    name = f"{contender}, {durability}, {count} conversation{'s' * (count > 1)}: turns/s"
                    rows.append(
                        [
                            name,
                            f"{measured:.1f}",
                            f"{outcome.per_second:.1f}",
                            _off(outcome.per_second, measured),
                        ]
                        + [f"{measured * cpu / 1000:.0%}, {outcome.busy['pod']:.0%}"]
                    )
        measured = [
            1000 * calls / per_second
            for calls, per_second in zip(
                *(
                    self._figures.rounds("cold start", OURS, name, conversations=256, callers=256)
                    for name in ("calls", "per_second")
                ),  # type: ignore[arg-type]
                strict=True,
            )
        ]
        modelled = self._model(scale=1.0, **_ONE_MACHINE).reads(256, "miss")
        rows.append(
            ["Glasspoint, cold start, 256 conversations: ms", f"{median(measured):.0f}", f"{modelled:.0f}"]
            + [_off(modelled, median(measured)), ""]
        )
        return table(["", "measured", "model", "model / measured", "pod's core busy: measured, model"], rows)

    def rising(self) -> str:
        """One pod: from idle to saturated, with and without cache."""
        limit = self._a_second("sync")[0]
        rows = []
        systems: list[tuple[str, Contender, float]] = [
            ("Glasspoint, 95 % hits", "Glasspoint", 0.95),
            ("Glasspoint, no hit", "Glasspoint", 0.0),
            ("upstream, pool", "upstream, pool", 0.0),
        ]
        for name, contender, hit_ratio in systems:
            for load in LOADS:
                per_second = load * limit
                outcome = self._model(contender=contender, hit_ratio=hit_ratio).turns(per_second, self._turns)
                busy = [f"{outcome.busy[each]:.0%}" for each in ("pod", "redis", "postgres")]
                waits = [f"{outcome.storage_ms(cut):,.0f} ms" for cut in (50, 99)]
                rows.append([name, f"{per_second:.1f}", *busy, *waits])
        return table(["one pod", "turns a second", "pod", "Redis", "PostgreSQL, 1 core", "p50", "p99"], rows)

    def fleet(self) -> str:
        """More pods, each at the target: who is full first."""
        pod = TARGET * self._a_second("sync")[0]
        rows = []
        for pods in PODS:
            model = self._model(pods=pods, postgres_cores=POSTGRES_CORES, hit_ratio=0.95, thinks=False)
            outcome = model.turns(pods * pod, self._turns)
            busy = [f"{outcome.busy[each]:.0%}" for each in ("pod", "redis", "postgres")]
            waits = [f"{outcome.storage_ms(cut):,.0f} ms" for cut in (50, 99)]
            rows.append([f"{pods}", f"{pods * pod:,.0f}", *busy, *waits])
        return table(
            ["pods", "turns a second", "pods", "Redis", f"PostgreSQL, {POSTGRES_CORES} cores", "p50", "p99"],
            rows,
        )

    def flushed(self) -> str:
        """Redis loses everything: under load, and when all come at once."""
        per_second = TARGET * self._a_second("sync")[0]
        known = round(per_second * (HUMAN_SECONDS + System().thinking_seconds))
        model = self._model()
        outcome = model.turns(per_second, 2 * self._turns, flushed=known)
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
        """All read at the same moment, from a pod."""
        rows = []
        for count in (64, 256, 1024):
            kinds = [self._model(scale=1.0).reads(count, kind) for kind in ("hit", "miss")]
            rows.append([f"{count:,}", *(f"{each:,.0f} ms" for each in kinds)])
        return table(["reads at once", "all hits", "all misses"], rows)

    # ------------------------------------------------------------------ helpers

    def _a_second(self, durability: Durability) -> tuple[float, float, float]:
        """The limits of a pod, a Redis and a core of PostgreSQL."""
        return (
            1000 / self._figures.pod_turn_ms(OURS, durability),
            1000 / self._figures.turn(OURS, durability, "redis_ms"),
            1000 / self._figures.turn(OURS, durability, "postgres_ms"),
        )

    def _model(self, scale: float | None = None, **system: object) -> Model:
        made = System(**system)  # type: ignore[arg-type]
        return Model(self._figures, made, seeded(self._seed, made), scale)


_ONE_MACHINE: Final = {"shared_cores": 2, "round_trip_ms": 0.05, "thinks": False}

NAMES: Final[dict[str, Callable[[Tables], str]]] = {
    "facts": Tables.facts,
    "turn": Tables.turn_takes,
    "carries": Tables.carries,
    "open": Tables.open_turns,
    "redis": Tables.redis_memory,
    "day": Tables.a_day,
    "validated": Tables.validated,
    "rising": Tables.rising,
    "fleet": Tables.fleet,
    "flushed": Tables.flushed,
    "stampede": Tables.stampede,
}
"""What each generated part of the page is."""


def renewed(text: str, tables: Tables) -> str:
    """Return the page with its generated parts made anew."""
    return _GENERATED.sub(lambda found: f"{found[1]}\n{NAMES[found[2]](tables)}\n{found[3]}", text)


def _first(limits: dict[str, float]) -> str:
    name = min(limits, key=lambda each: limits[each])
    return f"{name}, at {limits[name]:,.0f} turns a second"


def _off(model: float, measured: float) -> str:
    return f"{model / measured:.2f}"
