"""`python -m dashboards.trace_picture`: what `glasspoint trace --html` makes of a conversation.

An agent plans a journey on real servers: parallel branches, a subgraph that asks its user, and a join. Its
spans go into a file, `glasspoint trace` makes the page, and a real Chromium takes its picture. It needs the
extra `dashboards`, and what the tests need: playwright, and a Chromium.
"""

from __future__ import annotations

import asyncio
import operator
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from prometheus_client import CollectorRegistry

from dashboards.browser import launched
from dashboards.live_pictures import take
from glasspoint import CachedPostgresSaver, configure_telemetry, conversation_turn, create_telemetry
from glasspoint.demo.telemetry import SpanFile
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "trace.png"

_THREAD = "journey-to-lisbon"
_AGENT = "travel-agent"


class _State(TypedDict):
    said: Annotated[list[str], operator.add]


def main() -> None:
    """Take the picture."""
    with TemporaryDirectory() as directory:
        spans, page = Path(directory, "spans.jsonl"), Path(directory, "trace.html")
        asyncio.run(_converse(spans))
        trace = ["trace", _THREAD, "--file", str(spans), "--html", str(page)]
        subprocess.run([sys.executable, "-m", "glasspoint", *trace], check=True)
        with launched() as browser:
            seen = browser.new_page(viewport={"width": 1285, "height": 1130}, color_scheme="light")
            seen.goto(page.as_uri())
            take(seen, PICTURE)


async def _converse(spans: Path) -> None:
    """Five turns: a question to the user, the answer, a cold cache, and two that Redis answers."""
    written = SpanFile(spans)
    with (
        EmbeddedPostgres() as postgres,
        EmbeddedRedis() as redis,
        configure_telemetry(service_name="travel", set_global=False, span_processors=[written]) as configured,
    ):
        telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=configured.tracer_provider)
        async with CachedPostgresSaver.from_conn_string(
            postgres.url, redis_url=redis.url, telemetry=telemetry
        ) as saver:
            await saver.setup()
            graph = _graph().compile(checkpointer=saver, name=_AGENT)
            said = ({"said": [words]} for words in ("on Tuesday", "by train", "thank you"))
            for number, given in enumerate(({"said": ["to Lisbon"]}, Command(resume="yes"), *said), 1):
                if number == 3:
                    redis.flush()
                async with conversation_turn(_THREAD, _AGENT, turn_number=number, telemetry=telemetry):
                    await graph.ainvoke(given, {"configurable": {"thread_id": _THREAD}})


def _graph() -> StateGraph[Any, Any, Any, Any]:
    def works(seconds: float, word: str) -> Any:
        async def node(state: _State) -> dict[str, list[str]]:
            await asyncio.sleep(seconds)
            return {"said": [word]}

        return node

    def approve(state: _State) -> dict[str, list[str]]:
        answered = any("approved" in each for each in state["said"])
        return {"said": [] if answered else [f"approved: {interrupt('Shall I book it?')}"]}

    booking = StateGraph(_State)
    booking.add_node("price", works(0.012, "320 euros"))
    booking.add_node("approve", approve)
    booking.add_edge(START, "price")
    booking.add_edge("price", "approve")
    agent = StateGraph(_State)
    agent.add_node("understand", works(0.008, "a journey"))
    agent.add_node("flights", works(0.030, "at nine"))
    agent.add_node("weather", works(0.018, "sunny"))
    agent.add_node("booking", booking.compile(name="booking"))
    agent.add_node("answer", works(0.010, "done"))
    agent.add_edge(START, "understand")
    branches = ["flights", "weather", "booking"]
    for branch in branches:
        agent.add_edge("understand", branch)
    agent.add_edge(branches, "answer")
    return agent


if __name__ == "__main__":
    main()
