"""Where each process of `make test` begins to collect: together they compile each test file once.

Pytest rewrites the assertions of a test file and keeps the result beside it. In a fresh clone all processes
would rewrite all files at the same time, which takes four seconds of processor time each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fast import is_slow_file
from places import ROOT

if TYPE_CHECKING:
    from collections.abc import Collection

    import pytest

__all__ = ["begin_elsewhere"]

TESTS = ROOT / "tests"


def begin_elsewhere(config: pytest.Config, *, left_out: Collection[str]) -> None:
    """Let one of several processes that collect all tests begin with its share of them.

    The items have to be sorted afterwards: all processes must have the same order.

    Args:
        left_out: Names of test files that are not collected.
    """
    process: dict[str, object] | None = getattr(config, "workerinput", None)  # of pytest-xdist
    if process is None or [(ROOT / each).resolve() for each in config.args] != [TESTS]:
        return
    files = [
        str(file)
        for file in sorted(TESTS.rglob("test_*.py"))
        if file.name not in left_out and not (config.option.markexpr == "not slow" and is_slow_file(file))
    ]
    count, number = int(str(process["workercount"])), int(str(process["workerid"]).removeprefix("gw"))
    begin = len(files) * number // count
    config.args = files[begin:] + files[:begin]
