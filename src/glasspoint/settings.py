"""Settings, read from the environment."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from glasspoint.ages import HOW_TO_WRITE_AN_AGE, parse_age
from glasspoint.errors import ConfigurationError
from glasspoint.l2.password import PasswordCommand

__all__ = ["Settings"]

_log = logging.getLogger("glasspoint")

_PREFIX = "CHECKPOINT_"

Fallback = Literal["redis", "memory"]
Tier = Literal["cached", "redis", "memory"]


def _variable(name: str, default: Any, **limits: Any) -> Any:
    if isinstance(default, float):
        limits["allow_inf_nan"] = False
    return Field(default=default, validation_alias=name, **limits)


class Settings(BaseSettings):
    """What the environment says; each variable with its unit, default and range stands in `docs/settings.md`.

    URLs and keys are secrets here: their text shows only through `get_secret_value`. An empty variable counts
    as not set, but for `CHECKPOINT_FALLBACKS`, where it means that there are none.
    """

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore")

    postgres_url: SecretStr | None = _variable("POSTGRES_URL", None)
    postgres_schema: str | None = _variable("CHECKPOINT_POSTGRES_SCHEMA", None)
    postgres_password_command: SecretStr | None = _variable("CHECKPOINT_POSTGRES_PASSWORD_COMMAND", None)
    redis_url: SecretStr | None = _variable("REDIS_URL", None)
    cache_ttl: float = _variable("CHECKPOINT_CACHE_TTL", 86400.0, gt=0)
    fallbacks: Annotated[tuple[Fallback, ...], NoDecode] = _variable(
        "CHECKPOINT_FALLBACKS", ("redis", "memory")
    )
    fallback_unknown: Literal["begin", "refuse"] = _variable("CHECKPOINT_FALLBACK_UNKNOWN", "begin")
    redis_ttl: float = _variable("CHECKPOINT_REDIS_TTL", 604800.0, gt=0)
    key_prefix: str = _variable("CHECKPOINT_KEY_PREFIX", "glasspoint", min_length=1)
    pool_min_size: int = _variable("CHECKPOINT_POOL_MIN_SIZE", 1, ge=0)
    pool_max_size: int = _variable("CHECKPOINT_POOL_MAX_SIZE", 10, ge=1)
    pool_timeout: float = _variable("CHECKPOINT_POOL_TIMEOUT", 10.0, gt=0)
    connect_timeout: float = _variable("CHECKPOINT_CONNECT_TIMEOUT", 5.0, gt=0)
    l1_timeout: float = _variable("CHECKPOINT_L1_TIMEOUT", 0.5, gt=0)
    on_l1_outage: Literal["degrade", "raise"] = _variable("CHECKPOINT_ON_L1_OUTAGE", "degrade")
    foreign_writes: Literal["watch", "ignore"] = _variable("CHECKPOINT_FOREIGN_WRITES", "watch")
    retention: timedelta | None = _variable("CHECKPOINT_RETENTION", None, gt=timedelta())
    on_fork: Literal["count", "raise"] = _variable("CHECKPOINT_ON_FORK", "count")
    sweep_interval: float = _variable("CHECKPOINT_SWEEP_INTERVAL", 1.0, gt=0)
    redis_timeout: float = _variable("CHECKPOINT_REDIS_TIMEOUT", 2.0, gt=0)
    write_deadline: float = _variable("CHECKPOINT_WRITE_DEADLINE", 10.0, gt=0)
    audit_ratio: float = _variable("CHECKPOINT_AUDIT_RATIO", 0.001, ge=0, le=1)
    l1_signing_key: SecretStr | None = _variable("CHECKPOINT_L1_SIGNING_KEY", None, min_length=16)
    l1_compression: Literal["off", "zstd"] = _variable("CHECKPOINT_L1_COMPRESSION", "off")
    l1_compression_min_bytes: int = _variable("CHECKPOINT_L1_COMPRESSION_MIN_BYTES", 1024, ge=0)
    prepare_threshold: int | None = _variable("CHECKPOINT_PREPARE_THRESHOLD", 0, ge=0)
    telemetry_thread_ids: Literal["plain", "hashed", "none"] = _variable(
        "CHECKPOINT_TELEMETRY_THREAD_IDS", "plain"
    )
    probe_interval: float = _variable("CHECKPOINT_PROBE_INTERVAL", 5.0, gt=0)
    ready_tiers: Annotated[tuple[Tier, ...], NoDecode] = _variable(
        "CHECKPOINT_READY_TIERS", ("cached", "redis", "memory")
    )

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
    def _seconds(cls, value: Any) -> Any:
        return value.total_seconds() if isinstance(value, timedelta) else value

    @field_validator("prepare_threshold", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value.strip().lower() == "none" else value

    @field_validator("retention", mode="before")
    @classmethod
    def _age(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
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
            raise ValueError("CHECKPOINT_POOL_MIN_SIZE is greater than CHECKPOINT_POOL_MAX_SIZE")
        return self

    @property
    def saver_options(self) -> dict[str, Any]:
        """Keyword arguments of `CachedPostgresSaver.create`, the same for the service and the commands."""
        return {
            "prepare_threshold": self.prepare_threshold,
            "connect_timeout_seconds": self.connect_timeout,
            "pool_timeout_seconds": self.pool_timeout,
            "l1_timeout_seconds": self.l1_timeout,
            "write_deadline_seconds": self.write_deadline,
            "l1_signing_key": self.l1_signing_key and self.l1_signing_key.get_secret_value(),
            "foreign_writes": self.foreign_writes,
            "schema": self.postgres_schema,
            "password": self.postgres_password,
        }

    @property
    def postgres_password(self) -> PasswordCommand | None:
        """What is asked for PostgreSQL's password before each new connection; `None`: it stands in the URL.

        Raises:
            ConfigurationError: The command cannot be understood.
        """
        if self.postgres_password_command is None:
            return None
        command = self.postgres_password_command.get_secret_value()
        return PasswordCommand(command, timeout_seconds=self.connect_timeout)

    @classmethod
    def from_environment(cls) -> Self:
        """Read them.

        Raises:
            ConfigurationError: A variable holds what cannot be used; the message names it, not its value.
        """
        _warn_of_misspelt_variables(cls)
        try:
            return cls()
        except ValidationError as exc:
            wrong = "; ".join(
                ": ".join([*(str(part) for part in each["loc"][:1]), each["msg"]])
                for each in exc.errors(include_input=False)
            )
            raise ConfigurationError(
                f"The environment holds a setting that cannot be used: {wrong}."
            ) from None


def _warn_of_misspelt_variables(settings: type[Settings]) -> None:
    """Say which variables of the environment are nearly settings: nobody reads them.

    Others that begin likewise may belong to other software.
    """
    known = [str(field.validation_alias) for field in settings.model_fields.values()]
    for name in sorted(os.environ):
        if (
            name.startswith(_PREFIX)
            and name not in known
            and (alike := get_close_matches(name, known, 1, 0.9))
        ):
            _log.warning("The variable %s is no setting, and is not read: did you mean %s?", name, alike[0])
