"""Collects the data of `glasspoint threads`, `history`, `show` and `diff`, for JSON and for tables.

It only reads PostgreSQL, on one connection, and Redis; it changes nothing in either. Values are private:
without `content`, this module decodes no value, and returns only types and sizes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, TASKS
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from redis.exceptions import RedisError

from glasspoint.cli.parts import connected, opened_redis
from glasspoint.cli.redis_servers import REDIS_SECONDS
from glasspoint.coherence.audit import differences
from glasspoint.coherence.standing import standing_of
from glasspoint.console import plain
from glasspoint.errors import GlasspointError, L1Error, NotFoundError
from glasspoint.l2.identity import NoIdentityError
from glasspoint.l2.store import Store
from glasspoint.model import traceparent
from glasspoint.model.codec import version_text, versions_of
from glasspoint.model.scope import Scope, is_ordered_id, time_of_id, validate_thread_id
from glasspoint.model.threads import choose_threads
from glasspoint.redis.faults import remedy
from glasspoint.redis.signature import secret_of
from glasspoint.telemetry import create_telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from glasspoint.l2.contents import Namespace, Outline
    from glasspoint.model.codec import Encoded, StoredCheckpoint

    Facts: TypeAlias = dict[str, Any]

__all__ = ["Browser"]

_JOURNAL_ROWS = 1000

# How often L2 and L1 are read at most, if a write comes between the two reads of L2.
_LOOKS = 3

_NO_IDENTITY = {
    "tables": "Glasspoint's tables are not in this database: glasspoint setup makes them",
    "privilege": "this role may not read Glasspoint's tables: ask with the service's role",
    "standby": "this PostgreSQL is a standby: ask the primary",
    "row_security": "row-level security applies to this role: ask with the service's role",
}

_EDGE = "branch:to:"
_SOURCES = {"input", "loop", "update", "fork"}
_JSON_TYPES = {str: "text", bool: "true/false", int: "number", float: "number", type(None): "null"}


class Browser:
    """Reads one deployment. Each method returns data that JSON can hold."""

    def __init__(
        self, store: Store, redis_url: str, options: Mapping[str, Any], *, key_prefix: str, content: bool
    ) -> None:
        self._store = store
        self._redis_url = redis_url
        self._options = options
        self._key_prefix = key_prefix
        signing_key: str | None = options.get("l1_signing_key")
        self._signing_key = secret_of(signing_key) if signing_key else None
        self._content = content
        self._serde = AsyncPostgresSaver.serde

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        postgres_url: str,
        redis_url: str = "",
        *,
        key_prefix: str = "glasspoint",
        options: Mapping[str, Any],
        content: bool = False,
    ) -> AsyncIterator[Browser]:
        """Connect to PostgreSQL. `show` connects to Redis when it needs it.

        Args:
            postgres_url, redis_url: The servers; Redis may be empty.
            key_prefix: The beginning of the service's keys in Redis.
            options: The options of the service's saver: see `savers.options.access_options`.
            content: Whether to return values and metadata, too.

        Raises:
            ConfigurationError, L2UnavailableError: PostgreSQL cannot be reached.
        """
        async with connected(postgres_url, options) as conn:
            store = Store(
                AsyncPostgresSaver(conn),
                create_telemetry(registry=CollectorRegistry()),
                cache=key_prefix,
            )
            yield cls(store, redis_url, options, key_prefix=key_prefix, content=content)

    async def threads(self, *, filter: dict[str, Any], limit: int, before: str | None) -> list[Facts]:
        """Return the threads, by their newest checkpoints, newest first."""
        named: Any = {"configurable": {"checkpoint_id": before}} if before else None
        found = await self._store.list_threads(
            choose_threads(filter=filter or None, limit=limit, before=named)
        )
        return [
            {
                "thread_id": each.thread_id,
                "checkpoint_id": each.checkpoint_id,
                "created_at": each.created_at and each.created_at.isoformat(timespec="seconds"),
                **_step(each.metadata),
                **({"metadata": each.metadata} if self._content else {}),
            }
            for each in found
        ]

    async def history(self, thread_id: str, *, namespace: str, limit: int) -> Facts:
        """Return the checkpoints of a namespace, branch by branch; the branch of the newest comes first.

        Raises:
            NotFoundError: There is no such thread, or no such namespace in it.
        """
        namespaces = await self._namespaces(thread_id)
        scope = Scope(thread_id, namespace)
        here = next((each for each in namespaces if each.name == namespace), None)
        if here is None:
            known = ", ".join(repr(each.name) for each in namespaces)
            raise NotFoundError(
                f"The thread {_quoted(thread_id)} has no checkpoint in the namespace {_quoted(namespace)}; "
                f"it has some in: {plain(known)}."
            )
        outlines = await self._store.outlines_of(scope, limit=limit)
        branches = _branches(outlines)
        return {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "checkpoints": here.checkpoints,
            "shown": len(outlines),
            "branches": [
                {
                    "goes_on_from": older,
                    "checkpoints": [self._outline(each) for each in branch],
                }
                for branch, older in branches
            ],
            "namespaces": [_namespace(each) for each in namespaces],
        }

    async def show(self, thread_id: str, checkpoint_id: str | None, *, namespace: str) -> Facts:
        """Return the contents of a checkpoint, and the entry of its scope in L1.

        Raises:
            NotFoundError: There is no such thread or checkpoint.
        """
        namespaces = await self._namespaces(thread_id)
        scope = Scope(thread_id, namespace)
        stored = await self._checkpoint(scope, checkpoint_id)
        newest = next(each.newest for each in namespaces if each.name == namespace)
        documents = stored.document
        return {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            **self._about(stored),
            "parent_id": stored.parent_id,
            "is_newest": stored.checkpoint_id == newest,
            "newest": newest,
            "format": documents.get("v"),
            "bytes": stored.size,
            "next": _next_nodes(stored),
            "interrupts": sum(write.channel == INTERRUPT for write in stored.writes),
            "errors": sum(write.channel == ERROR for write in stored.writes),
            "channels": [self._channel(stored, channel) for channel in _channels(stored)],
            "pending_writes": [
                {
                    "task_id": write.task_id,
                    "idx": write.idx,
                    "node": _node_of(write.task_path),
                    "task_path": write.task_path,
                    "channel": write.channel,
                    "type": write.value.type,
                    "bytes": len(write.value.data),
                    **self._value(write.value),
                }
                for write in stored.writes
            ],
            **({"metadata": traceparent.without(stored.metadata)} if self._content else {}),
            "namespaces": [_namespace(each) for each in namespaces],
            "l1": await self._l1(scope, stored.checkpoint_id),
        }

    async def diff(self, thread_id: str, one_id: str, other_id: str, *, namespace: str) -> Facts:
        """Compare two checkpoints, channel by channel.

        Raises:
            NotFoundError: There is no such thread or checkpoint.
        """
        await self._namespaces(thread_id)
        scope = Scope(thread_id, namespace)
        one, other = [await self._checkpoint(scope, each) for each in (one_id, other_id)]
        changes, unchanged = [], []
        for channel in sorted({*_channels(one), *_channels(other)}):
            a, b = [self._channel(each, channel) for each in (one, other)]
            if (change := _change(one, other, channel)) is None:
                unchanged.append(channel)
                continue
            changes.append(
                {
                    "channel": channel,
                    "change": change,
                    "a": None if change == "added" else a,
                    "b": None if change == "removed" else b,
                }
            )
        parents = await self._store.parents_of(scope)
        return {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "a": {**self._about(one), "pending_writes": len(one.writes), "bytes": one.size},
            "b": {**self._about(other), "pending_writes": len(other.writes), "bytes": other.size},
            "relation": _relation(parents, one.checkpoint_id, other.checkpoint_id),
            "channels": changes,
            "unchanged": unchanged,
        }

    # ---------------------------------------------------------------- helpers

    async def _namespaces(self, thread_id: str) -> list[Namespace]:
        validate_thread_id(thread_id)
        found = await self._store.namespaces_of(thread_id)
        if not found:
            raise NotFoundError(
                f"There is no thread {_quoted(thread_id)} in this database: glasspoint threads lists them."
            )
        return found

    async def _checkpoint(self, scope: Scope, checkpoint_id: str | None) -> StoredCheckpoint:
        if checkpoint_id is not None and "\0" in checkpoint_id:
            raise NotFoundError("A checkpoint's id holds no NUL character.")
        stored = await self._store.select(scope, checkpoint_id)
        if stored is None:
            place = f", namespace {_quoted(scope.checkpoint_ns)}," if scope.checkpoint_ns else ""
            which = "" if checkpoint_id is None else f" {_quoted(checkpoint_id)}"
            raise NotFoundError(
                f"The thread {_quoted(scope.thread_id)}{place} has no checkpoint{which}: glasspoint history "
                "lists them."
            )
        return stored

    def _about(self, stored: StoredCheckpoint) -> Facts:
        return {
            "checkpoint_id": stored.checkpoint_id,
            "created_at": _created_at(stored.checkpoint_id, stored.document.get("ts")),
            **_step(stored.metadata),
        }

    def _outline(self, outline: Outline) -> Facts:
        return {
            "checkpoint_id": outline.checkpoint_id,
            "parent_id": outline.parent_id,
            "created_at": _created_at(outline.checkpoint_id, outline.ts),
            **_step(outline.metadata),
            "bytes": outline.document_bytes + outline.value_bytes + outline.write_bytes,
            "pending_writes": outline.writes,
            "interrupts": outline.interrupts,
            "errors": outline.errors,
            **({"metadata": traceparent.without(outline.metadata)} if self._content else {}),
        }

    def _channel(self, stored: StoredCheckpoint, channel: str) -> Facts:
        version = versions_of(stored.document).get(channel)
        inline = stored.document.get("channel_values") or {}
        facts: Facts = {"channel": channel, "version": None if version is None else version_text(version)}
        if channel in stored.values:
            _, value = stored.values[channel]
            kept = "snapshot" if inline.get(channel) is True else "value"
            return {
                **facts,
                "kept": kept,
                "type": value.type,
                "bytes": len(value.data),
                **self._value(value),
            }
        if channel in inline:
            small = inline[channel]
            size = len(json.dumps(small, ensure_ascii=False).encode())
            type_ = _JSON_TYPES.get(type(small), "json")
            content = {"value": small} if self._content else {}
            return {**facts, "kept": "inline", "type": type_, "bytes": size, **content}
        return {**facts, "kept": "nothing", "type": None, "bytes": 0}

    def _value(self, value: Encoded) -> Facts:
        if not self._content:
            return {}
        try:
            return {"value": _jsonable(self._serde.loads_typed(value))}
        except Exception as exc:  # a value's class may raise anything; or the value is encrypted
            return {"value": None, "unreadable": type(exc).__name__}

    async def _l1(self, scope: Scope, checkpoint_id: str) -> Facts:
        """Return the entry of a scope in Redis, and whether it agrees with PostgreSQL.

        `agrees` is `None` if there is nothing to compare.
        """
        if not self._redis_url:
            return {
                "result": "not configured",
                "agrees": None,
                "detail": "set REDIS_URL, or pass --redis-url",
            }
        if not scope.is_cached:
            return {"result": "not cached", "agrees": None, "detail": "a run's subgraph is not cached"}
        try:
            async with opened_redis(self._redis_url, self._options, timeout_seconds=REDIS_SECONDS) as redis:
                async with asyncio.timeout(2 * REDIS_SECONDS):
                    for _ in range(_LOOKS):
                        before = await self._store.select(scope, None)
                        look = await self._store.identities.look(limit=_JOURNAL_ROWS)
                        standing = await standing_of(
                            redis,
                            look,
                            scope,
                            key_prefix=self._key_prefix,
                            signing_key=self._signing_key,
                        )
                        newest = await self._store.select(scope, None)
                        if before is not None and not differences(before, newest):
                            break
        except NoIdentityError as exc:
            return {"result": "no cache", "agrees": None, "detail": _NO_IDENTITY[exc.reason]}
        except (RedisError, OSError, TimeoutError, L1Error) as exc:
            detail = str(exc) if isinstance(exc, GlasspointError) else remedy(exc) or type(exc).__name__
            return {"result": "unavailable", "agrees": None, "detail": detail}
        facts: Facts = {
            "result": standing.kind,
            "agrees": None,
            "detail": standing.why,
            "bytes": standing.bytes,
            "expires_in_seconds": standing.ttl_seconds and round(standing.ttl_seconds),
            "journalled": any(row.scope == scope for row in look.rows),
            **({"shard": standing.shard} if standing.shard is not None else {}),
        }
        image = standing.image
        if image is None:
            return facts
        different = differences(image, newest)
        return {
            **facts,
            "result": "hit" if image.checkpoint_id == checkpoint_id else "another checkpoint",
            "checkpoint_id": image.checkpoint_id,
            "agrees": not different,
            "differs_in": different,
        }


def _quoted(text: str) -> str:
    return f"'{plain(text)}'"


def _namespace(namespace: Namespace) -> Facts:
    return {
        "checkpoint_ns": namespace.name,
        "checkpoints": namespace.checkpoints,
        "newest": namespace.newest,
    }


def _step(metadata: Mapping[str, Any]) -> Facts:
    """Return LangGraph's step and source from metadata, but no value that an application has put there."""
    step, source = metadata.get("step"), metadata.get("source")
    return {
        "step": step if type(step) is int else None,
        "source": source if isinstance(source, str) and source in _SOURCES else None,
    }


def _created_at(checkpoint_id: str, ts: object) -> str | None:
    """Return the time at which a checkpoint was made, in UTC: from its id, else from its own `ts`."""
    if is_ordered_id(checkpoint_id) and checkpoint_id[14] == "6":
        return time_of_id(checkpoint_id).isoformat(timespec="milliseconds")
    try:
        said = datetime.fromisoformat(str(ts))
    except ValueError:
        return None
    return said.astimezone(UTC).isoformat(timespec="milliseconds") if said.tzinfo else None


def _branches(outlines: list[Outline]) -> list[tuple[list[Outline], str | None]]:
    """Sort checkpoints into branches, each newest first, with the checkpoint that the branch starts from.

    The first branch is the one that a run continues: the newest checkpoint, and its ancestors.
    """
    by_id = {each.checkpoint_id: each for each in outlines}
    seen: set[str] = set()
    branches = []
    for tip in outlines:  # newest first
        branch: list[Outline] = []
        at: str | None = tip.checkpoint_id
        while at is not None and at in by_id and at not in seen:
            seen.add(at)
            branch.append(by_id[at])
            at = by_id[at].parent_id
        if branch:
            branches.append((branch, at))
    return branches


def _channels(stored: StoredCheckpoint) -> list[str]:
    inline = stored.document.get("channel_values") or {}
    return sorted({*versions_of(stored.document), *inline})


def _change(one: StoredCheckpoint, other: StoredCheckpoint, channel: str) -> str | None:
    """Return how a channel has changed from one checkpoint to the other; `None` if it has not."""
    states = []
    for stored in (one, other):
        inline = stored.document.get("channel_values") or {}
        value = stored.values[channel][1] if channel in stored.values else None
        small = (json.dumps(inline[channel]),) if channel in inline else None
        states.append((versions_of(stored.document).get(channel), value, small))
    (a_version, *a), (b_version, *b) = states
    if a_version == b_version and a == b:
        return None
    if a_version is None and a == [None, None]:
        return "added"
    if b_version is None and b == [None, None]:
        return "removed"
    if a == b:
        return "written, the same value" if a != [None, None] else "written, no value"
    if a == [None, None]:
        return "set"
    return "emptied" if b == [None, None] else "changed"


def _next_nodes(stored: StoredCheckpoint) -> list[str]:
    """Return the nodes that a run would continue with, as far as the checkpoint shows without its graph.

    These are the nodes that an edge has triggered, and that have not processed the trigger yet. All tasks
    that were sent count as one node.
    """
    versions, inline = versions_of(stored.document), stored.document.get("channel_values") or {}
    seen = stored.document.get("versions_seen") or {}
    found = []
    for channel, version in versions.items():
        node = channel.removeprefix(_EDGE) if channel.startswith(_EDGE) else channel
        if channel not in stored.values and channel not in inline:
            continue
        if channel == TASKS:
            value = stored.values.get(channel)
            if value is not None and len(value[1].data) > 1:  # one byte is an empty list
                found.append("(tasks that were sent)")
        elif channel.startswith(_EDGE) or channel == "__start__":
            last_seen = (seen.get(node) or {}).get(channel)
            if last_seen is None or str(last_seen) < str(version):
                found.append(node)
    return sorted(found)


def _node_of(task_path: str) -> str | None:
    """Return the node of a task from its path: `~__pregel_pull, node`."""
    kind, _, rest = task_path.partition(", ")
    return rest if kind == "~__pregel_pull" and rest else None


def _relation(parents: Mapping[str, str | None], one: str, other: str) -> Facts:
    """Return the relation of two checkpoints: the same, one after the other, two branches, or none."""
    if one == other:
        return {"kind": "same", "steps": 0, "common": one}
    of_one, of_other = list(_line(parents, one)), list(_line(parents, other))
    if one in of_other:
        return {"kind": "b goes on from a", "steps": of_other.index(one), "common": one}
    if other in of_one:
        return {"kind": "a goes on from b", "steps": of_one.index(other), "common": other}
    common = next((each for each in of_other if each in set(of_one)), None)
    return {"kind": "unrelated" if common is None else "branches", "steps": None, "common": common}


def _line(parents: Mapping[str, str | None], checkpoint_id: str) -> Iterable[str]:
    seen: set[str] = set()
    at: str | None = checkpoint_id
    while at is not None and at not in seen:
        seen.add(at)
        yield at
        at = parents.get(at)


def _jsonable(value: Any) -> Any:
    """Return a value in a form that JSON can hold; other values as their `repr`."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else repr(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, BaseModel):
        return {"type": type(value).__name__, **{name: _jsonable(each) for name, each in value}}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _jsonable(getattr(value, each.name, None)) for each in fields(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(each) for each in value]
    return repr(value)
