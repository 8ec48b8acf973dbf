"""The page of `glasspoint trace --html`, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from chromium import launched
from glasspoint.errors import ConfigurationError
from glasspoint.trace.conversation import Conversation, conversation_from
from glasspoint.trace.otlp import spans_of
from glasspoint.trace.page import page_of, write_page
from recorded import START, THREAD, read, request, span, turn

ATTACKS = (
    "</script><img src=x onerror=\"window.owned='img'\">",
    "<!--<script>window.owned='script'</script>",
    "{{script}}{{data}}",
    "\"'><svg onload=window.owned='svg'>",
    "javascript:window.owned='link'",
    "__proto__",
    "\u2028\u202e\x1b[2J\ud800",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Page]:
    """One for all: each page of its own is a process of the browser."""
    page = browser.new_page()
    page.set_default_timeout(30_000)
    yield page
    page.close()


class Shown:
    """A page that is open, and what it said and asked for meanwhile."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.requests: list[str] = []
        self._heard: list[tuple[Any, Any]] = [
            ("console", lambda message: self.said.append(message.text)),
            ("pageerror", lambda error: self.said.append(str(error))),
            ("request", lambda request: self.requests.append(request.url)),
        ]
        for name, heard in self._heard:
            page.on(name, heard)

    def leave(self) -> None:
        """Nothing of the page is there any more, and nobody listens."""
        self.page.goto("about:blank")
        for name, heard in self._heard:
            self.page.remove_listener(name, heard)

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def evaluate(self, program: str) -> Any:
        return self.page.evaluate(program)


@pytest.fixture
def opened(window: Page, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a conversation, from a file; nothing may be said or asked for by it."""
    pages: list[Shown] = []

    def close() -> None:
        for each in pages[-1:]:
            each.leave()
            assert each.said == []
            assert [url for url in each.requests if not url.startswith((tmp_path.as_uri(), "about:"))] == []

    def open_page(
        made: Conversation, *, width: int = 1280, height: int = 800, scheme: Any = "light"
    ) -> Shown:
        close()
        path = tmp_path / f"page {len(pages)}.html"
        write_page(path, made, made.turns)
        window.set_viewport_size({"width": width, "height": height})
        window.emulate_media(color_scheme=scheme)
        pages.append(Shown(window))
        window.goto(path.as_uri())
        return pages[-1]

    yield open_page
    close()


def conversation(*spans: dict[str, Any], thread_id: str = THREAD) -> Conversation:
    return conversation_from(
        spans_of(request(*spans, service__name="chat")), [thread_id], thread_id=thread_id
    )


def three_turns() -> Conversation:
    """The second one goes on from the first, and so does the third."""
    return conversation(
        turn(1, trace=1, took=40),
        read(2, trace=1, parent=1, at=1, took=9, served_by="l2"),
        span("checkpoint.l1.read", 3, trace=1, parent=2, at=1, took=2),
        span("checkpoint.l2.acquire", 4, trace=1, parent=2, at=3, took=3),
        span("checkpoint.l2.select", 5, trace=1, parent=2, at=6, took=4),
        span("model", 6, trace=1, parent=1, at=12, took=20, gen_ai__operation__name="chat"),
        turn(7, trace=2, at=100, took=10, links=((1, 1),), failed=True, error__type="builtins.LookupError"),
        read(8, trace=2, parent=7, at=101),
        span("checkpoint.l1.read", 9, trace=2, parent=8, at=101),
        turn(10, trace=3, at=200, links=((1, 1),)),
        turn(11, trace=4, at=300, links=((88, 88),)),
    )


def test_every_turn_is_there_with_its_spans_where_they_were_in_time(opened: Any) -> None:
    shown = opened(three_turns())
    assert shown.texts("h1") == [THREAD]
    assert shown.texts(".turn h2") == ["Turn 1", "Turn 2", "Turn 3", "Turn 4"]
    assert shown.texts("#turn-1 .name") == ["invoke_agent concierge", "checkpoint.get_tuple", "model"]
    bars = shown.page.locator("#turn-1 .bar")
    boxes = [bars.nth(number).bounding_box() for number in range(3)]
    whole = boxes[0]["width"]
    assert [round((box["x"] - boxes[0]["x"]) / whole * 40) for box in boxes] == [0, 1, 12]
    assert [round(box["width"] / whole * 40) for box in boxes] == [40, 9, 20]
    # Folded, the call's bar shows what it consisted of: Redis, a wait, PostgreSQL.
    pieces = shown.page.locator("#turn-1 .bar i")
    assert [pieces.nth(n).get_attribute("class") for n in range(3)] == ["w-l1", "w-wait", "w-l2"]
    colours = {pieces.nth(n).evaluate("each => getComputedStyle(each).backgroundColor") for n in range(3)}
    assert len(colours) == 3
    assert "1 read from L2" in shown.texts("#turn-1 .chip")
    assert "failed" in shown.texts("#turn-2 .chip")
    assert shown.texts("#turn-4 .chip.missing") == [
        f"From trace {88:08x}"[:-8] + "00000000…, which is not here"
    ]


def test_turns_are_linked_to_what_they_go_on_from_and_what_went_on_from_them(opened: Any) -> None:
    shown = opened(three_turns(), height=500)
    assert shown.texts("#turn-1 a.chip") == ["Turn 2 →", "Turn 3 →"]
    assert shown.texts("#turn-3 a.chip.fork") == ["← Fork of turn 1, 160 ms before"]
    shown.page.locator("#turn-3 a.chip").click()
    assert shown.evaluate("location.hash") == "#turn-1"
    expect(shown.page.locator("#turn-1 h2")).to_be_in_viewport()
    shown.page.locator("#overview a").nth(2).click()
    assert shown.evaluate("location.hash") == "#turn-3"
    expect(shown.page.locator("#turn-3 h2")).to_be_in_viewport()


def test_a_click_on_a_bar_opens_the_attributes(opened: Any) -> None:
    shown = opened(three_turns())
    details = shown.page.locator("#details")
    assert details.is_hidden()
    shown.page.locator("#turn-1 .bar").nth(1).click()
    text = details.inner_text()
    for said in (
        "checkpoint.get_tuple",
        "glasspoint.served_by",
        f"{1:032x}",
        f"{2:016x}",
        "service.name",
        "chat",
    ):
        assert said in text
    shown.page.locator("#turn-2 .bar").nth(0).click()
    assert "builtins.LookupError" in details.inner_text()
    assert "previous_turn" in details.inner_text()
    shown.page.locator("#close").click()
    assert details.is_hidden()


def test_everything_can_be_reached_with_the_keyboard(opened: Any) -> None:
    shown = opened(three_turns())
    press = shown.page.keyboard.press
    shown.page.locator("#turn-1 .bar-button").focus()
    press("Enter")
    assert "checkpoint.l2.select" in shown.texts("#turn-1 .name")
    press("Enter")
    assert "checkpoint.l2.select" not in shown.texts("#turn-1 .name")

    def focused() -> str:
        return str(shown.evaluate("document.activeElement.querySelector('.name')?.textContent"))

    for _ in range(4):  # past the links to the turns after it
        press("Tab")
        if focused() == "invoke_agent concierge":
            break
    assert focused() == "invoke_agent concierge"
    press("ArrowDown")
    assert focused() == "checkpoint.get_tuple"
    press("ArrowRight")
    press("ArrowRight")
    assert focused() == "checkpoint.l1.read"
    press("End")
    assert focused() == "model"
    press("Enter")
    assert shown.page.locator("#details h2").inner_text() == "model"
    press("Escape")
    assert shown.page.locator("#details").is_hidden()
    assert focused() == "model"
    press("ArrowLeft")
    assert focused() == "invoke_agent concierge"
    press("ArrowLeft")
    assert shown.texts("#turn-1 .name") == ["invoke_agent concierge"]


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_what_others_wrote_is_shown_as_text_and_never_runs(attack: str, opened: Any) -> None:
    more: dict[str, Any] = {attack: attack}
    event = {"name": attack, "timeUnixNano": str(START), "attributes": []}
    spans = [
        turn(
            1,
            trace=1,
            thread=attack,
            links=((7, 7),),
            failed=True,
            error__type=f"a.{attack}",
            events=(event,),
        ),
        read(2, trace=1, parent=1, thread=attack, glasspoint__l1__result=attack, served_by=attack),
        span(attack, 3, trace=1, parent=1, **more),
    ]
    spans[0]["attributes"][1]["value"] = {"stringValue": attack}
    made = conversation_from(
        spans_of(request(*spans, service__name=attack, host__name=attack)), [attack], thread_id=attack
    )
    shown = opened(made)
    for row in range(3):
        shown.page.locator("#turn-1 .row").nth(row).click(position={"x": 300, "y": 5})
        assert shown.page.locator("#details").is_visible()
    assert shown.evaluate("window.owned") is None
    assert shown.evaluate("document.querySelectorAll('img, svg, iframe, script').length") == 2, (
        "data and program"
    )
    if attack.isprintable():
        assert shown.texts("h1") == [attack]
        assert attack in shown.texts("#turn-1 .name")
        assert attack in shown.page.title()
        assert attack in shown.page.locator("#details").inner_text()
    else:
        assert shown.texts("h1") == ["\\u2028\\u202e\\x1b[2J\\ud800"]


def test_the_browser_would_run_and_load_nothing_else_on_the_page(browser: Browser, tmp_path: Path) -> None:
    """If text were ever taken for markup: the policy is the second line."""
    path = tmp_path / "page.html"
    made = three_turns()
    path.write_text(
        page_of(made, made.turns).replace(
            "</main>", "</main><script>window.owned = 1</script><img src=x onerror='window.owned = 2'>"
        ),
        "utf-8",
    )
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    assert page.evaluate("window.owned") is None
    assert len(said) >= 2
    assert all("Content Security Policy" in each for each in said)
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>'")
    assert page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'refused')") == "refused"
    page.close()


@pytest.mark.parametrize("width", [320, 760, 1600])
def test_it_fits_the_window_in_light_and_dark(width: int, opened: Any) -> None:
    long = conversation(
        turn(1, trace=1, took=50, gen_ai__agent__name="an-agent-with-a-name-" * 5),
        span("a node with a name that does not fit " * 5, 2, trace=1, parent=1),
        *(span(f"deeper {n}", n, trace=1, parent=n - 1) for n in range(3, 40)),
        turn(50, trace=2, at=100, links=((1, 1),)),
        thread_id=THREAD,
    )
    papers = set()
    for scheme in ("light", "dark"):
        shown = opened(long, width=width, scheme=scheme)
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        shown.page.locator("#turn-1 .bar").nth(1).click()
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        papers.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_fifty_turns_of_two_hundred_spans_are_all_there(opened: Any) -> None:
    spans = []
    for number in range(1, 51):
        first = 1000 * number
        spans.append(turn(first, trace=number, at=first, took=200))
        spans += [
            span(f"node {n}", first + n, trace=number, parent=first, at=first + n) for n in range(1, 200)
        ]
    shown = opened(conversation(*spans))
    assert shown.evaluate("document.querySelectorAll('.row').length") == 10_000
    assert shown.evaluate("document.querySelectorAll('#overview a').length") == 50
    shown.page.locator("#overview a").nth(39).click()
    expect(shown.page.locator("#turn-40 h2")).to_be_in_viewport()
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_page_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    made, path = three_turns(), tmp_path / "page.html"
    write_page(path, made, made.turns[:1])
    before = path.read_text("utf-8")
    with path.open(encoding="utf-8") as opened_before:
        write_page(path, made, made.turns)
        assert opened_before.read() == before, "never half of one and half of another"
    assert re.findall(r'"title":"(Turn \d)"', path.read_text("utf-8")) == [f"Turn {n}" for n in range(1, 5)]
    other = tmp_path / "index.html"
    other.write_text("<!doctype html><title>mine</title>", "utf-8")
    with pytest.raises(ConfigurationError, match="no page of glasspoint trace: it stays"):
        write_page(other, made, made.turns)
    assert other.read_text("utf-8") == "<!doctype html><title>mine</title>"
    with pytest.raises(ConfigurationError, match="is no file"):
        write_page(tmp_path, made, made.turns)
    with pytest.raises(ConfigurationError, match=r"cannot be written: No such file"):
        write_page(tmp_path / "nowhere" / "page.html", made, made.turns)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["index.html", "page.html"]
