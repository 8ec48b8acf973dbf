"""What Glasspoint needs of Redis, asked at the first contact: the commands, the keys, and no cluster.

A Redis user (ACL) that lacks a command fails every step that needs it, with an error that, inside a script
and before Redis 7, does not name the command. So each command is sent by itself, once, to a key that nobody
uses. For the cache, what a server says that is full, or cannot save, is passed on. A replica is found by its
role, later. The table of the tier `redis` stands in `history/permissions.py`.
"""

from __future__ import annotations

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
    remedy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from redis.asyncio import Redis

__all__ = ["COMMANDS", "KEY", "OPTIONAL", "Needs", "ask_for_rights", "check_permissions", "refuse_cluster"]

KEY = object()
"""In the arguments of a command: the key that nobody uses."""

COMMANDS: dict[str, tuple[Any, ...]] = {
    "ping": (),
    "info": (b"server",),
    "script|load": (b"return 1",),
    # No such script: what counts is that it may be asked for. It is asked for with the key, as each step is.
    "evalsha": (b"0" * 40, 1, KEY),
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
"""Each command that the cache needs, as an ACL rule names it -> harmless arguments. The last ones undo what
the others did."""

OPTIONAL = ("scan", "unlink")
"""Commands that delete what older epochs have left; without them it stays until it expires."""

_NAMED = re.compile(r"'([\w|]+)' command")

_WHOAMI = "acl|whoami"


@dataclass(frozen=True, slots=True)
class Needs:
    """The rights that one part of Glasspoint needs.

    Attributes:
        by: The part, for the message.
        commands: Each command as an ACL rule names it -> harmless arguments; `KEY` stands for the key.
        optional: Commands that the part can do without; the message lists them, and they are not tried.
        refusal: Makes the error of its message.
    """

    by: str
    commands: Mapping[str, tuple[Any, ...]]
    optional: tuple[str, ...]
    refusal: Callable[[str], Exception]


_CACHE = Needs("the cache", COMMANDS, OPTIONAL, CannotBeTheCacheError)


async def check_permissions(redis: Redis, key_prefix: str) -> None:
    """Ask whether the client's user may do what the cache needs.

    Raises:
        CannotBeTheCacheError: It may not. The message names the commands and the rule to add.
        Exception: What the client raises, if there is no answer, or if the server refuses all writes.
    """
    for answer in await ask_for_rights(redis, key_prefix, _CACHE):
        if isinstance(answer, Exception) and not isinstance(answer, ReadOnlyError) and remedy(answer):
            raise answer


async def ask_for_rights(redis: Redis, key_prefix: str, needs: Needs) -> list[object]:
    """Ask whether the client's user has the rights that are needed.

    Returns:
        What the server answered to the commands. Errors that say nothing of rights are among them.

    Raises:
        Exception: `needs.refusal`, if a right is missing. The message names the commands and the rule to
            add. And what the client raises, if there is no answer.
    """
    key = f"{quote(key_prefix, safe='')}:permissions:{secrets.token_hex(8)}".encode()
    asked = {**needs.commands, _WHOAMI: ()}
    try:
        async with redis.pipeline(transaction=False) as pipe:
            for name, args in asked.items():
                command = name.upper().replace("|", " ")
                pipe.execute_command(command, *(key if arg is KEY else arg for arg in args))
            answers = dict(zip(asked, await pipe.execute(raise_on_error=False), strict=True))
    except ResponseError as exc:  # while connecting: SELECT, say
        if not is_a_refused_command(exc):
            raise
        raise _refusal(redis, None, key_prefix, needs, _NAMED.findall(str(exc)), keys=False) from exc
    whoami = answers.pop(_WHOAMI)
    denied = [name for name, answer in answers.items() if is_a_refused_command(answer)]
    keys = any(is_a_refused_key(answer) for answer in answers.values())
    if denied or keys:
        raise _refusal(redis, whoami, key_prefix, needs, denied, keys=keys)
    return list(answers.values())


def refuse_cluster(server: Mapping[str, Any]) -> None:
    """Raise `NeverTheCacheError` if a server, as `INFO server` shows it, is a node of a Redis Cluster."""
    if "cluster" in (server.get("redis_mode"), server.get("server_mode")):
        raise NeverTheCacheError(
            "This server is a node of a Redis Cluster, which cannot be the cache yet: a node holds a part of "
            "the keys, and refuses all others. Use a Redis or Valkey of one server, alone or with replicas "
            'and Sentinel (cluster-enabled no). A managed service calls that "cluster mode disabled".'
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
