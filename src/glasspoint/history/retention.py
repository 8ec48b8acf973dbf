"""Decides which checkpoints of a thread have to stay. Pure, no I/O.

A delta channel stores its value only now and then (a snapshot). Between two snapshots, it is rebuilt from the
writes of a checkpoint's ancestors. These ancestors must not be removed: without them, the channel would be
empty, and no error would say so.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from glasspoint.history.interface import Channel, Outline

__all__ = ["by_namespace", "kept_by_keep_latest", "severed_by", "uses_delta_channels"]

History = dict[str, "Outline"]  # one namespace: checkpoint id -> outline


def by_namespace(outlines: Iterable[Outline]) -> dict[str, History]:
    """Group outlines by namespace."""
    histories: dict[str, History] = defaultdict(dict)
    for outline in outlines:
        histories[outline.namespace][outline.checkpoint_id] = outline
    return dict(histories)


def kept_by_keep_latest(histories: Mapping[str, History]) -> dict[str, set[str]]:
    """Decide what `keep_latest` keeps of a thread: what upstream keeps, and what the delta channels need.

    Returns:
        Namespace -> ids that stay. The set is empty for a subgraph call whose root checkpoint, from which it
        started, is removed.
    """
    latest = {namespace: history[max(history)] for namespace, history in histories.items()}
    kept = {
        namespace: {head.checkpoint_id, *_sends_parent(head), *_ancestors_needed(histories[namespace], head)}
        for namespace, head in latest.items()
    }
    root = histories.get("", {})
    kept_of_root = kept.get("", set())
    for namespace, head in latest.items():
        # The namespace of a subgraph call has a task id after a ":", that of a stateful subgraph has not. A
        # call stays if its root checkpoint is not stored yet: runs store checkpoints in the background.
        parents = head.metadata.get("parents")
        origin = parents.get("") if isinstance(parents, dict) else None
        if ":" in namespace and isinstance(origin, str) and origin in root and origin not in kept_of_root:
            kept[namespace] = set()
    return kept


def severed_by(history: History, doomed: set[str]) -> bool:
    """Tell whether a delta channel of a checkpoint that stays needs a doomed checkpoint."""
    channels = _delta_channels(history)
    everything = _keeps_everything(history)
    reaches: dict[
        tuple[str, str], bool
    ] = {}  # (checkpoint, channel): does a walk from here meet a doomed one?
    for start in history.values():
        if start.checkpoint_id in doomed:
            continue
        if everything and any(each in doomed for each in _walk(history, start)):
            return True
        for channel in channels:
            if _must_be_rebuilt(start, channel) and _meets(history, start, channel, doomed, reaches):
                return True
    return False


def uses_delta_channels(histories: Mapping[str, History]) -> bool:
    """Tell whether any checkpoint may need its ancestors."""
    return any(_keeps_everything(history) or _delta_channels(history) for history in histories.values())


def _sends_parent(head: Outline) -> Sequence[str]:
    return [head.parent_id] if head.old_format and head.parent_id and head.parent_has_sends else []


def _ancestors_needed(history: History, kept: Outline) -> set[str]:
    if _keeps_everything(history):
        return set(_walk(history, kept))
    needed: set[str] = set()
    for channel in _delta_channels(history):
        if _must_be_rebuilt(kept, channel):
            for each in _walk(history, kept):
                needed.add(each)
                if _has_value(history[each].channels.get(channel)):
                    break
    return needed


def _delta_channels(history: History) -> set[str]:
    """Return the channels with a counter of updates since their last snapshot, or with a snapshot.

    A snapshot is a blob that an inline `true` marks, which a plain `true` never has.
    """
    found: set[str] = set()
    for outline in history.values():
        counters = outline.metadata.get("counters_since_delta_snapshot")
        found.update(counters if isinstance(counters, dict) else ())
        found.update(name for name, each in outline.channels.items() if each.mark == "t" and each.blob)
    return found


def _keeps_everything(history: History) -> bool:
    # LangGraph.js inlines no values, so snapshots cannot be recognised. But it marks such threads.
    return any("delta_writes_versioned" in outline.metadata for outline in history.values())


def _must_be_rebuilt(outline: Outline, name: str) -> bool:
    channel = outline.channels.get(name)
    return channel is not None and channel.versioned and not channel.blob and not channel.mark


def _has_value(channel: Channel | None) -> bool:
    # An inline null is not a value: upstream's walk goes on.
    return channel is not None and (channel.blob or channel.mark in ("t", "v"))


def _walk(history: History, start: Outline) -> Iterator[str]:
    """Yield the ids of a checkpoint's ancestors, nearest first, until one does not exist."""
    seen = {start.checkpoint_id}
    parent = start.parent_id
    while parent in history and parent not in seen:
        yield parent
        seen.add(parent)
        parent = history[parent].parent_id


def _meets(
    history: History, start: Outline, channel: str, doomed: set[str], known: dict[tuple[str, str], bool]
) -> bool:
    """Tell whether the walk that rebuilds a channel meets a doomed checkpoint.

    `known` has the results of earlier walks, because many walks end in the same way.
    """
    passed = [start.checkpoint_id]
    result = False
    for each in _walk(history, start):
        if each in doomed:
            result = True
        elif not _has_value(history[each].channels.get(channel)):
            if (each, channel) not in known:
                passed.append(each)
                continue
            result = known[each, channel]
        break
    known.update(((each, channel), result) for each in passed)
    return result
