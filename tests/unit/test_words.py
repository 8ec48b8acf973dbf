"""What is said of servers and processes that do not do their part."""

from __future__ import annotations

import errno
import os
import socket
import urllib.error

import psycopg
import pytest
import redis
from psycopg_pool import PoolClosed
from redis.exceptions import ClusterDownError
from typer.testing import CliRunner

from glasspoint import MemorySaver
from glasspoint.cli.commands import app
from glasspoint.cli.parts import words_of
from glasspoint.demo.chat import Chat
from glasspoint.errors import GlasspointError, InvalidConfigError, L1Error, SaverClosedError
from glasspoint.l1.epoch import _config_epoch
from glasspoint.l2.connections import _named
from glasspoint.redis.faults import redirection_of
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


def test_an_error_of_psycopg_that_our_callers_can_mend_says_how() -> None:
    closed = _named(PoolClosed("the pool 'p' is not open yet"), has_pool=True)
    assert isinstance(closed, SaverClosedError)
    journal = psycopg.errors.UndefinedTable('relation "glasspoint_l1_journal" does not exist')
    assert "run `glasspoint setup`" in str(_named(journal, has_pool=True))
    assert "glasspoint_l1_journal" in str(_named(journal, has_pool=True))


def test_a_slot_that_no_node_serves_belongs_to_another_node_or_to_none() -> None:
    assert redirection_of(ClusterDownError("CLUSTERDOWN Hash slot not served")) == "moved"
    assert redirection_of(ClusterDownError("CLUSTERDOWN The cluster is down")) is None


def test_a_user_who_may_not_ask_for_the_epoch_of_a_cluster_is_told_so() -> None:
    with pytest.raises(L1Error, match=r"CLUSTER INFO.*let the user ask"):
        _config_epoch(b"cluster_state:ok")


async def test_a_thread_is_not_copied_to_itself() -> None:
    async with MemorySaver() as saver:
        with pytest.raises(InvalidConfigError, match="cannot be copied to itself"):
            await saver.acopy_thread("a", "a")


def test_in_the_demo_nothing_is_not_said() -> None:
    with pytest.raises(GlasspointError, match="Say something"):
        Chat._check("kim", "")


def test_a_copy_from_nowhere_is_wrong_usage() -> None:
    done = CliRunner().invoke(app, ["migrate"], env={"MIGRATE_FROM": ""})
    assert done.exit_code == 2
    assert "MIGRATE_FROM" in done.output
