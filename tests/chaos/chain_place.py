"""Where the workers of a chain run live: one after the other, killed or closed, and the next one started."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import preforked
from chaos.chain_checker import Standing
from chaos.chain_sabotage import VARIABLE
from chaos.chain_servers import ChainServers
from chaos.place import RUN

__all__ = ["ChainPlace"]

_CLOSE_SECONDS = 40.0
_ANSWER_SECONDS = 45.0

_SETTINGS = {
    "CHECKPOINT_PROBE_INTERVAL": "0.2",
    "CHECKPOINT_L1_SIGNING_KEY": "a key that Redis does not know",
    "CHECKPOINT_WRITE_DEADLINE": "2",
    "CHECKPOINT_L1_TIMEOUT": "0.25",
    "CHECKPOINT_REDIS_TIMEOUT": "1",
    "CHECKPOINT_POOL_TIMEOUT": "1",
    "CHECKPOINT_CONNECT_TIMEOUT": "1",
    "CHECKPOINT_POOL_MAX_SIZE": "6",
    "OTEL_SDK_DISABLED": "true",
}
"""Short, so that a minute sees many outages from their beginning to their end."""


class ChainPlace:
    """One worker after the other.

    Attributes:
        standings: The tiers that were worked in here, and from when on.
        unexpected: What must not have happened.
    """

    def __init__(
        self, number: int, servers: ChainServers, directory: Path, *, seed: int, sabotage: str, fallbacks: str
    ) -> None:
        self.number = number
        self.name = f"worker{number}"
        self.ready = asyncio.Event()
        self.standings: list[Standing] = [Standing(number, 0.0, "", False)]
        self.unexpected: list[str] = []
        self._servers = servers
        self._directory = directory
        self._arguments = ("--seed", str(seed))
        self._environment = {
            **_SETTINGS,
            "POSTGRES_URL": servers.url,
            "REDIS_URL": servers.redis.url,
            "CHECKPOINT_FALLBACKS": fallbacks,
            VARIABLE: sabotage,
        }
        self._incarnation = 0
        self._may_end: set[int] = {0}
        self._process: preforked.Process | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._keys = count()
        self._ending = False
        self._leaving = False

    @property
    def tier(self) -> str:
        """The tier that is worked in here, as far as is known; empty: none."""
        return self.standings[-1].tier

    @property
    def is_whole(self) -> bool:
        """Whether all that is known here is in PostgreSQL."""
        return self.standings[-1].whole

    async def live(self) -> None:
        """Have a worker here, and another one whenever it has ended; until cancelled."""
        while not self._ending:
            self._incarnation += 1
            self._may_end, self._leaving = {0}, False
            process = self._process = await self._start()
            async for line in process.stdout:
                self._heard(json.loads(line))
            status = await process.wait()
            self._left()
            if status not in self._may_end:
                self.unexpected.append(f"{self.name}-{self._incarnation:03} ended with status {status}")
                await asyncio.sleep(0.5)
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_result({"ok": False})
            self._answers.clear()

    async def turn(self, thread: str, word: str, *, resumes: bool) -> dict[str, Any]:
        """Have the process that is here make one attempt; its answer, when it is certainly over."""
        return await self._ask(_ANSWER_SECONDS, what="turn", thread=thread, word=word, resumes=resumes)

    async def close(self) -> bool:
        """Have the process that is here close its saver and end; whether it did."""
        if not self.ready.is_set():
            return False
        self.ready.clear()  # nobody asks it for more
        process = self._process
        self._left()
        answer = await self._ask(_CLOSE_SECONDS, what="close")
        if "tier" in answer:  # it must not be closed now
            self._leaving = False
            self.standings.append(Standing(self.number, monotonic(), answer["tier"], whole=False))
            self.ready.set()
            return False
        assert process is not None
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await process.wait()
        except TimeoutError:
            self.unexpected.append(f"{self.name} did not end: killed")
            self.kill()
        return True

    def kill(self) -> bool:
        """SIGKILL the process that is here; whether there was one."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        self._may_end = {0, -signal.SIGKILL}
        self._left()
        with suppress(ProcessLookupError):
            process.kill()
        return True

    async def end(self) -> None:
        """Close the process that is here, and start no more. Again does nothing."""
        self._ending = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        if not await self.close():
            self.kill()
            await process.wait()

    async def _ask(self, seconds: float, **wanted: Any) -> dict[str, Any]:
        assert self._process is not None
        key = next(self._keys)
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        try:
            self._process.stdin.write(f"{json.dumps({'key': key, **wanted})}\n".encode())
            async with asyncio.timeout(seconds):
                said: dict[str, Any] = await answer
                return said
        except TimeoutError:
            self.unexpected.append(f"{self.name} hung ({wanted}): killed")
            self.kill()
            return {"ok": False}

    def _heard(self, message: dict[str, Any]) -> None:
        if "key" in message:
            answer = self._answers.pop(message["key"], None)
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif self._leaving:
            pass  # it has said that before it was told to end
        elif "tier" in message:
            self.standings.append(
                Standing(self.number, message["at"], message["tier"], whole=message["whole"])
            )
        else:
            self.ready.set()

    def _left(self) -> None:
        self._leaving = True
        self.ready.clear()
        if self.standings[-1].tier:
            self.standings.append(Standing(self.number, monotonic(), "", whole=False))

    async def _start(self) -> preforked.Process:
        history = self._directory / f"{self.name}-{self._incarnation:03}.jsonl"
        with (self._directory / f"{self.name}.log").open("ab") as log:
            return await preforked.start(
                RUN.format(module="chaos.chain_worker"),
                *(*self._arguments, "--history", str(history)),
                env={**os.environ, **self._environment},
                stderr=log,
            )
