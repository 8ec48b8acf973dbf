"""What `glasspoint show` and `glasspoint diff` say of states that are seldom: an operator decides by it."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from glasspoint.cli import browsing
from glasspoint.cli.browsing_view import print_diff, print_history, print_show
from glasspoint.model.codec import StoredCheckpoint
from glasspoint.model.scope import Scope

Facts = dict[str, Any]

L1 = {"result": "absent", "checkpoint_id": None, "bytes": 0, "expires_in_seconds": None}
CHECKPOINT: Facts = {
    "checkpoint_id": "1f0", "created_at": "2026-01-01T00:00:00+00:00", "step": 1, "source": "loop",
    "bytes": 10, "pending_writes": 1, "interrupts": 0, "errors": 0,
}  # fmt: skip
SHOWN: Facts = CHECKPOINT | {
    "thread_id": "t", "checkpoint_ns": "", "namespaces": [], "is_newest": True, "parent_id": None,
    "format": 4, "next": [], "l1": L1, "channels": [], "pending_writes": [],
}  # fmt: skip


def said(what: Any, facts: Facts) -> str:
    """What is printed, in one line."""
    out = StringIO()
    what(Console(file=out, width=80, highlight=False), facts)
    return " ".join(out.getvalue().split())


def test_tasks_that_have_failed_are_to_be_tried_again() -> None:
    assert "errors 2: the tasks are to be tried again" in said(print_show, SHOWN | {"errors": 2})
    branch = {"goes_on_from": None, "checkpoints": [CHECKPOINT | {"errors": 1}]}
    history = {
        "thread_id": "t", "checkpoint_ns": "", "namespaces": [], "checkpoints": 1, "shown": 1,
        "branches": [branch],
    }  # fmt: skip
    assert said(print_history, history).endswith("1 error")


def test_a_value_that_cannot_be_read_says_so_and_why() -> None:
    channel = {"channel": "secret", "version": "1", "kept": "value", "type": "msgpack+aes", "bytes": 10}
    shown = said(print_show, SHOWN | {"channels": [channel | {"value": None, "unreadable": "ValueError"}]})
    assert "cannot be read here (ValueError): another serializer, or it is encrypted" in shown


@pytest.mark.parametrize(
    ("l1", "says"),
    [
        ({"result": "hit", "agrees": True}, "hit: it holds this checkpoint; all of it is as in PostgreSQL"),
        (
            {"result": "hit", "agrees": False, "differs_in": ["metadata.step", "a"]},
            "hit: it holds this checkpoint, which DIFFERS from PostgreSQL's newest in: metadata.step, a",
        ),
        (
            {"result": "another checkpoint", "agrees": True},
            "L1 (Redis) another checkpoint, 1f0; all of it is as in PostgreSQL",
        ),
        ({"checkpoint_id": None, "journalled": True}, "the journal names it, so savers drop it before they"),
        ({"result": "hit", "agrees": True, "bytes": 10, "expires_in_seconds": 86400 * 3}, "gone in 3 d if"),
        (
            {"result": "hit", "agrees": True, "bytes": 10, "expires_in_seconds": 119},
            "gone in 119 s if",
        ),
    ],
)
def test_of_the_entry_in_redis_it_is_said_whether_it_is_true_and_how_long_it_stays(
    l1: Facts, says: str
) -> None:
    assert says in said(print_show, SHOWN | {"l1": L1 | {"checkpoint_id": "1f0"} | l1})


@pytest.mark.parametrize(
    ("relation", "says"),
    [
        ({"kind": "same", "steps": 0}, "a and b are one checkpoint"),
        ({"kind": "b goes on from a", "steps": 1}, "b goes on from a, 1 checkpoint later"),
        ({"kind": "a goes on from b", "steps": 2}, "a goes on from b, 2 checkpoints later"),
        ({"kind": "branches", "steps": None, "common": "1e0"}, "two branches: they part at 1e0"),
        ({"kind": "unrelated", "steps": None, "common": None}, "no common ancestor in this thread"),
    ],
)
def test_a_diff_says_how_the_two_are_related(relation: Facts, says: str) -> None:
    facts = {
        "thread_id": "t", "checkpoint_ns": "", "a": CHECKPOINT, "b": CHECKPOINT, "relation": relation,
        "channels": [], "unchanged": ["text"],
    }  # fmt: skip
    assert says in said(print_diff, facts)


class Order(BaseModel):
    name: str
    lines: list[int]


def test_a_value_of_the_application_is_shown_by_its_fields() -> None:
    assert browsing._jsonable({"order": Order(name="a", lines=[1])}) == {
        "order": {"type": "Order", "name": "a", "lines": [1]}
    }


def stored(values: dict[str, Any], versions: dict[str, str], seen: dict[str, Any]) -> StoredCheckpoint:
    document = {"channel_values": values, "channel_versions": versions, "versions_seen": seen}
    return StoredCheckpoint(Scope("t", ""), "1f0", None, document, {}, {}, [])


def test_a_node_that_has_processed_its_trigger_is_not_next() -> None:
    edges = {"branch:to:a": "1", "branch:to:b": "2", "branch:to:c": "2"}
    seen = {"a": {"branch:to:a": "1"}, "b": {"branch:to:b": "1"}}
    found = stored(dict.fromkeys(edges), edges, seen)
    assert browsing._next_nodes(found) == ["b", "c"]
