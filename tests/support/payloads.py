"""Bytes that run code when LangGraph's serializer reads them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from glasspoint.model.codec import Encoded

Fields = dict[bytes, bytes]
MakePayload = Callable[[Path], Encoded]


def _call(code: int, module: str, name: str, *arguments: Any) -> ormsgpack.Ext:
    return ormsgpack.Ext(code, ormsgpack.packb((module, name, *arguments)))


def _msgpack(content: Any) -> Encoded:
    return Encoded("msgpack", ormsgpack.packb([content]))


def _in_json(path: Path) -> Encoded:
    constructor = {"lc": 2, "type": "constructor", "id": ["os", "mkdir"], "args": [str(path)]}
    return Encoded("json", json.dumps(constructor).encode())


class _Pickled:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


SINGLE, POSITIONAL, NAMED = (
    jsonplus.EXT_CONSTRUCTOR_SINGLE_ARG,
    jsonplus.EXT_CONSTRUCTOR_POS_ARGS,
    jsonplus.EXT_CONSTRUCTOR_KW_ARGS,
)
# Of each what the serializer must allow for it; by default it allows all that is in msgpack.
PAYLOADS: dict[str, tuple[dict[str, Any], MakePayload]] = {
    "a command": ({}, lambda path: _msgpack(_call(SINGLE, "os", "system", f"mkdir '{path}'"))),
    "a call": ({}, lambda path: _msgpack(_call(SINGLE, "os", "mkdir", str(path)))),
    "a call with two arguments": (
        {},
        lambda path: _msgpack(_call(POSITIONAL, "os", "mkdir", (str(path), 0o700))),
    ),
    "a call with a named argument": (
        {},
        lambda path: _msgpack(_call(NAMED, "os", "makedirs", {"name": str(path)})),
    ),
    "a model of pydantic 1": (
        {},
        lambda path: _msgpack(_call(jsonplus.EXT_PYDANTIC_V1, "os", "makedirs", {"name": str(path)})),
    ),
    "a model of pydantic 2": (
        {},
        lambda path: _msgpack(_call(jsonplus.EXT_PYDANTIC_V2, "os", "makedirs", {"name": str(path)})),
    ),
    "a call in a delta": (
        {},
        lambda path: _msgpack(
            ormsgpack.Ext(
                jsonplus.EXT_DELTA_SNAPSHOT, ormsgpack.packb(_call(SINGLE, "os", "mkdir", str(path)))
            )
        ),
    ),
    "a constructor in JSON": ({"allowed_json_modules": True}, _in_json),
    "a pickle": (
        {"pickle_fallback": True},
        lambda path: Encoded("pickle", pickle.dumps(_Pickled(path))),
    ),
}


class Watched(JsonPlusSerializer):
    """LangGraph's serializer, which remembers what it was given to read."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.read: list[bytes] = []

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.read.append(data[1])
        return super().loads_typed(data)


def armed(what: str, path: Path) -> tuple[Watched, Any]:
    """Return a serializer, and bytes that make `path` by running code if a serializer is given them."""
    allowed, make = PAYLOADS[what]
    payload = make(path)
    JsonPlusSerializer(**allowed).loads_typed(payload)
    assert path.exists(), "the very bytes do run code, if the serializer is given them"
    path.rmdir()
    return Watched(**allowed), payload
