"""Processes that cannot outlive this one, in a directory that goes with them."""

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
    """A private directory, and a guardian which ends the process started in it and removes the directory.

    The guardian is a shell of a few lines that reads from a pipe whose other end is here. However this
    process ends, the kernel closes that end, and the guardian cleans up; it needs no signal handler, no
    `atexit` and no thread. (PR_SET_PDEATHSIG would fire when the *thread* that started the server ends, and
    only on Linux.) One exception: a child made by `os.fork()` without `exec` holds the pipe as well, so that
    after a sudden death of this process the guardian waits for that child too.

    A process reports itself to the guardian before it becomes the server, so there is no moment at which it
    runs and nobody knows of it. Guardian and server lead sessions of their own: Ctrl-C in a terminal reaches
    this process only, which then stops the servers in order.

    Args:
        prefix: what the directory's name begins with.

    Raises:
        EmbeddedServerUnavailable: there is no suitable temporary directory, or no user to run as.
    """

    # The signal goes to the process alone, and then its whole group has time to end: a child of initdb that
    # is hit itself leaves shared memory behind.
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
    # The write end of the pipe is its standard input, for want of a portable way to name another descriptor.
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
        """Start a process in the directory, its output appended to the log; one at a time.

        It gets an environment of its own: nothing of the user's (PGPORT, LD_PRELOAD, a locale) changes what
        it does.
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
        """Tell the guardian that the process has ended: its id may be given to another one now."""
        self._tell("none")

    def make_usable(self, *sources: Path, root: Path) -> Path:
        """Return `root`, or a copy of these files and folders of it if the server's user may not read them.

        Only root needs this: its server runs as another user, who may not enter `/root`, for example.
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
        """The last lines of what the processes wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Let the guardian do its work now, and wait for it."""
        self._tell("end")
        os.close(self._pipe)
        with suppress(subprocess.TimeoutExpired):
            self._guardian.wait(_CLOSE_TIMEOUT_SECONDS)
        shutil.rmtree(self.path, ignore_errors=True)  # in case somebody killed or stopped the guardian

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # somebody killed the guardian; close() removes the directory then
            os.write(self._pipe, f"{line}\n".encode())


def _server_user() -> pwd.struct_passwd | None:
    """Whom the servers run as; None: as this process. PostgreSQL refuses to be root, Redis need not be."""
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
    """A new directory for this user alone; a unix socket in it has a path of less than 104 bytes (macOS)."""
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
