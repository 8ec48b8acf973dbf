"""The conversation of the chaos tests: a real graph, with parallel tasks, a memory of its own, and a node
that stumbles after its siblings have finished.

    START -> plan -> left, right, stumbling, remember (a subgraph) -> join -> END
"""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph

__all__ = [
    "NAMESPACES",
    "Stumble",
    "StumbledError",
    "build_conversation",
    "databases_of",
    "question",
    "turns_answered",
]

NAMESPACES = ("", "remember")
"""The graph's own checkpoints, and the subgraph's."""

Stumble = Literal["", "fail", "die"]

_SIBLINGS = ("left", "right")


class StumbledError(Exception):
    """A node failed, as nodes do."""


class State(TypedDict, total=False):
    turn: int
    log: Annotated[list[str], operator.add]


class Remembered(TypedDict, total=False):
    turns: Annotated[list[str], operator.add]


class Memory(Remembered, total=False):
    turn: int


Ran = Callable[[str, RunnableConfig], None]
"""Told of each call of a node's function."""


def turns_answered(state: dict[str, Any]) -> list[int]:
    """The turns that the conversation holds, in the order in which they were answered."""
    return [int(entry.partition(" ")[0]) for entry in state.get("log", ()) if " answer " in entry]


def question(turn: int, database: str) -> dict[str, Any]:
    """Return the input of a turn."""
    return {"turn": turn, "log": [_message(turn, "question", database)]}


def databases_of(values: Iterable[Any]) -> list[str]:
    """Return the databases whose messages stand in some channels' values."""
    messages = (words for words in map(str.split, _texts(values)) if len(words) > 2 and words[0].isdigit())
    return sorted({words[2] for words in messages})


def _message(turn: int, name: str, database: str) -> str:
    return f"{turn} {name} {database}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable):
        for each in value:
            yield from _texts(each)


def build_conversation(
    saver: BaseCheckpointSaver[str],
    database: str,
    ran: Ran,
    stumble: Callable[[str, int], Awaitable[None]],
) -> Any:
    """Compile the graph.

    Args:
        database: The name of the saver's database; it stands in every message.
        ran: Told of each call of a node's function, as it begins.
        stumble: Awaited by the node that may fail, with the thread and the turn.
    """

    def node(name: str, *, stumbles: bool = False) -> Callable[..., Awaitable[State]]:
        async def work(state: State, config: RunnableConfig) -> State:
            ran(name, config)
            if stumbles:
                await stumble(config["configurable"]["thread_id"], state["turn"])
            else:
                await asyncio.sleep(random.uniform(0, 0.005))
            # Some turns say more than others, so that messages to the servers differ in size.
            turn = state["turn"]
            return {"log": [f"{_message(turn, name, database)} {'…' * (50 * (turn % 5))}"]}

        return work

    async def count(state: Memory, config: RunnableConfig) -> Memory:
        ran("count", config)
        return {"turns": [_message(state["turn"], "count", database)]}

    # It answers without `turn`: LangGraph resumes a subgraph from its own last checkpoint, and if the put of
    # this turn has failed, that is the one of the turn before.
    memory = StateGraph(Memory, output_schema=Remembered).add_node("count", count)
    memory.add_edge(START, "count").add_edge("count", END)
    builder = StateGraph(State).add_node("plan", node("plan")).add_node("answer", node("answer"))
    builder.add_edge(START, "plan").add_edge("answer", END)
    for name in _SIBLINGS:
        builder.add_node(name, node(name))
    builder.add_node("stumbling", node("stumbling", stumbles=True))
    builder.add_node("remember", memory.compile(checkpointer=True))
    parallel = [*_SIBLINGS, "stumbling", "remember"]
    for name in parallel:
        builder.add_edge("plan", name)
    builder.add_edge(parallel, "answer")
    return builder.compile(checkpointer=saver)
