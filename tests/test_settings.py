"""The settings are documented, each with its unit, default and range, and a wrong one says which it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glasspoint import Settings
from glasspoint.errors import ConfigurationError

DOC = (Path(__file__).parents[1] / "docs" / "settings.md").read_text("utf-8")
ROWS = {
    row[0]: row[1:]
    for row in re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \| (.*?) \| ?(.*?) ?\|$", DOC, re.MULTILINE)
}
FIELDS = {str(field.validation_alias): name for name, field in Settings.model_fields.items()}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in FIELDS:
        monkeypatch.delenv(variable, raising=False)


def test_every_setting_is_in_the_table_and_the_other_way_round() -> None:
    assert ROWS.keys() == FIELDS.keys()


@pytest.mark.parametrize("variable", sorted(FIELDS))
def test_the_default_is_the_documented_one(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = ROWS[variable][2]
    bare = getattr(Settings.from_environment(), FIELDS[variable])
    if default in ("required", "not set"):
        assert bare is None
        return
    monkeypatch.setenv(variable, default.strip("`"))
    assert getattr(Settings.from_environment(), FIELDS[variable]) == bare


@pytest.mark.parametrize("variable", sorted(FIELDS.keys() - {"CHECKPOINT_FALLBACKS"}))
def test_an_empty_variable_counts_as_not_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Settings.from_environment()
    monkeypatch.setenv(variable, "")
    assert Settings.from_environment() == default


@pytest.mark.parametrize(
    ("variable", "value", "means"),
    [
        ("CHECKPOINT_FALLBACKS", "", ()),
        ("CHECKPOINT_FALLBACKS", " redis ", ("redis",)),
        ("CHECKPOINT_FALLBACKS", "redis , memory,", ("redis", "memory")),
        ("CHECKPOINT_READY_TIERS", "cached,redis", ("cached", "redis")),
        ("CHECKPOINT_PREPARE_THRESHOLD", "none", None),
        ("CHECKPOINT_POOL_MAX_SIZE", "50", 50),
    ],
)
def test_what_a_value_means(variable: str, value: str, means: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(Settings.from_environment(), FIELDS[variable]) == means


WRONG = [
    ("CHECKPOINT_FALLBACKS", "disk"),
    ("CHECKPOINT_FALLBACKS", "cached"),
    ("CHECKPOINT_FALLBACKS", "memory,redis"),
    ("CHECKPOINT_FALLBACKS", "redis,redis"),
    ("CHECKPOINT_READY_TIERS", "best"),
    ("CHECKPOINT_POOL_MIN_SIZE", "11"),
    ("CHECKPOINT_PREPARE_THRESHOLD", "-1"),
    ("CHECKPOINT_AUDIT_RATIO", "1.1"),
    ("CHECKPOINT_AUDIT_RATIO", "-0.1"),
    ("CHECKPOINT_AUDIT_RATIO", "nan"),
    *((variable, "0") for variable, row in ROWS.items() if row[3].startswith("> 0")),
    *((variable, "soon") for variable, row in ROWS.items() if row[1] in ("seconds", "connections", "uses")),
    *((variable, "inf") for variable, row in ROWS.items() if row[1] == "seconds"),
]


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_a_wrong_value_is_an_error_that_names_the_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable):
        Settings.from_environment()


def test_a_variable_that_is_nearly_a_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And none that may belong to other software."""
    for name in ("CHECKPOINT_CASHE_TTL", "CHECKPOINT_DIR", "CHECKPOINT_INTERVAL"):
        monkeypatch.setenv(name, "5")
    assert Settings.from_environment().cache_ttl == 86400.0
    assert caplog.messages == [
        "The variable CHECKPOINT_CASHE_TTL is no setting, and is not read: did you mean CHECKPOINT_CACHE_TTL?"
    ]


def test_no_setting_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_URL", "postgresql://me:hush-hush@host/db")
    monkeypatch.setenv("REDIS_URL", "redis://:hush-hush@host/0")
    settings = Settings.from_environment()
    assert "hush" not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
