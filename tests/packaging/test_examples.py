"""The examples work as their first lines say, on real servers and over real sockets."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph_sdk.runtime import _ExecutionRuntime, _ReadRuntime
from opentelemetry import trace

from places import ROOT
from recorder import Recorder, attributes
from states import config_of

EXAMPLES = ROOT / "examples"


@pytest.fixture
def app(database: str, redis_url: str) -> Iterator[httpx.Client]:
    """A client of examples/fastapi_app.py, served by uvicorn in a process of its own."""
    server = subprocess.Popen(
        [
            *(sys.executable, "-W", "error::ResourceWarning", "-m", "uvicorn"),
            *("--app-dir", str(EXAMPLES), "--port", "0", "fastapi_app:app"),
        ],
        env={**os.environ, "POSTGRES_URL": database, "REDIS_URL": redis_url},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("".join(said))
        with httpx.Client(base_url=address[0], timeout=30) as client:
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


def load_as_the_server_does(path: str, folder: Path) -> Any:
    """What a `path` in langgraph.json names, by the rules of langgraph-api 0.16, `_checkpointer/_adapter.py`:
    a file and a name in it, else a module and a name, at the last dot."""
    if "/" in path or ".py:" in path:
        file, name = path.rsplit(":", 1)
        spec = importlib.util.spec_from_file_location("named_by_langgraph_json", folder / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module_name, name = path.rsplit(".", 1)
        module = importlib.import_module(module_name)
    return module.__dict__[name]


@pytest.mark.parametrize("path", [None, "glasspoint.get_checkpointer"], ids=["langgraph.json", "module"])
async def test_langgraph_server_takes_get_checkpointer_as_it_is(
    path: str | None, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server calls what it found, enters it once an event loop, and looks what is overridden."""
    monkeypatch.setenv("POSTGRES_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_url)
    folder = EXAMPLES / "langgraph_server"
    config = json.loads((folder / "langgraph.json").read_text("utf-8"))
    value = load_as_the_server_does(path or config["checkpointer"]["path"], folder)
    assert callable(value)
    assert not isinstance(value, BaseCheckpointSaver)
    entered = value()
    assert hasattr(entered, "__aenter__")
    async with entered as saver:
        assert isinstance(saver, BaseCheckpointSaver)
        for method in ("adelete_thread", "adelete_for_runs", "acopy_thread", "aprune"):
            assert getattr(type(saver), method) is not getattr(BaseCheckpointSaver, method)
        make_graph = load_as_the_server_does(config["graphs"]["agent"], folder)
        recorder, nothing = Recorder(), cast("Any", None)
        monkeypatch.setattr(trace, "get_tracer", lambda *args: recorder.provider.get_tracer("glasspoint"))
        for said in ("내 이름은 철수야", "내 이름이 뭐라고 했지?"):
            runtime: Any = _ExecutionRuntime(access_context="threads.create_run", store=nothing, context=None)
            async with make_graph(config=config_of("42"), runtime=runtime) as graph:
                running = graph.copy(update={"checkpointer": saver})
                state = await running.ainvoke({"messages": [("user", said)]}, config_of("42"))
        assert state["messages"][-1].text == "철수라고 하셨어요."
        reading: Any = _ReadRuntime(access_context="threads.read", store=nothing)
        async with make_graph(config=config_of("42"), runtime=reading) as graph:
            assert (await graph.copy(update={"checkpointer": saver}).aget_state(config_of("42"))).values
    assert [span.name for span in recorder.spans] == ["invoke_agent agent"] * 2, "a read is no turn"
    assert {attributes(span)["gen_ai.conversation.id"] for span in recorder.spans} == {"42"}
