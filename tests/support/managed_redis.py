"""A managed service of Redis: a real server, and a proxy that refuses commands and hides ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from glasspoint.embedded import EmbeddedRedis

__all__ = ["NOT_PERMITTED", "UNKNOWN", "ManagedRedis"]

UNKNOWN = "ERR unknown command '{name}', with args beginning with: "
NOT_PERMITTED = "NOPERM this user has no permissions to run the '{name}' command or its subcommand"

_IN_A_SCRIPT = "ERR Error running script (call to f_{sha}): @user_script:1: {refusal}"
_NOT_IN_SCRIPTS = "This Redis command is not allowed from script"


class ManagedRedis:
    """A loopback port in front of a server, which answers one command after the other.

    Attributes:
        refused: Commands, in capitals, that the service refuses: a name, or a name and a subcommand.
        refusal: The service's error text; `{name}` is the command.
        hidden: Fields that its INFO does not tell.
        zeros: Fields of its INFO that hold zeros.
        scripts_may_ask: Whether a script may run INFO. If not, each script fails, as on a service whose
            engine does not let it, since all scripts of the cache begin with it.
        answers_info: Whether the service answers INFO itself, whatever the rights of the client's user. Then
            a user without the right to INFO may run it, but not in a script.
        seen: The commands that were received, in capitals.
    """

    def __init__(self, server: EmbeddedRedis) -> None:
        self.refused: set[str] = set()
        self.refusal = UNKNOWN
        self.hidden: set[str] = set()
        self.zeros: set[str] = set()
        self.scripts_may_ask = True
        self.answers_info = False
        self.seen: set[str] = set()
        self._server = server
        self._port = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ManagedRedis]:
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            self.cut()
            await listener.wait_closed()

    def switch(self, server: EmbeddedRedis) -> None:
        """Lead to another server from now on, as the service does after a failover."""
        self._server = server
        self.cut()

    def cut(self) -> None:
        for writer in self._open:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            replies, there = await asyncio.open_connection("127.0.0.1", self._server.port)
            while True:
                raw, words = await _command(reader)
                name = " ".join(word.decode(errors="replace").upper() for word in words[:2])
                first = name.partition(" ")[0]
                self.seen.add(first)
                if error := self._refuses(first, name, words):
                    reply = f"-{error}\r\n".encode()
                elif first == "INFO" and self.answers_info:
                    reply = self._without_hidden(await self._ask(raw))
                else:
                    there.write(raw)
                    reply = await _reply(replies)
                    if first == "INFO":
                        reply = self._without_hidden(reply)
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._open.discard(writer)
            for end in (writer, there):
                if end is not None:
                    end.close()
                    with suppress(OSError):
                        await end.wait_closed()

    async def _ask(self, raw: bytes) -> bytes:
        replies, there = await asyncio.open_connection("127.0.0.1", self._server.port)
        there.write(raw)
        reply = await _reply(replies)
        there.close()
        await there.wait_closed()
        return reply

    def _refuses(self, first: str, name: str, words: list[bytes]) -> str:
        if first in self.refused or name in self.refused:
            return self.refusal.format(name=first.lower())
        if first == "EVALSHA" and not self.scripts_may_ask:
            return _IN_A_SCRIPT.format(sha=words[1].decode(), refusal=_NOT_IN_SCRIPTS)
        return ""

    def _without_hidden(self, reply: bytes) -> bytes:
        head, _, body = reply.partition(b"\r\n")
        if head[:1] not in b"$=":
            return reply
        lines = []
        for line in body.removesuffix(b"\r\n").split(b"\r\n"):
            field, is_field, value = line.decode().partition(":")
            if is_field and field in self.hidden:
                continue
            lines.append(f"{field}:{'0' * len(value)}".encode() if field in self.zeros else line)
        text = b"\r\n".join(lines)
        return head[:1] + str(len(text)).encode() + b"\r\n" + text + b"\r\n"


async def _command(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """Read a command, as clients send it: an array of bulk strings."""
    raw = head = await reader.readuntil(b"\r\n")
    words = []
    for _ in range(int(head[1:])):
        size = await reader.readuntil(b"\r\n")
        word = await reader.readexactly(int(size[1:]) + 2)
        raw += size + word
        words.append(word[:-2])
    return raw, words


async def _reply(reader: asyncio.StreamReader) -> bytes:
    """Read one reply, in either version of the protocol."""
    head = await reader.readuntil(b"\r\n")
    kind, count = head[:1], head[1:-2]
    if kind in b"$=!":
        return head if count == b"-1" else head + await reader.readexactly(int(count) + 2)
    parts = {b"*": 1, b"~": 1, b">": 1, b"%": 2}.get(kind, 0) * max(int(count), 0) if kind in b"*~>%" else 0
    return head + b"".join([await _reply(reader) for _ in range(parts)])
