"""Runs a script of benchmarks/ in a process that `preforked` has started, without what only figures need."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import traceback
from pathlib import Path
from runpy import run_path
from typing import Any

__all__ = ["run"]


def run(path: str) -> None:
    """Run it.

    Before each slice, `compare.py` and others collect garbage, which takes longer than the few calls of these
    runs. Here they do not, and what was imported is not looked through at other times. Processes of their own
    are forked off this one, which has imported everything.
    """
    sys.path[0], sys.argv[0] = str(Path(path).parent), path
    from comparison import measuring  # of benchmarks/

    measuring._collect = gc.unfreeze = lambda: None
    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda _=None: context  # type: ignore[assignment]
    subprocess.run = _run_a_part  # type: ignore[assignment]
    run_path(path, run_name="__main__")


_run = subprocess.run


def _run_a_part(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` does. If it is to run this script, too, that has to succeed."""
    python, script, *arguments = argv
    if (python, script) != (sys.executable, sys.argv[0]):
        return _run(argv, **options)
    reader, writer = os.pipe()
    sys.stdout.flush()  # else the part says it, too
    if not (pid := os.fork()):
        os.dup2(writer, 1)
        sys.argv[1:] = arguments
        try:
            run_path(script, run_name="__main__")
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return subprocess.CompletedProcess(argv, 0, said)
