"""What `glasspoint check` says of sentinels that do not name the master that is in use."""

from __future__ import annotations

from typing import Any

import pytest

from glasspoint.redis.sentinels import Sentinels, _Answer, _NoAnswer, services_of

MASTER, ANOTHER = ("redis-0", 6379), ("redis-1", 6379)
MINE = frozenset({"mine"})

ANSWERS: dict[str, tuple[_Answer | _NoAnswer, str | None]] = {
    "a": (_Answer(MASTER, 1, MINE), None),
    "b": (_NoAnswer("refuses", "AuthenticationError", "Set the password."), "refuses. Set the password"),
    "c": (_Answer(MASTER, 1, MINE, is_former=True), None),
    "d": (_Answer(ANOTHER, 1, MINE, is_former=True), "still names the former master, and leads a failover"),
    "e": (_Answer(ANOTHER, 2, MINE), "names redis-1:6379"),
    "f": (_Answer(None, 0, MINE), "knows no master that is up"),
    "g": (_Answer(None, 0, frozenset({"other"})), "does not know the service"),
}  # fmt: skip


async def test_each_sentinel_that_disagrees_is_named_with_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentinels = Sentinels(
        [(host, 26379) for host in ANSWERS], "mine", timeout_seconds=1.0, sentinel_options={}, options={}
    )
    sentinels._master = MASTER

    async def answer(sentinel: Any) -> _Answer | _NoAnswer:
        return ANSWERS[sentinel.connection_pool.connection_kwargs["host"]][0]

    monkeypatch.setattr(sentinels, "_ask_one", answer)
    agree, others = await sentinels.survey()
    assert others == [f"{host}:26379 {says}" for host, (_, says) in ANSWERS.items() if says is not None]
    assert agree == 2


async def test_services_are_read_in_both_forms_in_which_redis_py_returns_them() -> None:
    class Asked:
        def __init__(self, services: object) -> None:
            self._services = services

        async def sentinel_masters(self) -> object:
            return self._services

    mine = {"name": "mine", "ip": "redis-0"}
    for form in {"mine": mine}, [mine]:
        assert await services_of(Asked(form)) == {"mine": mine}  # type: ignore[arg-type]
