"""Which checkpoints pruning keeps: the decision alone, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasspoint.history.interface import Channel, Outline
from glasspoint.history.retention import (
    by_namespace,
    kept_by_keep_latest,
    severed_by,
    uses_delta_channels,
)

NOTHING = Channel(True, "", False)
BLOB = Channel(True, "", True)
SNAPSHOT = Channel(True, "t", True)
PLAIN_TRUE = Channel(True, "t", False)
NULL = Channel(True, "n", False)
TEXT = Channel(True, "v", False)
UNVERSIONED = Channel(False, "", False)
COUNTED = {"counters_since_delta_snapshot": {"log": [1, 1]}}


def outline(
    checkpoint_id: str, parent_id: str | None = None, log: Channel | None = None, **more: Any
) -> Outline:
    fields: dict[str, Any] = {
        "namespace": "",
        "old_format": False,
        "run_id": None,
        "metadata": COUNTED,
        "parent_has_sends": False,
    }
    channels = {} if log is None else {"log": log}
    return Outline(checkpoint_id=checkpoint_id, parent_id=parent_id, channels=channels, **(fields | more))


def chain(*logs: Channel, **more: Any) -> list[Outline]:
    """Checkpoints 1, 2, 3, … each the parent of the next."""
    return [outline(str(i), str(i - 1) if i > 1 else None, log, **more) for i, log in enumerate(logs, 1)]


def kept(*outlines: Outline) -> dict[str, set[str]]:
    return kept_by_keep_latest(by_namespace(outlines))


# ------------------------------------------------------------------ without delta channels


def test_the_newest_of_each_namespace_stays() -> None:
    other = outline("9", metadata={}, namespace="sub")
    older = outline("8", metadata={}, namespace="sub")
    plain = chain(BLOB, BLOB, NOTHING, metadata={})
    assert kept(*plain, other, older) == {"": {"3"}, "sub": {"9"}}
    assert not uses_delta_channels(by_namespace(plain))


@pytest.mark.parametrize(
    ("old_format", "has_sends", "stays"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_an_old_format_keeps_the_parent_that_it_is_completed_from(
    old_format: bool, has_sends: bool, stays: bool
) -> None:
    newest = outline("2", "1", metadata={}, old_format=old_format, parent_has_sends=has_sends)
    assert kept(outline("1", metadata={}), newest)[""] == ({"1", "2"} if stays else {"2"})


@pytest.mark.parametrize(
    ("namespace", "origin", "goes"),
    [
        ("call:1", "1", True),
        ("call:1", "2", False),  # its root checkpoint stays
        ("call:1", "7", False),  # its root checkpoint is not saved yet
        ("call:1", None, False),
        ("call:1", ["1"], False),
        ("stateful", "1", False),
    ],
)
def test_a_call_goes_with_the_root_checkpoint_that_it_started_from(
    namespace: str, origin: Any, goes: bool
) -> None:
    call = outline("5", metadata={"parents": {"": origin}}, namespace=namespace)
    root = chain(BLOB, BLOB, metadata={})
    assert kept(*root, call) == {"": {"2"}, namespace: set() if goes else {"5"}}


@pytest.mark.parametrize("parents", [None, [], "text", {}])
def test_a_call_whose_metadata_say_nothing_stays(parents: Any) -> None:
    call = outline("5", metadata={"parents": parents}, namespace="call:1")
    assert kept(*chain(BLOB, BLOB, metadata={}), call)["call:1"] == {"5"}


# ------------------------------------------------------------------ delta channels


@pytest.mark.parametrize(
    ("history", "stays"),
    [
        (chain(SNAPSHOT, NOTHING, NOTHING), {"1", "2", "3"}),
        (chain(NOTHING, SNAPSHOT, NOTHING, NOTHING), {"2", "3", "4"}),
        (chain(NOTHING, NOTHING, SNAPSHOT), {"3"}),
        (chain(NOTHING, NOTHING, NOTHING), {"1", "2", "3"}),
        (chain(NOTHING, BLOB, NOTHING), {"2", "3"}),
        (chain(NOTHING, TEXT, NOTHING), {"2", "3"}),
        (chain(NOTHING, PLAIN_TRUE, NOTHING), {"2", "3"}),
        (chain(SNAPSHOT, NULL, NOTHING), {"1", "2", "3"}),
        (chain(SNAPSHOT, NOTHING, NULL), {"3"}),
        (chain(SNAPSHOT, NOTHING, UNVERSIONED), {"3"}),
    ],
    ids=[
        "back to the snapshot",
        "not further",
        "the newest has a snapshot",
        "never a snapshot: back to the root",
        "a plain value from before it was a delta channel",
        "the same, inline",
        "a plain true",
        "a null is no value",
        "but the newest is read as null",
        "never written there",
    ],
)
def test_the_ancestors_that_a_delta_channel_is_rebuilt_from_stay(
    history: list[Outline], stays: set[str]
) -> None:
    assert kept(*history) == {"": stays}
    assert uses_delta_channels(by_namespace(history))


def test_a_delta_channel_is_known_by_a_counter_at_any_checkpoint_or_by_a_snapshot() -> None:
    counted_once = [*chain(BLOB, NOTHING, NOTHING, metadata={}), outline("0", None, metadata=COUNTED)]
    assert kept(*counted_once)[""] == {"1", "2", "3"}
    assert kept(*chain(SNAPSHOT, NOTHING, metadata={}))[""] == {"1", "2"}
    assert kept(*chain(PLAIN_TRUE, NOTHING, metadata={}))[""] == {"2"}, "a plain true is no snapshot"
    assert kept(*chain(BLOB, NOTHING, metadata={"counters_since_delta_snapshot": None}))[""] == {"2"}


def test_the_walk_follows_parents_not_ids() -> None:
    """3 was forked from 1; 2 is another branch."""
    history = [
        outline("1", None, SNAPSHOT),
        outline("2", "1", NOTHING),
        outline("3", "1", NOTHING),
    ]
    assert kept(*history)[""] == {"1", "3"}


def test_every_delta_channel_is_walked_for_by_itself() -> None:
    metadata = {"counters_since_delta_snapshot": {"log": [1, 1], "slow": [1, 1]}}

    def both(id_: str, parent: str | None, log: Channel, slow: Channel) -> Outline:
        return Outline(id_, id_, parent, False, None, {"log": log, "slow": slow}, metadata, False)

    history = [
        both("1", None, NOTHING, SNAPSHOT),
        both("2", "1", SNAPSHOT, NOTHING),
        both("3", "2", NOTHING, NOTHING),
    ]
    outlines = {each.checkpoint_id: each for each in history}
    assert kept_by_keep_latest({"": outlines})[""] == {"1", "2", "3"}


def test_a_thread_of_langgraph_js_keeps_all_ancestors() -> None:
    history = chain(BLOB, BLOB, BLOB, metadata={"delta_writes_versioned": True})
    assert kept(*history, outline("0", metadata={}))[""] == {"1", "2", "3"}
    assert severed_by(by_namespace(history)[""], {"1"})


def test_a_checkpoint_that_is_its_own_ancestor_ends_the_walk() -> None:
    assert kept(outline("1", "2", NOTHING), outline("2", "1", NOTHING))[""] == {"1", "2"}
    assert not severed_by(by_namespace([outline("1", "1", NOTHING)])[""], {"2"})


# ------------------------------------------------------------------ what may be deleted


@pytest.mark.parametrize(
    ("history", "doomed", "severed"),
    [
        (chain(SNAPSHOT, NOTHING, NOTHING), {"1"}, True),
        (chain(SNAPSHOT, NOTHING, NOTHING), {"2"}, True),
        (chain(SNAPSHOT, NOTHING, NOTHING), {"3"}, False),
        (chain(SNAPSHOT, NOTHING, NOTHING), {"1", "2", "3"}, False),
        (chain(NOTHING, SNAPSHOT, NOTHING), {"1"}, False),
        (chain(NOTHING, SNAPSHOT, NOTHING), {"1", "2"}, True),
        (chain(NOTHING, NOTHING, SNAPSHOT), {"1"}, True),
        (chain(NOTHING, NOTHING, SNAPSHOT), {"1", "2"}, False),
        (chain(BLOB, BLOB, metadata={}), {"1"}, False),
    ],
)
def test_a_deletion_severs_what_a_checkpoint_that_stays_needs(
    history: list[Outline], doomed: set[str], severed: bool
) -> None:
    assert severed_by(by_namespace(history)[""], doomed) is severed


def rebuilt_from(history: dict[str, Outline], start: Outline) -> list[str]:
    """What LangGraph walks through to rebuild the channel, by its own definition."""
    walked: list[str] = []
    if start.channels["log"] != NOTHING:
        return walked
    parent = start.parent_id
    while parent in history and parent not in [start.checkpoint_id, *walked]:
        walked.append(parent)
        if history[parent].channels["log"] in (SNAPSHOT, BLOB, TEXT):
            break
        parent = history[parent].parent_id
    return walked


channels = st.sampled_from([NOTHING, NOTHING, NOTHING, SNAPSHOT, BLOB, TEXT, NULL, UNVERSIONED])
histories = st.lists(st.tuples(st.none() | st.integers(0, 9), channels), min_size=1, max_size=10).map(
    lambda drawn: {
        str(i): outline(str(i), None if parent is None else str(parent), log)
        for i, (parent, log) in enumerate(drawn)
    }
)


@given(history=histories, doomed=st.sets(st.integers(0, 9).map(str)))
def test_any_history_keeps_what_is_walked_through_and_no_more(
    history: dict[str, Outline], doomed: set[str]
) -> None:
    newest = history[max(history)]
    assert kept_by_keep_latest({"": history})[""] == {
        newest.checkpoint_id,
        *rebuilt_from(history, newest),
    }
    staying = [each for each in history.values() if each.checkpoint_id not in doomed]
    assert severed_by(history, doomed) is any(doomed & {*rebuilt_from(history, each)} for each in staying)
