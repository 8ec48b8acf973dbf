"""The live page in a real browser: what it shows of a process, and of what a process may send."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from chromium import WATCH, launched
from live_fake import HOSTILE, PAGE, TOKEN, Fake, faked


@pytest.fixture(scope="module")
def window() -> Iterator[BrowserContext]:
    """For all pages: one of its own takes half a second of the processor more than a tab of it."""
    with launched() as browser:
        yield browser.new_context()


class Shown:
    """A page that is open, and what it said and asked for meanwhile."""

    def __init__(self, page: Page, fake: Fake) -> None:
        self.page, self.fake = page, fake
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def text(self, selector: str) -> Any:
        return expect(self.page.locator(selector).first)

    def evaluate(self, program: str) -> Any:
        return self.page.evaluate(program)

    def assert_is_well(self) -> None:
        """Check that nothing was said, asked of others, or forbidden by the policy."""
        assert [text for text in self.said if "Failed to load resource" not in text] == []
        assert self.evaluate("window.violations") == []
        origin = self.fake.url.removesuffix("/live").removesuffix(self.fake.prefix)
        assert [url for url in self.requests if not url.startswith(f"{origin}/")] == []

    @contextmanager
    def in_front(self) -> Iterator[None]:
        """Be the tab that is seen, of a server that is busy: what is behind it is hardly drawn."""
        self.page.bring_to_front()
        with self.fake.busy():
            yield

    @property
    def fits(self) -> bool:
        return bool(self.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


class Pages:
    """Opens the page of a server, and closes it again."""

    def __init__(self, window: BrowserContext) -> None:
        self._window = window
        self._open: list[Shown] = []

    def __call__(
        self,
        fake: Fake,
        *,
        width: int = 1280,
        scheme: Any = "light",
        motion: Any = "reduce",
        address: str = f"#token={TOKEN}",
        before: str = "",
    ) -> Shown:
        """Open it; without motion, which takes more of the processor than all else."""
        page = self._window.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme, reduced_motion=motion)
        page.set_default_timeout(20_000)
        page.add_init_script(WATCH + before)
        self._open.append(Shown(page, fake))
        page.goto(fake.url + address)
        return self._open[-1]

    def close(self) -> None:
        """Close them. Nothing may have been said by them, been asked of others, or broken the policy."""
        while self._open:
            shown = self._open.pop()
            shown.assert_is_well()
            shown.evaluate("localStorage.clear()")  # what the next page finds if it has the same port
            shown.page.close()


COUNT_FRAMES = """
window.frames_asked = 0;
const ask = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (then) => { window.frames_asked += 1; return ask(then); };
"""
HIDE = """
window.hides = false;
Object.defineProperty(Document.prototype, "hidden", { get: () => window.hides });
"""
CHANGEABLE = (
    *("beat", "rate", "note", "repeats", "forgets_turns"),
    *("gives_no_connection", "redis_is_away", "a_master_is_away"),
)
"""What a test may change of the server of a page that several use."""


@pytest.fixture
def opened(window: BrowserContext) -> Iterator[Pages]:
    pages = Pages(window)
    yield pages
    pages.close()


@pytest.fixture(scope="module")
def opened_for_all(window: BrowserContext) -> Iterator[Pages]:
    pages = Pages(window)
    yield pages
    pages.close()


@pytest.fixture(scope="module")
def page_of_calm(opened_for_all: Pages) -> Iterator[Shown]:
    with faked("calm", beat=0.2) as fake:
        yield opened_for_all(fake, before=COUNT_FRAMES + HIDE)


@pytest.fixture
def calm(page_of_calm: Shown) -> Iterator[Shown]:
    """A page that several tests use, one after the other: each leaves no dialog, no filter and no pause."""
    fake = page_of_calm.fake
    fake.asked.clear()
    as_it_was = {name: getattr(fake, name) for name in CHANGEABLE}
    with page_of_calm.in_front():
        yield page_of_calm
        vars(fake).update(as_it_was)
        fake.may_answer.set()
        page_of_calm.text("#link").to_have_text("Live")
    page_of_calm.assert_is_well()


@pytest.fixture(scope="module")
def page_of_fault(opened_for_all: Pages) -> Iterator[Shown]:
    with faked("fault") as fake:
        yield opened_for_all(fake)


@pytest.fixture
def fault(page_of_fault: Shown) -> Iterator[Shown]:
    """A page that several tests use."""
    with page_of_fault.in_front():
        yield page_of_fault


# ---- what it shows --------------------------------------------------------------------------------------


def test_at_one_glance_it_says_how_fast_the_cache_is_and_where_reads_go(opened: Pages) -> None:
    with faked("calm", demo=False) as fake:
        shown = opened(fake, address="")
        shown.text("#headline").to_have_text(
            re.compile(
                r"^\d+ reads a second, hit ratio 9\d\s%: Redis answers in 0\.\d+\sms, PostgreSQL in"
                r" \d\.\d\sms\. \d+ writes a second\.$"
            )
        )
        for said in ("reads/s", "hits/s", "go on", "warm-ups/s", "answers/s", "writes/s", "announced/s"):
            shown.text(f"#picture text:has-text('{said}')").to_have_text(re.compile(r"^\d"))
        shown.text(".rung[aria-current]").to_contain_text("cachednow")
        shown.text("#chips").to_contain_text("Breaker")
        shown.text(".strip.reads .big").to_have_text(re.compile(r"^9\d %hit ratio$"))
        shown.text(".strip.reads .share i").to_be_visible()
        for strip in ("read-times", "write-times"):
            shown.text(f".strip.{strip} .item b").to_have_text(re.compile(r"ms$"))
        expect(shown.page.locator(".strip .uplot canvas")).to_have_count(5)
        shown.text("#call-rows tr").to_contain_text("demo-")
        expect(shown.page.locator("#demo")).to_be_hidden()
        label = shown.page.locator("#picture svg").get_attribute("aria-label")
        assert label is not None
        assert re.match(r"\d+ reads a second, 9\d % of them hits in Redis\.", label)


def test_dots_run_along_the_edges_and_the_figures_change(opened: Pages) -> None:
    # Of all that the page draws on a canvas, only dots are round.
    count = """
    const drawing = CanvasRenderingContext2D.prototype, arc = drawing.arc;
    window.dots = 0;
    drawing.arc = function (...all) { window.dots += 1; return arc.apply(this, all); };
    """
    with faked("calm", beat=0.2) as fake:
        shown = opened(fake, motion="no-preference", before=count)
        shown.page.wait_for_function("() => window.dots > 20")
        before = shown.page.locator(".strip.writes .big b").inner_text()
        shown.text(".strip.writes .big b").not_to_have_text(before)


def test_without_motion_the_numbers_stand_alone(calm: Shown) -> None:
    for _ in range(2):
        before = calm.page.locator(".strip.writes .big b").inner_text()
        calm.text(".strip.writes .big b").not_to_have_text(before)
    assert calm.evaluate("window.frames_asked") == 0


def test_a_fall_is_told_in_words_in_the_picture_and_on_the_axis_of_time(fault: Shown) -> None:
    fault.text("#headline").to_have_text(
        "PostgreSQL is away. Conversations go on in Redis. 8 conversations will be brought back to"
        " PostgreSQL."
    )
    fault.text("#headline").to_have_attribute("data-level", "error")
    fault.text(".rung[aria-current]").to_contain_text(re.compile(r"redisnow, since \d\d:\d\d:\d\d"))
    fault.text(".box.l2").to_have_class("box l2 away")
    fault.text("#picture .announce").to_contain_text("kept in Redis")
    fault.text(".band.redis").to_be_visible()
    fault.text(".band.open").to_be_visible()
    events = fault.page.locator("#event-list .event")
    expect(events.first).to_contain_text("cached -> redis: PostgreSQL cannot be reached")
    expect(events).to_have_count(11)
    # Signs, not only colours.
    assert set(fault.page.locator("#event-list .event i").all_inner_texts()) == {"•", "✓", "!", "✕"}
    fault.text(".chip:has-text('To be brought back')").to_contain_text("8 in redis")


def test_a_postgres_that_gives_no_connection_is_away_in_words_and_in_the_picture(calm: Shown) -> None:
    calm.fake.gives_no_connection = True
    calm.text("#headline").to_contain_text("PostgreSQL gives no connection. What Redis has is still read")
    calm.text("#headline").to_contain_text("calls a second")
    calm.text(".box.l2").to_have_class("box l2 away")


def test_a_master_of_a_cluster_that_is_away_is_a_part_of_redis(calm: Shown) -> None:
    calm.fake.a_master_is_away = True
    calm.text("#headline").to_contain_text("A part of Redis does not answer. PostgreSQL answers for it")
    calm.text(".box.l1").to_contain_text("a part is away")
    calm.text(".box.l1").to_contain_text("%")
    calm.text(".box.l1").to_have_class("box l1")


def test_what_is_said_again_and_again_is_one_line_with_a_number(calm: Shown) -> None:
    lines = calm.page.locator("#event-list .event")
    before = lines.count()
    calm.fake.repeats = ("breaker", "warning", "Redis does not answer.")
    expect(lines.first).to_contain_text(
        re.compile(r"Redis does not answer\.\s*\d+ times, last at \d\d:\d\d:\d\d")
    )
    expect(lines).to_have_count(before + 1)


def test_figures_of_an_earlier_moment_are_told_beside_the_charts(fault: Shown) -> None:
    lower = fault.page.locator(".strip.reads .item:visible", has_text="from Redis alone")
    expect(lower).to_have_count(1)
    fault.page.locator("#moment input").focus()
    fault.page.keyboard.press("Home")
    fault.text("#moment output").to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    expect(lower).to_have_count(0)
    fault.page.keyboard.press("End")
    fault.text("#moment output").to_have_text("now")
    plot = fault.page.locator(".strip.reads .plot")
    box = plot.bounding_box()
    assert box is not None
    plot.hover(position={"x": box["width"] / 2, "y": 30})
    fault.text("#moment output").not_to_have_text("now")
    assert fault.page.locator(".hair").get_attribute("visibility") == "visible"
    fault.page.mouse.move(5, 5)
    fault.text("#moment output").to_have_text("now")


def test_each_chip_says_what_it_means_when_it_has_the_focus(fault: Shown) -> None:
    fault.text(".chip:visible").to_be_visible()
    chips = fault.page.locator(".chip:visible")
    for number in range(chips.count()):
        chip = chips.nth(number)
        tip = chip.locator(".tip")
        chip.locator("button").focus()
        expect(tip).to_be_visible()
        assert len(tip.inner_text()) > 30
        box = tip.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1280
        fault.page.keyboard.press("Escape")
        expect(tip).to_be_hidden()


def test_several_processes_are_shown_together_or_one_by_one(opened: Pages) -> None:
    with faked("peers", demo=False) as fake:
        shown = opened(fake, address="?peers=worker-a,worker-b")
        rows = shown.page.locator("#process-rows tr")
        expect(rows).to_have_count(4)
        assert [each.split("\t")[0].strip() for each in rows.all_inner_texts()] == [
            "All together",
            "This process",
            "worker-a",
            "worker-b",
        ]
        expect(rows.nth(3)).to_contain_text("does not answer: connection refused")
        rows.nth(3).locator("input").check()
        shown.text("#headline").to_have_text("worker-b does not answer: connection refused.")
        shown.page.locator("#source").select_option("worker-a")
        expect(rows.nth(2).locator("input")).to_be_checked()
        shown.text("#headline").to_contain_text("reads a second")
        assert ("GET", "/live/events?peers=worker-a%2Cworker-b", None) in fake.asked


# ---- what it says when there is nothing ------------------------------------------------------------------


def test_without_traffic_it_says_so(opened: Pages) -> None:
    with faked("empty", demo=False) as fake:
        shown = opened(fake, address="")
        shown.text("#headline").to_contain_text("No traffic yet.")
        for part in ("events", "conversations", "calls"):
            shown.text(f"#{part} .nothing").to_be_visible()


def test_a_connection_that_breaks_is_told_and_tried_again(opened: Pages) -> None:
    with faked("calm", beat=0.2) as fake:
        shown = opened(fake)
        shown.text("#link").to_have_text("Live")
        fake.refuses = (503, "8 viewers watch already: close one of their pages.")
        shown.text("#banner").to_contain_text("Disconnected: 8 viewers watch already")
        shown.text("#link").to_have_text("Disconnected")
        fake.refuses = None
        shown.page.get_by_role("button", name="Try now").click()
        shown.text("#link").to_have_text("Live")
        shown.text("#banner").to_be_hidden()
        fake.bye = "It read too slowly."
        shown.text("#banner").to_contain_text("The process has dropped this viewer: It read too slowly.")
        fake.bye = None
        shown.page.get_by_role("button", name="Try now").click()
        shown.text("#link").to_have_text("Live")
    shown.text("#banner").to_contain_text("Disconnected: the process does not answer.")


# ---- calls, conversations, turns -------------------------------------------------------------------------


def test_calls_are_filtered_by_thread_and_paused(calm: Shown) -> None:
    calm.fake.rate = 160
    rows = calm.page.locator("#call-rows tr")
    expect(rows).to_have_count(100)  # no more, however many there are
    calm.page.locator("#calls-filter").fill("demo-3")
    calm.text("#call-rows tr").to_be_visible()
    assert {text.strip() for text in calm.page.locator("#call-rows .who").all_inner_texts()} == {"demo-3"}
    covered = calm.page.locator("#call-rows .result", has_text="covered").first
    expect(covered).to_have_attribute("title", re.compile("^A further write of a burst"))
    calm.page.get_by_role("button", name="Pause calls").click()
    calm.text("#calls-said").to_contain_text("Paused.")
    before = rows.all_inner_texts()
    seconds = calm.page.locator(".strip.writes .big b").inner_text()
    calm.text(".strip.writes .big b").not_to_have_text(seconds)
    assert rows.all_inner_texts() == before
    calm.page.locator("#calls-filter").fill("nobody")
    calm.text("#calls .nothing").to_have_text("No call of a thread with this in its name.")
    calm.page.locator("#calls-filter").fill("")
    calm.page.locator("#calls-pause").click()
    expect(calm.page.locator("#calls .nothing")).to_be_hidden()


def test_a_turn_opens_in_a_panel_and_leads_to_a_tab(calm: Shown) -> None:
    calm.page.get_by_role("button", name="Theme: auto").click()
    calm.page.get_by_role("button", name="Theme: light").click()
    turn = calm.page.locator(".turns .turn button").first
    turn.focus()
    calm.page.keyboard.press("Enter")
    frame = calm.page.frame_locator("#turn-frame")
    expect(frame.locator("h1")).to_have_text(re.compile(r"^Turn [0-9a-f]{32}$"))
    calm.text("#turn-title").to_have_text(re.compile(r"^Turn \d+ of demo-\d$"))
    with calm.page.expect_popup() as popup:
        calm.page.locator("#turn-tab").click()
    expect(popup.value.locator("h1")).to_have_text(re.compile(r"^Turn [0-9a-f]{32}$"))
    assert popup.value.evaluate("window.opener") is None
    assert popup.value.url.endswith("?theme=dark")
    popup.value.close()
    calm.page.bring_to_front()
    calm.page.keyboard.press("Escape")
    expect(calm.page.locator("#turn")).to_be_hidden()
    calm.page.get_by_role("button", name="Theme: dark").click()


def test_a_turn_that_is_not_kept_any_more_is_told_in_a_sentence(calm: Shown) -> None:
    calm.fake.forgets_turns = True
    calm.page.locator(".turns .turn button").first.click()
    calm.text("#turn-said").to_have_text("This turn is not kept any more.")
    calm.page.get_by_role("button", name="Close", exact=True).click()
    expect(calm.page.locator("#turn")).to_be_hidden()


def test_a_turn_after_one_that_is_not_kept_is_no_fork(opened: Pages) -> None:
    with faked("calm", beat=0.2) as fake:
        fake.loses_turns = True
        shown = opened(fake)
        told = shown.page.locator(".turn", has_text="goes on from a turn that is not shown")
        told.first.wait_for(state="attached")
        expect(shown.page.locator(".turn.fork")).to_have_count(0)


def test_conversations_lead_to_their_calls(calm: Shown) -> None:
    calm.page.locator("#pause").click()  # so that the list keeps still
    thread = calm.page.locator("#conversation-list h3").first.inner_text()
    calm.page.locator("#conversation-list button:has-text('Its calls')").first.click()
    expect(calm.page.locator("#calls-filter")).to_have_value(thread)
    expect(calm.page.locator("#calls-filter")).to_be_focused()
    calm.page.locator("#calls-filter").fill("")
    calm.page.locator("#pause").click()


# ---- the demo's part ------------------------------------------------------------------------------------


def test_the_key_leaves_the_address_and_goes_with_each_press(calm: Shown) -> None:
    calm.text("#link").to_have_text("Live")
    assert calm.page.url == calm.fake.url
    calm.page.get_by_role("button", name="Flush Redis").click()
    calm.text("#faults-said").to_have_text("flush_redis was done.")
    calm.text("#event-list .event").to_contain_text("flush_redis was done.")
    calm.text(".pin.warning").to_be_visible()
    calm.page.get_by_role("button", name="Hold a lock").click()
    calm.text("#faults-said").to_have_text("PostgreSQL is stopped, so no lock can be held.")
    calm.page.reload()
    calm.page.get_by_role("button", name="Kill Redis").click()
    calm.text("#faults-said").to_have_text("kill_redis was done.")
    posted = [path for method, path, _ in calm.fake.asked if method == "POST"]
    assert posted == [f"/live/actions/{name}" for name in ("flush_redis", "hold_lock", "kill_redis")]


def test_a_press_is_told_at_once_and_again_when_it_is_done(calm: Shown) -> None:
    calm.fake.may_answer.clear()
    calm.page.get_by_role("button", name="Flush Redis").click()
    calm.text("#faults-said").to_have_text("Flush Redis …")
    calm.fake.may_answer.set()
    calm.text("#faults-said").to_have_text("flush_redis was done.")


def test_the_page_says_why_the_agent_has_forgotten_something(calm: Shown) -> None:
    calm.fake.note = "This conversation began anew."
    calm.page.get_by_role("button", name="What is my name?").click()
    calm.text("#chat-log .agent .why").to_have_text("This conversation began anew.")


def test_without_the_key_nothing_is_pressed_and_the_page_says_why(opened: Pages) -> None:
    with faked("calm") as fake:
        shown = opened(fake, address="")
        shown.text("#faults-said").to_contain_text("This page was opened without the demo's key")
        shown.page.get_by_role("button", name="Flush Redis").click()
        shown.page.get_by_role("button", name="What is my name?").click()
        shown.text("#chat-log .failed").to_contain_text("Open the address that the demo printed")
        assert not [each for each in fake.asked if each[0] == "POST"]


def test_what_is_typed_is_answered_and_the_answer_leads_to_its_turn(calm: Shown) -> None:
    calm.page.get_by_role("button", name="New conversation").click()
    calm.page.locator("#chat-text").fill("내 이름은 철수야")
    calm.page.keyboard.press("Enter")
    calm.text("#chat-log .agent").to_contain_text("You said: 내 이름은 철수야")
    calm.page.get_by_role("button", name="Show this turn").click()
    expect(calm.page.frame_locator("#turn-frame").locator("h1")).to_contain_text("Turn 0000")
    calm.page.keyboard.press("Escape")
    calm.page.get_by_role("button", name="New conversation").click()
    calm.page.get_by_role("button", name="내 이름이 뭐라고 했지?").click()
    calm.text("#chat-log .agent").to_contain_text("You said: 내 이름이")
    threads = [body["thread"] for _, path, body in calm.fake.asked if path == "/live/chat"]
    assert len(set(threads)) == 2
    assert all(re.fullmatch(r"you-[a-z]{6}", each) for each in threads)


# ---- safety ---------------------------------------------------------------------------------------------


def test_what_others_wrote_is_shown_as_text_and_never_runs(opened: Pages) -> None:
    with faked("hostile", beat=0.2) as fake:
        shown = opened(fake)
        for part in ("#call-rows tr", "#conversation-list li", "#event-list li", ".fault-group button"):
            shown.text(part).to_be_visible()
        for attack in HOSTILE[:4]:
            expect(shown.page.locator("#conversation-list h3", has_text=attack).first).to_be_visible()
        assert HOSTILE[0] in shown.page.locator(".fault-group").first.inner_text()
        shown.page.locator("#conversation-list button:has-text('Its calls')").first.click()
        shown.page.locator(".fault-group button").first.click()
        shown.text("#faults-said").to_contain_text("was done")
        shown.page.locator(".turns .turn button").first.click()
        shown.text("#turn-title").to_contain_text("Turn")
        assert shown.evaluate("window.owned") is None
        assert shown.evaluate("document.querySelectorAll('img').length") == 1, "the page's own sign"
        assert shown.evaluate("document.querySelectorAll('script').length") == 1
        assert shown.evaluate("[...document.querySelectorAll('a[href^=javascript]')].length") == 0
        assert shown.evaluate("({}).polluted") is None
        assert shown.fits


def test_the_browser_would_run_nothing_else_on_the_page(calm: Shown) -> None:
    assert calm.evaluate("window.violations") == []
    with pytest.raises(Exception, match="TrustedHTML"):
        calm.evaluate("document.body.innerHTML = '<b>'")
    sent = "fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'refused')"
    assert calm.evaluate(sent) == "refused"
    assert "connect-src" in calm.evaluate("window.violations.splice(0).join()")
    assert calm.said, "the browser tells it on the console, too"
    calm.said.clear()
    calm.requests.clear()


def test_the_page_turns_no_string_into_markup_and_keeps_nothing_but_the_key_and_the_theme() -> None:
    for file in PAGE.rglob("*.js"):
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc",
            file.read_text("utf-8"),
        )
        assert not found, f"{file.name}: {found}"
    stored = {
        name
        for file in PAGE.glob("*.js")
        for name in re.findall(r"Storage\.setItem\((\w+)", file.read_text("utf-8"))
    }
    assert stored == {"KEY", "THEME", "THREAD"}
    assert not re.findall(r"\s(?:style|on\w+)=", (PAGE / "index.html").read_text("utf-8"))


def test_it_works_wherever_the_app_is_mounted(opened: Pages) -> None:
    with faked("calm", prefix="/internal/glasspoint") as fake:
        shown = opened(fake)
        shown.text("#link").to_have_text("Live")
        shown.page.get_by_role("button", name="Flush Redis").click()
        shown.text("#faults-said").to_have_text("flush_redis was done.")
        shown.page.locator(".turns .turn button").first.click()
        expect(shown.page.frame_locator("#turn-frame").locator("h1")).to_be_visible()


# ---- keyboard, widths, themes ----------------------------------------------------------------------------


def test_everything_can_be_reached_with_the_keyboard(calm: Shown) -> None:
    calm.page.reload()  # so that nothing has the focus
    calm.text(".turns .turn button").to_be_visible()
    reached: list[str] = []
    for _ in range(250):
        calm.page.keyboard.press("Tab")
        reached.append(
            calm.evaluate(
                "(() => { const it = document.activeElement;"
                " return `${it.localName} ${it.id} ${it.textContent.slice(0, 40)}`; })()"
            )
        )
        if "Pause calls" in reached[-1]:
            break
    everything = "\n".join(reached)
    assert reached[0] == "a  Skip to the picture"
    for part in (
        "a  Over time",
        "button pause",
        "button theme",
        "Breaker",
        "input chat-text",
        "Send",
        "Flush Redis",
        "Squeeze the pool",
        "Turn 1",
        "Its calls",
        "input calls-filter",
        "button calls-pause",
    ):
        assert part in everything, part


OVERLAPPING = """() => {
  const said = [...document.querySelectorAll("#picture text")].filter((each) => each.textContent.trim());
  const boxes = said.map((each) => [each.textContent, each.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], n) => boxes.slice(n + 1).flatMap(([other, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4 ? [`${one} / ${other}`] : []));
}"""
"""The texts of the picture that lie upon each other."""


@pytest.mark.parametrize("scenario", ["fault", "peers"])
def test_it_fits_the_window_in_light_and_dark(scenario: Any, opened: Pages) -> None:
    schemes: list[Literal["light", "dark"]] = ["light", "dark"]
    widths = [320, 420, 760, 1280, 1920]
    if scenario == "peers":
        schemes, widths = schemes[::-1], widths[::-1]
    papers = set()
    with faked(scenario) as fake:
        shown = opened(fake, width=widths[0], scheme=schemes[0])
        shown.text("#call-rows tr").to_be_visible()
        shown.text("#conversation-list .turn").to_be_visible()
        for number, width in enumerate(widths):
            shown.page.emulate_media(color_scheme=schemes[number % 2])
            shown.page.set_viewport_size({"width": width, "height": 900})
            shown.page.wait_for_function("() => document.documentElement.scrollWidth <= window.innerWidth")
            shown.page.wait_for_function(f"() => ({OVERLAPPING})().length === 0")
            papers.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        shown.page.locator("#theme").click()
        shown.page.locator("#theme").click()
        assert shown.evaluate("document.documentElement.dataset.theme") == "dark"
    assert len(papers) == 2


def test_no_words_of_the_picture_lie_upon_each_other_while_redis_is_away(calm: Shown) -> None:
    calm.fake.redis_is_away = True
    calm.text("#headline").to_contain_text("Redis does not answer. PostgreSQL answers alone")
    for width in (320, 420, 1280):
        calm.page.set_viewport_size({"width": width, "height": 900})
        calm.text("#picture .lane.miss").to_contain_text("past Redis")
        calm.page.wait_for_function(f"() => ({OVERLAPPING})().length === 0")


def test_text_has_enough_contrast_in_both_themes() -> None:
    style = (PAGE / "page.css").read_text("utf-8")
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", style))
    colours = {name: [_luminance(each.strip()) for each in pair.split(",")] for name, pair in pairs.items()}
    texts = {
        "ink": ("paper", "card", "raised", "good-wash", "warning-wash", "failed-wash", "none-wash"),
        "ink-soft": ("paper", "card", "raised"),
        "good": ("card", "good-wash"),
        "warning": ("card", "warning-wash"),
        "failed": ("card", "raised", "failed-wash"),
        "strong": ("card",),
        "on-strong": ("strong",),
    }
    for text, grounds in texts.items():
        for ground in grounds:
            for theme in (0, 1):
                light, dark = sorted((colours[text][theme], colours[ground][theme]), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground, theme)
    for line in ("l1", "l2", "warm", "announced", "failed", "focus"):
        for theme in (0, 1):
            light, dark = sorted((colours[line][theme], colours["card"][theme]), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, (line, theme)


def _luminance(colour: str) -> float:
    red, green, blue = (
        (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4)
        for part in (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ---- bounds ---------------------------------------------------------------------------------------------


def test_nothing_is_drawn_while_nobody_looks(calm: Shown) -> None:
    calm.fake.rate, calm.fake.beat = 100, 0.1
    calm.text("#call-rows tr").to_be_visible()
    calm.evaluate(
        """() => {
          window.hides = true;
          document.dispatchEvent(new Event("visibilitychange"));
          window.changes = 0;
          window.observer = new MutationObserver((found) => { window.changes += found.length; });
          const all = { subtree: true, childList: true, characterData: true, attributes: true };
          window.observer.observe(document.querySelector("main"), all);
        }"""
    )
    calm.fake.wait_for(calm.fake.sent + 12)
    calm.evaluate("window.changes = 0")  # what was being drawn is drawn
    calm.fake.wait_for(calm.fake.sent + 40)
    assert calm.evaluate("window.changes") == 0
    calm.evaluate("() => { window.hides = false; document.dispatchEvent(new Event('visibilitychange')); }")
    calm.page.wait_for_function("() => window.changes > 10")


def test_rows_and_points_are_bounded_however_long_it_runs(calm: Shown) -> None:
    calm.fake.rate, calm.fake.beat = 400, 0.02
    calm.fake.wait_for(calm.fake.sent + 120)
    assert calm.evaluate("document.querySelectorAll('#call-rows tr').length") <= 100
    assert calm.evaluate("document.querySelectorAll('#conversation-list > li').length") <= 50
    assert calm.evaluate("document.querySelectorAll('*').length") < 4000
    calm.text("#calls-said").to_contain_text("more were too many to show")
