"""`RedisSaver` as tests open it, and every way to use it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.runnables import RunnableConfig
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import RedisSaver, create_redis_checkpointer, create_telemetry
from states import config_of
from steps import Thread


@asynccontextmanager
async def opened(redis: Redis | str, **options: Any) -> AsyncIterator[RedisSaver]:
    options.setdefault("telemetry", create_telemetry(registry=CollectorRegistry()))
    async with await create_redis_checkpointer(redis, **options) as saver:
        yield saver


async def listed(saver: RedisSaver, config: RunnableConfig | None, **options: Any) -> list[Any]:
    return [each async for each in saver.alist(config, **options)]


async def two_namespaces(saver: RedisSaver, thread_id: str = "대화") -> tuple[Thread, Thread]:
    """A thread with checkpoints, values and writes, in its root and in a subgraph's namespace."""
    threads = Thread(thread_id), Thread(thread_id, "sub|graph:1")
    for each in threads:
        await each.put(saver)
        await each.put_writes(saver, "x")
        await each.put(saver)
        await each.put_writes(saver, "y")
    return threads


USES: dict[str, Callable[[RedisSaver, Thread], Awaitable[Any]]] = {
    "aget_tuple": lambda saver, thread: saver.aget_tuple(thread.config),
    "nothing found": lambda saver, thread: saver.aget_tuple(config_of(thread.thread_id, "no such")),
    "alist": lambda saver, thread: listed(saver, thread.config, filter={"step": 1}),
    "alist of all": lambda saver, thread: listed(saver, None, limit=1),
    "aput": lambda saver, thread: thread.put(saver),
    "aput_writes": lambda saver, thread: thread.put_writes(saver, "z", "other task"),
    "aget_delta_channel_history": lambda saver, thread: saver.aget_delta_channel_history(
        config=thread.config, channels=["no such"]
    ),
    "adelete_for_runs": lambda saver, thread: saver.adelete_for_runs(["run"]),
    "acopy_thread": lambda saver, thread: saver.acopy_thread(thread.thread_id, "copy"),
    "aprune": lambda saver, thread: saver.aprune([thread.thread_id]),
}
