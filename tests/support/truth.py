"""An application that counts for itself what it does, to hold the metrics against: calls and how they ended,
hits, turns, questions and answers. It uses nothing of Glasspoint's telemetry to count.

As a program it is one process of several: `python truth.py POSTGRES_URL REDIS_URL [one-connection]`, with
PROMETHEUS_MULTIPROC_DIR set. It takes a command a line (`talk 42`), answers with a line, and writes down what
it has counted after each. `python truth.py --scrape` prints the metrics of all processes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, ClassVar, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from prometheus_client.core import Metric
from psycopg import AsyncCursor

from glasspoint import CachedPostgresSaver, conversation_turn
from glasspoint.l2.sql import query
from states import SettledSaver, config_of
from steps import Thread, settled, until

SELECTS = frozenset(
    query(name)
    for name in (
        "select_newest",
        "select_newest_fenced",
        "select_newest_together",
        "select_newest_together_fenced",
        "select_by_id",
    )
)

NO_CONNECTION = "came free"
"""What the error of a call says that got no connection in time."""

Truth = Counter[str]
"""What was counted: a name, and after a space the value of a label."""


class Selects:
    """The statements that read a checkpoint, as the driver sees them."""

    count: ClassVar[int] = 0

    @classmethod
    @contextmanager
    def counted(cls) -> Iterator[None]:
        """Count them, on all connections of this process."""
        execute: Any = AsyncCursor.execute

        async def counting(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            cls.count += isinstance(query, str) and query in SELECTS
            return await execute(cursor, query, *args, **options)

        driver: Any = AsyncCursor
        driver.execute = counting
        try:
            yield
        finally:
            driver.execute = execute


class CountedSaver(SettledSaver):
    """Counts the calls as their caller sees them. A read without a statement in PostgreSQL was a hit."""

    truth: Truth

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        selects = Selects.count
        with self._counted("get_tuple"):
            found = await super().aget_tuple(config)
            self.truth["hits"] += Selects.count == selects
            return found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        with self._counted("put"):
            return await super().aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        with self._counted("put_writes"):
            await super().aput_writes(config, writes, task_id, task_path)

    @contextmanager
    def _counted(self, operation: str) -> Iterator[None]:
        outcome = "ok"
        try:
            yield
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as exc:
            outcome = "error"
            self.truth["timeouts"] += NO_CONNECTION in str(exc)
            raise
        finally:
            self.truth[f"{operation} {outcome}"] += 1


class State(TypedDict, total=False):
    wants: str
    one: str
    two: str
    nested: str


class Application:
    """Conversations on a saver, turn by turn.

    Attributes:
        truth: What it has counted.
        before_asking: Awaited by each node before it asks.
    """

    def __init__(self, saver: CachedPostgresSaver, truth: Truth) -> None:
        self.truth = truth
        self.before_asking: Callable[[], Awaitable[None]] = _nothing
        self._saver = saver
        self._graph = self._build()
        self._holding: asyncio.Task[None] | None = None
        self._asked: set[str] = set()
        self._answered: set[str] = set()

    async def talk(self, thread_id: str, wants: str = "nothing", agent: str = "talker") -> str:
        """Have a turn, and return how it ended. A turn `wants` one, two or nested questions, or to fail."""
        return await self._turn(thread_id, {"wants": wants}, agent)

    async def again(self, thread_id: str, agent: str = "talker") -> str:
        """Run the last turn again, which failed."""
        return await self._turn(thread_id, None, agent)

    async def answer(self, thread_id: str, count: str = "1", agent: str = "talker") -> str:
        """Answer some of the questions that wait."""
        state = await self._graph.aget_state(config_of(thread_id), subgraphs=False)
        self._asked |= {each.id for each in state.interrupts}  # perhaps by another process, which counts them
        waiting = sorted(each.id for each in state.interrupts)[: int(count)]
        self._answered.update(waiting)
        given: Any = Command(resume=dict.fromkeys(waiting, "yes"))
        if len(state.interrupts) == 1:
            given = Command(resume="yes")
        return await self._turn(thread_id, given, agent)

    async def read(self, thread_id: str) -> str:
        """Read a thread, outside of a turn."""
        try:
            found = await self._saver.aget_tuple(config_of(thread_id))
        except Exception as exc:
            return type(exc).__name__
        return "nothing" if found is None else "something"

    async def works(self, thread_id: str) -> str:
        """Read a thread until PostgreSQL answers."""

        async def reads() -> bool:
            return await self.read(thread_id) == "something"

        await until(reads)
        return "something"

    async def hits(self, thread_id: str) -> str:
        """Read a thread until Redis answers."""

        async def reads() -> bool:
            before = self.truth["hits"]
            return await self.read(thread_id) == "something" and self.truth["hits"] > before

        await until(reads)
        return "hit"

    async def hold(self, thread_id: str) -> str:
        """Begin to write, outside of a turn. If the table is locked, that holds a connection."""
        thread = Thread(thread_id)
        self._holding = asyncio.create_task(thread.put(self._saver))
        return "holding"

    async def held(self) -> str:
        """Wait until that is written."""
        assert self._holding is not None
        await self._holding
        return "written"

    async def crowd(self, count: str) -> str:
        """Read threads that nobody knows, all at once, and return how many of the reads failed."""
        reads = (self.read(f"nobody {number}") for number in range(int(count)))
        ends = await asyncio.gather(*reads)
        return str(len(ends) - ends.count("nothing"))

    async def settle(self) -> str:
        """Let Redis follow what was written."""
        await settled(self._saver)
        return "settled"

    async def _turn(self, thread_id: str, given: Any, agent: str) -> str:
        outcome = "ok"
        try:
            async with conversation_turn(thread_id, agent_name=agent):
                result = await self._graph.ainvoke(given, config_of(thread_id), durability="sync")
                questions = {each.id for each in result.get("__interrupt__", ())}
                outcome = "interrupted" if questions else "ok"
                self.truth["raised"] += len(questions - self._asked)
                self._asked |= questions
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception:
            outcome = "error"
        finally:
            self.truth[f"{agent} {outcome}"] += 1
            self.truth["resumed"] = len(self._answered)
        return outcome

    def _build(self) -> Any:
        def asks(name: str) -> Any:
            async def ask(state: State) -> dict[str, str]:
                await self.before_asking()
                return {name: interrupt(name)}

            return ask

        def which(state: State) -> list[str]:
            return {"one": ["one"], "two": ["one", "two"], "nested": ["nested"], "fail": ["fail"]}.get(
                state["wants"], ["end"]
            )

        async def fail(state: State) -> State:
            raise LookupError("a node failed")

        inner = StateGraph(State).add_node("ask", asks("nested"))
        inner.add_edge(START, "ask").add_edge("ask", END)
        graph = StateGraph(State)
        graph.add_node("begin", lambda state: {})
        graph.add_node("one", asks("one"))
        graph.add_node("two", asks("two"))
        graph.add_node("nested", inner.compile())
        graph.add_node("fail", fail)
        graph.add_node("end", lambda state: {})
        graph.add_edge(START, "begin")
        graph.add_conditional_edges("begin", which, ["one", "two", "nested", "fail", "end"])
        for name in ("one", "two", "nested", "fail"):
            graph.add_edge(name, END)
        return graph.compile(checkpointer=self._saver)


async def _nothing() -> None:
    pass


@asynccontextmanager
async def application(postgres_url: str, redis_url: str, **options: Any) -> AsyncIterator[Application]:
    """Open a saver, and an application that counts what it does with it."""
    with Selects.counted():
        saver = await CountedSaver.create(postgres_url, redis_url, audit_ratio=0, **options)
        truth = saver.truth = Truth()
        try:
            yield Application(saver, truth)
        finally:
            await saver.close()


_CALLS = {
    (operation, outcome): f"{operation} {outcome}"
    for operation in ("get_tuple", "put", "put_writes")
    for outcome in ("ok", "error", "cancelled")
}


def scraped(families: Sequence[Metric]) -> Truth:
    """What the metrics say, under the names that the application uses. Zeros are left out."""
    said = Truth()
    for family in families:
        for sample in family.samples:
            name, labels = sample.name.removeprefix("glasspoint_"), sample.labels
            match name:
                case "operation_duration_seconds_count":
                    said[_CALLS.get((labels["operation"], labels["outcome"]), "another call")] += int(
                        sample.value
                    )
                case "l1_reads_total":
                    said["reads"] += int(sample.value)
                    said["hits"] += int(sample.value) * (labels["result"] == "hit")
                case "turns_total":
                    said[f"{labels['agent']} {labels['outcome']}"] += int(sample.value)
                case "turn_duration_seconds_count":
                    said["durations of turns"] += int(sample.value)
                case "interrupts_total":
                    said[labels["kind"]] += int(sample.value)
                case "pool_timeouts_total":
                    said["timeouts"] += int(sample.value)
    return +said


def expected(truth: Truth) -> Truth:
    """What the metrics have to say, of what an application has counted."""
    agents = {key for key in truth if key.split(" ")[0] in ("talker", "asker", "other", "unnamed")}
    reads = sum(count for key, count in truth.items() if key.startswith("get_tuple "))
    return +(truth + Truth({"durations of turns": sum(truth[key] for key in agents), "reads": reads}))


def waits_in(families: Sequence[Metric]) -> tuple[int, float]:
    """How many calls have waited for a connection, and for how many seconds, as the metrics say."""
    said = {
        sample.name.rpartition("_")[2]: sample.value
        for family in families
        for sample in family.samples
        if family.name == "glasspoint_pool_wait_seconds" and not sample.name.endswith("_bucket")
    }
    return int(said["count"]), said["sum"]


HASTY: dict[str, Any] = {
    "pool_timeout_seconds": 0.5,
    "write_deadline_seconds": 1,
    "l1_timeout_seconds": 0.25,
}
ONE_CONNECTION: dict[str, Any] = {
    "pool_max_size": 1,
    "pool_timeout_seconds": 0.5,
    "write_deadline_seconds": 60,
    "sweep_interval_seconds": 1000,
}
"""The background waits for no connection then, so that all waits are those of calls."""


async def _serve(postgres_url: str, redis_url: str, *pool: str) -> None:
    loop = asyncio.get_running_loop()
    async with application(postgres_url, redis_url, **(ONE_CONNECTION if pool else HASTY)) as app:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command, *args = line.split()
            answer = await getattr(app, command)(*args)
            sys.stdout.write(json.dumps({"answer": answer, "truth": app.truth}) + "\n")
            sys.stdout.flush()


def _scrape() -> None:
    from prometheus_client import generate_latest

    from glasspoint.telemetry.multiprocess import AllProcesses

    everything: Any = AllProcesses()
    sys.stdout.write(generate_latest(everything).decode())


if __name__ == "__main__":
    if sys.argv[1] == "--scrape":
        _scrape()
    else:
        with suppress(KeyboardInterrupt):
            asyncio.run(_serve(*sys.argv[1:]))
