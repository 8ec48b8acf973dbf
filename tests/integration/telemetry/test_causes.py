"""A call of the saver stands below what caused it: the node, the graph, the turn, or the run."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags
from prometheus_client import CollectorRegistry

from asking_graph import ASK, REPLY, builder, label, traced_turn, trees_of
from command_line import environment, glasspoint
from glasspoint import MemorySaver, configure_telemetry, conversation_turn, create_telemetry
from glasspoint.demo.telemetry import SpanFile
from glasspoint.telemetry.causes import Causes, Recent, TaskSpan
from glasspoint.telemetry.events import Telemetry
from glasspoint.telemetry.graph_spans import GraphSpans
from preforked import run
from recorder import Recorder, attributes

ASKED = [
    "invoke_agent asker",
    [
        [
            "outer",
            [
                [
                    "asking",
                    [
                        [
                            "inner",
                            [
                                ["get_tuple", []],
                                ["put @-1", []],
                                ["put @0", []],
                                ["put_writes __start__ @-1", []],
                                ["question", [["put_writes question @0", []]]],
                            ],
                        ],
                        ["put_writes asking @0", []],
                    ],
                ],
                ["get_tuple", []],
                ["left", [["put_writes left @0", []]]],
                ["put @-1", []],
                ["put @0", []],
                ["put_writes __start__ @-1", []],
                ["right", [["put_writes right @0", []]]],
            ],
        ]
    ],
]
RESUMED = [
    "invoke_agent asker",
    [
        [
            "outer",
            [
                [
                    "asking",
                    [
                        [
                            "inner",
                            [
                                ["get_tuple @0", []],
                                ["put @1", []],
                                ["question", [["put_writes question @0", []]]],
                            ],
                        ],
                        ["put_writes asking @0", []],
                    ],
                ],
                ["get_tuple @0", []],
                ["join", [["put_writes join @1", []]]],
                ["put @1", []],
                ["put @2", []],
                ["put_writes @0", []],
            ],
        ]
    ],
]
"""The writes without a node are the reply itself, which LangGraph stores before any task has taken it."""

RESUME = """
import asyncio, json, sys
from asking_graph import traced_turn, trees_of
spans = asyncio.run(traced_turn(*sys.argv[1:], resumes=True))
[turn] = [span for span in spans if span.name.startswith("invoke_agent")]
print(json.dumps({
    "trees": trees_of(spans),
    "events": [[event.name, dict(event.attributes)] for event in turn.events],
    "links": [f"{link.context.span_id:x}" for link in turn.links],
}))
"""


async def test_a_turn_with_branches_a_subgraph_an_interrupt_and_its_resume_elsewhere_is_one_tree_each(
    database: str, redis_url: str
) -> None:
    spans = await traced_turn(database, redis_url, resumes=False)
    assert trees_of(spans) == [ASKED]
    [turn] = named(spans, "invoke_agent asker")
    [asked] = turn.events
    assert asked.name == "glasspoint.interrupt"
    told = dict(asked.attributes or {})
    assert str(told.pop("langgraph.checkpoint.ns")).startswith("asking:")
    [writes] = [span for span in spans if label(span) == "put_writes question @0"]
    assert told == {
        "langgraph.node": "question",
        "langgraph.task.id": attributes(writes)["langgraph.task.id"],
    }

    done = await asyncio.to_thread(run, RESUME, database, redis_url, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    resumed = json.loads(done.stdout.splitlines()[-1])
    assert resumed["trees"] == [RESUMED]
    [[name, facts]] = resumed["events"]
    assert name == "glasspoint.resume"
    assert facts == dict(asked.attributes or {}), "the same task goes on"
    assert turn.context is not None
    assert resumed["links"] == [f"{turn.context.span_id:x}"]
    assert "sure?" not in done.stdout
    assert "yes" not in str(resumed)


@pytest.mark.parametrize("face", ["ainvoke", "invoke"])
async def test_without_an_instrumentation_a_turn_holds_its_calls_and_they_name_their_nodes(face: str) -> None:
    """LangGraph's `invoke` stores the writes of parallel tasks outside of every context."""
    recorder = Recorder()
    async with MemorySaver(telemetry=recorder.telemetry) as saver:
        with conversation_turn("42", telemetry=recorder.telemetry):
            await call(builder().compile(checkpointer=saver), face, ASK)
    [[turn, calls]] = trees_of(recorder.spans)
    assert turn == "invoke_agent"
    # A step is known if this process has begun to write its checkpoint before; with threads, that is chance.
    assert [each.partition(" @")[0] for each, _ in calls if each.startswith("put_writes")] == [
        "put_writes __start__",
        "put_writes __start__",
        "put_writes asking",
        "put_writes left",
        "put_writes question",
        "put_writes right",
    ]
    [span] = named(recorder.spans, "invoke_agent")
    [event] = span.events
    assert (event.name, (event.attributes or {})["langgraph.node"]) == ("glasspoint.interrupt", "question")


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("face", ["ainvoke", "invoke"])
async def test_without_a_turn_all_calls_of_a_run_are_one_trace(face: str, durability: Any) -> None:
    recorder = Recorder()
    async with MemorySaver(telemetry=recorder.telemetry) as saver:
        graph = builder().compile(checkpointer=saver)
        for given in (ASK, REPLY):
            recorder.clear()
            await call(graph, face, given, durability=durability)
            [[first, calls]] = trees_of(recorder.spans)
            assert first.startswith("get_tuple")
            assert len(calls) > 1
            recorder.clear()
            await graph.aget_state({"configurable": {"thread_id": "42"}})
            assert {len(below) for _, below in trees_of(recorder.spans)} == {0}, "no part of the run"


async def test_what_the_application_reads_outside_of_the_turn_is_no_part_of_it() -> None:
    recorder = Recorder()
    async with MemorySaver(telemetry=recorder.telemetry) as saver:
        graph = builder().compile(checkpointer=saver)
        await graph.ainvoke(ASK, thread("42"))
        recorder.clear()
        outside = contextvars.copy_context()
        with conversation_turn("42", telemetry=recorder.telemetry):
            await asyncio.create_task(graph.aget_state(thread("42")), context=outside)
    assert [each for each in trees_of(recorder.spans) if each[0] == "invoke_agent"] == [["invoke_agent", []]]


async def test_runs_at_the_same_time_are_traces_of_their_own() -> None:
    recorder = Recorder()
    async with MemorySaver(telemetry=recorder.telemetry) as saver:
        graph = builder().compile(checkpointer=saver)
        await asyncio.gather(*(graph.ainvoke(ASK, thread(str(each))) for each in range(5)))
    traces: dict[int, set[str]] = {}
    for span in recorder.spans:
        assert span.context is not None
        traces.setdefault(span.context.trace_id, set()).add(attributes(span)["gen_ai.conversation.id"])
    assert sorted(map(sorted, traces.values())) == [[str(each)] for each in range(5)]


async def test_a_span_of_the_application_stays_around_the_calls() -> None:
    recorder = Recorder()
    tracer = recorder.provider.get_tracer("application")
    async with MemorySaver(telemetry=recorder.telemetry) as saver:
        with tracer.start_as_current_span("request"):
            await builder().compile(checkpointer=saver).ainvoke(ASK, thread("42"))
    [[request, calls]] = trees_of(recorder.spans)
    assert request == "request"
    assert {below == [] for _, below in calls} == {True}


def test_a_task_of_another_trace_is_not_a_cause() -> None:
    """A task has the same id when it is resumed, in the next turn."""
    known = Causes()
    earlier, now = (SpanContext(each, each, False, TraceFlags(1)) for each in (1, 2))
    known.tasks.put("t", TaskSpan(earlier, "node"))
    operation = Telemetry("default", ()).operation("put_writes", None, task_id="t")
    assert known.of(operation, now) is None
    assert known.of(operation, earlier) == earlier
    assert known.of(operation, trace.INVALID_SPAN_CONTEXT) == earlier


async def test_writes_that_overtake_their_checkpoint_have_its_step() -> None:
    """LangGraph begins to store a checkpoint when the one before is stored; a quick task may end earlier."""
    recorder = Recorder()
    recorder.provider.add_span_processor(GraphSpans())
    langchain = recorder.provider.get_tracer("openinference.instrumentation.langchain")
    told = {"langgraph_node": "answer", "langgraph_step": 3, "langgraph_checkpoint_ns": "answer:task-1"}
    async with MemorySaver(telemetry=recorder.telemetry) as saver:
        with langchain.start_as_current_span("answer", attributes={"metadata": json.dumps(told)}):
            pass
        config: RunnableConfig = {
            "configurable": {"thread_id": "42", "checkpoint_ns": "", "checkpoint_id": "not yet stored"}
        }
        await saver.aput_writes(config, [("messages", "word")], "task-1")
    [stored] = named(recorder.spans, "checkpoint.put_writes")
    assert attributes(stored)["langgraph.checkpoint.step"] == 2
    assert attributes(stored)["langgraph.node"] == "answer"


def test_what_is_remembered_is_bounded() -> None:
    recent: Recent[int, int] = Recent(2)
    for each in range(5):
        recent.put(each, each)
    assert [recent.get(each) for each in range(5)] == [None, None, None, 3, 4]
    known = Causes()
    for each in range(1, 10_000):
        known.began(SpanContext(1, each, False, TraceFlags(1)), each)
    assert len(known._below) <= 4096


async def test_the_command_and_its_page_show_calls_below_their_nodes(tmp_path: Path) -> None:
    spans, page = tmp_path / "spans.jsonl", tmp_path / "page.html"
    with configure_telemetry(set_global=False, span_processors=[SpanFile(spans)]) as under:
        telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=under.tracer_provider)
        async with MemorySaver(telemetry=telemetry) as saver:
            graph = builder().compile(checkpointer=saver, name="outer")
            for given in (ASK, REPLY):
                with conversation_turn("42", agent_name="asker", telemetry=telemetry):
                    await graph.ainvoke(given, thread("42"))
    told = ("trace", "42", "--file", str(spans))
    shown = await asyncio.to_thread(glasspoint, *told, COLUMNS="160")
    assert shown.returncode == 0, shown.stderr
    written = await asyncio.to_thread(glasspoint, *told, "--html", str(page))
    assert written.returncode == 0, written.stderr
    first, second = re.split(r"── turn 2", shown.stdout)
    lines = [line.split(" +")[0].rstrip() for line in first.splitlines()]
    below = lines.index(next(line for line in lines if line.endswith("─ question")))
    assert re.search(r"─ put_writes .*of question", lines[below + 1])
    for node in ("left", "right"):
        below = next(number for number, line in enumerate(lines) if line.endswith(f"─ {node}"))
        assert re.search(rf"─ put_writes .*of {node}", lines[below + 1])
    assert "! interrupt" in first
    assert "! resume" in second
    text = page.read_text("utf-8")
    assert "glasspoint.interrupt" in text
    assert "of question" in text


async def call(graph: Any, face: str, given: Any, **options: Any) -> None:
    if face == "invoke":
        await asyncio.to_thread(graph.invoke, given, thread("42"), **options)
    else:
        await graph.ainvoke(given, thread("42"), **options)


def thread(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


def named(spans: Any, name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]
