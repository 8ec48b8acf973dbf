"""The saver agrees with LangGraph's own, after any operations in any order, whatever Redis loses meanwhile.

Two ways to disagree are looked for: what is read through the cache differs from what `AsyncPostgresSaver`
reads in the same database, and what was written differs from what `AsyncPostgresSaver` stores when it is told
the same (in another database, the mirror). What happens at the same time: see `test_concurrency.py`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis, RedisCluster

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
    make_checkpoint,
    metadata,
    put_value,
    writes,
)
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.redis.client import open_redis
from pgbouncer import PROGRAM, pgbouncer
from redis_nodes import Nodes
from states import config_of, counts, exact, numbered_id, open_saver, open_upstream
from steps import settled

KEY = b"not the same if turned round"

# ---------------------------------------------------------------------------------------- what is drawn


scopes = st.sampled_from([*SCOPES, SCOPES[0], SCOPES[0], SCOPES[0]])
ids = st.sampled_from(UUIDS + OTHER_IDS)
newest_or_ids = st.sampled_from(["newest"] * 8 + [None, *UUIDS, *OTHER_IDS])
fresh_or_ids = st.sampled_from([None] * 20 + UUIDS + OTHER_IDS)
savers = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2])


# ---------------------------------------------------------------------------------------- who works on what


@dataclass
class Scene:
    """Real servers and all who work on them.

    Attributes:
        ours: Two savers that share database and Redis, and a third whose entries expire at once.
        upstream: LangGraph's saver on the same database; it only reads.
        mirror: LangGraph's saver on another database; it is told everything that ours are told.
    """

    ours: list[CachedPostgresSaver]
    upstream: AsyncPostgresSaver
    mirror: AsyncPostgresSaver
    redis: Redis | RedisCluster
    admins: list[psycopg.AsyncConnection[Any]]

    async def wipe(self) -> None:
        await self.redis.flushall()
        for admin in self.admins:
            for table in TABLES:
                await admin.execute(f"DELETE FROM {table}")

    async def rows(self) -> list[Any]:
        """All that stands in the database of ours."""
        return [
            sorted(map(repr, await (await self.admins[0].execute(f"SELECT * FROM {table}")).fetchall()))
            for table in TABLES
        ]

    async def agree(
        self, ask: Callable[[BaseCheckpointSaver[Any]], Awaitable[Any]], *, times: int = 1
    ) -> None:
        """Put a question to all; the second of ours finds what the first has warmed up."""
        expected = exact(await ask(self.upstream))
        assert exact(await ask(self.mirror)) == expected, (
            "stored something else than AsyncPostgresSaver stores"
        )
        for saver in self.ours[:2]:
            for _ in range(times):
                assert exact(await ask(saver)) == expected, (
                    "read something else than AsyncPostgresSaver reads"
                )


@asynccontextmanager
async def open_scene(
    postgres_url: str,
    mirror_url: str,
    redis_of: Callable[[], Redis | RedisCluster],
    registry: CollectorRegistry,
    keys: Sequence[bytes | None],
    pooler_url: str | None,
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as opened:
        telemetry = create_telemetry(registry=registry)
        clients: list[Any] = [await opened.enter_async_context(redis_of()) for _ in range(4)]
        yield Scene(
            ours=[
                await opened.enter_async_context(
                    open_saver(
                        pooler_url or postgres_url,
                        client,
                        telemetry=telemetry,
                        cache_ttl=ttl,
                        l1_signing_key=key,
                    )
                )
                for client, ttl, key in zip(clients[1:], (60, 60, 0.002), keys, strict=True)
            ],
            upstream=await opened.enter_async_context(open_upstream(postgres_url)),
            mirror=await opened.enter_async_context(open_upstream(mirror_url)),
            redis=clients[0],
            admins=[
                await opened.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
                for url in (postgres_url, mirror_url)
            ],
        )


async def newest(saver: BaseCheckpointSaver[Any], scope: Scope) -> CheckpointTuple | None:
    return await saver.aget_tuple(config_of(*scope))


async def listed(saver: BaseCheckpointSaver[Any], scope: Scope, **options: Any) -> list[CheckpointTuple]:
    return [each async for each in saver.alist(config_of(*scope), **options)]


# ---------------------------------------------------------------------------------------- one at a time


class Agreement(RuleBasedStateMachine):
    """Operations one after the other. Half of the examples compare after every one of them, which keeps the
    cache warm; the other half only at the end and when a rule says so, and the cache meets writes unread. In
    half of either, bursts end before a comparison; in the other half they are under way, unless the reader
    is their saver."""

    scene: ClassVar[Scene]
    run: ClassVar[Any]
    begun: ClassVar[int]

    @initialize(
        eager=st.booleans(),
        settles=st.booleans(),
        version=st.sampled_from(VERSIONS),
        scope=st.sampled_from(SCOPES),
        writer=st.sampled_from([0, 1]),
    )
    def start(
        self, eager: bool, settles: bool, version: Callable[[int], Any], scope: Scope, writer: int
    ) -> None:
        """Begin with a conversation that Redis has lost, and read it.

        So every example has a miss, a hit and a read of an older checkpoint, whatever is drawn afterwards.
        """
        self.eager, self.settles = eager, True
        self.version = version
        self.clock = 10  # versions and ids from here on were never seen before
        self.ids: dict[Scope, set[str]] = defaultdict(set)
        self.run(self.scene.wipe())
        for step in range(2):
            self.put(
                scope=scope,
                writer=writer,
                new_id=None,
                parent="newest",
                format_=4,
                changes={"x": ("set", None, step)},
                announced="changed",
                early=None,
                loses=False,
                metadata={"source": "loop", "step": step},
            )
        self.settle()
        self.redis_loses("everything", 0)
        self.compare(scope, *sorted(self.ids[scope]))
        self.settles = settles
        type(self).begun += 1

    def fresh(self) -> int:
        self.clock += 1
        return self.clock

    def base(self, scope: Scope, base_id: str | None) -> CheckpointTuple | None:
        """The newest checkpoint, or the one with this id."""
        if base_id is None:
            return None
        config = config_of(*scope, None if base_id == "newest" else base_id)
        return self.run(self.scene.mirror.aget_tuple(config))

    def told(self, writer: int, tell: Callable[[BaseCheckpointSaver[Any]], Awaitable[Any]]) -> None:
        """Tell one of ours and the mirror the same."""

        async def both() -> None:
            assert await tell(self.scene.ours[writer]) == await tell(self.scene.mirror)

        self.run(both())

    def compare(self, scope: Scope, *checkpoint_ids: str) -> None:
        """Read the newest checkpoint, with each of ours twice, so that it hits; and these others."""

        if self.settles:
            self.settle()

        async def ask_all() -> None:
            await self.scene.agree(lambda saver: newest(saver, scope), times=2)
            for config in (config_of(*scope, each) for each in checkpoint_ids):
                await self.scene.agree(lambda saver, config=config: saver.aget_tuple(config))  # type: ignore[misc]

        self.run(ask_all())

    def settle(self) -> None:
        """End the bursts of all of ours."""

        async def end() -> None:
            for saver in self.scene.ours:
                await settled(saver)

        self.run(end())

    def stepped(self, scope: Scope, *checkpoint_ids: str) -> None:
        self.ids[scope].update(checkpoint_ids)
        if self.eager:
            self.compare(scope, *checkpoint_ids)

    @rule(
        scope=scopes,
        writer=savers,
        new_id=fresh_or_ids,
        parent=newest_or_ids,
        format_=st.sampled_from([4] * 8 + [3, 2, 1]),
        changes=changes,
        announced=st.sampled_from(["changed"] * 5 + ["nothing", "everything"]),
        early=st.none() | writes,
        loses=st.booleans(),
        metadata=metadata,
    )
    def put(
        self,
        scope: Scope,
        writer: int,
        new_id: str | None,
        parent: str | None,
        format_: int,
        changes: dict[str, tuple[str, int | None, Any]],
        announced: str,
        early: list[tuple[str, Any]] | None,
        loses: bool,
        metadata: CheckpointMetadata,
    ) -> None:
        """A checkpoint that follows another: newer than all, older, or stored again with other content.
        What its tasks wrote may have come before it, as LangGraph sends it, and Redis may have lost that."""
        base = self.base(scope, parent)
        checkpoint = make_checkpoint(new_id or numbered_id(self.fresh()), base)
        if early is not None:
            self.put_writes(scope, writer, checkpoint["id"], "t1", "", early)
            if loses:
                self.redis_loses("everything", 0)
        checkpoint["v"] = format_
        if format_ < 4:  # without any version, upstream would make up another one at each read
            checkpoint["channel_versions"].setdefault("start", self.version(1))
        changed = {}
        for channel, (change, number, value) in changes.items():
            checkpoint["channel_values"].pop(channel, None)
            if change == "forget":
                checkpoint["channel_versions"].pop(channel, None)
                continue
            changed[channel] = self.version(number or self.fresh())
            checkpoint["channel_versions"][channel] = changed[channel]
            if change == "set":
                checkpoint["channel_values"][channel] = value
        new_versions = {"changed": changed, "nothing": {}, "everything": checkpoint["channel_versions"]}[
            announced
        ]
        config = config_of(*scope, base.config["configurable"]["checkpoint_id"] if base else None)
        config["metadata"] = {"user": "철수"}
        self.told(writer, lambda saver: saver.aput(config, checkpoint, metadata, new_versions))
        self.stepped(scope, checkpoint["id"])

    @rule(scope=scopes, writer=savers, source=newest_or_ids, as_root=st.booleans())
    def fork(self, scope: Scope, writer: int, source: str | None, as_root: bool) -> None:
        """As `update_state(as_node="__copy__")`: a new checkpoint that refers to values of old versions."""
        base = self.base(scope, source)
        if base is None:
            return
        copy = make_checkpoint(numbered_id(self.fresh()), base)
        copy["v"] = base.checkpoint["v"]
        config = config_of(*scope) if as_root or base.parent_config is None else base.parent_config
        self.told(writer, lambda saver: saver.aput(config, copy, {"source": "fork", "step": 1}, {}))
        self.stepped(scope, copy["id"])

    @rule(
        scope=scopes,
        writer=savers,
        of=st.sampled_from(["newest", "newest", "next"]) | ids,
        task=st.sampled_from(["t1", "t2", "t:2"]),
        path=st.sampled_from(["", "~a", "~b"]),
        writes=writes,
    )
    def put_writes(
        self, scope: Scope, writer: int, of: str, task: str, path: str, writes: list[tuple[str, Any]]
    ) -> None:
        """Pending writes; those of the next checkpoint come before its put, as LangGraph may send them."""
        base = self.base(scope, "newest")
        if of == "newest" and base:
            of = base.config["configurable"]["checkpoint_id"]
        elif of in ("newest", "next"):
            of = numbered_id(self.clock + 1)
        self.told(writer, lambda saver: saver.aput_writes(config_of(*scope, of), writes, task, path))
        self.stepped(scope, of)

    @rule(thread_id=st.sampled_from([thread_id for thread_id, _ in SCOPES]), writer=savers)
    def delete_thread(self, thread_id: str, writer: int) -> None:
        self.told(writer, lambda saver: saver.adelete_thread(thread_id))
        for scope in SCOPES:
            if scope[0] == thread_id:
                self.stepped(scope)

    @rule(what=st.sampled_from(["everything", "a key"]), number=st.integers(0, 3))
    def redis_loses(self, what: str, number: int) -> None:
        async def lose() -> None:
            keys = sorted(await self.scene.redis.keys())
            if what == "everything":
                await self.scene.redis.flushall()
            elif keys:
                await self.scene.redis.delete(keys[number % len(keys)])

        self.run(lose())

    @rule(scope=scopes, reader=savers)
    def read(self, scope: Scope, reader: int) -> None:
        """By the third of ours, this also makes the entry expire."""
        self.run(newest(self.scene.ours[reader], scope))
        self.compare(scope)

    @rule(
        scope=scopes,
        before=st.none() | ids,
        limit=st.none() | st.integers(1, 3),
        filter_=st.none() | st.fixed_dictionaries({"step": st.integers(-1, 1)}),
    )
    def list_checkpoints(
        self, scope: Scope, before: str | None, limit: int | None, filter_: dict[str, Any] | None
    ) -> None:
        options: dict[str, Any] = {"limit": limit, "filter": filter_}
        options["before"] = config_of(*scope, before) if before else None
        self.run(self.scene.agree(lambda saver: listed(saver, scope, **options)))

    @rule(scope=scopes, writer=savers, call=st.sampled_from(UNSTORABLE))
    def tell_what_cannot_be_stored(
        self,
        scope: Scope,
        writer: int,
        call: Callable[[BaseCheckpointSaver[Any], Scope, str], Awaitable[Any]],
    ) -> None:
        """Ours raises where upstream raises, and nothing has changed."""
        new_id = numbered_id(self.fresh())

        async def tell_both() -> None:
            before = await self.scene.rows()
            with pytest.raises(Exception):  # noqa: B017, PT011 - upstream raises what it meets first
                await call(self.scene.mirror, ("scratch", ""), new_id)
            await self.scene.mirror.adelete_thread("scratch")
            with pytest.raises(Exception):  # noqa: B017, PT011
                await call(self.scene.ours[writer], scope, new_id)
            assert await self.scene.rows() == before

        self.run(tell_both())
        self.stepped(scope, new_id)

    @rule(writer=savers, value=st.sampled_from(BEYOND_JSONB))
    def tell_what_upstream_can_only_read(self, writer: int, value: Any) -> None:
        """In a scope of its own, because the mirror cannot have it."""
        scope, new_id = ("apart", ""), numbered_id(self.fresh())

        async def tell() -> None:
            with pytest.raises(psycopg.DataError):
                await put_value(value)(self.scene.mirror, ("scratch", ""), new_id)
            await put_value(value)(self.scene.ours[writer], scope, new_id)
            expected = await newest(self.scene.upstream, scope)
            assert expected is not None
            assert exact(expected.checkpoint["channel_values"]) == exact({"y": [1], "x": value})
            for saver in self.scene.ours[:2] * 2:
                assert exact(await newest(saver, scope)) == exact(expected)
            await self.scene.ours[writer].adelete_thread("apart")
            await self.scene.mirror.adelete_thread("scratch")

        self.run(tell())

    def teardown(self) -> None:
        for scope, checkpoint_ids in getattr(self, "ids", {}).items():
            self.compare(scope, *sorted(checkpoint_ids))
            self.run(self.scene.agree(partial(listed, scope=scope)))


@pytest.fixture
def mirror(postgres: EmbeddedPostgres) -> Iterator[str]:
    yield postgres.create_database("mirror")
    postgres.drop_database("mirror")


@pytest.mark.dice
@pytest.mark.timeout(400)  # how long the examples are is up to Hypothesis
@pytest.mark.parametrize(
    ("keys", "examples", "explored"),
    [((None, None, None), 12, 300), ((None, KEY, KEY[::-1]), 6, 100)],
    ids=["unsigned", "in the middle of a change of keys"],
)
def test_any_operations_in_any_order_agree_with_upstream(
    keys: Sequence[bytes | None],
    examples: int,
    explored: int,
    database: str,
    mirror: str,
    redis_url: str,
) -> None:
    examples = dice.rounds(examples, explored=explored)
    check_agreement(keys, examples, database, mirror, lambda: Redis.from_url(redis_url))


@pytest.mark.dice
@pytest.mark.timeout(400)
def test_any_operations_agree_with_upstream_on_a_cluster(database: str, mirror: str, nodes: Nodes) -> None:
    examples = dice.rounds(5, explored=100)
    check_agreement((None, None, None), examples, database, mirror, nodes.client)


@pytest.mark.dice
@pytest.mark.timeout(400)
def test_any_operations_agree_with_upstream_behind_a_sentinel(
    database: str, mirror: str, behind_a_sentinel: str
) -> None:
    examples = dice.rounds(3, explored=60)
    check_agreement(
        (None, None, None),
        examples,
        database,
        mirror,
        lambda: open_redis(behind_a_sentinel, timeout_seconds=5.0),
    )


@pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer: apt-get install pgbouncer")
@pytest.mark.dice
@pytest.mark.timeout(400)
def test_any_operations_agree_with_upstream_behind_pgbouncer(
    postgres: EmbeddedPostgres, database: str, mirror: str, redis_url: str
) -> None:
    """Ours share three connections in transaction mode; upstream's saver has connections of its own."""
    with pgbouncer(postgres, "test", size=3) as pooler_url:
        check_agreement(
            (None, None, None),
            5,
            database,
            mirror,
            lambda: Redis.from_url(redis_url),
            pooler_url=pooler_url,
        )


def check_agreement(
    keys: Sequence[bytes | None],
    examples: int,
    database: str,
    mirror: str,
    redis_of: Callable[[], Redis | RedisCluster],
    *,
    pooler_url: str | None = None,
) -> None:
    """Draw examples, and check that each agrees, and that the cache was used.

    Args:
        pooler_url: The way of ours to `database`, if it is another than upstream's.
    """
    registry = CollectorRegistry()
    with asyncio.Runner() as runner:
        scene = open_scene(database, mirror, redis_of, registry, keys, pooler_url)
        Agreement.scene, Agreement.run = runner.run(scene.__aenter__()), staticmethod(runner.run)
        Agreement.begun = 0
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
    reads = counts(registry, "glasspoint_l1_reads_total", "result")
    for result in ("hit", "miss", "historical"):
        # Each begins with a cold and a warm cache, unless the machine is so busy that Redis counts as away.
        assert reads[result] > Agreement.begun / 2 > 0, "the examples hardly used the cache"
    refused = counts(registry, "glasspoint_l1_invalidations_total", "source")["tampered"]
    assert bool(refused) == (len({*keys}) > 1)
