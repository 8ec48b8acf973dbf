"""The live page in a real browser, while a real saver works on real servers."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_current_span
from playwright.sync_api import BrowserContext, Page, expect
from prometheus_client import CollectorRegistry

from chromium import WATCH, launched
from glasspoint import CachedPostgresSaver, Telemetry, conversation_turn, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.telemetry.http import serve_telemetry
from glasspoint.telemetry.live import Action, Live, Reply
from glasspoint.telemetry.live.spans import LiveSpans
from live_fake import HOSTILE

TOKEN = "a-token-of-a-test-that-is-long"


class State(TypedDict):
    said: str


@dataclass
class Application:
    """An application in a thread of its own: turns of some threads, again and again."""

    database: str
    redis: EmbeddedRedis
    threads: tuple[str, ...]
    agent: str = "concierge"
    most_turns: int | None = None
    url: str = ""
    _started: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> None:
        registry, provider = CollectorRegistry(), TracerProvider()
        provider.add_span_processor(LiveSpans())
        self._telemetry = create_telemetry(registry=registry, tracer_provider=provider)
        async with CachedPostgresSaver.from_conn_string(
            self.database, redis_url=self.redis.url, telemetry=self._telemetry
        ) as saver:
            await saver.setup()
            graph = StateGraph(State).add_node("answer", lambda state: {"said": f"{state['said']}!"[:40]})
            self._graph = graph.add_edge(START, "answer").add_edge("answer", END).compile(checkpointer=saver)
            live = Live(token=TOKEN, chat=self._talk, actions=self._actions(), keep=True)
            with serve_telemetry(0, registry=registry, live=live) as server:
                self.url = f"{server.url}/live"
                self._started.set()
                turns = 0
                while not self._over.is_set():
                    await asyncio.sleep(0.25)
                    for thread in self.threads:
                        if self.most_turns is None or turns < self.most_turns:
                            await self._turn(thread, "hello")
                            turns += 1

    async def _turn(self, thread_id: str, text: str) -> str:
        telemetry: Telemetry = self._telemetry
        async with conversation_turn(thread_id, agent_name=self.agent, telemetry=telemetry):
            await self._graph.ainvoke({"said": text}, {"configurable": {"thread_id": thread_id}})
            return f"{get_current_span().get_span_context().trace_id:032x}"

    async def _talk(self, thread_id: str, text: str) -> Reply:
        return Reply(f"You said: {text}", await self._turn(thread_id, text))

    def _actions(self) -> list[Action]:
        async def kill() -> str:
            self.redis.kill()
            return "Redis was killed."

        async def start() -> str:
            await asyncio.to_thread(self.redis.start)
            return "Redis was started."

        return [
            Action("kill_redis", "Kill Redis", "PostgreSQL answers alone.", kill, "Redis"),
            Action("start_redis", "Start Redis", "It is a new epoch.", start, "Redis"),
        ]

    @contextmanager
    def running(self) -> Iterator[Application]:
        thread = threading.Thread(target=lambda: asyncio.run(self.run()), name="application")
        thread.start()
        try:
            assert self._started.wait(30)
            yield self
        finally:
            self._over.set()
            thread.join(30)


@pytest.fixture(scope="module")
def window() -> Iterator[BrowserContext]:
    """For all pages: one of its own takes half a second of the processor more than a tab of it."""
    with launched() as browser:
        # Without motion, which takes more of the processor than all else.
        yield browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")


@pytest.fixture
def page(window: BrowserContext) -> Iterator[Page]:
    """A page by which nothing may be said, nothing be asked of others, and the policy not be broken."""
    page = window.new_page()
    page.set_default_timeout(30_000)
    page.add_init_script(WATCH)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    origin = page.url.removesuffix("/live")
    assert said == []
    assert page.evaluate("window.violations") == []
    assert [url for url in asked if not url.startswith(f"{origin}/")] == []
    page.close()


def test_the_page_moves_while_calls_are_made(page: Page, database: str, own_redis: EmbeddedRedis) -> None:
    with Application(database, own_redis, ("one", "two", "three")).running() as application:
        page.goto(application.url)
        expect(page.locator("#link")).to_have_text("Live")
        expect(page.locator("#headline")).to_contain_text(
            re.compile(r"^\S+ reads a second, hit ratio \d+\s%: Redis answers in")
        )
        expect(page.locator("#call-rows tr", has_text="put_writes").first).to_be_visible()
        expect(page.locator("#call-rows tr.hit", has_text="Redis (L1)").first).to_be_visible()
        expect(page.locator(".strip.writes .item:visible", has_text="announced")).to_be_visible()
        before = page.locator(".strip.writes .big b").inner_text()
        expect(page.locator(".strip.writes .big b")).not_to_have_text(before)
        for thread in ("one", "two", "three"):
            expect(page.locator("#conversation-list h3", has_text=thread)).to_be_visible()
        # The chip of the identity holds what the saver itself says.
        expect(page.locator(".chip", has_text="Identity").locator("b")).to_have_text(
            re.compile(r"^[0-9a-f]{7}…$")
        )


def test_a_turn_opens_as_the_waterfall_that_glasspoint_trace_draws(
    page: Page, database: str, own_redis: EmbeddedRedis
) -> None:
    with Application(database, own_redis, ("one",), most_turns=3).running() as application:
        page.goto(f"{application.url}#token={TOKEN}")
        page.locator(".turns .turn button").first.click()
        frame = page.frame_locator("#turn-frame")
        expect(frame.locator("h1")).to_have_text("one")
        expect(frame.locator(".row .name", has_text="checkpoint.get_tuple").first).to_be_visible()
        # The frame has an origin of its own: it cannot reach what the page keeps.
        handle = page.locator("#turn-frame").element_handle()
        assert handle is not None
        inner = handle.content_frame()
        assert inner is not None
        assert inner.evaluate("window.origin") == "null"
        with pytest.raises(Exception, match=r"sandboxed|SecurityError|denied"):
            inner.evaluate("sessionStorage.length")
        with page.expect_popup() as popup:
            page.locator("#turn-tab").click()
        expect(popup.value.locator("h1")).to_have_text("one")
        popup.value.close()


def test_what_is_typed_is_a_turn_of_its_own(page: Page, database: str, own_redis: EmbeddedRedis) -> None:
    with Application(database, own_redis, ()).running() as application:
        page.goto(f"{application.url}#token={TOKEN}")
        expect(page.locator("#headline")).to_contain_text("No traffic yet.")
        for number in (1, 2):
            page.locator("#chat-text").fill("내 이름은 철수야")
            page.keyboard.press("Enter")
            expect(page.locator("#chat-log .agent .turn-link")).to_have_count(number)
        expect(page.locator("#chat-log .turn-link").last).to_contain_text("state read from Redis (L1)")
        page.locator("#chat-log .turn-link button").last.click()
        expect(page.frame_locator("#turn-frame").locator(".turn h2")).to_have_text(["Turn 1", "Turn 2"])
        # Never what was said.
        page.keyboard.press("Escape")
        assert "철수" not in page.locator("main > section").all_inner_texts().__str__()


def test_a_button_breaks_redis_and_the_page_tells_the_fall_and_the_recovery(
    page: Page, database: str, own_redis: EmbeddedRedis
) -> None:
    with Application(database, own_redis, ("one", "two")).running() as application:
        page.goto(f"{application.url}#token={TOKEN}")
        expect(page.locator("#headline")).to_have_attribute("data-level", "good")
        page.get_by_role("button", name="Kill Redis").click()
        expect(page.locator("#faults-said")).to_have_text("Redis was killed.")
        expect(page.locator("#headline")).to_have_text(
            "Redis does not answer. PostgreSQL answers alone: slower, and nothing is lost."
        )
        expect(page.locator(".chip", has_text="Breaker").locator("b")).to_have_text("open")
        expect(page.locator(".box.l1")).to_have_class("box l1 away")
        expect(page.locator(".band.open").first).to_be_visible()
        page.get_by_role("button", name="Start Redis").click()
        expect(page.locator(".chip", has_text="Breaker").locator("b")).to_have_text("closed")
        expect(page.locator("#headline")).to_have_attribute("data-level", "good")
        expect(page.locator(".chip", has_text="Epoch").locator("b")).to_contain_text("changed")
        kinds = page.locator("#event-list .event b").all_inner_texts()
        assert kinds[-1] == "Saver"
        assert {"Fault", "Breaker", "Epoch"} <= set(kinds)
        first = kinds[::-1].index
    assert first("Saver") < first("Fault") < first("Breaker") < first("Epoch")


def test_hostile_names_are_text_on_the_page_and_in_its_turns(
    page: Page, database: str, own_redis: EmbeddedRedis
) -> None:
    with Application(database, own_redis, HOSTILE[:4], agent=HOSTILE[0]).running() as application:
        page.goto(application.url)
        for name in HOSTILE[:4]:
            expect(page.locator("#conversation-list h3").get_by_text(name, exact=True)).to_be_visible()
        expect(page.locator("#call-rows .who").get_by_text(HOSTILE[0], exact=True).first).to_be_visible()
        page.locator(".turns .turn button").first.click()
        frame = page.frame_locator("#turn-frame")
        expect(frame.locator(".turn h2").first).to_be_visible()
        assert frame.locator("img, svg").count() == 0
        assert page.evaluate("window.owned") is None
        assert page.evaluate("document.querySelectorAll('img').length") == 1
