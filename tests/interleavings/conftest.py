"""A Redis for the explorer: it reigns anew many times, and others should not have to notice."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from glasspoint.demo.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def explored_redis() -> Iterator[EmbeddedRedis]:
    """Shared by all explorations."""
    logging.getLogger("glasspoint").setLevel(logging.ERROR)  # each new reign, each retry is a warning
    with EmbeddedRedis() as server:
        yield server
    logging.getLogger("glasspoint").setLevel(logging.NOTSET)
