"""Passwords that are very short are hidden, and garble no other words."""

from __future__ import annotations

import pytest

from glasspoint.cli.check import run_checks
from glasspoint.model.urls import without_secret


@pytest.mark.parametrize(
    ("text", "secret", "shown"),
    [
        ("redis://:s@glasspoint/0 is refused", "s", "redis://:***@glasspoint/0 is refused"),
        ("rediss://me:s@h/0?sentinel_password=s&x=1", "s", "rediss://me:***@h/0?sentinel_password=***&x=1"),
        ("host=h password=s dbname=s", "s", "host=h password=*** dbname=s"),
        ("invalid integer value \"s\" for 'port'", "s", "invalid integer value \"***\" for 'port'"),
        ("at least as long", "s", "at least as long"),
        ("user=me password=secret secret2", "secret", "user=me password=*** ***2"),
        ("nothing", "", "nothing"),
        ("a.b:axb@h", "a.b", "a.b:axb@h"),
    ],
)
def test_a_short_secret_is_hidden_only_where_it_stands_alone(text: str, secret: str, shown: str) -> None:
    assert without_secret(text, secret) == shown


async def test_check_does_not_garble_its_words_if_the_password_is_one_letter() -> None:
    urls = "postgresql://me:s@127.0.0.1:1/db", "redis://:s@127.0.0.1:1/0"
    findings = [each async for each in run_checks(*urls, timeout_seconds=30)]
    failed = [each for each in findings if each.status == "failed"]
    assert failed
    assert not [each for each in failed if "*" in each.detail]
