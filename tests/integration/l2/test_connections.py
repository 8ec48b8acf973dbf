"""How PostgreSQL is entered: with a password that changes, into a schema; and what is said if it is not."""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg import sql

from databases import with_tables
from glasspoint import CachedPostgresSaver, Settings, create_telemetry, get_checkpointer
from glasspoint.cli.check import run_checks
from glasspoint.cli.setup import run_setup
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.errors import ConfigurationError, L2UnavailableError, WrongTypeError
from glasspoint.l2.target import Target, fallback_secret
from glasspoint.model.password import PasswordCommand
from glasspoint.savers.options import access_options
from pgbouncer import PROGRAM, pgbouncer
from roles import role_with_password
from states import make_pool, open_saver
from steps import Thread, locked, rows_of, until

FIRST, SECOND = ("".join((word, "-", "word")) for word in ("opening", "changed"))

# ------------------------------------------------------------------ a password that changes


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


@pytest.fixture
def role(postgres: EmbeddedPostgres, database: str) -> Iterator[str]:
    """A role that may do everything with the tables of the test's database, with the password `FIRST`."""
    with (
        role_with_password(postgres, database, FIRST) as name,
        psycopg.connect(database, autocommit=True) as conn,
    ):
        conn.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(name)))
        yield name


def url_of(database: str, role: str, password: str | None = None) -> str:
    return database.replace("postgres@", f"{role}:{password}@" if password else f"{role}@")


def rotate(database: str, role: str, password: str) -> None:
    """Change the role's password, and end its connections: the next ones need it."""
    with psycopg.connect(database, autocommit=True) as conn:
        change = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
        conn.execute(change)
        conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [role]
        )


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous", "lambda of a coroutine"])
async def test_a_password_is_asked_for_each_new_connection(
    kind: str, role: str, database: str, redis_url: str
) -> None:
    valid = FIRST

    def synchronous() -> str:
        return valid

    async def asynchronous() -> str:
        return valid

    password = {
        "synchronous": synchronous,
        "asynchronous": asynchronous,
        "lambda of a coroutine": lambda: asynchronous(),
    }[kind]
    # The connection string's own one is wrong, and not used.
    async with open_saver(url_of(database, role, "wrong"), redis_url, password=password) as saver:
        thread = Thread("a")
        await thread.put(saver)
        valid = SECOND
        rotate(database, role, SECOND)
        await thread.put(saver)
        assert await thread.turn(saver) == 2
        assert (await saver._check())["l2"] == "ok"


async def test_the_error_after_a_rotation_says_that_the_password_is_wrong(
    role: str, database: str, redis_url: str
) -> None:
    options: dict[str, Any] = {"pool_timeout_seconds": 0.5}
    async with open_saver(url_of(database, role, FIRST), redis_url, **options) as saver:
        thread = Thread("a")
        await thread.put(saver)
        rotate(database, role, SECOND)
        with pytest.raises(
            L2UnavailableError,
            match=r"^PostgreSQL gives no new connection \(the password is wrong or missing\)",
        ) as caught:
            await thread.put(saver)
        assert FIRST not in str(caught.value)
        assert "pool_max_size" not in str(caught.value)
        rotate(database, role, FIRST)
        thread.number, thread.newest = 0, thread.config
        await thread.put(saver)
        assert await thread.turn(saver) == 1


async def test_the_error_while_a_server_is_down_says_that_nothing_listens(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    database = with_tables(own_postgres)
    async with open_saver(database, redis_url, pool_timeout_seconds=0.5, pool_max_size=1) as saver:
        thread = Thread("a")
        await thread.put(saver)
        own_postgres.stop()
        with pytest.raises(
            L2UnavailableError, match=r"^PostgreSQL gives no new connection \(nothing listens there\)"
        ):
            await thread.put(saver)
        own_postgres.start()


async def test_a_lost_postgres_is_one_line_of_ours_and_its_return_another(
    own_postgres: EmbeddedPostgres, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """psycopg's pool has a line for each attempt to connect."""
    database = with_tables(own_postgres)

    def ours() -> list[str]:
        lines = [
            each for each in caplog.records if each.name == "glasspoint.l2" and "new conn" in each.message
        ]
        assert {each.levelname for each in lines} <= {"WARNING"}
        return [each.message for each in lines]

    async with open_saver(database, redis_url, pool_timeout_seconds=0.5, pool_max_size=2) as saver:
        thread = Thread("a")
        await thread.put(saver)
        for number in (1, 2):
            own_postgres.stop()
            for _ in range(3):
                with pytest.raises(L2UnavailableError):
                    await saver.alist(thread.config).__anext__()
            *_, lost = ours()
            assert lost.startswith("L2: PostgreSQL gives no new connection (nothing listens there): ")
            own_postgres.start()
            await until(lambda: _works(saver, thread))
            *_, back = ours()
            assert back == "L2 (PostgreSQL) is back: it gives new connections again."
            assert len(ours()) == 2 * number


async def _works(saver: CachedPostgresSaver, thread: Thread) -> bool:
    try:
        return [each async for each in saver.alist(thread.config)] != []
    except L2UnavailableError:
        return False


async def test_the_error_of_a_pool_that_is_too_small_says_so(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url, pool_timeout_seconds=0.2, pool_max_size=1) as saver:
        async with locked(database, "checkpoints") as waiter:
            blocked = asyncio.ensure_future(Thread("a").put(saver))
            await waiter()
            with pytest.raises(L2UnavailableError, match=r"all 1 of the pool are in use.*pool_max_size"):
                await Thread("b").put(saver)
        await blocked


def raises() -> str:
    raise LookupError(FIRST)


async def takes_long() -> str:
    await asyncio.Event().wait()
    return ""


@pytest.mark.parametrize(
    ("password", "error", "says"),
    [
        (raises, L2UnavailableError, "raised LookupError"),
        (takes_long, L2UnavailableError, r"did not return within 0\.2 s"),
        (lambda: None, ConfigurationError, "of the type NoneType: it must be a string"),
        (lambda: b"word", ConfigurationError, "of the type bytes: it must be a string"),
        (lambda: "", ConfigurationError, "is empty"),
        (lambda: "wrong", ConfigurationError, "the password is wrong"),
        (PasswordCommand("/no/such/program", timeout_seconds=5), ConfigurationError, "cannot be run"),
        ("word", WrongTypeError, "of the type str: it must be a function"),
        (PasswordCommand("false", timeout_seconds=5), L2UnavailableError, "exit status 1"),
    ],
)
async def test_a_password_that_cannot_be_had_is_an_error_that_says_so(
    password: Any, error: type[Exception], says: str, role: str, database: str, redis_url: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await CachedPostgresSaver.create(
            url_of(database, role),
            redis_url,
            password=password,
            # Enough for the thread of a function that returns at once, on a machine that is busy.
            connect_timeout_seconds=0.2 if password is takes_long else 30.0,
            telemetry=create_telemetry(registry=CollectorRegistry()),
        )
    assert FIRST not in str(caught.value)


async def test_a_password_that_cannot_be_had_any_more_is_named_first(
    role: str, database: str, redis_url: str
) -> None:
    answers = [FIRST, FIRST]

    def once() -> str:
        if not answers:
            raise LookupError
        return answers.pop()

    async with open_saver(
        url_of(database, role), redis_url, password=once, pool_timeout_seconds=0.5, pool_max_size=1
    ) as saver:
        thread = Thread("a")
        await thread.put(saver)
        answers.clear()
        rotate(database, role, FIRST)
        with pytest.raises(
            L2UnavailableError, match=r"^The function that returns PostgreSQL's password raised"
        ):
            await thread.put(saver)


def command_of(path: Path) -> str:
    return shlex.join([sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(path)])


@pytest.mark.parametrize("way", ["a command", "a function"])
async def test_the_chain_asks_for_the_password(
    way: str,
    role: str,
    database: str,
    redis_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "it is here"
    file.write_text(FIRST)
    chosen: dict[str, Any] = {}
    if way == "a command":
        chosen["postgres_password_command"] = command_of(file)
    settings = Settings(postgres_url=url_of(database, role), redis_url=redis_url, **chosen)
    telemetry = create_telemetry(registry=CollectorRegistry())
    password = file.read_text if way == "a function" else None
    async with get_checkpointer(settings, telemetry=telemetry, postgres_password=password) as saver:
        assert saver.tier == "cached"
        thread = Thread("a")
        await thread.put(saver)
        file.write_text(SECOND)
        rotate(database, role, SECOND)
        await thread.put(saver)
        assert await thread.turn(saver) == 2
    assert FIRST not in caplog.text + repr(settings)
    found = [
        each
        async for each in run_checks(
            url_of(database, role),
            redis_url,
            saver_options={**access_options(settings), "password": password or settings.postgres_password},
            timeout_seconds=15.0,
        )
    ]
    assert {each.status for each in found} <= {"ok", "warning"}, found


@pytest.mark.parametrize("command", [" ", "'", '"open'])
def test_a_command_that_cannot_be_understood_is_an_error_that_names_the_setting(command: str) -> None:
    settings = Settings(postgres_password_command=command)
    with pytest.raises(ConfigurationError, match="CHECKPOINT_POSTGRES_PASSWORD_COMMAND"):
        _ = access_options(settings)


def test_a_password_that_changes_signs_nothing() -> None:
    """The next process would have another key."""
    url = f"postgresql://me:{FIRST}@db/app"
    assert fallback_secret(url, None) is not None
    assert fallback_secret(url, None, password_rotates=True) is None
    assert fallback_secret(url, "sixteen bytes..!", password_rotates=True) is not None


# ------------------------------------------------------------------ a schema

TENANTS = ('tenant "A"', "tenant_b")


@pytest.fixture
def tenants(database: str) -> tuple[str, str]:
    with psycopg.connect(database, autocommit=True) as conn:
        for schema in TENANTS:
            conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
            conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    return TENANTS


def schemas_of(database: str) -> dict[str, int]:
    """How many checkpoints the schemas have that have a table for them."""
    with psycopg.connect(database, autocommit=True) as conn:
        found = conn.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'checkpoints'").fetchall()
        counted = {}
        for (schema,) in found:
            count = sql.SQL("SELECT count(*) FROM {}.checkpoints").format(sql.Identifier(schema))
            row = conn.execute(count).fetchone()
            assert row is not None
            counted[schema] = row[0]
        return counted


async def test_tenants_by_schema_share_a_database_and_a_redis(
    tenants: tuple[str, str], database: str, redis_url: str
) -> None:
    one, other = tenants
    async with (
        open_saver(database, redis_url, schema=one) as first,
        open_saver(database, redis_url, schema=other) as second,
    ):
        thread, same_name = Thread("a"), Thread("a")
        for _ in range(3):
            await thread.put(first)
        assert await same_name.turn(second) is None
        await same_name.put(second)
        assert (await thread.turn(first), await same_name.turn(second)) == (3, 1)
        assert [each async for each in second.alist(None, limit=5)] != []
    assert schemas_of(database) == {one: 3, other: 1}
    assert Target.of(database, schema=one) != Target.of(database, schema=other)


async def test_a_new_connection_is_in_the_schema_too(
    tenants: tuple[str, str], database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url, schema=tenants[0], pool_max_size=1) as saver:
        thread = Thread("a")
        await thread.put(saver)
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await thread.put(saver)
        assert await thread.turn(saver) == 2
    assert schemas_of(database) == {tenants[0]: 2}


@pytest.mark.parametrize("schema", ["", "a" * 64, "a\0", 7])
async def test_what_names_no_schema_is_refused(schema: Any, database: str, redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"schema .*must be the name of one schema"):
        await CachedPostgresSaver.create(database, redis_url, schema=schema)


async def test_a_schema_that_is_not_there_is_named_with_what_to_do(database: str, redis_url: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r'finds no schema \'no "such"\'.*CREATE SCHEMA IF NOT EXISTS "no ""such"""'
    ):
        await CachedPostgresSaver.create(database, redis_url, schema='no "such"')
    assert (await rows_of(database))["checkpoints"] is None


async def test_a_schema_that_the_role_may_not_use_is_named_with_what_to_do(
    tenants: tuple[str, str], role: str, database: str, redis_url: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"may not use the schema 'tenant_b'.*GRANT USAGE ON SCHEMA"):
        await CachedPostgresSaver.create(url_of(database, role, FIRST), redis_url, schema="tenant_b")


@asynccontextmanager
async def search_path_of(database: str, schema: str) -> AsyncIterator[None]:
    """Give the role the schema, as its owner would."""
    with psycopg.connect(database, autocommit=True) as conn:
        set_path = sql.SQL("ALTER ROLE postgres IN DATABASE test SET search_path = {}")
        conn.execute(set_path.format(sql.Identifier(schema)))
        try:
            yield
        finally:
            conn.execute("ALTER ROLE postgres IN DATABASE test RESET search_path")


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")
@pytest.mark.parametrize("prepare_threshold", [0, None])
async def test_behind_a_pooler_a_schema_is_the_role_s_or_refused(
    prepare_threshold: int | None,
    tenants: tuple[str, str],
    postgres: EmbeddedPostgres,
    database: str,
    redis_url: str,
) -> None:
    """Nothing is set there: it would reach the pooler's other clients."""
    options: dict[str, Any] = {
        "schema": "tenant_b",
        "telemetry": create_telemetry(registry=CollectorRegistry()),
    }
    with pgbouncer(postgres, "test", size=3) as pooled:
        with pytest.raises(
            ConfigurationError,
            match=r"schema 'public', not to 'tenant_b'.*ALTER ROLE \"postgres\" IN DATABASE \"test\" SET",
        ):
            await CachedPostgresSaver.create(
                pooled, redis_url, prepare_threshold=prepare_threshold, **options
            )
        async with await psycopg.AsyncConnection.connect(pooled, prepare_threshold=None) as conn:
            row = await (await conn.execute("SHOW search_path")).fetchone()
        assert row == ('"$user", public',)
    assert schemas_of(database) == {}
    async with search_path_of(database, "tenant_b"):
        with pgbouncer(postgres, "test", size=3) as pooled:
            async with open_saver(pooled, redis_url, prepare_threshold=None, **options) as saver:
                thread = Thread("a")
                await thread.put(saver)
                assert await thread.turn(saver) == 1
    assert schemas_of(database) == {"tenant_b": 1}


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")
async def test_without_a_pooler_the_role_s_schema_is_taken_where_nothing_may_be_set(
    tenants: tuple[str, str], database: str, redis_url: str
) -> None:
    with pytest.raises(ConfigurationError, match="prepare_threshold is None"):
        await CachedPostgresSaver.create(database, redis_url, schema="tenant_b", prepare_threshold=None)
    async with (
        search_path_of(database, "tenant_b"),
        open_saver(database, redis_url, schema="tenant_b", prepare_threshold=None) as saver,
    ):
        await Thread("a").put(saver)
    assert schemas_of(database) == {"tenant_b": 1}


async def test_the_chain_and_the_commands_work_in_the_schema(
    tenants: tuple[str, str], database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await run_setup(database, "set up", foreign_writes="watch", schema_name="tenant_b")
    assert schemas_of(database) == {"tenant_b": 0}
    settings = Settings(postgres_url=database, redis_url=redis_url, postgres_schema="tenant_b")
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with get_checkpointer(settings, telemetry=telemetry) as saver:
        await Thread("a").put(saver)
    assert schemas_of(database) == {"tenant_b": 1}
    options = access_options(settings)
    found = [
        each async for each in run_checks(database, redis_url, saver_options=options, timeout_seconds=15.0)
    ]
    assert {each.status for each in found} <= {"ok", "warning"}, found
    assert "schema tenant_b" in found[-1].detail
    await run_setup(database, "remove", foreign_writes="watch", schema_name="tenant_b")
    async with make_pool(database, 1) as pool, pool.connection() as conn:
        cursor = await conn.execute("SELECT to_regclass('tenant_b.glasspoint_identity') AS here")
        assert await cursor.fetchone() == {"here": None}
