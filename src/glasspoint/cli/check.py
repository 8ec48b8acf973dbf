"""`glasspoint check`: can a production deployment remember a conversation?

It runs eight checks, in the order in which things break:

1. PostgreSQL can be reached, and is no standby.
2. PostgreSQL has connections for another process. This is only a warning.
3. Redis can be reached, and can be the cache.
4. Redis does not evict keys. This is only a warning, because a cache may lose entries.
5. The checkpoint tables are there, and up to date.
6. The cache knows which database it belongs to.
7. A conversation of two turns remembers a name, and finds it in the cache. Each turn has a saver of its own.
   The scratch conversation is removed again, also if its check fails.
8. No thread of an outage waits in Redis, or was set aside.

The checks create no table: a missing one is a finding. A cache that is new, and the only one, gets its row in
`glasspoint_caches`, as from any saver. A cache that a service uses with another Redis stays as it is, and a
mistyped key prefix makes no new cache.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import unquote, unquote_plus
from uuid import uuid4

import psycopg
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from langgraph.graph import START, MessagesState, StateGraph
from prometheus_client import CollectorRegistry
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row
from redis.asyncio import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from glasspoint import CachedPostgresSaver, RedisSaver
from glasspoint.cli.parts import connect_once, opened_redis
from glasspoint.cli.redis_servers import REDIS_SECONDS, Look, look_at, name_of_server, reasons, some
from glasspoint.coherence.attached import why_not_to_attach
from glasspoint.errors import GlasspointError, RedisRefusedError, RedisUnavailableError
from glasspoint.l1.cluster import servers_of, topology_of
from glasspoint.l1.epoch import root_of
from glasspoint.l2.hosts import count_hosts
from glasspoint.l2.pool import postgres_conninfo
from glasspoint.l2.schema import GRANTS, triggers_stand
from glasspoint.l2.schema_statements import OWN_TABLES
from glasspoint.l2.sql import query
from glasspoint.l2.target import Target
from glasspoint.model.option_types import POOL_MAX_SIZE
from glasspoint.model.scope import key_part
from glasspoint.model.urls import address_text, without_secret
from glasspoint.redis.client import database_of, eviction_of
from glasspoint.redis.faults import remedy
from glasspoint.redis.sentinels import SentinelPool
from glasspoint.redis.timeouts import answered_within
from glasspoint.redis.topology import SLOTS, name_of, owner_of, slot_of
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import DURABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis

    from glasspoint.cli.redis_servers import Server
    from glasspoint.model.sync_methods import Opening
    from glasspoint.redis.sentinels import Sentinels
    from glasspoint.telemetry.events import SaverStatus

__all__ = ["Finding", "Status", "run_checks", "say"]

Status = Literal["ok", "warning", "failed", "skipped"]

_TABLES = {"checkpoints": "checkpoints", "checkpoint_blobs": "values", "checkpoint_writes": "pending writes"}
_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
_READ_ONLY_TABLES = ("checkpoint_migrations", "glasspoint_identity")
_SET_UP = "Run `glasspoint setup` (or `await saver.setup()`) once, with the owner of the tables"
_COUNT_EXACTLY_BELOW_ROWS = 1_000_000
_REMOVAL_SECONDS = 10.0
_POLL_SECONDS = 0.05
_SCANS = 50
_LEAST_SECONDS = 0.1
_ROOM = query("room_for_connections")
_SET_ASIDE = query("set_aside_and_there")
_MISSING_TABLES = query("missing_tables")
_WITHOUT_RIGHTS = query("tables_without_rights")
_NEWEST_MIGRATION = query("newest_migration")
_ESTIMATE = query("estimate_rows")
_COUNT = query("count_rows")
_NAME = "철수"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: The name of the check.
        status: `ok`; `warning`: it works, but something should be changed; `failed`; or `skipped` because of
            an earlier failure.
        detail: What was found, or what to do about it. Never holds a password.
        seconds: The duration of the check.
    """

    name: str
    status: Status
    detail: str
    seconds: float


class _Failed(Exception):
    """A check found a fault; the text says which, and what to do."""


class _Warned(Exception):
    """A check found something that works but should be changed; the text says what, and what to do."""


class _Skipped(Exception):
    """A check could not be run; the text says why."""


async def run_checks(
    postgres_url: str,
    redis_url: str,
    *,
    key_prefix: str = "glasspoint",
    saver_options: Mapping[str, Any] | None = None,
    fallbacks: Sequence[str] = ("redis", "memory"),
    redis_timeout_seconds: float = 2.0,
    timeout_seconds: float,
) -> AsyncIterator[Finding]:
    """Run all checks, one after the other, and yield their findings. A failed one does not stop the others.

    Args:
        postgres_url: PostgreSQL, in any form that the saver takes; empty if it is not configured.
        redis_url: Redis; empty if it is not configured.
        key_prefix: The beginning of the service's keys in Redis.
        saver_options: Further options of the service's saver: see `savers.options.trial_options`.
        fallbacks: The tiers that the service falls back on. Without `redis` among them, Redis may evict, and
            its user needs only the rights of the cache.
        redis_timeout_seconds: How long a step of the tier `redis` may take.
        timeout_seconds: How long one check may take, so that a server that never answers fails its check.
    """
    checks = _Checks(
        postgres_url,
        redis_url,
        key_prefix,
        saver_options or {},
        has_tier="redis" in fallbacks,
        tier_seconds=redis_timeout_seconds,
    )
    probes: tuple[tuple[str, Callable[[], Awaitable[str]]], ...] = (
        ("PostgreSQL", checks.postgres),
        ("Connections", checks.connections),
        ("Redis", checks.redis),
        ("Eviction", checks.eviction),
        ("Tables", checks.tables),
        ("Identity", checks.identity),
        ("Conversation", checks.conversation),
        ("Outage", checks.outage),
    )
    for name, probe in probes:
        yield await _find(name, probe, checks.secrets, timeout_seconds)


async def _find(
    name: str, probe: Callable[[], Awaitable[str]], secrets: Sequence[str], timeout_seconds: float
) -> Finding:
    started = perf_counter()
    status: Status = "failed"
    try:
        async with asyncio.timeout(timeout_seconds) as limit:
            detail = await probe()
        status = "ok"
    except TimeoutError as error:
        silent = "a server did not answer in time: see the checks above"
        if limit.expired():
            silent = f"not done within {timeout_seconds:g} s: somebody on the way is silent"
        detail = str(error) or silent
    except _Skipped as reason:
        status, detail = "skipped", str(reason)
    except _Warned as reason:
        status, detail = "warning", str(reason)
    except (_Failed, GlasspointError, psycopg.Error, OSError) as error:
        detail = str(error) or type(error).__name__
    except (RedisError, RedisClusterException) as error:
        detail = f"{_sentence(error)} {remedy(error)}"
    if status == "failed":
        # Drivers and servers may quote passwords in their errors. Other findings are our own text: it needs
        # no masking, which would also hide the database's name if that equals the password.
        for secret in secrets:
            detail = without_secret(detail, secret)
    return Finding(name, status, " ".join(detail.split()), perf_counter() - started)


class _Checks:
    """The checks, and the facts that later ones need from earlier ones."""

    def __init__(
        self,
        postgres_url: str,
        redis_url: str,
        key_prefix: str,
        saver_options: Mapping[str, Any],
        *,
        has_tier: bool,
        tier_seconds: float,
    ) -> None:
        self._postgres_url = postgres_url
        self._redis_url = redis_url
        self._key_prefix = key_prefix
        self._saver_options = saver_options
        self._has_tier = has_tier
        self._tier_seconds = tier_seconds
        self._has_opened = False
        self._obstacle = "PostgreSQL was not reached"
        self._has_redis = False
        self._no_redis = "Redis was not reached, or cannot be the cache"
        self._look_found = Look(())
        self._room: tuple[Any, ...] | psycopg.Error | None = None
        self.secrets = sorted({*_passwords(postgres_url), *_passwords(redis_url)}, key=len, reverse=True)

    async def postgres(self) -> str:
        """Check that PostgreSQL answers; return its version and address."""
        if not self._postgres_url:
            raise _Failed("not configured: set POSTGRES_URL, or pass --postgres-url.")
        try:
            connection = await self._connect()
        except psycopg.OperationalError as error:
            raise _Failed(f"{_sentence(error)} Check POSTGRES_URL, and that the server is up.") from error
        async with connection:
            await connection.execute("SELECT 1")
            info = connection.info
            # Here, because a connection that was closed a moment ago may still be counted.
            self._room = await _count_connections(connection)
            version = (info.parameter_status("server_version") or "?").split()[0]
            self._obstacle = "the tables were not found, or may not be used"
            hosts = count_hosts(conninfo_to_dict(postgres_conninfo(self._postgres_url)))
            place = address_text(info.host, info.port) + (f" (one of {hosts} hosts)" if hosts > 1 else "")
            place += f", database {info.dbname}, user {info.user}"
            return f"version {version} at {place}"

    async def connections(self) -> str:
        """Check that PostgreSQL has connections for another process of the service; return the arithmetic.

        How many processes there are is not known: only how many connections are open now, and how many a
        process may have.
        """
        if not self._room:
            raise _Skipped("PostgreSQL was not reached")
        if isinstance(self._room, psycopg.Error):
            raise _Warned(f"not known: {_sentence(self._room)}") from self._room
        is_direct, role, *counts = self._room
        pool_size = self._saver_options.get("pool_max_size", POOL_MAX_SIZE)
        return _room_said(role, *counts, pool_size=pool_size, is_direct=is_direct)

    async def redis(self) -> str:
        """Check that Redis answers and can be the cache; return its version and address."""
        if not self._redis_url:
            raise _Failed("not configured: set REDIS_URL, or pass --redis-url.")
        async with self._look() as look:
            self._look_found = look
            self._has_redis = any(each.is_well for each in look.servers)
            if look.is_cluster:
                return self._of_cluster(look)
            [server] = look.servers
            if not server.is_well:
                raise _Failed(_refused(server))
            found = f"{server.version} at {server.name}, database {database_of(server.redis)}"
            pool = server.redis.connection_pool
            if isinstance(pool, SentinelPool):
                return await _through_sentinels(pool.sentinel_manager, found)
            return found

    def _of_cluster(self, look: Look) -> str:
        """Return what was found in a cluster: each master, and each node that the URL names."""
        if look.why_down:
            self._no_redis = "the Redis Cluster is down"
            raise _Failed(look.why_down)
        warnings = look.silent_nodes
        if look.unserved_slots:
            warnings.append(
                f"{look.unserved_slots} of {SLOTS} slots have no master: PostgreSQL answers for their "
                "threads (redis-cli --cluster fix gives them one)"
            )
        if look.moves:
            warnings.append(look.moves)
        well = [each for each in look.servers if each.is_well]
        if look.away:
            lost = " ".join(f"The shard {_refused(each)}" for each in look.away)
            counted = f"{lost} {len(well)} of {len(look.servers)} masters can be the cache"
            if not look.has_majority:
                counted += ", and none as soon as the cluster notices that it has lost its majority"
            raise _Failed("; ".join([counted, *warnings]) + ".")
        said = ", ".join(f"{each.name} ({each.version})" for each in well)
        said = f"a Redis Cluster of {len(well)} masters: {said}"
        if warnings:
            raise _Warned("; ".join([said, *warnings]))
        return said

    @asynccontextmanager
    async def _look(self) -> AsyncIterator[Look]:
        """Look at all servers of Redis. No server is waited for longer than two seconds."""
        began = monotonic()
        async with self._open_redis() as redis:
            left = max(_LEAST_SECONDS, REDIS_SECONDS - (monotonic() - began))  # see `detection`
            try:
                async with look_at(redis, key_prefix=self._key_prefix, seconds=left) as look:
                    if not look.servers:
                        raise _Failed("no master of the Redis Cluster owns a slot.")
                    yield look
            except (TimeoutError, RedisError, OSError) as error:
                if not isinstance(redis, RedisCluster):
                    raise
                said = "no node of the Redis Cluster that REDIS_URL names answers"
                if isinstance(error, TimeoutError):
                    said += f" within {REDIS_SECONDS:g} s."
                else:
                    said += f". The last error: {_sentence(error)}"
                raise _Failed(f"{said} Check REDIS_URL, and that the cluster is up.") from error

    async def eviction(self) -> str:
        """Check that Redis does not evict keys, which the fallback chain's tier `redis` cannot afford."""
        if not self._has_redis:
            raise _Skipped(self._no_redis)
        servers = self._look_found.servers
        policies = [eviction_of(each.info) for each in servers]
        silent = [each for each in servers if "used_memory" not in each.info]
        policy = next(filter(None, policies), None)
        if policy is None:
            if silent:
                named = some(f"{each.name} {each.why or 'refuses INFO'}" for each in silent)
                raise _Warned(f"not known for all servers: {named}")
            return "Redis evicts no key before it expires"
        if not self._has_tier:
            return (
                f"Redis may evict keys ({policy}), and the cache loses nothing by that; "
                "CHECKPOINT_FALLBACKS leaves the tier redis out"
            )
        raise _Warned(
            f"Redis may evict keys ({policy}). The cache loses nothing by that, but the tier redis of the "
            "fallback chain loses conversations: use maxmemory-policy noeviction, or leave redis out of "
            "CHECKPOINT_FALLBACKS."
        )

    async def tables(self) -> str:
        """Check that the tables are there and new enough for the installed LangGraph; return row counts."""
        if self._obstacle.startswith("PostgreSQL"):
            raise _Skipped(self._obstacle)
        async with await self._connect() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            wanted = [*_TABLES, "checkpoint_migrations", *OWN_TABLES]
            await cursor.execute(_MISSING_TABLES, {"tables": wanted})
            if missing := [row[0] for row in await cursor.fetchall()]:
                raise _Failed(f"missing: {', '.join(missing)}. {_SET_UP}, to create them.")
            await self._check_rights(cursor, wanted)
            await cursor.execute(_NEWEST_MIGRATION)
            row = await cursor.fetchone()
            newest = len(BasePostgresSaver.MIGRATIONS) - 1
            if row is None or row[0] < newest:
                raise _Failed(
                    f"older than the installed langgraph-checkpoint-postgres wants them (migration"
                    f" {row and row[0]} of {newest}). {_SET_UP}, to migrate them."
                )
            self._obstacle = ""
            return ", ".join([f"{await _count(cursor, table)} {rows}" for table, rows in _TABLES.items()])

    async def _check_rights(
        self, cursor: psycopg.AsyncCursor[tuple[object, ...]], tables: Sequence[str]
    ) -> None:
        """Check that this role has all rights that a service needs on the tables."""
        needed = [
            (table, right)
            for table in tables
            for right in (["SELECT"] if table in _READ_ONLY_TABLES else _RIGHTS.split(", "))
        ]
        await cursor.execute(
            _WITHOUT_RIGHTS,
            {"tables": [table for table, _ in needed], "rights": [right for _, right in needed]},
        )
        if refused := [str(row[0]) for row in await cursor.fetchall()]:
            raise _Failed(f"this role lacks rights on {', '.join(refused)}. It needs: {GRANTS}.")

    async def identity(self) -> str:
        """Check that the cache knows its database, and notices the writes of other software."""
        if self._obstacle or not self._has_redis:
            raise _Skipped(self._obstacle or self._no_redis)
        async with (
            await self._connect() as connection,
            self._open_redis() as redis,
        ):
            has_triggers = await triggers_stand(cast("Any", connection))
            why_not = await why_not_to_attach(connection, redis, key_prefix=self._key_prefix)
        if why_not:
            self._obstacle = "this command must not use the cache"
            raise _Failed(why_not)
        async with self._saver() as saver:
            status = saver.status
            await _until_identified(status)
        if status.identity is None:
            why = status.no_identity_because or "It has no identity of this database. See the service's log."
            raise _Failed(f"L1 (Redis) is not used. {why}")
        others = await self._other_databases(status.identity)
        said, warnings = [status.identity], []
        if has_triggers:
            said.append("other software's writes are noted")
        elif self._saver_options.get("foreign_writes") == "ignore":
            said.append("other software's writes are not noted, as CHECKPOINT_FOREIGN_WRITES wants it")
        else:
            warnings.append(f"other software's writes are NOT noted ({_SET_UP})")
        if status.withheld:
            said.append(f"PostgreSQL withholds: {', '.join(status.withheld)}")
        if status.synchronous_commit not in DURABLE:
            warnings.append(
                f"synchronous_commit is {status.synchronous_commit}: a crash can lose acknowledged writes "
                "(ALTER ROLE ... SET synchronous_commit = on)"
            )
        if status.has_unbounded_statements:
            seconds = self._saver_options.get("write_deadline_seconds", 10.0)
            warnings.append(
                "statement_timeout is 0, or longer than the write's deadline: a late statement can go "
                f"unnoticed (ALTER ROLE ... SET statement_timeout = '{seconds:g}s')"
            )
        if others:
            said.append(f"{others} other database(s) share this Redis and prefix, which is fine")
        if warnings:
            raise _Warned("; ".join([*said, *warnings]))
        return "; ".join(said)

    async def _other_databases(self, identity: str) -> int:
        """Count other databases that have entries of this prefix in Redis, among its first keys."""
        own, found = identity.partition(".")[0], set[str]()
        root = root_of(self._key_prefix)
        async with self._open_redis() as redis, servers_of(redis, key_prefix=self._key_prefix) as servers:
            # Of a cluster, any master that is well: entries of each database are on all.
            well = {each.name for each in self._look_found.servers if each.is_well}
            server = next((each for each, _ in servers if name_of_server(each) in well), servers[0][0])
            cursor = 0
            for _ in range(_SCANS):
                with answered_within(REDIS_SECONDS):
                    cursor, keys = await server.scan(cursor, match=f"{root}*", count=1000)
                for key in cast("list[bytes]", keys):
                    _, _, name = key.decode(errors="replace").removeprefix(root).partition(":")
                    found.add(name.partition(".")[0])
                if not cursor:
                    break
        return len(found - {own, "", "probe"})

    async def conversation(self) -> str:
        """Check that the second of two turns, each in its own saver, remembers a name from the first."""
        if self._obstacle:
            raise _Skipped(self._obstacle)
        thread_id = f"glasspoint-check-{uuid4()}"
        try:
            await self._say(thread_id, f"내 이름은 {_NAME}야")
            answer, l1_results = await self._say(thread_id, "내 이름이 뭐라고 했지?")
        finally:
            if self._has_opened:
                await self._remove(thread_id)
        where = await self._place_of(thread_id)
        if _NAME not in answer:
            raise _Failed(f"the second turn has forgotten the name; it said: {answer}")
        if "hit" not in l1_results:
            found = ", ".join(l1_results) or "no read at all"
            raise _Failed(
                f"the name was remembered, but by PostgreSQL alone: L1 (Redis{where}) answered {found}."
            )
        found = ", ".join(l1_results)
        return f"two turns, the name was remembered, and found in L1 ({found}{where}); removed again"

    async def _place_of(self, thread_id: str) -> str:
        """Return which master of a cluster has the slot of a thread; `""` if Redis is no cluster."""
        slot = slot_of(key_part(thread_id))
        async with self._open_redis() as redis:
            if not isinstance(redis, RedisCluster):
                return ""
            try:
                async with topology_of(redis, key_prefix=self._key_prefix) as (_, view):
                    master = owner_of(slot, view.masters)
                owner = "no master" if master is None else name_of(master.address)
                why = next((each.why for each in self._look_found.away if each.name == owner), "")
                owner += f", which {why}" if why else ""
            except (RedisError, OSError, TimeoutError, GlasspointError):
                owner = "a master that is not known"
        return f"; the slot {slot} of the scratch thread is on {owner}"

    async def outage(self) -> str:
        """Check that no thread of an outage waits in Redis, and that none was set aside."""
        if not self._has_redis or not self._postgres_url:
            raise _Skipped(self._no_redis if self._postgres_url else self._obstacle)
        target = Target.of(self._postgres_url, schema=self._saver_options.get("schema"))
        waiting, unknown = await self._waiting(target)
        aside = []
        if not self._obstacle:
            async with (
                await self._connect() as connection,
                connection.cursor(row_factory=tuple_row) as cursor,
            ):
                await cursor.execute(_SET_ASIDE)
                aside = [str(thread_id) for (thread_id,) in await cursor.fetchall()]
        said = []
        if waiting:
            said.append(
                f"{len(waiting)} thread(s) wait in Redis, and are not in PostgreSQL: {_some(waiting)}. The "
                "next process that starts drains them; what cannot be drained is named in its log"
            )
        if aside:
            said.append(f"{len(aside)} thread(s) were set aside beside their conversations: {_some(aside)}")
        if said:
            raise _Warned("; ".join([*said, *([unknown] if unknown else [])]))
        if self._obstacle:
            raise _Skipped(f"{self._obstacle}; {unknown or 'no thread waits in Redis'}")
        if unknown:
            return f"none was set aside; {unknown}"
        return f"no thread of {target.name} waits in Redis, and none was set aside"

    async def _waiting(self, target: Target) -> tuple[list[str], str]:
        """Return the threads that wait in the tier `redis`, and why they are not known.

        Raises:
            RedisRefusedError: The service uses this tier, and the user lacks a right for it.
        """
        lost = [each for each in self._look_found.servers if each.is_silent or each.is_down]
        if lost and self._has_tier:
            raise _Warned(
                f"whether threads wait in Redis is not known, because that needs each master: {reasons(lost)}"
            )
        telemetry = create_telemetry(registry=CollectorRegistry())
        async with (
            self._open_redis() as redis,
            # `create` would begin the tier's lists of threads.
            RedisSaver(
                redis,
                key_prefix=self._key_prefix,
                target=target,
                timeout_seconds=self._tier_seconds,
                telemetry=telemetry,
            ) as tier,
        ):
            try:
                if self._has_tier:
                    await tier.check_rights()
                return [thread_id async for thread_id in tier.thread_ids(only_reads=True)], ""
            except RedisUnavailableError as error:
                raise _Warned(f"whether threads wait in Redis is not known: {error}") from error
            except RedisRefusedError:
                if self._has_tier:
                    raise
                return [], (
                    "Redis was not asked whether threads of an outage wait there: this user has the rights "
                    "of the cache alone, and CHECKPOINT_FALLBACKS leaves the tier redis out"
                )

    async def _say(self, thread_id: str, text: str) -> tuple[str, list[str]]:
        """Run one turn; return its answer, and L1's results of its reads."""
        registry = CollectorRegistry()
        async with self._saver(registry) as saver:
            self._has_opened = True
            answer = await say(saver, thread_id, text)
        results = [
            sample.labels["result"]
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "glasspoint_l1_reads_total" and sample.value
        ]
        return answer, results

    async def _remove(self, thread_id: str) -> None:
        try:
            async with asyncio.timeout(_REMOVAL_SECONDS):
                async with self._saver() as saver:
                    await saver.adelete_thread(thread_id)
        except (GlasspointError, RedisError, psycopg.Error, OSError) as error:
            raise _Failed(
                f"the scratch thread {thread_id} may still be there, it could not be removed: {error}"
            ) from error

    def _saver(self, registry: CollectorRegistry | None = None) -> Opening[CachedPostgresSaver]:
        """Open a saver as the service does; it reports to the registry, or else to a new one."""
        return CachedPostgresSaver.from_conn_string(
            self._postgres_url,
            redis_url=self._redis_url,
            key_prefix=self._key_prefix,
            **self._saver_options,
            telemetry=create_telemetry(registry=registry or CollectorRegistry()),
        )

    def _open_redis(self) -> AbstractAsyncContextManager[Redis | RedisCluster]:
        return opened_redis(self._redis_url, self._saver_options, timeout_seconds=REDIS_SECONDS)

    async def _connect(self) -> psycopg.AsyncConnection:
        return await connect_once(self._postgres_url, self._saver_options, primary=True)


def _room_said(
    role: str,
    allowed: int,
    opened: int,
    named: int,
    role_limit: int,
    opened_by_role: int,
    database_limit: int,
    opened_to_database: int,
    *,
    pool_size: int,
    is_direct: bool,
) -> str:
    """Say for how many more processes there are connections. Raise `_Warned` if there are none for another.

    Args:
        role: The name of the role.
        allowed, opened, named: See the statement.
        role_limit, opened_by_role: The CONNECTION LIMIT of the role; -1: none.
        database_limit, opened_to_database: The CONNECTION LIMIT of the database; -1: none.
        pool_size: The most connections of a process.
        is_direct: Whether no pooler is in between.
    """
    limits = [("the server allows this role", allowed, opened)]
    if role_limit >= 0:
        limits.append((f"the CONNECTION LIMIT of the role {role} is", role_limit, opened_by_role))
    if database_limit >= 0:
        limits.append(("the CONNECTION LIMIT of the database is", database_limit, opened_to_database))
    says, most, used = min(limits, key=lambda limit: limit[1] - limit[2])
    counted = f"{says} {most}, {used} in use" + (f" ({named} of them by Glasspoint)" if named else "")
    if not is_direct:
        return (
            "a pooler is in between: its settings say how many clients it takes, and how many connections it "
            f"makes to the server (PgBouncer: max_client_conn, default_pool_size). Of the latter, {counted}"
        )
    room = max(0, most - used) // pool_size
    said = f"{pool_size} connections a process; {counted}: "
    if room and most >= 2 * pool_size:
        return f"{said}room for {room} more process{'es' if room > 1 else ''}"
    raise _Warned(
        f"{said}{'no second process fits' if room else 'no further process fits'}, if each uses all of its "
        "connections. Use a smaller CHECKPOINT_POOL_MAX_SIZE, raise max_connections or the CONNECTION LIMIT, "
        "or put PgBouncer in between."
    )


async def say(saver: CachedPostgresSaver, thread_id: str, text: str) -> str:
    """Run one turn of a conversation, and return the answer: all that the user has said so far.

    The graph has no memory of its own. So if the answer holds the text of an earlier turn, the saver has
    brought it back.
    """

    async def answer(state: MessagesState) -> dict[str, list[tuple[str, str]]]:
        said = [str(message.text) for message in state["messages"] if message.type == "human"]
        return {"messages": [("ai", " ".join(said))]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    graph = builder.add_edge(START, "answer").compile(checkpointer=saver)
    given: Any = {"messages": [("user", text)]}
    state = await graph.ainvoke(given, {"configurable": {"thread_id": thread_id}})
    return str(state["messages"][-1].text)


async def _count_connections(connection: psycopg.AsyncConnection[Any]) -> tuple[Any, ...] | psycopg.Error:
    """Return the row of `room_for_connections`, or the error of the server."""
    try:
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_ROOM, {"pid": connection.info.backend_pid})
            row = await cursor.fetchone()
    except psycopg.Error as error:
        return error
    return row or ()


async def _count(cursor: psycopg.AsyncCursor[tuple[object, ...]], table: str) -> str:
    """Return the number of a table's rows: an estimate for a large table, which would take long to count."""
    await cursor.execute(_ESTIMATE, {"table": table})
    row = await cursor.fetchone()
    estimate = int(str(row[0])) if row else 0
    if estimate >= _COUNT_EXACTLY_BELOW_ROWS:
        return f"about {estimate:,}"
    await cursor.execute(sql.SQL(_COUNT).format(table=sql.Identifier(table)))
    row = await cursor.fetchone()
    return f"{int(str(row[0])) if row else 0:,}"


def _some(thread_ids: Iterable[str]) -> str:
    """Return the first few of these thread ids as text."""
    return some(map(repr, sorted(thread_ids)))


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if text.endswith((".", "?")) else f"{text}."


def _refused(server: Server) -> str:
    """Return why a server cannot be the cache, and what to do, as sentences."""
    if server.is_explained or server.error is None:
        return f"{server.name} {server.why}. {server.advice}"
    said = f"{_sentence(server.error)} {server.advice}" if server.advice else str(server.error)
    return said if server.tag is None else f"{server.name}: {said}"


async def _until_identified(status: SaverStatus) -> None:
    """Wait for the sweeps of a saver to find the identity, which may take longer with a silent master."""
    for _ in range(int(REDIS_SECONDS / _POLL_SECONDS)):
        if status.identity is not None or status.no_identity_because:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _through_sentinels(sentinels: Sentinels, found: str) -> str:
    """Return what was found, and how the sentinels led there.

    Raises:
        _Warned: Not all of them did.
    """
    agree, others = await sentinels.survey()
    number = agree + len(others)
    found += f"; the master of {sentinels.service!r} now: {agree} of {number} sentinel(s) name it"
    if others:
        raise _Warned(f"{found}. {'; '.join(others)}")
    return found


def _passwords(url: str) -> set[str]:
    """Return all spellings of the passwords in a URL or a connection string, to mask them in messages."""
    found: set[str] = set()
    if "://" in url:
        # Without a parser, because parsers misread a password that holds an unencoded `/` or `@`.
        raw = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
        found |= {raw, unquote(raw), *raw.replace("@", "/").replace("?", "/").replace("#", "/").split("/")}
        for option in url.partition("?")[2].split("&"):
            name, _, value = option.partition("=")
            if "password" in name:
                found |= {value, unquote_plus(value)}
    with suppress(ValueError, psycopg.Error):
        found.add(str(conninfo_to_dict(postgres_conninfo(url)).get("password") or ""))
    return found - {""}
