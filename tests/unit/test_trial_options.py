"""Which settings reach `glasspoint check`: all that its saver can heed, or a reason stands here."""

from __future__ import annotations

from typing import Any

import pytest

from glasspoint import Settings
from glasspoint.cli.parts import saver_options
from glasspoint.savers.options import trial_options

# The settings that `check` gets in another way, or that change nothing of what it does.
ELSEWHERE = {
    "postgres_url": "--postgres-url",
    "redis_url": "--redis-url",
    "key_prefix": "--key-prefix",
    "fallbacks": "an argument of run_checks",
    "redis_timeout": "an argument of run_checks",
    "fallback_unknown": "no thread is drained, and none begun in a lower tier",
    "redis_ttl": "nothing is stored in the tier redis",
    "pool_min_size": "no connection is opened in advance",
    "retention": "check removes nothing that is old",
    "telemetry_thread_ids": "check exports no telemetry",
    "probe_interval": "check does not change tiers",
    "ready_tiers": "check serves no /readyz",
}

OTHERS: dict[str, Any] = {
    "postgres_schema": "other",
    "postgres_password_command": "echo word",
    "redis_mode": "cluster",
    "on_l1_outage": "raise",
    "foreign_writes": "ignore",
    "on_fork": "raise",
    "l1_signing_key": "sixteen bytes..!",
    "l1_compression": "zstd",
    "audit_ratio": 0.5,
}


@pytest.mark.parametrize("field", sorted(set(Settings.model_fields) - set(ELSEWHERE)))
def test_a_setting_reaches_the_saver_of_check(field: str) -> None:
    default = Settings.model_fields[field].default
    given: dict[str, Any] = {field: OTHERS[field] if field in OTHERS else (default or 0) + 1}
    assert trial_options(Settings(**given)) != trial_options(Settings()), field


@pytest.mark.parametrize(("size", "most"), [("4", 2), ("1", 1)])
def test_a_command_opens_two_connections_and_never_more_than_the_service(
    size: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHECKPOINT_POOL_MAX_SIZE", size)
    assert saver_options()["pool_max_size"] == most
