"""Processes of a service that fall and go up again, and what is said in their conversations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from prometheus_client import CollectorRegistry

from glasspoint import FallbackSaver, Settings, create_telemetry, get_checkpointer
from states import config_of, value_of
from steps import another_process

KEY = "a key that Redis does not know"


@asynccontextmanager
async def pod(
    postgres_url: str, redis_url: str, registry: CollectorRegistry | None = None, **more: Any
) -> AsyncIterator[FallbackSaver]:
    """A process of a service, from its start to its end."""
    more = {"probe_interval": 0.1, "redis_timeout": 5.0, "l1_timeout": 5.0, "l1_signing_key": KEY, **more}
    settings = Settings(postgres_url=postgres_url, redis_url=redis_url, **more)
    telemetry = create_telemetry(registry=registry or CollectorRegistry())
    another_process()
    async with get_checkpointer(settings, telemetry=telemetry) as saver:
        yield saver


def chat(saver: Any) -> CompiledStateGraph[Any]:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [("ai", f"{len(state['messages'])} so far")]})
    return builder.add_edge(START, "answer").add_edge("answer", END).compile(checkpointer=saver)


async def say(saver: Any, thread_id: str, text: str) -> None:
    await chat(saver).ainvoke({"messages": [("user", text)]}, config_of(thread_id))


async def said(saver: Any, thread_id: str) -> list[str]:
    """What the user has said in a thread, as its state has it."""
    state = await chat(saver).aget_state(config_of(thread_id))
    return [each.content for each in state.values.get("messages", []) if each.type == "human"]


def drained(registry: CollectorRegistry) -> dict[str, float]:
    results = ("continued", "new", "set_aside", "refused")
    found = {}
    for result in results:
        labels = {"saver": "default", "result": result}
        found[result] = value_of(registry, "glasspoint_drained_threads_total", labels)
    return {result: count for result, count in found.items() if count}


async def threads_in(url: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        cursor = await conn.execute("SELECT DISTINCT thread_id FROM checkpoints ORDER BY 1")
        return [thread_id for (thread_id,) in await cursor.fetchall()]
