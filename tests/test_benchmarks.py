"""The benchmarks run: what nobody runs, rots. Their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from command_line import END_SECONDS, assert_fits, environment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_what_telemetry_costs_is_measured_for_every_configuration(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "telemetry.py"), "--quick", "--seed", "5", "--json", str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_fits(done.stdout, columns=80)
    document = json.loads(file.read_text())
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
