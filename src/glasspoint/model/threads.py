"""Listing threads: the arguments of `alist_threads`, and its result for each thread, for all savers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from glasspoint.errors import InvalidConfigError
from glasspoint.model import traceparent
from glasspoint.model.listing_options import check_limit, plain_filter
from glasspoint.model.scope import checkpoint_id_of, is_ordered_id, time_of_id

if TYPE_CHECKING:
    from datetime import datetime

    from langchain_core.runnables import RunnableConfig

__all__ = ["ThreadChoice", "ThreadSummary", "choose_threads", "summary_of"]


@dataclass(frozen=True, slots=True)
class ThreadSummary:
    """A thread, described by its newest checkpoint.

    Attributes:
        thread_id: The id of the thread.
        checkpoint_id: The id of the newest checkpoint of its root graph.
        created_at: The time in that id, when the checkpoint was made (UTC); `None` if the id is not one of
            LangGraph's.
        step: The checkpoint's step, -1 for the first input; `None` if its metadata have none.
        source: The origin of the checkpoint: `input`, `loop`, `update` or `fork`; `None` if its metadata have
            none.
        metadata: All metadata of the checkpoint.
    """

    thread_id: str
    checkpoint_id: str
    created_at: datetime | None
    step: int | None
    source: str | None
    metadata: dict[str, Any]

    @property
    def config(self) -> RunnableConfig:
        """The config that names the checkpoint: for `aget_tuple`, or for `before` of the next page."""
        return {
            "configurable": {
                "thread_id": self.thread_id,
                "checkpoint_ns": "",
                "checkpoint_id": self.checkpoint_id,
            }
        }


class ThreadChoice(NamedTuple):
    """The threads that a call asks for.

    Attributes:
        filter: The content that the metadata of the newest checkpoint must have; empty: any.
        limit: The maximum number of threads; `None`: no limit.
        before: The id that the newest checkpoint of each thread must be less than; `None`: any.
        nothing: Whether the result is certainly empty, so that no server need be asked.
    """

    filter: dict[str, Any]
    limit: int | None
    before: str | None
    nothing: bool


def choose_threads(
    *, filter: dict[str, Any] | None, limit: int | None, before: RunnableConfig | None
) -> ThreadChoice:
    """Read the arguments of `alist_threads`.

    Raises:
        InvalidConfigError: `before` names no checkpoint, or its checkpoint id cannot be stored.
        ConfigurationError: PostgreSQL cannot hold the filter, or the limit is negative.
    """
    older_than = checkpoint_id_of(before) if before is not None else None
    if before is not None and older_than is None:
        raise InvalidConfigError(
            "before names no checkpoint_id, so no thread would be listed: pass the config of a row."
        )
    check_limit(limit)
    parsed = plain_filter(filter)
    return ThreadChoice(parsed, limit, older_than, limit == 0 or traceparent.is_asked_for(filter))


def summary_of(thread_id: str, checkpoint_id: str, metadata: dict[str, Any]) -> ThreadSummary:
    """Make the summary of a thread.

    Args:
        metadata: The metadata of that checkpoint, as stored.
    """
    shown = traceparent.without(metadata)
    is_timed = is_ordered_id(checkpoint_id) and checkpoint_id[14] == "6"
    return ThreadSummary(
        thread_id,
        checkpoint_id,
        time_of_id(checkpoint_id) if is_timed else None,
        shown.get("step"),
        shown.get("source"),
        shown,
    )
