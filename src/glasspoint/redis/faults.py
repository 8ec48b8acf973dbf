"""What can go wrong with Redis, and whose trouble it is: one table, and who looks things up in it.

A fault of one key costs that scope its cache. A refusal, or no answer at all, costs all scopes theirs until
the journal is swept.

redis-py takes the code away from the errors that it has a class for, and leaves it in the others. Inside a
script, before Redis 7, the code stands in mid-text, and ACL errors have none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterCrossSlotError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from glasspoint.errors import L1Error, L1UnavailableError

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
    "remedy",
]


class CannotBeTheCacheError(L1Error):
    """The server answers, and cannot be the cache as it is. Only somebody who changes a setting can help."""


class NeverTheCacheError(CannotBeTheCacheError):
    """The server is of a kind that cannot be the cache, whatever its settings."""


class ReplicaError(L1UnavailableError):
    """The server is a replica: for good, or for a moment, because a failover has demoted it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong.

    Attributes:
        says: What happened, for the log.
        classes: What redis-py calls it.
        words: What the server says, where redis-py has no class for it.
        of_one_key: Whether other keys may be as usable as ever.
        is_wrong_type: Whether the key holds what is no entry.
        is_final: Whether the next step would be refused as well, so that nobody need ask three times.
        do: What to do about it, where the server answers and refuses all steps.
    """

    says: str
    classes: tuple[type[Exception], ...] = ()
    words: re.Pattern[str] | None = None
    of_one_key: bool = False
    is_wrong_type: bool = False
    is_final: bool = False
    do: str = ""

    def fits(self, error: BaseException) -> bool:
        """Tell whether an error is of this kind."""
        if isinstance(error, self.classes):
            return True
        if self.words is None or not isinstance(error, ResponseError):
            return False
        return self.words.search(str(error)) is not None


def _says(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_KEYS_REFUSED = _says(r"no permissions to access (a key|one of the keys)|can't access at least one of the")
_COMMANDS_REFUSED = _says(r"no permissions to run the '|can't run this command|unknown (sub)?command")

# What a server answers to SELECT, with which a connection begins; the second is what a cluster says.
_DATABASES_REFUSED = _says(r"DB index is out of range|invalid DB index|SELECT is not allowed in cluster mode")

# No answer, most often; what the client raised says what it is.
_UNKNOWN = Fault("")

# The first that fits.
FAULTS = (
    Fault("the key holds another type", words=_says(r"\bWRONGTYPE\b"), of_one_key=True, is_wrong_type=True),
    Fault("this Redis user may not use the key", words=_KEYS_REFUSED, of_one_key=True),
    # MovedError is an AskError. Only a node of a Redis Cluster says so, or a proxy in front of one.
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
    # It does some steps and not others, so that its failures are never in a row.
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
    Fault("this Redis cannot be the cache", classes=(CannotBeTheCacheError,), is_final=True),
    _UNKNOWN,
)


def classify(error: BaseException) -> Fault:
    """Look an error of a Redis client up, or one of ours."""
    return next((fault for fault in FAULTS if fault.fits(error)), _UNKNOWN)


def remedy(error: Exception) -> str:
    """Say what a server refuses that answers, and what to do; `""`, if it did not answer."""
    if isinstance(error, ReplicaError) or (
        isinstance(error, L1Error) and not isinstance(error, L1UnavailableError)
    ):
        return str(error)
    fault = classify(error)
    return f"{fault.says[0].upper()}{fault.says[1:]}. {fault.do}" if fault.do else ""


def is_a_refused_command(error: object) -> bool:
    """Tell whether the server said that this user may not run a command, or that there is no such command."""
    return isinstance(error, ResponseError) and bool(_COMMANDS_REFUSED.search(str(error)))


def is_a_refused_database(error: object) -> bool:
    """Tell whether the server said that it has no database of the number that a connection selects."""
    return isinstance(error, ResponseError) and bool(_DATABASES_REFUSED.search(str(error)))


def is_a_refused_key(error: object) -> bool:
    """Tell whether the server said that this user may not use a key."""
    return isinstance(error, ResponseError) and bool(_KEYS_REFUSED.search(str(error)))
