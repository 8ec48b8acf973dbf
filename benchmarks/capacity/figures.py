"""The measured figures: docs/performance.json, docs/scaling.json, docs/cluster.json, docs/cost.md."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from comparison.calls import FURTHER
from comparison.measuring import Metric
from comparison.peers import MEMORY, OURS, POOL
from comparison.turns import Durability

Kind = Literal["hit", "miss", "put", "put_writes"]
KINDS: Final[tuple[Kind, ...]] = ("hit", "miss", "put", "put_writes")

MANY: Final = 16
"""How many callers there were when "many" was measured."""

ONE_BY_ONE: Final = 4
"""So many calls of a process at once share nothing yet: see `glasspoint.model.load_detector`."""

_CROWDED: Final = {"hit": 64, "miss": MANY, "put": MANY, "put_writes": MANY}
_NINETY_NINTH: Final = 2.326

TURN: Final[dict[str, tuple[Kind, ...]]] = {
    # The root's read, its input, agent and tools; the subgraph, whose namespace is new, so that its read is a
    # miss; the answer. In the order of LangGraph's calls.
    "sync": (
        *("hit", "put", "put_writes", "put", "put_writes", "put", "put_writes", "put"),
        *("miss", "put", "put_writes", "put", "put_writes", "put"),
        *("put_writes", "put"),
    ),
    "exit": ("hit", "miss", "put"),
}
"""The calls of a turn of `comparison/turns.py`, by durability mode: `test_scaling.py` counts them."""

UNCACHED: Final = {"sync": range(8, 14), "exit": range(1, 2)}
"""Which of them concern the subgraph of a run, which has no entry in Redis: none of them asks Redis."""

THINKS_BEFORE: Final[dict[str, dict[int, str]]] = {
    # Before which calls something takes long: the model, the tool, the model that writes the answer.
    "sync": {4: "model", 6: "tool", 12: "model"},
    "exit": {1: "model tool", 2: "model"},
}


@dataclass(frozen=True)
class Cost:
    """What a quantity costs alone, and with many callers, who share what does not grow with them."""

    alone: float
    many: float

    def among(self, callers: int) -> float:
        """What it costs each of so many.

        More than `MANY` were not measured: they are taken to cost as much as `MANY`.
        """
        if callers <= ONE_BY_ONE:
            return self.alone
        callers = min(callers, MANY)
        shared = (self.alone - self.many) * MANY / (MANY - 1)
        return self.alone - shared + shared / callers if shared > 0 else self.many

    def times(self, other: Cost) -> Cost:
        """Both multiplied."""
        return Cost(self.alone * other.alone, self.many * other.many)


ONE: Final = Cost(1.0, 1.0)


@dataclass(frozen=True)
class Call:
    """One kind of call.

    Attributes:
        pod_ms, redis_ms, postgres_ms: Processor time.
        sigma: Of a lognormal distribution: how far single calls spread.
    """

    kind: Kind
    pod_ms: Cost
    redis_ms: Cost
    postgres_ms: Cost
    sigma: float


@dataclass(frozen=True)
class Entry:
    """A conversation's entry in Redis, in bytes."""

    messages: int
    plain: float
    zstd: float


@dataclass(frozen=True)
class Figures:
    """Everything measured, read from a folder."""

    performance: dict[str, Any]
    servers: dict[str, Any]
    cluster: dict[str, Any]
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, docs: Path) -> Figures:
        """Read them.

        Raises:
            ValueError: docs/cost.md has no table of entries any more.
        """
        measured = (
            json.loads((docs / f"{name}.json").read_text("utf-8"))
            for name in ("performance", "scaling", "cluster")
        )
        return cls(*measured, _entries((docs / "cost.md").read_text("utf-8")))

    def rounds(
        self, workload: str, contender: str, metric: Metric | Literal["calls"], **variant: Any
    ) -> list[float]:
        """What `make bench` has measured, a number for each round."""
        for each in self.performance["figures"]:
            if (each["workload"], each["contender"], each["variant"]) == (workload, contender, variant):
                found: list[float] = each["rounds"][metric]
                return found
        raise ValueError(f"docs/performance.json has no {workload} {variant} of {contender}")

    def bench(self, workload: str, contender: str, metric: Metric, **variant: Any) -> float:
        """The median of that."""
        return median(self.rounds(workload, contender, metric, **variant))

    def turn(
        self, contender: str, durability: Durability, conversations: int = MANY, *, thinks: bool = False
    ) -> dict[str, Any]:
        """What a turn takes of the servers.

        Args:
            conversations: How many at once: 1 or `MANY`.
            thinks: Whether models and tools take their time, so that a turn has several bursts of writes.
                That was measured with `MANY`.
        """
        wanted = (contender, durability, conversations, thinks)
        for each in self.servers["turns"]:
            if _key(each) == wanted:
                found: dict[str, Any] = each
                return found
        raise ValueError(f"docs/scaling.json has no {durability} turn of {contender}")

    def burst_ms(self, durability: Durability) -> Cost:
        """Processor time of Redis for a burst of writes: what a turn takes of Redis, without its reads.

        Alone, with models that answer at once, a turn has one burst. Among many, models take their time.
        """
        reads = self.redis_reads_ms(durability)
        alone = self.turn(OURS, durability, 1)["redis_ms"] - sum(each.alone for each in reads)
        many = self.turn(OURS, durability, thinks=True)["redis_ms"] - sum(each.many for each in reads)
        bursts = [len(bursts_of(durability, thinks=thinks)) for thinks in (False, True)]
        return Cost(max(0.0, alone) / bursts[0], max(0.0, many) / bursts[1])

    def redis_reads_ms(self, durability: Durability) -> list[Cost]:
        """Processor time of Redis for each read of a turn that asks it."""
        return [
            self.call(OURS, kind).redis_ms
            for number, kind in enumerate(TURN[durability])
            if kind in ("hit", "miss") and number not in UNCACHED[durability]
        ]

    def postgres_turn_ms(self, contender: str, durability: Durability, *, thinks: bool) -> Cost:
        """Processor time of PostgreSQL for a turn.

        Pauses make a turn dearer: it has more bursts, and a server that was idle wakes up. That was measured
        of turns that share little. Turns that share a lot are taken to become dearer in the same ratio.
        """
        alone, many, paused = (
            float(self.turn(contender, durability, count, thinks=pauses)["postgres_ms"])
            for count, pauses in ((1, False), (MANY, False), (MANY, True))
        )
        if not thinks or paused <= alone:
            return Cost(alone, many)
        return Cost(paused, many * paused / alone)

    def postgres_scale(self, contender: str, durability: Durability, *, thinks: bool) -> Cost:
        """What a call's time in PostgreSQL is multiplied by, so that the calls make up the measured turn."""
        turn = self.postgres_turn_ms(contender, durability, thinks=thinks)
        kinds = ["hit" if contender == POOL and each == "miss" else each for each in TURN[durability]]
        alone, many = (
            sum(self._server(contender, kind, count)["postgres_ms"] for kind in kinds) for count in (1, MANY)
        )
        return Cost(turn.alone / alone, turn.many / many)

    def redis_turn_ms(self, durability: Durability) -> float:
        """Processor time of Redis for a turn whose models take their time, to plan with.

        The worse of two: what was measured of turns that share some pipelines; and the read and the bursts of
        such a turn, each at what it takes alone, because calls of different pods, and steps to different
        masters, share nothing.
        """
        reads = self.redis_reads_ms(durability)
        bursts = len(bursts_of(durability, thinks=True))
        shares_nothing = sum(each.alone for each in reads) + bursts * self.burst_ms(durability).alone
        return max(float(self.turn(OURS, durability, thinks=True)["redis_ms"]), shares_nothing)

    def pod_turn_ms(self, contender: str, durability: Durability) -> Cost:
        """Processor time of a pod for a turn, LangGraph's included."""
        return Cost(*(self._turn_cpu_ms(contender, durability, n) for n in (1, MANY)))

    def graph_ms(self, durability: Durability) -> Cost:
        """LangGraph's part of that: nearly all of a turn without a server."""
        return self.pod_turn_ms(MEMORY, durability)

    def call(self, contender: str, kind: Kind, scale: Cost = ONE, postgres_scale: Cost = ONE) -> Call:
        """One kind of call.

        Args:
            scale: Multiplies the pod's processor time.
            postgres_scale: Multiplies PostgreSQL's.
        """
        workload = "hit" if kind == "miss" and contender == POOL else kind
        alone, crowd = (self._variant(workload, n) for n in (1, _CROWDED[workload]))
        p50, p99 = (self.bench(workload, contender, metric, **alone) for metric in ("p50_ms", "p99_ms"))
        pod = (self.bench(workload, contender, "cpu_ms", **each) for each in (alone, crowd))
        redis, postgres = (
            Cost(*(self._server(contender, workload, n)[name] for n in (1, MANY)))
            for name in ("redis_ms", "postgres_ms")
        )
        sigma = math.log(max(1.0, p99 / p50)) / _NINETY_NINTH
        return Call(kind, Cost(*pod).times(scale), redis, postgres.times(postgres_scale), sigma)

    def parts_ms(self, contender: str, durability: Durability) -> Cost:
        """A turn's processor time in a pod as the sum of its parts: single calls, and LangGraph."""
        calls = [self.call(contender, kind).pod_ms for kind in TURN[durability]]
        graph = self.graph_ms(durability)
        return Cost(
            graph.alone + sum(each.alone for each in calls), graph.many + sum(each.many for each in calls)
        )

    def scale(self, contender: str, durability: Durability) -> Cost:
        """What a call's processor time is multiplied by, so that the parts make up the measured turn."""
        graph, parts, turn = (
            self.graph_ms(durability),
            self.parts_ms(contender, durability),
            self.pod_turn_ms(contender, durability),
        )
        return Cost(
            *(
                max(0.1, (measured - of_graph) / (made - of_graph))
                for measured, made, of_graph in (
                    (turn.alone, parts.alone, graph.alone),
                    (turn.many, parts.many, graph.many),
                )
            )
        )

    @property
    def flush_ms(self) -> tuple[float, float]:
        """PostgreSQL's wait for the disk in a commit: the median, and the sigma of its spread."""
        p50, p99 = (max(0.01, self.servers["flush_ms"][name]) for name in ("p50", "p99"))
        return p50, math.log(max(1.0, p99 / p50)) / _NINETY_NINTH

    def _variant(self, workload: str, callers: int) -> dict[str, Any]:
        """Most writes of a turn are further ones of a burst. Older runs do not tell both kinds apart."""
        plain: dict[str, Any] = {"messages": 10, "callers": callers}
        in_burst = {**plain, "burst": FURTHER}
        has_bursts = any(
            (each["workload"], each["variant"]) == (workload, in_burst)
            for each in self.performance["figures"]
        )
        return in_burst if has_bursts else plain

    def _turn_cpu_ms(self, contender: str, durability: Durability, conversations: int) -> float:
        return self.bench("turn", contender, "cpu_ms", conversations=conversations, durability=durability)

    def _server(self, contender: str, kind: str, callers: int) -> dict[str, float]:
        for each in self.servers["calls"]:
            if (each["contender"], each["kind"], each["callers"]) == (contender, kind, callers):
                found: dict[str, float] = each
                return found if contender == OURS else {**found, "redis_ms": 0.0}
        raise ValueError(f"docs/scaling.json has no {kind} of {contender}")


def bursts_of(durability: Durability, *, thinks: bool) -> list[int]:
    """Return the calls of a turn that begin a burst of writes to the conversation's entry.

    Args:
        thinks: Whether models and tools take longer than a burst waits for its next write.
    """
    found, is_open = [], False
    for number, kind in enumerate(TURN[durability]):
        if thinks and number in THINKS_BEFORE[durability]:
            is_open = False
        if kind in ("put", "put_writes") and number not in UNCACHED[durability]:
            if not is_open:
                found.append(number)
            is_open = True
    return found


def _key(turn: dict[str, Any]) -> tuple[str, str, int, bool]:
    return turn["contender"], turn["durability"], turn["conversations"], turn["answer_ms"] > 0


def _entries(page: str) -> tuple[Entry, ...]:
    """The rows `| messages | state | entry | with zstd |` of docs/cost.md."""
    rows = re.findall(r"^\| ([\d,]+) \| [\d.]+ kB \| ([\d.]+) kB \| ([\d.]+) kB \|$", page, re.MULTILINE)
    if not rows:
        raise ValueError("docs/cost.md has no table of entries, by messages")
    return tuple(
        Entry(int(messages.replace(",", "")), 1000 * float(plain), 1000 * float(zstd))
        for messages, plain, zstd in rows
    )
