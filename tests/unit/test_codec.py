"""What cannot be stored is refused in words that lead to the part that is to blame, and quote no value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from glasspoint.errors import SerializationError
from glasspoint.model.codec import Encoded, StoredCheckpoint, decode_tuple, encode_found
from glasspoint.model.scope import Scope

SECRET = "Geheimnis"


@dataclass
class Order:
    name: str
    lines: Any


class Model(BaseModel):
    name: str
    lines: Any


class NoContainers(JsonPlusSerializer):
    """A serializer that takes only what is in them."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if not isinstance(obj, str | int):
            raise TypeError(f"no: {obj}")
        return super().dumps_typed(obj)


class Changing(JsonPlusSerializer):
    """A serializer that gives a text back as another one, or not at all."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self._raises = raises

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "text", str(obj).encode(errors="replace")

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if self._raises:
            raise ValueError("cannot be decrypted")
        return data[1].decode()


def found(value: object, *, metadata: Any = None, **more: Any) -> CheckpointTuple:
    """A checkpoint with one channel, as another saver returns it."""
    channels = {"channel_values": {"c": value}, "channel_versions": {"c": 1}}
    checkpoint: Any = empty_checkpoint() | channels | more
    told: Any = metadata or {}
    return CheckpointTuple({"configurable": {"thread_id": "t"}}, checkpoint, told, None)


@pytest.mark.parametrize("value", [{"a": 1}, [1], Order("a", 1), Model(name="a", lines=1)])
def test_a_value_whose_parts_can_all_be_stored_is_itself_to_blame(value: object) -> None:
    with pytest.raises(
        SerializationError, match=rf"channel 'c' \({type(value).__name__}\): TypeError"
    ) as raised:
        encode_found(NoContainers(), found(value))
    assert "no:" not in str(raised.value)


@pytest.mark.parametrize("kind", [Order, Model])
def test_the_part_that_cannot_be_stored_is_named_by_its_place(kind: Any) -> None:
    value = {"orders": [kind(name=SECRET, lines=[1]), kind(name=SECRET, lines=[1, lambda: SECRET])]}
    with pytest.raises(SerializationError, match=r"\['orders'\]\[1\]\.lines\[1\] \(function\)") as raised:
        encode_found(JsonPlusSerializer(), found(value))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (10**5000, "a number has too many digits"),
        (float("nan"), "a number is NaN or infinite"),
        ("\0", "a text holds a NUL character"),
        ("\ud800", "a text is not valid Unicode"),
        ({1}, "set is no JSON"),
    ],
    ids=["digits", "nan", "nul", "surrogate", "set"],
)
def test_metadata_that_are_no_json_say_why(part: object, why: str) -> None:
    with pytest.raises(SerializationError, match=rf"metadata\['a'\]\[0\] as JSON: {why}"):
        encode_found(JsonPlusSerializer(), found("value", metadata={"a": [part]}))


@pytest.mark.parametrize("raises", [True, False])
def test_a_text_that_the_serializer_does_not_give_back_is_refused(raises: bool) -> None:
    """PostgreSQL takes it in no other form, and what is read would be another text."""
    with pytest.raises(SerializationError, match="not valid Unicode, and the serde does not give it back"):
        encode_found(Changing(raises=raises), found("\ud800"))


def test_a_checkpoint_without_an_id_or_with_a_value_without_a_version_is_refused() -> None:
    with pytest.raises(SerializationError, match="without an id"):
        encode_found(JsonPlusSerializer(), found(1, id=None))
    with pytest.raises(SerializationError, match="'c': the checkpoint has no version of it"):
        encode_found(JsonPlusSerializer(), found([1], channel_versions={}))


def test_a_thread_of_langgraph_js_with_delta_channels_needs_its_ancestors() -> None:
    stored = encode_found(JsonPlusSerializer(), found([1]))
    assert not stored.needs_ancestors
    stored.metadata["delta_writes_versioned"] = True
    assert stored.needs_ancestors


def test_a_channel_that_was_emptied_has_no_value() -> None:
    document: Any = empty_checkpoint() | {"channel_versions": {"c": "1", "d": "1"}}
    serde = JsonPlusSerializer()
    values = {"c": ("1", Encoded("empty", b"")), "d": ("1", Encoded(*serde.dumps_typed([1])))}
    stored = StoredCheckpoint(
        Scope("t", ""),
        document["id"],
        None,
        document,
        {},
        values,
        writes=[],
        document_json="",
        metadata_json="",
    )
    assert decode_tuple(serde, stored).checkpoint["channel_values"] == {"d": [1]}
