"""The synchronous methods of a saver, for `graph.invoke`, scripts and threads.

Only the asynchronous methods are implemented. A synchronous method runs its asynchronous counterpart on the
event loop that the saver was opened on, and waits. After `with` or `open`, that loop runs in a thread of its
own. In a thread of an asynchronous application, it is the application's loop. Context variables are passed
on, so the spans of a call stand under the caller's span. `home` explains forks, and the end of a process.
"""

from __future__ import annotations

import copy
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, cast

from langgraph.checkpoint.base import BaseCheckpointSaver

from glasspoint.errors import BlockingCallError, SaverClosedError
from glasspoint.model.home import OwnLoop, running_loop, wait_for

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Generator,
        Iterator,
        Mapping,
        Sequence,
    )
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

    from glasspoint.model.generics import ResultT
    from glasspoint.model.home import Home, Housed
    from glasspoint.model.threads import ThreadSummary

__all__ = ["Done", "Opening", "SyncFace"]

_Saver = TypeVar("_Saver", bound="Housed")


class SyncFace(BaseCheckpointSaver[str]):
    """The synchronous methods of a saver. Any number of threads may call them at once.

    A method does what its asynchronous counterpart does (`get_tuple`: `aget_tuple`), and raises the same
    errors. It also raises `BlockingCallError` on the thread of the saver's event loop, which would wait for
    itself; and `ForkedError` in a child after a `fork()`, unless the saver opens itself again there: see
    `home`.

    Attributes:
        home: The process and the event loop that the saver was opened on.
    """

    home: Home

    # ---------------------------------------------------------------- reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint with its pending writes: see `aget_tuple`."""
        return self._wait_for("aget_tuple", lambda saver: saver.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """List checkpoints, newest first. All are read during the call: see `alist`."""

        async def collect(saver: Self) -> Sequence[CheckpointTuple]:
            return [each async for each in saver.alist(config, filter=filter, before=before, limit=limit)]

        return iter(self._wait_for("alist", collect))

    def alist_threads(
        self,
        *,
        filter: dict[str, Any] | None = None,
        limit: int | None = None,
        before: RunnableConfig | None = None,
    ) -> AsyncIterator[ThreadSummary]:
        """List threads. Each saver implements this method."""
        raise NotImplementedError

    def list_threads(
        self,
        *,
        filter: dict[str, Any] | None = None,
        limit: int | None = None,
        before: RunnableConfig | None = None,
    ) -> Iterator[ThreadSummary]:
        """List threads, the last written first. All are read during the call: see `alist_threads`."""

        async def collect(saver: SyncFace) -> Sequence[ThreadSummary]:
            return [each async for each in saver.alist_threads(filter=filter, limit=limit, before=before)]

        return iter(self._wait_for("alist_threads", collect))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return the writes of a checkpoint's ancestors: see `aget_delta_channel_history`."""
        return self._wait_for(
            "aget_delta_channel_history",
            lambda saver: saver.aget_delta_channel_history(config=config, channels=channels),
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
        return self._wait_for("aput", lambda saver: saver.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of a task: see `aput_writes`."""
        self._wait_for("aput_writes", lambda saver: saver.aput_writes(config, writes, task_id, task_path))

    # ---------------------------------------------------------------- deleting, copying

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread: see `adelete_thread`."""
        self._wait_for("adelete_thread", lambda saver: saver.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str | UUID]) -> None:
        """Delete the checkpoints of these runs: see `adelete_for_runs`."""
        self._wait_for(
            "adelete_for_runs", lambda saver: saver.adelete_for_runs(cast("Sequence[str]", run_ids))
        )

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread: see `acopy_thread`."""
        self._wait_for("acopy_thread", lambda saver: saver.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Prune threads: see `aprune`."""
        self._wait_for("aprune", lambda saver: saver.aprune(thread_ids, strategy=strategy))

    # ---------------------------------------------------------------- helpers

    def _wait_for(self, name: str, call: Callable[[Self], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Run a call on the saver's loop, and wait for its result.

        Args:
            name: The asynchronous method, for the error on the wrong thread.
            call: Makes the call, on the saver of this process.
        """
        saver = self._of_this_process()
        loop = saver.home.loop
        if running_loop() is loop:
            raise BlockingCallError(
                f"This thread runs the event loop that the saver works on, and must not wait for it: use "
                f"`await saver.{name}(…)`, and a graph's asynchronous methods (`await graph.ainvoke(…)`), or "
                "call from another thread."
            )
        if not loop.is_running() and saver.home.own is not None:
            raise SaverClosedError("This saver was closed: open a new one, or close it later.")
        if not loop.is_running():
            raise SaverClosedError(
                "The event loop that the saver was opened on does not run (any more): open the saver with "
                "`with …from_conn_string(…) as saver:`, which brings a loop of its own, or call while its "
                "loop runs."
            )
        return wait_for(call(saver), loop)

    def _of_this_process(self) -> Self:
        """Return this saver; in a child after a fork, a saver that works there.

        Raises:
            ForkedError: The saver cannot be opened again.
        """
        if self.home.is_in_this_process:
            return self
        if self.home.own is None:
            raise self.home.forked()
        saver: Self = copy.copy(self.home.own.saver())
        saver.serde = self.serde  # this saver may be a clone by `with_allowlist`, with a serde of its own
        return saver

    def _close_on_either_face(
        self, call: Callable[[], Coroutine[Any, Any, None]], *, done: bool
    ) -> Awaitable[None]:
        """Close the saver, from its loop or from elsewhere; and end the loop, if the saver has its own.

        Args:
            call: Closes the saver, on its loop.
            done: Whether the saver was closed before.
        """
        own = self.home.own
        if running_loop() is self.home.loop and self.home.is_in_this_process:
            return call()
        if own is not None:
            own.close()
        elif not done and self.home.is_in_this_process:  # in a child there is nothing to close
            self._wait_for("close", lambda _: call())
        return Done()

    def _on_either_face(
        self, name: str, call: Callable[[Self], Coroutine[Any, Any, None]]
    ) -> Awaitable[None]:
        """Serve asynchronous and synchronous callers of one method.

        On the saver's event loop, return an awaitable. Elsewhere, return when the call is done. Elsewhere
        includes a thread that runs another loop, as in a notebook.
        """
        if running_loop() is self.home.loop and self.home.is_in_this_process:
            return call(self)
        self._wait_for(name, call)
        return Done()


class Done:
    """An awaitable of work that is done already, for callers that await the result."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield

    def __repr__(self) -> str:
        return "done"


class Opening(AbstractAsyncContextManager[_Saver], AbstractContextManager[_Saver], Generic[_Saver]):
    """A saver to be opened, in one of four ways.

    - `async with opening as saver:` opens it for the length of a block, on the running event loop.
    - `saver = await opening` opens it on the running event loop, until `await saver.close()`.
    - `with opening as saver:` opens it for synchronous callers, on an event loop in a thread of its own.
    - `saver = opening.open()` does the same, until `saver.close()` or the end of the process.
    """

    def __init__(self, open_: Callable[[], Coroutine[Any, Any, _Saver]], *, reopens: bool = False) -> None:
        """Take the function that opens the saver.

        Args:
            open_: Opens the saver on the loop that awaits it.
            reopens: Whether `open_` may be called again in a child after a fork. It may not if it uses the
                caller's connections.
        """
        self._open = open_
        self._saver: _Saver | None = None
        self._own = OwnLoop(open_, reopens=reopens)

    def __await__(self) -> Generator[Any, None, _Saver]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> _Saver:
        self._check_unused()
        self._saver = await self._open()
        return self._saver

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._saver is not None:
            await self._saver.close()

    def open(self) -> _Saver:
        """Open the saver for synchronous callers, on an event loop in a thread of its own.

        Any thread may use the saver, even a thread that runs an event loop, as in a notebook. If the saver
        was made from URLs alone, its first call in a child after a `fork()` opens it again.

        Returns:
            The saver. `saver.close()` closes it; otherwise the end of the process does.

        Raises:
            RuntimeError: This object has already opened a saver.
            GlasspointError: The saver cannot be opened; see the function that returned this object.
        """
        return self.__enter__()

    def __enter__(self) -> _Saver:
        self._check_unused()
        self._saver = self._own.saver()
        return self._saver

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._own.close()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"A saver has to be opened before {name!r} is used: `with … as saver:` or `saver = ….open()` for "
            "synchronous callers, `async with … as saver:` or `saver = await …` on an event loop.",
            name=name,
            obj=self,
        )

    def _check_unused(self) -> None:
        if self._saver is not None:
            raise RuntimeError(
                "This was opened before: call from_conn_string again for another saver, or get_checkpointer."
            )
