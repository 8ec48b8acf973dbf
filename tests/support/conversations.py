"""A conversation whose turns build on each other, and the processes that go on with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import add
from typing import Annotated, Any, TypedDict

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry
from states import counts, exact, open_saver, open_upstream
from steps import until

NEVER = 3600.0
"""A sweep interval: this process notices nothing by itself while a test runs."""

SOON = 0.1
"""A sweep interval: this process notices what it has to notice while a test waits."""


class State(TypedDict):
    """What a conversation remembers: `note` is stored by the turn that brings one, and by no later one."""

    said: Annotated[list[str], add]
    note: list[str]


def _answer(state: State) -> dict[str, Any]:
    return {"said": [f"{state['said'][-1]}!"]}


_builder = StateGraph(State)
_builder.add_node("answer", _answer)
_builder.add_edge(START, "answer")
_builder.add_edge("answer", END)


class Conversation:
    """One thread, had through whichever saver."""

    def __init__(self, thread_id: str = "42") -> None:
        self.thread_id = thread_id
        self.config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}

    async def turn(self, saver: BaseCheckpointSaver[str], text: str, *, note: str | None = None) -> list[str]:
        """Say something; return all that was ever said, as this turn knows it."""
        graph = _builder.compile(checkpointer=saver)
        said: dict[str, Any] = {"said": [text]} | ({"note": [note]} if note else {})
        return _texts(await graph.ainvoke(said, self.config))  # type: ignore[call-overload]

    async def read(self, saver: BaseCheckpointSaver[str]) -> list[str]:
        """Return all that was ever said."""
        graph = _builder.compile(checkpointer=saver)
        return _texts((await graph.aget_state(self.config)).values)

    async def is_same_as_upstream(self, saver: BaseCheckpointSaver[str], database: str) -> bool:
        """Whether LangGraph's own saver reads the newest checkpoint the same, field by field."""
        async with open_upstream(database) as upstream:
            truth = await upstream.aget_tuple(self.config)
        return bool(exact(tuple(await saver.aget_tuple(self.config) or ())) == exact(tuple(truth or ())))


def _texts(state: dict[str, Any]) -> list[str]:
    note: list[str] = state.get("note", [])
    return [text for text in state.get("said", ()) if not text.endswith("!")] + note


@dataclass(frozen=True)
class Process:
    """A saver with figures of its own, as a process has them."""

    saver: CachedPostgresSaver
    registry: CollectorRegistry

    @property
    def identity_changes(self) -> dict[str, int]:
        """How often which reason was counted."""
        return dict(self._counted("l1_identity_changes_total", "reason"))

    @property
    def foreign_writes(self) -> dict[str, int]:
        """How many scopes other software has written, by table."""
        return dict(self._counted("foreign_writes_total", "table"))

    @property
    def hits(self) -> int:
        """How many reads Redis has answered."""
        return self._counted("l1_reads_total", "result")["hit"]

    async def round(self) -> None:
        """Do now what the sweeper does each second."""
        await self.saver._parts.sweeper.round()

    async def will_read(self, conversation: Conversation, expected: list[str]) -> None:
        """Wait until the conversation reads like this: within a sweep interval."""

        async def does() -> bool:
            return await conversation.read(self.saver) == expected

        await until(does, seconds=30)  # a busy machine

    def _counted(self, name: str, label: str) -> Counter[str]:
        return counts(self.registry, f"glasspoint_{name}", label)


@asynccontextmanager
async def process(database: str, redis_url: str, **options: Any) -> AsyncIterator[Process]:
    """One process, with its tables made."""
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry, **options) as saver:
        yield Process(saver, registry)


async def execute(database: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements as other software would; return the rows of the last one."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        for statement in statements:
            cursor = await conn.execute(statement)
        return await cursor.fetchall() if cursor.description else []


async def missing_values(database: str) -> list[tuple[str, str]]:
    """Return thread and channel of each value that a checkpoint names, and that PostgreSQL does not have."""
    return await execute(database, _MISSING_VALUES)


_MISSING_VALUES = """
SELECT DISTINCT c.thread_id, named.channel
FROM checkpoints AS c, jsonb_each_text(c.checkpoint -> 'channel_versions') AS named (channel, version)
WHERE named.channel IN ('said', 'note')  -- LangGraph's own channels come without a value, too
  AND NOT c.checkpoint -> 'channel_values' ? named.channel
  AND NOT EXISTS (
    SELECT FROM checkpoint_blobs AS b
    WHERE (b.thread_id, b.checkpoint_ns) = (c.thread_id, c.checkpoint_ns)
      AND (b.channel, b.version) = (named.channel, named.version)
  )
"""
