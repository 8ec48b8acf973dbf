"""Keyword options of the public constructors and factories: their types, and what a mistyped one is answered.

Open this file when an option is added: a type checker and the error about an unknown name both read it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeAlias, TypedDict

from glasspoint.ages import HOW_TO_WRITE_AN_AGE, parse_age
from glasspoint.errors import ConfigurationError, WrongTypeError

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.coherence.last_used import LastUsed
    from glasspoint.l2.password import Password
    from glasspoint.l2.target import Target
    from glasspoint.telemetry.events import Telemetry

__all__ = [
    "Age",
    "CachedOptions",
    "OpenCachedOptions",
    "OpenRedisOptions",
    "RedisOptions",
    "Seconds",
    "age_of",
    "check_names",
    "checks_names",
    "names_of",
    "seconds_of",
]

Seconds: TypeAlias = float | timedelta
"""A length of time: a number of seconds, or a `timedelta`."""

Age: TypeAlias = timedelta | str
"""How old something is: a `timedelta`, or a text such as `"30d"`. No number: of days, or of seconds?"""

_P = ParamSpec("_P")

_SUGGESTED_AT_MOST = 3


class CachedOptions(TypedDict, total=False):
    """Keyword arguments of `CachedPostgresSaver`: its constructor says what each means."""

    serde: SerializerProtocol | None
    cache_ttl: Seconds
    key_prefix: str
    l1_timeout_seconds: Seconds
    write_deadline_seconds: Seconds
    on_l1_outage: Literal["degrade", "raise"]
    sweep_interval_seconds: Seconds
    audit_ratio: float
    l1_signing_key: bytes | str | None
    l1_compression: Literal["off", "zstd"]
    l1_compression_min_bytes: int
    foreign_writes: Literal["watch", "ignore"]
    on_fork: Literal["count", "raise"]
    retention: Age | None
    last_used: LastUsed | None
    telemetry: Telemetry | None


class OpenCachedOptions(CachedOptions, total=False):
    """Keyword arguments of `CachedPostgresSaver.create` and `from_conn_string`.

    `create` says what each means.
    """

    pool_min_size: int
    pool_max_size: int
    pool_timeout_seconds: Seconds
    connect_timeout_seconds: Seconds
    prepare_threshold: int | None
    schema: str | None
    password: Password | None


class RedisOptions(TypedDict, total=False):
    """Keyword arguments of `create_redis_checkpointer`.

    The constructor of `RedisSaver` says what each means.
    """

    serde: SerializerProtocol | None
    key_prefix: str
    timeout_seconds: Seconds
    telemetry: Telemetry | None
    target: Target | None
    signing_key: bytes | None


class OpenRedisOptions(RedisOptions, total=False):
    """Keyword arguments of `RedisSaver.create` and `from_conn_string`."""

    ttl: Seconds | None


def names_of(options: type) -> frozenset[str]:
    """Return the names of a `TypedDict` of options."""
    keys: frozenset[str] = options.__optional_keys__  # type: ignore[attr-defined]
    return keys


def check_names(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that do not exist.

    Args:
        owner: What was called, for the message.
        given: The names that the caller used.
        known: The names that exist.

    Raises:
        WrongTypeError: A name is unknown. The message suggests those that it resembles.
    """
    for name in given:
        if name not in known:
            raise WrongTypeError(f"{owner} has no option {name!r}: {_suggestion(name, sorted(known))}")


def checks_names(
    init: Callable[Concatenate[Any, _P], None],
) -> Callable[Concatenate[Any, _P], None]:
    """Let a constructor refuse unknown options with a suggestion, as `check_names` does.

    Python's own message names a base class, and suggests nothing before version 3.13.
    """
    known = {
        name
        for name, parameter in inspect.signature(init).parameters.items()
        if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY and name != "self"
    }

    @functools.wraps(init)
    def checked(self: Any, /, *args: _P.args, **options: _P.kwargs) -> None:
        if not options.keys() <= known:
            check_names(type(self).__name__, options, known)
        init(self, *args, **options)

    return checked


def seconds_of(name: str, value: object) -> float:
    """Return a length of time in seconds.

    Args:
        name: The option, for the message.
        value: A number of seconds, or a `timedelta`.

    Raises:
        ConfigurationError: It is not greater than 0.
        WrongTypeError: It is neither.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise WrongTypeError(
            f"{name} is of the type {type(value).__name__}: it must be a number of seconds, or a timedelta."
        )
    if not seconds > 0:
        raise ConfigurationError(f"{name} is {value!r}: it must be greater than 0 seconds.")
    return seconds


def age_of(name: str, value: object) -> timedelta:
    """Return how old something is.

    Args:
        name: The option, for the message.
        value: A `timedelta`, or a text such as `"30d"`.

    Raises:
        ConfigurationError: It is not greater than 0, or the text is no age.
        WrongTypeError: It is neither.
    """
    if isinstance(value, str):
        age = parse_age(value)
        if age is None:
            raise ConfigurationError(f"{name} is {value!r}: {HOW_TO_WRITE_AN_AGE}.")
        return age
    if not isinstance(value, timedelta):
        raise WrongTypeError(
            f"{name} is of the type {type(value).__name__}: it must be a timedelta, or a text such as '30d'."
        )
    if value <= timedelta():
        raise ConfigurationError(f"{name} is {value!r}: it must be greater than 0.")
    return value


def _suggestion(name: str, known: Collection[str]) -> str:
    alike = get_close_matches(name, known, n=1)
    alike = alike or [each for each in known if name and name in each][:_SUGGESTED_AT_MOST]
    if alike:
        return f"did you mean {' or '.join(map(repr, alike))}?"
    return f"its options are {', '.join(known)}."
