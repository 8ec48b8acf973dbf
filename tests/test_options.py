"""Options have types and names: a typo is an error that says what was meant, before anything is opened."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from glasspoint import (
    CachedPostgresSaver,
    MemorySaver,
    RedisSaver,
    Settings,
    create_cached_postgres_checkpointer,
    create_redis_checkpointer,
)
from glasspoint.errors import ConfigurationError
from glasspoint.options import CachedOptions, OpenCachedOptions, OpenRedisOptions, names_of
from states import make_pool, open_saver
from steps import Thread

NOWHERE = "postgresql://127.0.0.1:1/none", "redis://127.0.0.1:1"

WITH_OPTIONS: dict[str, Callable[..., Any]] = {
    "CachedPostgresSaver.create": lambda **options: CachedPostgresSaver.create(*NOWHERE, **options),
    "CachedPostgresSaver.from_conn_string": lambda **options: CachedPostgresSaver.from_conn_string(
        NOWHERE[0], redis_url=NOWHERE[1], **options
    ),
    "create_cached_postgres_checkpointer": lambda **options: create_cached_postgres_checkpointer(
        *NOWHERE, **options
    ),
    "RedisSaver.create": lambda **options: RedisSaver.create(NOWHERE[1], **options),
    "RedisSaver.from_conn_string": lambda **options: RedisSaver.from_conn_string(NOWHERE[1], **options),
    "create_redis_checkpointer": lambda **options: create_redis_checkpointer(NOWHERE[1], **options),
    "RedisSaver": lambda **options: RedisSaver(Redis(), **options),
    "MemorySaver": lambda **options: MemorySaver(**options),
}


@pytest.mark.parametrize("what", WITH_OPTIONS)
async def test_a_mistyped_option_is_an_error_that_says_what_was_meant(what: str) -> None:
    with pytest.raises(
        TypeError, match=f"^{what} has no option 'telemetri': did you mean 'telemetry'"
    ) as caught:
        await WITH_OPTIONS[what](telemetri=None)
    assert isinstance(caught.value, ConfigurationError)


async def test_so_it_is_in_the_constructor_of_the_cached_saver(database: str) -> None:
    options: dict[str, Any] = {"cache_tll": 3}
    async with make_pool(database, size=1) as pool:
        with pytest.raises(
            TypeError, match="CachedPostgresSaver has no option 'cache_tll': did you mean 'cache_ttl'"
        ):
            CachedPostgresSaver(AsyncPostgresSaver(pool), Redis(), **options)


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("cache_tll", r"'cache_ttl'\?"),
        ("ttl", r"'cache_ttl'\?"),
        ("timeout", "'pool_timeout_seconds'"),
        ("pool_size", "'pool_m"),
        ("xyz", "its options are audit_ratio, cache_ttl, "),
    ],
)
async def test_the_suggestion_is_what_resembles_it(mistyped: str, meant: str) -> None:
    with pytest.raises(TypeError, match=meant):
        await WITH_OPTIONS["CachedPostgresSaver.create"](**{mistyped: 1})


def test_the_types_of_the_options_name_what_the_constructors_take() -> None:
    """Else a new option would be taken by the one, and refused by the other."""

    def keywords(call: Any) -> set[str]:
        parameters = inspect.signature(call).parameters.values()
        return {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}

    assert names_of(CachedOptions) == keywords(CachedPostgresSaver.__init__)
    assert names_of(OpenCachedOptions) == keywords(CachedPostgresSaver._open) | names_of(CachedOptions)
    assert names_of(OpenRedisOptions) == keywords(RedisSaver.__init__)


TYPED = """
from datetime import timedelta
from glasspoint import (
    CachedPostgresSaver, RedisSaver, create_cached_postgres_checkpointer, create_redis_checkpointer
)
async def open_all(url: str, redis: str) -> None:
    await CachedPostgresSaver.create(url, redis, cache_ttl=timedelta(days=1), pool_max_size=3)
    await create_redis_checkpointer(redis, timedelta(days=1), key_prefix="x")
    await CachedPostgresSaver.create(url, redis, cache_tll=3)
    CachedPostgresSaver.from_conn_string(url, redis_url=redis, pool_max_size="3")
    await create_cached_postgres_checkpointer(url, redis, cache_tll=3)
    await create_redis_checkpointer(redis, timeout=3)
    await RedisSaver.create(redis, tll=3)
    RedisSaver.from_conn_string(redis, tll=3)
"""
FIRST_WRONG_LINE = 9


@pytest.mark.slow
def test_a_type_checker_sees_a_mistyped_option(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    code = tmp_path / "service.py"
    code.write_text(TYPED)
    root = Path(__file__).parents[1]
    # In the project's folder: what `make types` knows of the sources is not found out again.
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(code)],
        cwd=root,
        env={**os.environ, "MYPYPATH": str(root / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [int(line.split(":")[1]) for line in answer.stdout.splitlines() if ": error:" in line]
    assert sorted(set(lines)) == list(range(FIRST_WRONG_LINE, len(TYPED.splitlines()) + 1)), answer.stdout


async def test_a_length_of_time_may_be_a_timedelta(database: str, redis_url: str) -> None:
    lengths = dict.fromkeys(
        (
            "cache_ttl",
            "l1_timeout_seconds",
            "write_deadline_seconds",
            "sweep_interval_seconds",
            "pool_timeout_seconds",
            "connect_timeout_seconds",
        ),
        timedelta(seconds=7),
    )
    async with open_saver(database, redis_url, **lengths) as saver, Redis.from_url(redis_url) as redis:
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        ttls = [await redis.pttl(key) async for key in redis.scan_iter()]
        assert all(0 < ttl <= 7_000 for ttl in ttls if ttl != -1), ttls
        assert saver.vitals.pool is not None
        assert saver.vitals.pool.timeout == 7
    saver = await create_redis_checkpointer(
        redis_url, timedelta(minutes=1), timeout_seconds=timedelta(seconds=3)
    )
    await Thread("b").put(saver)
    await saver.close()
    assert Settings(cache_ttl=timedelta(minutes=2)).cache_ttl == 120


@pytest.mark.parametrize("value", [0, -1, timedelta(), timedelta(seconds=-1), float("nan"), "7", None, True])
async def test_a_length_of_time_that_is_none_is_refused(value: Any) -> None:
    for name in ("cache_ttl", "pool_timeout_seconds", "connect_timeout_seconds", "write_deadline_seconds"):
        with pytest.raises(ConfigurationError, match=name):
            await WITH_OPTIONS["CachedPostgresSaver.create"](**{name: value})
    with pytest.raises(ConfigurationError, match="timeout_seconds"):
        RedisSaver(Redis(), timeout_seconds=value)
