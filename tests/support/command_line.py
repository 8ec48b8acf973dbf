"""Running the real command `glasspoint` as a user does: another process, through pipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from rich.cells import cell_len

import preforked

END_SECONDS = 60.0
COMMAND = "from glasspoint.cli.main import main; main()"
"""The command, as the program of a process."""

# What must not leak in from the environment of whoever runs the tests.
_FOREIGN = re.compile(
    r"(POSTGRES|REDIS)_URL|MIGRATE_FROM|COLUMNS|(NO|FORCE)_COLOR|(OTEL_|GLASSPOINT_|LANGSMITH_|PG).*"
)


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment, cleaned, with some variables set."""
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    return {**kept, "PYTHONUTF8": "1", "COLUMNS": "80", **variables}


def glasspoint(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return preforked.run(
        COMMAND,
        *args,
        env=environment(**variables),
        timeout=END_SECONDS,
    )


@dataclass
class Running:
    """A command that is under way; its output comes line by line."""

    process: subprocess.Popen[str] | preforked.Popen
    seen: str = ""

    def wait_for(self, pattern: str, *, errors: bool = False) -> re.Match[str]:
        """Read on until a line matches, of the output or of standard error."""
        stream = self.process.stderr if errors else self.process.stdout
        assert stream is not None
        for line in stream:
            self.seen += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern!r} never came; the output was:\n{self.seen}")

    def servers(self) -> list[psutil.Process]:
        """Return the processes that the command has started."""
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return children

    def end(self, signal_number: int) -> tuple[int, str]:
        """Send a signal, and return the exit status and what was written to standard error."""
        self.process.send_signal(signal_number)
        output, errors = self.process.communicate(timeout=END_SECONDS)
        self.seen += output
        return self.process.wait(), errors


@contextmanager
def running_glasspoint(*args: str, **variables: str) -> Iterator[Running]:
    """Start the command; at the end it is killed if it still runs."""
    with preforked.Popen(COMMAND, *args, env=environment(**variables)) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


@contextmanager
def running_afresh(*args: str, **variables: str) -> Iterator[Running]:
    """The same, by a Python that starts now: it inherits which signals this process ignores."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "glasspoint.cli.main", *args],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def assert_gone(processes: list[psutil.Process]) -> None:
    """Check that servers have ended (an orphan that nobody has reaped yet has ended as well)."""
    _, alive = psutil.wait_procs(processes, timeout=END_SECONDS)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def assert_fits(output: str, *, columns: int) -> None:
    """Check that output is fit for a pipe: no colours, no line too long, no spaces at line ends."""
    assert "\x1b" not in output
    for line in output.splitlines():
        assert cell_len(line) <= columns, line
        assert line == line.rstrip(), line
