"""The graph that the server runs; its checkpointer is the server's, from langgraph.json."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, MessagesState, StateGraph

from glasspoint.demo.model import choose_chat_model

model = choose_chat_model()


async def answer(state: MessagesState) -> dict[str, Any]:
    """Answer from all that was said so far."""
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)
graph = builder.compile()
