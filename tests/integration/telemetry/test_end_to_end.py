"""A conversation in several processes, on real servers, traced by what an application would use.

What arrives over OTLP is one tree a turn: the graph, its nodes, the model and the tool, every call of the
saver below what caused it, every round trip and every statement; linked from turn to turn; and nothing of
what was said.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
from redis.asyncio import Redis

import preforked
from agent_turn import AGENT
from glasspoint.embedded import EmbeddedRedis
from otlp import Collector, Span, Tree, collecting

CANARY = "canary-Gefluester-0451"
TURN = f"invoke_agent {AGENT}"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

READ = ("checkpoint.l1.read", ())
SELECT = ("checkpoint.l2.select", ())
NOT_THERE = ("checkpoint.get_tuple", (READ, SELECT))
HIT = ("checkpoint.get_tuple", (READ,))
MISS = (
    "checkpoint.get_tuple",
    (READ, SELECT, ("checkpoint.warm_up", (("checkpoint.l1.warm_up", ()),))),
)
# What a write may do: begin a burst, confirm it, nothing of that; and after the last one the burst ends.
BEGIN, CONFIRM, COMMIT = ((f"checkpoint.l1.{step}", ()) for step in ("begin", "confirm", "commit"))
MODEL = ("model", (("Model", ()), ("tools_condition", ())))
GRAPH = (
    "agent",
    (("remember", (("notes", (("note", ()),)),)), MODEL, ("tools", (("look_up", ()),)), MODEL),
)


class Turns:
    """Turns, each in a process of its own, that are traced as these variables say."""

    def __init__(self, source: preforked.Source, collector: Collector, **variables: str) -> None:
        """Args:
        variables: Of OpenTelemetry.
        """
        self._source = source
        self._variables = variables | {ENDPOINT: collector.url}

    async def one(
        self, database: str, redis_url: str, text: str, thread_id: str = "42", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Have a turn; its process has ended when this returns."""
        # Nothing of this process's own settings, so that what is on is what the defaults turn on.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "CHECKPOINT_"))}
        ended = await asyncio.to_thread(
            preforked.run,
            "from runpy import run_module; run_module('agent_turn', run_name='__main__', alter_sys=True)",
            *(database, redis_url, thread_id, text),
            env=environment | self._variables | variables,
            timeout=60,
            is_taken_down=True,
            source=self._source,
        )
        assert ended.returncode == 0, ended.stderr
        return ended


@pytest.fixture(scope="module")
def source() -> Iterator[preforked.Source]:
    """What turns are forked off. That there is an endpoint, it knows while it imports OpenTelemetry."""
    with preforked.source_with(**{ENDPOINT: "http://127.0.0.1:1"}) as source:
        yield source


def without_checks(tree: Tree) -> Tree:
    """Leave out what depends on the moment: waits for a connection, and a commit that has to be sent again,
    because LangGraph sends writes while their put is under way."""
    name, children = tree
    kept = [without_checks(child) for child in children if child[0] != "checkpoint.l2.acquire"]
    return name, tuple(child for child, _ in groupby(kept))


def split(tree: Tree) -> tuple[Tree, list[tuple[str, Tree]]]:
    """Return what LangChain's instrumentation has recorded, and the saver's calls with what each is below."""
    name, children = tree
    calls = [(name, child) for child in children if child[0].startswith("checkpoint.")]
    rest = [split(child) for child in children if not child[0].startswith("checkpoint.")]
    return (name, tuple(graph for graph, _ in rest)), calls + [each for _, below in rest for each in below]


async def test_three_turns_in_three_processes_are_three_linked_traces(
    source: preforked.Source, database: str, redis_url: str
) -> None:
    variables = {
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=seven",
    }
    with collecting() as collector:
        having = Turns(source, collector, **variables)
        for number in range(3):
            if number == 2:
                async with Redis.from_url(redis_url) as redis:
                    await redis.flushall()
            worker = await having.one(database, redis_url, "hello")
            assert worker.stdout.split() == ["redis", "psycopg", "langchain"]
    turns = collector.named(TURN)
    assert len({turn.trace_id for turn in turns}) == 3
    assert [turn.parent_id for turn in turns] == [""] * 3
    first, second, third = turns
    assert [turn.links for turn in turns] == [
        [],
        [(first.trace_id, first.span_id)],
        [(second.trace_id, second.span_id)],
    ]
    assert not [span for span in collector.spans if span.links and span not in turns]
    for turn, read in ((first, NOT_THERE), (second, HIT), (third, MISS)):
        (_, graphs), calls = split(without_checks(collector.tree(turn)))
        assert graphs == (GRAPH,)
        reads = [(above, call) for above, call in calls if call[0] == "checkpoint.get_tuple"]
        assert sorted(reads) == [("agent", read), ("notes", read)], "the graph's, and its subgraph's"
        writes = [call for _, call in calls if call[0] != "checkpoint.get_tuple"]
        above = {name: {above for above, call in calls if call[0] == name} for name, _ in writes}
        assert above == {
            "checkpoint.put": {"agent", "notes"},
            "checkpoint.put_writes": {"agent", "notes", "note", "remember", "model", "tools"},
        }
        for name, steps in writes:
            to_l2 = (f"checkpoint.l2.{name.removeprefix('checkpoint.')}", ())
            told = [step for step in steps if step != COMMIT]
            # Another write of the burst may have overtaken the one that has announced it, and covers it.
            assert told in ([BEGIN, to_l2, CONFIRM], [BEGIN, to_l2], [to_l2, CONFIRM], [to_l2])
        told = [step for _, steps in writes for step in steps]
        # A burst of the graph, and one of its subgraph, unless the machine was slow.
        assert told.count(BEGIN) >= 2
    for span in collector.spans:
        assert span.resource["service.name"] == AGENT
        assert span.resource["deployment.environment.name"] == "test"
        if span.scope == "glasspoint":
            assert span.attributes.get("gen_ai.conversation.id", "42") == "42"
    assert {headers["x-tenant"] for headers in collector.headers} == {"seven"}


def secrets_in(collector: Collector, *outputs: str) -> list[str]:
    """Everything that was emitted and holds the canary: spans as they came over the wire, metrics, logs."""
    everything = [request.SerializeToString().decode("latin-1") for request in collector.requests]
    return [CANARY for text in (*everything, *outputs) if CANARY in text or CANARY.encode().hex() in text]


@pytest.mark.parametrize("text", [CANARY, f"fail {CANARY}"], ids=["answers", "fails"])
async def test_nothing_that_was_said_and_no_credential_is_emitted(
    text: str, source: preforked.Source, database: str, own_redis: EmbeddedRedis
) -> None:
    """With every instrumentation on: those see the state, the thread id and the passwords."""
    password, hashed = CANARY.encode().hex(), hashlib.sha256(CANARY.encode()).hexdigest()[:16]
    async with Redis.from_url(own_redis.url) as redis:
        await redis.config_set("requirepass", password)
    servers = f"{database}&password={password}", own_redis.url.replace("//", f"//:{password}@")
    with collecting() as collector:
        having = Turns(source, collector)
        for _ in range(2):
            worker = await having.one(*servers, text, CANARY, CHECKPOINT_TELEMETRY_THREAD_IDS="hashed")
            assert "LookupError" in worker.stdout if text != CANARY else "LookupError" not in worker.stdout
            assert "glasspoint_operation_duration_seconds_count" in worker.stderr, "the metrics are there"
            assert not secrets_in(collector, worker.stdout, worker.stderr)
    turns, tools = collector.named(TURN), collector.named("look_up")
    assert len(turns) == len(tools) == 2
    assert [turn.attributes["gen_ai.conversation.id"] for turn in turns] == [hashed] * 2
    assert [tool.attributes["session.id"] for tool in tools] == [hashed] * 2
    assert turns[1].links == [(turns[0].trace_id, turns[0].span_id)]
    if text != CANARY:
        assert _errors_of(turns + tools) == ["builtins.LookupError"] * 2


def _errors_of(spans: list[Span]) -> list[Any]:
    return [span.attributes["error.type"] for span in spans if "error.type" in span.attributes]


async def test_content_is_there_for_whoever_asks_for_it(
    source: preforked.Source, database: str, redis_url: str
) -> None:
    """So that the test above has something to find."""
    content = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    with collecting() as collector:
        await Turns(source, collector, **content).one(database, redis_url, CANARY)
    assert secrets_in(collector)
    assert not [span for span in collector.spans if span.scope == "glasspoint" and CANARY in str(span)]
