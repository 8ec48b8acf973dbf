"""What the differential tests draw: ids, values, checkpoints, and what no saver can store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple

from states import config_of, numbered_id

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
Scope = tuple[str, str]
# With plain joins, the second and the third would share a key. One thread has two namespaces.
SCOPES: list[Scope] = [("a", ""), ("a", "x}:"), ("a}:x", ""), ("대화/%7B 'π'", "sub|graph:1")]
UUIDS = [numbered_id(number) for number in range(6)]
# Not ordered by Redis as by every PostgreSQL; one of them begins like another checkpoint's.
OTHER_IDS = ["zzz", "0", numbered_id(10).upper(), f"{UUIDS[2]}:t"]
CHANNELS = ["messages", "x", "y", "branch:to:π", "__pregel_tasks"]
SPECIAL = ["__interrupt__", "__resume__", "__error__", "__scheduled__"]
VERSIONS: list[Callable[[int], Any]] = [int, lambda n: f"{n:032}.0.5", lambda n: n + 0.5]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
inline = st.one_of(
    st.sampled_from([None, True, False, 0, 1.0, 1e20, 1e16, -0.0, 1e-9, "대화 😀", "1e+16", "\\u0000"]),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
values = st.one_of(
    inline,
    st.lists(inline, max_size=2),
    st.dictionaries(texts, st.lists(inline, max_size=2), max_size=2),
    st.binary(max_size=4),
    st.builds(lambda text: [HumanMessage(text, id="1"), AIMessage(text, id="2")], texts),
)
metadata = st.fixed_dictionaries(
    {"source": st.sampled_from(["input", "loop"]), "step": st.integers(-1, 3)},
    optional={
        "writes": inline,
        "score": inline | st.just(2**70),
        "nested": st.dictionaries(texts, inline, max_size=2),
    },
)
changes = st.dictionaries(
    st.sampled_from(CHANNELS),
    st.one_of(
        st.tuples(st.just("set"), st.none() | st.integers(1, 3), values),
        st.tuples(st.just("clear"), st.none() | st.integers(1, 3), st.none()),
        st.tuples(st.just("forget"), st.none(), st.none()),
    ),
    max_size=3,
)
writes = st.one_of(
    st.lists(st.tuples(st.sampled_from(SPECIAL), values), max_size=3),
    st.lists(st.tuples(st.sampled_from(CHANNELS), values), max_size=3),
    st.lists(st.tuples(st.sampled_from(CHANNELS + SPECIAL), values), max_size=3),
)


def make_checkpoint(checkpoint_id: str, base: CheckpointTuple | None) -> Checkpoint:
    """A new checkpoint with the state of another one."""
    before: Any = base.checkpoint if base else {"channel_values": {}, "channel_versions": {}}
    return {
        "v": 4,
        "id": checkpoint_id,
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": dict(before["channel_values"]),
        "channel_versions": dict(before["channel_versions"]),
        "versions_seen": {"node": dict(before["channel_versions"])},
        "updated_channels": None,
    }


def put_value(value: Any, channel: str = "x") -> Callable[..., Awaitable[Any]]:
    def call(saver: BaseCheckpointSaver[Any], scope: Scope, new_id: str) -> Awaitable[Any]:
        checkpoint = make_checkpoint(new_id, None)
        checkpoint["channel_values"] = {"y": [1], channel: value}
        checkpoint["channel_versions"] = {"y": 1, channel: 1}
        return saver.aput(config_of(*scope), checkpoint, {}, checkpoint["channel_versions"])

    return call


def put_metadata(value: Any) -> Callable[..., Awaitable[Any]]:
    return lambda saver, scope, new_id: saver.aput(
        config_of(*scope), make_checkpoint(new_id, None), {"nested": value}, {}
    )


def put_write(value: Any, channel: str = "x", task: str = "t1") -> Callable[..., Awaitable[Any]]:
    def call(saver: BaseCheckpointSaver[Any], scope: Scope, new_id: str) -> Awaitable[Any]:
        return saver.aput_writes(config_of(*scope, new_id), [("y", 1), (channel, value)], task)

    return call


# Small values that PostgreSQL's jsonb refuses. Ours keeps them as blobs, which upstream never does by itself.
BEYOND_JSONB = ["a\0b", "\ud800", "대\0화 \ud83d", float("nan"), float("inf"), -float("inf")]
UNSTORABLE = [
    *map(put_value, [object(), [object()], {"x": lambda: None}]),
    put_value([1], channel="a\0"),
    *map(put_metadata, [["\0"], {"\0": 1}, [float("nan")], object()]),
    *map(put_write, [object(), [object()]]),
    put_write(1, channel="a\0"),
    put_write(1, task="t\0"),
]
