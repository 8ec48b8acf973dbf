"""Where a process of the run lives: its own lines to the servers, and the process that is there just now."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import preforked
from chaos.proxy import Proxy
from chaos.sabotage import VARIABLE
from chaos.servers import FOREIGN_DATABASE, Servers

__all__ = ["RUN", "ForeignPlace", "Place"]

_END_SECONDS = 8.0
_ANSWER_SECONDS = 25.0

RUN = """
import os, runpy, sys
sys.argv += ["--parent", str(os.getppid())]
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""
"""What a process of the run does."""


class Place:
    """One worker after the other: when one has died, the next one is started."""

    _module = "chaos.worker"

    def __init__(
        self,
        number: int,
        servers: Servers,
        directory: Path,
        *,
        seed: int,
        sabotage: str,
        pauses: float = 1.0,
    ) -> None:
        """Args:
        number: Counted from 0.
        directory: Where its workers write their histories.
        seed: For what they draw.
        sabotage: What is broken in them, if anything.
        pauses: How many times as long as usual they pause between their reads.
        """
        self.number = number
        self.name = f"worker{number}"
        self.lines = {
            "postgres": [Proxy(servers.postgres_socket, seed=seed)],
            "redis": [Proxy(("127.0.0.1", node.port), seed=seed) for node in servers.redis.nodes],
            "sentinels": [Proxy(("127.0.0.1", each.port), seed=seed) for each in servers.redis.sentinels],
        }
        self.ready = asyncio.Event()
        self.died_in_a_task = 0
        self.unexpected: list[str] = []
        self._servers = servers
        self._directory = directory
        self._seed = seed
        self._sabotage = sabotage
        self._pauses = pauses
        self._incarnation = 0
        self._killed = False
        self._process: preforked.Process | None = None
        self._answers: dict[int, asyncio.Future[bool]] = {}
        self._keys = count()

    async def open(self) -> None:
        """Open the lines."""
        for line in self._all_lines():
            await line.open()

    async def live(self) -> None:
        """Have a worker here, and another one whenever it has died; until cancelled."""
        while True:
            self._incarnation += 1
            self._killed = False
            process = self._process = await self._start()
            async for line in process.stdout:
                self._heard(json.loads(line))
            self.ready.clear()
            status = await process.wait()
            if status == -signal.SIGKILL:
                self.died_in_a_task += not self._killed
            else:
                self.unexpected.append(f"{self.name} ended with status {status}: see its log")
                await asyncio.sleep(0.5)
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_result(False)
            self._answers.clear()

    async def turn(
        self, database: str, thread: str, number: int, stumble: str, threads: list[tuple[str, str]]
    ) -> bool:
        """Have the process that is here do one turn; whether it was answered."""
        wanted = {"what": "turn", "database": database, "turn": number, "stumble": stumble}
        return await self.do(thread, **wanted, threads=threads)

    async def do(self, thread: str, **wanted: Any) -> bool:
        """Have the process that is here do something in a thread; whether it was done."""
        assert self._process is not None
        key = next(self._keys)
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        try:
            self._process.stdin.write(f"{json.dumps({'key': key, 'thread': thread, **wanted})}\n".encode())
            async with asyncio.timeout(_ANSWER_SECONDS):
                return bool(await answer)
        except TimeoutError:
            # Nobody may talk in this thread until that is certainly over.
            self.unexpected.append(f"{self.name} hung in {thread}: killed")
            self.kill()
            return False

    def kill(self) -> None:
        """SIGKILL whoever is here."""
        if self._process is not None and self._process.returncode is None:
            self._killed = True
            with suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> None:
        """End whoever is here, and close the lines. Again does nothing."""
        process = self._process
        if process is not None and process.returncode is None:
            if self.ready.is_set():
                await self._end(process)
            else:  # it is starting, and has nothing to finish
                self.kill()
                await process.wait()
        for line in self._all_lines():
            await line.close()

    async def _end(self, process: preforked.Process) -> None:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_SECONDS)
        except TimeoutError:
            self.unexpected.append(f"{self.name} did not end: killed")
            self.kill()
            await process.wait()
        if process.returncode:
            self.unexpected.append(f"{self.name} ended with status {process.returncode}")

    def _all_lines(self) -> list[Proxy]:
        return [line for lines in self.lines.values() for line in lines]

    def _ports(self) -> dict[int, int]:
        """Return the port of each server of Redis -> the port of the line to it."""
        redis = self._servers.redis
        lines = [*self.lines["redis"], *self.lines["sentinels"]]
        return {
            each.port: line.port for each, line in zip([*redis.nodes, *redis.sentinels], lines, strict=True)
        }

    def _heard(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.ready.set()
        elif (answer := self._answers.pop(message["key"], None)) and not answer.done():
            answer.set_result(message["ok"])

    def _databases(self) -> dict[str, str]:
        """Return which databases the process uses: name -> URL."""
        options = "sslmode=disable&gssencmode=disable&connect_timeout=2"
        address = f"postgres@127.0.0.1:{self.lines['postgres'][0].port}"
        return {
            name: f"postgresql://{address}/{database}?{options}"
            for name, database in self._servers.databases.items()
        }

    async def _start(self) -> preforked.Process:
        databases = [f"--database={name}={url}" for name, url in self._databases().items()]
        ports = self._ports()
        with (self._directory / f"{self.name}.log").open("ab") as log:
            return await preforked.start(
                RUN.format(module=self._module),
                *("--seed", str(self._seed), "--pauses", str(self._pauses)),
                *("--history", str(self._directory / f"{self.name}-{self._incarnation:03}.jsonl")),
                *databases,
                *("--redis", self._servers.redis.url(ports.__getitem__)),
                *(f"--line={port}={line}" for port, line in ports.items()),
                env={**os.environ, VARIABLE: self._sabotage},
                stderr=log,
            )


class ForeignPlace(Place):
    """Where the foreign writer lives. It reaches PostgreSQL directly, and does not know of Redis."""

    _module = "chaos.foreign"

    def __init__(self, servers: Servers, directory: Path, *, seed: int) -> None:
        """Args:
        directory: Where it writes its history.
        seed: For what it draws.
        """
        super().__init__(0, servers, directory, seed=seed, sabotage="")
        self.name = "foreign"

    def _databases(self) -> dict[str, str]:
        return {FOREIGN_DATABASE: self._servers.url(FOREIGN_DATABASE)}
