"""One turn of an agent, in a process of its own: how an application looks that is traced end to end.

python agent_turn.py POSTGRES_URL REDIS_URL THREAD_ID TEXT; if TEXT begins with "fail", the tool fails.
"""

from __future__ import annotations

import asyncio
import sys
from operator import add
from typing import Annotated, Any, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from prometheus_client import REGISTRY, generate_latest

from glasspoint import CachedPostgresSaver, configure_telemetry, conversation_turn

AGENT = "concierge"


class Model(BaseChatModel):
    """Hands what the user said to the tool, and then answers with what the tool said."""

    @property
    def _llm_type(self) -> str:
        return "parrot"

    def _generate(self, messages: list[BaseMessage], *args: object, **kwargs: object) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            answer = AIMessage(str(last.content))
        else:
            call = {"name": "look_up", "args": {"text": last.content}, "id": "call", "type": "tool_call"}
            answer = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=answer)])


@tool
def look_up(text: str) -> str:
    """Look something up."""
    if text.startswith("fail"):
        raise LookupError(text)
    return f"found: {text}"


class Noted(TypedDict):
    notes: Annotated[list[str], add]


class Notes(Noted):
    messages: list[BaseMessage]


def build(saver: CachedPostgresSaver) -> Any:
    """START -> remember (a subgraph with a memory of its own) -> model <-> tools."""
    notes = StateGraph(Notes, output_schema=Noted)
    notes.add_node("note", lambda state: {"notes": [str(state["messages"][-1].content)]})
    notes.add_edge(START, "note")
    notes.add_edge("note", END)

    async def model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await Model().ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("remember", notes.compile(checkpointer=True, name="notes"))
    graph.add_node("model", model)
    graph.add_node("tools", ToolNode([look_up], handle_tool_errors=False))
    graph.add_edge(START, "remember")
    graph.add_edge("remember", "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(checkpointer=saver, name="agent")


async def main(postgres_url: str, redis_url: str, thread_id: str, text: str) -> None:
    async with (
        configure_telemetry(service_name=AGENT) as configured,
        CachedPostgresSaver.from_conn_string(postgres_url, redis_url=redis_url) as saver,
    ):
        await saver.setup()
        failed = ""
        try:
            async with conversation_turn(thread_id, agent_name=AGENT):
                await build(saver).ainvoke(
                    {"messages": [("user", text)]}, {"configurable": {"thread_id": thread_id}}
                )
        except LookupError as error:
            failed = type(error).__name__
        sys.stdout.write(" ".join([*configured.instrumented, failed]))
        sys.stderr.write(generate_latest(REGISTRY).decode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
