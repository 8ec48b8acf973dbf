"""All turns of a conversation are recorded or none; content only where it is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from glasspoint import MemorySaver, configure_telemetry, conversation_turn, create_telemetry
from glasspoint.errors import ConfigurationError, InvalidConfigError
from glasspoint.telemetry.content import VARIABLE
from glasspoint.telemetry.sampling import ConversationSampler
from recorder import CANARY, Recorder, attributes
from steps import Thread

HALF = ConversationSampler(0.5)
CONVERSATIONS = [str(each) for each in range(40)]


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize("way", ["plain", "hashed", "none"])
async def test_all_turns_of_a_conversation_are_recorded_or_none(way: Any) -> None:
    recorder = Recorder(HALF)
    telemetry = create_telemetry(
        registry=CollectorRegistry(), tracer_provider=recorder.provider, thread_ids=way
    )
    async with MemorySaver(telemetry=telemetry) as saver:
        for _ in range(3):
            for each in CONVERSATIONS:
                with conversation_turn(each, each, telemetry=telemetry):
                    await Thread(each).put(saver)
    turns = [span.name for span in recorder.spans if span.name.startswith("invoke_agent")]
    expected = [f"invoke_agent {each}" for each in CONVERSATIONS if HALF.samples(each)]
    assert turns == expected * 3
    assert 5 < len(expected) < 35, "about a half"
    assert len(recorder.named("checkpoint.put")) == len(turns), "calls follow their turn"


@pytest.mark.parametrize("is_sampled", [True, False])
def test_a_turn_is_decided_by_its_conversation_whatever_is_around_it(is_sampled: bool) -> None:
    recorder = Recorder(HALF)
    tracer = recorder.provider.get_tracer("application")
    around = next(each for each in CONVERSATIONS if HALF.samples(each) is is_sampled)
    with tracer.start_as_current_span("request", attributes={"gen_ai.conversation.id": around}):
        for each in CONVERSATIONS:
            with (
                conversation_turn(each, each, telemetry=recorder.telemetry),
                tracer.start_as_current_span("work"),
            ):
                pass
    names = [span.name for span in recorder.spans]
    sampled = [each for each in CONVERSATIONS if HALF.samples(each)]
    assert [name for name in names if name not in ("request", "work")] == [
        f"invoke_agent {each}" for each in sampled
    ]
    assert names.count("work") == len(sampled)
    assert ("request" in names) is is_sampled


@pytest.mark.parametrize(("ratio", "share"), [(0, 0), (1, 40)])
def test_none_and_all(ratio: int, share: int) -> None:
    recorder = Recorder(ConversationSampler(ratio))
    tracer = recorder.provider.get_tracer("application")
    for each in CONVERSATIONS:
        with conversation_turn(each, telemetry=recorder.telemetry):
            pass
        with tracer.start_as_current_span("without a conversation"):
            pass
    assert len(recorder.named("invoke_agent")) == share
    assert len(recorder.named("without a conversation")) == share


@pytest.mark.parametrize(("ratio", "kind"), [(1.5, ValueError), (-1, ValueError), ("1", TypeError)])
def test_a_ratio_that_cannot_be_is_an_error(ratio: Any, kind: type[Exception]) -> None:
    with pytest.raises(ConfigurationError, match="ratio of sampled conversations") as caught:
        configure_telemetry(set_global=False, conversation_ratio=ratio)
    assert isinstance(caught.value, TypeError) is (kind is TypeError)


# ------------------------------------------------------------------ content


def test_content_stands_on_the_turn_where_it_is_asked_for() -> None:
    recorder = Recorder()
    turn = conversation_turn("42", telemetry=recorder.telemetry, capture_content=True)
    with turn:
        turn.record_input([("user", "내 이름은?")])
        call = {"name": "look_up", "args": {"what": "name"}, "id": "1"}
        turn.record_output([HumanMessage("내 이름은?"), AIMessage("철수", tool_calls=[call])])
    [span] = recorder.spans
    found = attributes(span)
    assert (found["input.value"], found["output.value"]) == ("내 이름은?", "철수")
    assert found["openinference.span.kind"] == "AGENT"
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "내 이름은?"}]}
    ]
    [_, answer] = json.loads(found["gen_ai.output.messages"])
    assert answer == {
        "role": "assistant",
        "parts": [
            {"type": "text", "content": "철수"},
            {"type": "tool_call", "id": "1", "name": "look_up", "arguments": {"what": "name"}},
        ],
        "finish_reason": "tool_call",
    }


@pytest.mark.parametrize(
    ("variable", "argument", "is_there"),
    [
        (None, None, False),
        ("true", None, True),
        ("true", False, False),
        (None, True, True),
        ("false", None, False),
    ],
)
def test_content_is_recorded_only_if_it_is_asked_for(
    variable: str | None, argument: bool | None, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, variable)
    recorder = Recorder()
    turn = conversation_turn("42", telemetry=recorder.telemetry, capture_content=argument)
    with turn:
        turn.record_input(CANARY)
        turn.record_output(AIMessage(CANARY))
    [span] = recorder.spans
    assert (CANARY in span.to_json()) is is_there


def test_content_in_a_form_that_nobody_knows_does_not_fail_the_turn() -> None:
    recorder = Recorder()
    turn = conversation_turn("42", telemetry=recorder.telemetry, capture_content=True)
    with turn:
        turn.record_input(object())
    [span] = recorder.spans
    assert "input.value" not in attributes(span)


# ------------------------------------------------------------------ processors


def emit_secrets(provider: TracerProvider) -> None:
    tracer = trace.get_tracer("openinference.instrumentation.langchain", tracer_provider=provider)
    with tracer.start_as_current_span("model") as span:
        span.set_attributes({"input.value": CANARY, "llm.model_name": "m", "session.id": "a person"})
        span.add_event("exception", {"exception.message": CANARY, "exception.type": "E"})


@pytest.mark.parametrize("way", ["given", "added"])
@pytest.mark.parametrize("capture", [False, True])
def test_a_processor_receives_no_content_whichever_way_it_comes_in(way: str, capture: bool) -> None:
    kept = InMemorySpanExporter()
    processor = SimpleSpanProcessor(kept)
    with configure_telemetry(
        set_global=False,
        capture_content=capture,
        thread_ids="hashed",
        span_processors=[processor] if way == "given" else (),
    ) as under:
        if way != "given":
            under.tracer_provider.add_span_processor(processor)
        emit_secrets(under.tracer_provider)
    [span] = kept.get_finished_spans()
    assert (CANARY in span.to_json()) is capture
    assert "a person" not in span.to_json()
    assert attributes(span)["llm.model_name"] == "m"
    assert isinstance(under.tracer_provider, TracerProvider)


@pytest.mark.parametrize(
    ("processors", "says"),
    [
        ("x", "span_processors is a single str"),
        (SimpleSpanProcessor(InMemorySpanExporter()), "a single SimpleSpanProcessor"),
        ([ConsoleSpanExporter()], "a ConsoleSpanExporter, which is no span processor. Wrap an exporter"),
        ([None], "span_processors holds a NoneType"),
    ],
)
def test_what_is_no_list_of_processors_is_an_error(processors: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        configure_telemetry(set_global=False, span_processors=processors)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("thread_id", [42, "", None, "\0", "x" * 3000])
def test_a_turn_of_no_conversation_is_an_error(thread_id: Any) -> None:
    with pytest.raises(InvalidConfigError, match="thread_id"):
        conversation_turn(thread_id)
