"""The demo's PostgreSQL and Redis: its own servers, unless the environment names others."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.l1.cluster import servers_of
from glasspoint.l1.epoch import keys_of
from glasspoint.model.scope import Scope
from glasspoint.redis.detection import opened_redis
from glasspoint.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from glasspoint.model.option_types import RedisMode
    from glasspoint.model.password import Password
    from glasspoint.settings import Fallback

__all__ = ["Servers", "own_servers", "run_servers"]

_REDIS_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Servers:
    """The URLs of PostgreSQL and Redis, and whether the demo may break them.

    Attributes:
        postgres_url: PostgreSQL, in the form of `POSTGRES_URL`.
        redis_url: Redis, in the form of `REDIS_URL`.
        own_postgres: The PostgreSQL that was started here and may be killed; `None` if it is the user's.
        own_redis: The Redis that was started here and may be flushed and killed; `None` if it is the user's.
    """

    postgres_url: str
    redis_url: str
    own_postgres: EmbeddedPostgres | None
    own_redis: EmbeddedRedis | None
    signing_key: SecretStr | None = None
    """Signs the entries in Redis. The demo's own PostgreSQL needs it, because it asks for no password."""
    schema: str | None = None
    """The schema of a user's PostgreSQL, from `CHECKPOINT_POSTGRES_SCHEMA`."""
    password: Password | None = None
    """The password of a user's PostgreSQL, from `CHECKPOINT_POSTGRES_PASSWORD_COMMAND`."""
    redis_mode: RedisMode = "auto"
    """What a user's Redis is, from `CHECKPOINT_REDIS_MODE`."""

    @property
    def own(self) -> set[str]:
        """The servers that the demo may break."""
        servers = {"PostgreSQL": self.own_postgres, "Redis": self.own_redis}
        return {name for name, server in servers.items() if server is not None}

    @property
    def all_own(self) -> bool:
        """Whether all servers vanish with the demo, so that there is nothing to clean up."""
        return self.own_postgres is not None and self.own_redis is not None

    def settings(self, *, fallbacks: tuple[Fallback, ...], defaults: Mapping[str, Any] = {}) -> Settings:
        """Return the settings with which an application uses these servers.

        Args:
            fallbacks: The tiers below `cached` that it may use.
            defaults: Further settings, for those that the environment does not set.
        """
        of_environment = Settings().model_fields_set
        return Settings(
            postgres_url=SecretStr(self.postgres_url),
            postgres_schema=self.schema,
            postgres_password_command=None,
            redis_url=SecretStr(self.redis_url),
            redis_mode=self.redis_mode,
            fallbacks=fallbacks,
            l1_signing_key=self.signing_key,
            **{name: value for name, value in defaults.items() if name not in of_environment},
        )

    async def redis_state(self) -> tuple[str, int]:
        """Return the `run_id` of the Redis process that answers now, and its number of keys.

        Not for a Redis Cluster: the demo starts none.
        """
        async with self._each_redis() as [redis]:
            server = await redis.info("server")
            return str(server["run_id"]), int(await redis.dbsize())

    async def forget_cached(self, scopes: Iterable[Scope]) -> None:
        """Remove the entries of these scopes from Redis, and nothing else."""
        patterns = [keys_of(scope, key_prefix=self._key_prefix) for scope in scopes]
        async with self._each_redis() as servers:
            for redis in servers:
                for pattern in patterns:
                    async for key in redis.scan_iter(match=pattern, count=1000):
                        await redis.unlink(key)

    @asynccontextmanager
    async def _each_redis(self) -> AsyncIterator[list[Redis]]:
        """Connect to Redis; to a cluster: to each of its masters."""
        seconds, mode = _REDIS_TIMEOUT_SECONDS, self.redis_mode
        async with (
            opened_redis(self.redis_url, timeout_seconds=seconds, mode=mode) as redis,
            servers_of(redis, key_prefix=self._key_prefix) as servers,
        ):
            yield [server for server, _ in servers]

    @property
    def _key_prefix(self) -> str:
        return self.settings(fallbacks=()).key_prefix


def own_servers(settings: Settings) -> set[str]:
    """Return the servers that the demo will start, and may break."""
    urls = {"PostgreSQL": settings.postgres_url, "Redis": settings.redis_url}
    return {name for name, url in urls.items() if url is None}


@contextmanager
def run_servers(settings: Settings) -> Iterator[Servers]:
    """Start the servers that `POSTGRES_URL` and `REDIS_URL` do not name, and stop them in any case.

    Raises:
        EmbeddedServerUnavailable: A server is needed, but cannot be started on this machine. If a program is
            missing, this is raised before anything is started.
    """
    if settings.postgres_url is None:
        EmbeddedPostgres.require()
    if settings.redis_url is None:
        EmbeddedRedis.require()
    with ExitStack() as stack:
        own_postgres, own_redis, signing_key = None, None, settings.l1_signing_key
        schema, password = None, None
        redis_mode: RedisMode = "auto"
        if settings.postgres_url is None:
            own_postgres = stack.enter_context(EmbeddedPostgres())
            postgres_url = own_postgres.url
            signing_key = signing_key or SecretStr(secrets.token_hex(16))
        else:
            postgres_url = settings.postgres_url.get_secret_value()
            schema, password = settings.postgres_schema, settings.postgres_password
        if settings.redis_url is None:
            own_redis = stack.enter_context(EmbeddedRedis())
            redis_url = own_redis.url
        else:
            redis_url, redis_mode = settings.redis_url.get_secret_value(), settings.redis_mode
        yield Servers(
            postgres_url, redis_url, own_postgres, own_redis, signing_key, schema, password, redis_mode
        )
