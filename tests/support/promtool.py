"""Prometheus' own tool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool (Debian's package prometheus) is not installed"
)


def promtool(*arguments: str | Path, folder: Path | None = None) -> str:
    """Run it, in a folder. Returns what it says; fails if it finds anything."""
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "GOGC": "400"},  # it lives for seconds: a third of them was garbage collection
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def assert_understood(queries: Iterable[str], folder: Path) -> None:
    """Check that Prometheus understands every query.

    Args:
        folder: Where they are written for it.
    """
    rules = [{"record": "asked", "expr": text} for text in queries]
    file = folder / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}), "utf-8")
    assert f"{len(rules)} rules found" in promtool("check", "rules", "--lint=none", file)
