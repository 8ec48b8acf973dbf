"""What is said of servers and processes that do not do their part."""

from __future__ import annotations

import errno
import os
import socket
import urllib.error

import psycopg
import pytest
import redis

from glasspoint.cli.parts import words_of
from glasspoint.errors import GlasspointError
from glasspoint.telemetry.scraping import refused, unreachable

REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('::1', 9100, 0, 0)")
UNRESOLVED = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def caused_by(cause: BaseException, error: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("status", "said"),
    [(503, "answers with the status 503 (Service Unavailable)"), (999, "answers with the status 999")],
)
def test_a_status_is_said_with_its_name_if_it_has_one(status: int, said: str) -> None:
    assert refused(status) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (REFUSED, "does not answer: connection refused"),
        (urllib.error.URLError(REFUSED), "does not answer: connection refused"),
        (caused_by(REFUSED, RuntimeError("what a client says")), "does not answer: connection refused"),
        (ExceptionGroup("all addresses", [REFUSED, REFUSED]), "does not answer: connection refused"),
        (UNRESOLVED, "does not answer: name or service not known"),
        (RuntimeError("what a client says"), "does not answer: what a client says"),
        (EOFError(), "does not answer: EOFError"),
    ],
)
def test_the_reason_is_that_of_the_operating_system_however_it_is_wrapped(
    error: BaseException, said: str
) -> None:
    assert os.strerror(errno.ECONNREFUSED) == "Connection refused"
    assert unreachable(error) == said


def test_words_that_the_other_process_may_have_sent_are_not_repeated() -> None:
    assert unreachable(ValueError("<what it sent>"), foreign=False) == "does not answer: ValueError"


def test_a_command_that_fails_says_why_without_the_text_of_redis() -> None:
    """It may hold a key, and a key the id of a thread."""
    assert words_of(GlasspointError("Set the variable.")) == "Set the variable."
    assert words_of(psycopg.OperationalError("at host db")).startswith(
        "PostgreSQL refused, or did not respond"
    )
    said = words_of(redis.ConnectionError("glasspoint:{a thread}"))
    assert said == (
        "Redis refused, or did not respond (ConnectionError). Check REDIS_URL, and that the server is up."
    )
