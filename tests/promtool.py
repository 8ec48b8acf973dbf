"""Prometheus' own reader of queries."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool (Debian's package prometheus) is not installed"
)


def assert_understood(queries: Iterable[str], folder: Path) -> None:
    """Check that Prometheus understands every query."""
    rules = [{"record": "asked", "expr": text} for text in queries]
    file = folder / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}), "utf-8")
    checked = subprocess.run(
        [str(PROMTOOL), "check", "rules", "--lint=none", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout
