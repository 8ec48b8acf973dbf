"""The same saver for synchronous callers: `graph.invoke`, scripts, threads.

There is one implementation, the asynchronous one. A synchronous method runs its counterpart on the event
loop that the saver was opened on, and waits: in a `with` block that is a loop in a thread of its own (anyio's
blocking portal), in a thread of an asynchronous application the application's loop. Context variables go
along, so that the spans of a call stand under the caller's.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from anyio.from_thread import start_blocking_portal
from langgraph.checkpoint.base import BaseCheckpointSaver

from glasspoint.errors import BlockingCallError, SaverClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
    from types import TracebackType
    from uuid import UUID

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )

__all__ = ["Done", "Opening", "SyncFace"]

_Answer = TypeVar("_Answer")


class _Closable(Protocol):
    def close(self) -> Awaitable[None]: ...


_Saver = TypeVar("_Saver", bound=_Closable)


class SyncFace(BaseCheckpointSaver[str]):
    """The synchronous methods of a saver. Any number of threads may call them at once.

    Each does what its asynchronous counterpart (`get_tuple`: `aget_tuple`) says, and raises what that raises;
    and `BlockingCallError` on the thread of the saver's own event loop, which would wait for itself.
    """

    _loop: asyncio.AbstractEventLoop

    # ---------------------------------------------------------------- reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint with its pending writes: see `aget_tuple`."""
        return self._wait_for("aget_tuple", lambda: self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """List checkpoints, newest first, read when this is called: see `alist`."""

        async def collect() -> Sequence[CheckpointTuple]:
            return [each async for each in self.alist(config, filter=filter, before=before, limit=limit)]

        return iter(self._wait_for("alist", collect))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Walk a checkpoint's ancestors for their writes: see `aget_delta_channel_history`."""
        return self._wait_for(
            "aget_delta_channel_history",
            lambda: self.aget_delta_channel_history(config=config, channels=channels),
        )

    # ---------------------------------------------------------------- writing

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint: see `aput`."""
        return self._wait_for("aput", lambda: self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote: see `aput_writes`."""
        self._wait_for("aput_writes", lambda: self.aput_writes(config, writes, task_id, task_path))

    # ---------------------------------------------------------------- deleting, copying

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread: see `adelete_thread`."""
        self._wait_for("adelete_thread", lambda: self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str | UUID]) -> None:
        """Delete what these runs stored: see `adelete_for_runs`."""
        self._wait_for("adelete_for_runs", lambda: self.adelete_for_runs(cast("Sequence[str]", run_ids)))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread: see `acopy_thread`."""
        self._wait_for("acopy_thread", lambda: self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune threads: see `aprune`."""
        self._wait_for("aprune", lambda: self.aprune(thread_ids, strategy=strategy))

    # ---------------------------------------------------------------- helpers

    def _wait_for(self, name: str, call: Callable[[], Coroutine[Any, Any, _Answer]]) -> _Answer:
        """Run a call on the saver's loop, and wait for what it answers.

        Args:
            name: The asynchronous method, to be named if this is the wrong thread.
        """
        if _running_loop() is self._loop:
            raise BlockingCallError(
                f"This thread runs the event loop that the saver works on, and must not wait for it: use "
                f"`await saver.{name}(…)`, and a graph's asynchronous methods (`await graph.ainvoke(…)`), or "
                "call from another thread."
            )
        if not self._loop.is_running():
            raise SaverClosedError(
                "The event loop that the saver was opened on does not run (any more): open the saver with "
                "`with …from_conn_string(…) as saver:`, which brings a loop of its own, or call while its "
                "loop runs."
            )
        work = call()
        try:
            waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # closed a moment ago
            work.close()
            raise SaverClosedError("The event loop that the saver was opened on has ended.") from None
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()  # if it was the waiting that was interrupted (Ctrl-C): the call ends, too
            raise

    def _on_either_face(
        self, name: str, call: Callable[[], Coroutine[Any, Any, None]], *, done: bool = False
    ) -> Awaitable[None]:
        """On an event loop, return what is to be awaited; elsewhere do it, and return when it is done.

        Args:
            done: It was done before: elsewhere there is nothing to do.
        """
        if _running_loop() is not None:
            return call()
        if done:
            return Done()
        self._wait_for(name, call)
        return Done()


class Done:
    """What was done already, to be awaited by whoever does not know."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class Opening(AbstractAsyncContextManager[_Saver], AbstractContextManager[_Saver], Generic[_Saver]):
    """A saver to be opened for the length of one block: `async with`, or `with`.

    In a `with` block the saver works on an event loop in a thread of its own, which ends with the block.
    """

    def __init__(self, open_: Callable[[], Coroutine[Any, Any, _Saver]]) -> None:
        """Args:
        open_: Opens the saver, on the loop that it is awaited on.
        """
        self._open = open_
        self._saver: _Saver | None = None
        self._portal = ExitStack()

    async def __aenter__(self) -> _Saver:
        self._check_unused()
        self._saver = await self._open()
        return self._saver

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._saver is not None:
            await self._saver.close()

    def __enter__(self) -> _Saver:
        self._check_unused()
        with ExitStack() as portal:
            blocking = portal.enter_context(start_blocking_portal())
            blocking.call(_name_this_thread, "glasspoint-saver")
            saver: _Saver = blocking.call(self._open)
            self._saver = saver
            portal.callback(lambda: blocking.call(_close, saver))
            self._portal = portal.pop_all()
        return saver

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close()

    def _check_unused(self) -> None:
        if self._saver is not None:
            raise RuntimeError("This was entered before: call from_conn_string again for another saver.")


async def _close(saver: _Closable) -> None:
    await saver.close()


def _name_this_thread(name: str) -> None:
    threading.current_thread().name = name


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
