"""Every TraceQL query of boards and docs finds what it promises, in the spans of the demo and of trouble.

The spans are real; the language is read by `traceql`. A real Tempo reads it in test_real_tempo.py.
"""

from __future__ import annotations

import sys

import pytest

from traced_story import Story, traced_story
from traceql import Asked, asked, selected


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return traced_story(tmp_path_factory.mktemp("spans"))


@pytest.mark.parametrize("query", asked(), ids=lambda each: f"{each.where}: {each.text}")
def test_a_query_finds_something(query: Asked, story: Story) -> None:
    found = selected(query.about(story.conversation, story.trace_id), story.spans)
    sys.stdout.write(f"{query.where}: {query.text}: {len(found)} spans\n")
    assert found


def test_the_turns_of_the_demo_hold_what_was_said_if_that_is_asked_for(story: Story) -> None:
    """Phoenix shows these two attributes as INPUT and OUTPUT of a session."""
    turns = [span for span in story.of_demo if span.name.startswith("invoke_agent")]
    assert len(turns) == 7
    assert {span.text("input.value") for span in turns} == {"내 이름은 철수야", "내 이름이 뭐라고 했지?"}
    assert all("철수" in span.text("output.value") for span in turns)


def test_no_call_of_the_saver_stands_flat_under_a_turn_of_the_demo(story: Story) -> None:
    """Neither a look of the chain into its lower tier, which comes before the call."""
    turns = {span.span_id for span in story.of_demo if span.name.startswith("invoke_agent")}
    saver = [span for span in story.of_demo if span.name.startswith("checkpoint.")]
    assert "checkpoint.redis.holds" in {span.name for span in saver}
    assert {span.name for span in saver if span.parent_id in turns} == set()
