"""Spans of everything that the project's TraceQL asks for: the demo's story, and an application in trouble.

Both are recorded in files, and sent over OTLP where the environment names an endpoint. The demo is asked for
content, too.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Send, interrupt
from redis.asyncio import Redis

from chains import chain, reached
from command_line import glasspoint
from glasspoint import CachedPostgresSaver
from glasspoint.demo.telemetry import Observed, observe
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.trace.otlp import parse_json, spans_of
from glasspoint.trace.spans import Span
from states import open_saver, warmed_up
from steps import Thread, keys_in, keys_with_intents, locked, settled, until

__all__ = ["Story", "traced_story"]

AGENT = "glasspoint-demo"

_CONNECTIONS = 2


@dataclass(frozen=True)
class Story:
    """What was recorded.

    Attributes:
        spans: All spans.
        of_demo: Those of the demo.
        files: The files in which all of them stand.
        conversation: The thread id of the demo's conversation.
        trace_id: The trace of its first turn.
        turns: The traces of its turns.
    """

    spans: Sequence[Span]
    of_demo: Sequence[Span]
    files: Sequence[Path]
    conversation: str
    trace_id: str
    turns: Sequence[str]


def traced_story(folder: Path, service: str = AGENT, **variables: str) -> Story:
    """Play both.

    Args:
        folder: Where the files of spans are written.
        service: The name of the demo's service.
        variables: Environment variables, for an exporter besides (`OTEL_…`).
    """
    demo, trouble = folder / "demo.jsonl", folder / "trouble.jsonl"
    asked = {"OTEL_SERVICE_NAME": service, "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    played = glasspoint("demo", "--once", "--spans", str(demo), **asked, **variables)
    assert played.returncode == 0, played.stdout + played.stderr
    of_demo = _read(demo)
    turns = sorted((span for span in of_demo if span.name == f"invoke_agent {AGENT}"), key=lambda s: s.start)
    conversation = turns[0].text("gen_ai.conversation.id")
    lost: list[str] = []
    with (
        pytest.MonkeyPatch.context() as environment,
        EmbeddedPostgres() as postgres,
        EmbeddedRedis() as redis,
    ):
        for name, value in variables.items():
            environment.setenv(name, value)
        with observe(lost=lost.append, spans_file=trouble) as observed:
            asyncio.run(_be_in_trouble(postgres, redis, observed, conversation))
    assert not lost
    return Story(
        [*of_demo, *_read(trouble)],
        of_demo,
        (demo, trouble),
        conversation,
        turns[0].trace_id,
        [turn.trace_id for turn in turns],
    )


def _read(path: Path) -> list[Span]:
    return [span for line in path.read_bytes().splitlines() for span in spans_of(parse_json(line))]


async def _be_in_trouble(
    postgres: EmbeddedPostgres, redis: EmbeddedRedis, observed: Observed, conversation: str
) -> None:
    options: dict[str, Any] = {
        "telemetry": observed.telemetry,
        "saver_class": CachedPostgresSaver,
        "pool_max_size": _CONNECTIONS,
    }
    url = redis.url
    async with (
        open_saver(postgres.url, url, **options) as saver,
        open_saver(postgres.url, url, **options) as other,
    ):
        await _turns(saver, observed)
        await _busy_and_overtaken(postgres.url, url, saver, other)
        large = Thread("large")
        await large.put(saver, text="x" * 2_000_000)
        await settled(saver)
        await large.turn(saver)
        await _fork(saver, other)
        await saver.aprune_older_than(timedelta(hours=1))
    squeezed = {**options, "pool_max_size": 1, "pool_timeout_seconds": 0.1, "write_deadline_seconds": 0.5}
    async with (
        open_saver(postgres.url, url, **squeezed) as saver,
        saver._l2.connections.checkout(),
    ):
        calls = (Thread(conversation).put(saver), Thread(conversation).turn(saver))
        assert all(
            isinstance(each, GlasspointError) for each in await asyncio.gather(*calls, return_exceptions=True)
        )
    await _after_an_outage(postgres, url, observed)
    async with open_saver(postgres.url, url, **options) as saver:
        redis.kill()
        await asyncio.gather(*(Thread(f"cut {number}").put(saver) for number in range(4)))
    BackgroundTask("sweeper", observed.telemetry, means="").failed(LookupError())


class _State(TypedDict):
    said: Annotated[list[str], operator.add]


async def _turns(saver: CachedPostgresSaver, observed: Observed) -> None:
    """A turn with parallel branches, one that ends with a question, and one that fails."""

    def fail(state: _State) -> None:
        raise LookupError

    builder = StateGraph(_State)
    builder.add_node("plan", lambda state: {"said": ["plan"]})
    builder.add_node("search", lambda state: {"said": ["found"]})
    builder.add_node("ask", lambda state: {"said": [interrupt("sure?")]})
    builder.add_node("fail", fail)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", lambda state: [Send("search", state), Send("search", state)])
    builder.add_conditional_edges("search", lambda state: state["said"][0])
    graph = builder.compile(checkpointer=saver)
    for thread_id in ("ask", "fail"):
        try:
            async with observed.turn(thread_id):
                await graph.ainvoke({"said": [thread_id]}, {"configurable": {"thread_id": thread_id}})
        except LookupError:
            assert thread_id == "fail"


async def _busy_and_overtaken(
    postgres_url: str, redis_url: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    thread = Thread("busy")
    await thread.put(saver)
    await thread.turn(other)  # the writer's burst is under way
    await settled(saver)
    async with Redis.from_url(redis_url) as redis:
        await redis.delete(*await keys_in(redis, "*busy*"))
    # The write has begun in Redis, and gets to PostgreSQL only after the read.
    async with AsyncExitStack() as waiting:
        async with locked(postgres_url, "checkpoints", mode="ACCESS EXCLUSIVE") as waiter:
            reading = asyncio.create_task(other.aget_tuple(thread.config))
            await waiter()
            for _ in range(_CONNECTIONS):
                await waiting.enter_async_context(saver._l2.connections.checkout())
            writing = asyncio.create_task(thread.put(saver))
            await until(lambda: keys_with_intents(redis_url))
        await reading
        await warmed_up(other)
    await writing
    await settled(saver)


async def _after_an_outage(postgres: EmbeddedPostgres, redis_url: str, observed: Observed) -> None:
    """A turn waits until its thread is moved up: another process has written to it below, and has ended."""
    async with chain(postgres.url, redis_url, telemetry=observed.telemetry, probe_interval=1000) as above:
        postgres.stop()
        async with chain(postgres.url, redis_url, connect_timeout=1.0) as below:
            await Thread("moved up").put(below)
        postgres.start()
        await until(lambda: reached(above))
        async with observed.turn("moved up"):
            assert await Thread("moved up").turn(above) == 1


async def _fork(saver: CachedPostgresSaver, other: CachedPostgresSaver) -> None:
    thread = Thread("forked")
    await thread.put(saver)
    found = await saver.aget_tuple(thread.config)
    assert found is not None
    await thread.put(other)
    thread.newest = found.config
    await thread.put(saver)
