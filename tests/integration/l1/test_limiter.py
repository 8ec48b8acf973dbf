"""More callers than a client has connections: they wait, and nothing fails for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import MaxConnectionsError, ResponseError

from glasspoint import RedisSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from glasspoint.redis.auto_pipeline import AutoPipeline
from glasspoint.redis.client import open_redis
from glasspoint.redis.limiter import Limiter, connections_of, when_connected
from states import counts, open_saver
from steps import Thread

LARGE = "x" * 300_000
PATIENT_SECONDS = 60.0


class Server:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, asyncio.Future[str]]] = []

    @property
    def names(self) -> str:
        return "".join(name for name, _ in self.asked)

    async def ask(self, name: str) -> str:
        self.asked.append((name, asyncio.get_running_loop().create_future()))
        return await self.asked[-1][1]

    async def answer(self, name: str, error: Exception | None = None) -> None:
        [answer] = [answer for each, answer in self.asked if each == name and not answer.done()]
        if error is None:
            answer.set_result(name)
        else:
            answer.set_exception(error)
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def server() -> Server:
    return Server()


async def started(turns: Limiter, server: Server, names: str) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(turns.run(server.ask, name)) for name in names]
    await settle()
    return tasks


async def test_so_many_at_once_and_the_others_in_order(server: Server) -> None:
    turns = Limiter(2, timeout_seconds=PATIENT_SECONDS)
    tasks = await started(turns, server, "abcde")
    assert server.names == "ab"
    await server.answer("b")
    assert server.names == "abc"
    await server.answer("a", ResponseError())
    assert server.names == "abcd"
    await server.answer("c")
    await server.answer("d")
    await server.answer("e")
    assert isinstance(await asyncio.gather(tasks[0], return_exceptions=True), list)
    assert await asyncio.gather(*tasks[1:]) == [*"bcde"]
    await started(turns, server, "fg")
    assert server.names == "abcdefg", "no turn was lost"


async def test_who_leaves_the_line_takes_nobodys_turn(server: Server) -> None:
    turns = Limiter(1, timeout_seconds=PATIENT_SECONDS)
    tasks = await started(turns, server, "abcd")
    tasks[1].cancel()
    await settle()
    server.asked[0][1].set_result("a")
    await asyncio.sleep(0)  # a is back, and has handed its turn to c
    assert server.names == "a"
    tasks[2].cancel()
    await settle()
    assert server.names == "ad"
    tasks[3].cancel()
    await started(turns, server, "e")
    assert server.names == "ade"


async def test_while_nobody_is_answered_a_turn_is_awaited_as_long_as_an_answer(server: Server) -> None:
    """So a silence ends for all at once, however long the line."""
    turns = Limiter(1, timeout_seconds=0.1)
    first, *others = await started(turns, server, "abc")
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TimeoutError}
    assert len(server.asked) <= 2, "the line was gone when the first had given up, or just about to go"


async def test_while_others_are_answered_a_turn_is_awaited_longer(server: Server) -> None:
    """Each answer takes three quarters of the timeout, so the third caller waits longer than the timeout."""
    turns = Limiter(1, timeout_seconds=0.2)
    first, second, third = await started(turns, server, "abc")
    for name, caller in ("a", first), ("b", second):
        await asyncio.sleep(0.15)  # from its turn on; a busy machine makes both this and the timeout longer
        await server.answer(name)
        assert await caller == name
    await server.answer("c")
    assert await third == "c", "after 0.3 s in the line"


async def test_a_client_without_a_connection_is_asked_again() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked < 4:
            raise MaxConnectionsError
        return "answer"

    assert await when_connected(ask) == "answer"
    asked = 0
    assert await Limiter(1, timeout_seconds=PATIENT_SECONDS).run(ask) == "answer"
    assert asked == 4


async def test_a_client_that_never_has_one_is_given_up() -> None:
    async def ask() -> None:
        raise MaxConnectionsError

    with pytest.raises(TimeoutError):
        await Limiter(1, timeout_seconds=0.05).run(ask)


def test_one_connection_is_left() -> None:
    def found(limit: int) -> int:
        return connections_of(Redis(max_connections=limit), most=32)

    assert [found(limit) for limit in (1, 2, 10, 33, 34, 1000)] == [1, 1, 9, 32, 32, 32]
    assert connections_of(Redis.from_pool(BlockingConnectionPool(max_connections=10)), most=32) == 9
    assert connections_of(RedisCluster("127.0.0.1", max_connections=10), most=32) == 9


def test_a_url_says_how_many_connections_there_may_be() -> None:
    def found(url: str) -> int:
        redis = open_redis(url, timeout_seconds=1)
        assert isinstance(redis, Redis)
        return redis.connection_pool.max_connections

    assert found("redis://host") == 64
    assert found("redis://host?max_connections=7") == 7
    assert found("redis+sentinel://host/mymaster") == 64
    assert found("redis+sentinel://host/mymaster?max_connections=7") == 7


# ------------------------------------------------------------------ in a saver


class Own(Redis):
    """With a way of its own, so that each step goes by itself."""

    async def evalsha(self, *args: Any) -> Any:
        return await super().evalsha(*args)


@asynccontextmanager
async def limited(kind: type[Redis], url: str, limit: int) -> AsyncIterator[Redis]:
    async with kind.from_url(url, max_connections=limit) as redis:
        yield redis


@pytest.mark.parametrize(("kind", "limit"), [(Redis, 1), (Redis, 2), (Own, 10), (Own, 100)])
async def test_many_large_states_at_once_are_no_outage(
    kind: type[Redis], limit: int, database: str, own_redis: EmbeddedRedis
) -> None:
    registry = CollectorRegistry()
    threads = [Thread(f"thread {i}") for i in range(120)]
    async with (
        limited(kind, own_redis.url, limit) as redis,
        open_saver(
            database,
            redis,  # type: ignore[arg-type]
            telemetry=create_telemetry(registry=registry),
            l1_timeout_seconds=5,
            write_deadline_seconds=60,
        ) as saver,
    ):
        await asyncio.gather(*(thread.put(saver, file=[LARGE]) for thread in threads))
        assert await asyncio.gather(*(thread.turn(saver) for thread in threads)) == [1] * len(threads)
        assert counts(registry, "glasspoint_l1_reads_total", "result") == {"hit": len(threads)}
        assert counts(registry, "glasspoint_write_through_total", "l1") == {"announced": len(threads)}
        assert saver.status.breaker == "closed"


@pytest.mark.parametrize("own", [False, True])
async def test_large_arguments_at_once_take_only_a_share_of_the_connections(
    own: bool, own_redis: EmbeddedRedis
) -> None:
    async with limited(Own if own else Redis, own_redis.url, 100) as redis:
        pipeline = AutoPipeline(redis, timeout_seconds=PATIENT_SECONDS)
        sha = await redis.script_load("return #ARGV[1]")
        steps = (pipeline.evalsha(sha, f"key {i}", LARGE.encode()) for i in range(256))
        assert set(await asyncio.gather(*steps)) == {len(LARGE)}
        assert (await redis.info("clients"))["connected_clients"] <= 48


@pytest.mark.parametrize("limit", [1, 100])
async def test_a_saver_on_redis_alone_lets_them_wait(limit: int, redis_url: str) -> None:
    threads = [Thread(f"thread {i}") for i in range(150)]
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with limited(Redis, redis_url, limit) as redis:
        saver = await RedisSaver.create(redis, timeout_seconds=5, telemetry=telemetry)
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        pings: list[Callable[[], Awaitable[Any]]] = [saver.ping] * 20
        turns = asyncio.gather(*(thread.turn(saver) for thread in threads))
        await asyncio.gather(*(ping() for ping in pings))
        assert await turns == [1] * len(threads)
        await saver.close()
