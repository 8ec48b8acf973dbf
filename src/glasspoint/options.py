"""Keyword options of the public constructors and factories: their names, their types, and their check.

Open this file when an option is added. A type checker, the error about an unknown name and the error about a
value all read the `TypedDict`s: an option needs no other check. Its type stands in `option_types`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Concatenate, Literal, ParamSpec, TypedDict

from glasspoint.coherence.last_used import LastUsed
from glasspoint.errors import WrongTypeError
from glasspoint.l2.target import Target
from glasspoint.option_types import (
    Age,
    Bytes,
    FewConnections,
    KeyPrefix,
    ManyConnections,
    PasswordSource,
    Schema,
    Seconds,
    Serde,
    Share,
    SigningKey,
    SigningKeyBytes,
    Timeout,
    Uses,
    check_values,
)
from glasspoint.telemetry.events import Telemetry

__all__ = [
    "CachedOptions",
    "OpenCachedOptions",
    "OpenRedisOptions",
    "RedisOptions",
    "check_names",
    "check_options",
    "checks_options",
    "names_of",
]

_P = ParamSpec("_P")

_SUGGESTED_AT_MOST = 3


class CachedOptions(TypedDict, total=False):
    """Keyword arguments of `CachedPostgresSaver`: its constructor says what each means."""

    serde: Serde | None
    cache_ttl: Seconds
    key_prefix: KeyPrefix
    l1_timeout_seconds: Timeout
    write_deadline_seconds: Timeout
    on_l1_outage: Literal["degrade", "raise"]
    sweep_interval_seconds: Timeout
    audit_ratio: Share
    l1_signing_key: SigningKey | None
    l1_compression: Literal["off", "zstd"]
    l1_compression_min_bytes: Bytes
    foreign_writes: Literal["watch", "ignore"]
    on_fork: Literal["count", "raise"]
    retention: Age | None
    last_used: LastUsed | None
    telemetry: Telemetry | None


class OpenCachedOptions(CachedOptions, total=False):
    """Keyword arguments of `CachedPostgresSaver.create` and `from_conn_string`: `create` says what each
    means."""

    pool_min_size: FewConnections
    pool_max_size: ManyConnections
    pool_timeout_seconds: Timeout
    connect_timeout_seconds: Timeout
    prepare_threshold: Uses | None
    schema: Schema | None
    password: PasswordSource | None


class RedisOptions(TypedDict, total=False):
    """Keyword arguments of `create_redis_checkpointer`: the constructor of `RedisSaver` says what each
    means."""

    serde: Serde | None
    key_prefix: KeyPrefix
    timeout_seconds: Timeout
    telemetry: Telemetry | None
    target: Target | None
    signing_key: SigningKeyBytes | None


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


def check_options(owner: str, given: Mapping[str, object], declared: type) -> None:
    """Refuse options that do not exist, and values that they cannot have.

    Args:
        owner: What was called, for the message.
        given: What the caller gave, by name.
        declared: A `TypedDict` of the options.

    Raises:
        WrongTypeError: A name is unknown, or a value is of another type.
        ConfigurationError: A value is out of its range.
    """
    check_names(owner, given, names_of(declared))
    check_values(given, declared)


def checks_options(
    declared: type,
) -> Callable[[Callable[Concatenate[Any, _P], None]], Callable[Concatenate[Any, _P], None]]:
    """Let a constructor check its keyword options, as `check_options` does, before anything else.

    Python's own message about a name mentions a base class, and suggests nothing before version 3.13.

    Args:
        declared: A `TypedDict` of the options. Other parameters of the constructor are not checked.
    """

    def checking(init: Callable[Concatenate[Any, _P], None]) -> Callable[Concatenate[Any, _P], None]:
        parameters = inspect.signature(init).parameters
        known = names_of(declared) | (parameters.keys() - {"self"})

        @functools.wraps(init)
        def checked(self: Any, /, *args: _P.args, **options: _P.kwargs) -> None:
            check_names(type(self).__name__, options, known)
            check_values(options, declared)
            init(self, *args, **options)

        return checked

    return checking


def _suggestion(name: str, known: Collection[str]) -> str:
    alike = get_close_matches(name.lower(), known, n=1)
    alike = alike or [each for each in known if name and name in each][:_SUGGESTED_AT_MOST]
    if alike:
        return f"did you mean {' or '.join(map(repr, alike))}?"
    return f"its options are {', '.join(known)}."
