"""A connection string may name several hosts, as libpq, SQLAlchemy and asyncpg have them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict

from command_line import glasspoint
from glasspoint import RedisSaver
from glasspoint.cli.check import run_checks
from glasspoint.errors import ConfigurationError
from glasspoint.l2.pool import address_of, postgres_conninfo
from glasspoint.l2.target import Target
from states import open_saver
from steps import Thread

PASSWORD = "".join(("opening", "-", "word"))

WITH_HOSTS = {
    "postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write": ("h1,h2", "5432,5433"),
    "postgresql+psycopg://u:p@h1:5432,h2:5432/db": ("h1,h2", "5432,5432"),
    "postgresql+asyncpg://u:p%40x@h1,h2:5433/db": ("h1,h2", ",5433"),
    "postgresql://u@[::1]:5432,[::2]:5433/db": ("::1,::2", "5432,5433"),
    "postgresql://u@h1:5432,[::2]/db": ("h1,::2", "5432,"),
    "postgresql+asyncpg://u:p@/db?host=h1:5432&host=h2:5433": ("h1,h2", "5432,5433"),
    "postgresql://u:p@/db?host=h1,h2&port=5432,5433": ("h1,h2", "5432,5433"),
    "postgresql+psycopg://u@/db?host=h1&host=[::2]:5433": ("h1,::2", ",5433"),
}


@pytest.mark.parametrize("url", WITH_HOSTS)
def test_several_hosts_are_taken_as_people_have_them(url: str) -> None:
    given = conninfo_to_dict(postgres_conninfo(url))
    host, port = WITH_HOSTS[url]
    assert (given["host"], given.get("port")) == (host, port)
    assert Target.of(url).host == ",".join(sorted(host.split(",")))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:{0}@h1:5432,h2:port/db",
        "postgresql://u:{0}/x@h1:5432,h2:5432/db",
        "postgresql://u:{0}@x@h1:5432,h2:5432/db",
        "postgresql://u:{0},x/y@h1,h2/db",
        "postgresql://u:{0}@h1,[::2/db",
        "postgresql://u:{0}@h1:1,h2:2,h3:99999/db",
    ],
)
def test_hosts_that_cannot_be_understood_are_an_error_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        postgres_conninfo(url.format(PASSWORD))
    assert PASSWORD not in str(caught.value)


def test_a_redis_has_one_host(redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="Redis URL"):
        RedisSaver.from_conn_string("redis://h1:1,h2:2").__enter__()


@pytest.mark.parametrize("source", ["host=/nowhere,/neither user=me", " port=1,1 host = /nowhere,/neither"])
def test_histories_are_copied_from_several_hosts_in_libpq_s_form(
    source: str, database: str, redis_url: str
) -> None:
    copied = glasspoint("migrate", "--from", source, POSTGRES_URL=database, REDIS_URL=redis_url)
    assert copied.returncode == 1
    assert "PostgreSQL cannot be reached" in copied.stderr


async def test_the_host_that_takes_writes_is_found_behind_one_that_is_away(
    database: str, redis_url: str
) -> None:
    given = conninfo_to_dict(database)
    hosts = ",".join(f"{quote(str(each), safe='')}:{given['port']}" for each in ("/nowhere", given["host"]))
    url = f"postgresql://{given['user']}@{hosts}/{given['dbname']}?target_session_attrs=read-write"
    async with open_saver(url, redis_url) as saver:
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        port = int(str(given["port"]))
        assert address_of(saver.status.pool) == (given["host"], port)
    target = Target.of(url)
    hosts = ",".join(sorted(("/nowhere", str(given["host"]))))
    assert (target.host, target.port) == (hosts, str(given["port"]))
    found = [each async for each in run_checks(url, redis_url, timeout_seconds=15.0)]
    assert {each.status for each in found} <= {"ok", "warning"}, found
