"""A worker process of a chain run: opens `get_checkpointer()`, and takes turns in conversations.

What it is told, and what it says: lines of JSON on its standard input and output. Settings come from the
environment. It ends with its standard input, or when it is told to close.
"""

from __future__ import annotations

import asyncio
import json
import logging
import operator
import os
import random
import sys
from argparse import ArgumentParser
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from chaos.chain_history import Attempt, ChainHistory
from chaos.chain_sabotage import VARIABLE, sabotage
from glasspoint import FallbackSaver, get_checkpointer
from glasspoint.errors import GlasspointError, ThreadUnknownError

__all__ = ["ASKS", "NothingSaidError", "is_promised", "word_of"]

_TURN_SECONDS = 15.0
_LOOK_SECONDS = 0.005
_BLIND = 0.4

ASKS = "?"
"""What a word ends with whose turn asks before it ends."""


class State(TypedDict, total=False):
    words: Annotated[list[str], operator.add]


class Question(TypedDict, total=False):
    word: str
    answer: str


class NothingSaidError(Exception):
    """A node was called with an empty state: the turn was to be resumed, and the thread is not known.

    In `cached`, it stands in a lower tier yet. There, LangGraph begins an empty thread. In a lower tier that
    is refused when its first write is stored; with `durability="async"`, the first node is called meanwhile.
    """


def word_of(words: list[str]) -> str:
    """Return what was said last."""
    for word in reversed(words):
        if word.startswith("said "):
            return word.removeprefix("said ")
    raise NothingSaidError


def is_promised(exc: Exception, tiers: set[str]) -> bool:
    """Tell whether this is what a call may raise while a server is away."""
    if isinstance(exc, NothingSaidError):
        return True
    if isinstance(exc, ThreadUnknownError):
        return tiers != {"cached"}
    return isinstance(exc, GlasspointError) and isinstance(exc, ConnectionError | TimeoutError)


class Talking:
    """The conversation: START -> charge -> tool -> confirm -> END, with two subgraphs.

    `tool` calls a subgraph with a memory of its own, `compile(checkpointer=True)`: all that it has done in
    the thread. `confirm` calls one that lives for its run: prepare -> ask, which asks the user in some turns.
    """

    def __init__(self, saver: FallbackSaver, history: ChainHistory) -> None:
        self._saver = saver
        self._history = history
        self._numbers = count(1)
        self._under_way: dict[str, Attempt] = {}
        memory = StateGraph(State).add_node("remember", lambda state: {})
        self._memory = memory.add_edge(START, "remember").add_edge("remember", END).compile(checkpointer=True)
        asking = StateGraph(Question).add_node("prepare", self._prepare).add_node("ask", self._ask)
        asking.add_edge(START, "prepare").add_edge("prepare", "ask").add_edge("ask", END)
        self._asking = asking.compile()
        builder = StateGraph(State)
        builder.add_node("charge", self._charge)
        builder.add_node("tool", self._tool)
        builder.add_node("confirm", self._confirm)
        builder.add_edge(START, "charge").add_edge("charge", "tool")
        builder.add_edge("tool", "confirm").add_edge("confirm", END)
        self._graph = builder.compile(checkpointer=saver)

    async def attempt(self, wanted: dict[str, Any]) -> Attempt:
        """Say something in a thread, or go on with what was begun there."""
        thread, word = wanted["thread"], wanted["word"]
        with self._history.attempt(thread, word) as attempt:
            attempt.tier_before = self._saver.tier
            attempt.durability = random.choice(["sync", "async", "async", "exit"])
            self._under_way[thread] = attempt
            try:
                async with asyncio.timeout(_TURN_SECONDS):
                    await self._talk(attempt, resumes=wanted["resumes"])
            except Exception as exc:
                attempt.is_promised = is_promised(exc, {attempt.tier_before, self._saver.tier})
                raise
            finally:
                attempt.tier_after = self._saver.tier if self._saver._chain.is_open else ""
        return attempt

    async def _talk(self, attempt: Attempt, *, resumes: bool) -> None:
        config: RunnableConfig = {"configurable": {"thread_id": attempt.thread}}
        given: Any
        if resumes and random.random() < _BLIND:
            attempt.did, given = "resumed", Command(resume=attempt.word)
        else:
            attempt.did, given = await self._choose(attempt, config)
        result = await self._graph.ainvoke(given, config, durability=attempt.durability)  # type: ignore[call-overload]
        attempt.words = list((result or {}).get("words", ()))
        attempt.asked = bool((result or {}).get("__interrupt__"))

    async def _choose(self, attempt: Attempt, config: RunnableConfig) -> tuple[str, Any]:
        """As an application does that does not know how far the last turn has come."""
        attempt.found_at, tier = monotonic(), self._saver.tier
        state = await self._graph.aget_state(config)
        attempt.found_in = tier if self._saver.tier == tier else ""
        attempt.found = list(state.values.get("words", ()))
        if state.interrupts:
            return "resumed", Command(resume=attempt.word)
        # A resume of a thread that is not here yet has begun it with nothing: there is nothing to go on with.
        if state.next and attempt.found and random.random() < 0.7:
            return "went on", None
        return "said", {"words": [f"said {attempt.word}"]}

    async def _charge(self, state: State, config: RunnableConfig) -> State:
        return {"words": [await self._work("charge", state, config)]}

    async def _tool(self, state: State, config: RunnableConfig) -> State:
        done = await self._work("tool", state, config)
        # A run that went on after it was cut off goes on in the subgraph, too, with what it was given then.
        remembered = {_key(word) for word in (await self._memory.ainvoke({"words": [done]}, config))["words"]}
        tools = [word for word in state.get("words", []) if word.startswith("tool ")]
        self._attempt_of(config).lacks += [word for word in tools if _key(word) not in remembered]
        return {"words": [done]}

    async def _work(self, node: str, state: State, config: RunnableConfig) -> str:
        word = word_of(state.get("words", []))
        self._ran(node, word, config)
        await asyncio.sleep(random.choice([0, 0, 0.01, 0.05]))
        return self._made(f"{node} {word}", config)

    async def _confirm(self, state: State, config: RunnableConfig) -> State:
        word = word_of(state.get("words", []))
        answer = (await self._asking.ainvoke({"word": word}, config))["answer"]
        return {"words": [self._made(f"confirm {word} {answer}", config)]}

    async def _prepare(self, state: Question, config: RunnableConfig) -> Question:
        self._ran("prepare", state["word"], config)
        return {}

    async def _ask(self, state: Question) -> Question:
        return {"answer": interrupt("Shall I?") if state["word"].endswith(ASKS) else "done"}

    def _attempt_of(self, config: RunnableConfig) -> Attempt:
        return self._under_way[config["configurable"]["thread_id"]]

    def _ran(self, node: str, word: str, config: RunnableConfig) -> None:
        self._history.ran(config["configurable"]["thread_id"], word, node, self._saver.tier)

    def _made(self, what: str, config: RunnableConfig) -> str:
        """Return a word, another one each time: so no two checkpoints have the same words."""
        made = f"{what} #{self._history.worker}.{next(self._numbers)}"
        self._attempt_of(config).made.append(made)
        return made


def _key(word: str) -> str:
    return word.partition(" #")[0]


class Worker:
    """What one process does, from its start to its end."""

    def __init__(self, history: ChainHistory, parent: int) -> None:
        self._history = history
        self._parent = parent
        self._under_way = set[asyncio.Task[None]]()
        self._said: tuple[str, bool] | None = None

    async def run(self) -> None:
        """Open the saver, do what is asked for, close it."""
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        while True:
            opening = get_checkpointer()
            try:
                saver = await opening.__aenter__()
                break
            except GlasspointError as exc:
                if not is_promised(exc, set()) or os.getppid() != self._parent:
                    raise
                await asyncio.sleep(0.05)
        try:
            watching = asyncio.create_task(self._watch(saver))
            await self._listen(lines, saver)
        finally:
            watching.cancel()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            await opening.__aexit__(None, None, None)

    async def _listen(self, lines: asyncio.StreamReader, saver: FallbackSaver) -> None:
        talking = Talking(saver, self._history)
        _say(ready=True)
        async for line in lines:
            wanted = json.loads(line)
            if wanted["what"] == "close":
                if self._under_way and random.random() < 0.7:
                    await asyncio.wait(self._under_way, timeout=3.0)
                # What the tier memory holds would be lost; one of those may have fallen to it.
                if saver.tier == "memory" or "memory" in saver._chain._undrained:
                    _say(key=wanted["key"], ok=False, tier=saver.tier)
                    self._said = None  # say the tier again
                    continue
                _say(key=wanted["key"], ok=True)
                return
            task = asyncio.create_task(self._do(talking, wanted))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _do(self, talking: Talking, wanted: dict[str, Any]) -> None:
        try:
            attempt = await talking.attempt(wanted)
        except Exception:
            _say(key=wanted["key"], ok=False)
        else:
            _say(key=wanted["key"], ok=True, asked=attempt.asked)

    async def _watch(self, saver: FallbackSaver) -> None:
        """Say it whenever the tier changes."""
        while True:
            with suppress(GlasspointError):
                now = saver.tier, saver._chain.whole
                if now != self._said:
                    _say(tier=now[0], whole=now[1], at=monotonic())
                    self._said = now
            await asyncio.sleep(_LOOK_SECONDS)


def _say(**message: Any) -> None:
    os.write(sys.stdout.fileno(), f"{json.dumps(message)}\n".encode())


async def main() -> None:
    """Parse the command line, and work."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    random.seed(f"{given.seed} {given.history.stem}")
    sabotage(os.environ.get(VARIABLE, ""))
    await Worker(ChainHistory(given.history, given.history.stem), given.parent).run()


if __name__ == "__main__":
    asyncio.run(main())
