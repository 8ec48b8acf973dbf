"""The examples work as their first lines say, on real servers and over real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from opentelemetry.sdk.trace import TracerProvider

import preforked
from addresses import address_in
from as_langgraph_server import load
from command_line import environment
from otlp import Collector, Span, collecting
from places import ROOT, SUPPORT

EXAMPLES = ROOT / "examples"
SERVER = EXAMPLES / "langgraph_server"


# As with `python -W error::ResourceWarning -m uvicorn`.
UVICORN = """
import runpy, warnings
warnings.simplefilter("error", ResourceWarning)
runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def app(database: str, redis_url: str) -> Iterator[httpx.Client]:
    """A client of examples/fastapi_app.py, served by uvicorn in a process of its own."""
    with preforked.Popen(
        UVICORN,
        *("--app-dir", str(EXAMPLES), "--port", "0", "fastapi_app:app"),
        env={**os.environ, "POSTGRES_URL": database, "REDIS_URL": redis_url},
        source=preforked.of_libraries(),
    ) as server:
        assert server.stderr is not None
        try:
            with httpx.Client(base_url=address_in(server.stderr, []), timeout=30) as client:
                yield client
        finally:
            server.send_signal(signal.SIGTERM)
            _, rest = server.communicate(timeout=30)
    # uvicorn ends with the signal that it was sent, after its shutdown.
    assert server.returncode in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in rest
    assert "Traceback" not in rest
    assert "ResourceWarning" not in rest


def test_the_fastapi_example_remembers_streams_and_is_watched(app: httpx.Client) -> None:
    told = {"thread_id": "42", "message": "내 이름은 철수야"}
    asked = {"thread_id": "42", "message": "내 이름이 뭐라고 했지?"}
    assert "철수" in app.post("/chat", json=told).raise_for_status().json()["answer"]

    with app.stream("POST", "/chat/stream", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-2:] == ["event: end", "data: {}"]
    pieces = [json.loads(line.removeprefix("data: "))["text"] for line in lines[:-2]]
    assert len(pieces) > 1, "piece by piece"
    assert "".join(pieces) == "철수라고 하셨어요."

    answer = app.post("/chat", json={**asked, "thread_id": "43"}).json()["answer"]
    assert "철수" not in answer, "another conversation"
    assert app.post("/chat", json={**asked, "thread_id": ""}).status_code == 422

    metrics = app.get("/metrics").raise_for_status().text
    assert re.search(
        r'^glasspoint_l1_reads_total\{result="hit",saver="default"\} [1-9]', metrics, re.MULTILINE
    )
    assert app.get("/healthz").text == "ok\n"
    ready = app.get("/readyz").raise_for_status().json()
    assert (ready["ready"], ready["savers"][0]["tier"]) == (True, "cached")


# ------------------------------------------------------------------ LangGraph Server


@pytest.mark.parametrize("path", [None, "glasspoint.get_checkpointer"], ids=["langgraph.json", "module"])
async def test_langgraph_server_takes_get_checkpointer_as_it_is(
    path: str | None, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server calls what it found, enters it once an event loop, and looks what is overridden."""
    monkeypatch.setenv("POSTGRES_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_url)
    ours = SimpleNamespace(tracer_provider=TracerProvider())  # not the process's
    monkeypatch.setattr("glasspoint.configure_telemetry", lambda **options: ours)
    config = json.loads((SERVER / "langgraph.json").read_text("utf-8"))
    value = load(path or config["checkpointer"]["path"], SERVER)
    assert callable(value)
    assert not isinstance(value, BaseCheckpointSaver)
    entered = value()
    assert hasattr(entered, "__aenter__")
    async with entered as saver:
        assert isinstance(saver, BaseCheckpointSaver)
        for method in ("adelete_thread", "adelete_for_runs", "acopy_thread", "aprune"):
            assert getattr(type(saver), method) is not getattr(BaseCheckpointSaver, method)


def run_as_langgraph_server(
    graph: str, database: str, redis_url: str, collector: Collector, **variables: str
) -> list[list[Span]]:
    """Two runs of the thread `42` and a look at its state.

    Returns:
        The spans, by trace, in the order of the traces' first spans.
    """
    variables |= {"POSTGRES_URL": database, "REDIS_URL": redis_url}
    path = str(SUPPORT / "as_langgraph_server.py")
    done = preforked.run(
        f"import runpy; runpy.run_path({path!r}, run_name='__main__')",
        *(str(SERVER), graph, "42", "내 이름은 철수야", "내 이름이 뭐라고 했지?"),
        env=environment(**variables, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url),
        timeout=60,
        source=preforked.of_libraries(),
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stdout.splitlines()[1] == "철수라고 하셨어요."
    traces: dict[str, list[Span]] = {}
    for span in sorted(collector.spans, key=lambda span: span.started):
        traces.setdefault(span.trace_id, []).append(span)
    *of_runs, reading = traces.values()
    assert [span.name for span in reading if not span.parent_id] == ["checkpoint.get_tuple"], (
        "a read is no turn"
    )
    return of_runs


def names_of(trace_: list[Span], *, roots: bool = False) -> set[str]:
    return {span.name for span in trace_ if not (roots and span.parent_id)}


def test_a_run_of_the_langgraph_server_example_is_one_trace(database: str, redis_url: str) -> None:
    with collecting() as collector:
        traces = run_as_langgraph_server("agent", database, redis_url, collector)
    assert [names_of(each, roots=True) for each in traces] == [{"invoke_agent agent"}] * 2
    for each in traces:
        assert names_of(each) >= {
            *("agent", "answer", "RecallingChatModel"),
            *("checkpoint.get_tuple", "checkpoint.put", "checkpoint.put_writes"),
        }
        assert {span.attributes.get("gen_ai.conversation.id", "42") for span in each} == {"42"}
        assert {span.resource["service.name"] for span in each} == {"agent"}
    first, second = ([span for span in each if not span.parent_id] for each in traces)
    assert second[0].links == [(first[0].trace_id, first[0].span_id)]


@pytest.mark.parametrize("instrumented", [True, False], ids=["instrumented", "alone"])
def test_without_a_turn_all_calls_of_a_run_share_as_few_traces_as_the_docs_say(
    database: str, redis_url: str, *, instrumented: bool
) -> None:
    """docs/tracing.md: the instrumentation's spans, if any, and that of the first call; nothing besides."""
    off = {} if instrumented else {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain"}
    with collecting() as collector:
        traces = run_as_langgraph_server("./agent.py:compiled", database, redis_url, collector, **off)
    roots = sorted(sorted(names_of(each, roots=True)) for each in traces)
    own = [["checkpoint.get_tuple"]] * 2
    assert roots == ([["agent"]] * 2 + own if instrumented else own)
    for each in traces:
        if not instrumented:
            assert names_of(each) >= {"checkpoint.put", "checkpoint.put_writes"}
        elif names_of(each, roots=True) == {"agent"}:
            assert "checkpoint.put_writes" in names_of(each), "what nodes store"
        else:
            assert "checkpoint.put" in names_of(each), "what the graph itself reads and puts"
