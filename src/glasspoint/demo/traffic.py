"""Runs a light traffic of conversations, to be watched in the terminal, at `/metrics`, or in a back end.

A few people talk to the agent at a human pace. They give their name, ask for it, pause, return to an earlier
conversation, or start a new one. Now and then one of them reads the history and an older state. Every answer
is checked for the name.

A conversation that was ever led in a lower tier may begin anew: see docs/fallback.md. Its person says the
name again, and the tally counts it apart from names that were forgotten, which must never happen.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from glasspoint.demo.conversation import build_conversation, say
from glasspoint.demo.model import RecallingChatModel
from glasspoint.errors import ThreadDamagedError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from glasspoint import FallbackSaver
    from glasspoint.demo.telemetry import Observed

__all__ = ["PEOPLE", "Tally", "Traffic"]

PEOPLE = 6
_MEAN_PAUSE_SECONDS = 0.7
_LONGEST_PAUSE_SECONDS = 4.0
_AFTER_FAILURE_SECONDS = 1.0
_TURNS_IN_A_ROW = (2, 6)
_TURNS_OF_A_CONVERSATION = 18
_RESTING_CONVERSATIONS = 20
_RETURNS = 0.6
_LOOKS_BACK = 0.2
_CHECKPOINTS_SHOWN = 10
_REMOVAL_SECONDS = 10

_NAMES = ("철수", "영희", "민수", "지우", "수지", "현우")  # end in a vowel: `야` may follow
_TALK = ("내 이름이 뭐라고 했지?", "오늘 날씨가 참 좋네", "내 이름 기억해?", "주말에 뭐 하면 좋을까?")


@dataclass
class Tally:
    """The counts of the traffic so far.

    Attributes:
        turns: The number of answered turns.
        failed: The number of turns, looks back and removals that ended in an error.
        begun_anew: The number of answers without the name in a conversation that was led in a lower tier.
        forgotten: The number of all other answers without the name.
        last_error: The class of the last error; empty if there was none.
    """

    turns: int = 0
    failed: int = 0
    begun_anew: int = 0
    forgotten: int = 0
    last_error: str = ""


@dataclass
class _Talk:
    """One conversation of the traffic."""

    name: str
    thread_id: str = field(default_factory=lambda: f"demo-{uuid4()}")
    turns: int = 0
    knows_name: bool = False
    was_below: bool = False
    """Whether a turn of it ran in a lower tier."""
    is_broken: bool = False
    """Whether a lower tier has lost a part of it."""


class Traffic:
    """Keeps conversations going until it is cancelled. Their number is bounded, here and in L2."""

    def __init__(self, observed: Observed, *, people: int = PEOPLE) -> None:
        """Prepare the traffic. Call `move_to` before it runs.

        Args:
            observed: The observability of the demo.
            people: How many people talk at the same time.
        """
        self.tally = Tally()
        self._people = people
        self._observed = observed
        self._resting: deque[_Talk] = deque()
        self._known: set[str] = set()
        self._pausing = asyncio.Event()

    def move_to(self, saver: FallbackSaver) -> None:
        """Let all further turns run on this saver. Call this while nobody talks."""
        self._saver = saver
        # Never GLASSPOINT_DEMO_MODEL: several calls of a paid model each second would be expensive.
        self._graph = build_conversation(RecallingChatModel(), saver)

    async def run(self) -> None:
        """Let all people talk, until `pause` is called. May be called again then."""
        self._pausing.clear()
        async with asyncio.TaskGroup() as people:
            for number in range(self._people):
                people.create_task(self._person(), name=f"demo person {number}")

    def pause(self) -> None:
        """Let everybody end after the turn that is under way. Their conversations go on in the next `run`."""
        self._pausing.set()

    def adopt(self, thread_id: str) -> None:
        """Let a conversation that somebody else leads be removed with the others."""
        self._known.add(thread_id)

    async def remove_conversations(self) -> None:
        """Delete the remaining conversations from L1 and L2.

        It deletes each twice: a late statement of an interrupted turn may take effect after the first time.
        """
        left = tuple(self._known)
        async with asyncio.timeout(_REMOVAL_SECONDS):
            for thread_id in (*left, *left):
                await self._remove(thread_id)

    async def _person(self) -> None:
        while not self._pausing.is_set():
            talk = self._next_talk()
            try:
                await self._lead(talk)
            except asyncio.CancelledError:
                self._resting.append(talk)
                raise
            await self._rest(talk)

    async def _lead(self, talk: _Talk) -> None:
        """Lead a conversation for a few turns."""
        for _ in range(random.randint(*_TURNS_IN_A_ROW)):
            if await self._is_pausing_within(
                min(random.expovariate(1 / _MEAN_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
            ):
                return
            await self._turn(talk)
            if talk.is_broken:
                return
        if talk.turns and random.random() < _LOOKS_BACK:
            await self._look_back(talk)

    async def _is_pausing_within(self, seconds: float) -> bool:
        """Wait, and return early with `True` if everybody is to pause."""
        try:
            async with asyncio.timeout(seconds):
                return await self._pausing.wait()
        except TimeoutError:
            return False

    def _next_talk(self) -> _Talk:
        if self._resting and random.random() < _RETURNS:
            return self._resting.popleft()
        talk = _Talk(random.choice(_NAMES))
        self._known.add(talk.thread_id)
        return talk

    async def _rest(self, talk: _Talk) -> None:
        """Keep a conversation for later; delete it if it is long, or if enough conversations are kept."""
        is_kept = talk.turns < _TURNS_OF_A_CONVERSATION and not talk.is_broken
        if self._pausing.is_set() or (is_kept and len(self._resting) < _RESTING_CONVERSATIONS):
            self._resting.append(talk)
            return
        try:
            await self._remove(talk.thread_id)
        except Exception as error:
            self._failed(error)

    async def _turn(self, talk: _Talk) -> None:
        text = random.choice(_TALK) if talk.knows_name else f"내 이름은 {talk.name}야"
        talk.was_below |= self._saver.tier != "cached"
        try:
            with (turn := self._observed.turn(talk.thread_id)):
                turn.record_input(text)
                answer = await say(self._graph, talk.thread_id, text)
                turn.record_output(answer.text)
        except Exception as error:  # the traffic goes on, whatever happens to the servers
            talk.is_broken = isinstance(error, ThreadDamagedError)
            self._failed(error)
            await self._is_pausing_within(_AFTER_FAILURE_SECONDS)
            return
        talk.was_below |= self._saver.tier != "cached"
        talk.turns += 1
        talk.knows_name = talk.name in answer.text
        self.tally.turns += 1
        if not talk.knows_name and talk.was_below:
            self.tally.begun_anew += 1
        elif not talk.knows_name:
            self.tally.forgotten += 1
        # The terminal does not show these spans, and an OTLP back end gets them from the SDK.
        self._observed.spans.clear()

    async def _look_back(self, talk: _Talk) -> None:
        """Read the newest states, and then an older one alone."""
        config: RunnableConfig = {"configurable": {"thread_id": talk.thread_id}}
        try:
            states = [
                state async for state in self._graph.aget_state_history(config, limit=_CHECKPOINTS_SHOWN)
            ]
            if states:
                await self._graph.aget_state(states[-1].config)
        except Exception as error:
            self._failed(error)

    async def _remove(self, thread_id: str) -> None:
        await self._saver.adelete_thread(thread_id)
        self._known.discard(thread_id)

    def _failed(self, error: Exception) -> None:
        self.tally.failed += 1
        self.tally.last_error = type(error).__name__
