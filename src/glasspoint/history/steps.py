"""Runs the atomic steps: each is one script, in one round trip, on all keys of one thread.

Every failure of Redis becomes an error of `glasspoint.errors` here. A script is done completely or not at
all, so a caller that is cancelled or runs out of time leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from functools import cache, partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ClusterError,
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
from glasspoint.history.permissions import NEEDS
from glasspoint.redis.client import look_again
from glasspoint.redis.faults import is_a_refused_command, is_a_refused_database, is_a_refused_key
from glasspoint.redis.limiter import Limiter, connections_of, when_connected
from glasspoint.redis.permissions import ask_for_rights
from glasspoint.redis.sentinels import UnknownServiceError
from glasspoint.redis.timeouts import answered_within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from glasspoint.model.generics import ResultT
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Telemetry

__all__ = ["AGAIN", "EXISTS", "Steps"]

AGAIN, EXISTS = 4, 5
"""Results of a step other than 0 (done): the thread has changed; the thread exists already."""

_SEALED, _MOVED, _DAMAGED = 1, 2, 3

_SCAN_COUNT = 1000

# The most connections in use at once; other steps wait for a slot.
_CONNECTIONS = 32

# How many nodes of a cluster are asked for the others, one after the other, if they hang.
_NODES_ASKED = 3

# The words with which Redis begins an error. If a script failed, they come later in the text. For some of
# them, redis-py removes the word and raises a class of its own.
_CODES = re.compile(r"\b(OOM|READONLY|MISCONF|NOREPLICAS|NOAUTH|CLUSTERDOWN|BUSY|LOADING|MASTERDOWN)\b")
_CLASSES: dict[type[BaseException], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
}
_PASSING = {"CLUSTERDOWN", "BUSY", "LOADING", "MASTERDOWN"}
_REASONS = {
    "OOM": "it has no memory left: raise its maxmemory, prune threads or shorten the ttl",
    "READONLY": "it is a read-only replica: connect to the primary",
    "MISCONF": "it cannot save to its disk: see its log",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write asks for",
    "NOAUTH": "it asks for a password",
}

# redis-py replaces the error of a demoted master by the second text.
_READONLY = re.compile(r"\bREADONLY\b|read only replica|previous master is now a slave")

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

    def __init__(self, redis: Redis | RedisCluster, telemetry: Telemetry, *, timeout_seconds: float) -> None:
        """Take the Redis that runs the scripts.

        Args:
            redis: A client with `decode_responses=False`; not closed here.
            telemetry: Receives an event for every step.
            timeout_seconds: How long one step may take from the moment it has a slot: see `Turns`.
        """
        self._redis: Any = redis
        self._telemetry = telemetry
        self._timeout = timeout_seconds
        self._limiter = Limiter(connections_of(redis, most=_CONNECTIONS), timeout_seconds=timeout_seconds)
        self._sent: set[str] = set()
        """The scripts whose text was sent, so that their hash is enough."""

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
                status, *result = await self._in_slot(self._evalsha, step, keys, args)
            except RedisUnavailableError as exc:
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
                    "Redis has evicted a part of this thread, or all of it, so that nothing of it can be "
                    "believed: delete the thread, and give Redis the maxmemory-policy noeviction."
                )
        return [status] if status in (AGAIN, EXISTS) else result

    async def ping(self) -> None:
        """Check that Redis responds, in a cluster that each master does.

        Raises:
            RedisUnavailableError: It does not respond.
            RedisRefusedError: It refuses this user.
        """
        try:
            with answered_within(self._timeout):
                await when_connected(partial(self._redis.ping, **self._masters()))
        except _FAILURES as exc:
            raise self._failure(exc) from exc

    async def find_nodes(self) -> None:
        """Find the nodes of a cluster; do nothing if Redis is one server.

        Raises:
            RedisUnavailableError: No node responds.
            RedisRefusedError: The nodes refuse this user.
        """
        redis: Any = self._redis
        for attempt in range(1, _NODES_ASKED + 1) if isinstance(redis, RedisCluster) else ():
            try:
                await self._in_slot(redis.initialize)
            except RedisUnavailableError as exc:
                # The client waits for the first node that it asks, which may be one that hangs. It asks the
                # nodes in another order each time.
                if not isinstance(exc.__cause__, TimeoutError) or attempt == _NODES_ASKED:
                    raise
            else:
                break

    def _masters(self) -> dict[str, Any]:
        """Return the option of a command that goes to each master of a cluster."""
        return {"target_nodes": RedisCluster.PRIMARIES} if isinstance(self._redis, RedisCluster) else {}

    async def check_permissions(self, key_prefix: str) -> None:
        """Check that the client's user has the rights that the steps need. A cluster is not asked.

        Raises:
            RedisRefusedError: It has not. The message names the commands and the rule to add.
            RedisUnavailableError: Redis does not respond.
        """
        if not isinstance(self._redis, RedisCluster):
            await self._in_slot(ask_for_rights, self._redis, key_prefix, NEEDS)

    async def server_version(self) -> str:
        """Return the version of Redis (in a cluster, of one node), `""` if Redis does not tell it."""
        try:
            info = await self._in_slot(self._redis.info, "server")
        except GlasspointError:
            return ""
        if "redis_version" not in info:  # a cluster: node -> its information
            info = next((each for each in info.values() if isinstance(each, dict)), {})
        return str(info.get("redis_version", ""))

    async def memory(self) -> list[dict[str, Any]]:
        """Return INFO memory of Redis, in a cluster of each primary; nothing if Redis does not tell it."""
        try:
            info = await self._in_slot(partial(self._redis.info, "memory", **self._masters()))
        except GlasspointError:
            return []
        return [info] if "maxmemory" in info else [each for each in info.values() if isinstance(each, dict)]

    async def alive_members(self, key: str) -> AsyncIterator[list[bytes]]:
        """Yield the members of a sorted set whose score is a future time, in ms. Some may come twice."""
        cursor = None
        while cursor != 0:
            with self._telemetry.step("redis.scan", None):
                seconds, microseconds = await self._in_slot(self._time_at, key)
                cursor, members = await self._in_slot(self._zscan_page, key, cursor or 0)
            now = seconds * 1000 + microseconds // 1000
            yield [member for member, score in members if score > now]

    async def _time_at(self, key: str) -> tuple[int, int]:
        """Return the time of the server that holds a key: seconds, and microseconds."""
        redis: Any = self._redis
        if not isinstance(redis, RedisCluster):
            return await redis.time()  # type: ignore[no-any-return]
        await redis.initialize()
        found: Any = await redis.time(target_nodes=[redis.get_node_from_key(key)])
        (time,) = found.values() if isinstance(found, dict) else [found]
        return time  # type: ignore[no-any-return]

    async def _zscan_page(self, key: str, cursor: int) -> tuple[int, list[tuple[bytes, float]]]:
        next_cursor, members = await self._redis.zscan(key, cursor, count=_SCAN_COUNT)
        return int(next_cursor), members

    async def members_in(self, keys: Sequence[str], *, all_must_answer: bool = False) -> int:
        """Return how many members some sorted sets have together; what is no sorted set has none.

        Args:
            keys: The keys of the sorted sets.
            all_must_answer: Whether an error of one of them is raised.
        """
        return await self._in_slot(self._cards, keys, all_must_answer) if keys else 0

    async def _cards(self, keys: Sequence[str], all_must_answer: bool) -> int:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zcard(key)
            found = await pipe.execute(raise_on_error=all_must_answer)
        return sum(each for each in found if isinstance(each, int))

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the keys that match a pattern, of every primary. Some may come twice."""
        nodes: list[Any] = [None]
        if isinstance(self._redis, RedisCluster):
            await self._in_slot(self._redis.initialize)
            nodes = self._redis.get_primaries()
        for node in nodes:
            cursor = None
            while cursor != 0:
                with self._telemetry.step("redis.scan", None):
                    cursor, keys = await self._in_slot(self._scan_page, node, cursor or 0, pattern)
                yield keys

    async def _scan_page(self, node: Any, cursor: int, pattern: str) -> tuple[int, list[bytes]]:
        if node is None:
            next_cursor, keys = await self._redis.scan(cursor, match=pattern, count=_SCAN_COUNT)
        else:
            cursors, keys = await self._redis.scan(
                cursor, match=pattern, count=_SCAN_COUNT, target_nodes=[node]
            )
            (next_cursor,) = cursors.values()
        return int(next_cursor), keys

    async def _evalsha(self, step: str, keys: Sequence[str], args: Sequence[bytes | str | int]) -> list[Any]:
        text, sha = _script(step)
        if step in self._sent:
            # After a restart of Redis, and on another node of a cluster, the script is not there.
            with suppress(NoScriptError):
                return list(await self._redis.evalsha(sha, len(keys), *keys, *args))
        # Send the whole text, do not load it first: in a cluster, it must reach the node that runs it. And do
        # not try the hash first: the error of the first call would be red in the client's own spans.
        result = list(await self._redis.eval(text, len(keys), *keys, *args))
        self._sent.add(step)
        return result

    async def _bulk_bytes(self) -> int:
        """Return the largest value, in bytes, that Redis takes; the default, if Redis does not tell it."""
        try:
            found = await self._in_slot(self._redis.config_get, "proto-max-bulk-len")
            return int(next(iter(found.values())))
        except (RedisRefusedError, RedisUnavailableError, StopIteration, ValueError):
            return _BULK_BYTES

    async def _in_slot(self, ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
        try:
            return await self._limiter.run(ask, *args)
        except _FAILURES as exc:
            if _is_too_large(exc):
                await self._drop_idle_connections()
            if _READONLY.search(str(exc)) and await look_again(self._redis):
                raise RedisUnavailableError(
                    "The master that the sentinels named has become a replica: they are asked again. Nothing "
                    "was stored."
                ) from exc
            raise self._failure(exc) from exc

    async def _drop_idle_connections(self) -> None:
        """Drop the idle connections.

        On one of them, Redis has refused an argument because of its length. It may take the next command on
        this connection for the rest of that argument. The client does not tell which connection it is.
        """
        if isinstance(self._redis, RedisCluster):
            idle = [each for node in self._redis.get_nodes() for each in getattr(node, "_free", ())]
        else:
            idle = list(getattr(self._redis.connection_pool, "_available_connections", ()))
        for connection in idle:
            with suppress(*_FAILURES):
                await connection.disconnect(nowait=True)  # does not wait, so no other call gets it meanwhile

    def _failure(self, exc: BaseException) -> Exception:
        # The text of Redis's error may hold a key, so only its first word is repeated.
        found = _CODES.search(str(exc))
        code = _CLASSES.get(type(exc)) or (found[1] if found and isinstance(exc, RedisError) else None)
        passing = code in _PASSING or isinstance(exc, ClusterDownError | ClusterError)
        if isinstance(exc, AuthenticationError | AuthorizationError):
            return RedisRefusedError("Redis refuses this user or password.")
        if isinstance(exc, UnknownServiceError):
            return (RedisRefusedError if exc.is_misnamed else RedisUnavailableError)(str(exc))
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
        return RedisUnavailableError(
            f"Redis did not answer{waited} ({code or type(exc).__name__}). If this was a write, it is not "
            "known whether it was done; it may be repeated: it stores the same again."
        )


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
