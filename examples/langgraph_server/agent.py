"""The graph that the server runs; its checkpointer is the server's, from langgraph.json.

The server calls `graph` for each run, and enters what it returns: so each run is a turn, with one trace. It
also calls `graph` to read or to draw, which is no turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph_sdk.runtime import ServerRuntime

from glasspoint import conversation_turn
from glasspoint.demo.model import choose_chat_model

model = choose_chat_model()


async def answer(state: MessagesState) -> dict[str, Any]:
    """Answer from all that was said so far."""
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)
compiled = builder.compile()


@asynccontextmanager
async def graph(
    config: RunnableConfig, runtime: ServerRuntime[Any]
) -> AsyncIterator[CompiledStateGraph[Any, Any, Any, Any]]:
    """Provide the graph for a run, in a turn of the run's thread, or for another use."""
    thread_id = config.get("configurable", {}).get("thread_id")
    if runtime.execution_runtime is None or not thread_id:
        yield compiled
        return
    async with conversation_turn(str(thread_id), agent_name="agent"):
        yield compiled
