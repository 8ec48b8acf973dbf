"""The benchmarks run: what nobody runs, rots. Their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import END_SECONDS, assert_fits, environment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, file: Path, *arguments: str, status: int = 0) -> tuple[Any, str]:
    """Run one; what it wrote to the file, and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments, "--json", str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert_fits(done.stdout, columns=80)
    return json.loads(file.read_text()), done.stderr


def test_memory_bytes_and_statements_are_counted(tmp_path: Path) -> None:
    document, _ = run("memory.py", tmp_path / "figures.json", "--smoke")
    for part in ("conversations", "traffic"):
        assert all(each["rss_mb"] > 1 and each["blocks"] > 1 for each in document[part])
        assert document[part][-1]["done"] > 0
    for each in document["entries"]:
        assert each["redis_bytes"]["zstd"] < each["redis_bytes"]["off"]
        assert each["levels"]["level_1"]["ratio"] > 2
    ours, upstream = document["turn"]
    # Two scopes are read, one statement a write, and each write has its two steps in Redis.
    assert 10 < ours["statements"] < upstream["statements"]
    assert ours["redis_sent"] >= 2 + 2 * ours["statements"] - 1
    assert upstream["redis_sent"] == 0


def test_the_regression_guard_says_what_is_out_of_bounds(tmp_path: Path) -> None:
    """That nothing is, `.ci/run` shows."""
    rows, said = run("regression.py", tmp_path / "rows.json", "--smoke", "--bounds", "0.001", status=1)
    judged = list(dict.fromkeys((row["name"], row["what"]) for row in rows))
    assert len(judged) == 5 * 2
    assert len(rows) == 2 * len(judged), "what is out of bounds is measured anew, once"
    lines = [line for line in said.splitlines() if line.startswith("Out of bounds: ")]
    assert all(f"{name}, {what}:" in line for (name, what), line in zip(judged, lines, strict=True))


def test_what_telemetry_costs_is_measured_for_every_configuration(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    document, _ = run("telemetry.py", file, "--quick", "--seed", "5")
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
    of_all, of_configured = 2 * hits, 3 * hits
    assert of_all + of_configured <= document["spans"]["hit"] < 1.2 * (of_all + of_configured)
