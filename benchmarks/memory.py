"""What Glasspoint takes: memory of a process, bytes in Redis, queries and commands a turn.

    python benchmarks/memory.py [--quick | --smoke] [--calls N] [--json FILE]

- Conversations: a process of its own opens a saver, warms up, and writes and reads 10,000 conversations of 10
  messages once each, 16 at a time. Nothing may stay behind of a conversation.
- Traffic: another makes the calls of an hour at 10 a second (36,000, or --calls: a put, a put_writes and a
  read in turn, in 256 conversations), as fast as they go. Its memory must be flat over the second half.
  RSS is what the system has given the process; blocks are the objects' own, exact, counted by Python's
  allocator (`sys.getallocatedblocks`) after a garbage collection.
- Entries: what one takes in Redis (MEMORY USAGE of its key) against the bytes of the serialised state, plain
  and compressed, and what compressing costs: see `compression.py`.
- A turn of a ReAct-like graph (three supersteps, a tool, a subgraph with a memory of its own), the second and
  later ones of a conversation; without the journal's sweep, one statement a second and process. Statements
  are counted by PostgreSQL itself, which logs each (`log_statement`: pg_stat_statements is not in the wheel),
  commands by Redis (`INFO commandstats`): those sent, and those that the scripts do there.

Servers: embedded ones, PostgreSQL with fsync off. Texts are prose, see `realistic.py`. Seed 20.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from operator import add
from pathlib import Path
from typing import Annotated, Any, Final, TypedDict

import psutil
import psycopg
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from prometheus_client import CollectorRegistry
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

import compression
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from load import among_callers, opened
from realistic import Chat, messages

SEED: Final = 20
CONVERSATIONS: Final = 10_000
CALLS: Final = 36_000
SIZES: Final = (10, 100, 1000)
TRAFFIC_CHATS: Final = 256
TURNS: Final = 10


def main() -> None:
    """Start servers, measure, stop them."""
    options = _options()
    if options.child:
        gc.freeze()  # what is imported stays: to look through it before each sample takes longer than calls
        postgres, redis, count = options.child
        asyncio.run(_CHILDREN[options.part](postgres, redis, int(count)))
        return
    conversations, calls, rounds = {
        "full": (CONVERSATIONS, options.calls, 60),
        "quick": (500, 3_000, 5),
        "smoke": (20, 60, 1),
    }[options.amount]
    document: dict[str, Any] = {"seed": SEED, "python": sys.version.split()[0]}
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        document["conversations"] = _in_a_process("conversations", postgres, redis, conversations)
        _print_process(f"{conversations:,} conversations, written and read once each", document)
        document["traffic"] = _in_a_process("traffic", postgres, redis, calls)
        _print_process(f"{calls:,} calls in {TRAFFIC_CHATS} conversations", document)
        redis.flush()
        document["entries"] = asyncio.run(
            _entries(postgres, redis, rounds, SIZES if rounds > 1 else SIZES[:1])
        )
        _print_entries(document["entries"])
        document["turn"] = asyncio.run(_turns(postgres, redis))
        _print_turns(document["turn"])
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


# ------------------------------------------------------------------ a process of its own


def _in_a_process(part: str, postgres: EmbeddedPostgres, redis: EmbeddedRedis, count: int) -> dict[str, Any]:
    arguments = ["--part", part, "--child", postgres.create_database(part), redis.url, str(count)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def _conversations(postgres_url: str, redis_url: str, count: int) -> None:
    samples = [_sample("imported", 0)]
    async with opened(postgres_url, redis_url) as saver:
        samples.append(_sample("opened", 0))

        async def one(number: int) -> None:
            chat, dice = Chat(f"{number}"), random.Random(SEED + number)
            said = messages(10, dice)
            await saver.aput(*chat.next_put(said))
            await saver.aput_writes(chat.newest, [("messages", said[-1:])], "task")
            assert await saver.aget_tuple(chat.config)

        warm_up, step = count // 10, count // 10
        await among_callers(one, range(warm_up))
        samples.append(_sample("warmed up", 0))
        for part in range(10):
            start = warm_up + part * step
            await among_callers(one, range(start, start + step))
            samples.append(_sample("", (part + 1) * step))
    sys.stdout.write(json.dumps(samples))


async def _traffic(postgres_url: str, redis_url: str, count: int) -> None:
    samples = [_sample("imported", 0)]
    async with opened(postgres_url, redis_url) as saver:
        samples.append(_sample("opened", 0))
        chats = [Chat(f"{number}") for number in range(TRAFFIC_CHATS)]
        said = messages(10, random.Random(SEED))

        async def one(number: int) -> None:
            chat = chats[number % len(chats)]
            await saver.aput(*chat.next_put(said))
            await saver.aput_writes(chat.newest, [("messages", said[-1:])], "task")
            assert await saver.aget_tuple(chat.config)

        step = count // 3 // 10
        for part in range(10):
            started = time.perf_counter()
            await among_callers(one, range(part * step, (part + 1) * step))
            rate = 3 * step / (time.perf_counter() - started)
            samples.append(_sample("", 3 * (part + 1) * step) | {"calls_per_second": round(rate)})
    sys.stdout.write(json.dumps(samples))


_CHILDREN: Final = {"conversations": _conversations, "traffic": _traffic}


def _sample(what: str, done: int) -> dict[str, Any]:
    gc.collect()
    process = psutil.Process()
    return {
        "what": what,
        "done": done,
        "rss_mb": round(process.memory_info().rss / 1e6, 2),
        "blocks": sys.getallocatedblocks(),
        "tasks": len(asyncio.all_tasks()),
    }


# ------------------------------------------------------------------ entries


async def _entries(
    postgres: EmbeddedPostgres, redis: EmbeddedRedis, rounds: int, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    rows = []
    serde = JsonPlusSerializer()
    database = postgres.create_database("entries")
    async with (
        opened(database, redis.url) as off,
        opened(database, redis.url, l1_compression="zstd") as zstd,
        Redis.from_url(redis.url) as client,
    ):
        for size in sizes:
            put = Chat("any").next_put(messages(size, random.Random(SEED)))
            compared = await compression.compare({"off": off, "zstd": zstd}, client, size, rounds)
            state_bytes = len(serde.dumps_typed(put[1:3])[1])
            rows.append(
                {"messages": size, "state_bytes": state_bytes, **compared, "levels": compression.levels(size)}
            )
    return rows


# ------------------------------------------------------------------ a turn


async def _turns(postgres: EmbeddedPostgres, redis: EmbeddedRedis) -> list[dict[str, Any]]:
    rows = []
    for name, contender in (("Glasspoint", _glasspoint), ("AsyncPostgresSaver, pool", _upstream)):
        url = postgres.create_database(name)
        _let_log_statements(postgres.url, name)
        async with contender(url, redis.url) as saver, Redis.from_url(redis.url) as client:
            graph = build_graph(saver)

            async def turn(number: int, graph: Any = graph) -> None:
                config = {"configurable": {"thread_id": "t"}}
                await graph.ainvoke({"messages": [("user", f"question {number}")]}, config)

            await turn(0)
            log = postgres.directory / "log"
            read_from = log.stat().st_size
            await client.config_resetstat()
            for number in range(1, 1 + TURNS):
                await turn(number)
            stats = await client.info("commandstats")
            logged = log.read_bytes()[read_from:].decode().replace("\n\t", " ").splitlines()
            prefix = f"{name}|LOG:  "
            statements = [line.removeprefix(prefix) for line in logged if line.startswith(prefix)]
            commands = {each.removeprefix("cmdstat_"): value["calls"] for each, value in stats.items()}
            sent = commands.pop("evalsha", 0)
            for own in ("config", "config|resetstat", "info"):
                commands.pop(own, None)
            rows.append(
                {
                    "saver": name,
                    "statements": len(statements) / TURNS,
                    "kinds": _kinds(statements),
                    "redis_sent": sent / TURNS,
                    "redis_inside": sum(commands.values()) / TURNS,
                }
            )
    return rows


def _kinds(statements: list[str]) -> dict[str, float]:
    """How many of each a turn: by their first word and the tables that they name."""
    kinds = Counter[str]()
    for statement in statements:
        text = statement.partition(": ")[2]
        tables = sorted(set(re.findall(r"\b(?:from|into|update) (checkpoint\w*)", text, re.IGNORECASE)))
        kinds[f"{text.split()[0].upper()} {', '.join(tables)}".strip()] += 1
    return {kind: round(count / TURNS, 2) for kind, count in sorted(kinds.items())}


def _let_log_statements(postgres_url: str, database: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_line_prefix = '%d|'")
        connection.execute("ALTER SYSTEM SET log_parameter_max_length = 0")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(sql.Identifier(database))
        )


@asynccontextmanager
async def _glasspoint(postgres_url: str, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    saver = await CachedPostgresSaver.create(
        postgres_url,
        redis_url,
        telemetry=create_telemetry(registry=CollectorRegistry()),
        audit_ratio=0,
        sweep_interval_seconds=3600,
    )
    try:
        yield saver
    finally:
        await saver.close()


@asynccontextmanager
async def _upstream(postgres_url: str, _: str) -> AsyncIterator[AsyncPostgresSaver]:
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(postgres_url, min_size=1, max_size=10, kwargs=kwargs) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


class Noted(TypedDict):
    notes: Annotated[list[str], add]


class Notes(Noted):
    messages: list[AnyMessage]


@tool
def look_up(text: str) -> str:
    """Look something up."""
    return f"found: {text}"


def build_graph(saver: BaseCheckpointSaver[str]) -> Any:
    """Three supersteps: the agent, and beside it a subgraph with a memory of its own; a tool; the agent."""
    notes = StateGraph(Notes, output_schema=Noted)
    notes.add_node("note", lambda state: {"notes": [str(state["messages"][-1].content)]})
    notes.add_edge(START, "note")
    notes.add_edge("note", END)

    async def agent(state: MessagesState) -> dict[str, Any]:
        last = state["messages"][-1]
        if last.type == "tool":
            return {"messages": [AIMessage(str(last.content))]}
        call = {"name": "look_up", "args": {"text": last.content}, "id": "call", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("remember", notes.compile(checkpointer=True, name="notes"))
    graph.add_node("tools", ToolNode([look_up]))
    graph.add_edge(START, "agent")
    graph.add_edge(START, "remember")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(checkpointer=saver, name="chat")


# ------------------------------------------------------------------ what is printed


def _print_process(title: str, document: dict[str, Any]) -> None:
    samples = list(document.values())[-1]
    rated = any("calls_per_second" in each for each in samples)
    print(f"\n{title}\n{'':<14}{'RSS MB':>10}{'blocks':>12}{'tasks':>8}" + f"{'calls/s':>10}" * rated)
    for each in samples:
        rate = each.get("calls_per_second", "")
        what = each["what"] or f"{each['done']:,}"
        row = f"{what:<14}{each['rss_mb']:>10.1f}{each['blocks']:>12,}{each['tasks']:>8}{rate:>10}"
        print(row.rstrip())
    half, last = samples[-6], samples[-1]
    print(
        f"second half: {last['rss_mb'] - half['rss_mb']:+.1f} MB, "
        f"{last['blocks'] - half['blocks']:+,} blocks in {last['done'] - half['done']:,}"
    )


def _print_entries(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'entries':<16}{'state B':>10}{'Redis B':>12}{'of state':>10}{'zstd B':>12}{'of state':>10}")
    for each in rows:
        state, taken = each["state_bytes"], each["redis_bytes"]
        print(
            f"{each['messages']:>5} messages  {state:>10,}{taken['off']:>12,}{taken['off'] / state:>9.2f}x"
            f"{taken['zstd']:>12,}{taken['zstd'] / state:>9.2f}x"
        )
    print(f"\n{'with zstd':<24}{'CPU ms off':>12}{'zstd':>8}{'factor':>8}{'wall ms off':>14}{'zstd':>8}")
    for each in rows:
        for operation in ("hit", "put"):
            cpu, wall = each[f"{operation}_cpu_ms"], each[f"{operation}_wall_ms"]
            print(
                f"{each['messages']:>5} messages, {operation:<8}{cpu['off']:>12.2f}{cpu['zstd']:>8.2f}"
                f"{cpu['factor']:>7.2f}x{wall['off']:>14.2f}{wall['zstd']:>8.2f}"
            )
    print(
        f"\n{'CPU us':<20}{'level':>6}{'ratio':>8}{'pack':>9}{'serialise':>11}{'unpack':>8}{'deserial.':>11}"
    )
    for each in rows:
        of = each["levels"]
        for level in compression.LEVELS:
            made = of[f"level_{level}"]
            print(
                f"{each['messages']:>5} messages      {level:>6}{made['ratio']:>7.2f}x{made['pack_us']:>9.0f}"
                f"{of['serialise_us']:>11.0f}{made['unpack_us']:>8.0f}{of['deserialise_us']:>11.0f}"
            )


def _print_turns(rows: list[dict[str, Any]]) -> None:
    print(f"\na turn{'statements':>30}{'Redis, sent':>14}{'in scripts':>13}")
    for each in rows:
        print(
            f"{each['saver']:<24}{each['statements']:>12.1f}{each['redis_sent']:>14.1f}"
            f"{each['redis_inside']:>13.1f}"
        )
        for kind, count in each["kinds"].items():
            print(f"{count:>14.1f}  {kind}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    amounts = parser.add_mutually_exclusive_group()
    for amount, says in (("quick", "a tenth and less: half a minute"), ("smoke", "only whether it runs")):
        amounts.add_argument(f"--{amount}", action="store_const", const=amount, dest="amount", help=says)
    parser.set_defaults(amount="full")
    parser.add_argument("--calls", type=int, default=CALLS, help="of the traffic")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.add_argument("--part", choices=list(_CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
