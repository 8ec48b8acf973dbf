"""docs/scaling.md: made of what was measured, and what it says about our turns, panels and settings is so."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver

from command_line import environment
from dashboards.queries import boards
from glasspoint.settings import Settings
from places import DOCS, ROOT

PAGE = (DOCS / "scaling.md").read_text("utf-8")


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from capacity import figures, page, servers_share, simulation
    from comparison import measuring

    # Before each slice, the benchmark collects garbage: here, that of all other tests, too.
    monkeypatch.setattr(measuring, "_collect", lambda: None)
    return SimpleNamespace(figures=figures, page=page, simulation=simulation, measuring=servers_share)


def test_the_page_is_made_of_what_was_measured(capacity: Any) -> None:
    """What is simulated is not done again: the fingerprint tells of other figures, and of edited tables."""
    shown = capacity.page.shown(PAGE)
    assert set(shown) == {*capacity.page.ON_PAPER, *capacity.page.SIMULATED, "fingerprint"}
    again = "make bench WHAT=page, or: python benchmarks/page.py"
    assert shown["fingerprint"] == capacity.page.fingerprint(PAGE, DOCS), again
    made = capacity.page.tables(capacity.figures.Figures.read(DOCS))
    for name in capacity.page.ON_PAPER:
        assert shown[name] == made[name]().strip(), again


def test_a_table_that_was_edited_is_noticed(capacity: Any) -> None:
    for name in capacity.page.SIMULATED:
        table = capacity.page.shown(PAGE)[name]
        edited = PAGE.replace(table, re.sub(r"\d", "9", table))
        assert capacity.page.fingerprint(edited, DOCS) != capacity.page.fingerprint(PAGE, DOCS)


def test_the_script_runs_on_what_was_measured(capacity: Any) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "scaling.py")]
    arguments = ["--turns", "15", "--seed", "5", "--only", "carries", "--only", "flushed"]
    done = subprocess.run(
        [*script, *arguments], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    made, others = (
        capacity.page.tables(capacity.figures.Figures.read(DOCS), seed=seed, turns=15) for seed in (5, 6)
    )
    assert done.stdout.endswith("seed 5\n")
    for name in ("carries", "flushed"):
        assert made[name]() in done.stdout, "the same seed, the same figures"
    assert others["flushed"]() != made["flushed"]()
    for name in ("rising", "fleet", "stampede", "validated"):
        lines = made[name]().splitlines()
        assert len({line.count("|") for line in lines}) == 1, name
        assert len(lines) == len(capacity.page.shown(PAGE)[name].splitlines())


async def test_a_turn_makes_the_calls_that_are_simulated(capacity: Any) -> None:
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


def test_queues_are_what_they_are_known_to_be(capacity: Any) -> None:
    """Held against what needs no simulation, whatever was measured."""
    figures, simulation = capacity.figures.Figures.read(DOCS), capacity.simulation
    system = simulation.System(postgres_cores=8, round_trip_ms=0.05, thinks=False)

    def run(conversations: int) -> Any:
        return simulation.Model(figures, system, seed=5).conversations(conversations, 200 // conversations)

    crowded, alone = run(50), run(1)
    assert alone.busy["pod"] < crowded.busy["pod"] <= 1.001
    # A core is busy for what turns take of it, and conversations that never pause leave it no time.
    assert crowded.busy["pod"] > 0.9
    turn = figures.pod_turn_ms("Glasspoint", "sync")
    costs = sorted((turn.alone, turn.many))
    assert 0.85 * costs[0] < 1000 * crowded.busy["pod"] / crowded.per_second < 1.15 * costs[1]
    # Little's law: how many there are is how often one begins, times how long it lasts.
    assert crowded.per_second * crowded.turn_ms / 1000 == pytest.approx(50, rel=0.2)


def test_masters_share_the_steps(capacity: Any) -> None:
    figures, simulation = capacity.figures.Figures.read(DOCS), capacity.simulation

    def busy(masters: int) -> float:
        system = simulation.System(redis_masters=masters, postgres_cores=4, thinks=False)
        share: float = simulation.Model(figures, system, seed=5).turns(20, 200).busy["redis"]
        return share

    one, four = busy(1), busy(4)
    # Steps to different masters share no pipeline, so four masters do more together than one.
    assert one / 4 < 1.05 * four < one / 2


def test_a_turn_has_as_many_bursts_as_its_pauses_make(capacity: Any) -> None:
    """A read asks Redis once, a burst three times: the measured turns say the same."""
    figures = capacity.figures.Figures.read(DOCS)
    for durability, thinks, bursts in (("sync", False, 1), ("sync", True, 4), ("exit", True, 1)):
        assert len(capacity.figures.bursts_of(durability, thinks=thinks)) == bursts
        measured = figures.turn("Glasspoint", durability, 16 if thinks else 1, thinks=thinks)
        assert measured["redis_steps"] == pytest.approx(2 + 3 * bursts, rel=0.3), (durability, thinks)


def test_a_flush_makes_the_next_read_of_each_conversation_a_miss(capacity: Any) -> None:
    figures, simulation = capacity.figures.Figures.read(DOCS), capacity.simulation

    class Counting(simulation.Model):  # type: ignore[name-defined, misc]
        roots: list[tuple[float, str]]

        def _kind(self, planned: str, conversation: int | None) -> str:
            kind: str = super()._kind(planned, conversation)
            if planned == "hit":
                self.roots.append((self.env.now, kind))
            return kind

    model = Counting(figures, simulation.System(), seed=5)
    model.roots = []
    model.turns(10, 150, flushed=4)
    before = {kind for at, kind in model.roots if at < model.flushed_at_ms}
    after = [kind for at, kind in model.roots if at >= model.flushed_at_ms]
    assert before == {"hit"}
    assert after.count("miss") == 4


@pytest.mark.timeout(300)  # 6 s on a quiet machine, but two servers and seven savers on a busy one
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
        anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
        assert not section or section in anchors, (file, section)
