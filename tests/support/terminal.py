"""Running the real command `glasspoint` in a terminal of its own, where it draws in place."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

import preforked
from command_line import COMMAND, END_SECONDS, environment

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A command that is under way in a terminal."""

    def __init__(self, process: preforked.Popen, descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._raw = b""

    @property
    def written(self) -> str:
        """What was written after the last match, without what moves the cursor and makes colours."""
        return _ESCAPES.sub("", self._raw.decode("utf-8", "ignore"))

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read on until something matches that was written after the last match."""
        deadline = monotonic() + END_SECONDS
        while not (found := re.search(pattern, self.written)):
            assert monotonic() < deadline, f"{pattern!r} never came; the last was:\n{self.written[-3000:]}"
            assert self._read(), f"{pattern!r} never came, and it has ended:\n{self.written[-3000:]}"
        self._raw = self.written[found.end() :].encode()
        return found

    def end(self, signal_number: int) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(signal_number)
        while self._read():
            pass
        return self.process.wait(END_SECONDS)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], END_SECONDS)
        assert ready, f"nothing comes any more; the last was:\n{self.written[-3000:]}"
        with suppress(OSError):  # the command has ended
            found = os.read(self._descriptor, 65536)
            self._raw += found
            return bool(found)
        return False


@contextmanager
def glasspoint_in_a_terminal(
    *args: str, columns: int = 80, rows: int = 40, **variables: str
) -> Iterator[Terminal]:
    """Start the command; at the end it is killed if it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    variables = {"TERM": "xterm", "COLUMNS": str(columns), **variables}
    try:
        with preforked.Popen(COMMAND, *args, env=environment(**variables), terminal=theirs) as process:
            os.close(theirs)
            try:
                yield Terminal(process, ours)
            finally:
                process.kill()
    finally:
        os.close(ours)
