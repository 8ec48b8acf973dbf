"""The chat box of the live page: anybody with the page's token can talk to the demo's agent.

The agent knows only what the checkpointer brings back. So whoever says a name, breaks a server and asks for
the name sees what the checkpointer promises. The built-in model answers, which costs nothing.

Everything is bounded: the length of a text and of a thread's name, one turn at a time for each thread, the
turns of a thread, and the number of threads.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from opentelemetry.trace import format_trace_id

from glasspoint.demo.conversation import build_conversation, say
from glasspoint.demo.model import RecallingChatModel
from glasspoint.errors import GlasspointError
from glasspoint.telemetry.live import Reply

if TYPE_CHECKING:
    from glasspoint.demo.app import App
    from glasspoint.demo.page_calls import PageCalls
    from glasspoint.demo.telemetry import Observed

__all__ = ["Chat"]

_LONGEST_TEXT = 500
_LONGEST_NAME = 60
_MOST_THREADS = 50
_MOST_TURNS = 200
_TURN_SECONDS = 30.0

_UNTIL_THEN = (
    " What was said before is in PostgreSQL, and is here again when PostgreSQL is back. What is said"
    " meanwhile is then set aside, as a conversation of its own."
)
_BEGAN_ANEW = {
    "cached": "This conversation began anew: what it was before is not in PostgreSQL.",
    "redis": "This conversation began anew, because Redis had no cached state of it." + _UNTIL_THEN,
    "memory": "This conversation began anew, because the app has lost both servers." + _UNTIL_THEN,
}
_IS_BACK = "The conversation from before the outage is here again. What was said meanwhile was set aside."


class Chat:
    """Runs the turns of the chat box, on the application's saver."""

    def __init__(self, calls: PageCalls, observed: Observed, *, prefix: str) -> None:
        """Take what a turn needs.

        Args:
            calls: Brings a turn to the demo's loop.
            observed: The observability of the demo.
            prefix: The beginning of all thread ids, so that they meet nobody else's threads.
        """
        self._calls = calls
        self._observed = observed
        self._prefix = prefix
        self._model = RecallingChatModel()
        self._turns = Counter[str]()
        self._messages = Counter[str]()
        self._begun_anew: set[str] = set()
        self._talking: set[str] = set()
        self._app: App | None = None

    def on(self, app: App) -> None:
        """Use this application from now on."""
        self._app = app

    async def answer(self, name: str, text: str) -> Reply:
        """Run a turn, and return the agent's answer. May be called in any thread.

        Args:
            name: The thread, as the page names it; its id begins with the prefix.
            text: What the user says.

        Raises:
            GlasspointError: The text or the name is too long or empty; or too much was said; or the thread
                has a turn under way; or the turn has failed.
        """
        return await self._calls.run(lambda: self._turn(name.strip(), text.strip()))

    async def _turn(self, name: str, text: str) -> Reply:
        self._check(name, text)
        thread_id = name if name.startswith(self._prefix) else f"{self._prefix}{name}"
        if thread_id in self._talking:
            raise GlasspointError("This conversation has a turn under way: wait for its answer.")
        if thread_id not in self._turns and len(self._turns) >= _MOST_THREADS:
            raise GlasspointError(f"There are {_MOST_THREADS} conversations already: go on with one of them.")
        if self._turns[thread_id] >= _MOST_TURNS:
            raise GlasspointError(f"This conversation has had {_MOST_TURNS} turns: begin another one.")
        self._turns[thread_id] += 1
        self._talking.add(thread_id)
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                return await self._run(thread_id, text)
        except GlasspointError:
            raise
        except TimeoutError:
            raise GlasspointError(f"No answer came within {_TURN_SECONDS:.0f} s.") from None
        except Exception as error:  # a sentence instead of a trace
            raise GlasspointError(f"The turn has failed ({type(error).__name__}): say it again.") from error
        finally:
            self._talking.discard(thread_id)

    async def _run(self, thread_id: str, text: str) -> Reply:
        assert self._app is not None
        async with self._app.turn(thread_id) as saver:
            graph = build_conversation(self._model, saver)
            with self._observed.turn(thread_id) as span:
                answer = await say(graph, thread_id, text)
            tier = saver.tier
        return Reply(
            answer.text,
            format_trace_id(span.get_span_context().trace_id),
            self._note(thread_id, answer.message_count, tier),
        )

    def _note(self, thread_id: str, messages: int, tier: str) -> str:
        """Say why the conversation is not as the user has left it, if it is not: turns add two messages."""
        expected, self._messages[thread_id] = self._messages[thread_id] + 2, messages
        if tier == "cached" and thread_id in self._begun_anew:
            self._begun_anew.discard(thread_id)
            return _IS_BACK
        if messages >= expected:
            return ""
        if tier != "cached":
            self._begun_anew.add(thread_id)
        return _BEGAN_ANEW[tier]

    @staticmethod
    def _check(name: str, text: str) -> None:
        if not text:
            raise GlasspointError("Say something.")
        if len(text) > _LONGEST_TEXT:
            raise GlasspointError(f"That is too long: say it in {_LONGEST_TEXT} characters.")
        if not name or len(name) > _LONGEST_NAME or not name.isprintable():
            raise GlasspointError(f"Name the conversation with 1 to {_LONGEST_NAME} printable characters.")
