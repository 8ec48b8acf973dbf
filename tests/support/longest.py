"""Which test files begin first: the longest, because one that begins last is waited for by all the others.

Open this file when one process of `make test` is busy long after the others have ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["LONGEST", "begins_at"]

# Those of the first column wait more than they compute: two of them at a time leave the processors to others.
LONGEST = (
    *("test_outage.py", "test_explorer.py"),
    *("test_alone.py", "test_chaos.py"),
    *("test_cluster_tier.py", "test_benchmarks.py"),
    *("test_live_demo.py", "test_thread_lists.py", "test_live_page.py"),
    *("test_sentinel.py", "test_observed.py", "test_processes.py"),
    *("test_on_a_cluster.py", "test_fallback.py", "test_identity.py"),
    *("test_closing.py", "test_retries.py", "test_untrusted_fallback.py"),
    "test_cluster.py",
)
"""Files below tests/, by name: those of half a minute or more, of the times that `--durations 0` prints, and
some shorter ones that compute."""


def begins_at(item: pytest.Item) -> tuple[int, str]:
    """Return the place of a test's file in the order of all. The tests of one file stay in their order."""
    name = item.path.name
    return (LONGEST.index(name) if name in LONGEST else len(LONGEST)), str(item.path)
