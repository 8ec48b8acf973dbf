"""The servers of a run, and what can be done to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from chaos.cluster_deployment import ClusterDeployment
from chaos.conversation import databases_of
from chaos.deployment import Deployment, OneServer
from chaos.faults import Fault, FaultFailedError
from chaos.history import Truth, digest, digest_of_values
from chaos.sentinel_deployment import SentinelDeployment
from chaos.windows import ALWAYS, Cut, Span
from copied_postgres import CopiedPostgres
from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedPostgres

__all__ = ["DEPLOYMENTS", "FOREIGN_DATABASE", "Servers", "run_servers"]

_DATABASES = {"a": "chaos_a", "b": "chaos_b"}
FOREIGN_DATABASE = "a"
"""The one that the foreign writer uses, too."""

_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")

# A commit that is not waited for is durable after three rounds of the WAL writer, 200 ms each, at the latest.
_NOT_DURABLE_SECONDS = 1.0

DEPLOYMENTS: dict[str, type[Deployment]] = {
    each.name: each for each in (OneServer, ClusterDeployment, SentinelDeployment)
}
"""What Redis may be: the values of `--redis`."""

# A fault that keeps the server down for less than this puts files back without a recovery.
_PUT_BACK_DOWN_SECONDS = 0.15


@dataclass
class Servers:
    """A PostgreSQL that keeps what it acknowledges, with two databases, and a deployment of Redis."""

    postgres: EmbeddedPostgres
    redis: Deployment
    databases: dict[str, str]
    """The name of each database in histories -> its name in PostgreSQL."""
    _old_backup_of: Span | None = None
    """When the old backup was made."""

    def url(self, name: str) -> str:
        """Return the URL of a database, without a proxy."""
        return self.postgres.url.replace("/postgres?", f"/{self.databases[name]}?", 1)

    @property
    def postgres_socket(self) -> Path:
        """Where PostgreSQL listens."""
        return self.postgres.directory / ".s.PGSQL.5432"

    async def save_old_snapshot(self) -> None:
        """Keep a snapshot of Redis for a later restart, if there is none yet."""
        await asyncio.to_thread(self.redis.save_old_snapshots)

    async def suffer(self, fault: Fault) -> list[Cut]:
        """Make one fault happen to a server, from its beginning to its end.

        Returns:
            What PostgreSQL has lost by it.

        Raises:
            FaultFailedError: It did not come about.
        """
        match fault.kind:
            case "postgres backends terminated":
                await self._terminate_backends()
            case "postgres restarted":
                started = monotonic()
                await asyncio.to_thread(self.postgres.restart)
                return self._restarts((started, monotonic()))
            case "postgres crashed":
                return await self._crash(fault)
            case "postgres restored to an earlier moment":
                return await self._restore(fault)
            case "postgres tables truncated":
                return await self._truncate(fault)
            case _:
                await self.redis.suffer(fault)
                shared, self.redis.shared = self.redis.shared, []
                return [
                    cut
                    for span in shared
                    for cut in self._cuts("a failover", span, span, self.databases, by=None, is_sure=False)
                ]
        return []

    async def truth(self, name: str) -> Truth:
        """Everything that a database has, as LangGraph's own saver reads it; the pending writes of
        checkpoints that were never stored as well, which it does not list."""
        checkpoints: dict[tuple[str, str, str], str] = {}
        pending: dict[tuple[str, str, str, str, str], str] = {}
        said_in: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        async with AsyncPostgresSaver.from_conn_string(self.url(name)) as upstream:
            connection: Any = upstream.conn  # no pool
            threads = await connection.execute("SELECT DISTINCT thread_id FROM checkpoints")
            for row in await threads.fetchall():
                # A thread at a time: all of a long run at once would not fit into memory.
                async for found in upstream.alist({"configurable": {"thread_id": row["thread_id"]}}):
                    where = found.config["configurable"]
                    key = where["thread_id"], where["checkpoint_ns"], where["checkpoint_id"]
                    values = found.checkpoint["channel_values"]
                    checkpoints[key] = digest_of_values(values)
                    said_in[key] |= set(databases_of(values.values()))
            cursor = await connection.execute(
                "SELECT thread_id, checkpoint_ns, checkpoint_id, task_id, channel, type, blob "
                "FROM checkpoint_writes"
            )
            async for row in cursor:
                thread, namespace, checkpoint, task, channel, type_, blob = row.values()
                value = upstream.serde.loads_typed((type_, blob))
                pending[thread, namespace, checkpoint, task, channel] = digest(value)
                said_in[thread, namespace, checkpoint] |= set(databases_of([value]))
        return Truth(checkpoints, pending, said_in)

    async def _crash(self, fault: Fault) -> list[Cut]:
        """An immediate shutdown, after which the next start recovers. Commits that were not waited for, which
        are those of the foreign writer, may be gone."""
        crashed = monotonic()
        os.kill(self.postgres.pid, signal.SIGQUIT)
        await asyncio.sleep(fault.down_seconds)
        await asyncio.to_thread(self.postgres.restart)
        since = crashed - _NOT_DURABLE_SECONDS, crashed
        return self._cuts(
            "a crash", since, (crashed, monotonic()), self.databases, by="foreign", is_sure=False
        )

    async def _restore(self, fault: Fault) -> list[Cut]:
        """Put a copy of the data directory back, as from a backup.

        The copy is made as the fault begins, or it is the one that was made when a fault like this happened
        first. Which, is drawn: it is what `worker` means for this kind of fault. Mostly PostgreSQL recovers
        from it on a new timeline; sometimes the files are just put back, as by a copied volume.
        """
        is_old = fault.worker is None
        backup, since = self.postgres.directory / ("old backup" if is_old else "backup"), self._old_backup_of
        restarts: list[Cut] = []
        if not is_old or since is None:
            started = monotonic()
            await asyncio.to_thread(self.postgres.stop)
            since = started, monotonic()
            await asyncio.to_thread(_copy, self._data, backup)
            await asyncio.to_thread(self.postgres.start)
            restarts = self._restarts((started, monotonic()))
            await asyncio.sleep(fault.seconds)
        if is_old:
            self._old_backup_of = since
        stopped = monotonic()
        await asyncio.to_thread(self.postgres.stop)
        recovers = fault.down_seconds > _PUT_BACK_DOWN_SECONDS
        replaced = await asyncio.to_thread(self._put_back, backup, is_kept=is_old, recovers=recovers)
        await asyncio.to_thread(self.postgres.start)
        await self._promoted()
        cuts = self._cuts("a backup was restored", since, (stopped, monotonic()), self.databases)
        await asyncio.to_thread(shutil.rmtree, replaced)
        return restarts + cuts

    def _put_back(self, backup: Path, *, is_kept: bool, recovers: bool) -> Path:
        """Return where the data is that was replaced."""
        replaced = self._data.rename(self._data.with_name("replaced"))
        if is_kept:
            _copy(backup, self._data)
        else:
            backup.rename(self._data)
        if recovers:
            signal_file = self._data / "recovery.signal"
            signal_file.touch()
            owner = self._data.stat()
            os.chown(signal_file, owner.st_uid, owner.st_gid)
            with (self._data / "postgresql.auto.conf").open("a") as settings:
                # Nothing is archived: PostgreSQL recovers to where the copy ends.
                settings.write("restore_command = 'false'\n")
        return replaced

    async def _promoted(self) -> None:
        """Wait until the recovery is over: PostgreSQL answers reads before that."""
        async with await psycopg.AsyncConnection.connect(self.postgres.url, autocommit=True) as connection:
            while True:
                cursor = await connection.execute("SELECT pg_is_in_recovery()")
                if await cursor.fetchone() == (False,):
                    return
                await asyncio.sleep(0.01)

    async def _truncate(self, fault: Fault) -> list[Cut]:
        """Empty all tables of one database or of both, as when a tenant is reset. Which, is drawn: it is what
        `worker` means for this kind of fault."""
        names = list(self.databases) if fault.worker is None else [FOREIGN_DATABASE]
        cuts = []
        for name in names:
            async with await psycopg.AsyncConnection.connect(self.url(name), autocommit=True) as connection:
                started = monotonic()
                while not await _has_truncated(connection):
                    pass
                cuts += self._cuts("the tables were truncated", ALWAYS, (started, monotonic()), [name])
        return cuts

    def _restarts(self, span: Span) -> list[Cut]:
        """Nothing is lost, but the identity is another one."""
        return self._cuts("a restart", span, span, self.databases, by=None, is_sure=False)

    @staticmethod
    def _cuts(
        what: str,
        since: Span,
        until: Span,
        names: Iterable[str],
        *,
        by: str | None = "",
        is_sure: bool = True,
    ) -> list[Cut]:
        return [Cut(what, name, since, until, by=by, is_sure=is_sure, renews=True) for name in names]

    @property
    def _data(self) -> Path:
        return self.postgres.directory / "data"

    async def _terminate_backends(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.postgres.url, autocommit=True) as connection:
            cursor = await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY(%s)",
                (list(self.databases.values()),),
            )
            if not await cursor.fetchall():
                raise FaultFailedError("nobody was connected")


def _copy(source: Path, target: Path) -> None:
    """Copy a directory with its owners, who may not be this user."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True)


@asynccontextmanager
async def run_servers(*, redis: str = "single", is_watched: bool = True) -> AsyncIterator[Servers]:
    """Start both, and make the tables; at the end they are gone.

    Args:
        redis: One of `DEPLOYMENTS`.
        is_watched: Make the triggers that note what other software writes.
    """
    # Durable: a crash of PostgreSQL must not lose what it acknowledged, that would be its own doing.
    postgres, deployment = CopiedPostgres(durable=True), DEPLOYMENTS[redis]()
    try:
        await asyncio.gather(asyncio.to_thread(postgres.start), asyncio.to_thread(deployment.start))
        for database in _DATABASES.values():
            url = await asyncio.to_thread(postgres.create_database, database)
            saver = await CachedPostgresSaver.create(
                url, deployment.url(), foreign_writes="watch" if is_watched else "ignore"
            )
            await saver.close()
        yield Servers(postgres, deployment, _DATABASES)
    finally:
        await asyncio.to_thread(deployment.close)
        await asyncio.to_thread(postgres.close)


async def _has_truncated(connection: psycopg.AsyncConnection) -> bool:
    """Whether this was not the one that PostgreSQL ended, of two that wait for each other's locks."""
    try:
        await connection.execute(f"TRUNCATE {', '.join(_TABLES)}")
    except psycopg.errors.DeadlockDetected:
        return False
    return True
