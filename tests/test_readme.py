"""What the README says, runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)

SAYS = (
    "You have said 3 things so far.",
    "None",
    "You have said 1 things so far.",
    "cached None",
    "[]",
    "[]",
    "'glasspoint_l1_reads_total",
)


def test_every_block_has_its_expectation() -> None:
    assert len(BLOCKS) == len(SAYS)


@pytest.mark.parametrize(
    ("block", "says"),
    list(zip(BLOCKS, SAYS, strict=False)),
    ids=("use", "factory", "sync", "chain", "redis", "threads", "watch"),
)
def test_a_code_block_of_the_readme_runs(block: str, says: str, database: str, redis_url: str) -> None:
    # The second block of a newcomer is run on a database that the first has set up, or sets it up itself.
    # There is a key, because the fallback chain warns of a database without a password, as this one.
    key = {"CHECKPOINT_L1_SIGNING_KEY": "sixteen bytes..!"}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", block],
        env={**os.environ, "POSTGRES_URL": database, "REDIS_URL": redis_url, **key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert done.stderr == ""


def test_the_readme_quotes_the_figures_of_the_run_that_the_docs_show() -> None:
    page = (README.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    quoted = {
        "64 reads of cached conversations at once": "hit, 10 messages, 64 callers, calls/s",
        'turns of 16 conversations at once, `durability="async"`': "turn, 16 conversations, async",
        'turns of 16 conversations, `durability="sync"`, 5 ms away': "turn, 16 conversations, sync, 5 ms",
        'turns of one conversation, `durability="sync"`': "turn, 1 conversation, sync",
        'turns of one conversation, `durability="exit"`': "turn, 1 conversation, exit",
    }
    for says, target in quoted.items():
        measured = re.search(rf"^\| {re.escape(target)} \| pool \| [^|]*\| ([\d.]+) ", page, re.MULTILINE)
        assert measured, target
        assert f"| {says} | {measured[1]} |" in README.read_text(encoding="utf-8")
