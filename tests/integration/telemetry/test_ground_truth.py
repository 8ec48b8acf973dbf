"""What the metrics say is what happened, to the last call: an application counts for itself, servers fail,
and a scrape agrees. See `truth.py`: nothing there asks Glasspoint what to count."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

import preforked
from databases import with_tables
from glasspoint import create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import L2UnavailableError
from steps import locked, until
from truth import ONE_CONNECTION, Application, Truth, application, expected, scraped, waits_in


@pytest.fixture
async def app(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> AsyncIterator[Application]:
    async with application(
        own_postgres.url,
        own_redis.url,
        telemetry=create_telemetry(registry=registry),
        pool_timeout_seconds=0.5,
        write_deadline_seconds=1,
        l1_timeout_seconds=0.25,
    ) as app:
        yield app


def said_by(registry: CollectorRegistry) -> Truth:
    return scraped(list(registry.collect()))


async def test_in_one_process_under_faults(
    app: Application, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    # Nothing is wrong.
    assert await app.read("talks") == "nothing"
    for _ in range(3):
        assert await app.talk("talks") == "ok"
        await app.settle()
    assert app.truth["hits"] == 2
    for wants, answers in (("one", ["ok"]), ("two", ["interrupted", "ok"]), ("nested", ["ok"])):
        assert await app.talk(wants, wants, "asker") == "interrupted"
        assert [await app.answer(wants, agent="asker") for _ in answers] == answers
    assert await app.talk("fails", "fail") == "error"
    assert await app.again("fails") == "error"
    assert (app.truth["raised"], app.truth["resumed"]) == (4, 4)
    assert said_by(registry) == expected(app.truth)

    # A turn is cancelled in the middle.
    asking = asyncio.Event()
    never = asyncio.Event()

    async def hang() -> None:
        asking.set()
        await never.wait()

    app.before_asking = hang
    turn = asyncio.create_task(app.talk("cancelled", "one"))
    await asking.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert said_by(registry) == expected(app.truth)

    # Redis is killed, then frozen, while a node works.
    async def kill() -> None:
        own_redis.kill()

    async def freeze() -> None:
        own_redis.freeze()

    for break_ in (kill, freeze):
        app.before_asking = break_
        assert await app.talk(break_.__name__, "one") == "interrupted"
        app.before_asking = _nothing
        before = app.truth["hits"]
        assert await app.answer(break_.__name__) == "ok"
        assert await app.talk("talks") == "ok"
        assert app.truth["hits"] == before
        assert said_by(registry) == expected(app.truth)
        if break_ is kill:
            own_redis.start()
        else:
            own_redis.thaw()
        await app.hits("talks")
        assert said_by(registry) == expected(app.truth)

    # PostgreSQL is killed just before a question is stored.
    async def crash() -> None:
        own_postgres.crash()

    app.before_asking = crash
    assert await app.talk("crash", "one") == "error"
    app.before_asking = _nothing
    raised = app.truth["raised"]
    assert await app.talk("new") == "error"
    assert await app.read("new") == L2UnavailableError.__name__
    assert said_by(registry) == expected(app.truth)
    own_postgres.start()
    await app.works("crash")
    assert await app.again("crash") == "interrupted"
    assert app.truth["raised"] == raised + 1
    assert await app.answer("crash") == "ok"
    assert await app.talk("new") == "ok"
    assert said_by(registry) == expected(app.truth)
    assert {key for key in app.truth if key.endswith(" error")} >= {
        "get_tuple error",
        "put_writes error",
        "talker error",
    }


async def _nothing() -> None:
    pass


async def test_waits_for_a_connection_and_callers_that_got_none(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """A pool of one connection, which a put holds, because somebody has locked the table."""
    telemetry = create_telemetry(registry=registry)
    database = with_tables(own_postgres)
    async with application(database, own_redis.url, telemetry=telemetry, **ONE_CONNECTION) as app:
        assert await app.talk("a") == "ok"
        await app.settle()
        count, seconds = waits_in(list(registry.collect()))
        async with locked(database, "checkpoints") as waiter:
            await app.hold("held")
            await waiter()
            assert await app.crowd("3") == "3"
        await app.held()
        assert app.truth["timeouts"] == 3
        counted, waited = waits_in(list(registry.collect()))
        assert counted - count == 1 + 3, "the put, and the reads that waited in vain"
        assert waited - seconds >= 3 * 0.5
        assert said_by(registry) == expected(app.truth)
        own_postgres.stop()
        assert await app.crowd("5") == "5"
        own_postgres.start()
        await app.works("a")
        assert said_by(registry) == expected(app.truth)


PROGRAM = "from runpy import run_module; run_module('truth', run_name='__main__', alter_sys=True)"


class Worker:
    """One of several processes."""

    def __init__(self, together: Together, postgres_url: str, redis_url: str, *options: str) -> None:
        self.truth = Truth()
        self._process = preforked.Popen(
            PROGRAM,
            *(postgres_url, redis_url, *options),
            env=together.environment,
            has_stdin=True,
            source=together.source,
        )

    def do(self, *command: str) -> str:
        """Do it, and return how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(command) + "\n")
        self._process.stdin.flush()
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.truth = Truth(said["truth"])
        return str(said["answer"])

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._end()

    def close(self) -> None:
        """Let it end, if it has not ended."""
        if self._process.returncode is None:
            self._end()

    def _end(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)


class Together:
    """Where processes write down what they count, so that each says it of all."""

    def __init__(self, source: preforked.Source, variables: dict[str, str]) -> None:
        self.source = source
        self.environment = {**os.environ, **variables}

    def families(self) -> list[Metric]:
        """What a process that serves nothing itself says of the others."""
        page = preforked.run(PROGRAM, "--scrape", env=self.environment, timeout=60, source=self.source)
        assert page.returncode == 0, page.stderr
        return list(text_string_to_metric_families(page.stdout))

    def said(self) -> Truth:
        return scraped(self.families())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[preforked.Source]:
    with preforked.that_count_together(tmp_path_factory.mktemp("nothing")) as source:
        yield source


@pytest.fixture
def together(source: preforked.Source, tmp_path: Path) -> Together:
    return Together(source, {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)})


@pytest.fixture
def workers(
    together: Together, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> Iterator[tuple[Worker, Worker, Worker]]:
    with ExitStack() as stack:
        found = [Worker(together, own_postgres.url, own_redis.url) for _ in range(3)]
        for each in found:
            stack.callback(each.close)
        one, two, three = found
        yield one, two, three


def test_in_several_processes_under_faults(
    workers: tuple[Worker, Worker, Worker],
    together: Together,
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
) -> None:
    one, two, three = workers

    def truth() -> Truth:
        return expected(sum((each.truth for each in workers), Truth()))

    # What one asks, another one answers; of two questions it answers one, and asks the other again.
    assert one.do("talk", "a") == "ok"
    one.do("settle")
    assert two.do("talk", "a") == "ok"
    assert two.truth["hits"] == 1
    for wants in ("one", "nested"):
        assert one.do("talk", wants, wants, "asker") == "interrupted"
        assert two.do("answer", wants, "1", "asker") == "ok"
    assert one.do("talk", "two", "two", "asker") == "interrupted"
    assert two.do("answer", "two", "1", "asker") == "interrupted"
    assert three.do("answer", "two", "1", "asker") == "ok"
    assert (truth()["raised"], truth()["resumed"]) == (4, 4)
    assert together.said() == truth()

    # Both servers are lost, one after the other, and a worker is killed.
    own_redis.kill()
    for worker in workers:
        assert worker.do("talk", "b") == "ok"
    own_redis.start()
    for worker in workers:
        assert worker.do("hits", "b") == "hit"
    own_postgres.crash()
    for worker in workers:
        assert worker.do("talk", "new") == "error"
    own_postgres.start()
    for worker in workers:
        assert worker.do("works", "b") == "something"
        assert worker.do("talk", "b", "fail") == "error"
    two.kill()
    assert one.do("talk", "b", "one") == "interrupted"
    assert three.do("answer", "b") == "ok"
    assert together.said() == truth()


async def test_pools_that_are_too_small_in_several_processes_under_faults(
    together: Together, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """Two processes with a connection each, which a put holds; then PostgreSQL stops."""
    database = with_tables(own_postgres)
    with ExitStack() as stack:
        workers = [Worker(together, database, own_redis.url, "one-connection") for _ in range(2)]
        for each in workers:
            stack.callback(each.close)

        def truth() -> Truth:
            return expected(sum((each.truth for each in workers), Truth()))

        for number, worker in enumerate(workers):
            assert worker.do("talk", f"thread-{number}") == "ok"
            worker.do("settle")
        count, seconds = waits_in(together.families())
        async with locked(database, "checkpoints") as waiter:
            for number, worker in enumerate(workers):
                worker.do("hold", f"held-{number}")
            await until(partial(_wait_for_locks, database, len(workers)))
            await waiter()
            for worker in workers:
                assert worker.do("crowd", "3") == "3"
        for worker in workers:
            assert worker.do("held") == "written"
        counted, waited = waits_in(together.families())
        assert counted - count == 2 * (1 + 3)
        assert waited - seconds >= 2 * 3 * 0.5
        assert truth()["timeouts"] == 6
        assert together.said() == truth()

        own_postgres.stop()
        for worker in workers:
            assert worker.do("crowd", "4") == "4"
        own_postgres.start()
        for number, worker in enumerate(workers):
            assert worker.do("works", f"thread-{number}") == "something"
        assert together.said() == truth()


async def _wait_for_locks(database: str, count: int) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'checkpoints'::regclass"
    async with await psycopg.AsyncConnection.connect(database) as conn:
        row = await (await conn.execute(query)).fetchone()
    return row is not None and row[0] >= count
