"""What the triggers that note foreign writes cost our own: a put and a put_writes, with them and without.

    python benchmarks/triggers.py [--quick] [--seed N] [--json FILE]

One caller, one process. Each configuration has a database and a saver of its own, all on the same servers:

- without: `foreign_writes="ignore"`.
- with: the triggers as `setup()` makes them.
- transition tables: the same, but an INSERT is noted by a statement-level trigger with a transition table,
  as an UPDATE and a DELETE are. PostgreSQL copies each new row into such a table, also if WHEN lets the
  statement pass.

They alternate call by call, in random order. A figure is the median of all calls, with its quartiles, and the
median of the differences from the call of "without" beside it.

- call: wall time, what a caller waits.
- server: processor time of PostgreSQL's process for this saver (Linux only). A busy machine blurs it less.

Servers: embedded ones. PostgreSQL has fsync off: a disk is slow, and would make the triggers' share look
small.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from uuid import uuid4

import psycopg
from prometheus_client import CollectorRegistry

from comparison.conversations import Conversation, message
from comparison.measuring import Spread
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis

WITHOUT: Final = "without"
WITH: Final = "with"
COPYING: Final = "transition tables"
CONFIGURATIONS: Final = (WITHOUT, WITH, COPYING)
MESSAGES: Final = 10
LARGE_BYTES: Final = 1_000_000
WARM_UP: Final = 20
BUDGET_PER_CENT: Final = 2.0
"""What the server may take more for a put with 10 messages, of the call."""

_NOTE_BY_STATEMENT = """
CREATE OR REPLACE TRIGGER glasspoint_insert AFTER INSERT ON {table} REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT WHEN (coalesce(current_query(), '') NOT LIKE '/* glasspoint%')
EXECUTE FUNCTION glasspoint_note_foreign_writes()
"""

Call = Callable[[], Awaitable[Any]]


@dataclass
class Contender:
    """One configuration: its saver, and a conversation that goes on."""

    name: str
    url: str
    saver: CachedPostgresSaver
    backend: int
    conversation: Conversation
    call_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)

    async def measure(self, call: Call) -> None:
        """Call, and write down what it took."""
        server, started = _processor_us(self.backend), perf_counter()
        await call()
        self.call_us.append((perf_counter() - started) * 1e6)
        self.server_us.append(_processor_us(self.backend) - server)


@asynccontextmanager
async def contender(name: str, postgres: EmbeddedPostgres, redis: EmbeddedRedis) -> AsyncIterator[Contender]:
    """Open one."""
    url = postgres.create_database(name.replace(" ", "_"))
    saver = await CachedPostgresSaver.create(
        url,
        redis.url,
        key_prefix=f"bench-{name.replace(' ', '-')}",
        pool_max_size=1,
        audit_ratio=0.0,
        sweep_interval_seconds=3600.0,
        foreign_writes="ignore" if name == WITHOUT else "watch",
        telemetry=create_telemetry(registry=CollectorRegistry()),
    )
    try:
        if name == COPYING:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
                for table in ("checkpoints", "checkpoint_writes"):
                    await conn.execute(_NOTE_BY_STATEMENT.format(table=table))
        async with saver._l2.connections.checkout() as checked_out:
            backend = checked_out.info.backend_pid
        yield Contender(name, url, saver, backend, Conversation(saver, "thread", MESSAGES, random.Random(7)))
    finally:
        await saver.close()


def _processor_us(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000
    except OSError:
        return 0.0


# ------------------------------------------------------------------ operations: each returns what is timed


async def put(one: Contender, large: bytes | None) -> Call:
    arguments = one.conversation.next_put()
    one.conversation.after(arguments)
    config, checkpoint, metadata, versions = arguments
    if large is not None:
        version = versions["turns"]
        checkpoint["channel_values"]["document"] = large
        checkpoint["channel_versions"]["document"] = version
        versions = {**versions, "document": version}
    return lambda: one.saver.aput(config, checkpoint, metadata, versions)


async def put_writes(one: Contender, large: bytes | None) -> Call:
    """(The checkpoint before it is put here, and not timed: writes do not pile up.)"""
    await (await put(one, None))()
    value = large if large is not None else [message(i, random.Random(i)) for i in range(MESSAGES)]
    config, task_id = one.conversation.newest, str(uuid4())
    return lambda: one.saver.aput_writes(config, [("messages", value)], task_id)


OPERATIONS: Final = {"put": put, "put_writes": put_writes}


async def measure(calls: int, dice: random.Random) -> list[dict[str, Any]]:
    """Measure everything, and return the figures."""
    figures = []
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        for operation, prepare in OPERATIONS.items():
            for large in (None, dice.randbytes(LARGE_BYTES)):
                what = f"{operation}, {MESSAGES} messages" if large is None else f"{operation}, 1 MB"
                figures += await _measure_one(what, prepare, large, calls, dice, postgres, redis)
    return figures


async def _measure_one(
    what: str,
    prepare: Callable[[Contender, bytes | None], Awaitable[Call]],
    large: bytes | None,
    calls: int,
    dice: random.Random,
    postgres: EmbeddedPostgres,
    redis: EmbeddedRedis,
) -> list[dict[str, Any]]:
    async with (
        contender(WITHOUT, postgres, redis) as without,
        contender(WITH, postgres, redis) as with_triggers,
        contender(COPYING, postgres, redis) as copying,
    ):
        contenders = [without, with_triggers, copying]
        warm_up = min(WARM_UP, calls)
        for number in range(warm_up + calls):
            if number == warm_up:
                for each in contenders:
                    each.call_us.clear()
                    each.server_us.clear()
            for each in dice.sample(contenders, k=len(contenders)):
                await each.measure(await prepare(each, large))
    for each in contenders:
        postgres.drop_database(each.name.replace(" ", "_"))
    redis.flush()
    return [_figure(what, each, without) for each in contenders]


def _figure(what: str, one: Contender, without: Contender) -> dict[str, Any]:
    figure: dict[str, Any] = {"operation": what, "triggers": one.name, "calls": len(one.call_us)}
    for name in ("call_us", "server_us"):
        values, others = getattr(one, name), getattr(without, name)
        spread = Spread.of(values)
        over = statistics.median(a - b for a, b in zip(values, others, strict=True))
        figure[name] = {"low": spread.low, "median": spread.median, "high": spread.high, "over": over}
    base = statistics.median(without.call_us)
    figure["server_over_per_cent"] = 100 * figure["server_us"]["over"] / base
    return figure


def show(figures: list[dict[str, Any]]) -> None:
    """Print them."""
    print(f"µs: median (quartiles), and the difference from {WITHOUT!r}; % of a call's median\n")
    print(f"{'':19}{'call':>25}{'more':>9}{'server':>9}{'more':>8}{'%':>7}")
    for each in figures:
        if each["triggers"] == WITHOUT:
            print(each["operation"])
        call, server = each["call_us"], each["server_us"]
        spread = f"{call['median']:,.0f} ({call['low']:,.0f}-{call['high']:,.0f})"
        print(
            f"  {each['triggers']:17}{spread:>25}{call['over']:>+9,.0f}"
            f"{server['median']:>9,.0f}{server['over']:>+8,.0f}{each['server_over_per_cent']:>+7.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few calls: figures that mean nothing")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    figures = asyncio.run(measure(4 if arguments.quick else 400, random.Random(seed)))
    show(figures)
    if arguments.json is not None:
        document = {"seed": seed, "budget_per_cent": BUDGET_PER_CENT, "figures": figures}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
