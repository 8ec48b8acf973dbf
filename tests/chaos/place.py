"""Where a worker lives: its own lines to the servers, and the process that is there just now."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos.proxy import Proxy
from chaos.sabotage import VARIABLE
from chaos.servers import Servers

__all__ = ["Place"]

_END_SECONDS = 8.0
_ANSWER_SECONDS = 25.0
_TESTS = Path(__file__).parents[1]


class Place:
    """One worker after the other: when one has died, the next one is started."""

    def __init__(self, number: int, servers: Servers, directory: Path, *, seed: int, sabotage: str) -> None:
        """Args:
        number: Counted from 0.
        directory: Where its workers write their histories.
        seed: For what they draw.
        sabotage: What is broken in them, if anything.
        """
        self.number = number
        self.lines = {
            "postgres": Proxy(servers.postgres_socket, seed=seed),
            "redis": Proxy(("127.0.0.1", servers.redis.port), seed=seed),
        }
        self.ready = asyncio.Event()
        self.died_in_a_task = 0
        self.unexpected: list[str] = []
        self._directory = directory
        self._seed = seed
        self._sabotage = sabotage
        self._incarnation = 0
        self._killed = False
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[str, asyncio.Future[bool]] = {}

    async def open(self) -> None:
        """Open the lines."""
        for line in self.lines.values():
            await line.open()

    async def live(self) -> None:
        """Have a worker here, and another one whenever it has died; until cancelled."""
        while True:
            self._incarnation += 1
            self._killed = False
            process = self._process = await self._start()
            assert process.stdout is not None
            async for line in process.stdout:
                self._heard(json.loads(line))
            self.ready.clear()
            status = await process.wait()
            if status == -signal.SIGKILL:
                self.died_in_a_task += not self._killed
            else:
                self.unexpected.append(f"worker {self.number} ended with status {status}: see its log")
                await asyncio.sleep(0.5)
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_result(False)
            self._answers.clear()

    async def turn(self, thread: str, number: int, stumble: str, threads: list[str]) -> bool:
        """Have the worker that is here do one turn; whether it was answered."""
        assert self._process is not None
        assert self._process.stdin is not None
        answer = self._answers[thread] = asyncio.get_running_loop().create_future()
        wanted = {"thread": thread, "turn": number, "stumble": stumble, "threads": threads}
        try:
            self._process.stdin.write(f"{json.dumps(wanted)}\n".encode())
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            # Nobody may talk in this thread until that is certainly over.
            self.unexpected.append(f"worker {self.number} hung in a turn of {thread}: killed")
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
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                self.unexpected.append(f"worker {self.number} did not end: killed")
                self.kill()
                await process.wait()
            if process.returncode:
                self.unexpected.append(f"worker {self.number} ended with status {process.returncode}")
        for line in self.lines.values():
            await line.close()

    def _heard(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.ready.set()
        elif (answer := self._answers.pop(message["thread"], None)) and not answer.done():
            answer.set_result(message["ok"])

    async def _start(self) -> asyncio.subprocess.Process:
        redis, postgres = self.lines["redis"].port, self.lines["postgres"].port
        paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        options = "sslmode=disable&gssencmode=disable&connect_timeout=2"
        with (self._directory / f"worker{self.number}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "chaos.worker", "--seed", str(self._seed)),
                *("--parent", str(os.getpid())),
                *("--history", str(self._directory / f"worker{self.number}-{self._incarnation:03}.jsonl")),
                *("--postgres", f"postgresql://postgres@127.0.0.1:{postgres}/chaos?{options}"),
                *("--redis", f"redis://127.0.0.1:{redis}/0"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), VARIABLE: self._sabotage},
                start_new_session=True,  # Ctrl-C meets the run alone, which ends them
            )
