"""A chat service on FastAPI: conversations in PostgreSQL and Redis, /metrics and /readyz beside them.

A trace a turn, linked to the one before, goes to OTEL_EXPORTER_OTLP_ENDPOINT, if that is set (and the extras
otlp and instrumentation are installed).

    pip install glasspoint fastapi uvicorn
    POSTGRES_URL=postgresql://… REDIS_URL=redis://… uvicorn --app-dir examples fastapi_app:app

    curl -s localhost:8000/chat -H 'content-type: application/json' \\
         -d '{"thread_id": "42", "message": "내 이름은 철수야"}'
    curl -sN localhost:8000/chat/stream -H 'content-type: application/json' \\
         -d '{"thread_id": "42", "message": "내 이름이 뭐라고 했지?"}'
    curl -s localhost:8000/readyz

The model is a small one that only knows what the conversation holds, so that this runs without a key; put
yours into `GLASSPOINT_DEMO_MODEL=provider:name`, or in its place.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from pydantic import BaseModel, Field

from glasspoint import Settings, configure_telemetry, conversation_turn, get_checkpointer
from glasspoint.demo.model import choose_chat_model
from glasspoint.telemetry.http import telemetry_app

AGENT = "fastapi-example"

Graph = CompiledStateGraph[Any, Any, Any, Any]


class Message(BaseModel):
    """What a user says, in which conversation."""

    thread_id: str = Field(min_length=1, description="The same for all turns of one conversation.")
    message: str


class Answer(BaseModel):
    """What the agent says."""

    answer: str


def build_graph(saver: BaseCheckpointSaver[str]) -> Graph:
    """An agent of one node: the model, and all messages so far."""
    model = choose_chat_model()

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=saver)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One checkpointer for the life of the process; closed when the server stops, after the last request."""
    async with configure_telemetry(service_name=AGENT), get_checkpointer() as saver:
        app.state.graph = build_graph(saver)
        yield


app = FastAPI(title="Glasspoint example", lifespan=lifespan)


@app.post("/chat")
async def chat(said: Message, request: Request) -> Answer:
    """Answer a message."""
    async with (turn := conversation_turn(said.thread_id, agent_name=AGENT)):
        turn.record_input(said.message)
        state = await request.app.state.graph.ainvoke(*_turn(said))
        turn.record_output(state["messages"][-1])
    return Answer(answer=state["messages"][-1].text)


@app.post("/chat/stream")
async def stream(said: Message, request: Request) -> StreamingResponse:
    """Answer a message piece by piece, as server-sent events: `data: {"text": …}`, and `event: end`."""

    async def events() -> AsyncIterator[str]:
        async with (turn := conversation_turn(said.thread_id, agent_name=AGENT)):
            turn.record_input(said.message)
            answered = ""
            pieces = request.app.state.graph.astream(*_turn(said), stream_mode="messages")
            async for piece, _ in pieces:
                if piece.text:
                    answered += piece.text
                    yield f"data: {json.dumps({'text': piece.text}, ensure_ascii=False)}\n\n"
            turn.record_output(answered)
        yield "event: end\ndata: {}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _turn(said: Message) -> tuple[dict[str, Any], Any]:
    return {"messages": [("user", said.message)]}, {"configurable": {"thread_id": said.thread_id}}


# Last, because it answers every path that is left: /metrics, /healthz, /readyz.
app.mount("/", telemetry_app(ready_tiers=Settings.from_environment().ready_tiers))
