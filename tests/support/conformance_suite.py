"""LangGraph's own conformance suite, to be run on any saver.

Its checkpoints are of format 1; a module that uses the fixture `checkpoint_format` runs each of its tests
with those, and again with checkpoints of format 4, which LangGraph writes today.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES, BASE_CAPABILITIES
from langgraph.checkpoint.conformance.test_utils import generate_checkpoint

BASE = sorted(capability.value for capability in BASE_CAPABILITIES)
ALL = sorted(capability.value for capability in ALL_CAPABILITIES)
SUITE = "langgraph.checkpoint.conformance"
ONLY_TODAYS_FORMAT = pytest.mark.parametrize("checkpoint_format", [4], ids=["v4"], indirect=True)
"""For tests of where checkpoints are stored, which another test of the same code runs with both formats."""

ASKS_FOR_FORMAT_1 = "test_get_tuple_checkpoint_fields: Expected v=1, got 4"


@pytest.fixture(params=[1, 4], ids=["v1", "v4"])
def checkpoint_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The format of the suite's checkpoints."""

    def generate(**fields: Any) -> Checkpoint:
        return {**generate_checkpoint(**fields), "v": request.param}

    for module in ("test_utils", *(f"spec.test_{capability}" for capability in ALL)):
        monkeypatch.setattr(import_module(f"{SUITE}.{module}"), "generate_checkpoint", generate)
    version: int = request.param
    return version


async def check_conformance(
    capability: str, name: str, opened: Callable[[], AbstractAsyncContextManager[BaseCheckpointSaver[Any]]]
) -> None:
    """Run one capability's tests.

    Args:
        name: Whose they are, for the report.
        opened: Makes a saver, empty the first time.
    """

    @checkpointer_test(name=name)
    async def create() -> AsyncIterator[BaseCheckpointSaver[Any]]:
        async with opened() as saver:
            yield saver

    report = await validate(create, capabilities={capability})
    result = report.results[capability]
    failures = [text for text in result.failures if not text.startswith(ASKS_FOR_FORMAT_1)]
    assert not failures, "\n".join(failures)
    assert result.tests_passed
