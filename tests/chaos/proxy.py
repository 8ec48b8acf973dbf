"""A line to a server that can be bad: slow, cut, silent or closed, switched while connections are in use."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["MODES", "Mode", "Proxy", "Target"]

Mode = Literal["pass", "delay", "reset", "truncate", "blackhole", "refuse"]
MODES: tuple[Mode, ...] = ("delay", "reset", "truncate", "blackhole", "refuse")

Target = Path | tuple[str, int]
"""The server: a unix socket, or a host and a port."""

_CHUNK = 1 << 16

# Closing with this sends RST instead of FIN: the peer's next call fails, as when a firewall has had enough.
_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Pipe:
    """One client's connection, and ours to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                sock = writer.get_extra_info("socket")
                if sock is not None and sock.family != socket.AF_UNIX:
                    with suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)
                writer.transport.abort()


class Proxy:
    """A loopback port in front of one server, for one worker.

    - `pass`: as if it was not there.
    - `delay`: each piece of data waits, up to `delay_seconds`; order is kept.
    - `reset`: connections are answered with RST, those in use and those that are new.
    - `truncate`: the next piece of each connection, either way, is passed on in half; then RST.
    - `blackhole`: connections are accepted and stay open; what is sent is swallowed.
    - `refuse`: nobody listens; connections in use are reset.

    A connection that has lost data is reset when the mode ends: no stream ever goes on with a hole in it.
    """

    def __init__(self, target: Target, *, delay_seconds: float = 0.2, seed: int = 0) -> None:
        self.mode: Mode = "pass"
        self.port = 0
        self.delay_seconds = delay_seconds
        self._target = target
        self._dice = random.Random(seed)
        self._listener: asyncio.Server | None = None
        self._pipes = set[_Pipe]()

    async def open(self) -> None:
        """Listen; the port is chosen the first time, and stays."""
        self._listener = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close every connection, and listen no more."""
        await self._deafen()
        tasks = [pipe.task for pipe in self._pipes if pipe.task is not None]
        self._reset_all()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def switch(self, mode: Mode) -> None:
        """Behave in another way from now on, to the connections in use as well."""
        before, self.mode = self.mode, mode
        if mode in ("reset", "refuse") or before in ("blackhole", "truncate"):
            self._reset_all()
        if mode == "refuse":
            await self._deafen()
        elif self._listener is None:
            await self.open()

    async def _deafen(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()  # not wait_closed(): since Python 3.12 that waits for the connections too

    def _reset_all(self) -> None:
        for pipe in tuple(self._pipes):
            pipe.reset()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = _Pipe(writer, task=asyncio.current_task())
        self._pipes.add(pipe)
        try:
            await self._serve(pipe, reader)
        except OSError:
            pass  # either side went away, or the server is down: so does the other side
        finally:
            pipe.reset()
            self._pipes.discard(pipe)

    async def _serve(self, pipe: _Pipe, reader: asyncio.StreamReader) -> None:
        if self.mode in ("reset", "refuse"):
            return
        if self.mode == "blackhole":
            while await reader.read(_CHUNK):
                pass
            return
        if isinstance(self._target, Path):
            answers, pipe.server = await asyncio.open_unix_connection(str(self._target))
        else:
            answers, pipe.server = await asyncio.open_connection(*self._target)
        ways = [
            asyncio.create_task(self._pass_on(reader, pipe.server)),
            asyncio.create_task(self._pass_on(answers, pipe.client)),
        ]
        try:
            # If one way ends, so does the other: neither protocol closes half of a connection.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self.mode == "delay":
                await asyncio.sleep(self._dice.uniform(0, self.delay_seconds))
            if self.mode == "blackhole":
                continue
            if self.mode == "truncate":
                writer.write(data[: len(data) // 2])
                with suppress(OSError):
                    await writer.drain()
                # Time for the half to be read: RST may overtake what is still in the peer's buffer.
                await asyncio.sleep(0.005)
                return
            writer.write(data)
            await writer.drain()
