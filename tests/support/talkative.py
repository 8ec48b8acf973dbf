"""A graph whose conversations have everything that a history can hold."""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send, interrupt


class State(TypedDict, total=False):
    text: str
    parts: list[str]


def talkative(saver: BaseCheckpointSaver[Any]) -> Any:
    """Subgraphs of both kinds, tasks that were sent, and a question that waits for its answer."""

    def ask(state: State) -> State:
        return {"text": f"{state['text']} {interrupt('which one?')}"}

    inner = StateGraph(State).add_node("ask", ask).add_edge(START, "ask").add_edge("ask", END)
    keeping = StateGraph(State).add_node("keep", lambda state: {"parts": ["kept"]}).add_edge(START, "keep")
    graph = StateGraph(State)
    graph.add_node("fan", lambda state: {"text": "fanned"})
    graph.add_node("one", lambda state: None)
    graph.add_node("asks", inner.compile())
    graph.add_node("keeps", keeping.compile(checkpointer=True))
    graph.add_edge(START, "keeps").add_edge("keeps", "fan")
    graph.add_conditional_edges("fan", lambda state: [Send("one", {"text": "b"}), Send("one", {"text": "a"})])
    graph.add_edge("one", "asks").add_edge("asks", END)
    return graph.compile(saver)
