"""The database in a Redis URL: one that cannot be is named when a saver is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glasspoint import CachedPostgresSaver, Settings, create_redis_checkpointer, get_checkpointer
from glasspoint.errors import ConfigurationError, RedisRefusedError
from states import open_saver
from steps import Thread

OPENINGS: dict[str, Callable[[str, str], Any]] = {
    "cached": lambda database, url: CachedPostgresSaver.create(database, url),
    "redis": lambda _, url: create_redis_checkpointer(url),
}


@pytest.mark.parametrize("path", ["abc", "0/1", "-1", "%31"])
@pytest.mark.parametrize("tier", OPENINGS)
async def test_a_database_that_is_no_number_is_refused(tier: str, path: str, database: str) -> None:
    """redis-py takes the database 0 for `abc`, and 1 for `0/1`."""
    says = rf"names the database '{path}': it must be a whole number"
    with pytest.raises(ConfigurationError, match=says):
        await OPENINGS[tier](database, f"redis://127.0.0.1:1/{path}")


@pytest.mark.parametrize("path", ["", "/", "/0", "/1"])
async def test_a_database_that_redis_has_is_used(path: str, database: str, redis_url: str) -> None:
    async with open_saver(database, f"{redis_url.rpartition('/')[0]}{path}") as saver:
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1


async def test_a_database_that_redis_does_not_have_is_named(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{redis_url.rpartition('/')[0]}/99"
    with pytest.raises(ConfigurationError, match="cannot be the cache: it has no database 99"):
        await OPENINGS["cached"](database, url)
    with pytest.raises(RedisRefusedError, match="it has no database 99"):
        await OPENINGS["redis"](database, url)
    settings = Settings(postgres_url=database, redis_url=url)
    with pytest.raises(ConfigurationError, match="it has no database 99"):
        await get_checkpointer(settings)
    assert "does not answer" not in caplog.text
