"""A graph with parallel branches, a subgraph that asks its user, and a join; and its trace as a tree."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from glasspoint import configure_telemetry, conversation_turn, create_telemetry
from states import open_saver

ASK: dict[str, Any] = {"said": []}
REPLY: Command[Any] = Command(resume="yes")

Tree = list[Any]
"""The label of a span, and its children in the order of their labels."""


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def builder() -> StateGraph[Any, Any, Any, Any]:
    """`left`, `right` and the subgraph `asking` run side by side; `join` follows all of them."""

    def says(word: str) -> Any:
        return lambda state: {"said": [word]}

    inner = StateGraph(State)
    inner.add_node("question", lambda state: {"said": [interrupt("sure?")]})
    inner.add_edge(START, "question")
    outer = StateGraph(State)
    for name in ("left", "right", "join"):
        outer.add_node(name, says(name))
    outer.add_node("asking", inner.compile(name="inner"))
    for name in ("left", "right", "asking"):
        outer.add_edge(START, name)
    outer.add_edge(["left", "right", "asking"], "join")
    return outer


async def traced_turn(database: str, redis_url: str, *, resumes: bool) -> list[ReadableSpan]:
    """Run a turn of the thread `42` on a saver of its own, as an application does, and return its spans."""
    kept = InMemorySpanExporter()
    with configure_telemetry(set_global=False, span_processors=[SimpleSpanProcessor(kept)]) as under:
        telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=under.tracer_provider)
        async with open_saver(database, redis_url, telemetry=telemetry) as saver:
            graph = builder().compile(checkpointer=saver, name="outer")
            async with conversation_turn("42", agent_name="asker", telemetry=telemetry):
                await graph.ainvoke(REPLY if resumes else ASK, {"configurable": {"thread_id": "42"}})
    return list(kept.get_finished_spans())


def trees_of(spans: Iterable[ReadableSpan]) -> list[Tree]:
    """Return the spans as trees. The round trips of a call are left out: how many there are is chance."""
    spans = [span for span in spans if span.name.count(".") < 2 and span.name != "checkpoint.warm_up"]
    ids = {span.context.span_id for span in spans if span.context is not None}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in spans:
        above = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else None
        children.setdefault(above, []).append(span)

    def grow(above: int | None) -> list[Tree]:
        return sorted(
            [label(span), grow(span.context.span_id)]
            for span in children.get(above, [])
            if span.context is not None
        )

    return grow(None)


def label(span: ReadableSpan) -> str:
    """`put_writes left @0`: what was called, for which node, at which step."""
    told = span.attributes or {}
    words = [span.name.removeprefix("checkpoint."), str(told.get("langgraph.node") or "")]
    step = told.get("langgraph.checkpoint.step")
    return " ".join([*filter(None, words), *([] if step is None else [f"@{step}"])])
