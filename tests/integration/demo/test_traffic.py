"""`glasspoint traffic`, as a container runs it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import monotonic, sleep

import httpx
import psycopg
import pytest

from command_line import Running, glasspoint, running_glasspoint
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis

WAIT_SECONDS = 60.0


def url_of(traffic: Running) -> str:
    """Where it serves; the log says so."""
    return traffic.wait_for(r"metrics: (http://\S+)/metrics", errors=True)[1]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + WAIT_SECONDS
    while not condition():
        assert monotonic() < deadline, f"still not so after {WAIT_SECONDS} s"
        sleep(0.05)


def sample(url: str, start: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


def test_it_talks_until_sigterm_and_leaves_no_conversation(database: str, own_redis: EmbeddedRedis) -> None:
    options = {"POSTGRES_URL": database, "REDIS_URL": own_redis.url}
    with running_glasspoint("traffic", "--port", "0", "--people", "2", **options) as traffic:
        url = url_of(traffic)
        wait_until(lambda: sample(url, 'glasspoint_l1_reads_total{result="hit"') > 3)
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert httpx.get(f"{url}/live").status_code == 404, "nobody has asked for the page"
        status, errors = traffic.end(signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in errors
    with psycopg.connect(database) as connection:
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_it_falls_to_redis_at_the_start_and_comes_back(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    own_postgres.stop()
    options = {
        "POSTGRES_URL": own_postgres.url,
        "REDIS_URL": own_redis.url,
        "CHECKPOINT_PROBE_INTERVAL": "0.2",
        "CHECKPOINT_CONNECT_TIMEOUT": "1",
    }
    with running_glasspoint("traffic", "--port", "0", "--people", "2", "--live", **options) as traffic:
        url = url_of(traffic)
        assert httpx.get(f"{url}/live").status_code == 200, "the page was asked for"
        wait_until(lambda: sample(url, "glasspoint_operation_duration_seconds_count") > 10)
        assert sample(url, 'glasspoint_active_tier{saver="default",tier="redis"}') == 1
        assert httpx.get(f"{url}/readyz").json()["degraded"]
        own_postgres.start()
        wait_until(lambda: not httpx.get(f"{url}/readyz").json()["degraded"])
        wait_until(lambda: sample(url, "glasspoint_drained_checkpoints_total") > 0)
        assert traffic.end(signal.SIGTERM)[0] == 0


def test_without_urls_it_says_which_variable_is_missing() -> None:
    ended = glasspoint("traffic", "--port", "0")
    assert ended.returncode == 1
    assert "error: POSTGRES_URL is not set" in " ".join(ended.stderr.split())


@pytest.mark.parametrize("people", ["0", "many"])
def test_people_are_a_number_of_people(people: str) -> None:
    assert glasspoint("traffic", "--people", people).returncode == 2
