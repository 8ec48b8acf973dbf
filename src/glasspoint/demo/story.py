"""Tells the story of `glasspoint demo`: six acts of one conversation, while servers fail and come back.

Each turn runs in a saver of its own, with a new pool and a new Redis client, so nothing can come from this
process's memory. The story checks itself: a forgotten name, or an unexpected result of L1, is shown in red
and makes the demo fail.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from glasspoint import FallbackSaver, get_checkpointer
from glasspoint.demo import view
from glasspoint.demo.acts import ACTS, Prepared, Turn
from glasspoint.demo.conversation import NAMESPACES, build_conversation, say
from glasspoint.demo.telemetry import CounterWatch
from glasspoint.logs import kept_warnings
from glasspoint.model.scope import Scope
from glasspoint.telemetry.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from langchain_core.language_models.chat_models import BaseChatModel
    from rich.console import Console

    from glasspoint.demo.acts import Act
    from glasspoint.demo.servers import Servers
    from glasspoint.demo.telemetry import Observed
    from glasspoint.telemetry.live.timeline import Level

__all__ = ["tell_story"]


async def tell_story(
    console: Console,
    servers: Servers,
    observed: Observed,
    model: BaseChatModel,
    *,
    thread_id: str,
    mark: Callable[[str, Level], None] = lambda text, level: None,
) -> bool:
    """Play the six acts of one conversation and show each turn.

    Args:
        console: Receives the output.
        servers: The servers, of which the demo's own are broken.
        observed: The observability of the demo.
        model: Answers.
        thread_id: The conversation.
        mark: Called with a line for the live page, and its level: each act, and how it went.

    Returns:
        Whether every answer had the name, and every result of L1 was the expected one.
    """
    stage = _Stage(servers, observed, model, thread_id)
    turns: list[Turn] = []
    try:
        acts = sum(not act.goes_on for act in ACTS)
        number = 0
        for act in ACTS:
            number += not act.goes_on
            title = f"{number} of {acts} · {act.title}"
            if yours := sorted(act.breaks - servers.own):
                if not act.goes_on:
                    why = f"This {' and this '.join(yours)} is yours: nothing of it is broken."
                    console.print(view.heading(f"{title} · skipped", why))
                    mark(f"{title} · skipped. {why}", "info")
                continue
            console.print(view.heading(title, act.explanation))
            mark(f"{title}. {act.explanation}", "info")
            turns.append(turn := await stage.play(number, act))
            console.print(view.show_turn(turn))
            mark(*_outcome_of(number, turn))
    finally:
        await stage.clean_up()
    console.print(view.summary(turns))
    mark(*view.verdict(turns))
    return not any(turn.problems for turn in turns)


def _outcome_of(number: int, turn: Turn) -> tuple[str, Level]:
    """Return how a turn went, for the live page: what the terminal says, without what was said."""
    if turn.problems:
        return f"Act {number}: WRONG. {'; '.join(turn.problems)}.", "error"
    note = f" {turn.prepared.remark}" if turn.prepared.remark else ""
    return f"Act {number}: as expected, {view.source_of(turn)}.{note}", "good"


class _Stage:
    """One conversation, and the servers that it runs on."""

    def __init__(self, servers: Servers, observed: Observed, model: BaseChatModel, thread_id: str) -> None:
        self._servers = servers
        self._observed = observed
        self._model = model
        self._thread_id = thread_id
        self._turns = 0
        self._run_id_of_snapshot = ""

    async def play(self, number: int, act: Act) -> Turn:
        """Prepare the servers for the act, run the turn, and return the record of it."""
        self._turns += 1
        with kept_warnings(capacity=5) as warnings:
            with quiet():  # what the demo itself does to Redis is not the conversation's
                prepared = await self._prepare(act)
            async with self._fresh_saver() as saver:
                graph = build_conversation(self._model, saver)
                watch = CounterWatch(self._observed.registry)
                turn = self._observed.turn(self._thread_id)
                with turn as span:
                    turn.record_input(act.says)
                    answer = await say(graph, self._thread_id, act.says)
                    turn.record_output(answer.text)
        if act.snapshot_after and self._servers.own_redis is not None:
            with quiet():
                self._servers.own_redis.save_snapshot()
                self._run_id_of_snapshot, _ = await self._servers.redis_state()
        return Turn(
            number,
            act,
            prepared,
            answer,
            messages_expected=2 * self._turns,
            spans=self._observed.spans.take(span.get_span_context().trace_id),
            moved=watch.moved(),
            warnings=tuple(warnings),
        )

    async def clean_up(self) -> None:
        """Remove the conversation from servers that do not vanish with the demo.

        Raises:
            GlasspointError: The conversation could not be removed.
        """
        if self._servers.all_own or not self._turns:
            return
        async with self._fresh_saver() as saver:
            await saver.adelete_thread(self._thread_id)

    async def _prepare(self, act: Act) -> Prepared:
        redis = self._servers.own_redis
        if act.before == "flush":
            if redis is None:
                await self._servers.forget_cached(Scope(self._thread_id, each) for each in NAMESPACES)
                return Prepared("This Redis is yours, so only this conversation's own entries were removed.")
            redis.flush()
        elif act.before == "kill" and redis is not None:
            redis.kill()
        elif act.before == "restart" and redis is not None:
            redis.start()
            run_id, keys = await self._servers.redis_state()
            if not keys or run_id == self._run_id_of_snapshot:
                return Prepared(problem="Redis did not come back from its snapshot as another process")
            old, new = self._run_id_of_snapshot[:8], run_id[:8]
            return Prepared(f"Back came {keys} entries of process {old}…; this is {new}…, a new epoch.")
        elif act.before == "kill_postgres" and self._servers.own_postgres is not None:
            self._servers.own_postgres.crash()
        elif act.before == "start_postgres" and self._servers.own_postgres is not None:
            self._servers.own_postgres.start()
        return Prepared()

    @asynccontextmanager
    async def _fresh_saver(self) -> AsyncIterator[FallbackSaver]:
        """Open a saver as a new pod does."""
        # Not on a user's Redis: threads of an outage, and the record of cached states, would stay there.
        settings = self._servers.settings(fallbacks=("redis",) if self._servers.all_own else ())
        async with get_checkpointer(
            settings, telemetry=self._observed.telemetry, postgres_password=self._servers.password
        ) as saver:
            yield saver
