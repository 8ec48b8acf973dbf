"""Connections to Redis: a blocking socket, and the savers' client, whose scripts wait at gates."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hiredis
from redis._parsers import BaseParser
from redis._parsers.helpers import parse_info
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from glasspoint.l1.epoch import COMMAND_STATS

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


_REDIRECTIONS = ("MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")
_parse_error: Callable[[str], Exception] = BaseParser.parse_error


def raise_error(answer: Any) -> Any:
    if isinstance(answer, hiredis.ReplyError):
        text = str(answer)
        if text.startswith(_REDIRECTIONS):
            raise _parse_error(text)
        raise NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
    return answer


class SteppedRedis(Redis):
    """The savers' client: every script waits at a gate; what the epoch asks for is answered at once.

    In a cluster, a look at a node waits at a gate, too.
    """

    world: World
    where: str

    async def evalsha(self, sha: Any, numkeys: int, *keys_and_args: Any) -> Any:
        return await self.world.pass_redis(self.where, sha, numkeys, *keys_and_args)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _Pipeline(self.world, self.where)


parse: Callable[[Any], Any] = parse_info

SLOTS_AND_NODES = [("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")]
"""What a node of a cluster is asked for the topology."""

EPOCH_AND_CALLS = [("CLUSTER", "INFO"), COMMAND_STATS]
"""What each master of a cluster is asked in each look."""

CALLS_AND_NODES = [COMMAND_STATS, ("CLUSTER", "NODES")]
"""What a master of a cluster is asked when keys may have left it."""

_ASKED = [SLOTS_AND_NODES, EPOCH_AND_CALLS, CALLS_AND_NODES]


class _Pipeline:
    def __init__(self, world: World, where: str) -> None:
        self._world, self._where = world, where
        self._commands: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> _Pipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def info(self, section: str) -> None:
        self._commands.append(("INFO", section))

    def script_load(self, text: str) -> None:
        self._commands.append(("SCRIPT", "LOAD", text))

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self) -> list[Any]:
        if self._commands in _ASKED:
            answer: list[Any] = await self._world.pass_node(self._where, self._commands)
            return answer
        answers = self._world.entries.wires[self._where].send(*self._commands)
        return [
            self._result(command, raise_error(answer))
            for command, answer in zip(self._commands, answers, strict=True)
        ]

    def _result(self, command: tuple[Any, ...], answer: Any) -> Any:
        if command[0] == "INFO":
            return parse(answer)
        return self._world.told(self._where, answer) if command == ("CLUSTER", "INFO") else answer
