"""A Redis for the explorer: it reigns anew many times, and others should not have to notice."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from glasspoint.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def explored_redis() -> Iterator[EmbeddedRedis]:
    """Shared by all explorations."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="session")
def another_redis() -> Iterator[EmbeddedRedis]:
    """For those who have another one than the others."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Each new reign and each retry is a warning; but tests elsewhere want to see them."""
    log = logging.getLogger("glasspoint")
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(logging.NOTSET)
