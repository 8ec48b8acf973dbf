"""Settings, read from the environment."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

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
