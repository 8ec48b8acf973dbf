"""Auto-pipelining: the steps that concurrent callers send in one tick of the event loop go out together.

What a step costs this process is mostly the way there and back, not the step: sixteen of them in one pipeline
cost as much as three by themselves. Few steps go out one by one, as they come; those of a crowd with the next
tick, together. (ioredis does it so, and calls it so.)

A pipeline is a way of sending, not a transaction: each step is atomic by itself, in no order that anybody may
rely on, and is answered, or fails, by itself. Only a connection that breaks fails all that were sent on it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis

from glasspoint.model.load_detector import Crowd
from glasspoint.redis.limiter import Turns, connections_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AutoPipeline"]

# So many steps at once go one by one; beyond that it is a crowd.
_ALONE = 4

# So many pipelines of a crowd are under way at once, of so many steps: while one is answered, Redis works on
# the next, and what the one before has brought is decoded.
_PIPELINES = 2
_STEPS_AT_ONCE = 32

# What is larger goes alone: nobody is to wait behind a state of megabytes.
_LARGE_BYTES = 256 * 1024

# So many connections are used at once, and so much of them by what is large: more states of megabytes at once
# would only make each other late.
_CONNECTIONS = 48
_LARGE_SHARE = 1 / 3


class _Step(NamedTuple):
    args: tuple[Any, ...]
    answer: asyncio.Future[Any]


class AutoPipeline:
    """Sends scripts to one Redis, together where that is cheaper."""

    def __init__(self, redis: Redis, *, timeout_seconds: float) -> None:
        """Take the Redis that scripts are sent to.

        Args:
            redis: The client. One of a class that has an `evalsha` of its own is asked for each step by
                itself: whoever wrote that wants to see them.
            timeout_seconds: How long a step, or a pipeline of them, may take from its turn on, see `Turns`.
        """
        self._redis = redis
        connections = connections_of(redis, most=_CONNECTIONS)
        large = max(1, int(connections * _LARGE_SHARE))
        self._large = Turns(large, timeout_seconds=timeout_seconds)
        self._turns = Turns(max(1, connections - large), timeout_seconds=timeout_seconds)
        self._pipelines = min(_PIPELINES, self._turns.at_once)
        self._can_pipeline = type(redis).evalsha is Redis.evalsha
        self._crowd = Crowd(beyond=min(_ALONE, self._turns.at_once))
        self._under_way = 0
        self._waiting: list[_Step] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def evalsha(self, sha: str, key: str | bytes, *args: Any) -> Any:
        """Run a loaded script on one key.

        Args:
            sha: Its SHA-1.
            key: The key.
            args: Its arguments.

        Raises:
            Exception: Whatever the client raises.
            TimeoutError: There was no answer in time, see `Turns`.
        """
        # Texts as UTF-8, whatever encoding the client was made with.
        script, *rest = (arg.encode() if isinstance(arg, str) else arg for arg in (sha, key, *args))
        command = (script, 1, *rest)
        if not (self._can_pipeline and self._crowd.is_there(self._under_way)):
            return await self._go_alone(self._turns, *command)
        if _size(command) > _LARGE_BYTES:
            return await self._go_alone(self._large, *command)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        step = _Step(command, loop.create_future())
        self._waiting.append(step)
        return await step.answer

    async def _go_alone(self, turns: Turns, *args: Any) -> Any:
        self._under_way += 1
        try:
            return await turns.run(self._redis.evalsha, *args)
        finally:
            self._under_way -= 1

    def _send(self) -> None:
        """Send what waits, as far as the pipelines go."""
        while self._waiting and len(self._sending) < self._pipelines:
            steps, self._waiting = self._waiting[:_STEPS_AT_ONCE], self._waiting[_STEPS_AT_ONCE:]
            task = asyncio.create_task(self._run(steps))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send()

    async def _run(self, steps: Sequence[_Step]) -> None:
        """Send some steps, and hand out their answers. Whoever has left meanwhile gets none."""
        answers: Sequence[Any]
        self._under_way += 1
        try:
            answers = await self._turns.run(self._ask, steps)
        except TimeoutError as exc:
            # Who waits behind them would only wait as long again.
            steps, self._waiting = [*steps, *self._waiting], []
            answers = [exc] * len(steps)
        except Exception as exc:
            answers = [exc] * len(steps)
        except asyncio.CancelledError:
            for step in steps:
                step.answer.cancel()
            raise
        finally:
            self._under_way -= 1
        for step, answer in zip(steps, answers, strict=True):
            if step.answer.done():
                continue
            if isinstance(answer, Exception):
                step.answer.set_exception(answer)
            else:
                step.answer.set_result(answer)

    async def _ask(self, steps: Sequence[_Step]) -> Sequence[Any]:
        if len(steps) == 1:
            return [await self._redis.evalsha(*steps[0].args)]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for step in steps:
                pipeline.evalsha(*step.args)
            answers: Sequence[Any] = await pipeline.execute(raise_on_error=False)
        if len(answers) != len(steps):
            raise RuntimeError(f"The Redis client has {len(answers)} answers to {len(steps)} steps.")
        return answers


def _size(args: tuple[Any, ...]) -> int:
    return sum(len(arg) for arg in args if isinstance(arg, bytes))
