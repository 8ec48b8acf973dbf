"""The statements of `docs/rights.md`, run as they stand there: savers work with exactly these rights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg import sql
from psycopg.conninfo import make_conninfo
from redis.asyncio import Redis

from chains import chain
from command_line import glasspoint
from glasspoint import RedisSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError
from glasspoint.l2.schema import GRANTS
from places import DOCS
from states import counts
from steps import Thread, until

PAGE = (DOCS / "rights.md").read_text("utf-8")
ROLES, EXACT, IN_ADVANCE = re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
USERS = {rule.split()[2]: rule for rule in re.findall(r"^ACL SETUSER .*$", PAGE, re.MULTILINE)}


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


def run(database: str, statements: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(sql.SQL(statements))


@pytest.fixture
def roles(postgres: EmbeddedPostgres, database: str) -> Iterator[tuple[str, str]]:
    """The roles of the page, in a database of the test's; the URLs of the owner and of the service."""
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    run(database, ROLES.replace("DATABASE chat", f"DATABASE {name}"))
    yield (make_conninfo(database, user="chat_owner"), make_conninfo(database, user="chat_service"))
    # One role a statement: with both in one, PostgreSQL 18 stumbles over the default privileges of the other.
    for role in ("chat_service", "chat_owner"):
        run(database, f"DROP OWNED BY {role} CASCADE")
        run(database, f"DROP ROLE {role}")


async def url_for(server: EmbeddedRedis, user: str) -> str:
    """Make a user of the page, and return its URL."""
    async with Redis.from_url(server.url) as admin:
        await admin.execute_command(*USERS[user].split())
    return server.url.replace("//", f"//{user}:PASSWORD@")


def test_the_page_grants_what_the_code_says_that_a_service_needs() -> None:
    on_the_page = [" ".join(each.split()) for each in EXACT.split(";") if each.strip()]
    assert on_the_page == [f"{grant} TO chat_service" for grant in GRANTS.split(", and ")]


@pytest.mark.parametrize("granted", ["exactly", "in advance"])
async def test_a_service_works_in_the_tier_cached(
    granted: str, roles: tuple[str, str], own_redis: EmbeddedRedis
) -> None:
    owner, service = roles
    if granted == "in advance":
        run(owner, IN_ADVANCE)
    made = glasspoint("setup", POSTGRES_URL=owner)
    assert made.returncode == 0, made.stderr
    assert "Triggers note what other software writes." in made.stdout
    if granted == "exactly":
        run(owner, EXACT)
    redis_url, registry, thread = (
        await url_for(own_redis, "glasspoint_chain"),
        CollectorRegistry(),
        Thread("a"),
    )
    async with chain(service, redis_url, registry, l1_signing_key="sixteen bytes..!") as saver:
        assert saver.tier == "cached"
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        await until(lambda: saver._chain.whole)
        for _ in range(3):
            assert await thread.turn(saver) == 1
        assert counts(registry, "glasspoint_l1_reads_total", "result")["hit"] >= 2
        await saver.adelete_thread("a")


async def test_a_service_that_starts_before_the_setup_fails_and_works_afterwards(
    roles: tuple[str, str], own_redis: EmbeddedRedis
) -> None:
    """So Kubernetes starts the pod again."""
    owner, service = roles
    run(owner, IN_ADVANCE)
    redis_url = await url_for(own_redis, "glasspoint_chain")
    with pytest.raises(GlasspointError, match="setup"):
        async with chain(service, redis_url, l1_signing_key="sixteen bytes..!"):
            pass
    assert glasspoint("setup", POSTGRES_URL=owner).returncode == 0
    async with chain(service, redis_url, l1_signing_key="sixteen bytes..!") as saver:
        assert saver.tier == "cached"


async def test_the_commands_work_with_the_exact_rights(
    roles: tuple[str, str], own_redis: EmbeddedRedis
) -> None:
    owner, service = roles
    assert glasspoint("setup", POSTGRES_URL=owner).returncode == 0
    run(owner, EXACT)
    users = {user: await url_for(own_redis, user) for user in ("glasspoint", "glasspoint_chain")}
    for user, *command in (
        ("glasspoint_chain", "check"),
        ("glasspoint", "prune", "--older-than", "30d"),
        ("glasspoint", "setup"),
    ):
        ended = glasspoint(*command, POSTGRES_URL=service, REDIS_URL=users[user])
        assert ended.returncode == 0, ended.stdout + ended.stderr


async def test_the_owner_needs_no_more_to_look_after_the_tables(roles: tuple[str, str]) -> None:
    owner, _ = roles
    for options in ([], ["--renew-signing-key"], ["--remove"]):
        done = glasspoint("setup", *options, POSTGRES_URL=owner)
        assert done.returncode == 0, done.stderr


async def test_a_redis_saver_works_with_the_rule_for_it(own_redis: EmbeddedRedis) -> None:
    telemetry, thread = create_telemetry(registry=CollectorRegistry()), Thread("a")
    url = await url_for(own_redis, "glasspoint_tier")
    async with await RedisSaver.create(url, telemetry=telemetry) as saver:
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        assert await thread.turn(saver) == 1
        await saver.adelete_thread("a")
        assert await thread.turn(saver) is None
