"""States as a chat agent leaves them, with texts that compress as prose does: the same sentence over and over
would flatter a compressor, and random letters would wrong it. The prose is Python's own language reference.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint
from langgraph.checkpoint.base.id import uuid6

_CHANNELS = ("messages", "turns", "profile", "branch:to:agent", "branch:to:tools")


def messages(count: int, dice: random.Random) -> list[AnyMessage]:
    """A conversation of so many messages of 200 to 500 characters, no two alike up to about 1,000; every
    fourth two of them are a tool's call and its answer."""
    start = dice.randrange(len(_prose()))
    made: list[AnyMessage] = []
    for number in range(count):
        length = dice.randint(200, 500)
        text = (_prose()[start : start + length] + _prose()[:length])[:length]
        start = (start + length) % len(_prose())
        made.append(_message(number, text, dice))
    return made


@dataclass
class Chat:
    """One thread: what LangGraph passes to a saver for it; nothing of a state is kept here."""

    thread_id: str
    version: int = 0
    parent: str | None = None
    namespace: str = ""

    @property
    def config(self) -> RunnableConfig:
        """Names the thread, for reading."""
        return {"configurable": {"thread_id": self.thread_id, "checkpoint_ns": self.namespace}}

    @property
    def newest(self) -> RunnableConfig:
        """Names its newest checkpoint."""
        return {"configurable": {**self.config["configurable"], "checkpoint_id": self.parent}}

    def next_put(
        self, said: list[AnyMessage]
    ) -> tuple[RunnableConfig, Checkpoint, dict[str, Any], ChannelVersions]:
        """What `aput` takes for the checkpoint after the newest, in which `said` is all that was said."""
        before = self.newest if self.parent else self.config
        self.version += 1
        versions: ChannelVersions = dict.fromkeys(_CHANNELS, f"{self.version:032}.5")
        self.parent = str(uuid6(clock_seq=self.version))
        checkpoint: Checkpoint = {
            "v": 4,
            "id": self.parent,
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": {
                "messages": said,
                "turns": self.version,
                "profile": {"name": "철수", "language": "ko", "interests": ["hiking", "chess"]},
            },
            "channel_versions": versions,
            "versions_seen": {"agent": {"branch:to:agent": versions["branch:to:agent"]}},
            "updated_channels": None,
        }
        return before, checkpoint, {"source": "loop", "step": self.version, "parents": {}}, versions


def _message(number: int, text: str, dice: random.Random) -> AnyMessage:
    id_ = str(UUID(int=dice.getrandbits(128)))
    if number % 4 == 0:
        return HumanMessage(text, id=id_)
    usage = {"input_tokens": dice.randrange(4000), "output_tokens": dice.randrange(400), "total_tokens": 4400}
    metadata = {"finish_reason": "stop", "model_name": "a-model-2026", "system_fingerprint": "fp_44709d6fcb"}
    if number % 4 == 1:
        call = {"name": "search", "args": {"query": text[:60]}, "id": f"call_{id_[:13]}", "type": "tool_call"}
        return AIMessage(
            "", id=f"run-{id_}", tool_calls=[call], usage_metadata=usage, response_metadata=metadata
        )
    if number % 4 == 2:
        return ToolMessage(text, id=id_, name="search", tool_call_id=f"call_{id_[:13]}")
    return AIMessage(text, id=f"run-{id_}", usage_metadata=usage, response_metadata=metadata)


@cache
def _prose() -> str:
    return " ".join(" ".join(topics.values()).split())
