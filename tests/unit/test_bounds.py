"""What a process remembers is bounded in number: what was remembered longest ago is forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest

from glasspoint.history import beginning
from glasspoint.savers import forks


def test_threads_that_have_begun_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "_REMEMBERED", 2)
    threads: OrderedDict[str, None] = OrderedDict()
    for each in "1", "2", "1", "3":
        beginning.remember(threads, each)
    assert list(threads) == ["1", "3"]


def test_checkpoints_of_which_forks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_AT_MOST", 2)
    memory: dict[Any, Any] = {}
    for each in "1", "2", "3":
        forks._remember(memory, each, None)
    assert list(memory) == ["2", "3"]
