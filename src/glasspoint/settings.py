"""Settings, read from the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from glasspoint.errors import ConfigurationError, WrongTypeError
from glasspoint.model.ages import HOW_TO_WRITE_AN_AGE, parse_age
from glasspoint.model.option_types import (
    LONGEST_TIMEOUT_SECONDS,
    POOL_MAX_SIZE,
    Bytes,
    FewConnections,
    KeyPrefix,
    ManyConnections,
    RedisMode,
    Schema,
    Share,
    Uses,
    allowed_by,
    check_names,
    describe,
    is_of_wrong_type,
)
from glasspoint.model.password import PasswordCommand

__all__ = ["Settings"]

_log = logging.getLogger("glasspoint")

_PREFIX = "CHECKPOINT_"

# pydantic's name of an error -> how our message describes the value. The message does not repeat the value,
# because it may be a secret in the wrong variable.
_FOUND = {
    **dict.fromkeys(
        ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"),
        "is out of range",
    ),
    "too_short": "is too short",
    "literal_error": "is none of the allowed words",
}

Fallback = Literal["redis", "memory"]
Tier = Literal["cached", "redis", "memory"]


def _variable(name: str, default: Any, allowed: str | None = None, **limits: Any) -> Any:
    """Declare a setting.

    Args:
        name: The environment variable.
        default: The value if the variable is not set.
        allowed: The allowed values, in words; by default those of the type.
        limits: Arguments of pydantic's `Field`.
    """
    if allowed is not None:  # a description of None would hide that of the type
        limits["description"] = allowed
    return Field(default=default, validation_alias=name, **limits)


_TTL = "a number of seconds greater than 0"
_TIMEOUT = f"{_TTL}, at most {LONGEST_TIMEOUT_SECONDS} (24 days)"

_Ttl = Annotated[float, Field(gt=0, allow_inf_nan=False, description=_TTL)]
_Timeout = Annotated[
    float, Field(gt=0, le=LONGEST_TIMEOUT_SECONDS, allow_inf_nan=False, description=_TIMEOUT)
]


class Settings(BaseSettings):
    """The settings in the environment. `docs/settings.md` lists each with its unit, default and range.

    URLs and keys are secrets here: only `get_secret_value` shows their text. An empty variable counts as not
    set, except `CHECKPOINT_FALLBACKS`: if that is empty, there are no fallbacks.
    """

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore")

    postgres_url: SecretStr | None = _variable("POSTGRES_URL", None, "a URL: postgresql://…")
    postgres_schema: Schema | None = _variable("CHECKPOINT_POSTGRES_SCHEMA", None)
    postgres_password_command: SecretStr | None = _variable(
        "CHECKPOINT_POSTGRES_PASSWORD_COMMAND", None, "a program and its arguments, quoted as for a shell"
    )
    redis_url: SecretStr | None = _variable(
        "REDIS_URL", None, "a URL: redis://…, rediss://…, unix://…, redis+sentinel://… or redis+cluster://…"
    )
    redis_mode: RedisMode = _variable("CHECKPOINT_REDIS_MODE", "auto")
    cache_ttl: _Ttl = _variable("CHECKPOINT_CACHE_TTL", 86400.0)
    fallbacks: Annotated[tuple[Fallback, ...], NoDecode] = _variable(
        "CHECKPOINT_FALLBACKS",
        ("redis", "memory"),
        "redis, memory, both as in redis,memory (each tier once, and redis before memory), or empty",
    )
    fallback_unknown: Literal["begin", "refuse"] = _variable("CHECKPOINT_FALLBACK_UNKNOWN", "begin")
    redis_ttl: _Ttl = _variable("CHECKPOINT_REDIS_TTL", 604800.0)
    key_prefix: KeyPrefix = _variable("CHECKPOINT_KEY_PREFIX", "glasspoint")
    pool_min_size: FewConnections = _variable("CHECKPOINT_POOL_MIN_SIZE", 1)
    pool_max_size: ManyConnections = _variable("CHECKPOINT_POOL_MAX_SIZE", POOL_MAX_SIZE)
    pool_timeout: _Timeout = _variable("CHECKPOINT_POOL_TIMEOUT", 10.0)
    connect_timeout: _Timeout = _variable("CHECKPOINT_CONNECT_TIMEOUT", 5.0)
    l1_timeout: _Timeout = _variable("CHECKPOINT_L1_TIMEOUT", 0.5)
    on_l1_outage: Literal["degrade", "raise"] = _variable("CHECKPOINT_ON_L1_OUTAGE", "degrade")
    foreign_writes: Literal["watch", "ignore"] = _variable("CHECKPOINT_FOREIGN_WRITES", "watch")
    retention: timedelta | None = _variable(
        "CHECKPOINT_RETENTION", None, "an age greater than 0, as in 90m, 12h, 30d, 2w", gt=timedelta()
    )
    on_fork: Literal["count", "raise"] = _variable("CHECKPOINT_ON_FORK", "count")
    sweep_interval: _Timeout = _variable("CHECKPOINT_SWEEP_INTERVAL", 1.0)
    redis_timeout: _Timeout = _variable("CHECKPOINT_REDIS_TIMEOUT", 2.0)
    write_deadline: _Timeout = _variable("CHECKPOINT_WRITE_DEADLINE", 10.0)
    audit_ratio: Share = _variable("CHECKPOINT_AUDIT_RATIO", 0.001)
    l1_signing_key: SecretStr | None = _variable(
        "CHECKPOINT_L1_SIGNING_KEY",
        None,
        "a text of at least 16 characters that nobody can guess, for example what `openssl rand -hex 32` "
        "prints",
        min_length=16,
    )
    l1_compression: Literal["off", "zstd"] = _variable("CHECKPOINT_L1_COMPRESSION", "off")
    l1_compression_min_bytes: Bytes = _variable("CHECKPOINT_L1_COMPRESSION_MIN_BYTES", 1024)
    prepare_threshold: Uses | None = _variable(
        "CHECKPOINT_PREPARE_THRESHOLD", 0, "a whole number of uses, 0 or more, or none"
    )
    telemetry_thread_ids: Literal["plain", "hashed", "none"] = _variable(
        "CHECKPOINT_TELEMETRY_THREAD_IDS", "plain"
    )
    probe_interval: _Timeout = _variable("CHECKPOINT_PROBE_INTERVAL", 5.0)
    ready_tiers: Annotated[tuple[Tier, ...], NoDecode] = _variable(
        "CHECKPOINT_READY_TIERS",
        ("cached", "redis", "memory"),
        "one or more of cached, redis and memory, separated by commas",
        min_length=1,
    )

    if not TYPE_CHECKING:  # a type checker derives the parameters from the fields, and finds mistyped names

        def __init__(self, **values: Any) -> None:
            """Read the environment. Arguments replace variables.

            Args:
                values: Settings by the name of the field or of the variable. A value has the field's type, or
                    is a text as in the environment. A length of time may be a `timedelta`.

            Raises:
                ConfigurationError: A setting cannot be used.
                WrongTypeError: A setting does not exist, or is of a wrong type (a TypeError, too).
            """
            fields = type(self).model_fields
            variables = {str(field.validation_alias) for field in fields.values()}
            # Names with an underscore in front are options of pydantic-settings.
            names = [name for name in values if name not in variables and not name.startswith("_")]
            check_names(type(self).__name__, names, fields)
            try:
                super().__init__(**values)
            except ValidationError as exc:
                errors = exc.errors(include_url=False)
            else:
                return
            # Raised outside the block: otherwise its __context__ would hold the values.
            raise _error_of(fields, errors, values)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_not_set(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if v != "" or k in ("CHECKPOINT_FALLBACKS", "fallbacks")}

    @field_validator("fallbacks", "ready_tiers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _is_as_written_or_of_the_type(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic is lax here, because a variable is a text. So it would accept True as 1.
        hint = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool | bytes | bytearray):
            raise PydanticCustomError("other_type", "of another type")
        if isinstance(value, timedelta) and hint is float:
            return value.total_seconds()
        return value

    @field_validator("prepare_threshold", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value.strip().lower() == "none" else value

    @field_validator("retention", mode="before")
    @classmethod
    def _age(cls, value: Any) -> Any:
        if value is None or isinstance(value, timedelta):
            return value
        if not isinstance(value, str):  # the unit of a number is not clear: days or seconds
            raise PydanticCustomError("age_type", "of another type")
        age = parse_age(value)
        if age is None:
            raise ValueError(HOW_TO_WRITE_AN_AGE)
        return age

    @field_validator("fallbacks")
    @classmethod
    def _each_once_and_in_order(cls, value: tuple[Fallback, ...]) -> tuple[Fallback, ...]:
        if value not in ((), ("redis",), ("memory",), ("redis", "memory")):
            raise ValueError("each tier once, and redis before memory")
        return value

    @model_validator(mode="after")
    def _pool_sizes_fit(self) -> Self:
        if self.pool_min_size > self.pool_max_size:
            raise ValueError(
                "CHECKPOINT_POOL_MIN_SIZE must not be greater than CHECKPOINT_POOL_MAX_SIZE "
                f"({POOL_MAX_SIZE}, if that is not set)"
            )
        return self

    @property
    def postgres_password(self) -> PasswordCommand | None:
        """The command that returns PostgreSQL's password; `None` if the password is in the URL.

        It runs before each new connection.

        Raises:
            ConfigurationError: The command cannot be understood.
        """
        if self.postgres_password_command is None:
            return None
        command = self.postgres_password_command.get_secret_value()
        return PasswordCommand(command, timeout_seconds=self.connect_timeout)

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings from the environment, and warn of misspelt variables.

        Raises:
            ConfigurationError: A variable has an unusable value. The message names only the variable.
        """
        _warn_of_misspelt_variables(cls)
        return cls()


def _error_of(
    fields: Mapping[str, FieldInfo], errors: Sequence[ErrorDetails], given: Mapping[str, object]
) -> ConfigurationError:
    """Make the error that names each wrong setting, what was found, and what is allowed."""
    by_variable = {str(field.validation_alias): name for name, field in fields.items()}
    kinds: dict[str, list[str]] = {}  # field -> pydantic's names of its errors
    said = []
    for error in errors:
        if error["loc"]:
            at = str(error["loc"][0])
            kinds.setdefault(by_variable.get(at, at), []).append(error["type"])
        else:
            said.append(str(error["ctx"]["error"]))
    is_wrong_type = not said
    for name, found in kinds.items():
        field = fields[name]
        allowed = field.description or allowed_by(field.annotation, none_too=name in given)
        own = next((each for each in (name, str(field.validation_alias)) if each in given), None)
        value = "" if own is None else given[own]
        if own is not None and not isinstance(value, str | list | tuple):
            said.append(describe(own, value, found, allowed, is_word=False))
            is_wrong_type &= is_of_wrong_type(value, found)
            continue
        is_wrong_type = False
        what = next((_FOUND[kind] for kind in found if kind in _FOUND), "cannot be understood")
        said.append(f"{own or field.validation_alias} {what}: it must be {allowed}")
    where = "A setting" if given else "The environment holds a setting that"
    error_class = WrongTypeError if is_wrong_type else ConfigurationError
    return error_class(f"{where} cannot be used: {'; '.join(said)}.")


def _warn_of_misspelt_variables(settings: type[Settings]) -> None:
    """Warn of environment variables whose names are nearly those of settings: they are not read.

    Other variables with the same prefix may belong to other software.
    """
    known = [str(field.validation_alias) for field in settings.model_fields.values()]
    for name in sorted(os.environ):
        if name.upper() not in known and (meant := _meant_by(name.upper(), known)) is not None:
            _log.warning("The variable %s is no setting, and is not read: did you mean %s?", name, meant)


def _meant_by(name: str, known: Collection[str]) -> str | None:
    """Return the setting that a misspelt variable means, `None` if that is not clear."""
    prefix, _, rest = name.partition("_")
    if prefix == "GLASSPOINT":
        name = f"{_PREFIX}{rest}"
    elif not name.startswith(_PREFIX):
        return None
    for candidate in (name, rest, name.removesuffix("_SECONDS")):
        if candidate in known:
            return candidate
    alike = get_close_matches(name, known, 1, 0.9)
    return alike[0] if alike else None
