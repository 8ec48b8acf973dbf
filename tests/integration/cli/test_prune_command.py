"""`glasspoint prune`, run as a user does, against real servers."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic

import psycopg
import pytest
import typer
from redis import Redis

from command_line import Running, assert_fits, glasspoint, running_glasspoint
from glasspoint.cli.commands import age_of
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from histories import id_at
from pgbouncer import PROGRAM, pgbouncer
from states import open_saver
from steps import Thread

NOW = datetime.now(UTC)


async def fill(database: str, redis_url: str, threads: int) -> None:
    """Of each thread three checkpoints are old, and one is not."""
    async with open_saver(database, redis_url) as saver:
        for number in range(threads):
            thread = Thread(f"thread {number:03}")
            for days in (50, 45, 40, 2):
                config, checkpoint, metadata, versions = thread.next_put(saver)
                checkpoint["id"] = id_at(NOW - timedelta(days=days))
                thread.newest = await saver.aput(config, checkpoint, metadata, versions)


@pytest.fixture
def filled(database: str, redis_url: str) -> str:
    asyncio.run(fill(database, redis_url, 5))
    return database


def checkpoints(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM checkpoints").fetchone()
    assert row is not None
    return int(row[0])


def test_old_checkpoints_go_and_what_went_is_said(filled: str, redis_url: str) -> None:
    counted = glasspoint(
        "prune", "--older-than", "30d", "--dry-run", POSTGRES_URL=filled, REDIS_URL=redis_url
    )
    assert counted.returncode == 0, counted.stderr
    assert checkpoints(filled) == 20
    pruned = glasspoint("prune", "--older-than", "30d", POSTGRES_URL=filled, REDIS_URL=redis_url)
    assert pruned.returncode == 0, pruned.stderr
    assert checkpoints(filled) == 5
    for run, title in ((counted, "would remove"), (pruned, "removed")):
        assert re.match(rf"{title} +what is older than \d{{4}}-\d\d-\d\d \d\d:\d\d UTC", run.stdout)
        said = dict(re.findall(r"^(\w+)  +(\S.*)$", run.stdout, re.MULTILINE))
        assert {name: said[name] for name in ("checkpoints", "writes", "values", "threads")} == {
            "checkpoints": "15", "writes": "0", "values": "15", "threads": "5"
        }  # fmt: skip
        assert re.fullmatch(r"\d+\.\d kB", said["size"])
        assert_fits(run.stdout, columns=80)
        assert run.stderr == ""


def test_json_is_one_object(filled: str, redis_url: str) -> None:
    pruned = glasspoint(
        "prune", "--older-than=2w", "--no-keep-latest", "--batch-size=6", "--json",
        "--postgres-url", filled, "--redis-url", redis_url,
    )  # fmt: skip
    report = json.loads(pruned.stdout)
    assert pruned.returncode == 0
    assert (report["ok"], report["dry_run"], report["checkpoints"], report["blobs"]) == (True, False, 15, 15)
    assert (report["threads"], report["batches"], report["skipped_threads"]) == (5, 3, 0)
    assert report["bytes"] > 0
    assert pruned.stderr == ""


def caches(database: str) -> list[tuple[str, str, str]]:
    """Return which caches there are: prefix, Redis, generation."""
    with psycopg.connect(database) as connection:
        return connection.execute(
            "SELECT cache, reign, generation FROM glasspoint_caches ORDER BY cache"
        ).fetchall()


def test_a_dry_run_attaches_no_cache(filled: str, redis_url: str, own_redis: EmbeddedRedis) -> None:
    """Neither to another Redis than the service's, nor of another name."""
    before = caches(filled)
    assert len(before) == 1
    for arguments, url in (((), own_redis.url), (("--key-prefix", "typo"), redis_url)):
        counted = glasspoint(
            "prune", "--older-than=30d", "--dry-run", *arguments, POSTGRES_URL=filled, REDIS_URL=url
        )
        assert counted.returncode == 0, counted.stderr
        assert re.search(r"^checkpoints +15$", counted.stdout, re.MULTILINE)
        assert caches(filled) == before


def test_with_another_redis_than_the_service_s_nothing_is_removed(
    filled: str, redis_url: str, own_redis: EmbeddedRedis
) -> None:
    before = caches(filled)
    for arguments, url, said in (
        ((), own_redis.url, "with another Redis than this one"),
        (("--key-prefix", "typo"), redis_url, "no cache with the key prefix 'typo'"),
    ):
        refused = glasspoint("prune", "--older-than=30d", *arguments, POSTGRES_URL=filled, REDIS_URL=url)
        assert refused.returncode == 1
        assert "Nothing was removed" in refused.stderr
        assert said in " ".join(refused.stderr.split())
        assert checkpoints(filled) == 20
        assert caches(filled) == before


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")
def test_behind_a_pooler_it_opens_its_saver_as_the_service_does(
    postgres: EmbeddedPostgres, filled: str, redis_url: str
) -> None:
    with pgbouncer(postgres, "test", size=1) as url:
        for _ in range(2):
            for arguments in (("--dry-run",), ()):
                pruned = glasspoint(
                    "prune", "--older-than=30d", *arguments,
                    POSTGRES_URL=url, REDIS_URL=redis_url, CHECKPOINT_PREPARE_THRESHOLD="none",
                )  # fmt: skip
                assert pruned.returncode == 0, pruned.stderr
        assert checkpoints(filled) == 5


@pytest.mark.parametrize("age", ["", "30", "d", "30 days", "1.5d", "0d", "-3d", "30D", "٣d"])
def test_what_is_no_age_is_refused(age: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no age"):
        age_of(age)


def test_ages_are_read() -> None:
    ages = {
        "90m": timedelta(minutes=90),
        "12h": timedelta(hours=12),
        "2w": timedelta(14),
        "30d": timedelta(30),
    }
    assert {text: age_of(text) for text in ages} == ages
    assert age_of("999999999w") == timedelta.max


def test_wrong_usage_is_exit_status_2_and_says_what_is_wrong() -> None:
    urls = {"POSTGRES_URL": "postgresql://x", "REDIS_URL": "redis://x"}
    for arguments, variables, said in (
        (["--older-than", "a month"], urls, "is no age"),
        (["--older-than", "30d"], {"POSTGRES_URL": "postgresql://x"}, "set REDIS_URL"),
    ):
        refused = glasspoint("prune", *arguments, **variables)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_without_redis_nothing_is_removed(filled: str, own_redis: EmbeddedRedis) -> None:
    own_redis.kill()
    refused = glasspoint("prune", "--older-than", "30d", POSTGRES_URL=filled, REDIS_URL=own_redis.url)
    assert refused.returncode == 1
    assert "Nothing was removed" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert checkpoints(filled) == 20


def test_without_tables_the_error_says_what_to_do(empty_database: str, redis_url: str) -> None:
    refused = glasspoint(
        "prune", "--older-than", "30d", "--json", POSTGRES_URL=empty_database, REDIS_URL=redis_url
    )
    assert refused.returncode == 1
    report = json.loads(refused.stdout)
    assert report["ok"] is False
    assert "glasspoint setup" in report["error"]


@contextmanager
def stuck_in_a_batch(database: str, redis_url: str) -> Iterator[tuple[Running, psycopg.Connection]]:
    """The command, in the middle of its second batch, which waits until the connection lets go."""
    with psycopg.connect(database) as holder, psycopg.connect(database, autocommit=True) as watcher:
        holder.execute("SELECT FROM checkpoints WHERE thread_id = 'thread 001' FOR UPDATE")
        with running_glasspoint(
            "prune", "--older-than", "30d", "--batch-size", "3", POSTGRES_URL=database, REDIS_URL=redis_url
        ) as running:
            deadline = monotonic() + 60
            while not watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                assert monotonic() < deadline
            yield running, holder


def test_ctrl_c_ends_after_the_batch_under_way(filled: str, redis_url: str) -> None:
    with stuck_in_a_batch(filled, redis_url) as (running, holder):
        running.process.send_signal(signal.SIGINT)
        assert running.process.stderr is not None
        assert "after the batch under way" in running.process.stderr.readline()
        holder.rollback()
        output, errors = running.process.communicate(timeout=30)
    assert running.process.returncode == 130
    assert re.search(r"^checkpoints +6$", output, re.MULTILINE)
    assert "interrupted." in errors
    assert checkpoints(filled) == 20 - 6


def test_a_second_ctrl_c_undoes_the_batch_under_way(filled: str, redis_url: str) -> None:
    with stuck_in_a_batch(filled, redis_url) as (running, _):
        running.process.send_signal(signal.SIGINT)
        assert running.process.stderr is not None
        running.process.stderr.readline()
        running.process.send_signal(signal.SIGINT)
        output, errors = running.process.communicate(timeout=30)
    assert running.process.returncode == 130
    assert re.search(r"^checkpoints +3$", output, re.MULTILINE)
    assert "the batch under way was undone" in errors
    assert checkpoints(filled) == 20 - 3
    with Redis.from_url(redis_url) as redis:
        fields = [field for key in redis.scan_iter() for field in redis.hkeys(key)]
    assert not [field for field in fields if field.startswith(b"i:")]
