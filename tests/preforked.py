"""Python processes that have their imports behind them: forked off one that has made them.

A Python that imports Glasspoint works for a second before it does anything else, and the tests start
hundreds. Each of these is a process of its own all the same, with its own environment, files and folder. It
ends as any does: threads are joined, `atexit` runs, the interpreter is taken down. What is missing is its
beginning. A test of what happens while Python starts or Glasspoint is imported uses `subprocess`; so does
`run`, for variables that are read by then.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import pkgutil
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

__all__ = ["run"]

# What is read while Python starts, or a module is imported.
_READ_EARLY = re.compile(
    r"PYTHON(?!PATH$|UTF8$|DONTWRITEBYTECODE$).*|OTEL_.*|prometheus_multiproc_dir", re.IGNORECASE
)

_TESTS = Path(__file__).parent
_LARGEST = 1 << 20
_starting = Lock()


def run(
    code: str, *args: str, env: Mapping[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    Args:
        code: What it does, as with `python -c`.
        args: Its arguments.
        env: All of its environment.
        timeout: Seconds after which it is killed.
        cwd: The folder in which it works; this process's by default.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    if any(_READ_EARLY.fullmatch(name) and os.environ.get(name) != value for name, value in env.items()):
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    order = json.dumps({"code": code, "args": args, "env": dict(env), "cwd": str(cwd or Path.cwd())}).encode()
    ours, theirs = socket.socketpair()
    with (
        ours,
        open(os.devnull) as nothing,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        with theirs:
            files = [nothing.fileno(), output.fileno(), errors.fileno(), theirs.fileno()]
            with _starting:
                server = _server()
            socket.send_fds(server, [order], files)
        with ours.makefile() as said:
            pid = int(said.readline())
            if not select.select([ours], [], [], timeout)[0]:
                os.kill(pid, signal.SIGKILL)
                said.readline()
                raise subprocess.TimeoutExpired(code, timeout)
            status = int(said.readline())
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(
            [code, *args], status, output.read().decode(), errors.read().decode()
        )


@functools.cache
def _server() -> socket.socket:
    """Start the process that the others are forked off; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ours, theirs:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(theirs.fileno())],
        env={**os.environ, "PYTHONUTF8": "1"},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


# ------------------------------------------------------------------ in the process that others are forked off


def _serve(orders: socket.socket) -> dict[str, Any] | None:
    """Fork for each order. Return it in the process that has to obey, and None when there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C meets everything in the terminal
    waiting = set()
    while True:
        message, files, *_ = socket.recv_fds(orders, _LARGEST, 4)
        waiting = {pid for pid in waiting if not os.waitpid(pid, os.WNOHANG)[0]}
        if not message:
            return None
        if pid := os.fork():
            waiting.add(pid)
        else:
            orders.close()
            if not (pid := os.fork()):
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for number, file in enumerate(files[:3]):
                    os.dup2(file, number)
                for file in files:
                    os.close(file)
                order: dict[str, Any] = json.loads(message)
                return order
            with socket.socket(fileno=files[3]) as asking:
                asking.sendall(f"{pid}\n".encode())
                for file in files[:3]:
                    os.close(file)
                asking.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
            os._exit(0)
        for file in files:
            os.close(file)


def _import_all() -> None:
    import glasspoint

    for module in pkgutil.walk_packages(glasspoint.__path__, f"{glasspoint.__name__}."):
        import_module(module.name)
    for name in "langgraph.graph", "langgraph.prebuilt", "steps":
        import_module(name)
    gc.collect()
    gc.freeze()


def _obey(order: dict[str, Any]) -> None:
    """Do it in a `__main__` of its own."""
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = ["-c", *order["args"]]
    sys.path[0] = ""
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(compile(order["code"], "<string>", "exec"), vars(main))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _orders:
        sys.path.insert(0, str(_TESTS))
        _import_all()
        if (_order := _serve(_orders)) is not None:
            _obey(_order)
