"""What telemetry costs a call: a hit and a put, with none of it, with metrics, and with traces.

    python benchmarks/telemetry.py [--quick | --smoke] [--live] [--seed N] [--json FILE]

One caller, one process, states of 10 messages. Each configuration has a saver of its own, all on the same
servers:

- off: nobody listens.
- metrics: what a saver does by itself, `create_telemetry()` in a process without an OpenTelemetry SDK.
- 1 % sampled: the same with an SDK, `ParentBased(TraceIdRatioBased(0.01))`, a `BatchSpanProcessor` and an
  OTLP exporter (HTTP) to a receiver in another process.
- 1 % of turns: the same, and the calls stand in turns, as an application's do (or in requests), of
  which one in a hundred is sampled. A turn's own span, one for 16 calls, is not in the figures.
- all sampled: every call recorded.
- configured: `configure_telemetry()`, everything sampled, with the instrumentations that are installed, of
  Redis and psycopg, turned on. What these cost is not ours, so it has no budget.

They alternate call by call, in random order, because a busy machine changes from one moment to the next. A
round is some hundred calls of each, and each is compared with "off" of the same round; a figure is the median
of the rounds, with their quartiles.

- call: the median call, wall time: what a caller waits.
- cpu: the process's time in the calls, the mean. The servers' is not in it.
- cpu, sent: that, and what it takes to encode and send what the calls have recorded. In an application the
  exporter's thread does this beside the calls; here it is done, and timed, between the rounds, so that what
  one has recorded slows no other.

At the end, `live_page` measures what the live page costs a hit; with `--live`, only that.

Servers: embedded ones. PostgreSQL has fsync off: a disk is slow, and would make a put's share look small.
What is there after the warm-up is frozen: garbage collection costs what the calls have left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Span
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from comparison.conversations import Conversation
from comparison.measuring import Spread
from comparison.servers import facts_of
from glasspoint import CachedPostgresSaver, Telemetry, configure_telemetry, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from live_page import LiveFigure, measure_live
from otlp_receiver import receiving, take_count

MESSAGES: Final = 10
CONVERSATIONS: Final = 16
"""Of each configuration, a multiple of which is called in each round."""
OPERATIONS: Final = ("hit", "put")
ROUND_TRIPS: Final = {"hit": 1, "put": 3}
"""To Redis, a call. A put is a burst of its own, which is ended before the call counts as answered."""
IN_TURNS: Final = "1 % of turns"
TURN_CALLS: Final = 16
BUDGETS: Final = {"metrics": 3, IN_TURNS: 6, "1 % sampled": 6, "all sampled": 25}
"""Per cent of a hit."""

Prepared = tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    hits: int
    """In a round, of each configuration."""
    puts: int

    def calls(self, operation: str) -> int:
        return self.hits if operation == "hit" else self.puts


FULL: Final = Plan(rounds=100, hits=128, puts=32)
QUICK: Final = Plan(rounds=3, hits=64, puts=16)
SMOKE: Final = Plan(rounds=2, hits=16, puts=4)


@dataclass(frozen=True)
class Round:
    """What a configuration took in one round, milliseconds a call."""

    call: float
    cpu: float


@dataclass(frozen=True)
class Figure:
    """One line of the table. `…_over` is per cent over "off" of the same round."""

    operation: str
    telemetry: str
    call_ms: Spread
    call_over: Spread
    cpu_ms: Spread
    cpu_over: Spread
    sending_ms: float
    """CPU time a call, the mean of all rounds."""
    sent_over: Spread
    budget: int | None


@dataclass
class Configuration:
    """A saver with its telemetry, and its conversations."""

    name: str
    saver: CachedPostgresSaver
    provider: TracerProvider | None
    conversations: list[Conversation] = field(default_factory=list)
    turn: Span = trace.INVALID_SPAN

    @contextmanager
    def around(self, number: int) -> Iterator[None]:
        """What stands around a call."""
        if self.name != IN_TURNS or self.provider is None:
            yield
            return
        if number % TURN_CALLS == 0:
            self.turn = self.provider.get_tracer("benchmark").start_span("invoke_agent")
        with trace.use_span(self.turn):
            yield
        if number % TURN_CALLS == TURN_CALLS - 1:
            self.turn.end()

    def prepare(self, operation: str, calls: int) -> list[Prepared]:
        """What is to be called, all arguments made already."""
        one = self._hit if operation == "hit" else self._put
        return [one(self.conversations[i % CONVERSATIONS]) for i in range(calls)]

    def send(self) -> float:
        """Send what was recorded; the CPU time in milliseconds."""
        started = process_time()
        if self.provider is not None:
            self.provider.force_flush()
        return 1000 * (process_time() - started)

    def _hit(self, conversation: Conversation) -> Prepared:
        return self.saver.aget_tuple, (conversation.config,)

    def _put(self, conversation: Conversation) -> Prepared:
        put = conversation.next_put()
        named = {**conversation.config["configurable"], "checkpoint_id": put[1]["id"]}
        conversation.newest = {"configurable": named}
        return self._put_and_commit, put

    async def _put_and_commit(self, *put: Any) -> None:
        await self.saver.aput(*put)
        await self.saver._bursts.end_all()


class Bench:
    """The configurations on their servers, and the rounds."""

    def __init__(self, postgres_url: str, redis_url: str, receiver_url: str, dice: random.Random) -> None:
        self.facts: dict[str, str] = {}
        self.spans: dict[str, int] = {}
        """How many the receiver was sent, of all configurations together."""
        self.configurations: list[Configuration] = []
        self._postgres_url, self._redis_url = postgres_url, redis_url
        self._receiver_url = receiver_url
        self._dice = dice
        self._redis = Redis.from_url(redis_url)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Bench]:
        async with AsyncExitStack() as opened:
            opened.push_async_callback(self._redis.aclose)
            await self._add(opened, "off", Telemetry("off", ()))
            await self._add(opened, "metrics", create_telemetry(registry=CollectorRegistry()))
            for name, sampler in (
                ("1 % sampled", ParentBased(TraceIdRatioBased(0.01))),
                (IN_TURNS, ParentBased(TraceIdRatioBased(0.01))),
                ("all sampled", ParentBased(ALWAYS_ON)),
            ):
                await self._add_recording(opened, name, self._provider(opened, sampler))
            await self._add_configured(opened)
            pool = self.configurations[0].saver.status.pool
            self.facts = await facts_of(pool, self._redis) | self.facts
            yield self

    async def measure(self, plan: Plan, operation: str) -> tuple[dict[str, list[Round]], dict[str, float]]:
        """Measure one operation: the rounds of each configuration, and its sending (ms a call)."""
        calls = plan.calls(operation)
        await self._round(operation, max(calls, 4 * CONVERSATIONS))
        self._send_all()
        gc.collect()
        gc.freeze()
        taken: dict[str, list[Round]] = {each.name: [] for each in self.configurations}
        sending = dict.fromkeys(taken, 0.0)
        take_count(self._receiver_url)
        for number in range(plan.rounds):
            for name, measured in (await self._round(operation, calls)).items():
                taken[name].append(measured)
            for each in self.configurations:
                # One trace in a hundred makes no batch: these are sent together, at the end.
                if not each.name.startswith("1 %") or number == plan.rounds - 1:
                    sending[each.name] += each.send()
        gc.unfreeze()
        self.spans[operation] = take_count(self._receiver_url)
        return taken, {name: spent / (plan.rounds * calls) for name, spent in sending.items()}

    async def _round(self, operation: str, calls: int) -> dict[str, Round]:
        prepared = {each.name: each.prepare(operation, calls) for each in self.configurations}
        wall: dict[str, list[float]] = {name: [] for name in prepared}
        cpu: dict[str, list[float]] = {name: [] for name in prepared}
        names = list(prepared)
        around = {each.name: each.around for each in self.configurations}
        asked = await self._scripts_run()
        for number in range(calls):
            self._dice.shuffle(names)
            for name in names:
                call, arguments = prepared[name][number]
                with around[name](number):
                    started, started_cpu = perf_counter(), process_time()
                    await call(*arguments)
                    ended, ended_cpu = perf_counter(), process_time()
                wall[name].append(ended - started)
                cpu[name].append(ended_cpu - started_cpu)
        asked = await self._scripts_run() - asked
        expected = calls * len(names) * ROUND_TRIPS[operation]
        if asked != expected:
            raise SystemExit(
                f"{operation}s were to ask Redis {expected} times, but did {asked}: not measured."
            )
        return {
            name: Round(1000 * statistics.median(wall[name]), 1000 * statistics.mean(cpu[name]))
            for name in prepared
        }

    async def _scripts_run(self) -> int:
        stats = await self._redis.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))

    def _send_all(self) -> None:
        for each in self.configurations:
            each.send()

    def _provider(self, opened: AsyncExitStack, sampler: Sampler) -> TracerProvider:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        opened.callback(provider.shutdown)
        exporter = OTLPSpanExporter(endpoint=f"{self._receiver_url}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return provider

    async def _add_configured(self, opened: AsyncExitStack) -> None:
        """The last one: psycopg's instrumentation is for all connections that are made from now on."""
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self._receiver_url
        os.environ["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "redis"  # of all clients; so of this one alone
        configured = opened.enter_context(configure_telemetry(service_name="benchmark", set_global=False))
        provider = configured.tracer_provider
        saver = await self._add_recording(opened, "configured", provider)
        RedisInstrumentor.instrument_client(saver.status.redis, tracer_provider=provider)
        self.facts["configured"] = f"configured: with {', '.join(('redis', *configured.instrumented))}"

    async def _add_recording(
        self, opened: AsyncExitStack, name: str, provider: TracerProvider
    ) -> CachedPostgresSaver:
        telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)
        return await self._add(opened, name, telemetry, provider)

    async def _add(
        self, opened: AsyncExitStack, name: str, telemetry: Telemetry, provider: TracerProvider | None = None
    ) -> CachedPostgresSaver:
        saver = await CachedPostgresSaver.create(
            self._postgres_url,
            self._redis_url,
            telemetry=telemetry,
            audit_ratio=0.0,
            l1_timeout_seconds=5.0,  # a machine that is busy for a moment is no outage
            write_deadline_seconds=20.0,
        )
        opened.push_async_callback(saver.close)
        number = len(self.configurations)
        conversations = [
            # The same texts for all, and ids of one length.
            Conversation(saver, f"{number}-{i:02}", MESSAGES, random.Random(i))
            for i in range(CONVERSATIONS)
        ]
        configuration = Configuration(name, saver, provider, conversations)
        self.configurations.append(configuration)
        for call, arguments in configuration.prepare("put", CONVERSATIONS):
            await call(*arguments)
        return saver


def figures_of(operation: str, taken: dict[str, list[Round]], sending: dict[str, float]) -> list[Figure]:
    """Sum the rounds up, each beside "off" of its round."""
    figures = []
    for name, rounds in taken.items():
        pairs = list(zip(rounds, taken["off"], strict=True))
        figures.append(
            Figure(
                operation,
                name,
                call_ms=Spread.of([each.call for each in rounds]),
                call_over=Spread.of([_over(each.call, off.call) for each, off in pairs]),
                cpu_ms=Spread.of([each.cpu for each in rounds]),
                cpu_over=Spread.of([_over(each.cpu, off.cpu) for each, off in pairs]),
                sending_ms=sending[name],
                sent_over=Spread.of([_over(each.cpu + sending[name], off.cpu) for each, off in pairs]),
                budget=BUDGETS.get(name) if operation == "hit" else None,
            )
        )
    return figures


def _over(value: float, base: float) -> float:
    return 100 * (value / base - 1)


def table_of(figures: list[Figure]) -> Table:
    """The table, at most 80 columns wide."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("over off, %", "call", "cpu", "cpu, sent", "budget"):
        table.add_column(header, justify="left" if header == "over off, %" else "right", no_wrap=True)
    for figure in figures:
        table.add_row(*_row(figure), end_section=figure.telemetry == "configured")
    return table


def _row(figure: Figure) -> tuple[str, ...]:
    if figure.telemetry == "off":
        call, cpu = (f"{spread.median:.3f} ms" for spread in (figure.call_ms, figure.cpu_ms))
        return f"{figure.operation}, off", call, cpu, cpu, ""
    shown = map(_told, (figure.call_over, figure.cpu_over, figure.sent_over))
    return f"  {figure.telemetry}", *shown, "" if figure.budget is None else f"{figure.budget}"


def _told(spread: Spread) -> str:
    digits = 1 if max(abs(spread.low), abs(spread.high)) < 100 else 0
    return f"{spread.median:+.{digits}f} ({spread.low:.{digits}f}…{spread.high:.{digits}f})"


def live_table_of(figure: LiveFigure) -> Table:
    """The table of the live page."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("live page, %", "call", "cpu", "own threads", "budget"):
        table.add_column(header, justify="left" if header == "live page, %" else "right", no_wrap=True)
    table.add_row("hit, no page", f"{figure.hit_ms.median:.3f} ms", "", "", "")
    shown = _told(figure.call_over), _told(figure.cpu_over), f"{figure.threads:.2f}"
    table.add_row("  a page is open", *shown, f"{figure.budget}")
    return table


async def run_live(plan: Plan, seed: int, postgres_url: str, redis_url: str) -> dict[str, Any]:
    """Measure the live page, and print it."""
    load = os.getloadavg()[0]
    figure = await measure_live(postgres_url, redis_url, rounds=plan.rounds, hits=plan.hits, seed=seed)
    told = (
        f"{plan.rounds} rounds of {plan.hits} hits of each, {figure.hits_a_second:.0f} hits a second; load "
        f"average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    print(textwrap.fill(told, 80))
    _print(live_table_of(figure))
    return asdict(figure)


async def run(plan: Plan, seed: int, postgres_url: str, redis_url: str, receiver_url: str) -> dict[str, Any]:
    """Measure and print; return everything as a JSON document."""
    figures: list[Figure] = []
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
    started, load = time.monotonic(), os.getloadavg()[0]
    async with Bench(postgres_url, redis_url, receiver_url, random.Random(seed)).opened() as bench:
        for operation in OPERATIONS:
            taken, sending = await bench.measure(plan, operation)
            figures += figures_of(operation, taken, sending)
            rounds[operation] = {name: [asdict(each) for each in own] for name, own in taken.items()}
        facts = bench.facts
    seconds = time.monotonic() - started
    received = " and ".join(f"{count:,} of {operation}s" for operation, count in bench.spans.items())
    for line in (
        *facts.values(),
        f"{plan.rounds} rounds of {plan.hits} hits or {plan.puts} puts of each; {MESSAGES} messages",
        f"seed {seed}; {seconds:.0f} s; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after",
        f"spans received: {received}",
    ):
        print(textwrap.fill(line, 80))
    _print(table_of(figures))
    return {
        "facts": facts,
        "plan": asdict(plan),
        "seed": seed,
        "spans": bench.spans,
        "figures": [asdict(figure) for figure in figures],
        "rounds": rounds,
    }


def _print(table: Table) -> None:
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(plan=FULL)
    for name, plan, says in (
        ("--quick", QUICK, "seconds instead of minutes, rough figures"),
        ("--smoke", SMOKE, "only whether it runs"),
    ):
        parser.add_argument(name, dest="plan", action="store_const", const=plan, help=says)
    parser.add_argument("--live", action="store_true", help="only what the live page costs")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the order of the calls")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]  # everything as it is by default
    with ExitStack() as servers:
        postgres = servers.enter_context(EmbeddedPostgres())
        redis = servers.enter_context(EmbeddedRedis())
        receiver_url = servers.enter_context(receiving())
        plan = arguments.plan
        document: dict[str, Any] = {}
        if not arguments.live:
            document = asyncio.run(run(plan, arguments.seed, postgres.url, redis.url, receiver_url))
        document["live"] = asyncio.run(run_live(plan, arguments.seed, postgres.url, redis.url))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
