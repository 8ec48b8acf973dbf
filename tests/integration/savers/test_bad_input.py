"""Bad input is an error that says what to do, never a password, never half a write; good input is taken."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis as sync_redis
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

import preforked
from bad_configs import CALLS, CONFIGS
from glasspoint import CachedPostgresSaver, Settings, create_cached_postgres_checkpointer, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import (
    ConfigurationError,
    GlasspointError,
    InvalidConfigError,
    L2UnavailableError,
    SaverClosedError,
    SchemaError,
    SerializationError,
)
from passwords import HALVES, PASSWORD, shown
from roles import role_with_password
from states import config_of, open_saver, value_of
from steps import OTHER_CONNECTIONS, Thread, keys_of, rows_of, settled, until


def create(postgres_url: str, redis: Any, **options: Any) -> Awaitable[CachedPostgresSaver]:
    options.setdefault("telemetry", create_telemetry(registry=CollectorRegistry()))
    return CachedPostgresSaver.create(postgres_url, redis, **options)


# ------------------------------------------------------------------ the config of a call


async def test_a_config_that_names_no_thread_is_refused_before_anything_is_touched(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        await Thread("a").put(saver)
        await settled(saver)
        before = await rows_of(database), await keys_of(redis_url)
        for what, (config, says) in CONFIGS.items():
            for name, call in CALLS.items():
                if not config and name == "alist":
                    continue  # lists all threads
                with pytest.raises(InvalidConfigError, match=says) as caught:
                    await call(saver, config)
                assert isinstance(caught.value, ValueError), f"{name}, {what}"
        assert (await rows_of(database), await keys_of(redis_url)) == before


@pytest.mark.parametrize("thread_id", ["", "a\0b", "\ud800", None, 7])
async def test_a_thread_id_that_nobody_can_have_is_not_deleted(
    thread_id: Any, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        with pytest.raises(InvalidConfigError, match="thread_id"):
            await saver.adelete_thread(thread_id)


async def test_writes_need_a_checkpoint_to_belong_to(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        with pytest.raises(InvalidConfigError, match="no checkpoint_id"):
            await saver.aput_writes(config_of("a"), [("messages", 1)], "task")
        assert (await rows_of(database))["checkpoint_writes"] == 0
        assert await keys_of(redis_url) == {}


# ------------------------------------------------------------------ values

VALUES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "an object that no serializer knows": (
        lambda: {"messages": threading.Lock()},
        r"channel 'messages' \(lock\)",
    ),
    "an object deep inside": (
        lambda: {"messages": [HumanMessage(PASSWORD, additional_kwargs={"tool": {1: threading.Lock()}})]},
        r"channel 'messages'\[0\]\.additional_kwargs\['tool'\]\[…\] \(lock\)",
    ),
    "a value that holds itself": (lambda: {"messages": holds_itself()}, r"channel 'messages'"),
    "a number that no serializer knows": (lambda: {"turn": 10**5000}, r"channel 'turn' \(int\)"),
    "a channel's name with NUL": (lambda: {"chan\0nel": [PASSWORD]}, r"channel 'chan\\x00nel'"),
    "a channel's name that is no Unicode": (lambda: {"a\ud800": [PASSWORD]}, r"channel 'a\\ud800'"),
}


def holds_itself() -> list[Any]:
    found: list[Any] = [PASSWORD]
    found.append(found)
    return found


@pytest.mark.parametrize("what", VALUES)
async def test_what_cannot_be_serialised_fails_before_a_server_is_touched(
    what: str, database: str, redis_url: str
) -> None:
    """The error names the channel and the path, and holds nothing else of the state."""
    made, says = VALUES[what]
    values = {"secret": [PASSWORD], **made()}
    async with open_saver(database, redis_url) as saver, Redis.from_url(redis_url) as redis:
        thread = Thread("a")
        await thread.put(saver)
        await settled(saver)
        before = await rows_of(database), await keys_of(redis_url), await _scripts_run(redis)
        with pytest.raises(SerializationError, match="Nothing was stored") as caught:
            await saver.aput(*Thread("a").next_put(saver, **values))
        assert re.search(says, str(caught.value)), caught.value
        assert isinstance(caught.value, ValueError)
        assert not any(half in shown(caught.value) for half in HALVES)
        assert (await rows_of(database), await keys_of(redis_url), await _scripts_run(redis)) == before
        assert await thread.turn(saver) == 1


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ({"user": "a\0b"}, ""),
        ({"user": ["x", "a\0b"]}, "['user'][1]"),
        ({"user": float("nan")}, "['user']"),
        ({"user": "\ud800"}, "['user']"),
        ({"user": {"a": threading.Lock()}}, "['user']['a']"),
        ({"user": {"a\0": 1}}, "['user'] (a key)"),
        ({"writes": {"a\0": 1}}, ""),
    ],
    ids=["NUL", "NUL inside", "NaN", "no Unicode", "an object", "NUL in a key", "NUL in what is left out"],
)
async def test_metadata_that_cannot_be_stored_fails_before_a_server_is_touched(
    metadata: dict[str, Any], place: str, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver, Redis.from_url(redis_url) as redis:
        config, checkpoint, plain, versions = Thread("a").next_put(saver)
        before = await rows_of(database), await _scripts_run(redis)
        try:
            await saver.aput(config, checkpoint, {**plain, **metadata}, versions)  # type: ignore[typeddict-item]
        except SerializationError as exc:
            assert "Nothing was stored" in str(exc)  # noqa: PT017 - the else is the other half
            assert place
            assert f"the metadata{place} as JSON" in str(exc)  # noqa: PT017
            assert (await rows_of(database), await _scripts_run(redis)) == before
        else:
            assert not place
            # LangGraph itself takes NUL out of metadata; then it is stored, and read back the same from both.
            hit = await saver.aget_tuple(config)
            assert hit is not None
            assert "\0" not in repr(hit.metadata)


@pytest.mark.parametrize(
    ("writes", "task_id"),
    [
        ([("messages", "fine"), ("messages", threading.Lock())], "task"),
        ([("messages", "fine"), ("a\0b", 1)], "task"),
        ([("messages", "fine"), ("a\ud800", 1)], "task"),
        ([("messages", "fine")], "ta\0sk"),
        ([("messages", "fine")], "ta\ud800sk"),
    ],
    ids=["value", "channel", "channel, no Unicode", "task", "task, no Unicode"],
)
async def test_of_a_task_s_writes_all_are_stored_or_none(
    writes: list[tuple[str, Any]], task_id: str, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver, Redis.from_url(redis_url) as redis:
        thread = Thread("a")
        await thread.put(saver)
        await settled(saver)
        before = await rows_of(database), await keys_of(redis_url), await _scripts_run(redis)
        with pytest.raises(SerializationError, match="Nothing was stored"):
            await saver.aput_writes(thread.newest, writes, task_id)
        assert (await rows_of(database), await keys_of(redis_url), await _scripts_run(redis)) == before


async def test_a_serde_that_fails_while_reading_is_an_error_of_the_serde(
    database: str, redis_url: str
) -> None:
    """What nobody can read is refused from L1 and from L2 alike, and stays as it is."""

    class Forgetful(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            raise LookupError("this type is not known any more")

    async with open_saver(database, redis_url) as saver:
        thread = Thread("a")
        await thread.put(saver)
        async with open_saver(database, redis_url, serde=Forgetful()) as forgetful:
            with pytest.raises(LookupError, match="not known any more"):
                await thread.turn(forgetful)
        assert await thread.turn(saver) == 1


async def _scripts_run(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


# ------------------------------------------------------------------ clients


async def test_a_client_that_decodes_responses_is_refused_wherever_it_is_passed_in(
    empty_database: str, redis_url: str
) -> None:
    async with (
        Redis.from_url(redis_url, decode_responses=True) as redis,
        AsyncConnectionPool(empty_database, open=False) as pool,
    ):
        with pytest.raises(ConfigurationError, match=r"decode_responses=True.*make one without it") as caught:
            await create(empty_database, redis)
        assert isinstance(caught.value, ValueError)
        with pytest.raises(ConfigurationError, match="decode_responses"):
            await create_cached_postgres_checkpointer(empty_database, redis)
        with pytest.raises(ConfigurationError, match="decode_responses"):
            await create(empty_database, f"{redis_url}?decode_responses=True")
        with pytest.raises(ConfigurationError, match="decode_responses"):
            CachedPostgresSaver(AsyncPostgresSaver(pool), redis, pool)  # type: ignore[arg-type]
    assert (await rows_of(empty_database))["checkpoints"] is None, "refused before a table was made"


async def test_only_an_asynchronous_client_of_redis_is_taken(database: str, redis_url: str) -> None:
    with sync_redis.Redis.from_url(redis_url) as blocking:
        for client in (blocking, None, 7, object(), database.encode()):
            with pytest.raises(ConfigurationError, match=r"must be"):
                await create(database, client)


async def test_the_pool_must_be_the_one_that_the_postgres_saver_works_on(
    database: str, redis_url: str
) -> None:
    async with (
        Redis.from_url(redis_url) as redis,
        AsyncConnectionPool(database, open=False) as pool,
        AsyncConnectionPool(database, open=False) as other,
    ):
        with pytest.raises(ConfigurationError, match="pass that one"):
            CachedPostgresSaver(AsyncPostgresSaver(pool), redis, other)  # type: ignore[arg-type]


async def test_a_connection_in_pipeline_mode_is_refused(database: str, redis_url: str) -> None:
    """Its writes return before they are durable."""
    async with (
        Redis.from_url(redis_url) as redis,
        AsyncPostgresSaver.from_conn_string(database, pipeline=True) as upstream,
    ):
        with pytest.raises(ConfigurationError, match="pipeline"):
            CachedPostgresSaver(upstream, redis)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_ttl": 0},
        {"cache_ttl": -1},
        {"l1_timeout_seconds": 0},
        {"write_deadline_seconds": 0},
        {"cache_ttl": float("nan")},
        {"pool_max_size": 0},
        {"pool_min_size": 5, "pool_max_size": 4},
        {"pool_min_size": -1},
    ],
    ids=str,
)
async def test_a_setting_out_of_its_range_is_refused(
    options: dict[str, Any], database: str, redis_url: str
) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        await create(database, redis_url, **options)


def test_settings_show_no_url_and_refuse_a_useless_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_URL", f"postgresql://user:{PASSWORD}@host/db")
    monkeypatch.setenv("REDIS_URL", f"redis://:{PASSWORD}@host")
    settings = Settings()
    assert settings.postgres_url is not None
    assert PASSWORD in settings.postgres_url.get_secret_value()
    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    monkeypatch.setenv("CHECKPOINT_CACHE_TTL", "0")
    with pytest.raises(ConfigurationError, match=r"CHECKPOINT_CACHE_TTL .*greater than 0") as caught:
        Settings.from_environment()
    assert PASSWORD not in shown(caught.value)


# ------------------------------------------------------------------ URLs that cannot be used

UNUSABLE_POSTGRES_URLS = [
    "",
    "   ",
    "host",
    "user:{password}@127.0.0.1:1/db",
    "postgresql://",
    "postgresql:/user:{password}@127.0.0.1:1/db",
    "mysql://user:{password}@127.0.0.1:1/db",
    "http://user:{password}@127.0.0.1:1/db",
    "postgresql+psycopg2://user:{password}@127.0.0.1:1/db",
    "postgresql://user:{password}@[::1/db",
    "postgresql://user:{password}@127.0.0.1:port/db",
    "postgresql://user:{password}@127.0.0.1:1/db?no_such_setting=1",
    "postgresql://user:{password}%zz@127.0.0.1:1/db",
    "postgresql://user:{password}@127.0.0.1:1/db?sslmode=perhaps",
    "postgresql+asyncpg://user:{password}@127.0.0.1:1/db?ssl=perhaps",
    "host=127.0.0.1 port=1 user=u password='{password} dbname=x",
    "host=127.0.0.1 port=1 user=u password={password} dbname",
    # a password that was not percent-encoded
    *(
        f"postgresql://user:{{half0}}{char}{{half1}}@127.0.0.1:1/db"
        for char in (
            "@",
            "?",
            "#",
            "/",
            ":",
            " ",
            "%",
            "[",
            "]",
            "&",
            "\\",
            "?x=",
            "?host=",
            "@/",
            "?ssl=",
            "\n",
        )
    ),
]
UNREACHABLE_POSTGRES_URLS = [
    "postgresql://user:{password}@127.0.0.1:1/db",
    "postgresql+asyncpg://user:{password}@127.0.0.1:1/db?ssl=require",
    "postgresql://user:{password}@no-such-host.invalid/db",
    "postgresql://user@127.0.0.1:1/db?password={password}",
    "postgresql://127.0.0.1:1/db?user=u&password={password}",
    "host=127.0.0.1 port=1 user=u password={password} dbname=x",
    "host=127.0.0.1 port=1 user=u password='{password}' dbname=x",
    "postgresql:///db?host=/no/such/directory&user=u&password={password}",
]


def with_password(url: str) -> str:
    return url.format(password=PASSWORD, half0=HALVES[0], half1=HALVES[1])


@pytest.mark.parametrize("url", UNUSABLE_POSTGRES_URLS)
async def test_a_postgres_url_that_cannot_be_used_says_so_without_the_password(
    url: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises((ConfigurationError, L2UnavailableError)) as caught:
        await create(with_password(url), redis_url, connect_timeout_seconds=2)
    assert not any(half in shown(caught.value) + caplog.text for half in HALVES), shown(caught.value)
    assert len(str(caught.value)) > 40, "it says what to do"


@pytest.mark.parametrize("url", UNREACHABLE_POSTGRES_URLS)
async def test_a_postgres_that_cannot_be_reached_is_a_connection_error_without_the_password(
    url: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(
        L2UnavailableError, match=r"cannot be reached: .*Check the connection string"
    ) as caught:
        await create(with_password(url), redis_url, connect_timeout_seconds=2)
    assert isinstance(caught.value, ConnectionError)
    assert not any(half in shown(caught.value) + caplog.text for half in HALVES)


async def test_a_database_that_is_not_there_is_named(database: str, redis_url: str) -> None:
    missing = database.replace(urlsplit(database).path, "/no_such_database")
    with pytest.raises(ConfigurationError, match='database "no_such_database" does not exist'):
        await create(missing, redis_url)


@pytest.fixture
def role(postgres: EmbeddedPostgres, empty_database: str) -> Iterator[str]:
    """The URL of the test's database for a role that has a password and owns nothing."""
    with role_with_password(postgres, empty_database, PASSWORD) as name:
        yield empty_database.replace("postgres@", f"{name}:{PASSWORD}@")


async def test_a_wrong_postgres_password_is_refused_and_never_shown(
    role: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = role.replace(PASSWORD, f"{PASSWORD}x")
    with pytest.raises(ConfigurationError, match="password authentication failed") as caught:
        await create(wrong, redis_url)
    assert not any(half in shown(caught.value) + caplog.text for half in HALVES)


UNUSABLE_REDIS_URLS = [
    "",
    "localhost",
    "localhost:6379",
    ":{password}@127.0.0.1:1",
    "http://:{password}@127.0.0.1:1",
    "postgresql://:{password}@127.0.0.1:1",
    "redis://:{password}@127.0.0.1:port/0",
    "redis://:{password}@[::1/0",
    "redis://user:{half0}#{half1}@127.0.0.1:1/0",
    "redis://user:{half0}/{half1}@127.0.0.1:1/0",
    "redis://user:{half0}?{half1}@127.0.0.1:1/0",
    "redis://:{password}@127.0.0.1:1/0?max_connections=many",
    "redis://:{password}@127.0.0.1:1/0?no_such_option=1",
]


@pytest.mark.parametrize("url", UNUSABLE_REDIS_URLS)
async def test_a_redis_url_that_cannot_be_used_says_so_without_the_password(
    url: str, empty_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError, match="Redis URL") as caught:
        await create(empty_database, with_password(url))
    assert isinstance(caught.value, ValueError)
    assert not any(half in shown(caught.value) + caplog.text for half in HALVES), shown(caught.value)
    assert (await rows_of(empty_database))["checkpoints"] is None, "refused before a table was made"


@pytest.mark.parametrize(
    "url", ["redis://:{password}@127.0.0.1:1/0", "unix:///no/such/socket?password={password}"]
)
async def test_a_redis_that_is_only_down_is_logged_and_not_waited_for(
    url: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_saver(database, with_password(url)) as saver:
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert "L1 (Redis) does not answer" in warnings[0]
    assert "L1 (Redis) is left alone" in warnings[1]
    assert not any(half in caplog.text for half in HALVES)


@pytest.mark.parametrize("given", ["none", "wrong"])
async def test_a_wrong_redis_password_is_said_aloud_and_the_cache_comes_to_life_when_it_is_right(
    given: str, database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL alone can serve. Without a restart: the server takes the password later."""
    caplog.set_level(logging.DEBUG)
    thread = Thread("a")
    password = {"none": "", "wrong": f":{PASSWORD}@"}[given]
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with Redis.from_url(own_redis.url) as admin:
        await admin.config_set("requirepass", f"{PASSWORD}y")
        url = own_redis.url.replace("//", f"//{password}")
        async with open_saver(database, url, telemetry=telemetry) as saver:
            await thread.put(saver)
            assert await thread.turn(saver) == 1
            [error] = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
            assert "Redis refuses this user or password" in error
            assert "REDIS_URL" in error
            assert saver._parts.breaker.state != "closed"
            assert (await saver._check())["l1"] == "unavailable"
            await admin.config_set("requirepass", {"none": "", "wrong": PASSWORD}[given])
            await until(lambda: is_a_hit(saver, thread, registry))
        assert not any(half in caplog.text for half in HALVES)


async def is_a_hit(saver: CachedPostgresSaver, thread: Thread, registry: CollectorRegistry) -> bool:
    """Read once; was it answered by L1?"""
    name, labels = "glasspoint_l1_reads_total", {"saver": "default", "result": "hit"}
    before = value_of(registry, name, labels) or 0.0
    assert await thread.turn(saver) == 1
    return (value_of(registry, name, labels) or 0.0) > before


# ------------------------------------------------------------------ URLs that can be used


def connection_strings(url: str) -> dict[str, str]:
    """The test's database in every form that people have."""
    parts = conninfo_to_dict(url)
    host, port, name = quote(str(parts["host"]), safe=""), parts["port"], parts["dbname"]
    query = f"host={host}&port={port}"
    hard = quote("p@ss/w?rd#%:", safe="")
    return {
        "postgresql": f"postgresql://postgres@/{name}?{query}",
        "postgres": f"postgres://postgres@/{name}?{query}",
        "asyncpg": f"postgresql+asyncpg://postgres@/{name}?{query}",
        "asyncpg with ssl": f"postgresql+asyncpg://postgres@/{name}?ssl=require&{query}",
        "asyncpg without ssl": f"postgresql+asyncpg://postgres@/{name}?ssl=false&{query}",
        "psycopg": f"postgresql+psycopg://postgres@/{name}?{query}",
        "a password that needs encoding": f"postgresql://postgres:{hard}@/{name}?{query}",
        "nothing before the path": f"postgresql:///{name}?user=postgres&{query}",
        "key=value": f"host={parts['host']} port={port} dbname={name} user=postgres",
        "socket as host": f"postgresql://postgres@{host}:{port}/{name}",
        "more parameters": f"postgresql://postgres@/{name}?{query}&application_name=my%20app&connect_timeout=3",
    }


@pytest.mark.parametrize("form", connection_strings("postgresql://postgres@/x?host=/x&port=1"))
async def test_a_connection_string_is_taken_as_people_have_it(
    form: str, database: str, redis_url: str
) -> None:
    async with open_saver(connection_strings(database)[form], redis_url) as saver:
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1
    assert (await rows_of(database))["checkpoints"] == 1


@pytest.mark.parametrize(
    ("ssl", "sslmode"),
    [
        ("require", "require"),
        ("true", "require"),
        ("True", "require"),
        ("false", "disable"),
        ("prefer", "prefer"),
    ],
)
async def test_asyncpg_s_ssl_is_read_as_sslmode(ssl: str, sslmode: str) -> None:
    from glasspoint.l2.pool import postgres_conninfo

    given = conninfo_to_dict(postgres_conninfo(f"postgresql+asyncpg://u:p%40@h:1/d?ssl={ssl}"))
    assert (given["sslmode"], given["user"], given["password"], given["host"]) == (sslmode, "u", "p@", "h")


async def test_redis_may_listen_on_a_unix_socket(database: str, own_redis: EmbeddedRedis) -> None:
    path = own_redis.directory / "redis.sock"
    own_redis.stop()
    own_redis.start("--unixsocket", str(path))
    async with open_saver(database, f"unix://{path}") as saver:
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1
    assert len(await keys_of(own_redis.url)) == 1


# ------------------------------------------------------------------ rights and tables


async def test_a_role_that_may_not_make_tables_is_told_so(role: str, redis_url: str) -> None:
    with pytest.raises(
        SchemaError, match=r"may not create the checkpoint tables.*setup\(\) once.*GRANT"
    ) as caught:
        await create(role, redis_url)
    assert isinstance(caught.value, PermissionError)
    assert not any(half in shown(caught.value) for half in HALVES)
    assert await keys_of(redis_url) == {}


async def test_missing_tables_are_told_of_at_the_first_use(empty_database: str, redis_url: str) -> None:
    async with CachedPostgresSaver.from_conn_string(
        empty_database, redis_url=redis_url, telemetry=create_telemetry(registry=CollectorRegistry())
    ) as saver:
        thread = Thread("a")
        for call in (
            thread.turn(saver),
            thread.put(saver),
            saver.adelete_thread("a"),
            anext(saver.alist(None)),
        ):
            with pytest.raises(SchemaError, match=r"setup\(\)"):
                await call
    assert (await rows_of(empty_database))["checkpoints"] is None


async def test_a_role_that_may_only_read_and_write_is_enough_once_tables_are_there(
    role: str, empty_database: str, redis_url: str
) -> None:
    async with open_saver(empty_database, redis_url):
        pass
    name = urlsplit(role).username
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as conn:
        grant = sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}")
        await conn.execute(grant.format(sql.Identifier(name or "")))
    async with open_saver(role, redis_url) as saver:  # its setup, too
        thread = Thread("a")
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        assert await thread.turn(saver) == 1
        await saver.adelete_thread("a")
        assert await thread.turn(saver) is None


SETUP_AT_ONCE = """
import asyncio, sys
from glasspoint import CachedPostgresSaver

async def main(postgres_url, redis_url):
    options = {"redis_url": redis_url, "pool_max_size": 2}
    async with (
        CachedPostgresSaver.from_conn_string(postgres_url, **options) as one,
        CachedPostgresSaver.from_conn_string(postgres_url, **options) as two,
        CachedPostgresSaver.from_conn_string(postgres_url, **options) as three,
    ):
        print("ready", flush=True)
        sys.stdin.readline()
        await asyncio.gather(*(saver.setup() for saver in (one, two, three, one, two, three)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_many_processes_may_set_up_an_empty_database_at_once(
    empty_database: str, redis_url: str, tmp_path: Path
) -> None:
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr:
        arguments: Any = (SETUP_AT_ONCE, empty_database, redis_url)
        processes = [await preforked.start(*arguments, env=os.environ, stderr=stderr) for _ in range(3)]
    try:
        for process in processes:
            assert await process.stdout.readline() == b"ready\n"
        for process in processes:
            process.stdin.write(b"go\n")
        ends = [await process.wait() for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert ends == [0, 0, 0], errors.read_text()
    assert (await rows_of(empty_database))["checkpoint_migrations"] == len(AsyncPostgresSaver.MIGRATIONS)


async def test_ten_savers_may_set_up_an_empty_database_at_once(empty_database: str, redis_url: str) -> None:
    savers = await asyncio.gather(*(create(empty_database, redis_url, pool_max_size=1) for _ in range(10)))
    try:
        await asyncio.gather(*(Thread(f"thread {i}").put(saver) for i, saver in enumerate(savers)))
        assert (await rows_of(empty_database))["checkpoints"] == 10
    finally:
        await asyncio.gather(*(saver.close() for saver in savers))


# ------------------------------------------------------------------ opening and closing


async def until_nobody_else_is_connected(database: str) -> None:
    """A server notices that a connection was closed when it next has time to."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:

        async def is_alone() -> bool:
            return await (await conn.execute(OTHER_CONNECTIONS)).fetchone() == (0,)

        await until(is_alone)


async def test_option_a_of_the_reference_works(database: str, redis_url: str) -> None:
    """`create` and `close`: the saver closes its pool, the caller's client stays open."""
    async with Redis.from_url(redis_url) as redis:
        saver = await CachedPostgresSaver.create(database, redis)
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        await saver.close()
        assert await redis.ping()
    await until_nobody_else_is_connected(database)


@pytest.mark.parametrize("autocommit", [True, False])
async def test_option_b_of_the_reference_works(autocommit: bool, empty_database: str, redis_url: str) -> None:
    """The constructor over the caller's pool: with the arguments that LangGraph asks for, and with none."""
    kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row} if autocommit else {}
    redis = Redis.from_url(redis_url)
    pool = AsyncConnectionPool(conninfo=empty_database, kwargs=kwargs, open=False)
    await pool.open()
    saver = CachedPostgresSaver(postgres_saver=AsyncPostgresSaver(pool), redis=redis, pool=pool)  # type: ignore[arg-type]
    await saver.setup()
    thread = Thread("a")
    await thread.put(saver)
    await thread.put_writes(saver, "x")
    assert await thread.turn(saver) == 1
    async with open_saver(empty_database, redis_url) as other:
        found = await other.aget_tuple(thread.config)
        assert found is not None
        assert found.pending_writes == [("task", "messages", "x")], "committed, not left in a transaction"
    await saver.adelete_thread("a")
    assert (await rows_of(empty_database))["checkpoints"] == 0
    await saver.close()
    assert not pool.closed, "the caller opened it, the caller closes it"
    assert await redis.ping()
    await pool.close()
    await redis.aclose()


async def test_one_connection_is_enough(empty_database: str, redis_url: str) -> None:
    async with (
        Redis.from_url(redis_url) as redis,
        AsyncPostgresSaver.from_conn_string(empty_database) as upstream,
    ):
        saver = CachedPostgresSaver(upstream, redis, telemetry=create_telemetry(registry=CollectorRegistry()))
        await saver.setup()
        threads = [Thread(f"thread {i}") for i in range(8)]
        await asyncio.gather(*(thread.put(saver) for thread in threads))
        assert await asyncio.gather(*(thread.turn(saver) for thread in threads)) == [1] * 8
        await saver.close()


async def test_a_connection_outside_autocommit_is_refused(database: str, redis_url: str) -> None:
    """Nobody would commit on it: a put would be acknowledged and cached, and PostgreSQL never have it."""
    async with Redis.from_url(redis_url) as redis, await psycopg.AsyncConnection.connect(database) as conn:
        with pytest.raises(ConfigurationError, match="autocommit"):
            CachedPostgresSaver(AsyncPostgresSaver(conn), redis)  # type: ignore[arg-type]


async def test_a_closed_saver_says_so(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        thread = Thread("a")
        await thread.put(saver)
        clone = saver.with_allowlist([("glasspoint.model.scope", "Scope")])
        await saver.close()
        await saver.close()  # again: harmless
        calls = [
            *(call(closed, thread.newest) for call in CALLS.values() for closed in (saver, clone)),  # type: ignore[arg-type]
            saver.adelete_thread("a"),
            saver.setup(),
        ]
        for call in calls:
            with pytest.raises(SaverClosedError, match="closed: open a new one") as caught:
                await call
            assert isinstance(caught.value, RuntimeError)


async def test_closing_lets_what_is_under_way_end(database: str, redis_url: str) -> None:
    """A call in flight is answered or fails with an error of ours; L1 is never left behind L2."""
    for _ in range(5):
        thread = Thread(uuid4().hex)
        async with open_saver(database, redis_url, pool_max_size=1) as saver:
            puts = asyncio.gather(
                *(Thread(f"other {i}").put(saver) for i in range(3)),
                thread.put(saver),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
            await saver.close()
            for answer in await puts:
                assert answer is None or isinstance(answer, GlasspointError), answer
        async with (
            open_saver(database, redis_url) as again,
            AsyncPostgresSaver.from_conn_string(database) as truth,
        ):
            assert await thread.turn(again) == await thread.turn(truth)


async def test_a_failed_opening_leaves_nothing_open(empty_database: str, redis_url: str, role: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        clients = {each["id"] for each in await redis.client_list()}

        async def has_no_more_clients() -> bool:
            return {each["id"] for each in await redis.client_list()} <= clients

        for bad in (role, "postgresql://user@127.0.0.1:1/db"):
            with pytest.raises(GlasspointError):
                await create(bad, redis_url)
        await until(has_no_more_clients)
    await until_nobody_else_is_connected(empty_database)
