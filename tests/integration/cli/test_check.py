"""`glasspoint check`, run against real servers, good and bad."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager

import psycopg
import pytest
import redis
from langgraph.graph import START, MessagesState, StateGraph
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo

from command_line import assert_fits, glasspoint
from databases import with_tables
from glasspoint import CachedPostgresSaver, Settings, create_telemetry, get_checkpointer
from glasspoint.cli import check, redis_servers
from glasspoint.cli.check import Finding, run_checks, say
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import L2UnavailableError
from glasspoint.redis.permissions import COMMANDS
from glasspoint.redis.timeouts import answered_within
from pgbouncer import PROGRAM, pgbouncer
from states import open_saver
from steps import Thread

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
PASSWORD = "geheim"

FAILED_BY_REDIS = ["ok", "ok", "FAILED", "skipped", "ok", "skipped", "FAILED", "skipped"]


@pytest.fixture
def deployed(database: str) -> str:
    """The URL of a database with the checkpoint tables."""
    with CachedPostgresSaver.from_conn_string(database, redis_url="redis://127.0.0.1:1/0") as saver:
        saver.setup()
    return database


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def rows(database: str) -> int:
    """Return how many rows the checkpoint tables hold together."""
    with psycopg.connect(database) as connection:
        counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in TABLES]
    return sum(count[0] for count in counts if count)


async def find(postgres_url: str, redis_url: str, *, timeout_seconds: float = 15.0) -> list[Finding]:
    """Run all checks in this process."""
    return [each async for each in run_checks(postgres_url, redis_url, timeout_seconds=timeout_seconds)]


def marks(output: str) -> list[tuple[str, str]]:
    """Return (mark, check) of each finding."""
    return re.findall(r"^(ok|warning|FAILED|skipped) +(\w+)", output, re.MULTILINE)


def caches(database: str) -> list[tuple[str, str, str]]:
    """Return which caches there are: prefix, Redis, generation."""
    with psycopg.connect(database) as connection:
        return connection.execute(
            "SELECT cache, reign, generation FROM glasspoint_caches ORDER BY cache"
        ).fetchall()


def test_a_good_deployment_passes_and_is_left_as_it_was(deployed: str, own_redis: EmbeddedRedis) -> None:
    checked = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=own_redis.url)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert marks(checked.stdout) == [
        ("ok", "PostgreSQL"),
        ("ok", "Connections"),
        ("ok", "Redis"),
        ("ok", "Eviction"),
        ("ok", "Tables"),
        ("ok", "Identity"),
        ("ok", "Conversation"),
        ("ok", "Outage"),
    ]
    assert "0 checkpoints" in checked.stdout
    assert_fits(checked.stdout, columns=80)
    assert checked.stderr == ""
    assert rows(deployed) == 0
    with redis.Redis(port=own_redis.port) as client:
        assert client.dbsize() == 0


def test_the_settings_of_the_service_reach_the_check(deployed: str, own_redis: EmbeddedRedis) -> None:
    with redis.Redis(port=own_redis.port) as admin:
        admin.config_set("maxmemory", 10**9)
        admin.config_set("maxmemory-policy", "allkeys-lru")
    servers = {"POSTGRES_URL": deployed, "REDIS_URL": own_redis.url}
    checked = glasspoint("check", **servers, CHECKPOINT_POOL_MAX_SIZE="4", CHECKPOINT_FALLBACKS="memory")
    said = " ".join(checked.stdout.split())
    assert "4 connections a process" in said
    assert ("ok", "Eviction") in marks(checked.stdout), said
    assert "CHECKPOINT_FALLBACKS leaves the tier redis out" in said
    checked = glasspoint("check", **servers)
    assert "10 connections a process" in " ".join(checked.stdout.split())
    assert ("warning", "Eviction") in marks(checked.stdout)


def test_a_user_with_the_rights_of_the_cache_alone_is_enough_without_the_tier_redis(
    deployed: str, own_redis: EmbeddedRedis
) -> None:
    rules = ["on", ">secret", "~glasspoint:*", *(f"+{name}" for name in (*COMMANDS, "scan"))]
    with redis.Redis(port=own_redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "app", *rules)
    servers = {"POSTGRES_URL": deployed, "REDIS_URL": own_redis.url.replace("//", "//app:secret@")}
    checked = glasspoint("check", **servers, CHECKPOINT_FALLBACKS="")
    assert checked.returncode == 0, checked.stdout
    checked = glasspoint("check", **servers)
    assert ("FAILED", "Outage") in marks(checked.stdout)
    assert "ACL SETUSER app +" in " ".join(checked.stdout.split())


@pytest.mark.parametrize("command", ["prune --older-than 1d", "show a", "migrate --from REDIS_URL"])
async def test_a_command_whose_user_lacks_a_right_names_the_rule_and_has_no_traceback(
    deployed: str, own_redis: EmbeddedRedis, command: str
) -> None:
    async with open_saver(deployed, own_redis.url) as saver:
        await Thread("a").put(saver)
    with redis.Redis(port=own_redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~glasspoint:*", "+ping")
    url = own_redis.url.replace("//", "//app:secret@")
    words = command.replace("REDIS_URL", url).split()
    done = glasspoint(*words, POSTGRES_URL=deployed, REDIS_URL=url)
    said = " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in said
    assert done.returncode == (0 if words[0] == "show" else 1), said
    assert "docs/rights.md" in said or "ACL SETUSER app +" in said, said


def test_json_is_one_object(deployed: str, own_redis: EmbeddedRedis) -> None:
    checked = glasspoint("check", "--json", "--postgres-url", deployed, "--redis-url", own_redis.url)
    report = json.loads(checked.stdout)
    assert checked.returncode == 0
    assert report["ok"] is True
    assert [check["name"] for check in report["checks"]] == [
        "PostgreSQL",
        "Connections",
        "Redis",
        "Eviction",
        "Tables",
        "Identity",
        "Conversation",
        "Outage",
    ]
    assert {check["status"] for check in report["checks"]} == {"ok"}
    took = {check["name"]: check["milliseconds"] for check in report["checks"]}
    assert took.pop("Eviction") >= 0  # the check of Redis has found it
    assert took.pop("Connections") >= 0  # that of PostgreSQL has
    assert all(milliseconds > 0 for milliseconds in took.values())


def test_missing_tables_are_a_finding_and_are_not_made(empty_database: str, redis_url: str) -> None:
    checked = glasspoint("check", POSTGRES_URL=empty_database, REDIS_URL=redis_url)
    assert checked.returncode == 1
    assert marks(checked.stdout)[4:] == [
        ("FAILED", "Tables"),
        ("skipped", "Identity"),
        ("skipped", "Conversation"),
        ("skipped", "Outage"),
    ]
    assert "saver.setup()" in checked.stdout
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT to_regclass('checkpoints')").fetchone() == (None,)


def test_redis_down_fails_and_the_scratch_thread_is_gone(deployed: str, own_redis: EmbeddedRedis) -> None:
    own_redis.kill()
    checked = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=own_redis.url)
    assert checked.returncode == 1
    assert [mark for mark, _ in marks(checked.stdout)] == [
        "ok",
        "ok",
        "FAILED",
        "skipped",
        "ok",
        "skipped",
        "FAILED",
        "skipped",
    ]
    assert "by PostgreSQL alone" in " ".join(checked.stdout.split())
    assert checked.stderr == ""
    assert rows(deployed) == 0


def test_a_redis_user_who_lacks_a_right_fails_and_the_rule_is_named(
    deployed: str, own_redis: EmbeddedRedis
) -> None:
    rules = ["on", ">secret", "~glasspoint:*", *(f"+{name}" for name in COMMANDS if name != "pexpire")]
    with redis.Redis(port=own_redis.port) as admin:
        admin.execute_command("ACL", "SETUSER", "app", *rules)
    url = own_redis.url.replace("//", "//app:secret@")
    checked = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=url)
    said = " ".join(checked.stdout.split())
    assert checked.returncode == 1
    assert [mark for mark, _ in marks(checked.stdout)] == FAILED_BY_REDIS
    assert "may not run PEXPIRE" in said
    assert "ACL SETUSER app +pexpire" in said
    assert rows(deployed) == 0


def test_a_full_redis_fails(deployed: str, own_redis: EmbeddedRedis) -> None:
    own_redis.stop()
    own_redis.start("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    checked = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=own_redis.url)
    assert [mark for mark, _ in marks(checked.stdout)] == FAILED_BY_REDIS
    assert "Look at maxmemory" in " ".join(checked.stdout.split())


def test_it_says_to_which_database_the_cache_belongs_and_who_else_is_there(
    postgres: EmbeddedPostgres, deployed: str, own_redis: EmbeddedRedis
) -> None:
    other = postgres.create_database("check_other")
    with CachedPostgresSaver.from_conn_string(other, redis_url=own_redis.url) as saver:
        saver.setup()
        saver.put(*Thread("a").next_put(saver))
    checked = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=own_redis.url)
    said = " ".join(checked.stdout.split())
    assert checked.returncode == 0
    assert re.search(r"Identity .*[0-9a-f]{12}\.[0-9a-f]{16}; other software's writes are noted", said)
    assert "1 other database(s) share this Redis and prefix, which is fine" in said


def test_it_says_what_the_cache_does_not_notice(deployed: str, own_redis: EmbeddedRedis) -> None:
    with psycopg.connect(deployed, autocommit=True) as connection:
        connection.execute("DROP FUNCTION glasspoint_note_foreign_writes CASCADE")
        connection.execute("CREATE ROLE checked LOGIN")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO checked")
        connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        try:
            url = make_conninfo(deployed, user="checked")
            checked = glasspoint("check", POSTGRES_URL=url, REDIS_URL=own_redis.url)
            ignoring = glasspoint(
                "check", POSTGRES_URL=url, REDIS_URL=own_redis.url, CHECKPOINT_FOREIGN_WRITES="ignore"
            )
        finally:
            connection.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
            connection.execute("DROP OWNED BY checked")
            connection.execute("DROP ROLE checked")
    said = " ".join(checked.stdout.split())
    assert checked.returncode == ignoring.returncode == 0
    assert ("warning", "Identity") in marks(checked.stdout)
    assert ("ok", "Identity") in marks(ignoring.stdout)
    assert "other software's writes are NOT noted" in said
    assert "glasspoint setup" in said
    assert "PostgreSQL withholds: system" in said


def test_a_redis_that_may_evict_is_a_warning(deployed: str, own_redis: EmbeddedRedis) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory", 2**30)
        client.config_set("maxmemory-policy", "volatile-lru")
    checked = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=own_redis.url)
    assert checked.returncode == 0
    assert ("warning", "Eviction") in marks(checked.stdout)
    said = " ".join(checked.stdout.split())
    assert "maxmemory-policy volatile-lru" in said
    assert "use maxmemory-policy noeviction" in said


def test_a_service_s_cache_stays_where_it_is(deployed: str, redis_url: str, own_redis: EmbeddedRedis) -> None:
    """Another REDIS_URL would take the cache from the service; a mistyped prefix would make a new one."""
    with CachedPostgresSaver.from_conn_string(deployed, redis_url=redis_url) as saver:
        saver.put(*Thread("a").next_put(saver))
        before = caches(deployed)
        assert len(before) == 1
        for arguments, url, said in (
            ((), own_redis.url, "with another Redis than this one"),
            (("--key-prefix", "typo"), redis_url, "no cache with the key prefix 'typo', but 'glasspoint'"),
        ):
            checked = glasspoint("check", *arguments, POSTGRES_URL=deployed, REDIS_URL=url)
            assert checked.returncode == 1
            assert {("FAILED", "Identity"), ("skipped", "Conversation")} <= {*marks(checked.stdout)}
            assert said in " ".join(checked.stdout.split())
            assert caches(deployed) == before
        fine = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=redis_url)
        assert fine.returncode == 0, fine.stdout
        assert caches(deployed) == before


def test_a_redis_that_was_replaced_while_no_service_ran_is_fine(
    deployed: str, redis_url: str, own_redis: EmbeddedRedis
) -> None:
    with CachedPostgresSaver.from_conn_string(deployed, redis_url=redis_url):
        pass
    with psycopg.connect(deployed) as connection:
        connection.execute("UPDATE glasspoint_caches SET seen_at = seen_at - interval '5 minutes'")
    checked = glasspoint("check", POSTGRES_URL=deployed, REDIS_URL=own_redis.url)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")
def test_behind_a_pooler_it_opens_savers_as_the_service_does(
    postgres: EmbeddedPostgres, deployed: str, own_redis: EmbeddedRedis
) -> None:
    with pgbouncer(postgres, "test", size=3) as url:
        checked = glasspoint("check", POSTGRES_URL=url, REDIS_URL=own_redis.url)
    said = " ".join(checked.stdout.split())
    assert checked.returncode == 0, said
    assert {("warning", "Identity"), ("ok", "Conversation")} <= {*marks(checked.stdout)}
    assert "ALTER ROLE ... SET statement_timeout = '10s'" in said
    assert ("ok", "Connections") in marks(checked.stdout)
    assert "a pooler is in between: its settings say how many clients it takes" in said


def test_rights_that_are_missing_are_named_as_a_grant(deployed: str, own_redis: EmbeddedRedis) -> None:
    with psycopg.connect(deployed, autocommit=True) as connection:
        connection.execute("CREATE ROLE checked LOGIN")
        connection.execute("GRANT SELECT ON checkpoints, checkpoint_migrations TO checked")
        try:
            url = make_conninfo(deployed, user="checked")
            checked = glasspoint("check", POSTGRES_URL=url, REDIS_URL=own_redis.url)
        finally:
            connection.execute("DROP OWNED BY checked")
            connection.execute("DROP ROLE checked")
    said = " ".join(checked.stdout.split())
    assert checked.returncode == 1
    assert {*marks(checked.stdout)} >= {
        ("FAILED", "Tables"),
        ("skipped", "Identity"),
        ("skipped", "Conversation"),
    }
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON checkpoints" in said
    assert "may not be used" in said


def test_it_says_why_redis_is_not_used(deployed: str, own_redis: EmbeddedRedis) -> None:
    with psycopg.connect(deployed, autocommit=True) as connection:
        connection.execute("CREATE ROLE checked LOGIN")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO checked")
        connection.execute("ALTER TABLE checkpoints ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY everything ON checkpoints USING (true)")
        try:
            url = make_conninfo(deployed, user="checked")
            checked = glasspoint("check", POSTGRES_URL=url, REDIS_URL=own_redis.url)
        finally:
            connection.execute("DROP OWNED BY checked")
            connection.execute("DROP ROLE checked")
    assert ("FAILED", "Identity") in marks(checked.stdout)
    assert "Row-level security" in " ".join(checked.stdout.split())


async def test_postgres_down_fails_and_what_needs_it_is_skipped(redis_url: str) -> None:
    findings = await find("postgresql://me@127.0.0.1:1/db", redis_url)
    assert [finding.status for finding in findings] == ["failed", "skipped", "ok", "ok", *["skipped"] * 4]


async def test_nothing_configured_says_what_to_set() -> None:
    findings = await find("", "")
    assert "set POSTGRES_URL" in findings[0].detail
    assert "set REDIS_URL" in findings[2].detail


async def test_silent_servers_fail_in_time(silent_port: int) -> None:
    findings = await find(
        f"postgresql://me@127.0.0.1:{silent_port}/db",
        f"redis://127.0.0.1:{silent_port}/0",
        timeout_seconds=0.2,
    )
    assert [finding.status for finding in findings] == ["failed", "skipped", "failed", *["skipped"] * 5]
    assert all("not done within 0.2 s" in finding.detail for finding in (findings[0], findings[2]))
    assert all(finding.seconds < 5 for finding in findings)


async def test_a_redis_that_hangs_is_waited_for_once(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although it is asked twice: what it is, and whether it can be the cache."""
    waits = list[float]()

    def noting(seconds: float) -> AbstractContextManager[None]:
        waits.append(seconds)
        return answered_within(seconds)

    monkeypatch.setattr(redis_servers, "answered_within", noting)
    findings = await find("", f"redis://127.0.0.1:{silent_port}/0")
    assert (findings[2].name, findings[2].status) == ("Redis", "failed")
    assert f"127.0.0.1:{silent_port} does not answer within 2 s" in findings[2].detail
    assert waits == [check._LEAST_SECONDS], "the first question has used up the two seconds"


def test_a_wrong_password_fails_and_is_not_shown(deployed: str, own_redis: EmbeddedRedis) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("requirepass", "another one")
    checked = glasspoint(
        "check", POSTGRES_URL=deployed, REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:{own_redis.port}/0"
    )
    assert checked.returncode == 1
    assert ("FAILED", "Redis") in marks(checked.stdout)
    assert PASSWORD not in checked.stdout + checked.stderr
    assert rows(deployed) == 0


@pytest.mark.parametrize(
    "authority",
    [
        f"me:{PASSWORD}@127.0.0.1:1",
        f"me:{PASSWORD}@127.0.0.1:nothing",
        f"me:{PASSWORD}/x@127.0.0.1:1",
        f"me:x/{PASSWORD}@127.0.0.1:1",
        f"me:x#{PASSWORD}@127.0.0.1:1",
        f"me:x?{PASSWORD}@127.0.0.1:1",
        f"me:x%{PASSWORD}@127.0.0.1:1",
        f"me:[{PASSWORD}@127.0.0.1:1",
    ],
)
async def test_no_broken_url_shows_its_password(authority: str) -> None:
    findings = await find(f"postgresql://{authority}/db", f"redis://{authority}/0")
    assert [finding.status for finding in findings] == ["failed", "skipped", "failed", *["skipped"] * 5]
    assert PASSWORD not in str(findings)


async def test_a_conversation_that_fails_is_taken_away(
    deployed: str, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_at_the_second_turn(saver: CachedPostgresSaver, thread_id: str, text: str) -> str:
        if await asyncio.to_thread(rows, deployed):
            raise L2UnavailableError("PostgreSQL went away.")
        return await say(saver, thread_id, text)

    monkeypatch.setattr("glasspoint.cli.check.say", fail_at_the_second_turn)
    findings = await find(deployed, own_redis.url)
    assert [finding.status for finding in findings] == [*["ok"] * 6, "failed", "ok"]
    assert findings[-2].detail == "PostgreSQL went away."
    assert rows(deployed) == 0


async def test_a_conversation_that_is_interrupted_is_taken_away(
    deployed: str, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = asyncio.Event()

    async def hang_at_the_second_turn(saver: CachedPostgresSaver, thread_id: str, text: str) -> str:
        if await asyncio.to_thread(rows, deployed):
            stuck.set()
            await asyncio.Event().wait()
        return await say(saver, thread_id, text)

    monkeypatch.setattr("glasspoint.cli.check.say", hang_at_the_second_turn)
    checking = asyncio.create_task(find(deployed, own_redis.url))
    await stuck.wait()
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert rows(deployed) == 0


def test_what_an_outage_has_left_is_named(own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis) -> None:
    url = with_tables(own_postgres)
    assert leave_in_tier(url, own_redis.url, "first", "42") == "cached"
    own_postgres.stop()
    with redis.Redis(port=own_redis.port) as client:
        client.flushall()
    assert leave_in_tier(url, own_redis.url, "during", "42", "43") == "redis"
    checked = glasspoint("check", POSTGRES_URL=url, REDIS_URL=own_redis.url)
    assert ("warning", "Outage") in marks(checked.stdout), "PostgreSQL is not needed for that"
    assert "2 thread(s) wait in Redis" in " ".join(checked.stdout.split())
    own_postgres.start()
    checked = glasspoint("check", POSTGRES_URL=url, REDIS_URL=own_redis.url)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    said = " ".join(checked.stdout.split())
    assert "2 thread(s) wait in Redis, and are not in PostgreSQL: '42', '43'." in said
    assert leave_in_tier(url, own_redis.url, "after", "44") == "cached"
    checked = glasspoint("check", POSTGRES_URL=url, REDIS_URL=own_redis.url)
    said = " ".join(checked.stdout.split())
    assert ("warning", "Outage") in marks(checked.stdout)
    assert "wait in Redis" not in said
    assert re.search(r"1 thread\(s\) were set aside beside their conversations: '42 \(set aside 2", said)


def leave_in_tier(postgres_url: str, redis_url: str, text: str, *thread_ids: str) -> str:
    """Put a checkpoint into some threads, as a process that starts now; return in which tier."""
    settings = Settings(postgres_url=postgres_url, redis_url=redis_url)
    with get_checkpointer(settings, telemetry=create_telemetry(registry=CollectorRegistry())) as saver:
        for thread_id in thread_ids:
            builder = StateGraph(MessagesState).add_node(
                "answer", lambda state: {"messages": [("ai", "yes")]}
            )
            graph = builder.add_edge(START, "answer").compile(checkpointer=saver)
            graph.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": thread_id}})  # type: ignore[call-overload]
        return saver.tier
