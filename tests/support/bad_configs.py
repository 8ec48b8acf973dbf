"""Configs that name no thread, and the calls that refuse them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from glasspoint import CachedPostgresSaver
from states import config_of
from steps import Thread

# What a type checker would refuse.
bad: Any = config_of

CALLS: dict[str, Callable[[CachedPostgresSaver, Any], Awaitable[Any]]] = {
    "aget_tuple": lambda saver, config: saver.aget_tuple(config),
    "alist": lambda saver, config: anext(saver.alist(config)),
    "aput": lambda saver, config: saver.aput(config, *Thread("x").next_put(saver)[1:]),
    "aput_writes": lambda saver, config: saver.aput_writes(config, [("messages", 1)], "task"),
    "aget_delta_channel_history": lambda saver, config: saver.aget_delta_channel_history(
        config=config, channels=["messages"]
    ),
}
CONFIGS: dict[str, tuple[Any, str]] = {
    "no configurable": ({}, r'no "configurable".*pass config='),
    "configurable is no dict": ({"configurable": "thread-1"}, r'no "configurable".*pass config='),
    "config is no dict": ("thread-1", r'no "configurable".*pass config='),
    "config is None": (None, r'no "configurable".*pass config='),
    "thread_id missing": ({"configurable": {"checkpoint_ns": ""}}, "names no thread: pass config="),
    "thread_id empty": (bad(""), "thread_id is empty: pass a string"),
    "thread_id a number": (bad(7), r"thread_id must be a string, not int: pass str\(…\)"),
    "thread_id a UUID": (bad(uuid4()), r"thread_id must be a string, not UUID: pass str\(…\)"),
    "thread_id None": (bad(None), r"thread_id is None: .* \(Do not convert it"),
    "thread_id bytes": (bad(b"7"), r"thread_id must be a string, not bytes\.$"),
    "thread_id an object": (bad(object()), r"thread_id must be a string, not object\.$"),
    "thread_id too long": (bad("é" * 1251), "thread_id has 2502 bytes, and may have 2500"),
    "too long together": (
        bad("a" * 1250, "b" * 1251),
        "checkpoint_ns have 2501 bytes, and may have 2500",
    ),
    "thread_id with NUL": (bad("a\0b"), "thread_id holds a NUL character"),
    "thread_id with half a character": (bad("a\ud800"), "thread_id holds a lone surrogate"),
    "checkpoint_ns a number": (bad("a", 7), r"checkpoint_ns must be a string, not int: pass str\(…\)"),
    "checkpoint_ns with NUL": (bad("a", "\0"), "checkpoint_ns holds a NUL character"),
    "checkpoint_id a number": (
        bad("a", "", 7),
        r"checkpoint_id must be a string, not int: pass str\(…\)",
    ),
    "checkpoint_id with NUL": (bad("a", "", "\0"), "checkpoint_id holds a NUL character"),
}
