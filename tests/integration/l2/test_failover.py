"""A primary is killed under load, and its standby is promoted.

What the standby has is not lost, and what it has not is read by nobody. A standby itself gets no call.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict

from chains import chain
from clusters import Cluster
from command_line import glasspoint
from conversations import SOON, Conversation, Process, execute, missing_values, process
from glasspoint import CachedPostgresSaver
from glasspoint.cli.check import run_checks
from glasspoint.errors import L2DeadlineError, L2UnavailableError
from glasspoint.l2.pool import address_of, postgres_conninfo
from glasspoint.l2.target import Target
from pgbouncer import PROGRAM, bouncer
from states import numbered_id
from steps import Thread, readyz, until

needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")

END_ALL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

# After a failed attempt, PgBouncer leaves a server alone for 15 s by default.
QUICK = "server_login_retry = 1"

_AWAY = (L2UnavailableError, L2DeadlineError)

WRITERS = 4
READERS = 2


@dataclass
class Servers:
    """A primary with a standby, and a database on them."""

    primary: Cluster
    standby: Cluster
    database: str = "app"

    @property
    def url(self) -> str:
        """Both hosts, in one URL. It does not say which kind of server is wanted."""
        return (
            f"postgresql://postgres@/{self.database}?host={self.primary.directory},{self.standby.directory}"
            f"&port={Cluster._PORT},{Cluster._PORT}"
        )

    def of(self, server: Cluster) -> str:
        return server._url_of(self.database)


@contextmanager
def replicated() -> Iterator[Servers]:
    with Cluster() as primary:
        primary.create_database("app")
        with Cluster(standby_of=primary, streams=True) as standby:
            yield Servers(primary, standby)


@dataclass
class Load:
    """What writers and readers of some threads were told, and when."""

    threads: list[Thread] = field(default_factory=lambda: [Thread(f"thread {n}") for n in range(WRITERS)])
    acknowledged: list[tuple[float, str, int]] = field(default_factory=list)
    read: list[tuple[float, float, str, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def write(self, thread: Thread, saver: CachedPostgresSaver) -> None:
        while True:
            try:
                await thread.put(saver)
            except _AWAY as exc:
                self.errors.append(str(exc))
            else:
                self.acknowledged.append((monotonic(), thread.thread_id, thread.number))
            await asyncio.sleep(0.005)

    async def look(self, saver: CachedPostgresSaver) -> None:
        while True:
            for thread in self.threads:
                began = monotonic()
                try:
                    number = await thread.turn(saver)
                except _AWAY as exc:
                    self.errors.append(str(exc))
                    continue
                self.read.append((began, monotonic(), thread.thread_id, number or 0))
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def on(self, writing: Process, reading: Process) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.write(each, writing.saver)) for each in self.threads]
            tasks += [
                group.create_task(self.look(each.saver))
                for each in (writing, reading)
                for _ in range(READERS)
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    def since(self, began: float) -> int:
        """How many writes were acknowledged since then, in the thread that has fewest."""
        return min(
            sum(at > began and name == thread.thread_id for at, name, _ in self.acknowledged)
            for thread in self.threads
        )

    def stale(self, began: float, ended: float, there: dict[str, set[int]]) -> list[tuple[str, int]]:
        """Reads between these moments that missed an acknowledged write, or returned what is not there."""
        return [
            (name, number)
            for at, until_, name, number in self.read
            if at >= began and until_ <= ended
            if (number and number not in there[name])
            or any(
                of == name and known_at < at and known > number and known in there[name]
                for known_at, of, known in self.acknowledged
            )
        ]


async def stored(url: str) -> dict[str, set[int]]:
    """The numbers of all checkpoints in PostgreSQL, by thread."""
    found: dict[str, set[int]] = {}
    numbers = {numbered_id(number): number for number in range(100_000)}
    for name, checkpoint_id in await execute(url, "SELECT thread_id, checkpoint_id FROM checkpoints"):
        found.setdefault(name, set()).add(numbers[checkpoint_id])
    return found


async def has_another_identity(one: Process, name: str | None) -> None:
    """Wait until a process has noticed that its PostgreSQL is another one, or another state of it."""
    await until(lambda: one.saver.status.identity not in (name, None), seconds=60)


def say(what: str, began: float, load: Load) -> None:
    """Print how long no write was acknowledged, for whoever wants the figures (`pytest -s`)."""
    times = sorted(at for at, _, _ in load.acknowledged)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    first = next(at for at in times if at > began)
    sys.stdout.write(
        f"{what}: {max(pauses):.2f} s without a write, the first {first - began:.2f} s after the promotion; "
        f"{len(times)} writes, {len(load.read)} reads, {len(load.errors)} errors\n"
    )


@pytest.mark.parametrize("is_synchronous", [True, False], ids=["synchronous", "asynchronous"])
async def test_a_failover_under_load_is_followed_and_nothing_is_believed_that_is_gone(
    is_synchronous: bool, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The URL names both hosts. Commits that an asynchronous standby never received are gone."""
    load = Load()
    with replicated() as servers:
        async with process(servers.url, redis_url) as one, process(servers.url, redis_url) as another:
            assert address_of(one.saver.status.pool) == (str(servers.primary.directory), Cluster._PORT)
            await asyncio.to_thread(servers.primary.wait_for_standby)
            if is_synchronous:
                await asyncio.to_thread(servers.primary.commit_on_the_standby_first)
            names = [each.saver.status.identity for each in (one, another)]
            async with load.on(one, another):
                await until(lambda: load.since(0) > 5)
                detached = monotonic()
                before = await stored(servers.of(servers.primary))
                if not is_synchronous:
                    await asyncio.to_thread(servers.standby.detach)
                    await until(lambda: load.since(detached) > 5)
                killed = monotonic()
                await asyncio.to_thread(servers.primary.crash)
                await asyncio.to_thread(servers.standby.promote)
                promoted = monotonic()
                for each, name in zip((one, another), names, strict=True):
                    await has_another_identity(each, name)
                noticed = monotonic()
                await until(lambda: load.since(noticed) > 20)
                hits = another.hits
                await until(lambda: another.hits > hits + 20)
            say("synchronous" if is_synchronous else "asynchronous", promoted, load)
            for each in (one, another):
                assert address_of(each.saver.status.pool) == (str(servers.standby.directory), Cluster._PORT)
                assert each.saver.status.addresses["l2"][0] == str(servers.standby.directory)
            changes = one.identity_changes.get("timeline", 0) + another.identity_changes.get("timeline", 0)
            assert changes, "the timeline is another one"
        there = await stored(servers.of(servers.standby))
        lost = [(name, number) for _, name, number in load.acknowledged if number not in there[name]]
        assert bool(lost) != is_synchronous, "or this test shows nothing"
        assert load.stale(noticed, monotonic(), there) == []
        assert load.stale(0, detached, before) == []
    said = [r.getMessage() for r in caplog.records if "new connections lead to" in r.getMessage()]
    assert len(said) == 2, "each process says it once"
    assert killed < promoted < noticed


@needs_pgbouncer
async def test_behind_pgbouncer_writes_go_on_when_it_is_told_of_the_new_primary(redis_url: str) -> None:
    load = Load()
    options: dict[str, Any] = {"prepare_threshold": None}
    with replicated() as servers, bouncer(servers.primary, servers.database, size=4, more=QUICK) as pooler:
        async with (
            process(pooler.url, redis_url, **options) as one,
            process(pooler.url, redis_url, **options) as another,
        ):
            await asyncio.to_thread(servers.primary.wait_for_standby)
            await asyncio.to_thread(servers.primary.commit_on_the_standby_first)
            name = another.saver.status.identity
            async with load.on(one, another):
                await until(lambda: load.since(0) > 5)
                await asyncio.to_thread(servers.primary.crash)
                await asyncio.to_thread(servers.standby.promote)
                promoted = monotonic()
                pooler.switch(servers.primary, servers.standby)
                await has_another_identity(another, name)
                noticed = monotonic()
                await until(lambda: load.since(noticed) > 20, seconds=60)
            say("behind PgBouncer", promoted, load)
        there = await stored(servers.of(servers.standby))
        assert [each for each in load.acknowledged if each[2] not in there[each[1]]] == []
        assert load.stale(noticed, monotonic(), there) == []


@needs_pgbouncer
async def test_a_pooler_that_leads_to_a_standby_is_no_reason_to_read_an_older_state(redis_url: str) -> None:
    """A pooler keeps the connections of its clients, so nobody looks what is behind it when they are made."""
    thread = Conversation()
    options: dict[str, Any] = {"prepare_threshold": None, "sweep_interval_seconds": SOON}
    with replicated() as servers, bouncer(servers.primary, servers.database, size=4) as pooler:
        async with (
            process(servers.of(servers.primary), redis_url) as beside,
            process(
                pooler.url, redis_url, write_deadline_seconds=0.5, pool_timeout_seconds=0.5, **options
            ) as one,
        ):
            await thread.turn(one.saver, "one")
            await asyncio.to_thread(servers.primary.wait_for_standby)
            await asyncio.to_thread(servers.standby.detach)
            await thread.turn(beside.saver, "two")
            pooler.switch(servers.primary, servers.standby)

            async def is_refused() -> bool:
                try:
                    await thread.read(one.saver)
                except L2UnavailableError as exc:
                    return "hot standby" in str(exc)
                return False

            await until(is_refused)
            for _ in range(10):
                assert await is_refused()
            assert (await readyz(one.registry))[1]["l2"] == "unavailable"
            pooler.switch(servers.standby, servers.primary)
            await one.will_read(thread, ["one", "two"])
            assert await thread.turn(one.saver, "three") == ["one", "two", "three"]


async def test_a_former_primary_that_comes_back_gets_no_call(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named first in the URL. It comes back as a standby, and once without knowing of its successor."""
    thread = Conversation()
    with replicated() as servers:
        async with process(servers.url, redis_url) as one:
            await thread.turn(one.saver, "one")
            await asyncio.to_thread(servers.primary.wait_for_standby)
            await asyncio.to_thread(servers.primary.crash)
            await asyncio.to_thread(servers.standby.promote)
            assert await thread.turn(one.saver, "two") == ["one", "two"]
            for comes_back_as in ("a primary", "a standby"):
                if comes_back_as == "a standby":
                    servers.primary.stop()
                    (servers.primary.data / "standby.signal").touch()
                servers.primary.start()
                await execute(servers.of(servers.standby), END_ALL)
                assert await thread.turn(one.saver, comes_back_as) is not None
                assert address_of(one.saver.status.pool) == (str(servers.standby.directory), Cluster._PORT)
            expected = ["one", "two", "a primary", "a standby"]
            async with process(servers.url, redis_url) as another:
                assert await thread.read(another.saver) == expected
                assert await thread.turn(another.saver, "three") == [*expected, "three"]
            [found] = [
                each
                async for each in run_checks(servers.url, "", timeout_seconds=15.0)
                if each.name == "PostgreSQL"
            ]
            assert f"at {servers.standby.directory} (one of 2 hosts), database app" in found.detail
        assert await missing_values(servers.of(servers.standby)) == []


async def test_whoever_names_a_standby_alone_is_told_so(redis_url: str) -> None:
    with replicated() as servers:
        async with process(servers.of(servers.primary), redis_url) as one:
            thread = Thread("a")
            await thread.put(one.saver)
            await asyncio.to_thread(servers.primary.wait_for_standby)
            lagging = servers.of(servers.standby)
            with pytest.raises(L2UnavailableError, match=r"hot standby mode.* Connect to the primary"):
                await CachedPostgresSaver.create(lagging, redis_url)
            found = {each.name: each async for each in run_checks(lagging, redis_url, timeout_seconds=15.0)}
            assert found["PostgreSQL"].status == "failed"
            assert "Connect to the primary" in found["PostgreSQL"].detail
            said = glasspoint("setup", POSTGRES_URL=lagging, REDIS_URL=redis_url)
            assert said.returncode == 1
            assert "Connect to the primary" in said.stderr
            registry = CollectorRegistry()
            async with chain(lagging, redis_url, registry) as saver:
                assert saver.tier == "redis"
                await asyncio.to_thread(servers.standby.promote)
                await until(lambda: saver.tier == "cached")
                assert await thread.turn(saver) == 1


def test_the_order_of_the_hosts_names_no_other_target() -> None:
    with_ports = "postgresql://u@{},{}/app?target_session_attrs=read-write"
    one, other = with_ports.format("db1:5432", "db2:5433"), with_ports.format("db2:5433", "db1:5432")
    assert Target.of(one) == Target.of(other)
    assert Target.of(one).id != Target.of("postgresql://u@db1:5433,db2:5432/app").id


@pytest.mark.parametrize(
    ("conn_string", "expected"),
    [
        ("postgresql://u@h1,h2/db", "primary"),
        ("host=h1,h2 dbname=db", "primary"),
        ("postgresql://u@h1,h2/db?target_session_attrs=any", "any"),
        ("host=h1,h2 target_session_attrs=read-write", "read-write"),
        ("postgresql://u@h1/db", None),
        ("service=app host=h1,h2", None),
    ],
)
def test_of_several_hosts_the_primary_is_wanted_unless_the_user_says_otherwise(
    conn_string: str, expected: str | None
) -> None:
    given = conninfo_to_dict(postgres_conninfo(conn_string))
    assert given.get("target_session_attrs") == expected
    is_one = conn_string == "postgresql://u@h1/db"
    assert given["connect_timeout"] == ("5" if is_one else "2")


async def test_a_host_that_is_silent_costs_one_connection_its_timeout(database: str, redis_url: str) -> None:
    """Its machine is gone, so nothing refuses: an attempt lasts until its timeout."""
    given = conninfo_to_dict(database)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = (
            f"postgresql://{given['user']}@/{given['dbname']}?host=127.0.0.1,{given['host']}"
            f"&port={silent.getsockname()[1]},{given['port']}"
        )
        async with process(url, redis_url, pool_max_size=4, connect_timeout_seconds=2.0) as one:
            pool = one.saver.status.pool
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(pool.connection())
            assert address_of(pool) == (given["host"], int(str(given["port"])))
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
