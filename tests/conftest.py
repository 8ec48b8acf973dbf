"""Real servers for every test, and the same dice in every run.

Nothing of the environment (POSTGRES_URL, REDIS_URL, PGPORT) changes the servers.
EXPLORE and TEST_SEED change the dice: see `dice.py`.
"""

from __future__ import annotations

import functools
import gc
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import redis.utils
from prometheus_client import CollectorRegistry

import copied_postgres
import databases
import dice  # also loads Hypothesis' profile, which has to be there before any test is imported
from collecting import begin_elsewhere
from conformance_suite import checkpoint_format  # noqa: F401 - a fixture
from copied_postgres import CopiedPostgres, make_cheap
from fast import is_slow, is_slow_file
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from longest import begins_at
from places import SUPPORT, in_memory
from recorder import spans_keep_the_contract  # noqa: F401 - a fixture
from redis_users import _spare_redis_7, any_redis  # noqa: F401 - fixtures
from spare_redis import SpareRedis
from steps import another_process

EXPLORING_SECONDS = 3600

OPT_IN = {"test_real_tempo.py": "TEMPO_URL"}
"""Test files that need a server that nobody starts here, and the variable that says where it is."""


# What libraries do anew each time is done once: the client of Redis reads this from its package's metadata
# for each connection, and httpx loads all certificates for each client, which takes 20 milliseconds.
redis.utils.get_lib_version = functools.cache(redis.utils.get_lib_version)
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)  # type: ignore[attr-defined]


# Servers work in memory where that is possible: making and removing files takes a fifth of the time there.
# What tests write themselves stays on the disk (`tmp_path`): it may be large.
if (folder := in_memory()) is not None:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = str(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let the processes that tests start import what tests share. When exploring, seed Hypothesis, too.

    Its plugin looks for the seed afterwards.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    with ExitStack() as stack:
        stack.enter_context(copied_postgres.files_of_a_run())
        config.add_cleanup(stack.pop_all().close)
    copied_postgres.copy_everywhere()
    begin_elsewhere(config, left_out=[name for name, needs in OPT_IN.items() if not os.environ.get(needs)])
    if dice.EXPLORING and config.getoption("hypothesis_seed") is None:
        config.option.hypothesis_seed = dice.SEED


def pytest_report_header() -> str:
    """Say what the dice are, so that a run can be repeated."""
    return f"dice: TEST_SEED={dice.SEED}" + (" EXPLORE=1" if dice.EXPLORING else ", the same in every run")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import test files that nobody has asked for, or of which `make test-fast` runs nothing."""
    if (variable := OPT_IN.get(collection_path.name)) is not None and not os.environ.get(variable):
        return True
    return True if config.option.markexpr == "not slow" and is_slow_file(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, mark slow tests, give tests that explore more time, and freeze what stays."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    items.sort(key=begins_at)
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
    if dice.EXPLORING:
        for item in items:
            if item.get_closest_marker("dice") or item.get_closest_marker("hypothesis"):
                item.add_marker(pytest.mark.timeout(EXPLORING_SECONDS), append=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL. A test that breaks it starts its own."""
    with EmbeddedPostgres() as server:
        make_cheap(server)
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """The session's Redis. A test that breaks it uses `own_redis`."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> str:
    """The URL of a database with the tables that `setup` makes, without rows. Nobody is connected to it."""
    return databases.with_tables(postgres)


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> str:
    """The URL of the same database without tables: for tests of how they are made, instead of `database`."""
    return databases.without_tables(postgres)


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of the session's Redis, empty."""
    with socket.create_connection(("127.0.0.1", redis_server.port)) as connection:  # a client takes longer
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(64) == b"+OK\r\n"
    return redis_server.url


@pytest.fixture(scope="session")
def _second_postgres() -> Iterator[EmbeddedPostgres]:
    with CopiedPostgres(origin="own") as server:
        make_cheap(server)
        server.stop()
        yield server


@pytest.fixture
def own_postgres(_second_postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """A PostgreSQL for this test alone, to stop, freeze and start. `with_tables(own_postgres)` makes tables.

    It is one and the same, emptied: making another takes a second of processor time, starting it a tenth.
    """
    if not _second_postgres.running:
        _second_postgres.start()
    databases.remove_others(_second_postgres)
    return _second_postgres


@pytest.fixture(autouse=True)
def _no_memories() -> None:
    """What the tier `memory` holds outlives a chain in its process, and the tests are one process."""
    another_process()


@pytest.fixture
def registry() -> CollectorRegistry:
    """Metrics of this test alone."""
    return CollectorRegistry()


@pytest.fixture(scope="session")
def _spare_redis() -> Iterator[SpareRedis]:
    with SpareRedis() as spare:
        yield spare


@pytest.fixture
def own_redis(_spare_redis: SpareRedis) -> EmbeddedRedis:
    """A Redis for this test alone, to kill, freeze and restart."""
    return _spare_redis.take()
