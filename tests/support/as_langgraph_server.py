"""Runs a folder with a langgraph.json as LangGraph Server does, without the server's package.

python as_langgraph_server.py FOLDER GRAPH THREAD_ID TEXT…: a run of the graph for each text, then a look at
the state. GRAPH is a name of langgraph.json, or the path of a graph in its form.

It loads files by the rules of langgraph-api 0.16 (`_checkpointer/_adapter.py`, `graph.py`), the checkpointer
first. It runs each run in a context of its own, as a task of the server's queue. It ends as uvicorn does, by
the signal that stopped it: nothing that is registered with `atexit` is called.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import importlib.util
import json
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from langgraph_sdk.runtime import _ExecutionRuntime, _ReadRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from langchain_core.runnables import RunnableConfig

__all__ = ["load"]


def load(path: str, folder: Path) -> Any:
    """Return what a `path` in langgraph.json names: a file and a name in it, else a module and a name."""
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


@asynccontextmanager
async def _entered(graph: Any, config: RunnableConfig, runtime: object) -> AsyncIterator[Any]:
    """A graph is taken as it is; a function that makes one is called for each use, and entered."""
    if callable(graph):
        async with graph(config=config, runtime=runtime) as made:
            yield made
    else:
        yield graph


async def main(folder: Path, graph_name: str, thread_id: str, *texts: str) -> None:
    config = json.loads((folder / "langgraph.json").read_text("utf-8"))
    async with load(config["checkpointer"]["path"], folder)() as saver:
        graph = load(config["graphs"].get(graph_name, graph_name), folder)
        of_thread: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        nothing = cast("Any", None)

        async def run(text: str) -> None:
            runtime: Any = _ExecutionRuntime(access_context="threads.create_run", store=nothing)
            async with _entered(graph, of_thread, runtime) as made:
                running = made.copy(update={"checkpointer": saver, "name": "agent"})
                messages = {"messages": [("user", text)]}
                async for state in running.astream(messages, of_thread, stream_mode="values"):
                    last = state["messages"][-1].text
            sys.stdout.write(f"{last}\n")

        for text in texts:
            await asyncio.create_task(run(text), context=contextvars.Context())
        reading: Any = _ReadRuntime(access_context="threads.read", store=nothing)
        async with _entered(graph, of_thread, reading) as made:
            assert (
                await made.copy(update={"checkpointer": saver, "name": "agent"}).aget_state(of_thread)
            ).values


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
    sys.stdout.flush()
    signal.raise_signal(signal.SIGTERM)
