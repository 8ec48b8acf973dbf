"""What the wheel declares is what the code needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from command_line import environment, glasspoint

ROOT = Path(__file__).parents[1]
RULES = ("recording", "alerts")


@pytest.mark.parametrize("columns", ["80", "60"])
def test_the_list_of_commands_is_whole(columns: str) -> None:
    listed = glasspoint("--help", COLUMNS=columns)
    assert listed.returncode == 0, listed.stderr
    assert all(len(line) <= int(columns) for line in listed.stdout.splitlines())
    commands = listed.stdout.partition("Commands:")[2]
    names = re.findall(r"^  ([a-z]+) ", commands, re.M)
    assert {"demo", "traffic", "setup", "check", "prune", "trace"} <= set(names)
    for name in names:
        purpose = glasspoint(name, "--help", COLUMNS=columns).stdout.split("\n\n")[1]
        assert purpose.split()[-1].endswith(".")
        assert " ".join(purpose.split()) in " ".join(commands.split())


def test_the_package_can_be_run_as_a_module() -> None:
    for module in ("glasspoint", "glasspoint.cli"):
        ended = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("Usage: glasspoint [OPTIONS] COMMAND")


def test_boards_and_rules_are_written_and_what_was_changed_there_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "monitoring"
    written = glasspoint("dashboards", "--output", str(output), COLUMNS="200")
    assert written.returncode == 0, written.stderr
    found = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    sources = {f"grafana/{path.name}": path for path in (ROOT / "dashboards" / "grafana").glob("*.json")}
    sources |= {f"prometheus/{name}.yml": ROOT / f"dashboards/prometheus/{name}.yml" for name in RULES}
    assert {name: path.read_bytes() for name, path in found.items()} == {
        name: path.read_bytes() for name, path in sources.items()
    }
    assert sorted(written.stdout.splitlines()) == sorted(map(str, found.values()))
    assert glasspoint("dashboards", "--output", str(output)).returncode == 0  # nothing differs

    changed = output / "prometheus" / "alerts.yml"
    changed.write_text("groups: []")
    found["grafana/overview.json"].unlink()
    refused = glasspoint("dashboards", "--output", str(output), COLUMNS="200")
    assert refused.returncode == 1
    assert str(changed) in refused.stderr
    assert not found["grafana/overview.json"].exists()
    assert changed.read_text() == "groups: []"
    assert glasspoint("dashboards", "--output", str(output), "--force").returncode == 0
    assert changed.read_bytes() == sources["prometheus/alerts.yml"].read_bytes()

    (tmp_path / "file").touch()
    impossible = glasspoint("dashboards", "--output", str(tmp_path / "file"), COLUMNS="200")
    assert impossible.returncode == 1
    assert "cannot be written" in impossible.stderr
    assert "Traceback" not in impossible.stderr


def test_the_wheel_holds_the_boards_and_the_rules() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert all(
        (ROOT / source).exists() and target == f"glasspoint/{source}" for source, target in included.items()
    )
    assert set(included) == {"dashboards/grafana", *(f"dashboards/prometheus/{name}.yml" for name in RULES)}
