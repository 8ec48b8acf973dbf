"""Where it is measured: servers, databases of its own, the machine's facts."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
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


@contextmanager
def redis_cluster(masters: int) -> Iterator[list[EmbeddedRedis]]:
    """A new Redis Cluster of so many masters, without replicas."""
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
    from redis_nodes import Nodes, start_node, wait

    with ExitStack() as started:
        nodes = Nodes([started.enter_context(start_node()) for _ in range(masters)])
        nodes.give_slots(masters)
        wait(lambda: all(map(nodes.serves_all_slots, nodes.servers)))
        yield nodes.servers


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
