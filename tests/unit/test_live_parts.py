"""The parts of the live page that can be looked at alone: what is sent, and what is kept of spans."""

from __future__ import annotations

import json
import math

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from glasspoint.errors import ConfigurationError
from glasspoint.telemetry.events import BreakerChanged, RetentionPruned
from glasspoint.telemetry.live.options import chosen
from glasspoint.telemetry.live.peers import Peers, _in_words
from glasspoint.telemetry.live.spans import LiveSpans
from glasspoint.telemetry.live.timeline import line_of
from glasspoint.telemetry.live.turns import certainly_kept, recent
from glasspoint.telemetry.live.viewers import Viewer, encode
from glasspoint.telemetry.thread_ids import ThreadIds


def test_what_json_has_no_number_for_is_sent_as_null() -> None:
    data = {"p99": math.inf, "each": [math.nan, (1.5, "text")], "count": 3}
    assert json.loads(encode(data)) == {"p99": None, "each": [None, [1.5, "text"]], "count": 3}


def test_a_page_whose_event_loop_has_ended_is_given_up() -> None:
    def wake() -> None:
        raise RuntimeError("Event loop is closed")

    viewer = Viewer([], wake)
    assert not viewer.put(b"an event")
    assert viewer.is_over
    assert not viewer.put(b"another event")


def test_what_changes_nothing_is_no_line_of_the_timeline() -> None:
    assert line_of(BreakerChanged("half_open", "open", "probe")) is None
    assert line_of(RetentionPruned(0, 0, 0)) is None


@pytest.mark.parametrize(
    ("way", "names"), [("plain", ["a thread"]), ("hashed", ["d1280f6372072c13"]), ("none", [])]
)
def test_thread_ids_on_spans_of_others_are_shown_as_on_ours(way: ThreadIds, names: list[str]) -> None:
    """What is neither text nor number is left out, and any number of providers may have the processor."""
    processor = LiveSpans(thread_ids=way)
    recent.open()
    try:
        with certainly_kept():
            for number in range(20):
                provider = TracerProvider(resource=Resource({"service.name": f"service {number}"}))
                provider.add_span_processor(processor)
                with provider.get_tracer("an instrumentation").start_as_current_span("call") as span:
                    span.set_attribute("session.id", "a thread")
                    span.set_attribute("gen_ai.usage.details", [1, 2])
        assert [each["thread"] for each in recent.all()] == names
    finally:
        recent.close()
        processor.shutdown()


def test_an_option_that_is_no_choice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="live is a str: it must be True, False or a Live"):
        chosen("yes")  # type: ignore[arg-type]


def test_a_variable_that_is_like_no_other_is_not_mentioned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GLASSPOINT_LIVE_PERRS", "")
    monkeypatch.setenv("GLASSPOINT_LIVE_OF_ANOTHER_SOFTWARE", "")
    assert chosen(None) is None
    assert "GLASSPOINT_LIVE_PERRS is not read: did you mean" in caplog.text
    assert "ANOTHER_SOFTWARE" not in caplog.text


def test_an_error_that_is_none_of_the_connection_is_named_without_its_text() -> None:
    peers = Peers({})
    peers.ask(["nobody"])
    assert peers.latest("nobody") == "is no peer"
    assert _in_words(LookupError("what the peer has sent")) == "cannot be read (LookupError)"
