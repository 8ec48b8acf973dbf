"""What telemetry costs a call: a hit and a put, with none of it, with metrics, and with traces.

    python benchmarks/telemetry.py [--quick] [--seed N] [--json FILE]

One caller, one process, states of 10 messages. Each configuration has a saver of its own, all on the same
servers:

- off: nobody listens.
- metrics: what a saver does by itself, `create_telemetry()` in a process without an OpenTelemetry SDK.
- 1 % sampled: the same with an SDK, `ParentBased(TraceIdRatioBased(0.01))`, a `BatchSpanProcessor` and an
  OTLP exporter (HTTP) to a receiver in another process.
- all sampled: the same with every call recorded.
- configured: `configure_telemetry()`, everything sampled, with the instrumentations that are installed, of
  Redis and psycopg, turned on. What these cost is not ours, so it has no budget.

In every round all of them take a turn, in random order, and each is compared with "off" of the same round:
a busy machine changes both alike. A figure is the median of its rounds, with the quartiles.

- call: the median call of a turn, in wall time: what a caller feels of it.
- turn: the wall time of the whole turn, a call; what it has recorded is sent before its clock stops. So it
  is what a process feels that is busy without a pause.
- cpu: the time of all threads of the process in the turn, the exporter's, too; the servers' is not included.

Servers: embedded ones. PostgreSQL has fsync off: a disk is slow, and would make a put's share look small.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from glasspoint import CachedPostgresSaver, Telemetry, configure_telemetry, create_telemetry
from glasspoint.demo.embedded import EmbeddedPostgres, EmbeddedRedis
from latency import Conversation, facts_of
from otlp_receiver import receiving, take_count

MESSAGES: Final = 10
CONVERSATIONS: Final = 16
OPERATIONS: Final = ("hit", "put")
BUDGETS: Final = {"metrics": 3, "1 % sampled": 6, "all sampled": 25}
"""Per cent of a hit."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, and calls of each operation that a turn is long."""

    rounds: int
    hits: int
    puts: int

    def calls(self, operation: str) -> int:
        return self.hits if operation == "hit" else self.puts


FULL: Final = Plan(rounds=60, hits=256, puts=64)
QUICK: Final = Plan(rounds=3, hits=32, puts=8)


@dataclass(frozen=True)
class Turn:
    """One turn of one configuration, milliseconds a call."""

    call: float
    turn: float
    cpu: float


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Figure:
    """One line of the table. `…_over` is per cent over "off" of the same round."""

    operation: str
    telemetry: str
    call_ms: Spread
    call_over: Spread
    turn_ms: Spread
    turn_over: Spread
    cpu_ms: Spread
    cpu_over: Spread
    budget: int | None


@dataclass
class Configuration:
    """A saver with its telemetry, and its conversations."""

    name: str
    saver: CachedPostgresSaver
    flush: Callable[[], object]
    turned_on: Callable[[], Any]
    """A block in which what is only for its turns is on."""
    conversations: list[Conversation] = field(default_factory=list)

    async def turn(self, operation: str, calls: int) -> Turn:
        """Make so many calls, one after the other."""
        prepared = [
            getattr(self, f"_{operation}")(self.conversations[i % CONVERSATIONS]) for i in range(calls)
        ]
        gc.collect()
        with self.turned_on():
            clock = [perf_counter()]
            cpu = process_time()
            for call, arguments in prepared:
                await call(*arguments)
                clock.append(perf_counter())
            self.flush()
            turn, cpu = perf_counter() - clock[0], process_time() - cpu
        each = statistics.median(end - start for start, end in pairwise(clock))
        return Turn(1000 * each, 1000 * turn / calls, 1000 * cpu / calls)

    def _hit(self, conversation: Conversation) -> tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]:
        return self.saver.aget_tuple, (conversation.config,)

    def _put(self, conversation: Conversation) -> tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]:
        put = conversation.next_put()
        named = {**conversation.config["configurable"], "checkpoint_id": put[1]["id"]}
        conversation.newest = {"configurable": named}
        return self.saver.aput, put


class Bench:
    """The configurations on their servers, and the rounds."""

    def __init__(self, postgres_url: str, redis_url: str, receiver_url: str, dice: random.Random) -> None:
        self.facts: dict[str, str] = {}
        self.spans: dict[str, int] = {}
        """Received of each configuration in its turns, all operations together."""
        self._postgres_url, self._redis_url = postgres_url, redis_url
        self._receiver_url = receiver_url
        self._dice = dice
        self._redis = Redis.from_url(redis_url)
        self._configurations: list[Configuration] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Bench]:
        async with AsyncExitStack() as opened:
            opened.push_async_callback(self._redis.aclose)
            await self._add(opened, "off", Telemetry("off", ()))
            await self._add(opened, "metrics", create_telemetry(registry=CollectorRegistry()))
            for name, sampler in (
                ("1 % sampled", ParentBased(TraceIdRatioBased(0.01))),
                ("all sampled", ParentBased(ALWAYS_ON)),
            ):
                provider = self._provider(sampler)
                opened.callback(provider.shutdown)
                await self._add(opened, name, _recording(provider), flush=provider.force_flush)
            await self._add_configured(opened)
            self.facts |= await facts_of(self._configurations[0].saver.vitals.pool, self._redis)
            yield self

    async def rounds(self, plan: Plan) -> dict[str, dict[str, list[Turn]]]:
        """Measure: operation -> configuration -> its turns."""
        taken: dict[str, dict[str, list[Turn]]] = {
            operation: {each.name: [] for each in self._configurations} for operation in OPERATIONS
        }
        take_count(self._receiver_url)
        for number in range(-2, plan.rounds):  # two more to warm up, which do not count
            for operation in OPERATIONS:
                order = self._dice.sample(self._configurations, len(self._configurations))
                for each in order:
                    turn = await self._checked_turn(each, operation, plan.calls(operation))
                    if number >= 0:
                        taken[operation][each.name].append(turn)
        return taken

    async def _checked_turn(self, configuration: Configuration, operation: str, calls: int) -> Turn:
        asked = await self._scripts_run()
        turn = await configuration.turn(operation, calls)
        expected = calls if operation == "hit" else 2 * calls  # a put begins and commits
        asked = await self._scripts_run() - asked
        if asked != expected:
            raise SystemExit(f"{calls} × {operation} were to ask Redis {expected} times, but did {asked}.")
        received = take_count(self._receiver_url)
        self.spans[configuration.name] = self.spans.get(configuration.name, 0) + received
        return turn

    async def _scripts_run(self) -> int:
        stats = await self._redis.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))

    def _provider(self, sampler: Sampler) -> TracerProvider:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{self._receiver_url}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return provider

    async def _add_configured(self, opened: AsyncExitStack) -> None:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self._receiver_url
        configured = opened.enter_context(configure_telemetry(service_name="benchmark", set_global=False))
        provider = configured.tracer_provider
        self.facts["configured"] = f"configured: with {', '.join(configured.instrumented)}"
        instrumentor = RedisInstrumentor()  # of all clients: so it is on only in these turns
        instrumentor.uninstrument()
        opened.callback(instrumentor.instrument)  # as `configured` has left it, which ends later

        @contextmanager
        def redis_instrumented() -> Iterator[None]:
            instrumentor.instrument(tracer_provider=provider)
            try:
                yield
            finally:
                instrumentor.uninstrument()

        await self._add(
            opened,
            "configured",
            _recording(provider),
            flush=provider.force_flush,
            turned_on=redis_instrumented,
        )

    async def _add(
        self,
        opened: AsyncExitStack,
        name: str,
        telemetry: Telemetry,
        *,
        flush: Callable[[], object] = lambda: None,
        turned_on: Callable[[], Any] = nullcontext,
    ) -> None:
        saver = await CachedPostgresSaver.create(
            self._postgres_url, self._redis_url, telemetry=telemetry, audit_ratio=0.0
        )
        opened.push_async_callback(saver.close)
        configuration = Configuration(name, saver, flush, turned_on)
        for i in range(CONVERSATIONS):
            # The same texts for all, and ids of one length.
            conversation = Conversation(
                saver, f"{len(self._configurations)}-{i:02}", MESSAGES, random.Random(i)
            )
            configuration.conversations.append(conversation)
        self._configurations.append(configuration)
        await configuration.turn("put", CONVERSATIONS)


def _recording(provider: TracerProvider) -> Telemetry:
    return create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)


def figures_of(taken: dict[str, dict[str, list[Turn]]]) -> list[Figure]:
    """Sum the turns up, each beside "off" of its round."""
    figures = []
    for operation, by_name in taken.items():
        for name, turns in by_name.items():
            summed: dict[str, Spread] = {}
            for measure in ("call", "turn", "cpu"):
                own = [getattr(turn, measure) for turn in turns]
                off = [getattr(turn, measure) for turn in by_name["off"]]
                summed[f"{measure}_ms"] = Spread.of(own)
                summed[f"{measure}_over"] = Spread.of(
                    [100 * (a / b - 1) for a, b in zip(own, off, strict=True)]
                )
            budget = BUDGETS.get(name) if operation == "hit" else None
            figures.append(Figure(operation, name, **summed, budget=budget))
    return figures


def table_of(figures: list[Figure]) -> Table:
    """The table, at most 80 columns wide."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("over off, %", "call", "turn", "cpu", "budget"):
        table.add_column(header, justify="left" if header == "over off, %" else "right", no_wrap=True)
    for operation in OPERATIONS:
        for figure in figures:
            if figure.operation == operation:
                table.add_row(*_row(figure), end_section=figure.telemetry == "configured")
    return table


def _row(figure: Figure) -> tuple[str, ...]:
    if figure.telemetry == "off":
        absolute = (figure.call_ms, figure.turn_ms, figure.cpu_ms)
        return f"{figure.operation}, off", *(f"{spread.median:.3f} ms" for spread in absolute), ""
    return (
        f"  {figure.telemetry}",
        *map(_told, (figure.call_over, figure.turn_over, figure.cpu_over)),
        "" if figure.budget is None else f"{figure.budget}",
    )


def _told(spread: Spread) -> str:
    digits = 1 if max(abs(spread.low), abs(spread.high)) < 100 else 0
    return f"{spread.median:+.{digits}f} ({spread.low:.{digits}f} … {spread.high:.{digits}f})"


async def run(plan: Plan, seed: int, postgres_url: str, redis_url: str, receiver_url: str) -> dict[str, Any]:
    """Measure and print; return everything as a JSON document."""
    console = Console(highlight=False)
    async with Bench(postgres_url, redis_url, receiver_url, random.Random(seed)).opened() as bench:
        for fact in bench.facts.values():
            console.print(fact, markup=False)
        console.print(
            f"{plan.rounds} rounds, after two that do not count; a turn is {plan.hits} hits or {plan.puts} "
            f"puts; {MESSAGES} messages; seed {seed}; load average {os.getloadavg()[0]:.1f}"
        )
        started = time.monotonic()
        taken = await bench.rounds(plan)
        figures = figures_of(taken)
        _print(console, table_of(figures))
        console.print(
            f"{time.monotonic() - started:.0f} s; load average {os.getloadavg()[0]:.1f}; spans received: "
            + ", ".join(f"{count:,} ({name})" for name, count in bench.spans.items() if count)
        )
        return {
            "facts": bench.facts,
            "plan": asdict(plan),
            "seed": seed,
            "spans": bench.spans,
            "figures": [asdict(figure) for figure in figures],
            "turns": {
                operation: {name: [asdict(turn) for turn in turns] for name, turns in by_name.items()}
                for operation, by_name in taken.items()
            },
        }


def _print(console: Console, table: Table) -> None:
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, rough figures")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the order of the turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]  # everything as it is by default
    with ExitStack() as servers:
        postgres = servers.enter_context(EmbeddedPostgres())
        redis = servers.enter_context(EmbeddedRedis())
        receiver_url = servers.enter_context(receiving())
        plan = QUICK if arguments.quick else FULL
        document = asyncio.run(run(plan, arguments.seed, postgres.url, redis.url, receiver_url))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
