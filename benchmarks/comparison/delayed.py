"""A line to PostgreSQL that takes a while: `python delayed.py MILLISECONDS ADDRESS` prints its port.

Each piece of data is passed on when half of the delay is over, in each direction: so a round trip takes the
whole delay longer, but nothing waits for what was sent before it, and the rate is not limited. It is a
process of its own, so that its work is not on the event loop that is measured. It waits in `select`, whose
timeout is not rounded up to milliseconds as epoll's is, and takes off by how much timers are late here.
"""

from __future__ import annotations

import asyncio
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import cast

from psycopg.conninfo import conninfo_to_dict


@contextmanager
def delayed(conninfo: str, milliseconds: float) -> Iterator[str]:
    """Run a line to this server for the length of the block, and yield the port of its near end."""
    target = conninfo_to_dict(conninfo)
    host, port = str(target.get("host", "localhost")), str(target.get("port", 5432))
    address = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"{host}:{port}"
    argv = [sys.executable, __file__, str(milliseconds), address]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class _End(asyncio.Protocol):
    """One end of a connection: what comes in here, goes out at the other end later."""

    def __init__(self, seconds: float) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[tuple[float, bytes]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        due = self._loop.time() + self._seconds
        self._pieces.append((due, data))
        if len(self._pieces) == 1:
            self._loop.call_at(due, self._pass_on)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def _pass_on(self) -> None:
        now = self._loop.time()
        while self._pieces and self._pieces[0][0] <= now:
            _, data = self._pieces.popleft()
            if self.other is not None and self.other.transport is not None:
                self.other.transport.write(data)
        if self._pieces:
            self._loop.call_at(self._pieces[0][0], self._pass_on)


class _Near(_End):
    """The end that a client connects to; what it sends before there is another end, waits."""

    def __init__(self, seconds: float, address: str) -> None:
        super().__init__(seconds)
        self._address = address
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        far = _End(self._seconds)
        far.other = self
        host, _, port = self._address.rpartition(":")
        try:
            if self._address.startswith("/"):
                await self._loop.create_unix_connection(lambda: far, self._address)
            else:
                await self._loop.create_connection(lambda: far, host, int(port))
        except OSError:
            self.transport.close()
            return
        self.other = far
        self.transport.resume_reading()


async def _lateness(seconds: float) -> float:
    """How late timers of this length are, here."""
    loop, late = asyncio.get_running_loop(), []
    for _ in range(50):
        started = loop.time()
        await asyncio.sleep(seconds)
        late.append(loop.time() - started - seconds)
    return median(late)


async def _serve(milliseconds: float, address: str) -> None:
    loop = asyncio.get_running_loop()
    half = milliseconds / 2000
    seconds = max(0.0, half - await _lateness(half))
    server = await loop.create_server(lambda: _Near(seconds, address), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)  # whoever asked for it has ended, however it did
    await ended.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve(float(sys.argv[1]), sys.argv[2]))
