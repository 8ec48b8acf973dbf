"""What follows from the measured figures by arithmetic: the tables of docs/scaling.md that need no dice."""

from __future__ import annotations

import math
import statistics
from typing import Any, Final

from capacity.figures import MANY, TURN, Figures, bursts_of
from capacity.simulation import HUMAN_SECONDS, System
from comparison.masters import idle_rows, rows
from comparison.page import table
from comparison.peers import OURS, POOL, POOL_SIZE
from comparison.turns import Durability

TARGET: Final = 0.7
"""The share of its limit that a pod or a server is planned for: its load may still rise by 43 %."""

OWN_CODE_MS: Final = 10.0
"""What the application's own code takes of a pod in a turn, in an example."""

PODS_OF_A_CLUSTER: Final = 100
"""Of the largest example."""

POSTGRES_CORES: Final = 4
"""Of the PostgreSQL that stands behind a fleet of pods here."""

MODES: Final[tuple[Durability, ...]] = ("sync", "exit")

CONVERSATIONS_A_DAY: Final = 1_000_000
TURNS_A_CONVERSATION: Final = 5
PEAK: Final = 3
"""How many times the mean of the day its busiest hour has."""

_DAY_SECONDS: Final = 86_400
_LONGER_SECONDS: Final = 300
_TABLES: Final = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


class Arithmetic:
    """These tables."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def facts(self) -> str:
        """Where it was measured."""
        performance, servers = self._figures.performance, self._figures.servers
        flush, cluster = servers["flush_ms"], self._figures.cluster["facts"]
        lines = [
            f"Pods: docs/performance.json, {_version(performance)}, {performance['facts']['machine']}, "
            f"{performance['facts']['python']}, {performance['facts']['loop']}.",
            *(each for each in performance["notes"] if not each.startswith(("Spans sent", "A round trip"))),
            f"Servers: docs/scaling.json, {_version(servers)}, {servers['facts']['machine']}; "
            f"{servers['facts']['postgres']}; {servers['facts']['redis']}.",
            f"A commit waits {flush['p50']:.2f} ms for the disk (99 %: {flush['p99']:.1f} ms).",
            f"Redis Clusters: docs/cluster.json, {_version(self._figures.cluster)}, {cluster['machine']}; "
            f"{cluster['redis']}; {cluster['run']}.",
            f"The pod's turns again, in that run, on one Redis: {self._again()}.",
        ]
        return "".join(f"- {line}\n" for line in lines)

    def _again(self) -> str:
        """What turns took of a pod when clusters were measured, beside docs/performance.json."""
        found = []
        for each in self._figures.cluster["figures"]:
            if each["workload"] == "turn" and each["contender"] == "one Redis":
                durability, count = each["variant"]["durability"], each["variant"]["conversations"]
                turn = self._figures.pod_turn_ms(OURS, durability)
                found.append(
                    f"{durability}, {count} at once, {statistics.median(each['rounds']['cpu_ms']):.1f} ms "
                    f"(docs/performance.json: {turn.many if count == MANY else turn.alone:.1f})"
                )
        return "; ".join(found)

    def masters(self) -> str:
        """What a Redis Cluster costs, measured."""
        return table(*rows(self._figures.cluster))

    def idle(self) -> str:
        """What a saver takes that is not called, with one Redis and with a cluster."""
        return table(*idle_rows(self._figures.cluster))

    def turn(self) -> str:
        """What a turn takes: of the servers, while models take their time; of the pod, while they do not."""
        rows = []
        for durability in MODES:
            for contender in (OURS, POOL):
                taken, alone = self._turns(contender, durability)
                is_ours, pod = contender == OURS, self._figures.pod_turn_ms(contender, durability)
                rows.append(
                    [
                        f"{durability}, {contender}",
                        f"{pod.many:.1f} ms ({pod.alone:.1f})",
                        f"{taken['redis_ms']:.2f} ms ({alone['redis_ms']:.2f})" if is_ours else "",
                        f"{taken['redis_steps']:.1f} ({alone['redis_steps']:.1f})" if is_ours else "",
                        f"{taken['redis_wire_bytes'] / 1e3:.0f} kB" if is_ours else "",
                        f"{taken['postgres_ms']:.2f} ms ({alone['postgres_ms']:.2f})",
                        f"{taken['wal_bytes'] / 1e3:.1f} kB",
                    ]
                )
        head = [
            "a turn",
            "pod, CPU",
            "Redis, CPU",
            "Redis, steps",
            "Redis, wire",
            "PostgreSQL, CPU",
            "PostgreSQL, log",
        ]
        return table(head, rows)

    def carries(self) -> str:
        """How many turns a second each carries."""
        rows = []
        for durability in MODES:
            pod, redis, core = self.limits(durability)
            postgres = POSTGRES_CORES * core
            first = min(
                ("Redis", redis), (f"PostgreSQL, {POSTGRES_CORES} cores", postgres), key=lambda x: x[1]
            )
            rows.append(
                [
                    durability,
                    f"{TARGET * pod:,.0f} ({pod:,.0f})",
                    f"{TARGET * redis:,.0f} ({redis:,.0f}): {redis / pod:.1f} pods",
                    f"{TARGET * core:,.0f} ({core:,.0f}): {core / pod:.1f} pods",
                    f"{first[0]}, limit {first[1]:,.0f}",
                ]
            )
        head = ["target (limit), turns a second", "one pod", "one Redis", "a core of PostgreSQL"]
        head.append("behind pods, first full")
        return table(head, rows)

    def worked(self) -> str:
        """One line of arithmetic for each decision, with durability `sync`."""
        pod, redis, core = self.limits("sync")
        peak, crowd = self._peak(), PODS_OF_A_CLUSTER * TARGET * pod
        read = sum(each.alone for each in self._figures.redis_reads_ms("sync"))
        bursts, burst = len(bursts_of("sync", thinks=True)), self._figures.burst_ms("sync").alone

        def limit(milliseconds: float) -> str:
            most = 1000 / milliseconds
            return (
                f"Limit: 1,000 ms / {milliseconds:.5g} ms = {most:,.1f} turns a second. "
                f"Target: {TARGET} × {most:,.1f} = {TARGET * most:,.1f}."
            )

        def needed(rate: float, each: float) -> str:
            share = rate / TARGET / each
            return f"{rate:,.0f} / {TARGET * each:,.1f} = {share:.1f}, rounded up **{math.ceil(share)}**"

        masters = math.ceil(crowd / TARGET / self.limits("exit")[1])
        alone = self._figures.pod_turn_ms(OURS, "sync").alone
        own = OWN_CODE_MS + 1000 / pod
        lines = [
            f"**Pods.** A turn takes {1000 / pod:.5g} ms of a pod's core, among 16 turns at once. "
            f"{limit(1000 / pod)} For {peak:,.0f} turns a second: {needed(peak, pod)} pods.",
            f"**Pods, if the application's own code takes {OWN_CODE_MS:.0f} ms of a turn.** {limit(own)} "
            f"For {peak:,.0f} turns a second: {needed(peak, 1000 / own)} pods.",
            f"**Pods, if no core may be busier than {TARGET:.0%}.** A turn alone takes {alone:.5g} ms: "
            f"{TARGET} × 1,000 ms / {alone:.5g} ms = {TARGET * 1000 / alone:.1f} turns a second. "
            f"For {peak:,.0f} turns a second: {needed(peak, 1000 / alone)} pods.",
            f"**Masters of Redis.** A turn takes {1000 / redis:.5g} ms of Redis's core: a read of "
            f"{read:.4f} ms, and {bursts} bursts of {burst:.4f} ms. {limit(1000 / redis)} "
            f"For {peak:,.0f} turns a second: {needed(peak, redis)} master. "
            f"For {PODS_OF_A_CLUSTER} pods at their target, {crowd:,.0f} turns a second: "
            f"{needed(crowd, redis)}; with `exit`, "
            f"whose turn takes {1000 / self.limits('exit')[1]:.2f} ms, {masters}.",
            f"**Cores of PostgreSQL.** A turn takes {1000 / core:.5g} ms of a core. {limit(1000 / core)} "
            f"For {peak:,.0f} turns a second: {needed(peak, core)} cores. {POSTGRES_CORES} cores have the "
            f"limit {POSTGRES_CORES * core:,.0f}, and the target {TARGET * POSTGRES_CORES * core:,.0f}: "
            f"that of {POSTGRES_CORES * core / pod:.1f} pods.",
        ]
        return "".join(f"- {line}\n" for line in lines)

    def open(self) -> str:
        """What a pod has open at its target, while models think and people type."""
        rows = []
        for durability in MODES:
            rate = TARGET * self.limits(durability)[0]
            lasts = System().thinking_seconds + self._figures.pod_turn_ms(OURS, durability).many / 1000
            rows.append(
                [
                    durability,
                    f"{rate:,.1f}",
                    f"{rate * lasts:,.0f}",
                    f"{rate * (lasts + HUMAN_SECONDS):,.0f}",
                    f"{rate * (lasts + _LONGER_SECONDS):,.0f}",
                    f"{rate * self._connection_seconds(durability):.2f}",
                ]
            )
        head = ["durability", "turns a second", "turns under way"]
        between = [f"conversations, {each:.0f} s between turns" for each in (HUMAN_SECONDS, _LONGER_SECONDS)]
        return table([*head, *between, "connections in use, mean"], rows)

    def redis(self) -> str:
        """Conversations a GB."""
        rows = []
        for each in self._figures.entries:
            sizes = (each.plain, each.zstd)
            kilobytes = [f"{size / 1e3:,.1f} kB" for size in sizes]
            rows.append([f"{each.messages:,}", *kilobytes, *(f"{1e9 / size:,.0f}" for size in sizes)])
        return table(["messages", "entry", "with zstd", "conversations a GB", "with zstd"], rows)

    def million(self) -> str:
        """What a million turns leave behind, and how many a pod has in a day."""
        rows = []
        for durability in MODES:
            taken = self._figures.turn(OURS, durability)
            rows.append(
                [
                    durability,
                    *(f"{taken[f'{name}_rows']:,.1f} M" for name in _TABLES),
                    f"{sum(taken[f'{name}_bytes'] for name in _TABLES) / 1e3:,.1f} GB",
                    f"{taken['wal_bytes'] / 1e3:,.1f} GB",
                    f"{taken['redis_entries']:,.1f} M, {taken['redis_bytes'] / 1e3:,.1f} GB",
                    f"{TARGET * self.limits(durability)[0] * _DAY_SECONDS / 1e6:,.1f} M turns",
                ]
            )
        head = ["a million turns", *(f"`{name}`" for name in _TABLES), "tables grow by", "log"]
        return table([*head, "new entries in Redis", "a pod at its target, a day"], rows)

    def day(self) -> str:
        """What a million conversations a day need, each server at its target in the busiest hour."""
        peak = self._peak()
        entry = min(self._figures.entries, key=lambda each: abs(each.messages - 100))
        memory = [CONVERSATIONS_A_DAY * size / 1e9 for size in (entry.plain, entry.zstd)]
        columns = []
        for durability in MODES:
            taken = self._figures.turn(OURS, durability)
            pods, masters, cores = (math.ceil(peak / TARGET / each) for each in self.limits(durability))
            millions = CONVERSATIONS_A_DAY * TURNS_A_CONVERSATION / 1e6
            columns.append(
                [
                    f"{peak:,.0f}",
                    f"{pods:,}",
                    f"{masters:,}",
                    "{:,.0f} GB ({:,.0f} GB)".format(*memory),
                    f"{cores:,}",
                    f"{POOL_SIZE * pods:,}",
                    f"{millions * sum(taken[f'{name}_bytes'] for name in _TABLES) / 1e3:,.0f} GB",
                    f"{millions * taken['wal_bytes'] / 1e3:,.0f} GB",
                ]
            )
        names = [
            "turns a second, busiest hour",
            "pods",
            "masters of Redis, for their cores",
            f"memory of Redis: a day's conversations, {entry.messages} messages each (with zstd)",
            "PostgreSQL, cores",
            "connections of the pods' pools, at most",
            "PostgreSQL's tables grow in a day by",
            "PostgreSQL's log, a day",
        ]
        return table(["", *MODES], [[name, *values] for name, *values in zip(names, *columns, strict=True)])

    def limits(self, durability: Durability) -> tuple[float, float, float]:
        """Turns a second at which a pod, a Redis and a core of PostgreSQL do nothing else.

        A pod that is full has many calls under way, which share. At the servers, those of different pods
        share nothing, so that what counts there is a turn that shares nothing.
        """
        pod = self._figures.pod_turn_ms(OURS, durability).many
        postgres = self._figures.postgres_turn_ms(OURS, durability, thinks=True).alone
        return 1000 / pod, 1000 / self._figures.redis_turn_ms(durability), 1000 / postgres

    def _peak(self) -> float:
        """Turns a second in the busiest hour of the day."""
        return PEAK * CONVERSATIONS_A_DAY * TURNS_A_CONVERSATION / _DAY_SECONDS

    def _turns(self, contender: str, durability: Durability) -> tuple[dict[str, Any], dict[str, Any]]:
        """What turns with models that take their time take of the servers, and what one takes alone."""
        many = self._figures.turn(contender, durability, MANY, thinks=True)
        return many, self._figures.turn(contender, durability, 1)

    def _connection_seconds(self, durability: Durability) -> float:
        """How long a turn has a connection, if nobody shares one: the way, the statement, the flush."""
        taken = self._figures.postgres_turn_ms(OURS, durability, thinks=True).alone
        for kind in TURN[durability]:
            if kind != "hit":
                taken += System().round_trip_ms + (0.0 if kind == "miss" else self._figures.flush_ms[0])
        return taken / 1000


def _version(document: dict[str, Any]) -> str:
    """Which Glasspoint was measured."""
    packages: str = document["facts"]["packages"]
    return packages.partition(",")[0]
