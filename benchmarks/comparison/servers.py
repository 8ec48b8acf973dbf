"""Where it is measured: servers, databases of its own, the machine's facts."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import EmbeddedServerUnavailable
from glasspoint.l2.pool import postgres_conninfo


@contextmanager
def servers(*, durable: bool = True) -> Iterator[tuple[str, str]]:
    """Two URLs: those of POSTGRES_URL and REDIS_URL, else of embedded servers.

    Args:
        durable: Whether the embedded PostgreSQL has fsync on.
    """
    with ExitStack() as started:
        postgres_url = os.environ.get("POSTGRES_URL")
        redis_url = os.environ.get("REDIS_URL")
        if not postgres_url:
            postgres_url = started.enter_context(EmbeddedPostgres(durable=durable)).url
        if not redis_url:
            redis_url = started.enter_context(EmbeddedRedis()).url
        yield postgres_url, redis_url


SLOTS: Final = 16_384
START_ATTEMPTS: Final = 5
FORMING_SECONDS: Final = 30.0


@contextmanager
def redis_cluster(masters: int) -> Iterator[list[EmbeddedRedis]]:
    """A new Redis Cluster of so many masters, without replicas."""
    with ExitStack() as started:
        servers = [started.enter_context(_node()) for _ in range(masters)]
        for number, server in enumerate(servers):
            with SyncRedis(host="127.0.0.1", port=server.port) as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                mine = range(SLOTS * number // masters, SLOTS * (number + 1) // masters)
                client.execute_command("CLUSTER", "ADDSLOTS", *mine)
                if number:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        deadline = time.monotonic() + FORMING_SECONDS
        while not all(_knows_all(server, masters) for server in servers):
            if time.monotonic() > deadline:
                raise SystemExit("The nodes of the Redis Cluster do not find each other: not measured.")
            time.sleep(0.05)
        yield servers


def _node() -> EmbeddedRedis:
    """A server that may join a cluster. It has a second port, 10,000 above the first, which may be taken."""
    for attempt in range(1, START_ATTEMPTS + 1):
        server = EmbeddedRedis()
        try:
            server.start("--cluster-enabled", "yes")
        except EmbeddedServerUnavailable:
            server.close()
            if attempt == START_ATTEMPTS:
                raise
        else:
            return server
    raise AssertionError


def _knows_all(server: EmbeddedRedis, masters: int) -> bool:
    with SyncRedis(host="127.0.0.1", port=server.port, decode_responses=True) as client:
        info: dict[str, str] = client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and info["cluster_size"] == str(masters)


@dataclass(frozen=True)
class Databases:
    """Two new databases on one server, by their connection strings.

    Upstream must not pay for what only Glasspoint needs. In one database Glasspoint's triggers would run for
    upstream's writes, note them in the journal, and the sweeper would drop them while others are measured.

    Attributes:
        ours: Glasspoint's, with its tables and triggers.
        upstream: That of `AsyncPostgresSaver` and of the write floor. Its tables are made by upstream's
            `setup()` alone.
    """

    ours: str
    upstream: str

    def at(self, host: str, port: str) -> Databases:
        """Return the same databases, reached at another address."""
        return Databases(*(make_conninfo(each, host=host, port=port) for each in (self.ours, self.upstream)))


@asynccontextmanager
async def own_databases(postgres_url: str, name: str) -> AsyncIterator[Databases]:
    """Make both for the length of the block."""
    async with AsyncExitStack() as made:
        ours = await made.enter_async_context(own_database(postgres_url, name))
        upstream = await made.enter_async_context(own_database(postgres_url, f"{name}_upstream"))
        yield Databases(ours, upstream)


@asynccontextmanager
async def own_database(postgres_url: str, name: str) -> AsyncIterator[str]:
    """A new database for the length of the block, on the same server; its connection string."""
    server = postgres_conninfo(postgres_url)
    named = sql.Identifier(name)
    async with await psycopg.AsyncConnection.connect(server, autocommit=True) as conn:
        try:
            await conn.execute(sql.SQL("CREATE DATABASE {}").format(named))
        except psycopg.errors.InsufficientPrivilege as exc:
            raise SystemExit(
                "This role may not create databases, and the benchmark works in one of its own: let it "
                "(ALTER ROLE … CREATEDB), or leave POSTGRES_URL out."
            ) from exc
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            await conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(named))


async def facts_of(pool: AsyncConnectionPool[Any], redis: Redis) -> dict[str, str]:
    """What a figure depends on: machine, versions, settings."""
    async with pool.connection() as conn:
        settings = await conn.execute(
            "SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync, "
            "current_setting('synchronous_commit') AS synchronous_commit"
        )
        postgres = await settings.fetchone()
    assert postgres is not None
    packages = ("glasspoint", "langgraph", "langgraph-checkpoint-postgres", "psycopg", "redis")
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "postgres": f"PostgreSQL {postgres['version']}, fsync={postgres['fsync']}, "
        f"synchronous_commit={postgres['synchronous_commit']}",
        "redis": f"Redis {(await redis.info('server'))['redis_version']}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "psycopg": psycopg.pq.__impl__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
