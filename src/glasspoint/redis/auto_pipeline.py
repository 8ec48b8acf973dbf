"""Auto-pipelining: under load, the steps that begin in one tick of the event loop are sent together.

Most of a step's cost for this process is the round trip: sixteen steps in one pipeline cost as much as three
single ones. If few steps are under way, each is sent at once. If many are (see `load_detector`), they are
sent together at the next tick. (ioredis does the same, under the same name.)

A pipeline is only a way of sending, not a transaction. Each step is atomic, and succeeds or fails by itself.
The order of the steps is not guaranteed. A broken connection fails all steps that were sent on it. A timeout
does the same, and also fails the steps that wait behind them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis

from glasspoint.model.load_detector import LoadDetector
from glasspoint.redis.limiter import Limiter, connections_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AutoPipeline"]

# Up to this number, concurrent steps are sent one by one; more steps are batched.
_ALONE = 4

# The maximum number of pipelines under way, and of steps in one. With two pipelines, Redis works on one while
# this process receives and decodes the results of the other.
_PIPELINES = 2
_STEPS_AT_ONCE = 32

# Larger steps are sent alone, so that no other step waits behind megabytes.
_LARGE_BYTES = 256 * 1024

# The maximum number of connections in use, and the share of them for large steps. More large steps at once
# would only delay one another.
_CONNECTIONS = 48
_LARGE_SHARE = 1 / 3


class _Step(NamedTuple):
    args: tuple[Any, ...]
    answer: asyncio.Future[Any]


class AutoPipeline:
    """Sends scripts to one Redis, in pipelines where that is cheaper."""

    def __init__(self, redis: Redis, *, timeout_seconds: float) -> None:
        """Take the Redis that scripts are sent to.

        Args:
            redis: The client. If its class overrides `evalsha`, steps are never batched, so that the override
                sees each step.
            timeout_seconds: How long a step or a pipeline may take, once it has a slot: see `Turns`.
        """
        self._redis = redis
        connections = connections_of(redis, most=_CONNECTIONS)
        large = max(1, int(connections * _LARGE_SHARE))
        self._large = Limiter(large, timeout_seconds=timeout_seconds)
        self._limiter = Limiter(max(1, connections - large), timeout_seconds=timeout_seconds)
        self._pipelines = min(_PIPELINES, self._limiter.at_once)
        self._can_pipeline = type(redis).evalsha is Redis.evalsha
        self._load = LoadDetector(beyond=min(_ALONE, self._limiter.at_once))
        self._under_way = 0
        self._waiting: list[_Step] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def evalsha(self, sha: str, key: str | bytes, *args: Any) -> Any:
        """Run a loaded script on one key.

        Args:
            sha: The SHA-1 of the script.
            key: The key.

        Raises:
            Exception: The error that the client raises.
            TimeoutError: There was no result in time: see `Turns`.
        """
        # Texts are sent as UTF-8, whatever the encoding of the client.
        script, *rest = (arg.encode() if isinstance(arg, str) else arg for arg in (sha, key, *args))
        command = (script, 1, *rest)
        if not (self._can_pipeline and self._load.is_there(self._under_way)):
            return await self._go_alone(self._limiter, *command)
        if _size(command) > _LARGE_BYTES:
            return await self._go_alone(self._large, *command)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        step = _Step(command, loop.create_future())
        self._waiting.append(step)
        return await step.answer

    async def _go_alone(self, limiter: Limiter, *args: Any) -> Any:
        self._under_way += 1
        try:
            return await limiter.run(self._redis.evalsha, *args)
        finally:
            self._under_way -= 1

    def _send(self) -> None:
        """Send the waiting steps, as many as the free pipelines allow."""
        while self._waiting and len(self._sending) < self._pipelines:
            steps, self._waiting = self._waiting[:_STEPS_AT_ONCE], self._waiting[_STEPS_AT_ONCE:]
            task = asyncio.create_task(self._run(steps))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send()

    async def _run(self, steps: Sequence[_Step]) -> None:
        """Send some steps, and hand each result to its caller, unless the caller was cancelled meanwhile."""
        results: Sequence[Any]
        self._under_way += 1
        try:
            results = await self._limiter.run(self._ask, steps)
        except TimeoutError as exc:
            # The steps that wait behind these fail, too: they would only wait for the same time again.
            steps, self._waiting = [*steps, *self._waiting], []
            results = [exc] * len(steps)
        except Exception as exc:
            results = [exc] * len(steps)
        except asyncio.CancelledError:
            for step in steps:
                step.answer.cancel()
            raise
        finally:
            self._under_way -= 1
        for step, answer in zip(steps, results, strict=True):
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
            results: Sequence[Any] = await pipeline.execute(raise_on_error=False)
        if len(results) != len(steps):
            raise RuntimeError(f"The Redis client has {len(results)} results for {len(steps)} steps.")
        return results


def _size(args: tuple[Any, ...]) -> int:
    return sum(len(arg) for arg in args if isinstance(arg, bytes))
