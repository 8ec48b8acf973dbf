"""The benchmarks run: what nobody runs, rots. Their figures are not judged here."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import preforked
from chromium import CHROMIUM
from command_line import assert_fits, environment
from places import ROOT

BENCHMARKS = ROOT / "benchmarks"

WORKLOADS = {
    "hit": {"hit"},
    "miss": {"miss"},
    "put": {"put"},
    "put_writes": {"put_writes"},
    "first turn": {"first turn"},
    "turn": {"turn"},
    "cold start": {"cold start"},
    "history": {f"{call}, {of}" for call in ("hit", "miss", "put") for of in ("depth", "tables")},
    "network": {"put, network", "turn, network"},
}
PEERS = {"Glasspoint", "upstream, pool", "upstream, one", "RedisSaver", "InMemorySaver"}
WITH_FLOOR = ("hit", "put", "put_writes")


def test_every_workload_is_measured_with_every_contender(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    document, done = run("compare.py", file, "--smoke", "--seed", "5")
    figures = document["figures"]
    measured: dict[str, set[str]] = {}
    for each in figures:
        measured.setdefault(each["workload"], set()).add(each["contender"])
        for name in ("p50_ms", "p99_ms", "per_second"):
            assert all(value > 0 for value in each["rounds"][name]), each
    assert set(measured) == set().union(*WORKLOADS.values())
    for workload in WITH_FLOOR:
        assert measured[workload] == PEERS | {"floor"}
    assert measured["turn"] == PEERS
    for workload in ("put", "put_writes"):
        variants = {each["variant"].get("burst") for each in figures if each["workload"] == workload}
        assert variants == {"first of a burst", "in a burst"}
    for each in figures:
        if each["workload"] == "cold start":
            asked = each["rounds"]["statements"]
            assert min(asked) >= each["rounds"]["calls"][0], each
        if each["workload"] == "turn" and each["contender"] == "Glasspoint":
            assert all(0 < steps < 100 for steps in each["rounds"]["redis_steps"]), each
            assert all(kb > 1 for kb in each["rounds"]["redis_kb"]), each
    # What has a target was held against it, but for the sizes that are left out.
    assert "hit, 10 messages, 1 caller, p50         pool      ≥ 2.5" in done.stdout
    assert "put, 16 callers, burst, calls/s" in done.stdout
    assert "…" not in done.stdout, "a target's line fits"


def test_the_page_says_what_its_run_has_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from comparison.page import Run, renewed

    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    run, with_uvloop = Run.read(ROOT / "docs" / "performance.json"), ROOT / "docs" / "performance-uvloop.json"
    assert page == renewed(page, run, Run.read(with_uvloop) if with_uvloop.exists() else None)
    shown = set(re.findall(r"<!-- generated: ([\w ,]+) -->", page)) - {"facts", "targets", "turn cost"}
    assert shown == {each.workload for each in run.figures} == set().union(*WORKLOADS.values())


def test_a_target_is_judged_by_the_median_of_ratios_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from comparison.measuring import Figure, Sample
    from comparison.targets import TARGETS, judged

    def figure(contender: str, *milliseconds: float, group: int = 1) -> Figure:
        rounds = [Sample(10, each, each, 1000 / each, each) for each in milliseconds]
        return Figure("hit", {"messages": 10, "callers": 1}, contender, group, rounds)

    ours, pool, floor = (
        figure("Glasspoint", 1, 2, 4),
        figure("upstream, pool", 2, 6, 12),
        figure("floor", 1, 1, 2),
    )
    verdicts = {(v.target.says, v.target.against): v for v in judged([ours, pool, floor])}
    assert len(verdicts) == len(TARGETS)
    hit = "hit, 10 messages, 1 caller, p50"
    measured = {against: verdicts[hit, against] for against in ("pool", "floor")}
    assert [(v.measured.median, v.met) for v in measured.values() if v.measured] == [
        (3.0, True),
        (2.0, False),
    ]
    assert verdicts["put, 1 caller, first, p50", "pool"].met is None
    with pytest.raises(ValueError, match="same rounds"):
        judged([ours, figure("upstream, pool", 2, 6, 12, group=2)])


def test_a_turn_is_judged_against_both_peers_by_its_processor_time_and_by_redis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from comparison.measuring import Figure, Sample
    from comparison.page import turn_costs
    from comparison.targets import judged

    def figure(contender: str, ms: float, cpu_ms: float, **counted: float) -> Figure:
        variant = {"conversations": 1, "durability": "sync"}
        return Figure("turn", variant, contender, 1, [Sample(8, ms, ms, 1000 / ms, cpu_ms, **counted)] * 3)

    peers = [figure("upstream, pool", 20.0, 12.0), figure("upstream, one", 15.0, 12.0)]
    ours = figure("Glasspoint", 10.0, 11.0, redis_steps=4.0, redis_kb=25.0)
    verdicts = {(v.target.says, v.target.against): v for v in judged([ours, *peers])}
    turn = "turn, 1 conversation, sync"
    met = {
        (says, against): verdicts[f"{turn}{says}", against].met
        for says, against in (
            ("", "pool"),
            ("", "one"),
            (", cpu ms", "pool"),
            (", steps", ""),
            (", Redis kB", ""),
        )
    }
    assert list(met.values()) == [True, True, False, True, False]
    assert "| 4.00 (4.00-4.00) | 25.0 (25.0-25.0) |" in turn_costs([ours, *peers])
    # A run of before, that counted nothing, is still shown.
    older = figure("Glasspoint", 10.0, 11.0)
    unknown = {(v.target.says, v.target.against): v.met for v in judged([older, *peers])}
    assert unknown[f"{turn}, steps", ""] is None
    assert "| not measured | not measured |" in turn_costs([older, *peers])


def run(
    script: str, file: Path, *arguments: str, status: int = 0
) -> tuple[Any, subprocess.CompletedProcess[str]]:
    """Run one; what it wrote to the file, and what it said."""
    program = f"from benchmark_process import run; run({str(BENCHMARKS / script)!r})"
    done = preforked.run(program, *arguments, "--json", str(file), env=environment(), timeout=110)
    assert done.returncode == status, done.stderr
    assert_fits(done.stdout, columns=80)
    return json.loads(file.read_text()), done


def test_memory_bytes_and_statements_are_counted(tmp_path: Path) -> None:
    document, _ = run("memory.py", tmp_path / "figures.json", "--smoke")
    for part in ("conversations", "traffic"):
        assert all(each["rss_mb"] > 1 and each["blocks"] > 1 for each in document[part])
        assert document[part][-1]["done"] > 0
    for each in document["entries"]:
        assert each["redis_bytes"]["zstd"] < each["redis_bytes"]["off"]
        assert each["levels"]["level_1"]["ratio"] > 2
    ours, upstream = document["turn"]
    # Two scopes are read, one statement a write; a burst has three steps in Redis.
    assert 10 < ours["statements"] < upstream["statements"]
    assert 2 + 3 <= ours["redis_sent"] < ours["statements"]
    assert upstream["redis_sent"] == 0


def test_what_signing_costs_is_measured(tmp_path: Path) -> None:
    rows, _ = run("signing.py", tmp_path / "figures.json", "--smoke")
    assert {row["messages"] for row in rows} == {10, 100}
    assert all(row["us"] > 0 for row in rows)
    assert [row["what"] for row in rows if row["of"]][:2] == [
        "a hit: verifying, of the processor's time",
        "a put: signing, of the processor's time",
    ]


def test_the_regression_guard_says_what_is_out_of_bounds(tmp_path: Path) -> None:
    """That nothing is, `.ci/run` shows."""
    rows, done = run("regression.py", tmp_path / "rows.json", "--smoke", "--bounds", "0.001", status=1)
    judged = list(dict.fromkeys((row["name"], row["what"]) for row in rows))
    assert len(judged) == 8 * 2
    assert len(rows) == 2 * len(judged), "what is out of bounds is measured anew, once"
    lines = [line for line in done.stderr.splitlines() if line.startswith("Out of bounds: ")]
    assert all(f"{name}, {what}:" in line for (name, what), line in zip(judged, lines, strict=True))


def test_what_telemetry_costs_is_measured_for_every_configuration(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    document, _ = run("telemetry.py", file, "--smoke", "--seed", "5")
    measured = {(each["operation"], each["telemetry"]): each for each in document["figures"]}
    configurations = ("off", "metrics", "1 % sampled", "1 % of turns", "all sampled", "configured")
    assert list(measured) == [(operation, name) for operation in ("hit", "put") for name in configurations]
    for (operation, name), figure in measured.items():
        assert figure["call_ms"]["median"] > 0
        assert (figure["call_over"]["median"] == 0) is (name == "off")
        assert (figure["budget"] is not None) is (operation == "hit" and name not in ("off", "configured"))
        if name in ("all sampled", "configured"):
            assert figure["sent_over"]["median"] > figure["cpu_over"]["median"]
    hits = document["plan"]["rounds"] * document["plan"]["hits"]
    of_all, of_configured = 2 * hits, 2 * hits  # what instruments Redis records nothing within our spans
    assert of_all + of_configured <= document["spans"]["hit"] < 1.2 * (of_all + of_configured)
    assert document["live"]["hit_ms"]["median"] > 0
    assert document["live"]["hits_a_second"] > 0  # a page is open then: it waits for the first event


def test_what_the_triggers_cost_is_measured_beside_none(tmp_path: Path) -> None:
    document, _ = run("triggers.py", tmp_path / "figures.json", "--quick", "--seed", "5")
    operations = [f"{call}, {size}" for call in ("put", "put_writes") for size in ("10 messages", "1 MB")]
    configurations = ("without", "with", "transition tables")
    measured = [(each["operation"], each["triggers"]) for each in document["figures"]]
    assert measured == [(operation, name) for operation in operations for name in configurations]
    for each in document["figures"]:
        assert each["call_us"]["median"] > 0
        if each["triggers"] == "without":
            assert each["call_us"]["over"] == 0


def test_what_open_bursts_and_fences_take_is_measured(tmp_path: Path) -> None:
    document, _ = run("bursts.py", tmp_path / "figures.json", "--smoke")
    memory, fences = document["memory"], document["fences"]
    assert memory["open"] == 20
    assert memory["bytes_a_burst"] > memory["state_bytes"]
    assert fences["puts"] == fences["bursts"] == 40
    assert fences["without"]["most_rows"] == 0 < fences["with"]["most_rows"]
    assert fences["left"]["rows"] == 0


def test_what_a_cluster_costs_is_measured_beside_one_redis(tmp_path: Path) -> None:
    document, _ = run("cluster.py", tmp_path / "figures.json", "--smoke")
    contenders = ["one Redis", "cluster, 1 master", "cluster, 3 masters"]
    assert [each["contender"] for each in document["idle"]] == contenders
    measured = [(each["workload"], each["contender"]) for each in document["figures"]]
    assert measured == [(what, name) for what in ("hit", "hit", "turn") for name in contenders]
    for each in document["figures"]:
        # A hit is one step, wherever its entry is.
        assert each["workload"] == "turn" or 1 <= each["rounds"]["redis_steps"][0] < 2, each
        assert all(value > 0 for value in each["rounds"]["redis_ms"]), each


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_what_the_live_page_takes_is_measured(tmp_path: Path) -> None:
    document, _ = run("live.py", tmp_path / "figures.json", "--minutes", "0.02", "--rate", "50")
    assert document["failed_calls"] == 0
    assert document["measured"]
    assert all(each["heap"] > 0 and each["process"] > 0 for each in document["measured"])
    assert "reads a second" in document["headline"] or "No traffic yet" in document["headline"]
