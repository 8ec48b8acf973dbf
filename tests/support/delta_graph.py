"""A graph with delta channels, and a conversation that goes every way through it."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Overwrite

from states import config_of

CONFIG = config_of("대화")
CHANNELS = ["log", "slow", "plain", "no such channel"]


def extend(value: list[Any], writes: list[list[Any]]) -> list[Any]:
    return [*value, *(each for write in writes for each in write)]


class State(TypedDict):
    log: Annotated[list[Any], DeltaChannel(extend, snapshot_frequency=3)]
    slow: Annotated[list[Any], DeltaChannel(extend, snapshot_frequency=100)]
    plain: str


def make_graph(saver: BaseCheckpointSaver[Any]) -> CompiledStateGraph[Any]:
    """Two nodes at once write to one delta channel: the order of their writes counts."""
    builder = StateGraph(State)
    builder.add_node("one", lambda state: {"log": [f"one saw {len(state['log'])}"], "slow": ["one"]})
    builder.add_node("two", lambda state: {"log": [f"two saw {len(state['log'])}"]})
    builder.add_node("last", lambda state: {"plain": f"{len(state['log'])} {len(state['slow'])}"})
    for node in ("one", "two"):
        builder.add_edge(START, node).add_edge(node, "last")
    return builder.add_edge("last", END).compile(saver)


async def play(saver: BaseCheckpointSaver[Any]) -> list[Any]:
    """Turns, a change from outside, and a way back in time that is then followed; what was to be seen."""
    graph = make_graph(saver)
    seen = [await graph.ainvoke({"log": [f"turn {turn}"]}, CONFIG) for turn in range(4)]
    old = [state async for state in graph.aget_state_history(CONFIG)][5]
    await graph.aupdate_state(CONFIG, {"log": Overwrite(["cleared"])}, as_node="last")
    seen.append(await graph.ainvoke({"log": ["turn 4"]}, CONFIG))
    forked = await graph.aupdate_state(old.config, {"log": ["changed"]}, as_node="last")
    seen.append(await graph.ainvoke({"log": ["turn 5"]}, forked))
    await graph.aupdate_state(old.config, None, as_node="__copy__")
    seen.append(await graph.ainvoke({"log": ["turn 6"]}, CONFIG))
    history = [(state.values, state.next) async for state in graph.aget_state_history(CONFIG)]
    return [*seen, history]
