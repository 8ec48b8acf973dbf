"""Readers, writers and a Redis that loses things, all at once on one conversation: no read is older than what
was acknowledged before it began, none returns what PostgreSQL does not have, and in the end all agree.

What is done is drawn from seeds, the same ones in every run of `make test`. How it interleaves is up to real
servers, so a seed gives a schedule of the same kind but never quite the same one. A failure shows its seed
and what had been done; SEEDS="<seed> …" runs only these.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

import dice
from glasspoint import CachedPostgresSaver, Telemetry, create_telemetry
from glasspoint.errors import ThreadInUseError
from glasspoint.l1.breaker import Breaker
from states import config_of, counts, exact, make_pool, numbered_id, open_upstream

_draw = random.Random(dice.SEED).randrange
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "").split()] or [
    _draw(10**9) for _ in range(dice.rounds(60, explored=1500))
]
AT_ONCE = 3

# ------------------------------------------------------------------------------------------- the servers


@dataclass
class Line:
    """How an operation's steps get to Redis.

    Attributes:
        late_seconds: Up to so long a step, and its answer, are on their way.
        fault: What happens to one of the steps; the others go well.
        dice: What this operation draws from.
    """

    late_seconds: float = 0
    fault: str | None = None
    dice: random.Random = field(default_factory=lambda: random.Random(0))


line: ContextVar[Line] = ContextVar("line", default=Line())  # noqa: B039 - the default is never changed


class RoughRedis(Redis):
    """The real one, at the end of a line that may be bad."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.repeating = set[asyncio.Task[Any]]()

    async def evalsha(self, *args: Any, **kwargs: Any) -> Any:
        the_line = line.get()
        await self.be_late(the_line)
        fault = None
        if the_line.fault and the_line.dice.random() < 0.5:
            fault, the_line.fault = the_line.fault, None
        if fault == "not sent":
            raise RedisConnectionError("made to fail before it was sent")
        answer = await super().evalsha(*args, **kwargs)
        if fault == "sent again":
            self.repeating.add(asyncio.create_task(self.send_again(the_line, args)))
        if fault == "not answered":
            raise RedisConnectionError("made to fail after it was done")
        await self.be_late(the_line)
        return answer

    async def be_late(self, the_line: Line) -> None:
        if the_line.late_seconds:
            await asyncio.sleep(the_line.dice.uniform(0, the_line.late_seconds))

    async def send_again(self, the_line: Line, args: tuple[Any, ...]) -> None:
        """As a client does that took the first attempt for lost, but that one only took its time."""
        await asyncio.sleep(the_line.dice.uniform(0, 0.05))
        await super().evalsha(*args)

    async def aclose(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.gather(*self.repeating)
        await super().aclose(*args, **kwargs)


@dataclass
class Scene:
    """Two savers on the same servers, and LangGraph's on the same database."""

    savers: list[CachedPostgresSaver]
    upstream: AsyncPostgresSaver
    redis: Redis


@asynccontextmanager
async def open_scene(postgres_url: str, redis_url: str, telemetry: Telemetry) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as opened:
        savers = []
        for _ in range(2):
            pool = await opened.enter_async_context(make_pool(postgres_url, size=10))
            opened.push_async_callback(all_connections_are_back, pool)
            rough = await opened.enter_async_context(RoughRedis.from_url(redis_url))
            saver = CachedPostgresSaver(
                AsyncPostgresSaver(pool),
                rough,
                pool,
                telemetry=telemetry,
                l1_timeout_seconds=5,
                audit_ratio=0.0,
            )
            opened.push_async_callback(saver.close)
            savers.append(saver)
        await savers[0].setup()
        upstream = await opened.enter_async_context(open_upstream(postgres_url))
        redis = await opened.enter_async_context(Redis.from_url(redis_url))
        yield Scene(savers, upstream, redis)


async def all_connections_are_back(pool: AsyncConnectionPool[Any]) -> None:
    deadline = monotonic() + 30
    while (stats := pool.get_stats())["pool_available"] < stats["pool_size"]:
        assert monotonic() < deadline, f"cancelled calls have kept connections: {stats}"
        await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------------- the judge


@dataclass(eq=False)
class Change:
    """A write on its way, on the judge's clock. Over but not acknowledged: it was cancelled, and may have
    happened or not."""

    value: Any
    start: int
    end: int | None = None
    acknowledged: bool = False

    def __str__(self) -> str:
        return (
            f"{self.start}..{self.end} {'acknowledged' if self.acknowledged else 'cancelled'}: {self.value}"
        )

    def before(self, moment: int) -> bool:
        return self.end is not None and self.end < moment


@dataclass
class History:
    """What was written to one conversation, and what a read may therefore return.

    Attributes:
        changes: (checkpoint id,) or (checkpoint id, task id, channel) -> what was stored there.
    """

    clock: int = 0
    changes: dict[tuple[str, ...], list[Change]] = field(default_factory=lambda: defaultdict(list))
    deletions: list[Change] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{' '.join(key)}: {c}" for key, changes in self.changes.items() for c in changes]
        return "\n".join(lines + [f"deletion {each}" for each in self.deletions])

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def begin(self, key: tuple[str, ...], value: Any) -> Change:
        change = Change(value, self.tick())
        self.changes[key].append(change)
        return change

    @contextmanager
    def until_acknowledged(self, *changes: Change) -> Iterator[None]:
        try:
            yield
            for change in changes:
                change.acknowledged = True
        finally:
            for change in changes:
                change.end = self.tick()

    def surely_there(self, change: Change, at: int) -> bool:
        """Acknowledged before `at`, and no deletion has been under way since it began."""
        return (
            change.acknowledged
            and change.before(at)
            and all(deletion.before(change.start) for deletion in self.deletions)
        )

    def surely_gone(self, change: Change, at: int) -> bool:
        """Over before a deletion began that was acknowledged before `at`."""
        return any(
            deletion.acknowledged and change.before(deletion.start) and deletion.before(at)
            for deletion in self.deletions
        )

    def possible(self, key: tuple[str, ...], at: int) -> list[Any]:
        """The values that may stand there for a read that began at `at`."""
        changes = [change for change in self.changes[key] if not self.surely_gone(change, at)]
        there = [change for change in changes if self.surely_there(change, at)]
        return [c.value for c in changes if not any(c.before(later.start) for later in there)]

    def judge(self, began: int, answer: CheckpointTuple | None) -> None:
        """Raise AssertionError if a read that began then may not end now with this answer."""
        there = {
            key for key, changes in self.changes.items() if any(self.surely_there(c, began) for c in changes)
        }
        newest = max((key[0] for key in there if len(key) == 1), default="")
        if answer is None:
            assert not newest, f"stale: read nothing, but {newest} was acknowledged"
            return
        read = answer.config["configurable"]["checkpoint_id"]
        assert read >= newest, f"stale: read {read}, but {newest} was acknowledged"
        values = answer.checkpoint["channel_values"]
        if self.deletions:  # which take values away from what follows them
            possible = [{c: v[c] for c in values if c in v} for v in self.possible((read,), began)]
        else:
            possible = self.possible((read,), began)
        assert values in possible, f"stale or phantom: {read} with {values}"
        pending = {(read, task, channel): value for task, channel, value in answer.pending_writes or ()}
        lost = {key for key in there if key[0] == read and len(key) > 1} - pending.keys()
        assert not lost, f"lost pending writes: {lost}"
        for key, value in pending.items():
            assert value in self.possible(key, began), f"stale or phantom pending write: {key} with {value}"


# ------------------------------------------------------------------------------------------- the schedules


class Schedule:
    """A few tasks that do a few things each to one conversation."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.thread_id = f"thread{seed}"
        self.history = History()
        self.newest = self.values = 0
        self.random = random.Random(seed)
        self.whole, self.cancels, self.line_fails = (
            self.random.random() < share for share in (0.5, 0.2, 0.2)
        )
        deeds = [
            self.put,
            self.put_again,
            self.put_with_early_writes,
            self.put_writes,
            self.interrupt,
            self.delete,
            self.delete_unless_in_use,
            self.prune,
            self.copy,
        ]
        if not self.line_fails:
            # What Redis loses between two steps of which the second fails is the one window that is allowed.
            deeds += [self.redis_loses, self.redis_loses]
        # A few kinds at a time: they meet more often than if everything was done everywhere.
        self.deeds = self.random.sample(deeds, self.random.randint(2, 4))
        self.deeds += [self.read] * len(self.deeds)
        # What was read may have been removed by the time that it is looked for.
        removing = (self.delete, self.delete_unless_in_use, self.prune)
        self.removes = any(deed in self.deeds for deed in removing)

    async def run(self) -> None:
        await self.put()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.random.randint(3, 6)):
                tasks.create_task(self.act())
        expected = exact(await self.scene.upstream.aget_tuple(self.config()))
        for saver in self.scene.savers * 2:
            assert exact(await saver.aget_tuple(self.config())) == expected, "in the end they differ"

    async def act(self) -> None:
        for _ in range(self.random.randint(1, 5)):
            await self.random.choice(self.deeds)()

    def config(self, number: int | None = None) -> RunnableConfig:
        return config_of(self.thread_id, "", numbered_id(number) if number else None)

    @property
    def saver(self) -> CachedPostgresSaver:
        return self.random.choice(self.scene.savers)

    async def read(self) -> None:
        self.draw_line()
        began = self.history.tick()
        answer = await self.saver.aget_tuple(self.config())
        self.history.judge(began, answer)
        if answer is not None and not self.removes:
            # What was not acknowledged yet may be read all the same, but only if PostgreSQL has it.
            there = await self.scene.upstream.aget_tuple(answer.config)
            assert there is not None, "phantom: PostgreSQL does not have it"
            stored = {write[:2] for write in there.pending_writes or ()}
            assert stored.issuperset(write[:2] for write in answer.pending_writes or ()), (
                "phantom pending writes"
            )

    async def put(self, number: int | None = None, turn: int | None = None) -> None:
        if number is None:
            number = self.newest = self.newest + 1
        checkpoint = make_checkpoint(number, turn or number, base_version=number if self.whole else 1)
        change = self.history.begin((checkpoint["id"],), checkpoint["channel_values"])
        new: ChannelVersions = {
            c: version for c, version in checkpoint["channel_versions"].items() if version == number
        }
        config = self.config(number - 1)
        await self.under_fire(self.saver.aput(config, checkpoint, {"step": number}, new), change)

    async def put_again(self) -> None:
        """The newest, with another value."""
        await self.put(self.newest, -self.next_value())

    async def put_with_early_writes(self) -> None:
        """As LangGraph does: the tasks of a checkpoint may be over before it is stored."""
        self.newest += 1
        number = self.newest
        write = self.random.choice([self.put_writes, self.interrupt])
        if self.random.random() < 0.5:
            await write(number)
            await self.put(number)
        else:
            async with asyncio.TaskGroup() as both:
                both.create_task(self.put(number))
                both.create_task(write(number))

    async def put_writes(self, number: int | None = None) -> None:
        await self.write(number or self.newest, f"task {self.next_value()}", ["messages", "turn"])

    async def interrupt(self, number: int | None = None) -> None:
        """One after the other replaces what is there; both special channels, or one."""
        channels = self.random.choice([["__interrupt__"], ["__interrupt__", "__resume__"]])
        await self.write(number or self.newest, "interrupted", channels)

    async def write(self, number: int, task_id: str, channels: list[str]) -> None:
        value = self.next_value()
        changes = [self.history.begin((numbered_id(number), task_id, channel), value) for channel in channels]
        writes = [(channel, value) for channel in channels]
        await self.under_fire(self.saver.aput_writes(self.config(number), writes, task_id), *changes)

    async def delete(self) -> None:
        deletion = Change(None, self.history.tick())
        self.history.deletions.append(deletion)
        await self.under_fire(self.saver.adelete_thread(self.thread_id), deletion)

    async def delete_unless_in_use(self) -> None:
        deletion = Change(None, self.history.tick())
        self.history.deletions.append(deletion)
        try:
            await self.under_fire(self.saver.aprune([self.thread_id], strategy="delete"), deletion)
        except ThreadInUseError:
            self.history.deletions.remove(deletion)

    async def prune(self) -> None:
        """The newest stays, so what may be read is what it was."""
        await self.under_fire(self.saver.aprune([self.thread_id]))

    async def copy(self) -> None:
        """What nobody else writes to is read as it is at once."""
        config = config_of(f"{self.thread_id} copy {self.next_value()}")
        self.draw_line()
        await self.saver.acopy_thread(self.thread_id, config["configurable"]["thread_id"])
        expected = exact(await self.scene.upstream.aget_tuple(config))
        for saver in self.scene.savers:
            assert exact(await saver.aget_tuple(config)) == expected, "a copy is not read as it is"

    async def redis_loses(self) -> None:
        if keys := await self.scene.redis.keys(f"*{self.thread_id}*"):
            await self.scene.redis.delete(*keys)

    async def under_fire(self, operation: Awaitable[Any], *changes: Change) -> None:
        """Do it, perhaps over a line that fails once, and perhaps only until it is cancelled."""
        self.draw_line()
        if self.cancels and self.newest > 1 and self.random.random() < 0.3:
            with suppress(TimeoutError), self.history.until_acknowledged(*changes):
                await asyncio.wait_for(operation, self.random.uniform(0, 0.02))
        else:
            with self.history.until_acknowledged(*changes):
                await operation

    def draw_line(self) -> None:
        """Some operations are so slow that others happen wholly between two of their steps."""
        fault = self.random.choice(["not sent", "not answered", "sent again"]) if self.line_fails else None
        late = self.random.choice([0, 0, 0, 0.01, 0.1])
        line.set(Line(late, fault, random.Random(self.random.random())))

    def next_value(self) -> int:
        self.values += 1
        return self.values


def make_checkpoint(number: int, turn: int, base_version: int) -> Checkpoint:
    """`turn` stands inline, `log` in a blob of its own, `base` in one that may be an older checkpoint's."""
    return {
        "v": 4,
        "id": numbered_id(number),
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {"base": ["system prompt"], "turn": turn, "log": [f"turn {number}"]},
        "channel_versions": {"base": base_version, "turn": number, "log": number},
        "versions_seen": {},
        "updated_channels": None,
    }


@pytest.mark.dice
async def test_no_read_is_stale_or_a_phantom_whatever_happens_at_the_same_time(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While it is open, neither of a write's two steps is sent: the one window that is allowed.
    monkeypatch.setattr("glasspoint.savers.parts.Breaker", partial(Breaker, failures=sys.maxsize))
    registry = CollectorRegistry()
    seeds = iter(SEEDS)

    async def run_schedules(scene: Scene) -> None:
        for seed in seeds:
            schedule = Schedule(scene, seed)
            try:
                await schedule.run()
            except BaseException as exc:
                exc.add_note(f"SEEDS={seed}\n{schedule.history}")
                raise

    telemetry = create_telemetry(registry=registry)
    async with open_scene(database, redis_url, telemetry) as scene, asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(run_schedules(scene))
    reads = counts(registry, "glasspoint_l1_reads_total", "result")
    # 150 schedules had 640 to 770 hits, 420 to 500 misses and 300 to 380 reads that met a write.
    for result in ("hit", "miss", "busy"):
        assert reads[result] > 20 or "SEEDS" in os.environ, "the schedules hardly met each other"
