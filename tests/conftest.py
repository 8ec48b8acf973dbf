"""Real servers for every test; nothing of the environment (POSTGRES_URL, REDIS_URL, PGPORT) changes them."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from glasspoint.demo.embedded import EmbeddedPostgres, EmbeddedRedis


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL. A test that breaks it starts its own."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """The session's Redis. A test that breaks it uses `own_redis`."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a new, empty database; it is dropped afterwards, whoever is still connected."""
    name = f"test_{uuid4().hex}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of the session's Redis, empty."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    """A Redis for this test alone, to kill, freeze and restart."""
    with EmbeddedRedis() as server:
        yield server
