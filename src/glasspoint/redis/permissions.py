"""Checks at the first contact that Redis allows what Glasspoint needs: commands, keys, and no cluster.

Open this when the code begins to use a new command. If a Redis user (ACL) lacks a command, every step that
needs it fails. Inside a script, before Redis 7, the error does not name the command. So each command is sent
once outside a script, to a key that nothing else uses. INFO is also tried inside a script, because each
script of the cache runs it, and some managed services allow it outside only. For the cache, other refusals
(the server is full, or cannot save) are raised as they are. A replica is found later, by its role. The
commands of the tier `redis` stand in `history/permissions.py`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from redis.exceptions import ReadOnlyError, ResponseError

from glasspoint.redis.faults import (
    CannotBeTheCacheError,
    NeverTheCacheError,
    is_a_refused_command,
    is_a_refused_key,
    is_refused_in_a_script,
    remedy,
)
from glasspoint.redis.location import PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from redis.asyncio import Redis

__all__ = [
    "CLUSTER_COMMANDS",
    "COMMANDS",
    "KEY",
    "OPTIONAL",
    "Needs",
    "ask_for_rights",
    "check_permissions",
    "mode_of",
    "needs_service",
    "refuse_cluster",
]


KEY = object()
"""A placeholder, in the arguments of a command, for the key that nothing else uses."""

# The beginning of each script of the cache: see `l1.epoch`.
_ASKING_SCRIPT = b"return redis.call('INFO', 'replication')"

COMMANDS: dict[str, tuple[Any, ...]] = {
    "ping": (),
    "info": (b"server",),
    "script|load": (_ASKING_SCRIPT,),
    # The key is passed as in each step.
    "evalsha": (hashlib.sha1(_ASKING_SCRIPT, usedforsecurity=False).hexdigest().encode(), 1, KEY),
    "time": (),
    "hset": (KEY, b"field", b"1"),
    "hget": (KEY, b"field"),
    "hgetall": (KEY,),
    "hkeys": (KEY,),
    "hexists": (KEY, b"field"),
    "pttl": (KEY,),
    "pexpire": (KEY, 1000),
    "hdel": (KEY, b"field"),
    "del": (KEY,),
}
"""The commands that the cache needs: the name in an ACL rule -> harmless arguments. The last commands undo
the others."""

CLUSTER_COMMANDS: dict[str, tuple[Any, ...]] = {"cluster|info": (), "cluster|nodes": (), "cluster|slots": ()}
"""What the cache needs in addition on a node of a Redis Cluster."""

OPTIONAL = ("scan", "unlink")
"""The commands that delete entries of older epochs. Without them, such entries stay until they expire."""

_NAMED = re.compile(r"'([\w|]+)' command")

_WHOAMI = "acl|whoami"


@dataclass(frozen=True, slots=True)
class Needs:
    """The rights that one part of Glasspoint needs.

    Attributes:
        by: The name of the part, for the message.
        commands: The name of a command in an ACL rule -> harmless arguments, with `KEY` for the key.
        optional: Commands that the part does not depend on. The message lists them, but they are not tried.
        refusal: Makes the error from the message.
    """

    by: str
    commands: Mapping[str, tuple[Any, ...]]
    optional: tuple[str, ...]
    refusal: Callable[[str], Exception]


_CACHE = Needs("the cache", COMMANDS, OPTIONAL, CannotBeTheCacheError)
_CACHE_IN_CLUSTER = Needs("the cache", {**COMMANDS, **CLUSTER_COMMANDS}, OPTIONAL, CannotBeTheCacheError)


async def check_permissions(redis: Redis, key_prefix: str, *, tag: str | None = None) -> None:
    """Check that the client's user has the rights that the cache needs.

    Args:
        redis: The client.
        key_prefix: The first part of every key.
        tag: The hash tag of a slot of this node of a cluster; `None`: this Redis is not in a cluster.

    Raises:
        CannotBeTheCacheError: A right is missing. The message names the commands and the rule to add.
        Exception: The client's error, if Redis does not respond, is full, or cannot save.
    """
    needs = _CACHE if tag is None else _CACHE_IN_CLUSTER
    for result in await ask_for_rights(redis, key_prefix, needs, tag=tag):
        if isinstance(result, Exception) and not isinstance(result, ReadOnlyError) and remedy(result):
            raise result


async def ask_for_rights(
    redis: Redis, key_prefix: str, needs: Needs, *, tag: str | None = None
) -> list[object]:
    """Try all commands, and check that the client's user has the rights that are needed.

    Args:
        redis: The client.
        key_prefix: The first part of every key.
        needs: The rights.
        tag: The hash tag of the key that is used; `None`: it has none.

    Returns:
        The server's results for the commands. They may include errors that do not concern rights.

    Raises:
        Exception: `needs.refusal`, if a right is missing: the message names the commands and the rule to add.
            Or the client's error, if Redis does not respond.
    """
    braces = f"{{{tag}}}:" if tag is not None else ""
    key = f"{quote(key_prefix, safe='')}:permissions:{braces}{secrets.token_hex(8)}".encode()
    asked = {**needs.commands, _WHOAMI: ()}
    try:
        async with redis.pipeline(transaction=False) as pipe:
            for name, args in asked.items():
                command = name.upper().replace("|", " ")
                pipe.execute_command(command, *(key if arg is KEY else arg for arg in args))
            results = dict(zip(asked, await pipe.execute(raise_on_error=False), strict=True))
    except ResponseError as exc:  # the error came while connecting, from SELECT for example
        if not is_a_refused_command(exc):
            raise
        raise _refusal(redis, None, key_prefix, needs, _NAMED.findall(str(exc)), keys=False) from exc
    whoami = results.pop(_WHOAMI)
    server = results.get("info")
    if isinstance(server, dict) and mode_of(server) == "sentinel":
        raise needs.refusal(needs_service((), redis))
    in_a_script = [result for result in results.values() if is_refused_in_a_script(result)]
    denied = [
        name for name, result in results.items() if is_a_refused_command(result) and result not in in_a_script
    ]
    keys = any(is_a_refused_key(result) for result in results.values())
    if denied or keys:
        raise _refusal(redis, whoami, key_prefix, needs, denied, keys=keys)
    if in_a_script:
        raise needs.refusal(
            f"This Redis does not let a script run INFO, and says: {in_a_script[0]}. Each script of "
            f"{needs.by} compares the server's master_replid (INFO replication) before it trusts anything, "
            "because a promoted server serves entries from the past. Use a Redis or Valkey whose scripts may "
            "run INFO: docs/compatibility.md says what managed services refuse."
        )
    return list(results.values())


def mode_of(server: Mapping[str, Any]) -> str:
    """Return what a server is, according to its `INFO server`: standalone, cluster or sentinel."""
    return str(server.get("redis_mode") or server.get("server_mode") or "")


def needs_service(services: Collection[str], redis: Redis) -> str:
    """Return the error text for a URL that leads to a sentinel, but names no service.

    Args:
        services: The services that the sentinel knows, as far as they are known.
        redis: The client of the sentinel.
    """
    known = f"It knows {', '.join(map(repr, sorted(services)))}. " if services else ""
    first = min(services, default="mymaster")
    pool: Any = getattr(redis, "connection_pool", None)
    kwargs = getattr(pool, "connection_kwargs", {})
    address = f"{kwargs.get('host') or 'localhost'}:{kwargs.get('port') or PORTS['sentinel']}"
    return (
        "This server is a sentinel: it stores nothing, but names the master of a service. The URL must name "
        f"the service. {known}Write redis+sentinel://[user:password@]{address}/{first}/0, with the other "
        "sentinels after a comma each; user and password are those of the master."
    )


def refuse_cluster(server: Mapping[str, Any]) -> None:
    """Raise `NeverTheCacheError` if a server that is used alone is a node of a Redis Cluster."""
    if mode_of(server) == "cluster":
        raise NeverTheCacheError(
            "This server is a node of a Redis Cluster, which cannot be the cache alone: a node holds a part "
            "of the keys, and refuses all others. Use the whole cluster (redis+cluster://host:port,…, or a "
            "redis.asyncio.RedisCluster), or a Redis or Valkey of one server (cluster-enabled no)."
        )


def _refusal(
    redis: Redis, whoami: object, key_prefix: str, needs: Needs, denied: Collection[str], *, keys: bool
) -> Exception:
    user = _user(redis, whoami)
    pattern = f"~{quote(key_prefix, safe='')}:*"
    lacks = [f"may not run {', '.join(name.replace('|', ' ').upper() for name in denied)}"] if denied else []
    lacks += [f"may not read and write the keys {pattern[1:]}"] if keys else []
    rules = [*([pattern] if keys else []), *(f"+{name}" for name in denied)]
    whole = " ".join([pattern, *(f"+{name}" for name in (*needs.commands, *needs.optional))])
    return needs.refusal(
        f"The Redis user {user!r} {' and '.join(lacks) or 'may not run a command'}. Let it, on the server: "
        f"ACL SETUSER {user} {' '.join(rules) or whole} (all that {needs.by} uses: {whole})."
    )


def _user(redis: Redis, whoami: object) -> str:
    if isinstance(whoami, str):
        return whoami
    pool: Any = getattr(redis, "connection_pool", None)
    return getattr(pool, "connection_kwargs", {}).get("username") or "default"
