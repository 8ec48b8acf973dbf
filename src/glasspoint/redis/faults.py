"""The faults of Redis and their effects: one table, and the functions that look an error up in it.

Open this when an error of Redis is treated in the wrong way. If a fault concerns one key, only the scope of
that key loses its cache. If Redis refuses a command or does not respond, all scopes lose their cache until
the journal is swept.

If redis-py has a class for an error, it removes the error code from the text. Otherwise the code stays in the
text. Inside a script, before Redis 7, the code stands in the middle of the text, and ACL errors have no code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.redis.sentinels import SentinelsRefuseError, UnknownServiceError

__all__ = [
    "FAULTS",
    "CannotBeTheCacheError",
    "Fault",
    "NeverTheCacheError",
    "ReplicaError",
    "classify",
    "is_a_refused_command",
    "is_a_refused_database",
    "is_a_refused_key",
    "is_refused_in_a_script",
    "redirection_of",
    "remedy",
]


class CannotBeTheCacheError(L1Error):
    """The server responds, but cannot be the cache until somebody changes a setting."""


class NeverTheCacheError(CannotBeTheCacheError):
    """The server is of a kind that cannot be the cache, whatever its settings."""


class ReplicaError(L1UnavailableError):
    """The server is a replica: permanently, or for a moment, because a failover has demoted it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
        says: What happened, for the log.
        classes: redis-py's exception classes for it.
        words: The server's error text, if redis-py has no class for it.
        of_one_key: Whether the fault concerns one key, so that other keys may be usable.
        is_wrong_type: Whether the key holds a value of another type than an entry's.
        is_final: Whether the next steps would certainly be refused, too, so that one failure opens the
            breaker.
        do: The remedy, if the server responds and refuses all steps.
    """

    says: str
    classes: tuple[type[Exception], ...] = ()
    words: re.Pattern[str] | None = None
    of_one_key: bool = False
    is_wrong_type: bool = False
    is_final: bool = False
    do: str = ""

    def fits(self, error: BaseException) -> bool:
        """Whether an error is of this kind."""
        if isinstance(error, self.classes):
            return True
        if self.words is None or not isinstance(error, ResponseError):
            return False
        return self.words.search(str(error)) is not None


def _says(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_KEYS_REFUSED = _says(r"no permissions to access (a key|one of the keys)|can't access at least one of the")
_COMMANDS_REFUSED = _says(
    r"no permissions to run the '|can't run this command|unknown (sub)?command|"
    r"not allowed from script|unknown redis command called from"
)

# What every error says that a command has raised inside a script.
_IN_A_SCRIPT = _says(r"user_script|from (lua )?script|executing the script")

# The errors of SELECT, which a new connection sends. The last one comes from a cluster.
_DATABASES_REFUSED = _says(r"DB index is out of range|invalid DB index|SELECT is not allowed in cluster mode")

# Usually no response. The error of the client says what happened.
_UNKNOWN = Fault("")

# The first fault that fits an error is used.
FAULTS = (
    Fault("the key holds another type", words=_says(r"\bWRONGTYPE\b"), of_one_key=True, is_wrong_type=True),
    Fault("this Redis user may not use the key", words=_KEYS_REFUSED, of_one_key=True),
    # MovedError is an AskError. Only a node of a Redis Cluster, or a proxy in front of one, returns these.
    Fault(
        "the key is on another node",
        classes=(AskError, ClusterCrossSlotError, TryAgainError),
        words=_says(r"\b(MOVED|ASK) \d|\b(CROSSSLOT|TRYAGAIN)\b"),
        of_one_key=True,
    ),
    Fault(
        "this Redis user may not run a command",
        classes=(NoPermissionError,),
        words=re.compile(f"{_COMMANDS_REFUSED.pattern}|\\b(NOPERM|NOAUTH)\\b", re.IGNORECASE),
        is_final=True,
        do="Give the user of REDIS_URL the rights that docs/rights.md lists, or add user and password.",
    ),
    # Final, because such a Redis still does some steps, so the failures are never in a row.
    Fault(
        "Redis is full, takes no writes or cannot save",
        classes=(OutOfMemoryError, ReadOnlyError),
        words=_says(r"\b(OOM|READONLY|MISCONF|NOREPLICAS)\b"),
        is_final=True,
        do="Look at maxmemory and its policy, at the disk and the replicas of the server, and at its log.",
    ),
    Fault(
        "Redis refuses this user or password",
        classes=(AuthenticationError, AuthorizationError),
        do="Correct the user and the password in REDIS_URL.",
    ),
    Fault("the sentinels know no such service", classes=(UnknownServiceError,)),
    Fault("the sentinels refuse this process", classes=(SentinelsRefuseError,)),
    Fault("no sentinel names a master", classes=(MasterNotFoundError,)),
    Fault("this Redis cannot be the cache", classes=(CannotBeTheCacheError,), is_final=True),
    _UNKNOWN,
)


def classify(error: BaseException) -> Fault:
    """Return the fault that fits an error of a Redis client, or of Glasspoint."""
    return next((fault for fault in FAULTS if fault.fits(error)), _UNKNOWN)


def redirection_of(error: BaseException) -> Literal["moved", "moving"] | None:
    """Tell whether a node of a cluster sends a step elsewhere.

    Returns:
        `moved`: the slot belongs to another node, or to none. `moving`: it is on its way to another node, and
        the key may be there already. `None`: the error says something else.
    """
    if isinstance(error, MovedError):
        return "moved"
    if isinstance(error, ClusterDownError) and "slot not served" in str(error):
        return "moved"
    if isinstance(error, AskError | TryAgainError):
        return "moving"
    return None


def remedy(error: Exception) -> str:
    """Return what a server refuses, and what to do; `""` if it did not respond."""
    if isinstance(error, ReplicaError | UnknownServiceError | SentinelsRefuseError) or (
        isinstance(error, L1Error) and not isinstance(error, L1UnavailableError)
    ):
        return str(error)
    fault = classify(error)
    return f"{fault.says[0].upper()}{fault.says[1:]}. {fault.do}" if fault.do else ""


def is_a_refused_command(error: object) -> bool:
    """Whether the server said that this user may not run a command, or that the command does not exist."""
    return isinstance(error, ResponseError) and bool(_COMMANDS_REFUSED.search(str(error)))


def is_refused_in_a_script(error: object) -> bool:
    """Whether the server said that a script may not run a command, which may be allowed outside a script."""
    return is_a_refused_command(error) and bool(_IN_A_SCRIPT.search(str(error)))


def is_a_refused_database(error: object) -> bool:
    """Whether the server said that it has no database of the number that a connection selects."""
    return isinstance(error, ResponseError) and bool(_DATABASES_REFUSED.search(str(error)))


def is_a_refused_key(error: object) -> bool:
    """Whether the server said that this user may not use a key."""
    return isinstance(error, ResponseError) and bool(_KEYS_REFUSED.search(str(error)))
