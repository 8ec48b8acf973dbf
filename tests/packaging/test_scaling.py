"""docs/scaling.md: made of what was measured, and what it says about our turns, panels and settings is so."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver

import preforked
from command_line import environment
from dashboards.queries import boards
from glasspoint._version import __version__
from glasspoint.settings import Settings
from places import DOCS, ROOT

PAGE = (DOCS / "scaling.md").read_text("utf-8")


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from capacity import arithmetic, figures, page, servers_share, simulation
    from comparison import measuring

    # Before each slice, the benchmark collects garbage: here, that of all other tests, too.
    monkeypatch.setattr(measuring, "_collect", lambda: None)
    return SimpleNamespace(
        arithmetic=arithmetic, figures=figures, page=page, simulation=simulation, measuring=servers_share
    )


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


def test_the_script_runs_on_what_was_measured(capacity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--turns", "15", "--seed", "5", "--only", "carries", "--only", "flushed"]
    program = f"from benchmark_process import run; run({str(ROOT / 'benchmarks' / 'scaling.py')!r})"
    done = preforked.run(program, *arguments, env=environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    made, others = (
        capacity.page.tables(capacity.figures.Figures.read(DOCS), seed=seed, turns=15) for seed in (5, 6)
    )
    assert done.stdout.endswith("seed 5\n")
    flushed = made["flushed"]()
    for table in made["carries"](), flushed:
        assert table in done.stdout, "the same seed, the same figures"
    assert others["flushed"]() != flushed
    # Of the others, only the form is judged: they need not wait until as many turns end as begin.
    monkeypatch.setattr(capacity.simulation.System, "settling_seconds", 0.1)
    for name in ("rising", "fleet", "stampede", "validated"):
        lines = made[name]().splitlines()
        assert len({line.count("|") for line in lines}) == 1, name
        assert len(lines) == len(capacity.page.shown(PAGE)[name].splitlines())


class Counting(InMemorySaver):
    """Records the calls that it gets."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = await super().aget_tuple(config)
        self.calls.append("hit" if found else "miss")
        return found

    async def aput(self, *args: Any) -> RunnableConfig:
        self.calls.append("put")
        return await super().aput(*args)

    async def aput_writes(self, *args: Any) -> None:
        self.calls.append("put_writes")
        await super().aput_writes(*args)


async def test_a_turn_makes_the_calls_that_are_simulated(capacity: Any) -> None:
    calls: list[str] = []
    from comparison.turns import CONVERSATIONS, Turns

    for durability in ("sync", "exit"):
        turns = Turns(Counting(calls), "counted", None)
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
        share: float = simulation.Model(figures, system, seed=5).turns(20, 10).busy["redis"]
        return share

    one, four = busy(1), busy(4)
    # Steps to different masters share no pipeline, so four masters do more together than one.
    assert one / 4 < 1.05 * four < one / 2


def test_a_turn_has_as_many_bursts_as_its_pauses_make(capacity: Any) -> None:
    """The root's read asks Redis once, a burst three times: the measured turns say the same."""
    figures = capacity.figures.Figures.read(DOCS)
    for durability, thinks, bursts in (("sync", False, 1), ("sync", True, 4), ("exit", True, 1)):
        assert len(capacity.figures.bursts_of(durability, thinks=thinks)) == bursts
        measured = figures.turn("Glasspoint", durability, 16 if thinks else 1, thinks=thinks)
        # Each write adds a step that is sent before the first write of its burst has returned.
        computed = 1 + 3 * bursts
        assert computed <= measured["redis_steps"] < 1.4 * computed, (durability, thinks)
        name = "`exit`" if durability == "exit" else f"`sync`, models {'and tool' if thinks else 'answer'}"
        row = re.search(rf"^\| {name}[^|]*\| 1 \| {bursts} \| {computed} \| ([\d.]+) \|$", PAGE, re.MULTILINE)
        assert row, (durability, thinks)
        assert row[1] == f"{measured['redis_steps']:.1f}"


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
    model.turns(10, 15, flushed=4)
    before = {kind for at, kind in model.roots if at < model.flushed_at_ms}
    after = [kind for at, kind in model.roots if at >= model.flushed_at_ms]
    assert before == {"hit"}
    assert after.count("miss") == 4


def test_every_table_says_whether_it_is_measured_computed_or_simulated() -> None:
    for found in re.finditer(r"<!-- generated: ([\w ,]+) -->", PAGE):
        before = PAGE[: found.start()].split("\n## ")[-1].rpartition("<!-- end -->")[2]
        if found[1] not in ("validated", "facts", "idle", "fingerprint"):
            assert re.search(r"\b(Measured|Computed|Simulated|computed)\b", before), found[1]
    for name, word in (("turn", "Measured"), ("worked", "Computed"), ("fleet", "Simulated")):
        assert f"**{word}**" in PAGE.partition(f"<!-- generated: {name} -->")[0].rpartition("<!-- end -->")[2]


def test_the_arithmetic_of_the_page_is_right(capacity: Any) -> None:
    """Each line of the decisions can be followed with a pocket calculator."""
    worked = capacity.page.shown(PAGE)["worked"].replace(",", "").replace(" ms", "")
    number = r"(\d+(?:\.\d+)?)"
    quotients = re.findall(rf"(?<!× )(?<![\d.]){number} / {number} = {number}", worked)
    products = re.findall(rf"{number} × {number} = {number}", worked)
    assert len(quotients) >= 8
    assert len(products) >= 4
    for a, b, made in quotients:
        assert float(made) == pytest.approx(float(a) / float(b), abs=0.1), (a, b, made)
    for a, b, made in products:
        assert float(made) == pytest.approx(float(a) * float(b), abs=0.1), (a, b, made)
    for a, b, c, made in re.findall(rf"{number} × {number} / {number} = {number}", worked):
        assert float(made) == pytest.approx(float(a) * float(b) / float(c), abs=0.1), (a, b, c, made)
    for share, whole in re.findall(rf"= {number} rounded up \*\*(\d+)\*\*", worked):
        assert int(whole) == math.ceil(float(share))


def test_what_sentences_repeat_is_what_the_tables_show(capacity: Any) -> None:
    figures = capacity.figures.Figures.read(DOCS)
    ours, upstream = (figures.pod_turn_ms(each, "sync") for each in ("Glasspoint", "upstream, pool"))
    pod, redis, core = capacity.arithmetic.Arithmetic(figures).limits("sync")
    shared = figures.turn("Glasspoint", "sync", thinks=True)["redis_ms"]
    served = figures.bench("turn", "Glasspoint", "per_second", conversations=16, durability="sync")
    shown = capacity.page.shown(PAGE)
    first, nearly_full = (shown["rising"].splitlines()[number].split(" | ") for number in (2, 5))
    assert nearly_full[1].endswith("(90%)")
    assert nearly_full[2] == "all"
    waits = round(float(nearly_full[6].split()[0]) / float(first[6].split()[0]))
    assert waits == 3
    assert "a turn waits three times as long as at 25 %" in PAGE
    for sentence in (
        f"takes {ours.alone:.1f} ms of a pod's core if it is alone, and {ours.many:.1f} ms among 16 turns",
        f"is {0.25 * pod * ours.alone / 1000:.0%} busy".replace("%", " %")
        + f" ({0.25 * pod:.1f} turns a second × {ours.alone:.1f} ms)",
        f"plan with {700 / ours.alone:.0f} turns a second in place of {0.7 * pod:.0f}",
        f"computed with the {ours.many:.1f} ms of 16 turns at once",
        f"The target of {0.7 * pod:.0f} is less than the {served:.0f} turns a second that 16 conversations "
        "were measured to get",
        f"computed with the {1000 / core:.2f} ms of turns that share little",
        f"{shared:.2f} ms a turn was measured where calls shared some pipelines (first table), and "
        f"{1000 / redis:.2f} ms is computed",
        f"are of Glasspoint's limit ({pod:.0f}); that of `AsyncPostgresSaver` is {1000 / upstream.many:.0f}, "
        f"because its turn takes {upstream.many:.1f} ms",
        f"whose limit is computed as {4 * core:.0f}",
        f"above its computed limit ({4 * core:.0f})",
        f"computed to be full at nearly the same load ({redis:.0f})",
        f"At a fourth of the limit a pod is {first[3].replace('%', ' %')} busy",
        "1,000,000 × 5 × 3 / 86,400 s = 174 turns a second",
        f"{1_000_000 * 5 * 3 / 86_400:.0f} turns a second is the busiest hour",
    ):
        assert sentence in " ".join(PAGE.split()), sentence
    # "So 100 pods … need fourteen masters", and the page's other word for the same table.
    assert "need fourteen masters" in PAGE
    assert "**14**; with `exit`" in shown["worked"]
    # "14 for the writes", "16 calls", "15 statements": the subgraph's read is one, the root's a hit.
    calls = capacity.figures.TURN["sync"]
    writes = sum(each in ("put", "put_writes") for each in calls)
    assert (len(calls), writes, writes + 1) == (16, 14, 15)
    assert f"PostgreSQL gets {writes + 1} statements: {writes} for the writes" in PAGE


def test_what_is_simulated_agrees_with_what_is_computed(capacity: Any) -> None:
    """Below every limit all turns are served; above one, not all are."""
    shown = capacity.page.shown(PAGE)
    figures = capacity.figures.Figures.read(DOCS)
    pod, redis, core = capacity.arithmetic.Arithmetic(figures).limits("sync")

    def rows(name: str, of: str = "") -> list[list[str]]:
        lines = shown[name].splitlines()[2:]
        return [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {of}")]

    loads = {
        "rising": [(float(row[1].split()[0]) / pod, row[2]) for row in rows("rising", "Glasspoint")],
        "fleet": [(_number(row[1]) / (4 * core), row[2]) for row in rows("fleet")],
        "cluster": [(_number(row[1]) / (redis * int(row[0])), row[2]) for row in rows("cluster")],
    }
    for name, each in loads.items():
        assert {served for load, served in each if load < 0.95} == {"all"}, name
        assert {served for load, served in each if load > 1.2} == {"not all"}, name
    saturated = [row for name in loads for row in rows(name) if row[2] == "not all"]
    assert all(row[-2:] == ["grows", "grows"] and "100%" in row for row in saturated)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def test_a_run_counts_only_turns_that_end_under_the_same_load(capacity: Any) -> None:
    """What comes of a run does not depend on how long it is: it does not count while it fills or empties."""
    figures, simulation = capacity.figures.Figures.read(DOCS), capacity.simulation
    pod = capacity.arithmetic.Arithmetic(figures).limits("sync")[0]

    def run(load: float, seconds: float) -> Any:
        model = simulation.Model(figures, simulation.System(haste=0.15), seed=5)
        return model.turns(load * pod, seconds)

    short, long = run(0.5, 4), run(0.5, 12)
    assert short.busy["pod"] == pytest.approx(long.busy["pod"], rel=0.15)
    assert not long.is_saturated
    assert long.per_second == pytest.approx(0.5 * pod, rel=0.15)
    assert run(1.25, 4).is_saturated


def test_a_simulated_turn_takes_of_the_servers_what_was_measured(capacity: Any) -> None:
    """So what is computed with these costs and what is simulated cannot contradict each other."""
    figures, simulation = capacity.figures.Figures.read(DOCS), capacity.simulation
    pod = capacity.arithmetic.Arithmetic(figures).limits("sync")[0]
    done = simulation.Model(figures, simulation.System(haste=0.15), seed=5).turns(0.5 * pod, 8)
    postgres, redis = (1000 * done.busy[each] / done.per_second for each in ("postgres", "redis"))
    measured = figures.postgres_turn_ms("Glasspoint", "sync", thinks=True)
    assert 0.9 * measured.many < postgres < 1.1 * measured.alone
    shared = figures.turn("Glasspoint", "sync", thinks=True)["redis_ms"]
    assert 0.9 * shared < redis < 1.1 * figures.redis_turn_ms("sync")


async def test_the_page_of_costs_counts_another_graph_and_says_which(capacity: Any) -> None:
    from memory import build_graph

    calls: list[str] = []
    graph = build_graph(Counting(calls))
    config = {"configurable": {"thread_id": "counted"}}
    for _ in range(2):
        calls.clear()
        await graph.ainvoke({"messages": [("user", "a question")]}, config)
    reads = calls.count("hit") + calls.count("miss")
    puts, pending = calls.count("put"), calls.count("put_writes")
    there = capacity.figures.TURN["sync"]
    cost = (DOCS / "cost.md").read_text("utf-8")
    assert f"| calls | {reads} reads, {puts} puts, {pending} `put_writes` | 2 reads, " in cost
    assert f"| 2 reads, {there.count('put')} puts, {there.count('put_writes')} `put_writes` |\n" in cost
    assert f"| Glasspoint | {puts + pending}: {puts} puts, {pending} `put_writes` |" in cost
    assert (
        f"| statements | {puts} + {pending} = {puts + pending}: both reads are hits | 8 + 6 + 1 = 15" in cost
    )
    assert f"| commits | {puts + pending} | {len(there) - 2} |" in cost


def test_an_older_version_that_was_measured_is_named_where_its_figures_are() -> None:
    facts = json.loads((DOCS / "performance.json").read_text("utf-8"))["facts"]
    measured = re.match(r"glasspoint ([\d.]+)", facts["packages"])
    assert measured
    if measured[1] == __version__:
        return
    readme = (ROOT / "README.md").read_text("utf-8")
    page = (DOCS / "performance.md").read_text("utf-8").partition("<!-- generated")[0]
    for text in (readme, page):
        assert f"still called itself {measured[1]}" in text
    assert f"docs/performance.json, glasspoint {measured[1]}" in PAGE


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
