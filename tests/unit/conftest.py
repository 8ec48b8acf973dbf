"""No server: a test that needs one is no unit test."""

from __future__ import annotations

from typing import NoReturn

import pytest


def _refuse() -> NoReturn:
    pytest.fail("A unit test needs no server: this test belongs into a folder of tests/integration.")


@pytest.fixture(scope="session")
def postgres() -> None:
    _refuse()


@pytest.fixture(scope="session")
def redis_server() -> None:
    _refuse()


@pytest.fixture
def own_postgres() -> None:
    _refuse()


@pytest.fixture
def own_redis() -> None:
    _refuse()
