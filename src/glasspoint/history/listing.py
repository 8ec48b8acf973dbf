"""Listing: finds the checkpoints for `alist` and the threads for `alist_threads`, newest first."""

from __future__ import annotations

from contextlib import aclosing
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from glasspoint.history.beginning import unmarked
from glasspoint.history.containment import contains
from glasspoint.history.interface import Position
from glasspoint.model import traceparent
from glasspoint.model.listing_options import check_limit, plain_filter
from glasspoint.model.scope import Scope, checkpoint_id_of, listed_scope_of
from glasspoint.model.threads import summary_of
from glasspoint.telemetry.background import for_each

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from langchain_core.runnables import RunnableConfig

    from glasspoint.history.interface import Found, History
    from glasspoint.model.threads import ThreadChoice, ThreadSummary

__all__ = ["Choice", "choose", "find", "find_threads"]

_AT_ONCE = 100


class Choice(NamedTuple):
    """The parsed arguments of a listing.

    Attributes:
        scope: The thread, with its namespace or `""`; `None`: all threads.
        any_namespace: Whether all namespaces of the thread are listed.
        before: Only ids that are less than this.
        nothing: Whether the result is certainly empty.
    """

    scope: Scope | None
    any_namespace: bool
    checkpoint_id: str | None
    before: str | None
    filter: dict[str, Any]
    limit: int | None
    nothing: bool


def choose(
    config: RunnableConfig | None,
    *,
    filter: dict[str, Any] | None,
    before: RunnableConfig | None,
    limit: int | None,
) -> Choice:
    """Read the arguments of `alist`, as upstream does.

    Raises:
        InvalidConfigError: A config has no thread id, or an id that cannot be stored.
        ConfigurationError: The filter is not plain JSON, or the limit is negative.
    """
    scope = listed_scope_of(config)
    checkpoint_id = checkpoint_id_of(config) if config else None
    older_than = checkpoint_id_of(before) if before is not None else None
    check_limit(limit)
    parsed = plain_filter(filter)
    return Choice(
        scope=scope,
        any_namespace=config is not None and scope is not None and _names_no_namespace(config),
        checkpoint_id=checkpoint_id,
        before=older_than,
        filter=parsed,
        limit=limit,
        # In SQL, nothing is less than NULL.
        nothing=limit == 0 or (before is not None and older_than is None) or traceparent.is_asked_for(parsed),
    )


def _names_no_namespace(config: RunnableConfig) -> bool:
    return config["configurable"].get("checkpoint_ns") is None


async def find(history: History, choice: Choice) -> AsyncGenerator[Found, None]:
    """Yield the chosen checkpoints, newest first."""
    left = choice.limit
    if choice.nothing:
        return
    async with aclosing(_positions(history, choice)) as pages:
        async for page in pages:
            for start in range(0, len(page), _AT_ONCE):
                chosen = page[start : start + _AT_ONCE]
                if choice.filter:
                    chosen = await _matching(history, chosen, choice.filter)
                for found in await _loaded(history, chosen[:left]):
                    yield found
                    left = None if left is None else left - 1
                if left == 0:
                    return


async def find_threads(history: History, choice: ThreadChoice) -> list[ThreadSummary]:
    """Return the chosen threads in the order of their newest checkpoints, newest first."""
    if choice.nothing:
        return []
    threads = [each async for each in history.thread_ids()]

    async def newest(thread_id: str) -> Position | None:
        found = await history.newest(Scope(thread_id, ""))
        if found is None or (choice.before is not None and not found < choice.before):
            return None
        return Position(Scope(thread_id, ""), found)

    positions = [each for each in await for_each(threads, newest) if each is not None]
    positions.sort(key=lambda each: each.scope.thread_id)
    positions.sort(key=lambda each: each.checkpoint_id, reverse=True)

    async def summary(position: Position) -> ThreadSummary | None:
        [metadata] = await history.metadata([position])
        if metadata is None or not contains(metadata, choice.filter):  # removed meanwhile, or not chosen
            return None
        return summary_of(position.scope.thread_id, position.checkpoint_id, unmarked(metadata))

    chosen: list[ThreadSummary] = []
    for start in range(0, len(positions), _AT_ONCE):
        some = await for_each(positions[start : start + _AT_ONCE], summary)
        chosen += [each for each in some if each is not None]
        if choice.limit is not None and len(chosen) >= choice.limit:
            return chosen[: choice.limit]
    return chosen


async def _positions(history: History, choice: Choice) -> AsyncGenerator[list[Position], None]:
    """Yield the positions to look at: those of one scope in pages, those of several scopes in one page."""
    if choice.scope is not None and not choice.any_namespace and choice.checkpoint_id is None:
        async with aclosing(history.positions(choice.scope, before=choice.before)) as pages:
            async for page in pages:
                yield page
        return
    if choice.scope is None:
        threads = [each async for each in history.thread_ids()]
    else:
        threads = [choice.scope.thread_id]
    if choice.scope is not None and not choice.any_namespace:
        scopes = [choice.scope]
    else:
        found = await for_each(threads, history.namespaces)
        scopes = [Scope(t, ns) for t, names in zip(threads, found, strict=True) for ns in names]
    if choice.checkpoint_id is not None:
        if choice.before is None or choice.checkpoint_id < choice.before:
            yield [Position(scope, choice.checkpoint_id) for scope in scopes]
        return

    async def of_scope(scope: Scope) -> list[Position]:
        return [each async for page in history.positions(scope, before=choice.before) for each in page]

    together = [each for positions in await for_each(scopes, of_scope) for each in positions]
    together.sort(key=lambda each: each.checkpoint_id, reverse=True)
    yield together


async def _matching(
    history: History, positions: Sequence[Position], wanted: dict[str, Any]
) -> list[Position]:
    chosen = []
    for _, group in groupby(positions, key=lambda each: each.scope.thread_id):
        some = list(group)
        for position, metadata in zip(some, await history.metadata(some), strict=True):
            if metadata is not None and contains(metadata, wanted):
                chosen.append(position)
    return chosen


async def _loaded(history: History, positions: Sequence[Position]) -> list[Found]:
    found = []
    for _, group in groupby(positions, key=lambda each: each.scope.thread_id):
        found += [each async for each in history.load(list(group))]
    return found
