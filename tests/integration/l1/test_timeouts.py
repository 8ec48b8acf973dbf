"""A timeout of Redis: it ends a silence, and takes no blocked event loop for one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from glasspoint import RedisSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.redis.timeouts import answered_within
from states import counts, open_saver
from steps import Thread

SECONDS = 0.1

# Of a saver: what Redis never needs, even on a busy machine, and more than that.
L1_SECONDS = 0.5
BLOCKED_SECONDS = 0.7


async def silence() -> None:
    await asyncio.Event().wait()


def block_when_it_waits(seconds: float) -> None:
    """Block the loop once everybody has sent what there is to send."""
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, time.sleep, seconds)


class Blockade:
    """Blocks the loop for so long in every round."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._handle: asyncio.Handle | None = None
        self.rounds = 0

    def __enter__(self) -> Blockade:
        self._again()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._handle is not None
        self._handle.cancel()

    def _again(self) -> None:
        time.sleep(self._seconds)
        self.rounds += 1
        self._handle = asyncio.get_running_loop().call_soon(self._again)


async def test_a_silence_ends_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError), answered_within(SECONDS):
        await silence()
    assert time.monotonic() - began >= SECONDS
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_silence_on_a_blocked_loop_ends_too() -> None:
    """A tenth of the time takes two rounds of the loop at most: it ends in one, is noticed in the next."""
    with Blockade(0.3 * SECONDS) as blockade, pytest.raises(TimeoutError), answered_within(SECONDS):
        await silence()
    assert 10 <= blockade.rounds <= 22


async def test_what_comes_while_the_loop_is_blocked_is_in_time() -> None:
    """Also if it takes a few rounds of the loop to get through, as it does from a socket to a caller."""
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    with there:
        with answered_within(SECONDS):
            there.send(b"an answer\n")
            time.sleep(2 * SECONDS)  # noqa: ASYNC251 - that is the point
            assert await reader.readline() == b"an answer\n"
        with Blockade(1.1 * SECONDS), answered_within(SECONDS):
            there.send(b"anoth")
            asyncio.get_running_loop().call_soon(there.send, b"er\n")
            assert await reader.readline() == b"another\n"
    writer.close()
    await writer.wait_closed()


async def test_the_time_may_be_had_once_more_if_there_is_a_reason() -> None:
    asked: list[float] = []

    def answer(reason: bool) -> Callable[[], bool]:
        return lambda: bool(asked.append(time.monotonic())) or reason  # type: ignore[func-returns-value]

    for reason, times in ((False, 1), (True, 2)):
        asked.clear()
        began = time.monotonic()
        with pytest.raises(TimeoutError), answered_within(SECONDS, once_more=answer(reason)):
            await silence()
        assert len(asked) == 1
        assert time.monotonic() - began >= times * SECONDS


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    async def wait() -> None:
        with answered_within(SECONDS):
            await silence()

    for also_late in (False, True):
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if also_late:
            # Both in one round: whose came first does not matter.
            asyncio.get_running_loop().call_later(SECONDS, task.cancel)
            answered = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(answered[0], asyncio.CancelledError | TimeoutError)
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_a_cancellation_after_the_time_is_up_stays_one() -> None:
    async def wait() -> None:
        with answered_within(SECONDS):
            try:
                await silence()
            finally:
                task.cancel()

    task = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_the_client_forgets_stays_one() -> None:
    """`asyncio.wait_for` of Python 3.11 returns what it has waited for, if that came at the same moment."""
    entered = asyncio.Event()

    async def answer() -> str:
        entered.set()
        try:
            await silence()
        except asyncio.CancelledError:
            return "an answer"
        raise AssertionError

    async def ask() -> str:
        with answered_within(30.0):
            return await answer()

    asking = asyncio.create_task(ask())
    await entered.wait()
    asking.cancel()
    await asyncio.wait({asking})
    assert asking.cancelled()


async def test_an_inner_time_is_not_taken_for_an_outer_one() -> None:
    with answered_within(100):
        with pytest.raises(TimeoutError), answered_within(SECONDS / 10):
            await silence()
        await asyncio.sleep(0)


async def test_an_error_within_is_left_alone() -> None:
    with pytest.raises(KeyError), answered_within(SECONDS):
        raise KeyError


# ------------------------------------------------------------------ in a saver


@pytest.mark.parametrize("callers", [1, 40])
async def test_redis_is_not_given_up_because_the_loop_was_blocked(
    callers: int, database: str, redis_url: str
) -> None:
    registry = CollectorRegistry()
    threads = [Thread(f"thread {i}") for i in range(callers)]
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry, l1_timeout_seconds=L1_SECONDS) as saver:
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        for _ in range(2):
            reading = [asyncio.create_task(thread.turn(saver)) for thread in threads]
            await asyncio.sleep(0)
            block_when_it_waits(BLOCKED_SECONDS)
            assert await asyncio.gather(*reading) == [1] * callers
        assert counts(registry, "glasspoint_l1_reads_total", "result") == {"hit": 2 * callers}
        assert counts(registry, "glasspoint_l1_breaker_transitions_total", "to") == {}


async def test_a_redis_that_is_silent_opens_the_breaker_though_the_loop_is_blocked(
    database: str, own_redis: EmbeddedRedis
) -> None:
    registry = CollectorRegistry()
    threads = [Thread(f"thread {i}") for i in range(5)]
    telemetry = create_telemetry(registry=registry)
    async with open_saver(
        database, own_redis.url, telemetry=telemetry, l1_timeout_seconds=L1_SECONDS
    ) as saver:
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        own_redis.freeze()
        try:
            reading = [asyncio.create_task(thread.turn(saver)) for thread in threads]
            await asyncio.sleep(0)
            block_when_it_waits(BLOCKED_SECONDS)
            assert await asyncio.gather(*reading) == [1] * len(threads)
            assert counts(registry, "glasspoint_l1_reads_total", "result") == {"unavailable": len(threads)}
            assert counts(registry, "glasspoint_l1_breaker_transitions_total", "to")["open"] >= 1
        finally:
            own_redis.thaw()


async def test_a_redis_of_its_own_is_not_given_up_either(redis_url: str) -> None:
    thread = Thread("a")
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with RedisSaver.from_conn_string(
        redis_url, timeout_seconds=L1_SECONDS, telemetry=telemetry
    ) as saver:
        await thread.put(saver)
        for _ in range(2):
            reading = asyncio.create_task(thread.turn(saver))
            await asyncio.sleep(0)
            block_when_it_waits(BLOCKED_SECONDS)
            assert await reading == 1
