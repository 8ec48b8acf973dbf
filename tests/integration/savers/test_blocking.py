"""The synchronous face does what the asynchronous one does: from a `with` block, from threads, at once."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from prometheus_client import CollectorRegistry

from conformance_suite import ALL, check_conformance
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.errors import BlockingCallError, L2UnavailableError, SaverClosedError, WrongLoopError
from glasspoint.model.sync_methods import SyncFace
from recorder import FIRST_PUT, PUT_WRITES, Recorder
from states import config_of, counts, exact, numbered_id, open_saver, open_upstream
from steps import Thread, locked, until

OF_OUR_OWN = "list_threads"
SYNC_METHODS = sorted(
    name
    for name, member in vars(SyncFace).items()
    if inspect.isfunction(member) and name[0] != "_" and f"a{OF_OUR_OWN}" != name
)


class FromThreads(BaseCheckpointSaver[str]):
    """A saver's asynchronous methods, each through its synchronous one, in whatever thread is free."""

    def __init__(self, saver: CachedPostgresSaver) -> None:
        super().__init__(serde=saver.serde)
        self.saver = saver

    async def aget_tuple(self, *args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(self.saver.get_tuple, *args, **options)

    async def alist(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        for each in await asyncio.to_thread(self.saver.list, *args, **options):
            yield each

    async def aput(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.saver.put, *args)

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        await asyncio.to_thread(self.saver.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await asyncio.to_thread(self.saver.delete_thread, thread_id)

    async def adelete_for_runs(self, *args: Any) -> None:
        await asyncio.to_thread(self.saver.delete_for_runs, *args)

    async def acopy_thread(self, *args: Any) -> None:
        await asyncio.to_thread(self.saver.copy_thread, *args)

    async def aprune(self, *args: Any, **options: Any) -> None:
        await asyncio.to_thread(self.saver.prune, *args, **options)

    def get_next_version(self, current: str | None, channel: None) -> str:
        return self.saver.get_next_version(current, channel)


@pytest.mark.parametrize("capability", ALL)
async def test_conforms_through_the_synchronous_face(capability: str, database: str, redis_url: str) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[FromThreads]:
        async with open_saver(database, redis_url) as saver:
            yield FromThreads(saver)

    await check_conformance(capability, "FromThreads", opened)


# ------------------------------------------------------------------ graphs


def make_graph(saver: BaseCheckpointSaver[str]) -> CompiledStateGraph[Any]:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [("ai", f"{len(state['messages'])} so far")]})
    return builder.add_edge(START, "answer").add_edge("answer", END).compile(checkpointer=saver)


def say(graph: CompiledStateGraph[Any], text: str, thread_id: str = "42") -> str:
    answer: str = graph.invoke({"messages": [("user", text)]}, config_of(thread_id))["messages"][-1].content
    return answer


@pytest.fixture
def saver(database: str, redis_url: str) -> Iterator[CachedPostgresSaver]:
    """A saver as a script has it, without any event loop."""
    with CachedPostgresSaver.from_conn_string(
        database, redis_url=redis_url, telemetry=create_telemetry(registry=CollectorRegistry())
    ) as opened:
        opened.setup()
        yield opened


def test_a_synchronous_graph_remembers(saver: CachedPostgresSaver) -> None:
    graph = make_graph(saver)
    assert [say(graph, text) for text in ("내 이름은 철수야", "내 이름이 뭐라고 했지?")] == [
        "1 so far",
        "3 so far",
    ]
    assert len(list(graph.get_state_history(config_of("42")))) == 6
    saver.delete_thread("42")
    assert saver.get_tuple(config_of("42")) is None


def test_maintenance_has_its_synchronous_methods(saver: CachedPostgresSaver) -> None:
    graph = make_graph(saver)
    say(graph, "hello")
    saver.copy_thread("42", "43")
    saver.prune(["42"])
    assert [len(list(saver.list(config_of(thread_id)))) for thread_id in ("42", "43")] == [1, 3]
    assert saver.prune_older_than(timedelta(days=1), dry_run=True).checkpoints == 0
    saver.delete_for_runs(["no such run"])


def test_it_stores_what_upstream_stores(saver: CachedPostgresSaver, database: str) -> None:
    say(make_graph(saver), "hello")
    here = [exact(tuple(each)) for each in saver.list(config_of("42"))]

    async def there() -> list[Any]:
        async with open_upstream(database) as upstream:
            return [exact(tuple(each)) async for each in upstream.alist(config_of("42"))]

    assert here == asyncio.run(there())


def test_many_threads_at_once(saver: CachedPostgresSaver) -> None:
    graph = make_graph(saver)

    def converse(thread_id: str) -> list[str]:
        return [say(graph, text, thread_id) for text in ("one", "two", "three")]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(converse, [str(n) for n in range(24)]))
    assert answers == [["1 so far", "3 so far", "5 so far"]] * 24


async def test_threads_of_an_asynchronous_application(database: str, redis_url: str) -> None:
    """The application's loop goes on meanwhile, and works with the same saver."""
    async with open_saver(database, redis_url) as saver:
        graph = make_graph(saver)
        assert await asyncio.gather(*(asyncio.to_thread(say, graph, "hello", str(n)) for n in range(8)))
        state = await graph.ainvoke({"messages": [("user", "and now?")]}, config_of("3"))
        assert state["messages"][-1].content == "3 so far"


def test_from_a_thread_with_a_loop_of_its_own(saver: CachedPostgresSaver) -> None:
    """As in a notebook, where a loop runs and the graph is synchronous."""

    async def notebook() -> str:
        return say(make_graph(saver), "hello")

    assert asyncio.run(notebook()) == "1 so far"


# ------------------------------------------------------------------ telemetry


def test_spans_stand_under_the_caller_s_and_metrics_count(database: str, redis_url: str) -> None:
    recorder = Recorder()
    tracer = recorder.provider.get_tracer("test")
    thread = Thread("a")
    with CachedPostgresSaver.from_conn_string(
        database, redis_url=redis_url, telemetry=recorder.telemetry
    ) as saver:
        saver.setup()
        with tracer.start_as_current_span("turn"):
            thread.newest = saver.put(*thread.next_put(saver))
            saver.put_writes(thread.newest, [("messages", "x")], "task")
            saver.get_tuple(thread.config)
    assert recorder.forest() == [
        ("turn", [FIRST_PUT, PUT_WRITES, ("checkpoint.get_tuple", [("checkpoint.l1.commit", [])])])
    ]
    assert counts(recorder.registry, "glasspoint_operation_duration_seconds_count", "operation") == {
        "put": 1,
        "put_writes": 1,
        "get_tuple": 1,
    }


# ------------------------------------------------------------------ bad input


ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "get_delta_channel_history": ((), {"config": config_of("a"), "channels": ["x"]}),
    "put": ((config_of("a"), {"id": numbered_id(1)}, {}, {}), {}),
    "put_writes": ((config_of("a", checkpoint_id=numbered_id(1)), [("x", 1)], "task"), {}),
    "list_threads": ((), {}),
    "delete_thread": (("a",), {}),
    "delete_for_runs": ((["run"],), {}),
    "copy_thread": (("a", "b"), {}),
    "prune": ((["a"],), {}),
}


@pytest.mark.parametrize("method", SYNC_METHODS)
async def test_on_the_loop_s_own_thread_the_error_names_the_async_method(
    method: str, database: str, redis_url: str
) -> None:
    args, options = ARGUMENTS.get(method, ((config_of("a"),), {}))
    async with open_saver(database, redis_url) as saver:
        with pytest.raises(BlockingCallError, match=rf"await saver\.a{method}\("):
            getattr(saver, method)(*args, **options)


def test_every_method_of_the_base_has_its_synchronous_one() -> None:
    asynchronous = {name[1:] for name in vars(BaseCheckpointSaver) if name[0] == "a" and name[1:] != "get"}
    assert asynchronous == set(SYNC_METHODS) - {OF_OUR_OWN}


def test_after_its_block_the_saver_says_so_and_no_thread_is_left(database: str, redis_url: str) -> None:
    opening = CachedPostgresSaver.from_conn_string(database, redis_url=redis_url)
    with opening as saver:
        assert "glasspoint-saver" in {thread.name for thread in threading.enumerate()}
    assert "glasspoint-saver" not in {thread.name for thread in threading.enumerate()}
    saver.close()  # again: harmless
    for use in (lambda: saver.get_tuple(config_of("a")), saver.setup):
        with pytest.raises(SaverClosedError):
            use()
    with pytest.raises(RuntimeError, match="from_conn_string again"), opening:
        pass


def test_after_its_loop_the_saver_says_so(database: str, redis_url: str) -> None:
    async def opened() -> CachedPostgresSaver:
        async with open_saver(database, redis_url) as saver:
            return saver

    saver = asyncio.run(opened())
    with pytest.raises(SaverClosedError, match="does not run"):
        saver.get_tuple(config_of("a"))


def test_an_asynchronous_call_on_another_loop_says_so(saver: CachedPostgresSaver) -> None:
    with pytest.raises(WrongLoopError, match="opened on another event loop"):
        asyncio.run(saver.aget_tuple(config_of("a")))


def test_an_error_in_the_block_gets_out_and_closes_the_saver(database: str, redis_url: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        CachedPostgresSaver.from_conn_string(database, redis_url=redis_url),
    ):
        _ = 1 / 0
    assert "glasspoint-saver" not in {thread.name for thread in threading.enumerate()}


def test_a_saver_that_cannot_be_opened_leaves_no_thread(redis_url: str) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/none"
    with (
        pytest.raises(L2UnavailableError),
        CachedPostgresSaver.from_conn_string(nowhere, redis_url=redis_url),
    ):
        pass
    assert "glasspoint-saver" not in {thread.name for thread in threading.enumerate()}


def outcomes(registry: CollectorRegistry) -> dict[str, int]:
    return counts(registry, "glasspoint_operation_duration_seconds_count", "outcome")


async def test_a_caller_that_is_interrupted_ends_its_call(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ctrl-C does to a thread that waits: the call is cancelled, and nothing of it is left behind."""
    thread, registry = Thread("a"), CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, pool_max_size=1, telemetry=telemetry) as saver:
        await thread.put(saver)
        async with locked(database, "checkpoints") as waiter:
            interrupted = threading.Event()

            submit = asyncio.run_coroutine_threadsafe

            def submit_and_be_interrupted(work: Any, loop: Any) -> Any:
                future = submit(work, loop)

                def result() -> Any:
                    interrupted.wait()
                    raise KeyboardInterrupt

                monkeypatch.setattr(future, "result", result)
                return future

            monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit_and_be_interrupted)

            def put() -> None:
                with pytest.raises(KeyboardInterrupt):
                    saver.put(*thread.next_put(saver))

            calling = asyncio.create_task(asyncio.to_thread(put))
            await waiter()
            interrupted.set()
            await calling
            monkeypatch.undo()
            await until(lambda: outcomes(registry)["cancelled"])
        assert await thread.turn(saver) == 1, "the statement was cancelled, and the only connection is free"
