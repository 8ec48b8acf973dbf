"""The parts of the demo that can be looked at alone: model, graph, counters, spans."""

from __future__ import annotations

import asyncio
import sys
import webbrowser
from io import StringIO
from queue import Queue
from threading import Thread
from types import ModuleType

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, Counter
from rich.console import Console

from glasspoint import Telemetry
from glasspoint.demo import dashboard, page_calls
from glasspoint.demo.conversation import build_conversation, say
from glasspoint.demo.model import SUMMARY_PROMPT, RecallingChatModel, choose_chat_model
from glasspoint.demo.page import open_browser
from glasspoint.demo.page_calls import PageCalls
from glasspoint.demo.telemetry import CounterWatch, Moved, SpanCollector
from glasspoint.demo.traffic import _NAMES, Tally
from glasspoint.errors import ConfigurationError, GlasspointError
from glasspoint.telemetry.metrics import Metrics
from steps import until

TOLD = HumanMessage("내 이름은 철수야")
ASKED = HumanMessage("내 이름이 뭐라고 했지?")
ASKED_IN_ENGLISH = HumanMessage("what is my name?")
NEVER_TOLD = "이름을 아직 말씀해 주지 않으셨어요."


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        ([TOLD, ASKED], "철수라고 하셨어요."),
        ([HumanMessage("내 이름은 지은이야"), ASKED], "지은이라고 하셨어요."),
        ([HumanMessage("안녕, 제 이름은 영희예요. 반가워요"), ASKED], "영희라고 하셨어요."),
        (
            [TOLD, HumanMessage("아니, 내 이름은 영희야"), HumanMessage("내 이름 기억해?")],
            "영희라고 하셨어요.",
        ),
        ([HumanMessage("내 이름은 Bob이야"), ASKED], "Bob이라고 하셨어요."),
        ([TOLD, HumanMessage("내 이름은 뭐야?")], "철수라고 하셨어요."),
        ([HumanMessage("my name is Bob"), ASKED_IN_ENGLISH], "You said that your name is Bob."),
        ([SystemMessage("사용자의 이름은 철수."), ASKED], "철수라고 하셨어요."),
        ([SystemMessage("이름은 아직 모름."), ASKED], NEVER_TOLD),
        ([ASKED], NEVER_TOLD),
        ([HumanMessage("오늘 날씨가 참 좋네")], "네, 듣고 있어요."),
        ([ASKED_IN_ENGLISH], "You have not told me your name yet."),
        # What the model itself once said is no source: it would cover up a lost state.
        ([AIMessage("내 이름은 철수야"), ASKED], NEVER_TOLD),
        ([SystemMessage(SUMMARY_PROMPT), TOLD], "사용자의 이름은 철수."),
        ([SystemMessage(SUMMARY_PROMPT), HumanMessage("안녕")], "이름은 아직 모름."),
        ([SystemMessage(SUMMARY_PROMPT), HumanMessage("hello")], "No name was given yet."),
        ([HumanMessage("my name is Bob"), HumanMessage("nice weather")], "I am listening, Bob."),
    ],
)
def test_the_model_answers_from_the_messages_it_is_given_and_nothing_else(
    messages: list[HumanMessage | SystemMessage | AIMessage], answer: str
) -> None:
    assert RecallingChatModel().invoke(messages).text == answer


@pytest.mark.parametrize("name", _NAMES)
def test_the_people_of_the_traffic_say_their_names_in_correct_korean(name: str) -> None:
    """`야` and `라고` follow a vowel; after a consonant it would be `이야` and `이라고`."""
    told = HumanMessage(f"내 이름은 {name}야")
    assert RecallingChatModel().invoke([told, ASKED]).text == f"{name}라고 하셨어요."


async def test_a_long_conversation_is_summarised_and_the_name_survives() -> None:
    graph = build_conversation(RecallingChatModel(), InMemorySaver())
    await say(graph, "a", "내 이름은 철수야")
    for _ in range(12):
        await say(graph, "a", "오늘 날씨가 참 좋네")
    answer = await say(graph, "a", "내 이름이 뭐라고 했지?")
    assert (answer.text, answer.message_count) == ("철수라고 하셨어요.", 28)
    recalled = [
        each async for each in graph.aget_state_history({"configurable": {"thread_id": "a"}}, limit=1)
    ]
    assert not any("내 이름은" in str(message.text) for message in recalled[0].values["context"])


def test_the_model_is_the_built_in_one_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLASSPOINT_DEMO_MODEL", raising=False)
    assert isinstance(choose_chat_model(), RecallingChatModel)


def test_a_named_model_comes_from_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    chat_models = ModuleType("langchain.chat_models")
    asked: list[str] = []

    def init_chat_model(name: str) -> RecallingChatModel:
        asked.append(name)
        return RecallingChatModel()

    chat_models.init_chat_model = init_chat_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "langchain", ModuleType("langchain"))
    monkeypatch.setitem(sys.modules, "langchain.chat_models", chat_models)
    monkeypatch.setenv("GLASSPOINT_DEMO_MODEL", "somebody:large")
    assert isinstance(choose_chat_model(), RecallingChatModel)
    assert asked == ["somebody:large"]


def test_without_langchain_a_named_model_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "langchain", None)
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    monkeypatch.setenv("GLASSPOINT_DEMO_MODEL", "somebody:large")
    with pytest.raises(ConfigurationError, match="pip install langchain"):
        choose_chat_model()


def test_a_named_model_that_does_not_exist_is_an_error_in_the_words_of_its_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat_models = ModuleType("langchain.chat_models")

    def init_chat_model(name: str) -> RecallingChatModel:
        raise ValueError(f"nobody provides {name}")

    chat_models.init_chat_model = init_chat_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "langchain", ModuleType("langchain"))
    monkeypatch.setitem(sys.modules, "langchain.chat_models", chat_models)
    monkeypatch.setenv("GLASSPOINT_DEMO_MODEL", "somebody:large")
    with pytest.raises(ConfigurationError, match="gives no chat model: nobody provides somebody:large"):
        choose_chat_model()


async def test_in_a_terminal_the_traffic_is_a_table_that_says_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dashboard, "_REFRESH_SECONDS", 0.01)
    registry, tally, warnings = CollectorRegistry(), Tally(), list[str]()
    telemetry = Telemetry("default", (Metrics("default", registry),))
    out = StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=200)
    watching = asyncio.create_task(dashboard.watch_traffic(console, registry, tally, warnings))

    def shows(*texts: str) -> bool:
        if watching.done():
            watching.result()
        newest = out.getvalue().rpartition("turns ")[2]
        return all(text in newest for text in texts)

    await until(lambda: shows("0 turns", "– (no reads)", "put_writes"))
    assert "–" in out.getvalue(), "nothing is known of the percentiles of what nobody has done"
    with telemetry.operation("get_tuple", None) as operation:
        operation.l1_result = "hit"
    tally.turns, tally.begun_anew, tally.forgotten, tally.failed = 3, 1, 2, 4
    tally.last_error = "OperationalError"
    warnings.append("Redis does not answer")
    await until(lambda: shows("3 turns", "100% (hit 1)", "Redis does not answer"))
    await until(lambda: shows("1 began anew", "2 names FORGOTTEN", "4 failed, last: OperationalError"))
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


def test_only_counters_that_moved_are_told() -> None:
    registry = CollectorRegistry()
    Counter("other_things", "help", registry=registry).inc()
    telemetry = Telemetry("default", (Metrics("default", registry),))

    def read() -> None:
        with telemetry.operation("get_tuple", None) as operation:
            operation.l1_result = "hit"

    read()
    watch = CounterWatch(registry)
    read()
    read()
    assert watch.moved() == [
        Moved("glasspoint_operation_duration_seconds_count", ("get_tuple", "ok"), 2),
        Moved("glasspoint_l1_reads_total", ("hit",), 2),
    ]
    assert watch.moved() == []


def test_the_span_collector_is_bounded_and_hands_out_one_trace() -> None:
    collector = SpanCollector(capacity=3)
    provider = TracerProvider()
    provider.add_span_processor(collector)
    tracer, another = provider.get_tracer("glasspoint"), provider.get_tracer("an instrumentation")
    for number in range(10):
        with tracer.start_as_current_span(str(number)) as span, another.start_as_current_span("not shown"):
            pass
    last = span.get_span_context().trace_id
    assert [each.name for each in collector.take(last)] == ["9"]
    assert collector.take(last) == []


class _Browser:
    """A browser that notes what it opens."""

    def __init__(self, name: str = "a browser") -> None:
        self.name = name
        self.opened: Queue[str] = Queue()

    def open(self, address: str) -> None:
        self.opened.put(address)


def test_the_page_is_opened_in_the_users_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    browser, out = _Browser(), StringIO()
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    open_browser(Console(file=out), "http://127.0.0.1:1/live#token=t")
    assert browser.opened.get(timeout=10) == "http://127.0.0.1:1/live#token=t"
    assert out.getvalue() == ""


@pytest.mark.parametrize("found", [None, _Browser("/usr/bin/w3m")])
def test_where_there_is_no_browser_the_demo_says_so(
    monkeypatch: pytest.MonkeyPatch, found: _Browser | None
) -> None:
    def get() -> _Browser:
        if found is None:
            raise webbrowser.Error("could not locate runnable browser")
        return found  # it would take the terminal away

    out = StringIO()
    monkeypatch.delenv("BROWSER", raising=False)
    monkeypatch.setattr(webbrowser, "get", get)
    open_browser(Console(file=out, width=80), "http://127.0.0.1:1/live")
    assert "No browser was found here" in out.getvalue()
    assert found is None or found.opened.empty()


async def test_calls_of_the_page_run_on_the_demos_loop_from_any_other() -> None:
    calls = PageCalls("Not yet.")
    work = asyncio.get_running_loop

    async def where() -> asyncio.AbstractEventLoop:
        return work()

    with pytest.raises(GlasspointError, match=r"^Not yet\.$"):
        await calls.run(where)
    calls.open()
    assert await calls.run(where) is asyncio.get_running_loop()
    assert await asyncio.to_thread(lambda: asyncio.run(calls.run(where))) is asyncio.get_running_loop()
    calls.close()
    with pytest.raises(GlasspointError, match=r"^The demo ends\.$"):
        await calls.run(where)


def test_a_call_that_the_end_of_the_demo_cuts_off_is_told_so() -> None:
    calls, answers = PageCalls("Not yet."), Queue[str]()

    def ask() -> None:
        try:
            asyncio.run(calls.run(lambda: asyncio.sleep(3600)))
        except GlasspointError as error:
            answers.put(str(error))

    async def demo() -> None:
        calls.open()
        asker = Thread(target=ask, daemon=True)
        asker.start()
        await until(lambda: len(asyncio.all_tasks()) > 1)  # the call is under way
        calls.close()

    asyncio.run(demo())
    assert answers.get(timeout=10) == "The demo ends."


async def test_a_caller_that_leaves_is_not_told_that_the_demo_ends() -> None:
    calls = PageCalls("Not yet.")
    calls.open()
    caller = asyncio.create_task(calls.run(lambda: asyncio.sleep(3600)))
    await until(lambda: len(asyncio.all_tasks()) > 2)  # the call is under way
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_call_that_takes_too_long_and_one_after_the_end_of_the_loop_are_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = PageCalls("Not yet.")
    calls.open()
    monkeypatch.setattr(page_calls, "_LONGEST_SECONDS", 0.01)
    with pytest.raises(GlasspointError, match="did not do it in time"):
        await calls.run(lambda: asyncio.sleep(3600))

    async def open_elsewhere() -> None:
        calls.open()

    await asyncio.to_thread(asyncio.run, open_elsewhere())
    with pytest.raises(GlasspointError, match=r"^The demo ends\.$"):
        await calls.run(lambda: asyncio.sleep(0))
