"""Runs the atomic steps: each is one script, in one round trip, on all keys of one thread.

Every failure of Redis becomes an error of `glasspoint.errors` here. A script is done completely or not at
all, so a caller that is cancelled or runs out of time leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import suppress
from functools import cache, partial
from importlib import resources
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterCrossSlotError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from glasspoint.errors import (
    GlasspointError,
    RedisRefusedError,
    RedisUnavailableError,
    ThreadDamagedError,
    ThreadMovedError,
)
from glasspoint.history.permissions import NEEDS, NEEDS_IN_CLUSTER
from glasspoint.redis.client import look_after_refusal, look_again, master_of
from glasspoint.redis.faults import (
    is_a_refused_command,
    is_a_refused_database,
    is_a_refused_key,
    redirection_of,
)
from glasspoint.redis.limiter import Limiter, connections_of, when_connected
from glasspoint.redis.masters import Masters, OneServer
from glasspoint.redis.permissions import ask_for_rights
from glasspoint.redis.sentinels import SentinelsRefuseError, UnknownServiceError
from glasspoint.redis.timeouts import answered_within
from glasspoint.redis.tls import named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from glasspoint.model.generics import ResultT
    from glasspoint.model.scope import Scope
    from glasspoint.redis.topology import Topology
    from glasspoint.telemetry.events import Telemetry

__all__ = ["AGAIN", "EXISTS", "READING", "Steps"]

AGAIN, EXISTS = 4, 5
"""Results of a step other than 0 (done): the thread has changed; the thread exists already."""

_SEALED, _MOVED, _DAMAGED = 1, 2, 3

READING = frozenset({
    *("ancestors", "holds", "load", "metadata", "namespaces", "outline", "page", "read", "runs", "strays"),
    "threads",
})  # fmt: skip
"""The steps that store and remove nothing of a thread. At most, a thread lives for longer after one of them,
or there is an empty list of threads. All others write."""

_SCAN_COUNT = 1000

# How many lists of threads are read or marked in one trip: in a cluster, there may be one for each slot.
_LISTS_A_TRIP = 512

# The most connections in use at once; other steps wait for a slot.
_CONNECTIONS = 32

# The words with which Redis begins an error. If a script failed, they come later in the text. For some of
# them, redis-py removes the word and raises a class of its own.
_CODES = re.compile(r"\b(OOM|READONLY|MISCONF|NOREPLICAS|NOAUTH|CLUSTERDOWN|BUSY|LOADING|MASTERDOWN)\b")
_CLASSES: dict[type[BaseException], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    ClusterCrossSlotError: "CROSSSLOT",
}
_PASSING = {"CLUSTERDOWN", "BUSY", "LOADING", "MASTERDOWN"}
_REASONS = {
    "OOM": "it has no memory left: raise its maxmemory, prune threads or shorten the ttl",
    "READONLY": "it is a read-only replica: connect to the primary",
    "MISCONF": "it cannot save to its disk: see its log",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write asks for",
    "NOAUTH": "it asks for a password",
    "CROSSSLOT": "it has the slots of a Redis Cluster: use redis+cluster://host:port, or a RedisCluster",
}

# redis-py replaces the error of a demoted master by the second text.
_READONLY = re.compile(r"\bREADONLY\b|read only replica|previous master is now a slave")

# Its replicas have left it, perhaps because one of them was promoted.
_FORMER = re.compile(rf"{_READONLY.pattern}|\bNOREPLICAS\b")

# The part of a step's timeout in which it is tried again during a failover, if the master refuses.
_LOOKING = 0.75

_TOO_LARGE = (
    "a value is larger than the proto-max-bulk-len of the server, 512 MB by default: keep it outside of the "
    "state, or raise that setting"
)

# The largest value that Redis takes by default.
_BULK_BYTES = 512 * 2**20

# The smallest limit that can be configured for it.
_LEAST_BULK_BYTES = 2**20

# How Redis 7 names a command that a user may not run.
_COMMAND = re.compile(r"to run the '([\w|]+)' command")

_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)


class Steps:
    """Runs the scripts of `scripts/` on a Redis or a Redis Cluster."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        telemetry: Telemetry,
        *,
        key_prefix: str,
        timeout_seconds: float,
        when_done: Callable[[], object] = lambda: None,
    ) -> None:
        """Take the Redis that runs the scripts.

        Args:
            redis: A client with `decode_responses=False`; not closed here.
            telemetry: Receives an event for every step.
            key_prefix: The first part of every key, for the errors that name missing rights.
            timeout_seconds: How long one step may take from the moment it has a slot: see `Turns`.
            when_done: Called after each step that Redis has done.
        """
        self._key_prefix = key_prefix
        self._redis: Any = redis
        self._servers: OneServer | Masters = (
            Masters(
                redis,
                timeout_seconds=timeout_seconds,
                name_rights=partial(ask_for_rights, key_prefix=key_prefix, needs=NEEDS_IN_CLUSTER, tag=""),
            )
            if isinstance(redis, RedisCluster)
            else OneServer(redis)
        )
        self._telemetry = telemetry
        self._timeout = timeout_seconds
        self._limiter = Limiter(connections_of(redis, most=_CONNECTIONS), timeout_seconds=timeout_seconds)
        self._sent: set[str] = set()
        """The scripts whose text was sent, so that their hash is enough."""
        self._when_done = when_done
        self.is_doubted = False
        """Whether another server may have taken over since `reign` was asked for."""
        self.version = ""
        """The version of Redis, in a cluster of one node, when `reign` was asked for; `""`: not told."""

    async def run(
        self, step: str, scope: Scope | None, keys: Sequence[str], *args: bytes | str | int
    ) -> list[Any]:
        """Run one script.

        Args:
            step: The name of the script.
            scope: The scope that the keys belong to, `None` if they belong to no thread.
            keys: The thread's keys: see `Keyspace`.
            args: The script's ARGV.

        Returns:
            The script's result without the leading 0; or a list that holds only `AGAIN` or `EXISTS`.

        Raises:
            ThreadMovedError: The thread is sealed or has moved.
            ThreadDamagedError: Redis has evicted a part of the thread.
            RedisRefusedError, RedisUnavailableError: See these classes.
        """
        with self._telemetry.step(f"redis.{step}", scope):
            try:
                writes = step not in READING
                status, *result = await self._in_slot(self._evalsha, step, keys, args, writes=writes)
            except RedisUnavailableError as exc:
                self.is_doubted = True
                # If a value was too large, Redis's error may be lost with the connection.
                largest = max((len(each) for each in args if isinstance(each, bytes)), default=0)
                is_broken = type(exc.__cause__) in (ConnectionError, ConnectionResetError, BrokenPipeError)
                if is_broken and largest >= _LEAST_BULK_BYTES and largest > await self._bulk_bytes():
                    raise RedisRefusedError(
                        f"Redis broke the connection off: {_TOO_LARGE}."
                    ) from exc.__cause__
                raise
            if status == _SEALED:
                raise ThreadMovedError(
                    "This thread is being drained into another store: ask again in a moment.", moved=False
                )
            if status == _MOVED:
                raise ThreadMovedError(
                    "This thread stands in another store now, which this process does not reach: ask "
                    "again in a minute.",
                    moved=True,
                    moved_to=result[0].decode() or None if result else None,
                )
            if status == _DAMAGED:
                raise ThreadDamagedError(
                    f"Redis has evicted a part of {self._named(scope)}, or all of it, so that nothing of it "
                    "can be believed: delete the thread, and give Redis the maxmemory-policy noeviction."
                )
        self._when_done()
        return [status] if status in (AGAIN, EXISTS) else result

    def _named(self, scope: Scope | None) -> str:
        """Return the name of a thread for an error: the caller of a listing does not know which it reads."""
        shown = self._telemetry.show_thread(scope.thread_id) if scope is not None else None
        return "this thread" if shown is None else f"the thread {shown!r}"

    async def ping(self) -> None:
        """Check that Redis responds, in a cluster that each master does.

        Raises:
            RedisUnavailableError: It does not respond.
            RedisRefusedError: It refuses this user.
        """
        try:
            with answered_within(self._timeout):
                await when_connected(self._servers.ping)
        except _FAILURES as exc:
            raise self._failure(exc) from exc

    async def find_servers(self) -> None:
        """Find the masters of a cluster; do nothing if Redis is one server.

        Raises:
            RedisUnavailableError: No node of the cluster responds.
            RedisRefusedError: The nodes refuse this user.
        """
        await self._in_slot(self._servers.all)

    @property
    def client(self) -> Redis | Topology:
        """What has the connections: the client, or the clients of the masters of a cluster."""
        return self._servers.topology if isinstance(self._servers, Masters) else self._redis

    async def close(self) -> None:
        """Close the connections that were opened here: those to the masters of a cluster."""
        await self._servers.close()

    async def check_permissions(self) -> None:
        """Check that the client's user has the rights that the steps need, in a cluster on each master.

        Raises:
            RedisRefusedError: It has not. The message names the commands and the rule to add.
            RedisUnavailableError: Redis does not respond.
        """
        for redis, tag in await self._in_slot(self._servers.tagged):
            needs = NEEDS if tag is None else NEEDS_IN_CLUSTER
            await self._in_slot(partial(ask_for_rights, tag=tag), redis, self._key_prefix, needs)

    async def reign(self) -> object:
        """Return a value that is another one after a failover, and after a restart of a server.

        It has the `run_id` of each server (`INFO server`), which is new with each process, and the highest
        configuration epoch of a cluster. A server that does not tell its `run_id` adds nothing to the value.

        Raises:
            RedisUnavailableError, RedisRefusedError: See these classes.
        """
        self.is_doubted = False
        try:
            epoch, servers = await self._in_slot(self._servers.reigning)
            told = await asyncio.gather(*(self._in_slot(_told_by, each) for each in servers))
        except BaseException:
            self.is_doubted = True
            raise
        self.version = next((str(info.get("redis_version", "")) for info in told), "")
        return epoch, master_of(self._redis), frozenset(info.get("run_id") for info in told)

    async def memory(self) -> list[dict[str, Any]]:
        """Return INFO memory of Redis, in a cluster of each master; nothing if Redis does not tell it."""
        return await self._infos("memory")

    async def _infos(self, section: str) -> list[dict[str, Any]]:
        try:
            servers = await self._in_slot(self._servers.all)
            return [await self._in_slot(redis.info, section) for redis in servers]
        except GlasspointError:
            return []

    async def now(self) -> int:
        """Return the time of Redis, in ms; in a cluster, the earliest of what its masters tell."""
        with self._telemetry.step("redis.scan", None):
            times = await self._in_slot(self._times)
        return min(seconds * 1000 + microseconds // 1000 for seconds, microseconds in times)

    async def _times(self) -> list[tuple[int, int]]:
        return await asyncio.gather(*(redis.time() for redis in await self._servers.all()))

    async def members(self, keys: Sequence[str]) -> AsyncIterator[tuple[str, list[tuple[bytes, float]]]]:
        """Yield sorted sets, each with some of its members and their scores. Some may come twice."""
        left = [(key, 0) for key in keys]
        while left:
            some, left = left[:_LISTS_A_TRIP], left[_LISTS_A_TRIP:]
            with self._telemetry.step("redis.scan", None):
                pages = await self._in_slot(
                    self._together, [("ZSCAN", key, cursor, "COUNT", _SCAN_COUNT) for key, cursor in some]
                )
            for (key, _), (cursor, members) in zip(some, pages, strict=True):
                if cursor:
                    left.append((key, cursor))
                yield key, members

    async def mark(self, keys: Sequence[str], option: str, score: int, member: str) -> None:
        """Add a member to sorted sets, with an option of ZADD.

        Raises:
            RedisRefusedError, RedisUnavailableError: See these classes. Some of the sets may have it.
        """
        for start in range(0, len(keys), _LISTS_A_TRIP):
            some = keys[start : start + _LISTS_A_TRIP]
            with self._telemetry.step("redis.scan", None):
                await self._in_slot(
                    self._together, [("ZADD", key, option, score, member) for key in some], writes=True
                )

    async def _together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        results = await self._servers.run_together(commands)
        for each in results:
            if isinstance(each, Exception):
                raise each
        return results

    async def servers(self) -> object:
        """Return a value that is another one after a failover, and after slots have moved.

        Returns:
            `None` while slots are on their way.
        """
        if isinstance(self._servers, Masters):
            return await self._in_slot(self._servers.settled)
        return master_of(self._redis) or "one server"

    async def members_in(self, keys: Sequence[str]) -> int:
        """Return how many members some sorted sets have together; what is no sorted set has none."""
        if not keys:
            return 0
        found = await self._in_slot(self._servers.run_together, [("ZCARD", key) for key in keys])
        return sum(each for each in found if isinstance(each, int))

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the keys that match a pattern, of every master. Some may come twice."""
        for redis in await self._in_slot(self._servers.all):
            cursor, keys = None, list[Any]()
            while cursor != 0:
                with self._telemetry.step("redis.scan", None):
                    ask: Any = partial(redis.scan, match=pattern, count=_SCAN_COUNT)
                    cursor, keys = await self._in_slot(ask, cursor or 0)
                yield keys

    async def _evalsha(self, step: str, keys: Sequence[str], args: Sequence[bytes | str | int]) -> list[Any]:
        text, sha = _script(step)
        if step in self._sent:
            # After a restart of Redis, and on another node of a cluster, the script is not there.
            try:
                return list(await self._servers.run(keys[0], "EVALSHA", sha, len(keys), *keys, *args))
            except NoScriptError:
                self.is_doubted = True
        # Send the whole text, do not load it first: in a cluster, it must reach the node that runs it. And do
        # not try the hash first: the error of the first call would be red in the client's own spans.
        result = list(await self._servers.run(keys[0], "EVAL", text, len(keys), *keys, *args))
        self._sent.add(step)
        return result

    async def _bulk_bytes(self) -> int:
        """Return the largest value, in bytes, that Redis takes; the default, if Redis does not tell it."""
        try:
            redis = (await self._in_slot(self._servers.all))[0]
            found = await self._in_slot(redis.config_get, "proto-max-bulk-len")
            return int(next(iter(found.values())) or 0)
        except (RedisRefusedError, RedisUnavailableError, StopIteration, ValueError, IndexError):
            return _BULK_BYTES

    async def _in_slot(
        self, ask: Callable[..., Awaitable[ResultT]], *args: Any, writes: bool = False
    ) -> ResultT:
        try:
            return await self._limiter.run(self._at_the_master, ask, *args)
        except _FAILURES as exc:
            if _is_too_large(exc):
                await self._drop_idle_connections()
            if _READONLY.search(str(exc)) and await look_again(self._redis):
                raise RedisUnavailableError(
                    "The master that the sentinels named has become a replica: they are asked again. Nothing "
                    "was stored."
                ) from exc
            raise self._failure(exc, writes=writes) from exc

    async def _at_the_master(self, ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
        """Await `ask(*args)`; if sentinels name another master meanwhile, do it again there.

        What a former master has stored last is lost when it becomes a replica. Each step may be done twice.
        """
        ends_at = monotonic() + _LOOKING * self._timeout
        while True:
            master = master_of(self._redis)
            try:
                result = await ask(*args)
            except _FAILURES as exc:
                if not _FORMER.search(str(exc)):
                    raise
                if not await look_after_refusal(self._redis, master, ends_at=ends_at):
                    raise
            else:
                if master is None or master_of(self._redis) == master:
                    return result

    async def _drop_idle_connections(self) -> None:
        """Drop the idle connections.

        On one of them, Redis has refused an argument because of its length. It may take the next command on
        this connection for the rest of that argument. The client does not tell which connection it is.
        """
        pools = [client.connection_pool for client in self._servers.clients]
        idle = [each for pool in pools for each in getattr(pool, "_available_connections", ())]
        for connection in idle:
            with suppress(*_FAILURES):
                await connection.disconnect(nowait=True)  # does not wait, so no other call gets it meanwhile

    def _failure(self, exc: BaseException, *, writes: bool = False) -> Exception:
        # The text of Redis's error may hold a key, so only its first word is repeated.
        found = _CODES.search(str(exc))
        code = _CLASSES.get(type(exc)) or (found[1] if found and isinstance(exc, RedisError) else None)
        passing = code in _PASSING or isinstance(exc, ClusterDownError) or redirection_of(exc) is not None
        if isinstance(exc, AuthenticationError | AuthorizationError):
            return RedisRefusedError("Redis refuses this user or password.")
        if isinstance(exc, UnknownServiceError):
            return (RedisRefusedError if exc.is_misnamed else RedisUnavailableError)(str(exc))
        if isinstance(exc, SentinelsRefuseError):
            return RedisRefusedError(str(exc))
        if isinstance(exc, MasterNotFoundError):
            return RedisUnavailableError(str(exc))
        if is_a_refused_database(exc):
            pool = getattr(self._redis, "connection_pool", None)
            number = getattr(pool, "connection_kwargs", {}).get("db") or 0
            return RedisRefusedError(
                f"Redis refused, and nothing was stored: it has no database {number}. Name another one in "
                "the Redis URL (0 is always there), or raise `databases` in the server's configuration."
            )
        if (lacks := _missing_right(exc)) is not None:
            return RedisRefusedError(
                f"Redis refused: this user may not {lacks}. A script that Redis stops in the middle leaves "
                "done what it did before. Give the user the rights that docs/rights.md lists."
            )
        if _is_too_large(exc):
            return RedisRefusedError(f"Redis refused, and nothing was stored: {_TOO_LARGE}.")
        if isinstance(exc, ResponseError) and not passing:
            if code is None:
                return RedisRefusedError(
                    f"Redis answered with an error that is not to be expected ({type(exc).__name__}): is it "
                    "a Redis 6.2 or newer, and does nobody else use the key prefix?"
                )
            return RedisRefusedError(f"Redis refused, and nothing was stored: {_REASONS[code]}.")
        waited = f" within {self._timeout} s" if isinstance(exc, TimeoutError) else ""
        what = f"Redis did not answer{waited}"
        if redirection_of(exc) == "moving":
            what = "A slot of the Redis Cluster is on its way to another master, with keys of this thread"
        then = "This step only reads. The call may be repeated."
        if writes:
            then = "It is not known whether the write was done. It may be repeated: the result is the same."
        return RedisUnavailableError(f"{what} ({code or named(exc)}). {then}")


async def _told_by(server: Redis) -> dict[str, Any]:
    """Return INFO server, or nothing if this user may not ask."""
    try:
        return dict(await server.info("server"))
    except ResponseError:
        return {}


def _is_too_large(exc: BaseException) -> bool:
    return isinstance(exc, ResponseError) and "Protocol error" in str(exc)


def _missing_right(exc: BaseException) -> str | None:
    if is_a_refused_key(exc):
        return "use a key"
    if not is_a_refused_command(exc) and not isinstance(exc, NoPermissionError):
        return None
    named = _COMMAND.search(str(exc))
    return f"run the command {named[1].replace('|', ' ').upper()}" if named else "run a command"


@cache
def _script(step: str) -> tuple[str, str]:
    folder = resources.files("glasspoint.history") / "scripts"
    text = "".join((folder / f"{name}.lua").read_text("utf-8") for name in ("prelude", step))
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
