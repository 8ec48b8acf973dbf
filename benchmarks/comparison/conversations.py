"""Conversations as a checkpointer sees them: what LangGraph passes to `aput` and `aput_writes`."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6

TEXT: Final = (
    "The checkpoint of a turn is read before its first step and written after every one of them, so that a "
    "conversation goes on where it stopped, even in another process or on another day. "
)

Put = tuple[RunnableConfig, Checkpoint, CheckpointMetadata, ChannelVersions]
Writes = tuple[RunnableConfig, list[tuple[str, Any]], str, str]


class Conversation:
    """One thread, its state as LangGraph leaves it after a step: six channels, three without a value."""

    def __init__(
        self, saver: BaseCheckpointSaver[str], thread_id: str, messages: int, dice: random.Random
    ) -> None:
        self._saver = saver
        self._dice = dice
        self._messages = [message(i, dice) for i in range(messages)]
        self._versions: dict[str, Any] = {}
        self._step = -1
        self.config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        self.newest: RunnableConfig = self.config

    def next_put(self) -> Put:
        """What LangGraph passes to `aput` after the next step, in which the last message changed.

        Whoever calls it sets `newest` afterwards, to what `aput` returns or will return: see `after`.
        """
        self._step += 1
        self._messages = [*self._messages[:-1], message(self._step, self._dice)]
        changed = ["messages", "turns", "branch:to:agent", "branch:to:tools"]
        if not self._versions:
            changed += ["__start__", "profile"]
        new_versions: ChannelVersions = {
            c: self._saver.get_next_version(self._versions.get(c), None) for c in changed
        }
        self._versions = self._versions | new_versions
        checkpoint: Checkpoint = {
            "v": 4,
            "id": str(uuid6(clock_seq=self._step)),
            "ts": datetime.now(UTC).isoformat(),
            "channel_values": {
                "messages": self._messages,
                "turns": self._step,
                "profile": {"name": "철수", "language": "ko", "interests": ["hiking", "chess"]},
            },
            "channel_versions": dict(self._versions),
            "versions_seen": {
                "__input__": {},
                "__start__": {"__start__": self._versions["__start__"]},
                "agent": {"branch:to:agent": self._versions["branch:to:agent"]},
                "tools": {"branch:to:tools": self._versions["branch:to:tools"]},
            },
            "updated_channels": sorted(changed),
        }
        metadata: CheckpointMetadata = {"source": "loop", "step": self._step, "parents": {}}
        return self.newest, checkpoint, metadata, new_versions

    def next_writes(self) -> Writes:
        """What LangGraph passes to `aput_writes` when a node is done."""
        task_id = str(uuid4())
        writes = [("messages", [message(1, self._dice)]), ("branch:to:tools", None)]
        return self.newest, writes, task_id, "~__pregel_pull, agent"

    def after(self, put: Put) -> None:
        """Take note that a put was, or is going to be, made."""
        named = {**self.config["configurable"], "checkpoint_id": put[1]["id"]}
        self.newest = {"configurable": named}


def message(number: int, dice: random.Random) -> AnyMessage:
    """A message of 200 to 500 characters: the human's if the number is even, else the model's."""
    start = dice.randrange(len(TEXT))
    text = (TEXT * 5)[start : start + dice.randint(200, 500)]
    if number % 2 == 0:
        return HumanMessage(text, id=str(uuid4()))
    usage = {"input_tokens": 812, "output_tokens": 96, "total_tokens": 908}
    return AIMessage(text, id=str(uuid4()), usage_metadata=usage, response_metadata={"model_name": "a-model"})
