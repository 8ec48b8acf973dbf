"""Threads to be pruned: random histories, a graph with delta channels, and what stands in the tables."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypedDict

import psycopg
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from psycopg.rows import tuple_row

from states import config_of

KEYS = {
    "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint::text, metadata::text",
    "checkpoint_blobs": "checkpoint_ns, channel, version, type, blob",
    "checkpoint_writes": "checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path",
}
NAMESPACES = ["", "", "", "memory", "call:1", "call:2", "call:1|inner:3"]
_EPOCH = datetime(1582, 10, 15, tzinfo=UTC)

Rows = dict[str, set[tuple[Any, ...]]]


async def rows_of_thread(postgres_url: str, thread_id: str) -> Rows:
    """All that the three tables hold of a thread, without its name."""
    found: Rows = {}
    async with await psycopg.AsyncConnection.connect(postgres_url, row_factory=tuple_row) as conn:
        for table, columns in KEYS.items():
            rows = await conn.execute(f"SELECT {columns} FROM {table} WHERE thread_id = %s", [thread_id])
            found[table] = set(await rows.fetchall())
    return found


def ids(rows: Rows, namespace: str = "") -> list[str]:
    """The checkpoints of a namespace, oldest first."""
    return sorted(row[1] for row in rows["checkpoints"] if row[0] == namespace)


def id_at(moment: datetime, number: int = 0) -> str:
    """A checkpoint id of that time, as LangGraph makes them."""
    ticks = (moment - _EPOCH) // timedelta(microseconds=1) * 10
    return f"{ticks >> 28:08x}-{ticks >> 12 & 0xFFFF:04x}-6{ticks & 0xFFF:03x}-8000-{number:012x}"


async def write_random_history(
    saver: AsyncPostgresSaver, thread_id: str, dice: random.Random, *, steps: int = 14
) -> None:
    """Forks, subgraphs with and without a memory, old and new formats, pending sends and early writes."""
    saved: dict[str, list[dict[str, Any]]] = {}
    formats = dice.choice([[4], [1], [1, 4]])
    for number in range(1, dice.randint(2, steps)):
        namespace = dice.choice(NAMESPACES)
        earlier = saved.setdefault(namespace, [])
        parent = dice.choice(earlier) if earlier and dice.random() < 0.3 else earlier[-1] if earlier else None
        checkpoint_id = f"1f000000-0000-6000-8000-{number:012x}"
        versions = dict(parent["versions"]) if parent else {}
        changed = dice.sample(["a", "b", "c", "flag"], dice.randint(1, 3))
        versions |= dict.fromkeys(changed, f"{number:032}.{dice.randrange(10)}")
        values = {
            c: dice.random() < 0.5 if c == "flag" else [thread_id[:1], c, v] for c, v in versions.items()
        }
        if dice.random() < 0.2:
            del values[dice.choice(list(values))]
        roots = saved.get("", [])
        root = dice.choice(roots)["id"] if roots and dice.random() < 0.8 else "not saved"
        checkpoint: Any = {
            "v": dice.choice(formats),
            "id": checkpoint_id,
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": values,
            "channel_versions": versions,
            "versions_seen": {},
        }
        metadata: Any = {"step": number, "parents": {"": root} if namespace else {}}
        if dice.random() < 0.1:  # of a checkpoint that never comes
            never = f"1f000000-0000-6000-8000-f{number:011x}"
            await saver.aput_writes(config_of(thread_id, namespace, never), [("a", number)], "never")
        if dice.random() < 0.2:  # early
            await saver.aput_writes(config_of(thread_id, namespace, checkpoint_id), [("a", number)], "early")
        config = config_of(thread_id, namespace, parent["id"] if parent else None)
        put = await saver.aput(config, checkpoint, metadata, {c: versions[c] for c in changed if c in values})
        if dice.random() < 0.5:
            channel = dice.choice(["a", "__pregel_tasks"])
            await saver.aput_writes(put, [(channel, number), ("b", None)], f"task {number}")
        earlier.append({"id": checkpoint_id, "versions": {c: v for c, v in versions.items() if c in values}})
    await saver.aput_writes(
        config_of(thread_id, "", "1f000000-0000-6000-8000-ffffffffffff"), [("a", 1)], "soon"
    )


def extend(value: list[Any], writes: list[list[Any]]) -> list[Any]:
    return [*value, *(each for write in writes for each in write)]


class State(TypedDict):
    log: Annotated[list[Any], DeltaChannel(extend, snapshot_frequency=3)]
    plain: str


class TwoChannels(State):
    slow: Annotated[list[Any], DeltaChannel(extend, snapshot_frequency=5)]


def make_graph(saver: BaseCheckpointSaver[Any], state: Any = State) -> CompiledStateGraph[Any]:
    """Two nodes at once write to one delta channel; another channel is written now and then."""
    builder = StateGraph(state)
    slow = {"slow": ["one"]} if state is TwoChannels else {}
    builder.add_node("one", lambda state: {"log": [f"one saw {len(state['log'])}"], **slow})
    builder.add_node("two", lambda state: {"log": [f"two saw {len(state['log'])}"]})
    builder.add_node("last", lambda state: {"plain": f"{len(state['log'])}"})
    for node in ("one", "two"):
        builder.add_edge(START, node).add_edge(node, "last")
    return builder.add_edge("last", END).compile(saver)
