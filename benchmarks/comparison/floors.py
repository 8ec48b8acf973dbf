"""The limit: what the same bytes and the same values cost with nothing around them.

- Reading: as many bytes as Glasspoint's entry of this state has, names and values of its fields, come from
  Redis as plain strings; the checkpoint's JSON is parsed, and its values are decoded by the savers'
  serializer, once. One caller: a GET. More: MGETs of sixteen keys each, all at once: the best that we found.
- Writing: the rows of this put, or of these writes, encoded beforehand, go out in one prepared statement,
  which is one round trip; nothing is looked up, no conflict is handled. One caller: a plain INSERT. More: one
  INSERT for all of them, on one connection; the best that we found was hardly better.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any, Final

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from comparison.conversations import Put, Writes
from comparison.measuring import Sample, clocked
from glasspoint.model import codec

MGET: Final = 16

_BLOBS: Final = """
WITH blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, channel, version, type, blob)
    SELECT * FROM unnest(%(threads)s::text[], %(channels)s::text[], %(versions)s::text[], %(types)s::text[],
                         %(blobs)b::bytea[])
)
INSERT INTO checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
"""
INSERT_PUT: Final = f"""{_BLOBS}
VALUES (%(thread_id)s, %(checkpoint_id)s, %(parent_id)s, %(checkpoint)s::jsonb, %(metadata)s::jsonb)
"""
INSERT_PUTS: Final = f"""{_BLOBS}
SELECT thread_id, id, parent, checkpoint::jsonb, metadata::jsonb
FROM unnest(%(thread_id)s::text[], %(checkpoint_id)s::text[], %(parent_id)s::text[], %(checkpoint)s::text[],
            %(metadata)s::text[]) AS c (thread_id, id, parent, checkpoint, metadata)
"""
INSERT_WRITES: Final = """
INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, task_path, idx, channel, type, blob)
SELECT * FROM unnest(%(thread_ids)s::text[], %(checkpoint_ids)s::text[], %(task_ids)s::text[],
                     %(paths)s::text[], %(idxs)s::int[], %(channels)s::text[], %(types)s::text[],
                     %(blobs)b::bytea[])
"""
ONLY_ONE: Final = ("thread_id", "checkpoint_id", "parent_id", "checkpoint", "metadata")
"""Of a put's parameters, those that are no lists where there is one put."""

Rows = dict[str, list[Any]]
"""Parameters of an INSERT, a list each."""


@dataclass(frozen=True)
class PackedState:
    """A state in one string: JSON, values, and as many more bytes as Glasspoint's entry is longer."""

    data: bytes
    json_end: int
    values: tuple[tuple[str, str, int, int], ...]
    """Name, type, start, end."""

    @classmethod
    def of(cls, found: CheckpointTuple, serde: SerializerProtocol, length: int) -> PackedState:
        values = found.checkpoint["channel_values"]
        small = {k: v for k, v in values.items() if v is None or isinstance(v, (str, int, float, bool))}
        head = {**found.checkpoint, "channel_values": small}
        data = json.dumps({"checkpoint": head, "metadata": found.metadata, "config": found.config}).encode()
        json_end = len(data)
        named = []
        for name, value in (
            *((name, value) for name, value in values.items() if name not in small),
            *((channel, value) for _, channel, value in found.pending_writes or ()),
        ):
            type_, encoded = serde.dumps_typed(value)
            named.append((name, type_, len(data), len(data) + len(encoded)))
            data += encoded
        return cls(data.ljust(length), json_end, tuple(named))

    def decode(self, raw: Any, serde: SerializerProtocol) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything that a checkpoint tuple is made of."""
        loads = serde.loads_typed
        return (
            json.loads(raw[: self.json_end]),
            {name: loads((type_, raw[start:end])) for name, type_, start, end in self.values},
        )


class ReadFloor:
    """States in Redis, and calls that read them."""

    def __init__(self, redis: Redis, serde: SerializerProtocol) -> None:
        self._redis = redis
        self._serde = serde
        self._states: dict[str, PackedState] = {}

    async def store(self, key: str, found: CheckpointTuple, length: int) -> None:
        """Store what a saver found, padded to the length of its entry."""
        state = PackedState.of(found, self._serde, length)
        await self._redis.set(key, state.data)
        self._states[key] = state

    async def sample(self, calls: int, callers: int) -> Sample:
        """Make so many reads."""
        keys = list(islice(cycle(self._states), calls))
        if callers == 1:
            return await clocked([[partial(self._get, key) for key in keys]])
        together = [keys[i : i + callers] for i in range(0, calls, callers)]
        return await clocked([[partial(self._get_all, part) for part in together]], counts_as=callers)

    async def _get(self, key: str) -> None:
        self._states[key].decode(await self._redis.get(key), self._serde)

    async def _get_all(self, keys: Sequence[str]) -> None:
        await asyncio.gather(*(self._mget(keys[i : i + MGET]) for i in range(0, len(keys), MGET)))

    async def _mget(self, keys: Sequence[str]) -> None:
        for key, raw in zip(keys, await self._redis.mget(keys), strict=True):
            self._states[key].decode(raw, self._serde)


class WriteFloor:
    """Rows in PostgreSQL, and calls that insert them."""

    def __init__(self, pool: AsyncConnectionPool[Any], serde: SerializerProtocol) -> None:
        self._pool = pool
        self._serde = serde

    async def puts(self, puts: Sequence[Put], callers: int) -> Sample:
        """Insert the rows of puts, of different threads."""
        return await self._sample(INSERT_PUT, INSERT_PUTS, [self._put_rows(put) for put in puts], callers)

    async def writes(self, writes: Sequence[Writes], callers: int) -> Sample:
        """Insert the rows of pending writes."""
        rows = [self._write_rows(each) for each in writes]
        return await self._sample(INSERT_WRITES, INSERT_WRITES, rows, callers)

    async def _sample(self, one: str, many: str, rows: list[Rows], callers: int) -> Sample:
        sql = one if callers == 1 else many
        parts = [_joined(rows[i : i + callers]) for i in range(0, len(rows), callers)]
        if callers == 1:
            parts = [{name: v[0] if name in ONLY_ONE else v for name, v in part.items()} for part in parts]
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            return await clocked([[partial(cursor.execute, sql, part) for part in parts]], counts_as=callers)

    def _put_rows(self, put: Put) -> Rows:
        config, checkpoint, metadata, new_versions = put
        named = config["configurable"]
        encoded = codec.encode_put(
            self._serde, config, named.get("checkpoint_id"), checkpoint, metadata, new_versions
        )
        blobs = encoded.blobs
        return {
            "thread_id": [named["thread_id"]],
            "checkpoint_id": [encoded.checkpoint_id],
            "parent_id": [encoded.parent_id],
            "checkpoint": [encoded.document_json],
            "metadata": [encoded.metadata_json],
            "threads": [named["thread_id"]] * len(blobs),
            "channels": list(blobs),
            "versions": [version for version, _ in blobs.values()],
            "types": [value.type for _, value in blobs.values()],
            "blobs": [value.data for _, value in blobs.values()],
        }

    def _write_rows(self, writes: Writes) -> Rows:
        config, values, task_id, path = writes
        encoded = codec.encode_writes(self._serde, values, task_id, path, last_wins=False)
        count = len(encoded)
        return {
            "thread_ids": [config["configurable"]["thread_id"]] * count,
            "checkpoint_ids": [config["configurable"]["checkpoint_id"]] * count,
            "task_ids": [task_id] * count,
            "paths": [path] * count,
            "idxs": [each.idx for each in encoded],
            "channels": [each.channel for each in encoded],
            "types": [each.value.type for each in encoded],
            "blobs": [each.value.data for each in encoded],
        }


def _joined(rows: Sequence[Rows]) -> dict[str, Any]:
    return {name: [value for each in rows for value in each[name]] for name in rows[0]}
