"""The demo's LangGraph graph: an agent that recalls the conversation, answers, and summarises old messages.

    START -> recall (a subgraph: summarise -> gather) -> answer -> END

`recall` chooses what the model sees: the newest messages as they are, and a summary of all older ones. The
summary is the subgraph's own memory, in a scope of its own under the same thread. So one turn reads and
writes two scopes, as with a real agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph

from glasspoint.demo.model import SUMMARY_PROMPT

__all__ = ["AGENT_NAME", "NAMESPACES", "Answer", "ConversationGraph", "build_conversation", "say"]

AGENT_NAME = "glasspoint-demo"
NAMESPACES = ("", "recall")
"""The checkpoint namespaces of one conversation: the graph's own, and the subgraph's."""

_VERBATIM_MESSAGES = 12


class ConversationState(TypedDict):
    """One conversation: all its messages, and the `context` that the model sees in this turn."""

    messages: Annotated[list[AnyMessage], add_messages]
    context: list[AnyMessage]


class RecallState(TypedDict, total=False):
    """The subgraph's memory: `summary` covers the first `summarised` messages. `context` is its result."""

    messages: list[AnyMessage]
    summary: str
    summarised: int
    context: list[AnyMessage]


ConversationGraph = CompiledStateGraph[ConversationState, None, ConversationState, ConversationState]


@dataclass(frozen=True)
class Answer:
    """The agent's text, and the number of messages in the conversation, including this answer."""

    text: str
    message_count: int


def build_conversation(model: BaseChatModel, checkpointer: BaseCheckpointSaver[str]) -> ConversationGraph:
    """Return the graph, compiled with `checkpointer`."""

    async def answer(state: ConversationState) -> dict[str, list[AnyMessage]]:
        return {"messages": [await model.ainvoke(state["context"])]}

    graph = StateGraph(ConversationState)
    # checkpointer=True: the subgraph keeps its memory through all turns, in the namespace `recall`. Without
    # it, each turn would open a namespace of its own and forget the summary.
    graph.add_node("recall", _build_recall(model).compile(checkpointer=True))
    graph.add_node("answer", answer)
    graph.add_edge(START, "recall")
    graph.add_edge("recall", "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=checkpointer, name=AGENT_NAME)


async def say(graph: ConversationGraph, thread_id: str, text: str) -> Answer:
    """Run one turn: say `text` in the conversation `thread_id`, and return the agent's answer."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    state = await graph.ainvoke({"messages": [HumanMessage(text)], "context": []}, config)
    messages: list[AnyMessage] = state["messages"]
    return Answer(str(messages[-1].text), len(messages))


def _build_recall(model: BaseChatModel) -> StateGraph[RecallState, None, RecallState, RecallState]:
    async def summarise(state: RecallState) -> RecallState:
        until = max(0, len(state["messages"]) - _VERBATIM_MESSAGES)
        new = state["messages"][state.get("summarised", 0) : until]
        if not new:
            return {}
        reply = await model.ainvoke([SystemMessage(SUMMARY_PROMPT), *_known(state), *new])
        return {"summary": str(reply.text), "summarised": until}

    async def gather(state: RecallState) -> RecallState:
        return {"context": [*_known(state), *state["messages"][-_VERBATIM_MESSAGES:]]}

    graph = StateGraph(RecallState)
    graph.add_node("summarise", summarise)
    graph.add_node("gather", gather)
    graph.add_edge(START, "summarise")
    graph.add_edge("summarise", "gather")
    graph.add_edge("gather", END)
    return graph


def _known(state: RecallState) -> list[AnyMessage]:
    summary = state.get("summary")
    return [SystemMessage(f"Earlier in this conversation: {summary}")] if summary else []
