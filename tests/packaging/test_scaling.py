"""docs/scaling.md: made of what was measured, and what it says about our turns, panels and settings is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver

from command_line import environment
from dashboards.queries import boards
from glasspoint.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "scaling.md").read_text("utf-8")


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from capacity import figures, page, servers_share

    return SimpleNamespace(figures=figures, page=page, measuring=servers_share)


def test_the_page_is_made_of_what_was_measured(capacity: Any) -> None:
    generated = re.findall(r"<!-- generated: (\w+) -->", PAGE)
    assert sorted(generated) == sorted(capacity.page.NAMES)
    again = "make bench WHAT=page, or: python benchmarks/page.py"
    assert capacity.page.renewed(PAGE, DOCS) == PAGE, again


def test_the_script_prints_the_tables_of_the_page() -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--only", "carries"]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    table = re.search(r"<!-- generated: carries -->\n(.+?)<!-- end -->", PAGE, re.DOTALL)
    assert table is not None
    assert table[1].strip() in done.stdout


async def test_a_turn_makes_the_calls_that_are_counted_on(capacity: Any) -> None:
    calls: list[str] = []

    class Counting(InMemorySaver):
        async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
            found = await super().aget_tuple(config)
            calls.append("hit" if found else "miss")
            return found

        async def aput(self, *args: Any) -> RunnableConfig:
            calls.append("put")
            return await super().aput(*args)

        async def aput_writes(self, *args: Any) -> None:
            calls.append("put_writes")
            await super().aput_writes(*args)

    from comparison.turns import CONVERSATIONS, Turns

    for durability in ("sync", "exit"):
        turns = Turns(Counting(), "counted", None)
        await turns.sample(CONVERSATIONS, 1, durability)
        calls.clear()
        await turns.sample(1, 1, durability)
        assert tuple(calls) == capacity.figures.TURN[durability]


async def test_what_the_servers_take_can_be_measured(capacity: Any) -> None:
    document = await capacity.measuring.measured(calls=16, turns=4, warm_up_turns=4, durable=False)
    figures = capacity.figures.Figures.read(DOCS)
    assert document.keys() == figures.servers.keys()
    for part in ("calls", "turns"):
        assert [_named(each) for each in document[part]] == [_named(each) for each in figures.servers[part]]
    for each in document["turns"]:
        assert each["checkpoints_rows"] == {"sync": 8, "exit": 1}[each["durability"]]
        assert each["redis_entries"] == 0, "the conversations' stand there already, a run's subgraph has none"


def _named(each: dict[str, Any]) -> list[Any]:
    return [value for value in each.values() if isinstance(value, str | int)] + list(each)


def test_every_panel_that_the_page_names_is_there() -> None:
    titles = {
        (board["title"].removeprefix("Glasspoint: "), panel["title"])
        for board in boards().values()
        for row in board["panels"]
        for panel in (row, *row.get("panels", ()))
    }
    named = set(re.findall(r'([A-Z][\w -]+) › "([^"]+)"', " ".join(PAGE.split())))
    assert len(named) > 10
    assert named <= titles
    assert PAGE.count("›") == len(re.findall(r'[A-Z][\w -]+ › "[^"]+"', PAGE))


def test_every_setting_and_section_that_the_page_names_is_there() -> None:
    known = {
        f"`{name}`" for name in re.findall(r"`(CHECKPOINT_\w+)", (DOCS / "settings.md").read_text("utf-8"))
    }
    named = {f"`{each}`" for each in re.findall(r"`(CHECKPOINT_\w+)", PAGE)}
    assert named
    assert named <= known
    assert f"`CHECKPOINT_POOL_MAX_SIZE` ({Settings.model_fields['pool_max_size'].default})" in PAGE
    for file, section in re.findall(r"\]\((\w+\.md)(?:#([\w-]+))?\)", PAGE):
        heads = re.findall(r"^#+ (.+)$", (DOCS / file).read_text("utf-8"), re.MULTILINE)
        assert not section or section in {head.lower().replace(" ", "-") for head in heads}, (file, section)
