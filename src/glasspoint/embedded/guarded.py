"""Runs processes that cannot outlive this one, in a directory that is removed with them."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from glasspoint.errors import EmbeddedServerUnavailable

__all__ = ["GuardedDirectory", "OrphanSignal"]

_CLOSE_TIMEOUT_SECONDS: Final = 10.0

OrphanSignal = Literal["QUIT", "KILL"]


class GuardedDirectory:
    """A private directory, and a guardian that ends the process in it and removes the directory.

    The guardian is a short shell script that reads from a pipe, whose other end this process holds. However
    this process ends, the kernel closes that end, and the guardian cleans up, without signal handlers,
    `atexit` or threads. (PR_SET_PDEATHSIG exists only on Linux, and acts when the *thread* that started the
    server ends.) One exception: a child made by `os.fork()` without `exec` holds the pipe as well. If this
    process dies suddenly, the guardian also waits for that child.

    A process reports itself to the guardian before it becomes the server. So the guardian knows it at every
    moment. Guardian and server have sessions of their own: Ctrl-C in a terminal reaches only this process,
    which then stops the servers in order.

    Args:
        prefix: The beginning of the directory's name.

    Raises:
        EmbeddedServerUnavailable: There is no suitable temporary directory, or no user to run as.
    """

    # The signal goes to the process alone, and then its whole group has time to end: a child of initdb that
    # gets the signal itself would leave shared memory behind.
    _GUARDIAN = """
        trap '' HUP INT TERM
        signal= pid=
        while read -r word number; do
            [ "$word" = end ] && break
            signal=$word pid=$number
        done
        if [ -n "$pid" ]; then
            kill -s "$signal" "$pid"
            polls=0
            while kill -s 0 -- "-$pid" && [ "$polls" -lt 100 ]; do sleep 0.05; polls=$((polls + 1)); done
            kill -s KILL -- "-$pid"
        fi
        rm -rf -- "$1"
    """
    # The pipe's write end is the standard input, because a shell has no portable name for other descriptors.
    _REPORT_AND_BECOME = 'echo "$0 $$" >&0; exec "$@" </dev/null'

    def __init__(self, prefix: str) -> None:
        self._user = _server_user()
        self.path = _make_private_directory(prefix, self._user)
        self._log = self.path / "log"
        read_end, self._pipe = os.pipe()
        try:
            self._guardian = subprocess.Popen(
                ["/bin/sh", "-c", self._GUARDIAN, "guardian", self.path],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(self._pipe)
            shutil.rmtree(self.path)
            raise
        finally:
            os.close(read_end)

    def spawn(self, argv: Sequence[str | Path], *, orphan_signal: OrphanSignal) -> subprocess.Popen[bytes]:
        """Start a process in the directory, and append its output to the log. Only one may run at a time.

        It gets a clean environment, so that variables of the user (PGPORT, LD_PRELOAD, a locale) do not
        change what it does.
        """
        with self._log.open("ab") as log:
            return subprocess.Popen(
                ["/bin/sh", "-c", self._REPORT_AND_BECOME, orphan_signal, *argv],
                stdin=self._pipe,
                stdout=log,
                stderr=log,
                cwd=self.path,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
            )

    def forget_process(self) -> None:
        """Tell the guardian that the process has ended, because another process may get its id now."""
        self._tell("none")

    def make_usable(self, *sources: Path, root: Path) -> Path:
        """Return `root`; or a copy of these files and folders of it, if the server's user may not read them.

        Only root needs a copy: its server runs as another user, which may not enter `/root`, for example.
        """
        if self._user is None or all(_everyone_may_read(source) for source in sources):
            return root
        copy = self.path / "programs"
        for source in sources:
            target = copy / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
        return copy

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines that the processes wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Let the guardian clean up now, and wait for it."""
        self._tell("end")
        os.close(self._pipe)
        with suppress(subprocess.TimeoutExpired):
            self._guardian.wait(_CLOSE_TIMEOUT_SECONDS)
        shutil.rmtree(self.path, ignore_errors=True)  # in case the guardian was killed or stopped

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # the guardian was killed; close() then removes the directory
            os.write(self._pipe, f"{line}\n".encode())


def _server_user() -> pwd.struct_passwd | None:
    """Return the user for the servers if this process is root, else `None`. PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServerUnavailable(
            "The embedded servers do not run as root, and this system has no user 'nobody' to run them as. "
            "Run this as a normal user, or set POSTGRES_URL and REDIS_URL to servers of your own."
        ) from None


def _make_private_directory(prefix: str, user: pwd.struct_passwd | None) -> Path:
    """Make a directory for this user alone. A unix socket in it has a path below 104 bytes (macOS' limit)."""
    for parent in dict.fromkeys((Path(tempfile.gettempdir()).resolve(), Path("/tmp"))):
        short = len(os.fsencode(parent / prefix)) + len("xxxxxxxx/.s.PGSQL.5432.lock") < 104
        if short and (user is None or _everyone_may_enter(parent)):
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if user is not None:
                os.chown(path, user.pw_uid, user.pw_gid)
            return path
    raise EmbeddedServerUnavailable(
        "There is no temporary directory for the embedded servers: its path must be short, and as root all "
        "users must be able to enter it. Set TMPDIR to such a directory."
    )


def _everyone_may_enter(directory: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (directory, *directory.parents))


def _everyone_may_read(path: Path) -> bool:
    resolved = path.resolve()
    return _everyone_may_enter(resolved.parent) and all(
        file.stat().st_mode & stat.S_IROTH for file in (resolved, *resolved.rglob("*"))
    )
