"""Connections to Redis: a blocking socket, and the savers' client, whose scripts wait at gates."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hiredis
from redis._parsers.helpers import parse_info
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

if TYPE_CHECKING:
    from model.world import World


class Wire:
    """A blocking connection to Redis: several commands, one round trip."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def send(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Return the answers; an error is one, too."""
        self._socket.sendall(b"".join(hiredis.pack_command(command) for command in commands))
        answers: list[Any] = []
        while len(answers) < len(commands):
            answer = self._reader.gets()
            if answer is False:
                self._reader.feed(self._socket.recv(65536))
            else:
                answers.append(answer)
        return answers

    def close(self) -> None:
        self._socket.close()


def raise_error(answer: Any) -> Any:
    if isinstance(answer, hiredis.ReplyError):
        text = str(answer)
        raise NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
    return answer


class SteppedRedis(Redis):
    """The savers' client: every script waits at a gate; what the epoch asks for is answered at once."""

    world: World
    where: str

    async def evalsha(self, sha: Any, numkeys: int, *keys_and_args: Any) -> Any:
        return await self.world.pass_redis(self.where, sha, numkeys, *keys_and_args)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _Pipeline(self.world.entries.wires[self.where])


_parse: Callable[[Any], Any] = parse_info


class _Pipeline:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._commands: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> _Pipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def info(self, section: str) -> None:
        self._commands.append(("INFO", section))

    def script_load(self, text: str) -> None:
        self._commands.append(("SCRIPT", "LOAD", text))

    async def execute(self) -> list[Any]:
        answers = [raise_error(answer) for answer in self._wire.send(*self._commands)]
        return [
            _parse(answer) if command[0] == "INFO" else answer
            for command, answer in zip(self._commands, answers, strict=True)
        ]
