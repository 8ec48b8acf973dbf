"""A target names one PostgreSQL, as libpq would resolve the connection string, without user or password."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import psycopg
import pytest

from glasspoint.embedded import EmbeddedPostgres
from glasspoint.errors import ConfigurationError
from glasspoint.l2 import target as target_module
from glasspoint.l2.target import Target, fallback_secret

VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGOPTIONS", "PGSERVICE")
PASSWORD = "geheim"
SERVICES = (
    "[other]\nhost=elsewhere\n\n# a remark\n[prod]\nhost=db.example\nport=5433\ndbname=app\npassword=known\n"
)


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, "PGSERVICEFILE", "PGSYSCONFDIR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("conn_string", "target"),
    [
        ("postgresql://me:pw@db.example/app", Target("db.example", "5432", "app")),
        ("postgres://me:pw@DB.Example:5433/app?sslmode=require", Target("db.example", "5433", "app")),
        ("postgresql+asyncpg://me@db/app?ssl=true", Target("db", "5432", "app")),
        ("postgresql://me@db", Target("db", "5432", "me")),
        ("host=db dbname=App user=me password=x", Target("db", "5432", "App")),
        ("host=a,b port=1,2 dbname=app", Target("a,b", "1,2", "app")),
        ("postgresql://b,a/app", Target("a,b", "5432", "app")),
        ("postgresql://b:1,a:2,a:1/app", Target("a,a,b", "1,2,1", "app")),
        ("host=a,b port=5432,5432 dbname=app", Target("a,b", "5432", "app")),
        ("host=a,b port=5433, dbname=app", Target("a,b", "5433,5432", "app")),
        ("hostaddr=10.0.0.1 dbname=app", Target("10.0.0.1", "5432", "app")),
        ("host=db hostaddr=10.0.0.1 dbname=app", Target("db", "5432", "app")),
        ("postgresql:///app?host=/Run/pg", Target("/Run/pg", "5432", "app")),
        ("dbname=app", Target("", "5432", "app")),
        ("postgresql://db/app?options=-csearch_path%3Dtenant", Target("db", "5432", "app", "tenant")),
        ("postgresql://db/app?options=-c%20search_path%3DTenant", Target("db", "5432", "app", "tenant")),
        ("postgresql://db/app?options=--search_path%3Da,b", Target("db", "5432", "app", "a,b")),
        ("postgresql://db/app?options=--search-path%3Da", Target("db", "5432", "app", "a")),
        (r"host=db dbname=app options='-c search_path=\"Ten\",\\ b'", Target("db", "5432", "app", "Ten,b")),
        ("host=db dbname=app options='-c search_path=a -c search_path=b'", Target("db", "5432", "app", "b")),
        ("host=db dbname=app options='-c statement_timeout=5'", Target("db", "5432", "app")),
    ],
)
def test_a_connection_string_names_a_target(conn_string: str, target: Target) -> None:
    assert Target.of(conn_string) == target


def test_the_environment_fills_in_what_the_connection_string_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in {
        "PGHOST": "from.env",
        "PGPORT": "6000",
        "PGDATABASE": "envdb",
        "PGOPTIONS": "-c search_path=envschema",
    }.items():
        monkeypatch.setenv(variable, value)
    assert Target.of("user=me") == Target("from.env", "6000", "envdb", "envschema")
    assert Target.of("postgresql://db:1/app") == Target("db", "1", "app", "envschema")


def test_a_service_file_is_read_for_the_environment_and_for_the_connection_string(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "services"
    file.write_text(SERVICES)
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    monkeypatch.setenv("PGPORT", "6000")
    named = Target.of("service=prod")
    assert named == Target("db.example", "5433", "app")
    assert Target.of("postgresql://?service=prod") == named
    assert Target.of("service=prod dbname=other") == Target("db.example", "5433", "other")
    assert fallback_secret("service=prod", None) == fallback_secret(
        "postgresql://:known@db.example:5433/app", None
    )
    monkeypatch.setenv("PGSERVICE", "prod")
    assert Target.of("user=me") == named


def test_a_service_of_the_system_is_read_where_the_user_s_file_does_not_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))
    (tmp_path / "pg_service.conf").write_text("[of-the-system]\nhost=db.example\n")
    file = tmp_path / "services"
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    for text in None, "no section", "[another]\nhost=other.example\n":
        if text is not None:
            file.write_text(text)
        assert target_module._of_service("of-the-system") == {"host": "db.example"}
        assert target_module._of_service("nobody") == {}


def test_the_target_is_what_libpq_connects_to(
    postgres: EmbeddedPostgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target.of(database)
    monkeypatch.setenv("PGHOST", target.host)
    monkeypatch.setenv("PGDATABASE", "test")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=a,b")
    user = psycopg.conninfo.conninfo_to_dict(database)["user"]
    with psycopg.connect(f"user={user}") as connection:
        info = connection.info
        path = connection.execute("SHOW search_path").fetchone()
        assert Target.of(f"user={user}") == Target(info.host, str(info.port), info.dbname, "a,b")
    assert path is not None
    assert path[0].replace(" ", "") == "a,b"


def test_neither_user_nor_password_is_part_of_it() -> None:
    one = Target.of(f"postgresql://me:{PASSWORD}@db/app")
    assert one == Target.of("postgresql://you@db/app")
    assert one.id == Target.of("postgresql://you@db/app").id
    assert re.fullmatch(r"[0-9a-f]{16}", one.id)
    assert one.name == "db:5432/app"
    assert PASSWORD not in repr(one) + one.name
    assert Target("", "5432", "app", "tenant").name == "local socket:5432/app, schema tenant"


def test_every_part_makes_another_id() -> None:
    targets = [
        Target("a", "1", "b"),
        Target("a", "2", "b"),
        Target("a", "1", "c"),
        Target("a", "1", "b", "s"),
    ]
    targets += [Target("a,1", "", "b"), Target("", "a,1", "b")]
    assert len({target.id for target in targets}) == len(targets)
    assert targets[0].id == "9b0eb62bfcd478ef", "another release would not find what this one has left"


def test_a_connection_string_that_cannot_be_understood_is_an_error_without_its_text() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Target.of(f"postgresql://me:{PASSWORD}@x@db/app")
    assert PASSWORD not in str(caught.value)


def test_the_secret_is_the_same_for_all_users_of_a_target_and_another_for_another_target() -> None:
    one = fallback_secret(f"postgresql://me:{PASSWORD}@db/app", None)
    assert one is not None
    assert len(one) == 32
    assert one == fallback_secret(f"host=db dbname=app user=you password={PASSWORD}", None)
    others = [
        fallback_secret("postgresql://me:other@db/app", None),
        fallback_secret(f"postgresql://me:{PASSWORD}@db/staging", None),
        fallback_secret(f"postgresql://me:{PASSWORD}@db/app", "sixteen bytes..!"),
        PASSWORD.encode(),
        hashlib.sha256(PASSWORD.encode()).digest(),
    ]
    assert one not in others


def test_the_setting_wins_over_the_password_and_is_not_the_key_itself() -> None:
    key = "sixteen bytes..!"
    one = fallback_secret("postgresql://me:one@db/app", key)
    assert one == fallback_secret("postgresql://me:other@db/app", key.encode())
    assert one != key.encode()


def test_without_a_password_there_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fallback_secret("postgresql://me@db/app", None) is None
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert fallback_secret("postgresql://me@db/app", None) == fallback_secret(
        f"postgresql://me:{PASSWORD}@db/app", None
    )
