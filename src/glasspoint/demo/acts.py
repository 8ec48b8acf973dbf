"""The six acts of the demo's story, and what is seen when one is played."""

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
    """One turn of the story, and what is to happen.

    Attributes:
        title, explanation: What the audience is told.
        says: What the user says.
        expects: What L1 must answer to the turn's first read, or the lower tier that it must be read in.
        before: What happens to the servers before the turn.
        snapshot_after: Save Redis's snapshot after the turn, for a later act to come back from.
        goes_on: It is the second turn of the act before.
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
        """Which servers must be the demo's own for this act to be played."""
        if self.before in {"kill", "restart"}:
            return {"Redis"}
        # In an outage of PostgreSQL the conversation is kept in Redis, which must be left as it was.
        return {"PostgreSQL", "Redis"} if self.before in {"kill_postgres", "start_postgres"} else set()


ACTS = (
    Act(
        title="a new conversation",
        explanation="Nobody knows this thread: L1 misses, L2 has nothing, both get written.",
        says=f"내 이름은 {_NAME}야",
        expects="miss",
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
    """What was done to the servers before a turn.

    Attributes:
        remark: What the audience should know about it.
        problem: Why the turn will prove nothing.
    """

    remark: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Turn:
    """What was seen of one turn that was played.

    Attributes:
        number, act, prepared: What was played, after what.
        answer: What the agent said.
        messages_expected: How many messages the conversation must hold now.
        spans, moved, warnings: The turn's trace, the counters that moved, and what was logged.
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
        """The span of the first read, which is that of the conversation itself; the subgraph reads later."""
        return next((span for span in self.spans if span.name == "checkpoint.get_tuple"), None)

    @property
    def result(self) -> str:
        """What L1 answered to it; the tier, if that is a lower one."""
        if self.first_read is None:
            return "no read"
        attributes = self.first_read.attributes or {}
        tier = str(attributes.get("glasspoint.tier", "cached"))
        return str(attributes.get("glasspoint.l1.result", "unknown")) if tier == "cached" else tier

    @property
    def read_nanoseconds(self) -> int:
        """How long it took."""
        read = self.first_read
        return (read.end_time or 0) - (read.start_time or 0) if read else 0

    @cached_property
    def problems(self) -> list[str]:
        """What did not go as it should."""
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
