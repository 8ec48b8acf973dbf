"""Configs that name no thread, and the calls that refuse them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from glasspoint import CachedPostgresSaver
from states import config_of
from steps import Thread

CALLS: dict[str, Callable[[CachedPostgresSaver, Any], Awaitable[Any]]] = {
    "aget_tuple": lambda saver, config: saver.aget_tuple(config),
    "alist": lambda saver, config: anext(saver.alist(config)),
    "aput": lambda saver, config: saver.aput(config, *Thread("x").next_put(saver)[1:]),
    "aput_writes": lambda saver, config: saver.aput_writes(config, [("messages", 1)], "task"),
    "aget_delta_channel_history": lambda saver, config: saver.aget_delta_channel_history(
        config=config, channels=["messages"]
    ),
}
CONFIGS = {
    "no configurable": ({}, r'no "configurable".*pass config='),
    "configurable is no dict": ({"configurable": "thread-1"}, r'no "configurable".*pass config='),
    "config is no dict": ("thread-1", r'no "configurable".*pass config='),
    "config is None": (None, r'no "configurable".*pass config='),
    "thread_id missing": ({"configurable": {"checkpoint_ns": ""}}, "names no thread: pass config="),
    "thread_id empty": (config_of(""), "thread_id is empty: pass a string"),
    "thread_id a number": (config_of(7), r"thread_id must be a string, not int: pass str\(…\)"),
    "thread_id a UUID": (config_of(uuid4()), r"thread_id must be a string, not UUID: pass str\(…\)"),
    "thread_id None": (config_of(None), r"thread_id is None: .* \(Do not convert it"),
    "thread_id bytes": (config_of(b"7"), r"thread_id must be a string, not bytes\.$"),
    "thread_id an object": (config_of(object()), r"thread_id must be a string, not object\.$"),
    "thread_id too long": (config_of("é" * 1251), "thread_id has 2502 bytes, and may have 2500"),
    "too long together": (
        config_of("a" * 1250, "b" * 1251),
        "checkpoint_ns have 2501 bytes, and may have 2500",
    ),
    "thread_id with NUL": (config_of("a\0b"), "thread_id holds a NUL character"),
    "thread_id with half a character": (config_of("a\ud800"), "thread_id holds a lone surrogate"),
    "checkpoint_ns a number": (config_of("a", 7), r"checkpoint_ns must be a string, not int: pass str\(…\)"),
    "checkpoint_ns with NUL": (config_of("a", "\0"), "checkpoint_ns holds a NUL character"),
    "checkpoint_id a number": (
        config_of("a", "", 7),
        r"checkpoint_id must be a string, not int: pass str\(…\)",
    ),
    "checkpoint_id with NUL": (config_of("a", "", "\0"), "checkpoint_id holds a NUL character"),
}
