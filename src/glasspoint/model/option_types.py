"""The types of options, with their ranges and descriptions, and the check of a value against its type.

Open this file when an option needs a type that is not here yet. An option is declared with one of these types
(`options`, `settings`). It needs no check of its own: pydantic compares the value with the declaration.

An error repeats a value only if the value cannot be a secret: numbers, lengths of time, and texts of a fixed
list. For other values the error shows at most the type.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from typing import (
    Annotated,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from langgraph.checkpoint.serde.base import SerializerProtocol
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from glasspoint.errors import ConfigurationError, WrongTypeError
from glasspoint.model.ages import HOW_TO_WRITE_AN_AGE, parse_age

__all__ = [
    "HOW_TO_NAME_KEYS",
    "LONGEST_TIMEOUT_SECONDS",
    "POOL_MAX_SIZE",
    "Age",
    "Bytes",
    "FewConnections",
    "KeyPrefix",
    "ManyConnections",
    "PasswordSource",
    "RedisMode",
    "Schema",
    "Seconds",
    "Serde",
    "Share",
    "SigningKey",
    "SigningKeyBytes",
    "Timeout",
    "Uses",
    "age_of",
    "allowed_by",
    "check_names",
    "check_options",
    "check_schema",
    "check_values",
    "checks_options",
    "describe",
    "is_key_prefix",
    "is_of_wrong_type",
    "names_of",
    "seconds_of",
]

LONGEST_TIMEOUT_SECONDS = 2_147_483
"""PostgreSQL counts a `statement_timeout` in milliseconds, with 31 bits: 24 days."""

POOL_MAX_SIZE = 10
"""How many connections to PostgreSQL a saver opens at most, by default."""

HOW_TO_NAME_KEYS = "a text that is not empty and holds no NUL character"

_SIGNING_KEY_BYTES_MIN = 16

# pydantic's name of the error for a value that is not in a list of words.
_NO_SUCH_WORD = "literal_error"

_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)

# PostgreSQL stores only this many bytes of a name.
_NAME_BYTES = 63

_SUGGESTED_AT_MOST = 3

_Key = TypeVar("_Key", bytes, str)
_P = ParamSpec("_P")


def check_schema(schema: object) -> str:
    """Return the name of a schema, if it is usable.

    Raises:
        ConfigurationError: The name is empty, too long, not a text, or holds a NUL character.
    """
    if not isinstance(schema, str) or not schema or "\0" in schema or len(schema.encode()) > _NAME_BYTES:
        raise ConfigurationError(
            f"schema must be the name of one schema, as PostgreSQL stores it: 1 to {_NAME_BYTES} bytes."
        )
    return schema


def is_key_prefix(text: str) -> str:
    """Return the text, if it can be the prefix of keys in Redis, and PostgreSQL can store it.

    Raises:
        ValueError: The text is empty, or holds NUL or a lone surrogate.
    """
    if not text or "\0" in text:
        raise ValueError(HOW_TO_NAME_KEYS)
    text.encode()
    return text


def _is_age(text: str) -> str:
    if parse_age(text) is None:
        raise ValueError(HOW_TO_WRITE_AN_AGE)
    return text


def _is_long_enough(key: _Key) -> _Key:
    secret: bytes | str = key
    if len(secret.encode() if isinstance(secret, str) else secret) < _SIGNING_KEY_BYTES_MIN:
        raise PydanticCustomError("key_too_short", "too short")
    return key


def _is_serde(serde: object) -> object:
    # LangGraph also accepts older serializers, and adds the missing methods (`maybe_add_typed_methods`).
    for names in (("dumps_typed", "loads_typed"), ("dumps", "loads")):
        if all(callable(getattr(serde, name, None)) for name in names):
            return serde
    raise PydanticCustomError("serde_type", "no serializer")


_POSITIVE_SECONDS = "a number of seconds greater than 0, or a timedelta"
_TIMEOUT = f"{_POSITIVE_SECONDS}; at most {LONGEST_TIMEOUT_SECONDS} seconds (24 days)"
_AGE = "a timedelta greater than 0, or a text such as '30d': a number and a unit, as in 90m, 12h, 30d, 2w"

Seconds: TypeAlias = (
    Annotated[float, Field(gt=0, allow_inf_nan=False, description=_POSITIVE_SECONDS)]
    | Annotated[timedelta, Field(gt=timedelta(), description="")]
)
"""A length of time: a number of seconds, or a `timedelta`."""

Timeout: TypeAlias = (
    Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT_SECONDS, allow_inf_nan=False, description=_TIMEOUT)]
    | Annotated[
        timedelta, Field(gt=timedelta(), le=timedelta(seconds=LONGEST_TIMEOUT_SECONDS), description="")
    ]
)
"""A timeout or an interval: a number of seconds, or a `timedelta`; 24 days at most."""

Age: TypeAlias = (
    Annotated[timedelta, Field(gt=timedelta(), description=_AGE)]
    | Annotated[str, AfterValidator(_is_age), Field(description="")]
)
"""An age: a `timedelta`, or a text such as `"30d"`. Numbers are refused, because their unit is not clear."""

Share: TypeAlias = Annotated[float, Field(ge=0, le=1, description="a number from 0 (none) to 1 (all)")]
FewConnections: TypeAlias = Annotated[
    int, Field(ge=0, description="a whole number of connections, 0 or more")
]
ManyConnections: TypeAlias = Annotated[
    int, Field(ge=1, description="a whole number of connections, 1 or more")
]
Uses: TypeAlias = Annotated[int, Field(ge=0, description="a whole number of uses, 0 or more")]
Bytes: TypeAlias = Annotated[int, Field(ge=0, description="a whole number of bytes, 0 or more")]
KeyPrefix: TypeAlias = Annotated[str, AfterValidator(is_key_prefix), Field(description=HOW_TO_NAME_KEYS)]
Schema: TypeAlias = Annotated[
    str,
    AfterValidator(check_schema),
    Field(description="the name of one schema, as PostgreSQL stores it: 1 to 63 bytes"),
]
Serde: TypeAlias = Annotated[
    SerializerProtocol,
    PlainValidator(_is_serde),
    Field(description="a serializer with dumps_typed and loads_typed, such as a JsonPlusSerializer"),
]
RedisMode: TypeAlias = Literal["auto", "single", "cluster", "sentinel"]
PasswordSource: TypeAlias = Annotated[
    Callable[..., Any],
    Field(
        description="a function that returns PostgreSQL's password (a password that never changes belongs "
        "into the connection string)"
    ),
]

_A_KEY = "at least 16 bytes that nobody can guess"
SigningKeyBytes: TypeAlias = Annotated[
    bytes,
    AfterValidator(_is_long_enough),
    Field(description=f"{_A_KEY}, for example secrets.token_bytes(32)"),
]
SigningKey: TypeAlias = (
    Annotated[
        bytes,
        AfterValidator(_is_long_enough),
        Field(description=f"{_A_KEY}, or a text of as many, for example what `openssl rand -hex 32` prints"),
    ]
    | Annotated[str, AfterValidator(_is_long_enough), Field(description="")]
)


def check_values(given: Mapping[str, object], declared: type) -> None:
    """Check that the values of options fit the declarations.

    Args:
        given: The options, by name. Names that are not declared are ignored.
        declared: A `TypedDict` of the options.

    Raises:
        ConfigurationError: A value is out of its range.
        WrongTypeError: A value is of another type (a TypeError, too).
    """
    known = _declarations(declared)
    for name, value in given.items():
        if name in known:
            known[name].check(name, value)


def allowed_by(hint: object, *, none_too: bool = True) -> str:
    """Return the values that a declared type allows, in words that can follow "must be".

    Args:
        hint: The type.
        none_too: Whether to mention `None`, if the type allows it.
    """
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        said = [each.description for each in extras if isinstance(each, FieldInfo)]
        return next((each for each in said if each is not None), None) or (
            "" if "" in said else allowed_by(inner)
        )
    if get_origin(hint) in (Union, types.UnionType):
        return ", or ".join(filter(None, (allowed_by(each, none_too=none_too) for each in get_args(hint))))
    if get_origin(hint) is Literal:
        *others, last = (f'"{each}"' for each in get_args(hint))
        return f"{', '.join(others)} or {last}"
    if hint is type(None):
        return "None" if none_too else ""
    if isinstance(hint, type):
        return f"{'an' if hint.__name__[0] in 'AEIOUaeiou' else 'a'} {hint.__name__}"
    raise TypeError(f"nobody has said what {hint} allows")


def seconds_of(value: Seconds) -> float:
    """Return a length of time, checked before, in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def age_of(value: Age) -> timedelta:
    """Return an age, checked before, as a `timedelta`."""
    if isinstance(value, timedelta):
        return value
    age = parse_age(value)
    assert age is not None
    return age


class _Declaration:
    """The type of one option, prepared for checks."""

    def __init__(self, hint: Any) -> None:
        self._adapter = TypeAdapter[Any](hint, config=_CONFIG)
        self._allowed = allowed_by(hint)
        self._is_of_words = any(_is_of_words(each) for each in _members(hint))

    def check(self, name: str, value: object) -> None:
        """Check a value against the declaration: see `check_values`."""
        try:
            self._adapter.validate_python(value)
        except ValidationError as exc:
            kinds = {each["type"] for each in exc.errors(include_input=False, include_url=False)}
        else:
            return
        error = WrongTypeError if is_of_wrong_type(value, kinds) else ConfigurationError
        raise error(f"{describe(name, value, kinds, self._allowed, is_word=self._is_of_words)}.")


def describe(name: str, value: object, kinds: Collection[str], allowed: str, *, is_word: bool) -> str:
    """Return what is wrong with a value, without a full stop. A value that may be a secret is not repeated.

    Args:
        name: The caller's name of the option.
        value: The value that the caller gave.
        kinds: pydantic's names of the errors: the `type` of each.
        allowed: The allowed values, in words.
        is_word: Whether only texts of a fixed list are allowed, so that the value is not a secret.
    """
    if is_of_wrong_type(value, kinds):
        return f"{name} is of the type {type(value).__name__}: it must be {allowed}"
    if isinstance(value, str | bytes) and not value:
        found = "is empty"
    elif any(kind.endswith("_too_short") for kind in kinds):
        found = "is too short"
    elif isinstance(value, int | float | timedelta) or is_word:
        found = f"is {value!r}"
    else:
        found = "cannot be used"
    return f"{name} {found}: it must be {allowed}"


def is_of_wrong_type(value: object, kinds: Collection[str]) -> bool:
    """Whether pydantic's errors are about the type of a value, not about its range."""
    if set(kinds) == {_NO_SUCH_WORD}:
        return not isinstance(value, str)
    return all(kind.endswith("_type") or kind in ("is_instance_of", "none_required") for kind in kinds)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_of_words(hint: Any) -> bool:
    """Whether a type allows only known words or ages, so that a value is not a secret."""
    if get_origin(hint) is Literal:
        return True
    return get_origin(hint) is Annotated and any(
        isinstance(each, AfterValidator) and each.func is _is_age for each in get_args(hint)
    )


@cache
def _declarations(declared: type) -> dict[str, _Declaration]:
    return {name: _Declaration(hint) for name, hint in get_type_hints(declared, include_extras=True).items()}


def names_of(options: type) -> frozenset[str]:
    """Return the names of a `TypedDict` of options."""
    keys: frozenset[str] = options.__optional_keys__  # type: ignore[attr-defined]
    return keys


def check_names(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that do not exist.

    Args:
        owner: The function or class that was called, for the message.
        given: The names that the caller used.
        known: The names that exist.

    Raises:
        WrongTypeError: A name is unknown. The message suggests similar names.
    """
    for name in given:
        if name not in known:
            raise WrongTypeError(f"{owner} has no option {name!r}: {_suggestion(name, sorted(known))}")


def check_options(owner: str, given: Mapping[str, object], declared: type) -> None:
    """Refuse options that do not exist, and values that do not fit the declarations.

    Args:
        owner: The function or class that was called, for the message.
        given: The options that the caller gave, by name.
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
    """Return a decorator that makes a constructor check its keyword options first, as `check_options` does.

    Python's own error for an unknown name mentions a base class, and suggests no name before version 3.13.

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
