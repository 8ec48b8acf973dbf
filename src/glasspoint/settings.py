"""Settings, read from the environment."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from glasspoint.errors import ConfigurationError

__all__ = ["Settings"]


class Settings(BaseSettings):
    """What the environment says. URLs are secrets here: their text shows only through `get_secret_value`.

    | variable | means | default |
    |---|---|---|
    | `POSTGRES_URL` | where PostgreSQL is | none |
    | `REDIS_URL` | where Redis is | none |
    | `CHECKPOINT_CACHE_TTL` | seconds (> 0) that an entry stays in Redis after its last use | 86400 |
    """

    model_config = SettingsConfigDict(env_ignore_empty=True)

    postgres_url: SecretStr | None = Field(default=None, validation_alias="POSTGRES_URL")
    redis_url: SecretStr | None = Field(default=None, validation_alias="REDIS_URL")
    cache_ttl: float = Field(default=86400, gt=0, validation_alias="CHECKPOINT_CACHE_TTL")

    @classmethod
    def from_environment(cls) -> Self:
        """Read them.

        Raises:
            ConfigurationError: A variable holds what cannot be used; the message names it, not its value.
        """
        try:
            return cls()
        except ValidationError as exc:
            wrong = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in exc.errors(include_input=False))
            raise ConfigurationError(
                f"The environment holds a setting that cannot be used: {wrong}."
            ) from None
