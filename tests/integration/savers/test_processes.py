"""Processes and event loops: a saver works in a child after a fork, in a notebook, and lets its process end.

What concerns a whole process runs in one of its own, as a script.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from celery import Celery
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from nbclient import NotebookClient
from prometheus_client import CollectorRegistry

import preforked
from addresses import address_in
from databases import with_tables
from glasspoint import (
    CachedPostgresSaver,
    FallbackSaver,
    MemorySaver,
    RedisSaver,
    Settings,
    create_telemetry,
    get_checkpointer,
)
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import BlockingCallError, SaverClosedError, WrongLoopError
from places import DOCS
from states import config_of, counts, open_saver
from steps import Thread, settled, until

# What each script begins with. The servers are named as every deployment names them.
BEGINNING = """
import asyncio, os, sys, threading
from glasspoint import CachedPostgresSaver, RedisSaver, get_checkpointer
from glasspoint.errors import ForkedError, SaverClosedError
from states import config_of
from steps import Thread

POSTGRES, REDIS = os.environ["POSTGRES_URL"], os.environ["REDIS_URL"]
DOORS = {
    "cached": lambda: CachedPostgresSaver.from_conn_string(POSTGRES, redis_url=REDIS),
    "redis": lambda: RedisSaver.from_conn_string(REDIS),
    "chain": get_checkpointer,
}


def in_a_child(work):
    "Fork, do it there, end as a worker of gunicorn does, and return the exit status."
    if not (pid := os.fork()):
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""

# `python -m`, with the module's name and its arguments.
AS_A_MODULE = """
import runpy, sys
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

SECONDS = 60

KEY = "a key that Redis does not know"


def environment_of(postgres_url: str, redis_url: str) -> dict[str, str]:
    names = {"POSTGRES_URL": postgres_url, "REDIS_URL": redis_url, "CHECKPOINT_L1_SIGNING_KEY": KEY}
    return {**os.environ, **names}


def run(script: str, postgres_url: str, redis_url: str, *args: str, may_warn: bool = False) -> str:
    """Run a script to its end, and return what it printed.

    Args:
        may_warn: Whether it may write to stderr, which is bad news otherwise.
    """
    ended = preforked.run(
        BEGINNING + script,
        *args,
        env=environment_of(postgres_url, redis_url),
        timeout=SECONDS,
        is_taken_down=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert may_warn or not ended.stderr, ended.stdout + ended.stderr
    return ended.stdout


# Each of two workers has a turn, because neither goes on alone.
MEET = """
from redis import Redis


def meet():
    with Redis.from_url(REDIS) as redis:
        if redis.incr("here") % 2 == 0:
            redis.rpush("both are here", "one", "two")
        assert redis.blpop(["both are here"], 60)

"""


@pytest.fixture
async def tables(database: str, redis_url: str) -> str:
    """A database with the tables in it."""
    async with open_saver(database, redis_url):
        pass
    return database


# ------------------------------------------------------------------ fork


FORK = """
saver = DOORS[sys.argv[1]]().open()
thread = Thread("a")
thread.newest = saver.put(*thread.next_put(saver))


def turn(number):
    found = saver.get_tuple(thread.config)
    assert found.checkpoint["channel_values"]["turn"] == number, found
    thread.newest = saver.put(*thread.next_put(saver))


def child():
    turn(1)
    turn(2)
    assert in_a_child(lambda: turn(3)) == 0, "its own child"
    thread.number = 4
    turn(4)
    saver.close()
    try:
        saver.get_tuple(thread.config)
    except SaverClosedError:
        return
    raise AssertionError("it was closed")


assert in_a_child(lambda: None) == 0, "a child that does not use it"
assert in_a_child(child) == 0
thread.number = 5
turn(5)
turn(6)
print("done")
"""


@pytest.mark.parametrize("door", ["cached", "redis", "chain"])
def test_a_saver_made_from_urls_opens_itself_again_in_a_child(door: str, tables: str, redis_url: str) -> None:
    """The parent, with which the child shares sockets, notices neither its use nor its end."""
    assert run(FORK, tables, redis_url, door) == "done\n"


POOL = """
import multiprocessing

saver = DOORS["cached"]().open()


def turns(thread_id):
    thread = Thread(thread_id)
    for _ in range(3):
        thread.newest = saver.put(*thread.next_put(saver))
    return saver.get_tuple(thread.config).checkpoint["channel_values"]["turn"]


with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(turns, "abcdefgh"))
"""


def test_workers_of_multiprocessing_use_the_parent_s_saver(tables: str, redis_url: str) -> None:
    assert run(POOL, tables, redis_url) == f"{[3] * 8}\n"


CLONES = """
import copy
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

saver = DOORS["cached"]().open()
clone = copy.copy(saver)  # as `with_allowlist` makes it, where the allowlist is strict
clone.serde = JsonPlusSerializer()


def child():
    assert clone.get_tuple(config_of("a")) is None
    assert clone._of_this_process().serde is clone.serde
    assert saver._of_this_process().serde is saver.serde
    assert clone._of_this_process().home is saver._of_this_process().home, "one for both"


assert in_a_child(child) == 0
"""


def test_clones_of_with_allowlist_keep_their_serializer_in_a_child(tables: str, redis_url: str) -> None:
    run(CLONES, tables, redis_url)


PARTS = """
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis
from states import make_pool


async def open_on_parts():
    pool = make_pool(POSTGRES, 2)
    await pool.open()
    return CachedPostgresSaver(AsyncPostgresSaver(pool), Redis.from_url(REDIS), pool)


async def open_from_urls():
    return await CachedPostgresSaver.create(POSTGRES, REDIS)


def refuses(call):
    try:
        call()
    except ForkedError as exc:
        assert "Open a saver in each process" in str(exc), exc
    else:
        raise AssertionError("it was called")


def child():
    for loop_of in (lambda: loop, asyncio.new_event_loop):
        refuses(lambda: loop_of().run_until_complete(saver.aget_tuple(config_of("a"))))
    refuses(lambda: saver.get_tuple(config_of("a")))
    refuses(lambda: saver.setup())
    saver.close()  # there is nothing to close
    os._exit(0)


loop = asyncio.new_event_loop()
if sys.argv[1] == "a with block, on a client":
    with CachedPostgresSaver.from_conn_string(POSTGRES, redis_url=Redis.from_url(REDIS)) as saver:
        loop = saver.home.loop
        assert saver.get_tuple(config_of("a")) is None
        if not (pid := os.fork()):
            refuses(lambda: saver.get_tuple(config_of("a")))
            saver.close()
            sys.exit(0)  # the block ends here, too
        assert os.waitpid(pid, 0)[1] == 0
        assert saver.get_tuple(config_of("a")) is None
    os._exit(0)
saver = loop.run_until_complete(open_on_parts() if sys.argv[1] == "on parts" else open_from_urls())
assert in_a_child(child) == 0
assert loop.run_until_complete(saver.aget_tuple(config_of("a"))) is None
os._exit(0)
"""


@pytest.mark.parametrize("how", ["on parts", "awaited", "a with block, on a client"])
def test_any_other_saver_refuses_at_once_in_a_child_and_says_what_to_do(
    how: str, tables: str, redis_url: str
) -> None:
    # A pool of the caller's has no statement_timeout, which the saver says. The parent's own loop, if it runs
    # in a child, goes on with tasks of its pool there: the parent may have to replace connections.
    run(PARTS, tables, redis_url, how, may_warn=how != "a with block, on a client")


LOCKED = """
saver = DOORS["cached"]().open()
lock, forked = threading.Lock(), threading.Event()


async def step():
    "As any step that takes a lock of the metrics, but a long one."
    with lock:
        taken.set()
        forked.wait(0.3)


taken = threading.Event()
asyncio.run_coroutine_threadsafe(step(), saver.home.loop)
taken.wait()


def child():
    assert lock.acquire(timeout=1), "nobody is there who could let it go"


assert in_a_child(child) == 0
"""


def test_a_fork_waits_until_no_step_of_the_saver_holds_a_lock(tables: str, redis_url: str) -> None:
    run(LOCKED, tables, redis_url)


WATCHED = """
import json, urllib.request
from glasspoint.telemetry.http import serve_telemetry


def readyz():
    with serve_telemetry(0) as server:
        return json.load(urllib.request.urlopen(f"{server.url}/readyz"))


def child():
    for _ in range(100):  # opening may take longer than a probe waits
        found = readyz()
        if found["savers"]:
            break
    assert found["ready"], found
    assert len(found["savers"]) == 1, found
    assert saver.get_tuple(config_of("a")) is None
    assert len(readyz()["savers"]) == 1, "the one that the probe has opened"


saver = DOORS[sys.argv[1]]().open()
assert readyz()["ready"]
assert in_a_child(child) == 0
assert readyz()["ready"]
"""


@pytest.mark.parametrize("door", ["cached", "chain"])
def test_a_child_is_ready_before_its_first_call_which_nobody_would_send_otherwise(
    door: str, tables: str, redis_url: str
) -> None:
    run(WATCHED, tables, redis_url, door)


# ------------------------------------------------------------------ nobody closes it


NEVER_CLOSED = {
    "open": "saver = DOORS[sys.argv[1]]().open()",
    "enter": "saver = DOORS[sys.argv[1]]().__enter__()",
    "stack": "from contextlib import ExitStack\nsaver = ExitStack().enter_context(DOORS[sys.argv[1]]())",
}


@pytest.mark.parametrize("how", NEVER_CLOSED)
@pytest.mark.parametrize("door", ["cached", "redis", "chain"])
async def test_a_process_ends_and_finishes_what_its_saver_has_begun(
    how: str, door: str, tables: str, redis_url: str
) -> None:
    script = f"""{NEVER_CLOSED[how]}
thread = Thread("a")
thread.newest = saver.put(*thread.next_put(saver))
"""
    run(script, tables, redis_url, door)
    if door == "redis":
        return
    registry = CollectorRegistry()
    options: dict[str, Any] = {"l1_signing_key": KEY} if door == "chain" else {}
    telemetry = create_telemetry(registry=registry)
    async with open_saver(tables, redis_url, telemetry=telemetry, **options) as saver:
        assert await Thread("a").turn(saver) == 1
    assert counts(registry, "glasspoint_l1_reads_total", "result") == {"hit": 1}, "its burst was ended"


def test_a_process_ends_while_its_servers_do_not_answer(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    code = BEGINNING + (
        'saver = DOORS["cached"]().open()\nsaver.setup()\nprint("open", flush=True)\nsys.stdin.read()\n'
    )
    with preforked.Popen(code, env=environment_of(url, own_redis.url), has_stdin=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        own_postgres.stop()
        own_redis.freeze()
        try:
            process.stdin.close()
            process.communicate(timeout=SECONDS)
        finally:
            own_redis.thaw()
        assert process.returncode == 0


UNCLOSED = """
import gc, warnings

OPEN = {
    "cached": lambda: CachedPostgresSaver.create(POSTGRES, REDIS),
    "redis": lambda: RedisSaver.create(REDIS),
    "chain": get_checkpointer,
}


async def main():
    saver = await OPEN[sys.argv[1]]()
    # At once: the pool opens its second connection, and is in the midst of it when the loop ends.
    await asyncio.gather(*(saver.aget_tuple(config_of(str(n))) for n in range(4)))
    thread = Thread("a")
    await thread.put(saver)


for _ in range(20):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert any("was not closed before its event loop ended" in str(each.message) for each in said), said
    assert {each.category for each in said} == {ResourceWarning}
print("ended")
"""


@pytest.mark.parametrize("door", ["cached", "redis", "chain"])
def test_asyncio_run_ends_and_warns_if_nobody_has_closed_a_saver(
    door: str, tables: str, redis_url: str
) -> None:
    # psycopg says what it forgets: "error connecting".
    assert run(UNCLOSED, tables, redis_url, door, may_warn=True) == "ended\n"


# ------------------------------------------------------------------ notebooks


def make_graph(saver: Any) -> CompiledStateGraph[Any]:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [("ai", f"{len(state['messages'])} so far")]})
    return builder.add_edge(START, "answer").add_edge("answer", END).compile(checkpointer=saver)


@pytest.fixture
def from_environment(database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_url)


DOORS: dict[str, Callable[[str, str], Any]] = {
    "cached": lambda postgres, redis: CachedPostgresSaver.from_conn_string(postgres, redis_url=redis),
    "redis": lambda _, redis: RedisSaver.from_conn_string(redis),
    "chain": lambda *_: get_checkpointer(),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.usefixtures("from_environment")
async def test_in_a_notebook_a_synchronous_saver_works_as_upstream_s(
    door: str, database: str, redis_url: str
) -> None:
    """A loop runs on the thread, and belongs to the kernel."""
    with DOORS[door](database, redis_url) as saver:
        if door != "redis":
            assert repr(saver.setup()) == "done"
        graph = make_graph(saver)
        for expected in ("1 so far", "3 so far"):
            state = graph.invoke({"messages": [("user", "hello")]}, config_of("42"))
            assert state["messages"][-1].content == expected
        saver.close()
        assert "glasspoint-saver" not in {thread.name for thread in threading.enumerate()}
        saver.close()
        with pytest.raises(SaverClosedError, match="was closed"):
            saver.get_tuple(config_of("42"))
    again = DOORS[door](database, redis_url).open()
    assert make_graph(again).get_state(config_of("42")).values["messages"]
    await again.close()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.usefixtures("from_environment")
async def test_every_door_can_be_awaited(door: str, database: str, redis_url: str) -> None:
    opening = DOORS[door](database, redis_url)
    saver = await opening
    if door != "redis":
        await saver.setup()
    state = await make_graph(saver).ainvoke({"messages": [("user", "hello")]}, config_of("42"))
    assert state["messages"][-1].content == "1 so far"
    with pytest.raises(BlockingCallError, match=r"await graph\.ainvoke"):
        make_graph(saver).invoke({"messages": [("user", "hello")]}, config_of("42"))
    with pytest.raises(RuntimeError, match="from_conn_string again"):
        await opening
    await saver.close()


# ------------------------------------------------------------------ several event loops


class Loop:
    """An event loop in a thread of its own, as LangGraph Server has one for each run it works on."""

    def __init__(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()

        async def until_stopped() -> None:
            self._stop = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._stop.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(until_stopped()))
        self._thread.start()
        self._loop = started.result()

    async def run(self, work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def loops() -> Iterator[tuple[Loop, Loop]]:
    one, two = Loop(), Loop()
    yield one, two
    one.stop()
    two.stop()


async def open_memory() -> MemorySaver:
    return MemorySaver(telemetry=create_telemetry(registry=CollectorRegistry()))


@pytest.mark.parametrize("door", [*DOORS, "memory"])
@pytest.mark.usefixtures("from_environment")
async def test_on_another_loop_every_saver_says_so(
    door: str, database: str, redis_url: str, loops: tuple[Loop, Loop]
) -> None:
    async def opened() -> Any:
        return await (open_memory() if door == "memory" else DOORS[door](database, redis_url))

    saver = await loops[0].run(opened())
    if door != "redis" and door != "memory":
        await saver.setup()

    async def listed() -> None:
        async for _ in saver.alist(config_of("a")):
            pass

    thread = Thread("a")
    for call in (
        lambda: saver.aget_tuple(config_of("a")),
        lambda: saver.aput(*thread.next_put(saver)),
        lambda: saver.aput_writes(config_of("a", checkpoint_id="1f0"), [("x", 1)], "task"),
        lambda: saver.adelete_thread("a"),
        lambda: saver.acopy_thread("a", "b"),
        lambda: saver.aprune(["a"]),
        lambda: saver.adelete_for_runs(["r"]),
        lambda: saver.aget_delta_channel_history(config=config_of("a"), channels=["x"]),
        listed,
    ):
        with pytest.raises(WrongLoopError, match="opened on another event loop"):
            await loops[1].run(call())
    await saver.close()


async def say(saver: Any, thread_id: str, text: str) -> str:
    state = await make_graph(saver).ainvoke({"messages": [("user", text)]}, config_of(thread_id))
    answer: str = state["messages"][-1].content
    return answer


def chain_on(postgres_url: str, redis_url: str, **more: Any) -> Any:
    """The door, as LangGraph Server enters it once in each of its threads."""
    settings = Settings(postgres_url=postgres_url, redis_url=redis_url, **more)
    return get_checkpointer(settings, telemetry=create_telemetry(registry=CollectorRegistry()))


async def open_chain(postgres_url: str, redis_url: str, **more: Any) -> FallbackSaver:
    saver: FallbackSaver = await chain_on(postgres_url, redis_url, **more)
    return saver


NOWHERE = ("postgresql://postgres@127.0.0.1:1/none", "redis://127.0.0.1:1/0")


async def test_the_tier_memory_is_one_for_all_loops_of_a_process(loops: tuple[Loop, Loop]) -> None:
    """LangGraph Server with BG_JOB_ISOLATED_LOOPS: each turn may run on another loop."""
    one, two = loops
    first = await one.run(open_chain(*NOWHERE))
    assert first.tier == "memory"
    assert await one.run(say(first, "42", "hello")) == "1 so far"
    second = await two.run(open_chain(*NOWHERE))
    assert await two.run(say(second, "42", "and I am Cheolsu")) == "3 so far"
    await first.close()
    assert await two.run(say(second, "42", "who am I?")) == "5 so far", (
        "a chain that ends takes nothing along"
    )
    await second.close()
    third = await one.run(open_chain(*NOWHERE))
    assert await one.run(say(third, "42", "still there?")) == "7 so far"
    other_target = await two.run(open_chain("postgresql://postgres@127.0.0.1:1/other", NOWHERE[1]))
    assert await two.run(say(other_target, "42", "hello")) == "1 so far", "of another database"
    await other_target.close()
    await third.close()


async def test_many_turns_on_both_loops_lose_nothing(loops: tuple[Loop, Loop]) -> None:
    savers = [await loop.run(open_chain(*NOWHERE)) for loop in loops]

    async def talk(saver: FallbackSaver, threads: list[str]) -> None:
        for _ in range(5):
            await asyncio.gather(*(say(saver, each, "hello") for each in threads))

    mine = [[f"{number}-{n}" for n in range(5)] for number in range(2)]
    await asyncio.gather(*(loop.run(talk(s, m)) for loop, s, m in zip(loops, savers, mine, strict=True)))
    for loop, saver, theirs in zip(loops, savers, reversed(mine), strict=True):
        assert [await loop.run(say(saver, each, "and?")) for each in theirs] == ["11 so far"] * 5
        await saver.close()


async def test_what_both_loops_kept_in_memory_is_one_conversation_when_postgresql_is_back(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, loops: tuple[Loop, Loop]
) -> None:
    url = own_postgres.create_database("new")
    own_postgres.stop()
    own_redis.stop()
    more = {"redis_timeout": 5.0, "l1_timeout": 5.0}
    one, two = loops
    quick = await one.run(open_chain(url, own_redis.url, probe_interval=0.1, **more))
    slow = await two.run(open_chain(url, own_redis.url, probe_interval=1000, **more))
    assert await one.run(say(quick, "42", "one")) == "1 so far"
    assert await two.run(say(slow, "42", "two")) == "3 so far"
    own_redis.start()
    own_postgres.start()
    await until(lambda: quick.tier == "cached")
    assert slow.tier == "memory"
    assert await two.run(say(slow, "new", "begun below")) == "1 so far"
    assert await one.run(say(quick, "new", "and on above")) == "3 so far", "it was brought up first"
    assert await one.run(say(quick, "42", "three")) == "5 so far"
    assert await two.run(say(slow, "42", "four")) == "7 so far", "it goes after the thread"
    await until(lambda: slow.tier == "cached")
    await quick.close()
    await slow.close()
    async with open_saver(url, own_redis.url) as saver:
        await settled(saver)
        for thread_id, turns in (("42", 4), ("new", 2)):
            state = await make_graph(saver).aget_state(config_of(thread_id))
            assert len(state.values["messages"]) == 2 * turns
            history = [each async for each in make_graph(saver).aget_state_history(config_of(thread_id))]
            assert len(history) == 3 * turns, "one line"


def test_a_saver_that_was_not_opened_says_how_to_open_it() -> None:
    for door in (
        get_checkpointer(),
        CachedPostgresSaver.from_conn_string("postgresql:///x", redis_url="redis://x"),
    ):
        with pytest.raises(AttributeError, match=r"opened before 'setup' is used.*\.open\(\).*saver = await"):
            door.setup()
        assert not hasattr(door, "get_tuple")


# ------------------------------------------------------------------ gunicorn


def test_gunicorn_with_preload_serves_and_stops(tables: str, redis_url: str, tmp_path: Any) -> None:
    """Two workers, forked from an application whose module has opened a saver, and closes it nowhere."""
    app = tmp_path / "flask_like.py"
    app.write_text(
        BEGINNING
        + MEET
        + """
saver = DOORS["cached"]().open()
saver.setup()


def application(environ, start_response):
    meet()
    thread = Thread(environ["PATH_INFO"])
    thread.newest = saver.put(*thread.next_put(saver))
    turn = saver.get_tuple(thread.config).checkpoint["channel_values"]["turn"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{turn} {os.getpid()}".encode()]
""",
        "utf-8",
    )
    options = ("--preload", "--no-control-socket", "--workers", "2")
    with preforked.Popen(
        AS_A_MODULE,
        *("gunicorn", *options, "--chdir", str(tmp_path), "--bind", "127.0.0.1:0", "flask_like:application"),
        env=environment_of(tables, redis_url),
    ) as server:
        assert server.stderr is not None
        try:
            address = address_in(server.stderr, [])
            urls = [f"{address}/{number}" for number in range(20)]
            with httpx.Client(timeout=60) as client, ThreadPoolExecutor(2) as pool:
                answers = [answer.raise_for_status().text.split() for answer in pool.map(client.get, urls)]
            assert {turn for turn, _ in answers} == {"1"}
            assert len({worker for _, worker in answers}) == 2
        finally:
            server.send_signal(signal.SIGTERM)
            _, rest = server.communicate(timeout=20)  # it kills its workers after 30 s
        assert server.returncode == 0
        assert "SIGKILL" not in rest
        assert "Traceback" not in rest, rest


# ------------------------------------------------------------------ Celery


def test_celery_with_prefork_works_and_stops(tables: str, own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    """Two children, forked from a worker whose module has opened a saver, and closes it nowhere."""
    (tmp_path / "celery_tasks.py").write_text(
        BEGINNING
        + MEET
        + """
from celery import Celery

app = Celery("tasks", broker=REDIS, backend=REDIS)
saver = DOORS["cached"]().open()
saver.setup()


@app.task
def turn(thread_id):
    meet()
    thread = Thread(thread_id)
    thread.newest = saver.put(*thread.next_put(saver))
    return saver.get_tuple(thread.config).checkpoint["channel_values"]["turn"], os.getpid()
""",
        "utf-8",
    )
    options = ("--pool", "prefork", "--concurrency", "2", "--loglevel", "warning", "--without-mingle")
    with preforked.Popen(
        AS_A_MODULE,
        *("celery", "-A", "celery_tasks", "worker", *options),
        env=environment_of(tables, own_redis.url),
        cwd=tmp_path,
    ) as worker:
        try:
            with Celery(broker=own_redis.url, backend=own_redis.url) as app:
                sent = [app.send_task("celery_tasks.turn", [f"thread {number}"]) for number in range(20)]
                answers = [each.get(timeout=60) for each in sent]
            assert {turn for turn, _ in answers} == {1}
            children = {child for _, child in answers}
            assert len(children) == 2
            assert worker.pid not in children
        finally:
            worker.send_signal(signal.SIGTERM)
            said = "".join(worker.communicate(timeout=30))
        assert worker.returncode == 0, said
        assert "Traceback" not in said, said


# ------------------------------------------------------------------ notebooks

NOTEBOOKS = (DOCS / "processes.md").read_text("utf-8")
NOTEBOOKS = NOTEBOOKS.partition("\n## Notebooks\n")[2].partition("\n## ")[0]


def test_the_cells_that_the_docs_show_run_in_a_kernel(
    tables: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, of Jupyter; and it ends although a saver was left open."""
    monkeypatch.setenv("POSTGRES_URL", tables)
    monkeypatch.setenv("REDIS_URL", redis_url)
    begin = """
import os
from langgraph.graph import START, MessagesState, StateGraph
from glasspoint import CachedPostgresSaver, get_checkpointer

POSTGRES_URL, REDIS_URL = os.environ["POSTGRES_URL"], os.environ["REDIS_URL"]
builder = StateGraph(MessagesState)
builder.add_node("answer", lambda state: {"messages": [("ai", f"{len(state['messages'])} so far")]})
builder.add_edge(START, "answer")
inputs = {"messages": [("user", "hello")]}
config = {"configurable": {"thread_id": "notebook"}}
"""
    look = """
saver = CachedPostgresSaver.from_conn_string(POSTGRES_URL, redis_url=REDIS_URL).open()
builder.compile(checkpointer=saver).get_state(config).values["messages"][-1].content
"""
    shown = re.findall(r"```python\n(.*?)```", NOTEBOOKS, re.DOTALL)
    assert len(shown) == 2
    made: Any = nbformat.v4  # which has no types
    book = made.new_notebook(cells=[made.new_code_cell(text) for text in (begin, *shown, look)])
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    [answer] = book.cells[-1].outputs
    assert answer.data["text/plain"] == "'3 so far'"
