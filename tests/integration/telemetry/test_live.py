"""The live page's events: what they tell, that they cost nothing while no page is open, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

import preforked
from glasspoint import Telemetry, configure_telemetry, conversation_turn, create_telemetry
from glasspoint.model.scope import Scope
from glasspoint.telemetry.events import (
    BreakerChanged,
    Drained,
    EpochChanged,
    InterruptStored,
    Observer,
    Operation,
    ThreadDrained,
    TierChanged,
)
from glasspoint.telemetry.http import serve_telemetry, telemetry_app
from glasspoint.telemetry.live import Action, Live, hub
from glasspoint.telemetry.live.hubs import Hub
from glasspoint.telemetry.live.spans import LiveSpans
from glasspoint.telemetry.live.turns import RecentTurns, certainly_kept, recent
from glasspoint.telemetry.live.viewers import Viewer
from glasspoint.trace.spans import Span
from live import KINDS, Kind, Page, serving, serving_app
from states import open_saver
from steps import Thread, until

SECRET = "my name is Ada"  # what must never be shown


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, registry: CollectorRegistry) -> Iterator[str]:
    with serving(request.param, registry) as found:
        yield found


@pytest.fixture(autouse=True)
def _nobody_waits_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "linger_seconds", 0.0)
    monkeypatch.setattr("glasspoint.telemetry.live.hubs._TICK_SECONDS", 0.02)
    monkeypatch.setattr("glasspoint.telemetry.live.hubs._FIGURES_SECONDS", 0.1)


def call(telemetry: Telemetry, thread: str = "t", error: ValueError | None = None, **facts: Any) -> None:
    """One call of a saver."""
    with suppress(ValueError), telemetry.operation("get_tuple", Scope(thread, "")) as operation:
        for name, value in facts.items():
            setattr(operation, name, value)
        if error is not None:
            raise error


async def get(url: httpx.URL | str) -> httpx.Response:
    return await asyncio.to_thread(httpx.get, url)


def is_recording() -> bool:
    return "glasspoint-live" in {thread.name for thread in threading.enumerate()}


async def nobody_looks() -> None:
    await until(lambda: not is_recording())


# -------------------------------------------------------------------- what is told


async def test_a_page_is_told_first_what_there_is(url: str) -> None:
    with Page(url) as page:
        await until(lambda: page.of("figures"))
        assert page.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert [name for name, _ in page.events][:2] == ["hello", "history"]
        hello = page.newest("hello")
    assert (hello["pid"], hello["thread_ids"], hello["peers"]) == (os.getpid(), "plain", [])
    assert (hello["actions"], hello["chat"], hello["multiprocess"]) == ([], False, False)
    assert hello["limits"] == {"feed": 200, "timeline": 500, "conversations": 50}


async def test_it_moves_while_a_saver_works(
    url: str, registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver:
        thread = Thread("kim")
        await thread.put(saver)
        with Page(url) as page:
            await until(lambda: page.of("figures"))
            await thread.turn(saver)
            await thread.turn(saver)
            await thread.put(saver)
            reads = await until(lambda: [each for each in page.calls if each["op"] == "get_tuple"])
            await until(lambda: [each for each in page.calls if each["op"] == "put"])
            await until(lambda: any(each["sum"]["hit"]["rate"] for each in page.of("figures")))
            figures = page.newest("figures")
            await until(lambda: "kim" in page.conversations)
        assert reads[0] | {"at": 0, "ms": 0} == {
            "at": 0,
            "thread": "kim",
            "ns": "",
            "op": "get_tuple",
            "result": "hit",
            "level": "l1",
            "ms": 0,
            "outcome": "ok",
            "error": None,
            "saver": "default",
            "trace_id": None,
        }
        assert reads[0]["ms"] > 0
        assert page.conversations["kim"]["calls"] >= 2
        assert figures["sum"] == figures["each"]["here"]
        assert figures["sum"]["savers"] == ["default"]
        assert figures["sum"]["tier"] == "cached"
        assert figures["sum"]["identity"] == saver.status.identity
        assert page.lines[0]["text"] == "saver opened, tier cached"


async def test_a_failed_call_shows_its_class_alone(url: str, registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)
    with Page(url) as page:
        await until(lambda: page.of("figures"))
        call(telemetry, error=ValueError(SECRET))
        [failed] = await until(lambda: page.calls)
        text = str(page.events)
    assert (failed["outcome"], failed["error"], failed["level"]) == ("error", "ValueError", None)
    assert SECRET not in text


async def test_of_many_calls_the_newest_are_shown_and_the_others_counted(
    url: str, registry: CollectorRegistry
) -> None:
    telemetry = create_telemetry(registry=registry)
    with Page(url) as page:
        await until(lambda: page.of("figures"))
        call(telemetry, "fails", error=ValueError())
        for number in range(400):
            call(telemetry, f"t-{number}")
        await until(lambda: "t-399" in {each["thread"] for each in page.calls})
        told = page.of("calls")
    assert all(len(each["calls"]) <= 50 for each in told)
    assert sum(len(each["calls"]) + each["skipped"] for each in told) == 401
    assert "fails" in {each["thread"] for each in page.calls}, "a failure is never left out"


@pytest.mark.parametrize(("way", "shown"), [("hashed", "73475cb40a568e8d"), ("none", None)])
async def test_thread_ids_are_shown_as_the_saver_s_telemetry_says(
    registry: CollectorRegistry, way: Any, shown: str | None
) -> None:
    telemetry = create_telemetry(registry=registry, thread_ids=way)
    with serving("thread", registry) as url, Page(url) as page:
        await until(lambda: page.of("figures"))
        assert page.newest("hello")["thread_ids"] == way
        call(telemetry, "42")
        assert (await until(lambda: page.calls))[0]["thread"] == shown
        assert not page.conversations if shown is None else await until(lambda: shown in page.conversations)
        assert '"42"' not in json.dumps(page.events)


@pytest.mark.parametrize(
    "hostile",
    ["</script><script>alert(1)</script>", "a\n\ndata: {}\n\n", "\ud800", "\u2028\u202e", "\0", "x" * 5000],
)
async def test_hostile_thread_ids_are_data(url: str, registry: CollectorRegistry, hostile: str) -> None:
    telemetry = create_telemetry(registry=registry)
    with Page(url) as page:
        await until(lambda: page.of("figures"))
        call(telemetry, hostile)
        [found] = await until(lambda: page.calls)
        assert found["thread"] == hostile[:200]
        assert (await until(lambda: page.conversations)).keys() == {hostile[:200]}
        assert {name for name, _ in page.events} <= {
            "hello",
            "history",
            "timeline",
            "figures",
            "calls",
            "conversations",
        }


async def test_rare_events_are_kept_while_nobody_looks(url: str, registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)
    telemetry.emit(TierChanged("cached", "redis", "postgres_unavailable"))
    telemetry.emit(BreakerChanged("open", "closed", "timeout"))
    telemetry.emit(EpochChanged())
    telemetry.emit(TierChanged("redis", "cached", "recovered"))
    telemetry.emit(Drained("redis", 7))
    hub(registry).mark("story", "Act 2: Redis is flushed", "warning")
    with Page(url) as page:
        await until(lambda: page.of("timeline"))
        assert [(each["kind"], each["level"]) for each in page.lines] == [
            ("tier", "warning"),
            ("breaker", "warning"),
            ("epoch", "warning"),
            ("tier", "good"),
            ("drain", "good"),
            ("story", "warning"),
        ]
        assert [each["saver"] for each in page.lines] == [*["default"] * 5, None]
        assert "7 checkpoints" in page.lines[4]["text"]
        hub(registry).mark("story", "Act 3", "info")
        await until(lambda: page.lines[-1]["text"] == "Act 3")


async def test_ten_thousand_drained_threads_do_not_hide_the_outage(registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)
    telemetry.emit(TierChanged("cached", "redis", "postgres_unavailable"))
    for _ in range(10_000):
        telemetry.emit(ThreadDrained("continued"))
    lines, _ = hub(registry).watch.timeline.since(0)
    assert lines[0]["kind"] == "tier"
    assert len(lines) < 100
    drained = [int(line["text"].split()[0].replace(",", "")) for line in lines[1:]]
    assert sum(drained) == 10_000


async def test_the_probes_of_an_open_breaker_do_not_hide_the_outage(registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)
    telemetry.emit(BreakerChanged("open", "closed", "timeout"))
    for _ in range(1000):
        telemetry.emit(BreakerChanged("half_open", "open", ""))
        telemetry.emit(BreakerChanged("open", "half_open", "refused"))
    telemetry.emit(BreakerChanged("half_open", "open", ""))
    telemetry.emit(BreakerChanged("closed", "half_open", ""))
    lines, _ = hub(registry).watch.timeline.since(0)
    assert [line["text"] for line in lines] == [
        "breaker open: PostgreSQL answers instead (timeout)",
        "breaker closed: Redis is used again",
    ]


async def test_savers_of_other_registries_are_not_shown(url: str, registry: CollectorRegistry) -> None:
    other = create_telemetry(registry=CollectorRegistry())
    own = create_telemetry(registry=registry)
    with Page(url) as page:
        await until(lambda: page.of("figures"))
        call(other, "other")
        other.emit(EpochChanged())
        call(own, "own")
        await until(lambda: page.calls)
    assert {each["thread"] for each in page.calls} == {"own"}
    assert not page.lines


async def test_a_page_that_is_loaded_again_finds_what_it_had(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "linger_seconds", 3600.0)
    telemetry = create_telemetry(registry=registry)
    with serving("thread", registry) as url:
        with Page(url) as page:
            await until(lambda: len(page.of("figures")) > 2)
            call(telemetry, "before")
            await until(lambda: page.calls)
        call(telemetry, "meanwhile")
        with Page(url) as page:
            await until(lambda: "meanwhile" in {each["thread"] for each in page.calls})
            assert {each["thread"] for each in page.calls} == {"before", "meanwhile"}
            await until(lambda: page.of("figures"))
            history = page.newest("history")["figures"]
            assert history
            assert history[0]["sum"].keys() == page.newest("figures")["sum"].keys()
    monkeypatch.setattr(Hub, "linger_seconds", 0.0)
    await nobody_looks()


# -------------------------------------------------------------------- what it costs


async def test_while_no_page_is_open_a_call_has_no_further_observer(
    url: str, registry: CollectorRegistry
) -> None:
    """Not before the first page, and not after the last."""
    first = create_telemetry(registry=registry)
    without = receivers(first)
    standby = first.for_standby()
    with Page(url) as page:
        await until(lambda: page.of("figures"))
        later = create_telemetry(registry=registry, saver_name="later")
        second = first.for_standby()
        for each in (first, standby, later, second):
            assert receivers(each) == without + 1
            call(each, "seen")
        await until(lambda: len(page.calls) == 4)
        assert {each["saver"] for each in page.calls} == {"default", "later"}
    await nobody_looks()
    assert [receivers(each) for each in (first, standby, later, second)] == [without] * 4
    assert not recent.is_open


def receivers(telemetry: Telemetry) -> int:
    """How many observers are told of the end of a call."""
    return len(telemetry._listeners.operation_ended)


def test_an_attached_observer_hears_what_begins_later() -> None:
    class Listening(Observer):
        def __init__(self) -> None:
            self.names: list[str] = []

        def operation_ended(self, operation: Operation) -> None:
            self.names.append(operation.name)

    always, sometimes = Listening(), Listening()
    telemetry = Telemetry("default", [always])
    with telemetry.operation("put", None):
        telemetry.attach([sometimes])  # this call has its observers
    with telemetry.operation("get_tuple", None):
        telemetry.attach([])
    with telemetry.operation("list", None):
        pass
    assert always.names == ["put", "get_tuple", "list"]
    assert sometimes.names == ["get_tuple"]
    assert telemetry.observers == (always,)


def many(telemetry: Telemetry) -> None:
    for _ in range(500):
        call(telemetry)


async def test_calls_of_several_threads_are_all_counted(registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)
    with serving("thread", registry) as url, Page(url) as page:
        await until(lambda: page.of("figures"))
        threads = [threading.Thread(target=many, args=(telemetry,)) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        call(telemetry, "last")
        await until(lambda: "last" in {each["thread"] for each in page.calls})
        assert sum(len(each["calls"]) + each["skipped"] for each in page.of("calls")) == 2001


# -------------------------------------------------------------------- how it ends


async def test_a_page_that_was_closed_takes_no_place(url: str, registry: CollectorRegistry) -> None:
    pages = [Page(url) for _ in range(8)]
    full = Page(url)
    assert (full.status, "8 live pages are open" in full.text) == (503, True)
    for each in pages:
        each.close()
    await nobody_looks()
    with Page(url) as page:
        assert page.status == 200


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_closes_says_so_and_waits_for_no_page(
    kind: Kind, registry: CollectorRegistry
) -> None:
    with serving(kind, registry) as url:  # which asserts that the server ends
        page = Page(url)
        await until(lambda: page.of("figures"))
    await until(lambda: page.is_over)
    assert page.events[-1][0] == "bye"
    assert page.newest("bye")["reason"]
    page.close()
    await nobody_looks()


async def test_the_app_can_be_mounted(registry: CollectorRegistry) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    app.mount("/telemetry", telemetry_app(registry, live=True))
    with serving_app(app) as url:
        assert (await get(f"{url}/telemetry/live/static/main.js")).status_code == 200
        leads = await get(f"{url}/telemetry/live/")
        assert leads.next_request is not None
        assert leads.next_request.url == f"{url}/telemetry/live"
        with Page(f"{url}/telemetry") as page:
            await until(lambda: page.of("figures"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_a_signal_ends_a_service_with_an_open_page(name: str, tmp_path: Path) -> None:
    """With a middleware, which hides the server from the app."""
    (tmp_path / "service.py").write_text(
        "from fastapi import FastAPI\n"
        "from starlette.middleware.base import BaseHTTPMiddleware\n"
        "from glasspoint.telemetry.http import telemetry_app\n"
        "app = FastAPI()\n"
        "async def passing(request, call_next):\n"
        "    return await call_next(request)\n"
        "app.add_middleware(BaseHTTPMiddleware, dispatch=passing)\n"
        "app.mount('/telemetry', telemetry_app(live=True))\n"
    )
    code = """
import runpy, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1])
sys.argv[1:] = ["service:app", "--fd", str(listening.fileno()), "--log-level", "error"]
runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
"""
    with preforked.Popen(code, env=os.environ, cwd=tmp_path) as service:
        assert service.stdout is not None
        try:
            page = Page(f"http://127.0.0.1:{int(service.stdout.readline())}/telemetry")
            await until(lambda: page.of("figures"))
            service.send_signal(getattr(signal, name))
            _, said = await asyncio.to_thread(service.communicate, timeout=30)
        finally:
            service.kill()
    await until(lambda: page.is_over)
    assert page.newest("bye") == {"reason": "the server shuts down"}
    page.close()
    assert "Traceback" not in said, said


def small_buffers(url: str) -> socket.socket:
    """A client that takes little, and reads only when it is told to."""
    address = httpx.URL(url)
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    wire.connect((address.host, address.port or 0))
    wire.sendall(b"GET /live/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return wire


@pytest.mark.parametrize("kind", KINDS)
async def test_a_page_that_reads_too_slowly_is_dropped(
    kind: Kind, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it: neither the calls nor the other pages."""
    monkeypatch.setattr("glasspoint.telemetry.live.wsgi.SEND_SECONDS", 0.2)
    monkeypatch.setattr("glasspoint.telemetry.live.asgi.SEND_SECONDS", 0.2)
    monkeypatch.setattr("glasspoint.telemetry.live.hubs._TICK_SECONDS", 0.01)
    with serving(kind, registry, Live(max_viewers=1)) as url, small_buffers(url) as slow:
        assert slow.recv(1), "it has begun"
        assert Page(url).status == 503

        def has_a_place() -> bool:
            for number in range(500):
                hub(registry).mark("story", f"{number} {'x' * 490}")
            with Page(url) as page:
                return page.status == 200

        await until(has_a_place)


def test_a_queue_that_is_full_drops_its_page() -> None:
    woken: list[None] = []
    viewer = Viewer((), lambda: woken.append(None))
    assert all(viewer.put(b"x") for _ in range(64))
    assert not viewer.put(b"x")
    assert viewer.is_over
    assert viewer.take() == b"", "its memory is free"
    assert not viewer.put(b"x")
    assert woken


@pytest.mark.slow
def test_a_child_after_a_fork_has_no_pages() -> None:
    """It records nothing for the parent's pages, and can serve pages of its own."""
    code = """
import os, threading, time
from prometheus_client import CollectorRegistry
from glasspoint import create_telemetry
from glasspoint.telemetry.http import serve_telemetry
from glasspoint.telemetry.live import hub
from glasspoint.telemetry.live.turns import recent
from live import Page

def receivers():
    return len(telemetry._listeners.operation_ended)

registry = CollectorRegistry()
telemetry = create_telemetry(registry=registry)
without = receivers()
hub(registry).mark("story", "of the parent")
with serve_telemetry(0, registry=registry, live=True) as server, Page(server.url) as page:
    while not page.of("figures"):
        time.sleep(0.005)
    assert receivers() == without + 1
    if (child := os.fork()) == 0:
        assert receivers() == without
        assert not recent.is_open
        with serve_telemetry(0, registry=registry, live=True) as own, Page(own.url) as again:
            while not again.of("figures"):
                time.sleep(0.005)
            assert again.newest("hello")["pid"] == os.getpid()
            assert not again.lines
            assert receivers() == without + 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert receivers() == without + 1
"""
    ended = preforked.run(code, env=os.environ, timeout=60)
    assert ended.returncode == 0, ended.stderr


# -------------------------------------------------------------------- turns


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(LiveSpans())
    yield provider
    provider.shutdown()
    # The hub's thread notices at its next tick that the last page has closed.
    gives_up_at = time.monotonic() + 20
    while recent.is_open:
        assert time.monotonic() < gives_up_at, "a test has left a page open"
        time.sleep(0.005)


async def test_conversations_show_their_turns_and_what_they_follow(
    registry: CollectorRegistry, provider: TracerProvider, database: str, redis_url: str
) -> None:
    telemetry = create_telemetry(registry=registry, tracer_provider=provider)
    thread, scope = Thread("kim"), Scope("kim", "")
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        with serving("thread", registry) as url, Page(url) as page:
            await until(lambda: page.of("figures"))
            assert page.newest("hello")["spans"]
            for number in range(3):
                with conversation_turn("kim", agent_name="concierge", telemetry=telemetry):
                    await thread.turn(saver)
                    await thread.put(saver)
                    if number == 1:
                        telemetry.emit(InterruptStored(scope, "task", "raised", True))
            turns = (await until(lambda: len(turns_of(page, "kim")) == 3 and page.conversations["kim"]))[
                "turns"
            ]
            assert page.conversations["kim"]["agent"] == "concierge"
            assert [each["number"] for each in turns] == [1, 2, 3]
            assert [each["outcome"] for each in turns] == ["ok", "interrupted", "ok"]
            assert [each["interrupts"] for each in turns] == [[], ["raised"], []]
            assert [each["reads"] for each in turns] == [{"l2": 1}, {"l1": 1}, {"l1": 1}]
            assert [each["follows"] for each in turns] == [None, turns[0]["trace_id"], turns[1]["trace_id"]]
            assert all(each["ms"] > 0 for each in turns)
            assert {each["trace_id"] for each in page.calls} >= {each["trace_id"] for each in turns}

            shown = await get(f"{url}/live/turns/{turns[1]['trace_id']}")
            policy = shown.headers["content-security-policy"]
            assert (shown.status_code, "frame-ancestors 'self'" in policy) == (200, True)
            [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', shown.text)
            assert json.loads(data)["at"] == "turn-2"
            assert [each["trace_id"] for each in json.loads(data)["turns"]] == [
                each["trace_id"] for each in turns
            ]
            assert "invoke_agent concierge" in data
            assert "sandbox allow-scripts" in policy, "it cannot reach what the page has"
            assert "'self'" not in policy.partition("frame-ancestors")[0], "it loads nothing"
            assert (await get(f"{url}/live/turns/{'0' * 32}")).status_code == 404
            assert (await get(f"{url}/live/turns/..%2f..")).status_code == 404
    await nobody_looks()
    assert recent.all() == []


def turns_of(page: Page, thread: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.conversations.get(thread, {"turns": []})["turns"]
    return found


async def test_content_is_never_shown_whatever_the_spans_hold(
    registry: CollectorRegistry, provider: TracerProvider
) -> None:
    telemetry = create_telemetry(registry=registry, tracer_provider=provider)
    with serving("thread", registry) as url, Page(url) as page:
        await until(lambda: page.of("figures"))
        turn = conversation_turn("kim", agent_name="concierge", telemetry=telemetry, capture_content=True)
        with turn as span:
            turn.record_input(SECRET)
            span.set_attribute("user.said", SECRET)
            span.add_event("gen_ai.user.message", {"content": SECRET})
            for scope in (
                "openinference.instrumentation.langchain",
                "opentelemetry.instrumentation.openai.v1",
                "opentelemetry.instrumentation.psycopg",
                "the.application",
            ):
                try:
                    with provider.get_tracer(scope).start_as_current_span("inner") as inner:
                        for name in (
                            "input.value",
                            "gen_ai.prompt.0.content",
                            "db.statement",
                            "url.full",
                            "metadata",
                        ):
                            inner.set_attribute(name, SECRET)
                        inner.set_attribute("llm.model_name", "model-7")
                        raise ValueError(SECRET)
                except ValueError:
                    pass
        [shown] = await until(lambda: turns_of(page, "kim"))
        text = (await get(f"{url}/live/turns/{shown['trace_id']}")).text
        assert "model-7" in text
        assert text.count('"name":"inner"') == 4
        assert SECRET not in text + str(page.events)


async def test_what_is_kept_of_turns_is_bounded(registry: CollectorRegistry) -> None:
    kept = RecentTurns()
    kept.open()
    for thread in range(60):
        for turn in range(25):
            for number in range(3):
                kept.add(span(f"{1000 * thread + turn:032x}", number, f"t-{thread}"))
    found = kept.all()
    assert len(found) == 50
    assert found[-1]["thread"] == "t-59"
    assert all(len(each["turns"]) == 20 for each in found)
    assert [each["number"] for each in found[-1]["turns"]] == list(range(6, 26)), "numbers go on"
    for number in range(1000):
        kept.add(span("f" * 32, number + 1, "t-59", filling=0))
    kept.add(span("f" * 32, 0, "t-59"))
    shown = kept.conversation_with("f" * 32)
    assert shown is not None
    conversation, last = shown
    assert (len(last.spans), last.is_turn) == (301, True)
    assert "700 spans were left out" in conversation.remarks[0]
    kept.changed()
    for thread in range(40):
        kept.add(span(f"{10**9 + thread:032x}", 0, f"big-{thread}", filling=2000))
    assert 15 * 2**20 < kept.bytes <= 16 * 2**20
    found = kept.all()
    assert found[-1]["thread"] == "big-39"
    assert len(found) < 40, "fewer conversations than the bound of their number: the bytes were too many"
    assert {each["thread"] for each in kept.changed()} == {each["thread"] for each in found}
    kept.close()
    kept.add(span("f" * 32, 0, "t-59"))
    assert (kept.all(), kept.bytes) == ([], 0)


def span(trace_id: str, number: int, thread: str, *, filling: int = 0) -> Span:
    """A span of a turn; number 0 is the turn's own."""
    attributes: dict[str, Any] = {"gen_ai.conversation.id": thread} | {
        f"a{i}": "x" * 200 for i in range(filling)
    }
    if number == 0:
        attributes["gen_ai.operation.name"] = "invoke_agent"
    parent = f"{1:016x}" if number else ""
    return Span(
        trace_id, f"{number + 1:016x}", parent, "checkpoint.put" if number else "invoke_agent",
        int(trace_id, 16) % 10**15 + 1, int(trace_id, 16) % 10**15 + 2, attributes, {}, scope="glasspoint",
    )  # fmt: skip


def test_a_busy_process_pays_for_few_of_its_traces() -> None:
    kept = RecentTurns()
    kept.open()
    for number in range(1000):
        kept.begins(f"{number:032x}")
    assert sum(kept.is_kept(f"{number:032x}") for number in range(1000)) <= 20
    assert kept.is_kept(f"{0:032x}")


def test_single_calls_take_no_turn_s_place_and_what_somebody_asks_for_is_always_kept() -> None:
    kept = RecentTurns()
    kept.open()
    for number in range(1000):
        kept.begins(f"{number:032x}", is_call=True)
    turns = [f"{number:032x}" for number in range(1000, 1010)]
    for turn in turns:
        kept.begins(turn)
    assert all(kept.is_kept(turn) for turn in turns)
    with certainly_kept():
        kept.begins(f"{2000:032x}")
    assert kept.is_kept(f"{2000:032x}")
    assert sum(kept.is_kept(f"{number:032x}") for number in range(1000)) <= 4
    with certainly_kept():
        for number in range(2000, 4000):
            kept.begins(f"{number:032x}")
            kept.begins(f"{number:032x}")
    assert sum(kept.is_kept(f"{number:032x}") for number in range(4000)) == 1000, "and yet bounded"


async def test_while_calls_are_many_each_turn_is_there_with_its_spans(
    registry: CollectorRegistry, provider: TracerProvider
) -> None:
    telemetry = create_telemetry(registry=registry, tracer_provider=provider)
    recent.open()
    try:
        for number in range(50):
            call(telemetry, f"alone-{number}")
        async with conversation_turn("a turn", telemetry=telemetry):
            for _ in range(20):
                call(telemetry, "a turn")
        [found] = [each for each in recent.all() if each["thread"] == "a turn"]
        kept = recent.conversation_with(found["turns"][0]["trace_id"])
        assert kept is not None
        assert len(kept[0].turns[0].spans) == 21
    finally:
        recent.close()


def test_configure_telemetry_shows_turns_by_itself(registry: CollectorRegistry) -> None:
    recent.open()
    try:
        with configure_telemetry(set_global=False) as configured:
            telemetry = create_telemetry(registry=registry, tracer_provider=configured.tracer_provider)
            with conversation_turn("by-itself", telemetry=telemetry):
                pass
        assert [each["thread"] for each in recent.all()] == ["by-itself"]
    finally:
        recent.close()


async def test_turns_are_kept_without_a_page_if_asked(
    registry: CollectorRegistry, provider: TracerProvider
) -> None:
    telemetry = create_telemetry(registry=registry, tracer_provider=provider)
    with serving("thread", registry, Live(keep=True)) as url:
        await until(lambda: recent.is_open)
        with conversation_turn("early", telemetry=telemetry):
            call(telemetry, "early")
        with Page(url) as page:
            await until(lambda: turns_of(page, "early"))
    await nobody_looks()


# -------------------------------------------------------------------- several processes


class Peer:
    """Another process, as far as HTTP shows it."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        peer = self
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                peer.asked += 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            server_bind = TCPServer.server_bind  # HTTPServer's own asks for this machine's name

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


async def test_a_page_follows_several_processes(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CollectorRegistry()
    there, here = create_telemetry(registry=other), create_telemetry(registry=registry)
    with (
        serve_telemetry(0, registry=other) as first,
        serve_telemetry(0, registry=other) as second,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        gone = serve_telemetry(0, registry=other)
        gone.close()
        monkeypatch.setenv("GLASSPOINT_LIVE", "1")
        monkeypatch.setenv(
            "GLASSPOINT_LIVE_PEERS",
            f"a={first.url}/metrics, b={second.url}/metrics, gone={gone.url}/metrics,"
            f"silent=http://127.0.0.1:{silent.getsockname()[1]}/metrics",
        )
        with (
            serving("app", registry, None) as url,
            Page(url) as everybody,
            Page(url, "/live/events?peers=a") as some,
            Page(url, "/live/events?peers=") as alone,
        ):
            await until(lambda: "reads" in newest_of(everybody, "b"))
            await until(
                lambda: newest_of(everybody, "gone") == {"error": "does not answer: connection refused"}
            )
            await until(
                lambda: newest_of(everybody, "silent").get("error", "").startswith("does not answer within")
            )

            def moved() -> bool:
                call(there, l1_result="hit", served_by="l1")
                call(here, l1_result="hit", served_by="l1")
                figures = everybody.newest("figures")
                rates = {name: each["hit"]["rate"] for name, each in figures["each"].items() if "hit" in each}
                total = figures["sum"]["hit"]["rate"]
                return all(rates.values()) and abs(sum(rates.values()) - total) < 1e-6

            await until(moved)
            assert everybody.newest("figures")["each"].keys() == {"here", "a", "b", "gone", "silent"}
            assert some.newest("figures")["each"].keys() == {"here", "a"}
            assert alone.newest("figures")["each"].keys() == {"here"}
            assert everybody.newest("hello")["peers"] == ["a", "b", "gone", "silent"]


def newest_of(page: Page, name: str) -> dict[str, Any]:
    found: dict[str, Any] = page.newest("figures").get("each", {}).get(name, {})
    return found


@pytest.mark.parametrize("peers", ["http://10.0.0.1/metrics", "a,b", "here", "a%0d%0aX"])
async def test_a_browser_cannot_name_what_is_asked(registry: CollectorRegistry, peers: str) -> None:
    peer = Peer(200, {}, b"")
    try:
        with serving("thread", registry, Live(peers={"a": peer.url})) as url:
            refused = Page(url, f"/live/events?peers={peers}")
            assert (refused.status, "10.0.0.1" in refused.text) == (400, False)
        assert peer.asked == 0
    finally:
        peer.close()


@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        (200, {}, b"<html>hello", "answers, but shows no metrics of Glasspoint's"),
        (200, {}, b"glasspoint_reads{ 1 2 3\n", "answers, but with something that is no Prometheus metrics"),
        (200, {}, b"\n" * 16_000_001, "answers with more than 16 MB"),
        (500, {}, b"", "answers with the status 500 (Internal Server Error)"),
        (302, {"Location": "http://127.0.0.1:1/secret"}, b"", "answers with the status 302 (Found)"),
    ],
)
async def test_what_a_peer_answers_is_data(
    registry: CollectorRegistry, status: int, headers: dict[str, str], body: bytes, error: str
) -> None:
    peer = Peer(status, headers, body)
    try:
        with serving("thread", registry, Live(peers={"a": peer.url})) as url, Page(url) as page:
            await until(lambda: newest_of(page, "a") == {"error": error})
    finally:
        peer.close()


async def test_a_peer_cannot_flood_the_pages(registry: CollectorRegistry) -> None:
    names = "# TYPE glasspoint_info gauge\n" + "".join(
        f'glasspoint_info{{saver="{number}{"x" * 300}",version="1"}} 1\n' for number in range(5000)
    )
    peer = Peer(200, {}, names.encode())
    try:
        with serving("thread", registry, Live(peers={"a": peer.url})) as url, Page(url) as page:
            found = await until(lambda: newest_of(page, "a").get("savers"))
            assert len(json.dumps(page.newest("figures"))) < 100_000
            assert (len(found), max(map(len, found))) == (50, 200)
    finally:
        peer.close()


async def test_states_of_buttons_are_told_with_the_figures(registry: CollectorRegistry) -> None:
    async def press() -> str:
        return "Stopped."

    state = {"stop": "running"}
    live = Live(
        actions=[Action("stop", "Stop PostgreSQL", "It stops", press, "PostgreSQL")], tells=lambda: state
    )
    with serving("thread", registry, live) as url, Page(url) as page:
        await until(lambda: page.newest("figures").get("actions") == {"stop": "running"})
        state["stop"] = "stopped"
        await until(lambda: page.newest("figures").get("actions") == {"stop": "stopped"})
        assert page.newest("hello")["actions"] == [
            {
                "name": "stop",
                "label": "Stop PostgreSQL",
                "hint": "It stops",
                "group": "PostgreSQL",
                "doing": "Stop PostgreSQL …",
                "level": "warning",
            }
        ]
