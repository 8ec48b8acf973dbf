"""The history: what the steps read and write, in the terms of `codec`; nothing is (de)serialised here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glasspoint.codec import PendingWrites, StoredCheckpoint
from glasspoint.history import records
from glasspoint.history.interface import Ancestor, Found, Position
from glasspoint.history.steps import AGAIN, EXISTS
from glasspoint.scope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from glasspoint.codec import EncodedPut, EncodedWrite
    from glasspoint.history.interface import Adopted, Outline, Removal
    from glasspoint.history.keys import Keyspace
    from glasspoint.history.steps import Steps

__all__ = ["RedisHistory"]

# How much one script may look at, so that Redis answers others in between.
_IDS_A_PAGE = 1000
_OUTLINES_A_PAGE = 200
_LOADED_AT_ONCE = 100
_BYTES_AT_ONCE = 2**20
_ANCESTORS_AT_ONCE = 256
_STRAYS_AT_ONCE = 500

# A copy that nobody finishes is gone after this long.
_COPY_TTL_SECONDS = 600


class RedisHistory:
    """All threads of one `Keyspace`."""

    def __init__(self, steps: Steps, keyspace: Keyspace, *, ttl_seconds: float | None) -> None:
        """Args:
        ttl_seconds: How long a thread lives after its last use; `None` for ever.
        """
        self._steps = steps
        self._keyspace = keyspace
        self._ttl = 0 if ttl_seconds is None else max(1, int(ttl_seconds * 1000))

    # ---------------------------------------------------------------- writing

    async def put(self, scope: Scope, put: EncodedPut) -> None:
        """Store a checkpoint and its new values."""
        checkpoint = records.checkpoint_arguments(
            scope.checkpoint_ns, put.checkpoint_id, put.parent_id, put.document_json, put.metadata_json
        )
        await self._run("put", scope, *checkpoint, *records.value_arguments(put.blobs))

    async def put_writes(
        self, scope: Scope, checkpoint_id: str, writes: Sequence[EncodedWrite], *, replaces: bool
    ) -> None:
        """Store pending writes, instead of those that are there or only where there are none."""
        name = records.member(scope.checkpoint_ns, checkpoint_id)
        await self._run("put_writes", scope, name, _flag(replaces), *records.write_arguments(writes))

    async def add(self, item: StoredCheckpoint | PendingWrites) -> bool:
        """Store what another store exported; what is here already stays, but for the special writes.

        Returns:
            Whether it was a checkpoint that was not here.
        """
        scope = item.scope
        if isinstance(item, PendingWrites):
            name = records.member(scope.checkpoint_ns, item.checkpoint_id)
            for special in (False, True):
                some = records.write_arguments(w for w in item.writes if (w.idx < 0) == special)
                if some:
                    await self._run("put_writes", scope, name, _flag(special), *some)
            return False
        writes = records.write_arguments(item.writes)
        checkpoint = records.checkpoint_arguments(
            scope.checkpoint_ns,
            item.checkpoint_id,
            item.parent_id,
            item.document_json or json.dumps(item.document),
            item.metadata_json or json.dumps(item.metadata),
        )
        values = records.value_arguments(item.values)
        return bool((await self._run("import", scope, *checkpoint, len(item.values), *values, *writes))[0])

    async def delete_thread(self, thread_id: str) -> None:
        """Forget a thread."""
        keys = self._keyspace.of_thread(thread_id)
        await self._steps.run("delete_thread", Scope(thread_id, ""), keys)

    async def remove(self, thread_id: str, removals: Sequence[Removal], revision: str) -> bool:
        """Take checkpoints out.

        Args:
            revision: What the decision was made on; `""` if it holds for any.

        Returns:
            Whether it was done; if not, the thread is of another revision.
        """
        arguments: list[str | int] = []
        for removal in removals:
            arguments += [removal.namespace, _flag(removal.whole)]
            arguments += [len(removal.checkpoint_ids), *removal.checkpoint_ids]
            arguments += [len(removal.orphans), *removal.orphans]
        return await self._run("remove", Scope(thread_id, ""), revision, *arguments) != [AGAIN]

    def beside(self, token: str) -> RedisHistory:
        """Return where a thread's copy is built, unseen; what nobody adopts expires."""
        steps, keyspace = self._steps, self._keyspace
        return RedisHistory(steps, replace(keyspace, copy=token), ttl_seconds=_COPY_TTL_SECONDS)

    async def adopt(self, thread_id: str, token: str, checkpoints: int, writes: int) -> Adopted:
        """Make what was built beside a thread this thread, if it is all there."""
        beside = self.beside(token)._keyspace.of_thread(thread_id)
        keys = [*self._keyspace.of_thread(thread_id), *beside[:6]]
        scope = Scope(thread_id, "")
        answer = await self._steps.run("adopt", scope, keys, self._ttl, token, checkpoints, writes)
        return "exists" if answer == [EXISTS] else "incomplete" if answer == [AGAIN] else "adopted"

    # ---------------------------------------------------------------- reading

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Found | None:
        """Return a checkpoint, the newest if no id is given."""
        answer = await self._run("read", scope, scope.checkpoint_ns, checkpoint_id or "")
        return Found(*records.to_stored(scope.thread_id, answer[0])) if answer and answer[0] else None

    async def removals(self, thread_id: str) -> bytes:
        """Return what is another value each time that checkpoints were removed from a thread."""
        removals: bytes = (await self._run("namespaces", Scope(thread_id, ""), ""))[0]
        return removals

    async def namespaces(self, thread_id: str, *, sealed_too: bool = False) -> list[str]:
        """Return the namespaces in which a thread has checkpoints."""
        _, *names = await self._run("namespaces", Scope(thread_id, ""), _flag(sealed_too))
        return [name.decode() for name in names]

    async def positions(self, scope: Scope, *, before: str | None) -> AsyncGenerator[list[Position], None]:
        """Return where a scope's checkpoints stand, newest first, in pages."""
        namespace = scope.checkpoint_ns
        upper = f"({namespace}\0{before}" if before is not None else f"({namespace}\1"
        async for page in self._pages(scope, "down", f"[{namespace}\0", upper, sealed_too=False):
            yield page

    async def metadata(self, positions: Sequence[Position]) -> list[dict[str, Any] | None]:
        """Return the metadata of some checkpoints of one thread, `None` for one that is gone."""
        names = [records.member(each.scope.checkpoint_ns, each.checkpoint_id) for each in positions]
        found = await self._run("metadata", positions[0].scope, *names)
        return [json.loads(each) if each else None for each in found]

    async def load(
        self, positions: Sequence[Position], *, sealed_too: bool = False
    ) -> AsyncGenerator[Found, None]:
        """Return some checkpoints of one thread, in this order, without those that are gone."""
        names = [records.member(each.scope.checkpoint_ns, each.checkpoint_id) for each in positions]
        while names:
            scope, some = positions[0].scope, names[:_LOADED_AT_ONCE]
            done, *found = await self._run("load", scope, _flag(sealed_too), _BYTES_AT_ONCE, *some)
            for record in found:
                yield Found(*records.to_stored(scope.thread_id, record))
            names = names[done:]

    async def ancestors(
        self, scope: Scope, checkpoint_id: str | None, channels: Sequence[str]
    ) -> AsyncGenerator[Ancestor, None]:
        """Walk up from a checkpoint (the newest if no id is given) until each channel has a value."""
        wanted, start, itself, seen = set(channels), checkpoint_id or "", "", {checkpoint_id}
        while wanted:
            raw, *found = await self._run(
                "ancestors", scope, scope.checkpoint_ns, start, itself, _ANCESTORS_AT_ONCE, *sorted(wanted)
            )
            for id_, writes, *values in found:
                each = Ancestor(
                    id_.decode(),
                    records.to_writes(writes),
                    {channel.decode(): (kind.decode(), value) for channel, kind, value in values},
                )
                if each.checkpoint_id in seen:  # its own ancestor: nothing new from here on
                    return
                yield each
                seen.add(each.checkpoint_id)
                wanted -= each.values.keys()
            start, itself = raw.decode(), "1"
            if not start:
                return

    async def outline(self, thread_id: str) -> tuple[str, list[Outline]]:
        """Return what has to be known of all checkpoints to prune, and the revision that it began with."""
        revision, outlines, start = None, [], b"-"
        while start:
            raw, start, *found = await self._run("outline", Scope(thread_id, ""), start, _OUTLINES_A_PAGE)
            revision = raw.decode() if revision is None else revision
            outlines += [records.to_outline(each) for each in found]
        return revision or "", outlines

    async def may_hold(self, thread_id: str, run_ids: Sequence[str]) -> bool:
        """Tell whether a thread may have checkpoints of one of these runs; a `False` is certain."""
        return bool((await self._run("runs", Scope(thread_id, ""), *run_ids))[0])

    async def thread_ids(self) -> AsyncGenerator[str, None]:
        """Return every thread that has data here, each once."""
        seen: set[str] = set()
        async for keys in self._steps.scan(self._keyspace.pattern):
            for key in keys:
                thread_id = self._keyspace.thread_of(key)
                if thread_id is not None and thread_id not in seen:
                    seen.add(thread_id)
                    yield thread_id

    # ---------------------------------------------------------------- draining

    async def seal(self, thread_id: str, lease_ms: int, token: str, *, renew: bool) -> bool:
        """Keep everybody else from a thread, or go on doing so."""
        answer = await self._run("seal", Scope(thread_id, ""), lease_ms, token, _flag(renew))
        return bool(answer[0])

    async def export(
        self, thread_id: str, *, sealed_too: bool
    ) -> AsyncGenerator[StoredCheckpoint | PendingWrites, None]:
        """Return all of a thread: its checkpoints, oldest first in each namespace, then the other writes."""
        for namespace in await self.namespaces(thread_id, sealed_too=sealed_too):
            scope = Scope(thread_id, namespace)
            bounds = (f"[{namespace}\0", f"({namespace}\1")
            async for page in self._pages(scope, "up", *bounds, sealed_too=sealed_too):
                async for found in self.load(page, sealed_too=sealed_too):
                    yield found.stored
        start = b"-"
        while start:
            start, *found_writes = await self._run(
                "strays", Scope(thread_id, ""), _flag(sealed_too), start, _STRAYS_AT_ONCE
            )
            for name, writes in found_writes:
                namespace, checkpoint_id = records.split_member(name)
                yield PendingWrites(Scope(thread_id, namespace), checkpoint_id, records.to_writes(writes))

    async def retire(self, thread_id: str, token: str, marker_ms: int, moved_to: str | None) -> bool:
        """Forget a sealed thread, and say for a while that it has moved."""
        keys = self._keyspace.of_thread(thread_id)
        arguments = (token, marker_ms, moved_to or "")
        return bool((await self._steps.run("retire", Scope(thread_id, ""), keys, *arguments))[0])

    # ---------------------------------------------------------------- helpers

    async def _run(self, step: str, scope: Scope, *args: bytes | str | int) -> list[Any]:
        keys = self._keyspace.of_thread(scope.thread_id)
        return await self._steps.run(step, scope, keys, self._ttl, *args)

    async def _pages(
        self, scope: Scope, order: str, lower: str, upper: str, *, sealed_too: bool
    ) -> AsyncGenerator[list[Position], None]:
        while True:
            answer = await self._run("page", scope, _flag(sealed_too), order, lower, upper, _IDS_A_PAGE)
            names = [records.split_member(each) for each in answer]
            if names:
                yield [Position(Scope(scope.thread_id, ns), checkpoint_id) for ns, checkpoint_id in names]
            if len(names) < _IDS_A_PAGE:
                return
            if order == "up":
                lower = f"({answer[-1].decode()}"
            else:
                upper = f"({answer[-1].decode()}"


def _flag(flag: bool) -> str:
    return "1" if flag else ""
