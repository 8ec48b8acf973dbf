"""Whole turns: a graph as applications have it, run by LangGraph. By default, a model takes no time.

    START -> agent -> tools -> answer (a subgraph) -> END

Three supersteps: the agent asks for a tool, the tool answers, a subgraph writes the answer. The subgraph
checkpoints in a namespace of its own, as LangGraph has it by default. The conversation has twenty messages
from its first turn on, and is kept at them, so that a turn costs the same at any time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import Annotated, Any, Final, Literal, TypedDict
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

from comparison.bench import Bench, Key, variant
from comparison.conversations import TEXT
from comparison.measuring import Figure, Sample, Slice, clocked
from comparison.peers import OURS, Peers, Saver
from glasspoint import conversation_turn
from glasspoint.telemetry import Telemetry

Durability = Literal["sync", "async", "exit"]
DURABILITIES: Final[tuple[Durability, ...]] = ("sync", "async", "exit")
CONVERSATIONS: Final = 64
KEPT: Final = 20
"""Messages."""

Graph = CompiledStateGraph[Any, Any, Any, Any]


def _newest(before: list[AnyMessage], more: list[AnyMessage]) -> list[AnyMessage]:
    return (before + more)[-KEPT:]


class State(TypedDict):
    messages: Annotated[list[AnyMessage], _newest]


class Nodes:
    """What the graph's nodes do.

    Attributes:
        answer_seconds: How long a model or a tool takes to answer.
    """

    answer_seconds = 0.0

    async def agent(self, state: State) -> State:
        """What a model would say that asks for a tool."""
        await asyncio.sleep(self.answer_seconds)
        question = str(state["messages"][-1].content)
        call = {"name": "look_up", "args": {"question": question}, "id": str(uuid4()), "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call], id=str(uuid4()))]}

    def look_up(self, question: str) -> str:
        """Look something up."""
        time.sleep(self.answer_seconds)  # LangGraph runs a synchronous tool in a thread
        return f"{question} {TEXT}"

    async def write(self, state: State) -> State:
        """What a model would say when it has read the tool's answer."""
        await asyncio.sleep(self.answer_seconds)
        return {"messages": [AIMessage(f"{state['messages'][-1].content} {TEXT}", id=str(uuid4()))]}


def _earlier() -> list[AnyMessage]:
    """What was said before the first turn."""
    kinds = (HumanMessage, AIMessage)
    return [kinds[i % 2](f"Earlier: {TEXT}", id=str(uuid4())) for i in range(KEPT)]


def graph_of(saver: Saver, nodes: Nodes) -> Graph:
    """The graph, with this checkpointer."""
    writing = StateGraph(State)
    writing.add_node("write", nodes.write)
    writing.add_edge(START, "write").add_edge("write", END)
    graph = StateGraph(State)
    graph.add_node("agent", nodes.agent)
    graph.add_node("tools", ToolNode([tool(nodes.look_up)]))
    graph.add_node("answer", writing.compile())
    graph.add_edge(START, "agent").add_edge("agent", "tools")
    graph.add_edge("tools", "answer").add_edge("answer", END)
    return graph.compile(checkpointer=saver)


class Turns:
    """One contender's conversations, and turns of them.

    Attributes:
        nodes: What the graph does.
    """

    def __init__(self, saver: Saver, prefix: str, telemetry: Telemetry | None) -> None:
        """Args:
        telemetry: Whose traces a turn stands in, as an application with telemetry has it.
        """
        self.nodes = Nodes()
        self._graph = graph_of(saver, self.nodes)
        self._telemetry = telemetry
        self._numbers = count()
        self._begun: set[str] = set()
        self._threads = [f"{prefix}-{i:02}" for i in range(CONVERSATIONS)]

    async def sample(self, turns: int, conversations: int, durability: Durability) -> Sample:
        """So many turns, of so many conversations at once."""
        prepared = [partial(self._turn, self._threads[i], durability) for i in range(CONVERSATIONS)]
        calls = [prepared[i % CONVERSATIONS] for i in range(turns)]
        return await clocked([calls[i::conversations] for i in range(conversations)])

    async def _turn(self, thread_id: str, durability: Durability) -> None:
        question = f"Question {next(self._numbers)}?"
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        earlier = [] if thread_id in self._begun else _earlier()
        self._begun.add(thread_id)
        async with AsyncExitStack() as around:
            if self._telemetry is not None:
                turn = conversation_turn(thread_id, "agent", telemetry=self._telemetry)
                await around.enter_async_context(turn)
            answer = await self._graph.ainvoke(
                {"messages": [*earlier, HumanMessage(question, id=str(uuid4()))]},
                config,
                durability=durability,
            )
        if not answer["messages"][-1].content.startswith(question):
            raise SystemExit("A turn went on from another state: not measured.")


def turns_of(peers: Peers, prefix: str) -> dict[str, Turns]:
    """Conversations for each contender; Glasspoint's turns have a span round them."""
    return {
        name: Turns(saver, f"{prefix}-{i}", peers.telemetry if name == OURS else None)
        for i, (name, saver) in enumerate(peers.savers.items())
    }


def slices_of(
    found: dict[str, Turns], turns: int, conversations: int, durability: Durability, **more: Any
) -> dict[Key, Slice]:
    """A slice for each contender."""
    named = variant(conversations=conversations, durability=durability, **more)
    return {
        (name, named): partial(each.sample, turns, conversations, durability) for name, each in found.items()
    }


async def turn(bench: Bench) -> list[Figure]:
    """Whole turns, in each durability mode, and what they take of this process's processor and of Redis."""
    figures = []
    sizes: Sequence[tuple[int, int, float]] = bench.choose(
        ((1, 8, 9.0), (16, 48, 20.0)), ((1, 4, 9.0), (16, 32, 9.0)), ((1, 1, 0.0), (4, 4, 0.0))
    )
    durabilities = bench.choose(DURABILITIES, DURABILITIES, ("sync", "exit"))
    of_each = {each: turns_of(bench.peers, f"turn-{each}") for each in durabilities}
    for conversations, turns, seconds in sizes:
        for durability in durabilities:
            slices = slices_of(of_each[durability], turns, conversations, durability)
            figures += await bench.measure("turn", slices, seconds, writes=True, counts_redis=True)
    return figures
