"""What `migrate` reads of sources that hold odd things: all of it, or an error that says what to do."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

from glasspoint.errors import SerializationError
from glasspoint.migration.sources import InMemorySource, ListingSource
from glasspoint.migration.sqlite import SqliteSource
from glasspoint.model.codec import PendingWrites, StoredCheckpoint
from states import config_of, numbered_id
from steps import Thread


async def items_of(source: Any, thread_id: str) -> list[Any]:
    async with source.thread(thread_id) as thread:
        return [each async for each in thread.items(sorted(thread.checkpoints), None)]


async def test_writes_to_a_checkpoint_that_is_not_there_are_copied_too() -> None:
    """A run puts them before its checkpoint, and may have ended between the two."""
    saver = InMemorySaver()
    thread = Thread("t")
    await thread.put(saver)
    await saver.aput_writes(config_of("t", checkpoint_id=numbered_id(7)), [("c", "x")], "task")
    await saver.aput_writes(config_of("only writes", checkpoint_id=numbered_id(7)), [("c", "x")], "task")
    source = InMemorySource(saver)
    assert await source.thread_ids() == ["only writes", "t"]
    stored, pending = await items_of(source, "t")
    assert (type(stored), stored.checkpoint_id) == (StoredCheckpoint, numbered_id(1))
    assert (type(pending), pending.checkpoint_id) == (PendingWrites, numbered_id(7))
    assert [each.channel for each in pending.writes] == ["c"]


async def test_a_saver_that_holds_nothing_has_no_threads() -> None:
    assert await ListingSource(InMemorySaver()).thread_ids() == []


class AsJson(JsonPlusSerializer):
    """A serializer that writes JSON where it can, as those of early releases did."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return ("json", json.dumps(obj).encode()) if not isinstance(obj, bytes) else super().dumps_typed(obj)


def sqlite_of(path: Path, serde: JsonPlusSerializer | None = None) -> SqliteSource:
    """A file with one checkpoint."""
    with SqliteSaver.from_conn_string(str(path)) as saver:
        saver.serde = serde or saver.serde
        config, checkpoint, metadata, versions = Thread("t").next_put(saver, nothing=None, said=["hello"])
        saver.put(config, checkpoint, metadata, versions)
    return SqliteSource(path)


async def test_a_checkpoint_in_json_is_taken_apart_into_values_in_json(tmp_path: Path) -> None:
    with sqlite_of(tmp_path / "old.sqlite", AsJson()) as source:
        [stored] = await items_of(source, "t")
    assert stored.values["said"][1] == ("json", b'["hello"]')
    loads = JsonPlusSerializer().loads_typed
    assert loads(stored.values["said"][1]) == ["hello"]


async def test_a_checkpoint_that_cannot_be_taken_apart_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite_of(path) as source:
        with sqlite3.connect(path) as file:
            file.execute("UPDATE checkpoints SET type = 'pickle'")
        file.close()
        with pytest.raises(
            SerializationError, match=r"cannot be taken apart \(pickle, NotImplementedError\)"
        ):
            await items_of(source, "t")
