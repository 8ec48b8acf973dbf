"""Options have types and names: a typo is an error that says what was meant, before anything is opened."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis

from glasspoint import (
    CachedPostgresSaver,
    MemorySaver,
    RedisSaver,
    Settings,
    create_cached_postgres_checkpointer,
    create_redis_checkpointer,
    get_checkpointer,
)
from glasspoint.errors import ConfigurationError
from glasspoint.fallback.factory import ChainOptions
from glasspoint.model.option_types import names_of
from glasspoint.savers.memory_saver import MemoryOptions
from glasspoint.savers.options import CachedOptions, OpenCachedOptions, OpenRedisOptions, RedisSaverOptions
from places import ROOT
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
    pool_options = set(re.findall(r"`(\w+)`(?= \(|[,:])", str(CachedPostgresSaver.create.__doc__)))
    assert names_of(OpenCachedOptions) - names_of(CachedOptions) <= pool_options, "documented"
    assert names_of(RedisSaverOptions) == keywords(RedisSaver.__init__)
    assert names_of(OpenRedisOptions) - names_of(RedisSaverOptions) == {"redis_mode"}
    assert "`redis_mode`" in str(RedisSaver.create.__doc__), "documented"


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

# The types of the options are Glasspoint's own. Reading those of all libraries takes fifteen seconds.
WITHOUT_LIBRARIES = """
[mypy]
strict = True
follow_imports = silent
[mypy-httpx.*,langchain_core.*,langgraph.*,opentelemetry.*,prometheus_client.*,psycopg.*,psycopg_pool.*]
follow_imports = skip
[mypy-ormsgpack.*,pydantic.*,pydantic_settings.*,redis.*,zstandard.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_type_checker_sees_a_mistyped_option(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    code, config = tmp_path / "service.py", tmp_path / "mypy.ini"
    code.write_text(TYPED)
    config.write_text(WITHOUT_LIBRARIES)
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), str(code)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [int(line.split(":")[1]) for line in answer.stdout.splitlines() if ": error:" in line]
    assert sorted(set(lines)) == list(range(FIRST_WRONG_LINE, len(TYPED.splitlines()) + 1)), answer.stdout


async def test_a_length_of_time_may_be_a_timedelta(database: str, redis_url: str) -> None:
    lengths: dict[str, Any] = dict.fromkeys(
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
        assert saver.status.pool is not None
        assert saver.status.pool.timeout == 7
    alone = await create_redis_checkpointer(
        redis_url, timedelta(minutes=1), timeout_seconds=timedelta(seconds=3)
    )
    await Thread("b").put(alone)
    await alone.close()
    assert Settings(cache_ttl=timedelta(minutes=2)).cache_ttl == 120


class Hidden:
    """A value of a type that no option takes. Its text must not be repeated: it may be a secret."""

    def __repr__(self) -> str:
        return SECRET


SECRET = "hush-hush-hush-hush"
SAMPLES: list[Any] = [
    SECRET,
    SECRET.encode(),
    bytearray(SECRET, "ascii"),
    True,
    1,
    1.5,
    1j,
    timedelta(days=1),
    None,
    [SECRET],
    (SECRET,),
    {SECRET: SECRET},
    Hidden(),
]
nothing: Any = None
DECLARED: dict[str, tuple[type, Callable[..., Any]]] = {
    "CachedPostgresSaver": (
        CachedOptions,
        lambda **options: CachedPostgresSaver(nothing, nothing, **options),
    ),
    "CachedPostgresSaver.create": (OpenCachedOptions, WITH_OPTIONS["CachedPostgresSaver.create"]),
    "CachedPostgresSaver.from_conn_string": (
        OpenCachedOptions,
        WITH_OPTIONS["CachedPostgresSaver.from_conn_string"],
    ),
    "create_cached_postgres_checkpointer": (
        OpenCachedOptions,
        WITH_OPTIONS["create_cached_postgres_checkpointer"],
    ),
    "RedisSaver": (RedisSaverOptions, WITH_OPTIONS["RedisSaver"]),
    "RedisSaver.create": (OpenRedisOptions, WITH_OPTIONS["RedisSaver.create"]),
    "RedisSaver.from_conn_string": (OpenRedisOptions, WITH_OPTIONS["RedisSaver.from_conn_string"]),
    "create_redis_checkpointer": (OpenRedisOptions, WITH_OPTIONS["create_redis_checkpointer"]),
    "MemorySaver": (MemoryOptions, WITH_OPTIONS["MemorySaver"]),
    "get_checkpointer": (ChainOptions, lambda **options: get_checkpointer(**options)),
}


def types_of(hint: Any) -> set[type]:
    """The types that a declaration names."""
    if get_origin(hint) is Annotated:
        return types_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return set().union(*map(types_of, get_args(hint)))
    if get_origin(hint) is Literal:
        return {type(each) for each in get_args(hint)}
    return {int, float} if hint is float else {get_origin(hint) or hint}


async def refusal_of(door: Callable[..., Any], name: str, value: object) -> ConfigurationError:
    """What is raised at the door."""

    async def go_in() -> None:
        opening = door(**{name: value})
        if inspect.iscoroutine(opening):
            await opening

    with pytest.raises(ConfigurationError) as caught:
        await go_in()
    error: ConfigurationError = caught.value
    assert str(error).startswith(f"{name} "), (name, value, error)
    assert "it must be " in str(error)
    assert SECRET not in str(error)
    return error


@pytest.mark.parametrize("where", DECLARED)
async def test_an_option_of_another_type_is_refused_at_the_door(where: str) -> None:
    declared, door = DECLARED[where]
    for name, hint in get_type_hints(declared, include_extras=True).items():
        for value in SAMPLES:
            if type(value) in types_of(hint):
                continue
            error = await refusal_of(door, name, value)
            assert isinstance(error, TypeError), (name, value)
            assert f"is of the type {type(value).__name__}:" in str(error)


@pytest.mark.parametrize("where", DECLARED)
async def test_a_number_that_is_out_of_range_is_refused_at_the_door(where: str) -> None:
    declared, door = DECLARED[where]
    for name, hint in get_type_hints(declared, include_extras=True).items():
        if float in types_of(hint):
            for value in (float("nan"), float("inf"), -float("inf"), -1, -0.5):
                assert repr(value) in str(await refusal_of(door, name, value))
        elif int in types_of(hint):
            assert "-1" in str(await refusal_of(door, name, -1))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("audit_ratio", "1", "audit_ratio is of the type str: it must be a number from 0 (none) to 1 (all)."),
        ("audit_ratio", 1.5, "audit_ratio is 1.5: it must be a number from 0 (none) to 1 (all)."),
        ("on_fork", "rais", 'on_fork is \'rais\': it must be "count" or "raise".'),
        (
            "prepare_threshold",
            "none",
            "is of the type str: it must be a whole number of uses, 0 or more, or None.",
        ),
        ("pool_max_size", 0, "pool_max_size is 0: it must be a whole number of connections, 1 or more."),
        ("key_prefix", "", "key_prefix is empty: it must be a text that is not empty and holds no NUL"),
        ("key_prefix", f"{SECRET}\0", "key_prefix cannot be used: it must be a text"),
        ("key_prefix", "\ud800", "key_prefix cannot be used: it must be a text"),
        ("schema", SECRET * 4, "schema cannot be used: it must be the name of one schema"),
        (
            "retention",
            "30",
            "retention is '30': it must be a timedelta greater than 0, or a text such as '30d'",
        ),
        ("l1_signing_key", SECRET[:15], "l1_signing_key is too short: it must be at least 16 bytes"),
        ("write_deadline_seconds", 3e6, "is 3000000.0: it must be a number of seconds greater than 0, or a "),
    ],
)
async def test_the_error_says_what_was_given_and_what_is_allowed(name: str, value: Any, says: str) -> None:
    for where in ("CachedPostgresSaver.create", "CachedPostgresSaver.from_conn_string"):
        assert says in str(await refusal_of(WITH_OPTIONS[where], name, value))


async def test_a_serializer_of_the_older_kind_is_taken(redis_url: str) -> None:
    """LangGraph takes it: an object with `dumps` and `loads`, such as a module."""
    saver = await create_redis_checkpointer(redis_url, serde=cast("Any", pickle))
    await Thread("a").put(saver)
    await saver.close()


async def test_another_saver_in_place_of_postgres_saver_is_named() -> None:
    saver: Any = InMemorySaver()
    with pytest.raises(ConfigurationError, match="postgres_saver is of the type InMemorySaver: it must be"):
        CachedPostgresSaver(saver, Redis())


@pytest.mark.parametrize("value", [0, -1, timedelta(), timedelta(seconds=-1), float("nan"), "7", None, True])
async def test_a_length_of_time_that_is_none_is_refused(value: Any) -> None:
    for name in ("cache_ttl", "pool_timeout_seconds", "connect_timeout_seconds", "write_deadline_seconds"):
        with pytest.raises(ConfigurationError, match=name):
            await WITH_OPTIONS["CachedPostgresSaver.create"](**{name: value})
    with pytest.raises(ConfigurationError, match="timeout_seconds"):
        RedisSaver(Redis(), timeout_seconds=value)
