"""`RedisSaver` and `MemorySaver` answer as `AsyncPostgresSaver` does, after any operations in any order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from psycopg.types.json import Jsonb
from redis.asyncio import Redis

import dice
from drawn import (
    BEYOND_JSONB,
    OTHER_IDS,
    SCOPES,
    TABLES,
    UNSTORABLE,
    UUIDS,
    VERSIONS,
    Scope,
    changes,
    inline,
    make_checkpoint,
    metadata,
    put_value,
    texts,
    writes,
)
from glasspoint import MemorySaver, RedisSaver, create_telemetry
from glasspoint.history.containment import contains
from glasspoint.history.keys import Keyspace
from glasspoint.l2.target import Target
from redis_nodes import Nodes
from states import config_of, exact, numbered_id, open_upstream

# A namespace with ":" is a call of a subgraph, which goes with the root checkpoint that it started from.
ALL_SCOPES: list[Scope] = [*SCOPES, ("a", "call:1"), ("a", "sub")]
# Most happens in one place, so that operations meet.
scopes = st.sampled_from([SCOPES[0]] * 8 + ALL_SCOPES)
ids = st.sampled_from(UUIDS[:3] * 2 + UUIDS + OTHER_IDS)
newest_or_ids = st.sampled_from(["newest"] * 6 + [None, *UUIDS, *OTHER_IDS])
fresh_or_ids = st.sampled_from([None] * 6 + UUIDS[:3] * 2 + UUIDS + OTHER_IDS)
Ask = Callable[[BaseCheckpointSaver[Any]], Awaitable[Any]]


TARGET = Target("db", "5432", "app")
LISTS = {
    name.encode()
    for target in ("", TARGET.id)
    for in_cluster in (False, True)
    for name in Keyspace("glasspoint", target=target, in_cluster=in_cluster).registries
}
"""The keys of the lists of threads, which stay when all threads are gone."""
SIGNED = "redis of a target, signed"
REDIS_OPTIONS: dict[str, dict[str, Any]] = {
    "redis": {},
    SIGNED: {"target": TARGET, "signing_key": b"sixteen bytes..!"},
}


@dataclass
class Scene:
    """The two savers, who are told the same and asked the same."""

    ours: RedisSaver | MemorySaver
    upstream: AsyncPostgresSaver
    keys: Callable[[], Awaitable[set[bytes]]]
    admin: psycopg.AsyncConnection[Any]

    async def wipe(self) -> None:
        for thread_id in [each async for each in self.ours.thread_ids()]:
            await self.ours.adelete_thread(thread_id)
        assert await self.keys() <= LISTS
        for table in TABLES:
            await self.admin.execute(f"DELETE FROM {table}")

    async def agree(self, ask: Ask) -> Any:
        expected = await ask(self.upstream)
        assert exact(await ask(self.ours)) == exact(expected)
        return expected


@asynccontextmanager
async def open_scene(
    place: str,
    postgres_url: str,
    url: str,
    keys: Callable[[], Awaitable[set[bytes]]],
) -> AsyncIterator[Scene]:
    """Open the two savers.

    Args:
        place: What ours is.
        postgres_url: PostgreSQL.
        url: The way of ours to Redis.
        keys: Returns all keys that Redis has.
    """
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with (
        MemorySaver(telemetry=telemetry)
        if place == "memory"
        else RedisSaver.from_conn_string(url, telemetry=telemetry, **REDIS_OPTIONS[place]) as ours,
        open_upstream(postgres_url) as upstream,
        await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin,
    ):
        yield Scene(ours, upstream, keys, admin)


async def keys_at(redis_url: str) -> set[bytes]:
    redis: Any = Redis.from_url(redis_url)
    async with redis:
        return set(await redis.keys())


async def listed(saver: BaseCheckpointSaver[Any], config: Any, **options: Any) -> list[Any]:
    """Newest first; which of two equal ids comes first is nobody's promise."""
    found = [each async for each in saver.alist(config, **options)]
    places = [tuple(each.config["configurable"].values()) for each in found]
    assert [id_ for _, _, id_ in places] == sorted((id_ for _, _, id_ in places), reverse=True)
    return [each for _, each in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]


OPERATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "put": (
        10,
        {
            "scope": scopes,
            "new_id": fresh_or_ids,
            "parent": newest_or_ids,
            "root": st.none() | st.none() | ids,
            "format_": st.sampled_from([4] * 5 + [3, 2, 1]),
            "changes": changes,
            "announced": st.sampled_from(["changed"] * 5 + ["nothing", "everything"]),
            "metadata": metadata,
        },
    ),
    "put_writes": (
        10,
        {
            "scope": scopes,
            "of": st.sampled_from(["newest", "newest", "next"]) | ids,
            "task": st.sampled_from(["t1", "t1", "t1", "t2", "t:2"]),
            "path": st.sampled_from(["", "~a", "~b"]),
            "writes": writes,
        },
    ),
    "list_checkpoints": (
        4,
        {
            "scope": scopes,
            "namespaces": st.sampled_from(["one", "one", "all"]),
            "checkpoint_id": st.none() | st.none() | ids,
            "before": st.none() | st.sampled_from([*UUIDS[:3], "names no checkpoint"]) | ids,
            "limit": st.none() | st.integers(0, 3),
            "filter_": st.none() | st.fixed_dictionaries({"step": st.integers(-1, 1)}),
        },
    ),
    "list_all_threads": (1, {"filter_": st.none() | st.fixed_dictionaries({"step": st.integers(-1, 1)})}),
    "prune": (
        2,
        {
            "thread_ids": st.lists(
                st.sampled_from(["a", "a", *(t for t, _ in SCOPES)]), max_size=2, unique=True
            ),
            "strategy": st.sampled_from(["keep_latest"] * 5 + ["delete"]),
        },
    ),
    "delete_thread": (1, {"thread_id": st.sampled_from([thread_id for thread_id, _ in SCOPES])}),
    "tell_what_upstream_cannot_store": (1, {"value": st.sampled_from(BEYOND_JSONB)}),
    "tell_what_cannot_be_stored": (1, {"scope": scopes, "call": st.sampled_from(UNSTORABLE)}),
}
# One rule for all: hypothesis would leave out some of several at random, and these have to meet.
operations = st.sampled_from(
    [name for name, (weight, _) in OPERATIONS.items() for _ in range(weight)]
).flatmap(lambda name: st.tuples(st.just(name), st.fixed_dictionaries(OPERATIONS[name][1])))


class Agreement(RuleBasedStateMachine):
    scene: ClassVar[Scene]
    run: ClassVar[Any]

    @initialize(version=st.sampled_from(VERSIONS))
    def start(self, version: Callable[[int], Any]) -> None:
        self.version = version
        self.clock = 10  # versions and ids from here on were never seen before
        self.pruned: set[str] = set()
        self.run(self.scene.wipe())

    def fresh(self) -> int:
        self.clock += 1
        return self.clock

    def base(self, scope: Scope, base_id: str | None) -> CheckpointTuple | None:
        if base_id is None:
            return None
        config = config_of(*scope, None if base_id == "newest" else base_id)
        return self.run(self.scene.upstream.aget_tuple(config))

    def compare(self, scope: Scope, *checkpoint_ids: str) -> None:
        for checkpoint_id in (None, *checkpoint_ids):
            config = config_of(*scope, checkpoint_id)
            self.run(self.scene.agree(lambda saver, config=config: saver.aget_tuple(config)))  # type: ignore[misc]

    def put(
        self,
        scope: Scope,
        new_id: str | None,
        parent: str | None,
        root: str | None,
        format_: int,
        changes: dict[str, tuple[str, int | None, Any]],
        announced: str,
        metadata: CheckpointMetadata,
    ) -> None:
        """A checkpoint that follows another: newer than all, older, or stored again with other content."""
        base = self.base(scope, parent)
        checkpoint = make_checkpoint(new_id or numbered_id(self.fresh()), base)
        checkpoint["v"] = format_
        if format_ < 4:  # without any version, upstream would make up another one at each read
            checkpoint["channel_versions"].setdefault("start", self.version(1))
        changed = {}
        for channel, (change, number, value) in changes.items():
            checkpoint["channel_values"].pop(channel, None)
            if change == "forget":
                checkpoint["channel_versions"].pop(channel, None)
                continue
            # Upstream's pruning leaves the values of what it removes: no version may come again after it.
            old = None if scope[0] in self.pruned else number
            changed[channel] = self.version(old or self.fresh())
            checkpoint["channel_versions"][channel] = changed[channel]
            if change == "set":
                checkpoint["channel_values"][channel] = value
        new_versions = {"changed": changed, "nothing": {}, "everything": checkpoint["channel_versions"]}[
            announced
        ]
        config = config_of(*scope, base.config["configurable"]["checkpoint_id"] if base else None)
        metadata = metadata | ({"parents": {"": root}} if root else {})
        self.run(self.scene.agree(lambda saver: saver.aput(config, checkpoint, metadata, new_versions)))
        self.compare(scope, checkpoint["id"])

    def put_writes(self, scope: Scope, of: str, task: str, path: str, writes: list[tuple[str, Any]]) -> None:
        """Pending writes; those of the next checkpoint come before its put, as LangGraph may send them."""
        # As in LangGraph, no task is of two namespaces: upstream would read their sends in no certain order.
        task = f"{task} of {scope[1]}"
        base = self.base(scope, "newest")
        if of == "newest" and base:
            of = base.config["configurable"]["checkpoint_id"]
        elif of in ("newest", "next"):
            of = numbered_id(self.clock + 1)
        config = config_of(*scope, of)
        self.run(self.scene.agree(lambda saver: saver.aput_writes(config, writes, task, path)))
        self.compare(scope, of)

    def delete_thread(self, thread_id: str) -> None:
        self.run(self.scene.agree(lambda saver: saver.adelete_thread(thread_id)))
        self.pruned.discard(thread_id)

    def prune(self, thread_ids: list[str], strategy: str) -> None:
        try:
            self.run(self.scene.upstream.aprune(thread_ids, strategy=strategy))
        except NotImplementedError:  # what was drawn looks like a delta channel
            return
        self.run(self.scene.ours.aprune(thread_ids, strategy=strategy))
        self.pruned |= set(thread_ids)
        for thread_id in thread_ids:
            self.list_checkpoints((thread_id, ""), "all", None, None, None)

    def list_checkpoints(
        self,
        scope: Scope,
        namespaces: str,
        before: str | None,
        limit: int | None,
        filter_: dict[str, Any] | None,
        checkpoint_id: str | None = None,
    ) -> None:
        config = config_of(*scope, checkpoint_id)
        if namespaces == "all":
            del config["configurable"]["checkpoint_ns"]
            limit = None  # with a limit, which of two equal ids is shown would be chance
        options: dict[str, Any] = {"limit": limit, "filter": filter_}
        options["before"] = config_of(*scope, before) if before else None
        if before == "names no checkpoint":
            options["before"] = config_of(*scope)
        self.run(self.scene.agree(lambda saver: listed(saver, config, **options)))

    def list_all_threads(self, filter_: dict[str, Any] | None) -> None:
        """Only where: upstream completes old formats from the parents of one thread alone."""

        async def places(saver: BaseCheckpointSaver[Any]) -> list[Any]:
            return [each.config for each in await listed(saver, None, filter=filter_)]

        self.run(self.scene.agree(places))

    def tell_what_upstream_cannot_store(self, value: Any) -> None:
        """In a thread of its own, because upstream cannot have it."""
        scope, new_id = ("apart", ""), numbered_id(self.fresh())

        async def tell() -> None:
            await put_value(value)(self.scene.ours, scope, new_id)
            found = await self.scene.ours.aget_tuple(config_of(*scope))
            assert found is not None
            assert exact(found.checkpoint["channel_values"]) == exact({"y": [1], "x": value})
            await self.scene.ours.adelete_thread("apart")

        self.run(tell())

    def tell_what_cannot_be_stored(
        self, scope: Scope, call: Callable[[BaseCheckpointSaver[Any], Scope, str], Awaitable[Any]]
    ) -> None:
        """Ours raises where upstream raises, and nothing has changed."""
        new_id = numbered_id(self.fresh())

        async def tell() -> None:
            with pytest.raises(Exception):  # noqa: B017, PT011 - each raises what it meets first
                await call(self.scene.ours, scope, new_id)

        self.run(tell())
        self.compare(scope, new_id)

    @rule(operation=operations)
    def do(self, operation: tuple[str, dict[str, Any]]) -> None:
        name, arguments = operation
        getattr(self, name)(**arguments)

    def teardown(self) -> None:
        if not hasattr(self, "clock"):
            return
        for scope in ALL_SCOPES:
            self.list_checkpoints(scope, "one", None, None, None)


@pytest.mark.dice
@pytest.mark.parametrize("place", [*REDIS_OPTIONS, "memory"])
def test_any_operations_in_any_order_agree_with_upstream(place: str, database: str, redis_url: str) -> None:
    check_agreement(
        lambda: open_scene(place, database, redis_url, lambda: keys_at(redis_url)),
        dice.rounds(6, explored=120),
    )


@pytest.mark.dice
def test_any_operations_agree_with_upstream_behind_a_sentinel(
    database: str, redis_url: str, behind_a_sentinel: str
) -> None:
    check_agreement(
        lambda: open_scene(SIGNED, database, behind_a_sentinel, lambda: keys_at(redis_url)),
        dice.rounds(3, explored=60),
    )


@pytest.mark.dice
def test_any_operations_agree_with_upstream_on_a_cluster(
    database: str, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No process works in a tier above, so nobody has to hear of the first thread of each list.
    monkeypatch.setattr("glasspoint.history.in_redis.HEARD_SECONDS", 0.0)

    async def keys() -> set[bytes]:
        return nodes.keys()

    url = f"redis+cluster://127.0.0.1:{nodes.servers[0].port}"
    check_agreement(lambda: open_scene(SIGNED, database, url, keys), dice.rounds(3, explored=60))


def check_agreement(opened: Callable[[], AbstractAsyncContextManager[Scene]], examples: int) -> None:
    with asyncio.Runner() as runner:
        scene = opened()
        Agreement.scene, Agreement.run = runner.run(scene.__aenter__()), staticmethod(runner.run)
        try:
            run_state_machine_as_test(
                Agreement,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=30,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
                ),
            )
        finally:
            runner.run(scene.__aexit__(None, None, None))


json_values = st.recursive(
    inline,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
small_values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, "a", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=2)
    ),
    max_leaves=6,
)


@pytest.mark.dice
def test_containment_is_postgresqls(database: str) -> None:
    with psycopg.connect(database) as connection:

        @settings(max_examples=dice.rounds(150, explored=4000))
        @given(whole=small_values | json_values, part=small_values)
        @example(whole=True, part=1)
        @example(whole=0, part=False)
        @example(whole=[1, True], part=[True, 1.0])
        @example(whole=[[1, 2], 3], part=[[2]])
        @example(whole=["a"], part="a")
        @example(whole=None, part=[])
        def check(whole: Any, part: Any) -> None:
            whole, part = {"key": whole}, {"key": part}
            row = connection.execute("SELECT %s @> %s", [Jsonb(whole), Jsonb(part)]).fetchone()
            assert row is not None
            parsed = json.loads(json.dumps(whole)), json.loads(json.dumps(part))
            assert contains(*parsed) is row[0]

        check()
