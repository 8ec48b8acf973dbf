"""The settings are documented, each with its unit, default and range, and a wrong one says which it is."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, get_args

import pytest

from glasspoint import Settings
from glasspoint.errors import ConfigurationError
from places import DOCS

DOC = (DOCS / "settings.md").read_text("utf-8")
ROWS = {
    row[0]: row[1:]
    for row in re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \| (.*?) \| ?(.*?) ?\|$", DOC, re.MULTILINE)
}
FIELDS = {str(field.validation_alias): name for name, field in Settings.model_fields.items()}
# Where any text is one that can be used, or is looked at only when a server is asked.
TEXTS = {
    "postgres_url",
    "postgres_schema",
    "postgres_password_command",
    "redis_url",
    "key_prefix",
    "l1_signing_key",
}


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


SECRET = "hush-hush-hush-hush"


def refusal_of(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> str:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment()
    monkeypatch.delenv(variable)
    assert caught.value.__context__ is None, "the cause would hold the value"
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variable", sorted(each for each in FIELDS if FIELDS[each] not in TEXTS))
def test_a_wrong_text_says_what_is_allowed_and_not_what_stands_there(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a secret that stands in the wrong variable."""
    said = refusal_of(monkeypatch, variable, SECRET)
    assert re.search(
        rf": {variable} (cannot be understood|is none of the allowed words): it must be .*\w", said
    )


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "CHECKPOINT_CACHE_TTL",
            "1d",
            "cannot be understood: it must be a number of seconds greater than 0.",
        ),
        ("CHECKPOINT_CACHE_TTL", "-5", "is out of range: it must be a number of seconds greater than 0."),
        (
            "CHECKPOINT_WRITE_DEADLINE",
            "1e9",
            "is out of range: it must be a number of seconds greater than 0, ",
        ),
        (
            "CHECKPOINT_POOL_MAX_SIZE",
            "1O",
            "cannot be understood: it must be a whole number of connections, 1 ",
        ),
        ("CHECKPOINT_RETENTION", "30", "cannot be understood: it must be an age greater than 0, as in 90m, "),
        ("CHECKPOINT_ON_FORK", "rais", 'is none of the allowed words: it must be "count" or "raise".'),
        ("CHECKPOINT_TELEMETRY_THREAD_IDS", "no", 'it must be "plain", "hashed" or "none".'),
        (
            "CHECKPOINT_L1_SIGNING_KEY",
            SECRET[:15],
            "is too short: it must be a text of at least 16 characters ",
        ),
        ("CHECKPOINT_READY_TIERS", ",", "is too short: it must be one or more of cached, redis and memory"),
        ("CHECKPOINT_POOL_MIN_SIZE", "11", "must not be greater than CHECKPOINT_POOL_MAX_SIZE (10, if "),
        (
            "CHECKPOINT_POSTGRES_SCHEMA",
            SECRET * 4,
            "it must be the name of one schema, as PostgreSQL stores it",
        ),
    ],
)
def test_the_error_of_a_variable(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal_of(monkeypatch, variable, value)
    assert said.startswith(f"The environment holds a setting that cannot be used: {variable} ")
    assert says in said


class Hidden:
    def __repr__(self) -> str:
        return SECRET


WRONG_TYPES: list[Any] = [
    True,
    False,
    SECRET.encode(),
    1j,
    {SECRET: SECRET},
    Hidden(),
    float("nan"),
    timedelta(days=-1),
]


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_an_argument_of_another_type_is_refused(field: str) -> None:
    optional = type(None) in get_args(Settings.model_fields[field].annotation)
    for value in [*WRONG_TYPES, *([] if optional else [None])]:
        with pytest.raises(ConfigurationError, match=rf": {field} is .*: it must be ") as caught:
            Settings(**{field: value})
        assert SECRET not in str(caught.value)
        assert caught.value.__context__ is None


def test_an_argument_that_is_no_setting_is_refused() -> None:
    wrong: dict[str, Any] = {"cache_tll": 5}
    with pytest.raises(TypeError, match=r"Settings has no option 'cache_tll': did you mean 'cache_ttl'\?"):
        Settings(**wrong)


def test_an_argument_is_named_as_it_was_given() -> None:
    with pytest.raises(
        TypeError, match=r"^A setting cannot be used: retention is of the type int: it must be"
    ):
        Settings(retention=5)
    with pytest.raises(
        ConfigurationError, match=r"^A setting cannot be used: CHECKPOINT_CACHE_TTL is -1: it must"
    ):
        Settings(CHECKPOINT_CACHE_TTL=-1)


def test_an_argument_may_be_a_text_as_in_the_environment() -> None:
    settings = Settings(pool_max_size="12", retention="30d", CHECKPOINT_FALLBACKS="redis")
    assert (settings.pool_max_size, settings.retention) == (12, timedelta(days=30))
    assert settings.fallbacks == ("redis",)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CHECKPOINT_CASHE_TTL", "CHECKPOINT_CACHE_TTL"),
        ("CHECKPOINT_CACHE_TTL_SECONDS", "CHECKPOINT_CACHE_TTL"),
        ("CHECKPOINT_REDIS_URL", "REDIS_URL"),
        ("GLASSPOINT_AUDIT_RATIO", "CHECKPOINT_AUDIT_RATIO"),
    ],
)
def test_what_a_variable_was_meant_to_be(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, SECRET)
    Settings.from_environment()
    assert caplog.messages == [f"The variable {name} is no setting, and is not read: did you mean {meant}?"]


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
