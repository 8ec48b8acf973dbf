"""What history costs: long threads, large tables.

The rows are made by PostgreSQL itself, in databases of their own, the same in both. Values are few and small,
because only their number matters. Autovacuum is off there, so that statistics are as old as the workload
says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import psycopg

from comparison.bench import Bench, Key, variant
from comparison.calls import Hot, only_hits, read
from comparison.measuring import Figure, Sample, Slice, clocked_apart
from comparison.peers import OURS, POOL, Peers
from comparison.servers import Databases
from glasspoint.l2.sql import query

CONTENDERS: Final = (OURS, POOL)
THREADS: Final = {10: 8}
"""How many threads have this depth; one if it is not here. A put makes a thread deeper."""
_DEEPEN: Final = """
WITH named AS (
    SELECT step,
           '1ef00000-0000-6000-8000-' || lpad(to_hex(step), 12, '0') AS id,
           '1ef00000-0000-6000-8000-' || lpad(to_hex(nullif(step - 1, 0)), 12, '0') AS parent,
           lpad(step::text, 32, '0') || '.0.5' AS version
    FROM generate_series(1, %(depth)s) AS step
), blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, channel, version, type, blob)
    SELECT %(thread)s, 'messages', version, 'msgpack', '\\x91a56d657373616765'::bytea FROM named
), writes AS (
    INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob)
    SELECT %(thread)s, id, 'task', 0, 'messages', 'msgpack', '\\x91a56d657373616765'::bytea FROM named
)
INSERT INTO checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT %(thread)s, id, parent,
       format('{"v": 4, "id": "%%s", "ts": "2026-01-01T00:00:00+00:00", "channel_values": {"turns": %%s}, '
              '"channel_versions": {"messages": "%%s", "turns": "%%s", "branch:to:agent": "%%s"}, '
              '"versions_seen": {"agent": {"branch:to:agent": "%%s"}}, "updated_channels": ["messages"]}',
              id, step, version, version, version, version)::jsonb,
       format('{"source": "loop", "step": %%s, "parents": {}}', step)::jsonb
FROM named
"""
"""A long thread, every checkpoint with a value and a pending write of its own."""

_WIDEN: Final = """
WITH named AS (
    SELECT 'filler-' || to_char(n / 100, 'FM000000') AS thread, n %% 100 + 1 AS step,
           '1ef00000-0000-6000-8000-' || lpad(to_hex(n %% 100 + 1), 12, '0') AS id
    FROM generate_series(0, %(rows)s - 1) AS n
), blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, channel, version, type, blob)
    SELECT thread, 'messages', lpad(step::text, 32, '0') || '.0.5', 'msgpack',
           '\\x91a56d657373616765'::bytea FROM named
    WHERE step %% 10 = 1
), writes AS (
    INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob)
    SELECT thread, id, 'task', 0, 'messages', 'msgpack', '\\x91a56d657373616765'::bytea FROM named
    WHERE step %% 10 = 1
)
INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
SELECT thread, id, checkpoint, metadata FROM named, (
    SELECT checkpoint, metadata FROM checkpoints ORDER BY checkpoint_id LIMIT 1
) AS like_this
"""
"""Many threads of a hundred checkpoints, every tenth with a value and a pending write. What stands in them is
read by nobody, and the same in all."""


async def fill(conninfo: str, statement: str, **params: Any) -> None:
    """Let PostgreSQL make rows of new threads.

    The statement counts as Glasspoint's own. A write of other software would make the sweeper drop the
    entries a moment later, in the midst of what is measured.
    """
    async with await psycopg.AsyncConnection.connect(conninfo) as conn:
        await conn.execute("SET LOCAL synchronous_commit = off")
        await conn.execute(query("own") + statement, params)


async def _ask_each(databases: Databases, *statements: str) -> None:
    for conninfo in (databases.ours, databases.upstream):
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
            for statement in statements:
                await conn.execute(statement)


async def history(bench: Bench) -> list[Figure]:
    """Threads of 10, 1,000 and 100,000 checkpoints; then tables of a million."""
    depths: Sequence[int] = bench.choose((10, 1_000, 100_000), (10, 10_000), (10, 100))
    total: int = bench.choose(1_000_000, 0, 200)
    async with (
        bench.more_databases("history") as databases,
        bench.more_peers(databases, CONTENDERS, "history") as peers,
    ):
        await _ask_each(
            databases,
            *(
                f"ALTER TABLE {table} SET (autovacuum_enabled = off)"
                for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
            ),
        )
        both = (databases.ours, databases.upstream)
        hot: dict[tuple[str, int], Hot] = {}
        for depth in depths:
            for i, name in enumerate(CONTENDERS):
                prefix = f"depth-{depth}-{i}"
                threads = THREADS.get(depth, 1)
                for number in range(threads):
                    # The same rows in both, so that their statistics are alike.
                    thread = f"{prefix}-{number:02}"
                    await asyncio.gather(*(fill(each, _DEEPEN, thread=thread, depth=depth) for each in both))
                hot[name, depth] = await Hot.made(peers[name], prefix, 10, threads)
        figures = await _deep(bench, peers, hot, "no")
        if not total:
            return figures
        await _ask_each(databases, "ANALYZE")
        figures += await _deep(bench, peers, hot, "yes")
        filled = sum(depth * THREADS.get(depth, 1) for depth in depths) * len(CONTENDERS)
        await asyncio.gather(*(fill(each, _WIDEN, rows=max(0, total - filled)) for each in both))
        await _ask_each(databases, "ANALYZE")
        return figures + await _large(bench, peers, total)


async def _deep(bench: Bench, peers: Peers, hot: dict[tuple[str, int], Hot], analyzed: str) -> list[Figure]:
    figures = []
    calls = bench.choose(16, 16, 4)
    measures: dict[str, Callable[[Hot], Awaitable[Sample]]] = {
        "hit, depth": lambda each: each.hits(calls, 1),
        "miss, depth": partial(misses, bench, calls=calls // 3),
        "put, depth": lambda each: each.puts_in_bursts(8, 1),
    }
    for workload, measure in measures.items():
        slices: dict[Key, Slice] = {
            (name, variant(depth=depth, analyzed=analyzed)): partial(measure, each)
            for (name, depth), each in hot.items()
        }
        if workload == "hit, depth":
            slices = {
                key: only_hits(peers, "hit", calls, each) if key[0] == OURS else each
                for key, each in slices.items()
            }
            for each in hot.values():
                await each.hits(len(each.conversations), 1)
        figures += await bench.measure(workload, slices, 3.5, writes=workload == "put, depth")
    return figures


async def misses(bench: Bench, hot: Hot, calls: int) -> Sample:
    """Read threads that Redis has just forgotten, one at a time."""
    reads, forgetting = [], []
    for i in range(calls):
        conversation = hot.conversations[i % len(hot.conversations)]
        thread_id = conversation.config["configurable"]["thread_id"]
        reads.append(partial(read, hot.saver, conversation.config, conversation.newest))
        forgetting.append(partial(bench.forget, f"-history-l1:*{thread_id}*"))
    return await clocked_apart(reads, forgetting)


async def _large(bench: Bench, peers: Peers, total: int) -> list[Figure]:
    """The same calls with few checkpoints in the tables, and with many."""
    hot = {
        (name, checkpoints): await Hot.made(found[name], f"large-{checkpoints}-{i}", 10, bench.threads)
        for checkpoints, found in (("few", bench.peers), (f"{total:,}", peers))
        for i, name in enumerate(CONTENDERS)
    }

    calls, many = bench.choose((32, 16), (32, 16), (4, 4))

    async def missed(each: Hot) -> Sample:
        await bench.forget()
        return await each.hits(calls, 1)

    figures = []
    measures: dict[tuple[str, int], Callable[[Hot], Awaitable[Sample]]] = {
        ("hit, tables", 1): lambda each: each.hits(calls, 1),
        ("miss, tables", 1): missed,
        ("put, tables", 1): lambda each: each.puts(calls, 1),
        ("put, tables", many): lambda each: each.puts(bench.threads, many),
    }
    for (workload, callers), measure in measures.items():
        slices: dict[Key, Slice] = {
            (name, variant(callers=callers, checkpoints=checkpoints)): partial(measure, each)
            for (name, checkpoints), each in hot.items()
        }
        figures += await bench.measure(workload, slices, 3.0, writes=workload == "put, tables")
    return figures
