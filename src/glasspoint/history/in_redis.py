"""A history in Redis, for `RedisSaver`: makes scripts' arguments of checkpoints, and checkpoints of results.

Values are neither serialised nor deserialised here. Signed fields are verified before anything else is done
with them. If the list of a target's threads names a thread, and Redis has nothing of it, the thread is
damaged: see `threads` in `scripts/prelude.lua`.
"""

from __future__ import annotations

import asyncio
import copy
import json
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from glasspoint.errors import (
    DeltaChainError,
    RedisRefusedError,
    RedisUnavailableError,
    ThreadDamagedError,
    ThreadInUseError,
    ThreadTamperedError,
)
from glasspoint.history import records
from glasspoint.history.acknowledged import Acknowledged
from glasspoint.history.interface import HEARD_SECONDS, Found, Held, Holding, Position
from glasspoint.history.signing import Fields, SignedFields, tampered
from glasspoint.history.steps import AGAIN, EXISTS
from glasspoint.logs import Throttle, get_logger
from glasspoint.model.codec import PendingWrites, StoredCheckpoint
from glasspoint.model.scope import Scope
from glasspoint.telemetry.background import for_each
from glasspoint.telemetry.events import Invalidated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from glasspoint.history.interface import Adopted, Ancestor, Outline, Removal
    from glasspoint.history.keys import Keyspace
    from glasspoint.history.steps import Steps
    from glasspoint.model.codec import EncodedPut, EncodedWrite
    from glasspoint.model.generics import ResultT
    from glasspoint.redis.signature import Signer
    from glasspoint.telemetry.events import Telemetry

__all__ = ["RedisHistory"]

_log = get_logger("glasspoint")

# How much one script may look at, so that Redis serves other callers in between.
_IDS_A_PAGE = 1000
_OUTLINES_A_PAGE = 200
_LOADED_AT_ONCE = 100
_BYTES_AT_ONCE = 2**20
_ANCESTORS_AT_ONCE = 256
_STRAYS_AT_ONCE = 500
_COUNTED_AT_ONCE = 1000

# The member of a list of threads that says whether the list is complete, and its scores: see `prelude.lua`.
_COMPLETE = "!complete"
_SEARCHED, _IS_COMPLETE = -1, 0

# Stands for any id of a newest checkpoint, in `import.lua`: no text holds a NUL.
_ANY = "\0"

# How many lists of threads are asked at once.
_LISTS_AT_ONCE = 8

_LIST_LOST = (
    "Redis has lost the list of the threads that it must hold: it was evicted, flushed, or not there after a "
    "restart."
)
_LISTS_LOST = (
    "Redis has lost {lost} of the {all} lists of the threads that it must hold: they were evicted, flushed, "
    "or not there after a restart of their master."
)
_DO = "Give Redis the maxmemory-policy noeviction and appendonly yes, and start this process again."

# The time to live of a copy that is never finished.
_COPY_TTL_SECONDS = 600


class RedisHistory:
    """All threads of one `Keyspace`."""

    def __init__(
        self,
        steps: Steps,
        keyspace: Keyspace,
        telemetry: Telemetry,
        *,
        ttl_seconds: float | None,
        signer: Signer | None = None,
    ) -> None:
        """Take the Redis and the keys.

        Args:
            steps: Runs the scripts.
            keyspace: Names the keys.
            telemetry: Receives an event for each field that was refused.
            ttl_seconds: How long a thread lives after its last use; `None`: for ever.
            signer: Signs and verifies what is stored. `None`: nothing is signed, and everything is trusted.
        """
        self._steps = steps
        self._keyspace = keyspace
        self._telemetry = telemetry
        self._ttl: int | str = 0 if ttl_seconds is None else max(1, int(ttl_seconds * 1000))
        self._signer = signer
        self._tampered_lines = Throttle()
        self._made: dict[str, bytes] = {}  # list of threads -> when it was made, if that is known
        self._stored_in: set[str] = set()  # the lists that name threads which were stored here
        self._lost: set[str] = set()  # the lists in whose place Redis has another one now, or none
        self.acknowledged = Acknowledged()
        """What was stored lately."""

    async def meet(self) -> None:
        """Remember which lists of a target's threads Redis has, in order to notice when it has others."""
        await self._of_each_list(self._meet)

    async def _meet(self, registry: str) -> None:
        if self._keyspace.target and not self._made.get(registry):
            self._made[registry] = (await self._steps.run("threads", None, [registry]))[0]

    @property
    def lists_made(self) -> dict[str, bytes]:
        """The lists of threads in which this history has stored something -> when they were made."""
        return {registry: self._made.get(registry, b"") for registry in self._stored_in}

    def expect_lists(self, made: Mapping[str, bytes]) -> None:
        """Expect the lists that another history of this process has seen: see `look_at_lists`."""
        self._made |= {registry: when for registry, when in made.items() if when}

    @property
    def has_lost_lists(self) -> bool:
        """Whether Redis has another list of threads now than before, or none."""
        return bool(self._lost)

    def may_be_lost(self, thread_id: str) -> bool:
        """Tell whether the list that must name a thread is lost, so that the thread may be lost, too."""
        return bool(self._lost) and self._keyspace.registry_of(thread_id) in self._lost

    @property
    def lists(self) -> Sequence[str]:
        """The names of the lists of a target's threads; without a target, none."""
        return self._keyspace.registries if self._keyspace.target else []

    def list_of(self, thread_id: str) -> str:
        """Return the name of the list that names a thread."""
        return self._keyspace.registry_of(thread_id)

    async def ping(self) -> None:
        """Check that Redis responds; in a cluster, that each list of a target has a master that responds.

        Raises:
            RedisUnavailableError, RedisRefusedError: See these classes.
        """
        await self._steps.ping()
        registries = self.lists
        if len(registries) > 1:
            await self._steps.members_in(registries)

    # ---------------------------------------------------------------- writing

    async def put(self, scope: Scope, put: EncodedPut) -> None:
        """Store a checkpoint and its new values."""
        fields, namespace = self._fields(scope.thread_id), scope.checkpoint_ns
        checkpoint = records.checkpoint_arguments(
            fields, namespace, put.checkpoint_id, put.parent_id, put.document_json, put.metadata_json
        )
        values = records.value_arguments(fields, namespace, put.blobs)
        listed, *_ = await self._run("put", scope, *checkpoint, *values)
        self.acknowledged.checkpoint(scope, put.checkpoint_id)
        await self._heard(listed, scope)

    async def put_writes(
        self, scope: Scope, checkpoint_id: str, writes: Sequence[EncodedWrite], *, replaces: bool
    ) -> None:
        """Store pending writes. With `replaces`, they replace those of the same name; else, those stay."""
        namespace = scope.checkpoint_ns
        some = records.write_arguments(self._fields(scope.thread_id), namespace, checkpoint_id, writes)
        name = records.member(namespace, checkpoint_id)
        listed, *_ = await self._run("put_writes", scope, name, records.flag(replaces), *some)
        self.acknowledged.writes(scope, checkpoint_id, writes)
        await self._heard(listed, scope)

    async def add(self, item: StoredCheckpoint | PendingWrites, *, newest: str | None = None) -> bool:
        """Store an item from another store: see `History.add`."""
        scope, namespace, checkpoint_id = item.scope, item.scope.checkpoint_ns, item.checkpoint_id
        fields = self._fields(scope.thread_id)
        if isinstance(item, PendingWrites):
            name = records.member(namespace, checkpoint_id)
            for special in (False, True):
                of_kind = [write for write in item.writes if (write.idx < 0) == special]
                some = records.write_arguments(fields, namespace, checkpoint_id, of_kind)
                if some:
                    listed, *_ = await self._run("put_writes", scope, name, records.flag(special), *some)
                    await self._heard(listed, scope)
            return False
        writes = records.write_arguments(fields, namespace, checkpoint_id, item.writes)
        checkpoint = records.checkpoint_arguments(
            fields,
            namespace,
            checkpoint_id,
            item.parent_id,
            item.document_json or json.dumps(item.document),
            item.metadata_json or json.dumps(item.metadata),
        )
        values = records.value_arguments(fields, namespace, item.values)
        expected = _ANY if newest is None else newest
        result = await self._run("import", scope, *checkpoint, expected, len(item.values), *values, *writes)
        if result == [AGAIN]:
            raise ThreadInUseError("Something else was stored in this thread meanwhile.")
        listed, new = result
        self.acknowledged.checkpoint(scope, checkpoint_id)
        await self._heard(listed, scope)
        return bool(new)

    async def delete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        keys = self._keyspace.of_thread(thread_id)
        self.acknowledged.forget(thread_id)
        await self._steps.run("delete_thread", Scope(thread_id, ""), keys)

    async def remove(self, thread_id: str, removals: Sequence[Removal], revision: str) -> bool:
        """Remove checkpoints.

        Args:
            revision: The revision that the decision was made on; `""`: it is right for any.

        Returns:
            Whether it was done. If not, the thread has another revision now.
        """
        self.acknowledged.forget(thread_id)
        arguments: list[str | int] = []
        for removal in removals:
            arguments += [removal.namespace, records.flag(removal.whole)]
            arguments += [len(removal.checkpoint_ids), *removal.checkpoint_ids]
            arguments += [len(removal.orphans), *removal.orphans]
        return await self._run("remove", Scope(thread_id, ""), revision, *arguments) != [AGAIN]

    def beside(self, token: str) -> RedisHistory:
        """Return a place where a copy is built, which no other caller sees. Not adopted, it expires."""
        return RedisHistory(
            self._steps,
            replace(self._keyspace, copy=token),
            self._telemetry,
            ttl_seconds=_COPY_TTL_SECONDS,
            signer=self._signer,
        )

    async def adopt(self, thread_id: str, token: str, checkpoints: int, writes: int) -> Adopted:
        """Make the copy that was built under a token the thread, if it is complete."""
        *own, registry = self._keyspace.of_thread(thread_id)
        beside = replace(self._keyspace, copy=token).parts_of_thread(thread_id)
        keys = [*own, *beside[:6], registry]
        scope = Scope(thread_id, "")
        result = await self._steps.run("adopt", scope, keys, self._ttl, token, checkpoints, writes)
        if result in ([EXISTS], [AGAIN]):
            return "exists" if result == [EXISTS] else "incomplete"
        _, listed = result
        await self._heard(listed, scope)
        return "adopted"

    # ---------------------------------------------------------------- reading

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Found | None:
        """Return a checkpoint, the newest if no id is given."""
        result = await self._run("read", scope, scope.checkpoint_ns, checkpoint_id or "")
        if not result or not result[0]:
            await self._must_be_empty(scope.thread_id)
            return None
        with self._verifying(scope.thread_id) as fields:
            return Found(*records.to_stored(fields, scope.thread_id, result[0]))

    async def removals(self, thread_id: str) -> bytes:
        """Return a value that changes each time that checkpoints are removed from a thread."""
        removals: bytes = (await self._run("namespaces", Scope(thread_id, ""), ""))[0]
        return removals

    async def has_list(self, thread_id: str) -> bool:
        """Tell whether the list that has to name a thread is there."""
        return bool(await self._steps.members_in([self._keyspace.registry_of(thread_id)]))

    def untouched(self) -> RedisHistory:
        """Return the same history for reading without a change of times to live and of lists of threads."""
        reader = copy.copy(self)
        reader._ttl = ""
        return reader

    async def namespaces(self, thread_id: str, *, sealed_too: bool = False) -> list[str]:
        """Return the namespaces in which a thread has checkpoints."""
        _, *names = await self._run("namespaces", Scope(thread_id, ""), records.flag(sealed_too))
        if not names:
            await self._must_be_empty(thread_id)
        with self._verifying(thread_id):
            return [name.decode() for name in names]

    async def positions(self, scope: Scope, *, before: str | None) -> AsyncGenerator[list[Position], None]:
        """Return the positions of a scope's checkpoints, newest first, in pages."""
        namespace = scope.checkpoint_ns
        upper = f"({namespace}\0{before}" if before is not None else f"({namespace}\1"
        empty = True
        async for page in self._pages(scope, "down", f"[{namespace}\0", upper, sealed_too=False):
            empty = False
            yield page
        if empty:
            await self._must_be_empty(scope.thread_id)

    async def newest(self, scope: Scope) -> str | None:
        """Return the id of a scope's newest checkpoint, `None` if it has none."""
        bounds = (f"[{scope.checkpoint_ns}\0", f"({scope.checkpoint_ns}\1")
        names = await self._run("page", scope, records.flag(False), "down", *bounds, 1)
        if not names:
            await self._must_be_empty(scope.thread_id)
        return records.split_member(names[0])[1] if names else None

    async def oldest(self, scope: Scope) -> Found | None:
        """Return a scope's oldest checkpoint, `None` if it has none."""
        bounds = (f"[{scope.checkpoint_ns}\0", f"({scope.checkpoint_ns}\1")
        names = await self._run("page", scope, records.flag(False), "up", *bounds, 1)
        for namespace, checkpoint_id in map(records.split_member, names):
            async for found in self.load([Position(Scope(scope.thread_id, namespace), checkpoint_id)]):
                return found
        return None

    async def metadata(self, positions: Sequence[Position]) -> list[dict[str, Any] | None]:
        """Return the metadata of some checkpoints of one thread, `None` for one that does not exist."""
        names = [records.member(each.scope.checkpoint_ns, each.checkpoint_id) for each in positions]
        thread_id = positions[0].scope.thread_id
        found = await self._run("metadata", positions[0].scope, *names)
        with self._verifying(thread_id) as fields:
            return [
                records.to_metadata(fields, name, head, metadata)
                for name, head, metadata in zip(names, found[::2], found[1::2], strict=True)
            ]

    async def load(
        self, positions: Sequence[Position], *, sealed_too: bool = False
    ) -> AsyncGenerator[Found, None]:
        """Return some checkpoints of one thread, in this order, without those that do not exist."""
        names = [records.member(each.scope.checkpoint_ns, each.checkpoint_id) for each in positions]
        while names:
            scope, some = positions[0].scope, names[:_LOADED_AT_ONCE]
            done, *found = await self._run("load", scope, records.flag(sealed_too), _BYTES_AT_ONCE, *some)
            for record in found:
                with self._verifying(scope.thread_id) as fields:
                    loaded = Found(*records.to_stored(fields, scope.thread_id, record))
                yield loaded
            names = names[done:]

    async def ancestors(
        self, scope: Scope, checkpoint_id: str | None, channels: Sequence[str]
    ) -> AsyncGenerator[Ancestor, None]:
        """Walk up from a checkpoint (the newest if no id is given) until each channel has a value."""
        wanted, start, itself, seen = set(channels), checkpoint_id or "", "", set[str]()
        while wanted:
            raw, origin, *found = await self._run(
                "ancestors", scope, scope.checkpoint_ns, start, itself, _ANCESTORS_AT_ONCE, *sorted(wanted)
            )
            with self._verifying(scope.thread_id) as fields:
                if origin:  # where the walk begins; each other parent's id is verified with its child
                    fields.read_parent(scope.checkpoint_ns, origin[0].decode(), origin[1])
                start, itself = raw.decode(), "1"
            for step in found:
                with self._verifying(scope.thread_id) as fields:
                    each = records.to_ancestor(fields, scope.checkpoint_ns, step)
                if each.checkpoint_id in seen:
                    raise DeltaChainError.of_circle(each.checkpoint_id)
                yield each
                seen.add(each.checkpoint_id)
                wanted -= each.values.keys()
            if not start:
                break
        if not seen:
            await self._must_be_empty(scope.thread_id)

    async def outline(self, thread_id: str) -> tuple[str, list[Outline]]:
        """Return the thread's revision, read first, and what pruning has to know of all its checkpoints."""
        revision, outlines, start = None, [], b"-"
        while start:
            raw, start, *found = await self._run("outline", Scope(thread_id, ""), start, _OUTLINES_A_PAGE)
            revision = raw.decode() if revision is None else revision
            with self._verifying(thread_id) as fields:
                outlines += [records.to_outline(fields, each) for each in found]
        if not outlines:
            await self._must_be_empty(thread_id)
        return revision or "", outlines

    async def may_hold(self, thread_id: str, run_ids: Sequence[str]) -> bool:
        """Tell whether a thread may have checkpoints of one of these runs. `False` is certain."""
        return bool((await self._run("runs", Scope(thread_id, ""), *run_ids))[0])

    async def thread_ids(self) -> AsyncGenerator[str, None]:
        """Return the id of every thread that has data here, once; with a target, also of each listed one.

        A list that is not complete is completed: this takes a look at all keys in Redis. It may lack what an
        older release has stored, or it was lost.
        """
        seen, incomplete = set[str](), set(self._keyspace.registries)
        now = await self._steps.now()
        async for registry, members in self._steps.members(list(incomplete)):
            for member, score in members:
                if member == _COMPLETE.encode() and score == _IS_COMPLETE:
                    incomplete.discard(registry)
                thread_id = self._keyspace.thread_of_member(member) if score >= now else None
                if thread_id is not None and thread_id not in seen:
                    seen.add(thread_id)
                    yield thread_id
        if incomplete:
            async for thread_id in self._completed(incomplete):
                if thread_id not in seen:
                    seen.add(thread_id)
                    yield thread_id

    async def _completed(self, registries: set[str]) -> AsyncGenerator[str, None]:
        """Look at all keys in Redis. Put the threads of some lists into them, and return all threads.

        Then these lists are marked as complete, because each other writer of this release puts its threads
        into them. They are not marked if Redis refuses (it may be full), or if a thread may have been missed:
        a list was lost meanwhile, another server has taken over, or slots have moved.
        """
        servers = await self._steps.servers()
        completes = servers is not None and self._ttl != ""  # see `untouched`
        completes = completes and await self._mark(registries, "NX", _SEARCHED)
        async for keys in self._steps.scan(self._keyspace.pattern):
            found: dict[str, dict[str, str]] = {}  # list -> thread -> its key
            for key in keys:
                if (thread_id := self._keyspace.thread_of(key)) is not None:
                    found.setdefault(self._keyspace.registry_of(thread_id), {})[thread_id] = key.decode()
            if completes:
                named = [(*found[each].values(), each) for each in registries & found.keys()]
                completes = all(await for_each(named, self._relist))
            for thread_id in chain.from_iterable(found.values()):
                yield thread_id
        if completes and await self._steps.servers() == servers:
            await self._mark(registries, "XX", _IS_COMPLETE)

    async def _mark(self, registries: Iterable[str], option: str, score: int) -> bool:
        """Mark lists of threads, and return whether Redis has done it."""
        return await _is_done(self._steps.mark(list(registries), option, score, _COMPLETE))

    async def _relist(self, keys: Sequence[str]) -> bool:
        """Put threads into their list, and return whether Redis has done it."""
        return await _is_done(self._steps.run("relist", None, keys))

    async def holds(self, thread_id: str | None) -> Holding:
        """Return what the list of a thread names, for a process that works in the tier above.

        Args:
            thread_id: The thread to look for. `None`: any; all lists are looked at.
        """
        if thread_id is not None:
            return await self._holds(Scope(thread_id, ""), self._keyspace.of_thread(thread_id))
        nobody = self._keyspace.keys_of_nobody()
        found = await self._of_each_list(lambda registry: self._holds(None, nobody[registry]))
        naming = [each for each in found if each.any]
        return Holding(bool(naming), False, min((each.unused_seconds for each in naming or found), default=0))

    async def _holds(self, scope: Scope | None, keys: Sequence[str]) -> Holding:
        named, here, unused = await self._steps.run("holds", scope, keys)
        return Holding(named > 0, bool(here), unused / 1000)

    # ---------------------------------------------------------------- draining

    async def count(self) -> Held:
        """Count the threads with data, and their checkpoints; with a target, also each listed thread."""
        threads, ids = 0, list[str]()
        checkpoints = 0
        async for thread_id in self.thread_ids():
            threads += 1
            ids.append(self._keyspace.parts_of_thread(thread_id)[0])
            if len(ids) == _COUNTED_AT_ONCE:
                checkpoints += await self._steps.members_in(ids)
                ids.clear()
        return Held(threads, checkpoints + await self._steps.members_in(ids))

    async def seal(self, thread_id: str, lease_ms: int, token: str, *, renew: bool) -> bool:
        """Keep all other callers from a thread, or renew the seal that does so."""
        result = await self._run("seal", Scope(thread_id, ""), lease_ms, token, records.flag(renew))
        return bool(result[0])

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
                "strays", Scope(thread_id, ""), records.flag(sealed_too), start, _STRAYS_AT_ONCE
            )
            for name, raw in found_writes:
                with self._verifying(thread_id) as fields:
                    namespace, checkpoint_id = records.split_member(name)
                    writes = records.to_writes(fields, raw)
                yield PendingWrites(Scope(thread_id, namespace), checkpoint_id, writes)

    async def retire(self, thread_id: str, token: str, marker_ms: int, moved_to: str | None) -> bool:
        """Forget a sealed thread. For some time, calls raise an error that names the thread's new id."""
        scope, keys = Scope(thread_id, ""), self._keyspace.of_thread(thread_id)
        self.acknowledged.forget(thread_id)
        arguments = (token, marker_ms, moved_to or "")
        return bool((await self._steps.run("retire", scope, keys, *arguments))[0])

    # ---------------------------------------------------------------- helpers

    def _fields(self, thread_id: str) -> Fields:
        return SignedFields(self._signer, thread_id) if self._signer else Fields()

    @contextmanager
    def _verifying(self, thread_id: str) -> Iterator[Fields]:
        """Wrap the reading of a script's result: any part that is not signed with the key is an error."""
        try:
            yield self._fields(thread_id)
        except ThreadTamperedError as exc:
            self._tampered(thread_id, exc)
            raise
        except (ValueError, LookupError):
            if self._signer is None and not self._keyspace.target:
                raise  # a saver without a key and without a target expects no signatures
            self._tampered(thread_id, error := tampered("a part"))
            raise error from None

    def _tampered(self, thread_id: str, error: ThreadTamperedError) -> None:
        self._telemetry.emit(Invalidated("tampered"))
        # Not a line for each: an attacker who can write to Redis could fill the disk with log lines.
        if since := self._tampered_lines.due():
            _log.warning(
                "Thread %r was refused: %s (%d refused since the last such line; at most one in %d s.)",
                thread_id,
                error,
                since,
                self._tampered_lines.seconds,
            )

    async def _must_be_empty(self, thread_id: str) -> None:
        """Check, for a thread in which nothing was found, that Redis has not lost it.

        Raises:
            ThreadDamagedError: Redis has another list of threads than before, so it may have lost the thread.
        """
        if not self._keyspace.target or self._keyspace.copy:
            return
        keys = self._keyspace.of_thread(thread_id)
        made, there = await self._steps.run("threads", Scope(thread_id, ""), keys)
        self._compare({keys[-1]: made})
        if keys[-1] in self._lost and not there:
            raise ThreadDamagedError(f"{_LIST_LOST} This thread is not there, and may be lost as well. {_DO}")

    async def _heard(self, listed_ms: int, scope: Scope) -> None:
        """Wait until every process that works above knows of threads here: see `HEARD_SECONDS`."""
        if listed_ms >= 0:  # so there is a target
            self._stored_in.add(self._keyspace.registry_of(scope.thread_id))
        if 0 <= listed_ms < HEARD_SECONDS * 1000:
            with self._telemetry.step("announce_tier", scope) as step:
                await asyncio.sleep(HEARD_SECONDS - listed_ms / 1000)
                step.result = "heard"

    async def look_at_lists(self) -> None:
        """Check whether Redis still has the same lists of threads."""
        self._compare(dict(await self._of_each_list(self._look)))

    async def _look(self, registry: str) -> tuple[str, bytes]:
        return registry, (await self._steps.run("threads", None, [registry]))[0]

    def _compare(self, made: Mapping[str, bytes]) -> None:
        lost = {each for each, when in made.items() if self._made.get(each) not in (None, b"", when)}
        if lost <= self._lost:
            return
        self._lost |= lost
        registries = len(self.lists)
        what = _LIST_LOST if registries == 1 else _LISTS_LOST.format(lost=len(self._lost), all=registries)
        whose = "Threads" if registries == 1 else "Threads of these lists"
        _log.error(
            "%s %s that are not in Redis are refused by this process, new ones too. %s", what, whose, _DO
        )

    async def _of_each_list(self, ask: Callable[[str], Awaitable[ResultT]]) -> list[ResultT]:
        """Ask about each list of a target, some at once. If one fails, the others are asked all the same."""
        slots = asyncio.Semaphore(_LISTS_AT_ONCE)

        async def in_slot(registry: str) -> ResultT:
            async with slots:
                return await ask(registry)

        registries = self.lists
        if len(registries) == 1:
            return [await ask(registries[0])]
        results = await asyncio.gather(*map(in_slot, registries), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return cast("list[ResultT]", results)

    async def _run(self, step: str, scope: Scope, *args: bytes | str | int) -> list[Any]:
        await self._meet(self._keyspace.registry_of(scope.thread_id))
        keys = self._keyspace.of_thread(scope.thread_id)
        return await self._steps.run(step, scope, keys, self._ttl, *args)

    async def _pages(
        self, scope: Scope, order: str, lower: str, upper: str, *, sealed_too: bool
    ) -> AsyncGenerator[list[Position], None]:
        while True:
            result = await self._run(
                "page", scope, records.flag(sealed_too), order, lower, upper, _IDS_A_PAGE
            )
            names = [records.split_member(each) for each in result]
            if names:
                yield [Position(Scope(scope.thread_id, ns), checkpoint_id) for ns, checkpoint_id in names]
            if len(names) < _IDS_A_PAGE:
                return
            if order == "up":
                lower = f"({result[-1].decode()}"
            else:
                upper = f"({result[-1].decode()}"


async def _is_done(step: Awaitable[object]) -> bool:
    try:
        await step
    except (RedisRefusedError, RedisUnavailableError):
        return False
    return True
