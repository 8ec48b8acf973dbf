"""Which tests `make test-fast` runs: those of the files that are listed here, but for two kinds.

Open this file when a test file is new, or when `make test-fast` takes longer than a minute and a half.

Every other test has the marker `slow`. So has, in a file that is listed, a test

    with a server of its own      it has a fixture whose name begins with `own_`
    that takes seconds            it is marked by hand: `@pytest.mark.slow`
"""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["FAST", "is_slow", "is_slow_file"]

FAST = frozenset({
    "test_chain_checker.py",
    "test_checker.py",
    "test_faults.py",
    "test_history.py",
    "test_report.py",
    "test_batching.py",
    "test_browsing_view.py",
    "test_bursts.py",
    "test_catalogue.py",
    "test_codec.py",
    "test_connecting.py",
    "test_counting.py",
    "test_dashboards.py",
    "test_demo_parts.py",
    "test_departures.py",
    "test_docs.py",
    "test_entry.py",
    "test_few_values.py",
    "test_history_conformance.py",
    "test_http.py",
    "test_keys.py",
    "test_layers.py",
    "test_lineage.py",
    "test_live_parts.py",
    "test_lone_calls.py",
    "test_make.py",
    "test_masters.py",
    "test_memory_history.py",
    "test_memory_saver.py",
    "test_options.py",
    "test_other_caches.py",
    "test_protocol.py",
    "test_redis_location.py",
    "test_redis_saver.py",
    "test_redis_servers.py",
    "test_registries.py",
    "test_retention.py",
    "test_run_subgraphs.py",
    "test_sentinels.py",
    "test_settings.py",
    "test_steps_that_read.py",
    "test_signature.py",
    "test_sources.py",
    "test_target.py",
    "test_telemetry_parts.py",
    "test_trace.py",
    "test_trace_tempo.py",
    "test_untrusted_redis.py",
    "test_warm_up.py",
    "test_watched_topology.py",
    "test_words.py",
})  # fmt: skip
"""Files below tests/, by name, whose other tests take about a second at most."""


def is_slow_file(path: Path) -> bool:
    """Whether a path is a test file that is not listed."""
    return path.match("test_*.py") and path.name not in FAST


def is_slow(item: pytest.Item) -> bool:
    """Whether a test gets the marker `slow`."""
    has_own_server = any(name.startswith("own_") for name in getattr(item, "fixturenames", ()))
    return has_own_server or is_slow_file(item.path)
