"""Defines the six acts of the demo's story, and the results of playing them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from glasspoint.demo.conversation import Answer
    from glasspoint.demo.telemetry import Moved

__all__ = ["ACTS", "Act", "Prepared", "Turn"]

_NAME = "철수"
_QUESTION = "내 이름이 뭐라고 했지?"


@dataclass(frozen=True)
class Act:
    """One turn of the story, and what must happen in it.

    Attributes:
        title, explanation: The texts for the audience.
        says: The user's message.
        expects: The expected result of L1 for the turn's first read, or the lower tier that must serve it.
        before: What happens to the servers before the turn.
        snapshot_after: Whether to save Redis's snapshot after the turn, which a later act restores.
        goes_on: Whether it is the second turn of the previous act.
    """

    title: str
    explanation: str
    says: str
    expects: str
    before: Literal["nothing", "flush", "kill", "restart", "kill_postgres", "start_postgres"] = "nothing"
    snapshot_after: bool = False
    goes_on: bool = False

    @property
    def breaks(self) -> set[str]:
        """The servers that must be the demo's own, because this act breaks them."""
        if self.before in {"kill", "restart"}:
            return {"Redis"}
        # During PostgreSQL's outage the conversation is kept in Redis, and a user's Redis must not change.
        return {"PostgreSQL", "Redis"} if self.before in {"kill_postgres", "start_postgres"} else set()


ACTS = (
    Act(
        title="a new conversation",
        explanation="Nobody knows this thread: neither L1 nor L2 has anything, and both get written.",
        says=f"내 이름은 {_NAME}야",
        expects="absent",
    ),
    Act(
        title="the next turn",
        explanation="Fresh saver, pool and Redis client: what is remembered comes from L1.",
        says=_QUESTION,
        expects="hit",
        snapshot_after=True,
    ),
    Act(
        title="the cache is gone",
        explanation="Redis was flushed. PostgreSQL answers, and the read warms Redis up again.",
        says=_QUESTION,
        expects="miss",
        before="flush",
    ),
    Act(
        title="Redis was killed",
        explanation="SIGKILL. PostgreSQL answers alone: nothing is lost, telemetry says so.",
        says=_QUESTION,
        expects="unavailable",
        before="kill",
    ),
    Act(
        title="Redis is back, from an old snapshot",
        explanation="It holds the state of turn 2. But it is another server process, another epoch:"
        " what stands in it from before is not believed.",
        says=_QUESTION,
        expects="miss",
        before="restart",
    ),
    Act(
        title="PostgreSQL killed, pod restarted",
        explanation="The pod starts in the tier redis, and the conversation goes on from its cached state.",
        says=_QUESTION,
        expects="redis",
        before="kill_postgres",
    ),
    Act(
        title="PostgreSQL is back",
        explanation="What was said meanwhile is drained into it before the first call: one history again.",
        says=_QUESTION,
        expects="miss",
        before="start_postgres",
        goes_on=True,
    ),
)


@dataclass(frozen=True)
class Prepared:
    """The result of preparing the servers for a turn.

    Attributes:
        remark: A note about it for the audience.
        problem: Why the turn will prove nothing; empty if all is well.
    """

    remark: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Turn:
    """The record of one turn that was played.

    Attributes:
        number, act, prepared: The act, its number, and the result of the preparation.
        answer: The agent's answer.
        messages_expected: The number of messages that the conversation must hold now.
        spans, moved, warnings: The turn's trace, the counters that have grown, and the log lines.
    """

    number: int
    act: Act
    prepared: Prepared
    answer: Answer
    messages_expected: int
    spans: Sequence[ReadableSpan]
    moved: Sequence[Moved]
    warnings: Sequence[str]

    @cached_property
    def first_read(self) -> ReadableSpan | None:
        """The span of the first read, which reads the conversation itself; the subgraph reads later."""
        return next((span for span in self.spans if span.name == "checkpoint.get_tuple"), None)

    @property
    def result(self) -> str:
        """The result of L1 for the first read; or the tier that served it, if that is a lower one."""
        if self.first_read is None:
            return "no read"
        attributes = self.first_read.attributes or {}
        tier = str(attributes.get("glasspoint.tier", "cached"))
        return str(attributes.get("glasspoint.l1.result", "unknown")) if tier == "cached" else tier

    @property
    def read_nanoseconds(self) -> int:
        """The duration of the first read, in nanoseconds."""
        read = self.first_read
        return (read.end_time or 0) - (read.start_time or 0) if read else 0

    @cached_property
    def problems(self) -> list[str]:
        """The differences from what was expected, as sentences."""
        found = [self.prepared.problem] if self.prepared.problem else []
        if _NAME not in self.answer.text:
            found.append(f"the answer does not say {_NAME}: something was forgotten")
        if self.result != self.act.expects:
            found.append(f"the read was answered by {self.result}, expected {self.act.expects}")
        if self.answer.message_count != self.messages_expected:
            found.append(
                f"the conversation holds {self.answer.message_count} messages, expected"
                f" {self.messages_expected}: an old state was believed"
            )
        return found
