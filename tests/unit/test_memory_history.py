"""What the history in memory refuses and forgets, as the one in Redis does in its scripts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from glasspoint.errors import DeltaChainError, GlasspointError, ThreadInUseError
from glasspoint.history import copying
from glasspoint.history.in_memory import MemoryHistory
from glasspoint.history.interface import Removal
from glasspoint.history.pruning import delete_for_runs, keep_latest
from glasspoint.model.codec import Encoded, EncodedWrite, PendingWrites, StoredCheckpoint, encode_found
from glasspoint.model.scope import Scope
from states import numbered_id
from steps import Thread

SCOPE = Scope("t", "")


def stored(number: int) -> StoredCheckpoint:
    """A checkpoint, each with the one before as its parent."""
    thread = Thread("t")
    thread.number = number - 1
    config, checkpoint, metadata, _ = thread.next_put(InMemorySaver())
    metadata["run_id"] = "a run"
    if number > 1:
        config = {"configurable": {**config["configurable"], "checkpoint_id": numbered_id(number - 1)}}
    found = CheckpointTuple(config, checkpoint, metadata, config if number > 1 else None)
    return encode_found(JsonPlusSerializer(), found)


async def history_of(count: int) -> MemoryHistory:
    history = MemoryHistory()
    for number in range(1, count + 1):
        assert await history.add(stored(number))
    return history


async def exported(history: MemoryHistory) -> list[Any]:
    return [each async for each in history.export("t", sealed_too=False)]


async def test_an_item_is_added_only_to_what_its_store_has_seen() -> None:
    history = await history_of(2)
    with pytest.raises(ThreadInUseError):
        await history.add(stored(3), newest=numbered_id(1))
    assert await history.add(stored(3), newest=numbered_id(2))
    assert not await history.add(stored(3)), "it is there already"


async def test_writes_may_come_without_their_checkpoint() -> None:
    history = await history_of(1)
    write = EncodedWrite("task", 0, "c", Encoded("text", b"x"), "")
    assert not await history.add(PendingWrites(SCOPE, numbered_id(7), [write]))
    checkpoint, pending = await exported(history)
    assert (checkpoint.checkpoint_id, checkpoint.writes) == (numbered_id(1), [])
    assert (pending.checkpoint_id, pending.writes) == (numbered_id(7), [write])


async def test_nothing_is_removed_by_an_outline_that_is_older_than_the_thread() -> None:
    history = await history_of(3)
    revision, _ = await history.outline("t")
    first = Removal("", False, [numbered_id(1)], [numbered_id(2), numbered_id(9)])
    assert await history.remove("t", [first], revision)
    assert not await history.remove("t", [first], revision)
    assert [each.parent_id for each in await exported(history)] == [None, numbered_id(2)]


async def test_with_its_last_checkpoint_a_namespace_is_gone() -> None:
    history = await history_of(1)
    assert await history.remove("t", [Removal("", True, [numbered_id(1)], [])], "")
    assert history.is_empty


async def test_a_thread_that_is_written_to_again_and_again_is_neither_pruned_nor_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = await history_of(3)

    async def changed(*args: object) -> bool:
        return False

    monkeypatch.setattr(history, "remove", changed)
    with pytest.raises(DeltaChainError):
        await keep_latest(history, "t")
    with pytest.raises(DeltaChainError):
        await delete_for_runs(history, ["a run"])
    monkeypatch.setattr(copying, "_copy", changed)
    with pytest.raises(GlasspointError, match="copy it when nobody prunes it"):
        await copying.copy_thread(history, "t", "another")
    assert len(await exported(history)) == 3


async def test_a_copy_names_its_own_thread_where_the_metadata_name_the_thread() -> None:
    """LangGraph Server stores the thread's id there."""
    history = MemoryHistory()
    named = stored(1)
    named.metadata["thread_id"] = "t"
    named.metadata_json = json.dumps(named.metadata)
    await history.add(named)
    await history.add(stored(2))
    await copying.copy_thread(history, "t", "another")
    copies = [each async for each in history.export("another", sealed_too=False)]
    assert [json.loads(each.metadata_json).get("thread_id") for each in copies] == ["another", None]  # type: ignore[union-attr]
