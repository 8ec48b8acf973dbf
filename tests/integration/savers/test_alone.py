"""Alone: what goes wrong with one scope costs that scope its cache, never another scope's, and ends no task.

A key of another type, a key that this Redis user may not touch, a row of the journal that Redis refuses, a
client that raises anything, more intents than a script can unpack, a bug in a background task: callers are
answered by PostgreSQL, all other scopes are cached, and when the fault is gone, all are, without a restart.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.credentials import CredentialProvider
from redis.exceptions import AskError, MovedError, ResponseError

from glasspoint import CachedPostgresSaver, Settings, Telemetry, create_telemetry, get_checkpointer
from glasspoint.coherence import sweeper as sweeping
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import ConfigurationError, L2RefusedError
from glasspoint.l1 import entry
from glasspoint.l1.breaker import Breaker
from glasspoint.l1.cache import Cache, Intent
from glasspoint.l1.entry import Changes
from glasspoint.l1.quarantine import Quarantine
from glasspoint.l2 import connection_health
from glasspoint.model import codec
from glasspoint.model.identity import Identity
from glasspoint.model.scope import Scope, scope_of
from glasspoint.redis import faults, permissions
from glasspoint.telemetry import background
from places import SRC
from redis_nodes import start_node
from redis_users import USER, acl, allow, commands_in, url_of_user, what_a_user_needs
from states import config_of, counts, exact, numbered_id, open_saver, open_upstream, value_of
from steps import Proxy, Thread, hits_at_last, keys_of, nowhere, settled, tcp, until

SOON = 0.05
"""How often the journal is swept where a test waits for it, in seconds."""

NEVER = 3600.0

SCOPE = Scope("t", "")
SERDE = JsonPlusSerializer()
MANY_INTENTS = 12_000


class Watched:
    """A saver, and what it has counted."""

    def __init__(self, saver: CachedPostgresSaver, registry: CollectorRegistry) -> None:
        self.saver = saver
        self.registry = registry

    @property
    def reads(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_l1_reads_total", "result")

    @property
    def quarantined(self) -> float | None:
        return value_of(self.registry, "glasspoint_l1_quarantined_scopes", {"saver": "default"})

    @property
    def dropped(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_l1_invalidations_total", "source")

    @property
    def failed_tasks(self) -> dict[str, int]:
        return counts(self.registry, "glasspoint_background_task_failures_total", "task")

    async def hits(self, thread: Thread) -> bool:
        """Read a thread, which must be right; whether Redis answered."""
        before = self.reads.get("hit", 0)
        assert await thread.turn(self.saver) == thread.number
        return self.reads.get("hit", 0) == before + 1


@asynccontextmanager
async def watched(database: str, redis: Any, **options: Any) -> AsyncIterator[Watched]:
    registry = CollectorRegistry()
    options = {"sweep_interval_seconds": SOON, **options}
    async with open_saver(database, redis, telemetry=create_telemetry(registry=registry), **options) as saver:
        yield Watched(saver, registry)


def key_of(saver: CachedPostgresSaver, thread: Thread) -> bytes:
    assert saver._l1.epoch is not None
    return saver._l1.epoch.key(scope_of(thread.config))


async def sql(database: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        cursor = await conn.execute(statement, params or None)
        return await cursor.fetchall() if cursor.description else []


async def journal(database: str) -> list[str]:
    """The threads that stand in the journal, a row each."""
    return [row[0] for row in await sql(database, "SELECT thread_id FROM glasspoint_l1_journal ORDER BY id")]


async def record(database: str, *thread_ids: str) -> None:
    """As a process does whose write Redis was not told of."""
    await sql(
        database,
        "INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns) "
        "SELECT 'glasspoint', unnest(%s::text[]), ''",
        list(thread_ids),
    )


# ------------------------------------------------------------------ scripts: what a failing command leaves


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def cache(redis: Redis) -> Cache:
    return await make_cache(redis)


async def make_cache(redis: Redis) -> Cache:
    cache = Cache(
        redis, Telemetry("test", ()), key_prefix="test", ttl_seconds=60, intent_seconds=60, timeout_seconds=10
    )
    server = await cache.connect()
    cache.identify(Identity("0" * 12, "1" * 16, server.reign, b"x" * 32))
    return cache


def make_put(number: int) -> codec.EncodedPut:
    versions = {"messages": f"{number}.5"}
    checkpoint: Any = {
        "v": 4,
        "id": numbered_id(number),
        "channel_values": {"messages": [number]},
        "channel_versions": versions,
        "versions_seen": {},
    }
    return codec.encode_put(SERDE, config_of("t"), None, checkpoint, {"step": number}, versions)  # type: ignore[arg-type]


def of_put(number: int) -> Changes:
    """What a burst of one put changes."""
    changes = Changes()
    changes.put(make_put(number), is_as_sent=True, known_writes=())
    return changes


Discard = Callable[[Cache, Intent], Awaitable[Any]]

DISCARDS: dict[str, Discard] = {
    "DROP": lambda cache, own: cache.drop(own),
    "DROP, in doubt": lambda cache, own: cache.drop(own, still_running=True),
    "COMMIT": lambda cache, own: cache.commit(own, of_put(1)),  # which is there already
    "COMMIT without an intent": lambda cache, own: cache.commit(Intent(SCOPE, b"gone"), of_put(2)),
    "CONFIRM without an intent": lambda cache, own: cache.confirm(Intent(SCOPE, b"gone")),
    "REFUSE": lambda cache, own: cache.refuse(SCOPE, numbered_id(1)),
}


@pytest.mark.parametrize("discard", DISCARDS)
async def test_a_discard_loses_no_intent_however_many_there_are(
    discard: str, cache: Cache, redis: Redis
) -> None:
    """Readers stay away as long as one of these writes may change PostgreSQL; none may install an image."""
    first = await cache.begin(SCOPE)
    assert (await cache.commit(first, of_put(1))).result == "applied"
    own = await cache.begin(SCOPE)
    (key,) = await redis.keys()
    (deadline,) = [v for k, v in (await redis.hgetall(key)).items() if k == b"i:" + own.name]
    others = {f"i:{number}".encode(): deadline for number in range(MANY_INTENTS)}
    await redis.hset(key, mapping=others)  # type: ignore[arg-type]
    await DISCARDS[discard](cache, own)
    left = await redis.hgetall(key)
    assert others.keys() <= left.keys()
    assert {left[name] for name in others} == {deadline.replace(b":1", b":0")}, "disarmed, with its deadline"  # type: ignore[arg-type]
    assert not any(name[:2] in (b"c:", b"w:") or name in (b"id", b"head", b"lease") for name in left)
    assert (await cache.read(SCOPE, None)).result == "busy"
    assert 0 < await redis.pttl(key) <= 60_000


async def test_a_full_redis_still_disarms(cache: Cache, own_redis: EmbeddedRedis) -> None:
    """It refuses a script's first write if that needs memory: a discard begins with one that needs none."""
    async with Redis.from_url(own_redis.url) as full:
        cache = await make_cache(full)
        others = [await cache.begin(SCOPE) for _ in range(3)]
        (key,) = await full.keys()
        await full.config_set("maxmemory-policy", "noeviction")
        await full.config_set("maxmemory", 1)
        assert await cache.drop(Intent(SCOPE, b""))
        left = await full.hgetall(key)
        assert {name: value[-2:] for name, value in left.items()} == {
            b"i:" + each.name: b":0" for each in others
        }


async def test_an_entry_of_a_hundred_thousand_fields_is_read_and_discarded(
    cache: Cache, redis: Redis
) -> None:
    intent = await cache.begin(SCOPE)
    await cache.commit(intent, of_put(1))
    (key,) = await redis.keys()
    for start in range(0, 100_000, 10_000):
        await redis.hset(key, mapping={f"x:{number}": "x" for number in range(start, start + 10_000)})
    reading = await cache.read(SCOPE, None)
    assert (reading.result, len(reading.fields)) == ("hit", 2 * (100_000 + 3))
    assert (await cache.commit(await cache.begin(SCOPE), of_put(2))).result == "applied"
    assert await cache.drop(Intent(SCOPE, b""))
    assert await redis.keys() == []


STEPS: dict[str, tuple[Any, ...]] = {
    "read": ("token", "", 60_000, 60_000),
    "refuse": ("token", numbered_id(1), 60_000),
    "begin": ("token", 60_000),
    "confirm": ("gone",),
    "commit": ("own", numbered_id(2), 1, 60_000, "", "", 60_000, 0, 1, "head", "x"),
    "abort": ("own",),
    "warm_up": ("lease", 60_000, "id", numbered_id(1)),
    "drop": ("own", 1, 60_000),
    "clear": (),
    "peek": (),
}


COMMANDS_OF_SCRIPTS = (
    "hset",
    "hdel",
    "hget",
    "hkeys",
    "hgetall",
    "hexists",
    "pttl",
    "pexpire",
    "del",
)


@pytest.mark.parametrize("step", STEPS)
async def test_a_script_that_fails_at_any_command_takes_nobody_s_intent_away(
    step: str, cache: Cache, redis: Redis
) -> None:
    """Each command in turn is refused to this user, in mid-script: what was done before it stays, no more."""
    epoch = cache.epoch
    assert epoch is not None
    assert epoch.shas.keys() == STEPS.keys()
    deadline = f"{10**15}:1"
    entry = {"id": numbered_id(1), "head": "x", "c:a": "1", "lease": "lease"}
    entry |= {"i:own": deadline, "i:other": deadline}
    key = epoch.key(SCOPE)
    port = redis.connection_pool.connection_kwargs["port"]
    refused = []
    for command in COMMANDS_OF_SCRIPTS:
        await acl(redis, "probed", "reset on nopass ~* +@all", f"-{command}")
        await redis.delete(key)
        await redis.hset(key, mapping=entry)  # type: ignore[arg-type]
        async with Redis(port=port, username="probed", password="any") as probed:
            answers = probed.pipeline(transaction=False).evalsha(epoch.shas[step], 1, key, *STEPS[step])
            [answer] = await answers.execute(raise_on_error=False)  # type: ignore[attr-defined]
        if isinstance(answer, ResponseError):
            assert faults.classify(answer).is_final, answer
            refused.append(command)
        left = await redis.hgetall(key)
        assert left.get(b"i:other", b"")[:-1] == deadline[:-1].encode(), command
    await redis.acl_deluser("probed")
    assert refused or step == "clear", "that one takes away what is no entry, and nothing else"


# ------------------------------------------------------------------ a key of another type


async def set_string(redis: Redis, key: bytes) -> None:
    await redis.set(key, "no hash")


async def set_list(redis: Redis, key: bytes) -> None:
    await redis.rpush(key, "no hash")


async def set_members(redis: Redis, key: bytes) -> None:
    await redis.sadd(key, "no hash")


async def set_scores(redis: Redis, key: bytes) -> None:
    await redis.zadd(key, {"no hash": 1})


async def set_stream(redis: Redis, key: bytes) -> None:
    await redis.xadd(key, {"no": "hash"})


@pytest.mark.parametrize("other", [set_string, set_list, set_members, set_scores, set_stream])
@pytest.mark.parametrize("first", ["read", "put", "put_writes", "delete"])
async def test_a_key_of_another_type_is_taken_away_and_nobody_else_notices(
    first: str,
    other: Callable[[Redis, bytes], Awaitable[None]],
    database: str,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Thread("bad"), Thread("good")
    async with (
        watched(database, redis, sweep_interval_seconds=NEVER) as one,
        open_upstream(database) as upstream,
    ):
        for thread in (bad, good):
            await thread.put(one.saver)
            assert await one.hits(thread)
        await settled(one.saver)
        key = key_of(one.saver, bad)
        await redis.delete(key)
        await other(redis, key)
        if first == "read":
            assert not await one.hits(bad)
        elif first == "put":
            await bad.put(one.saver)
        elif first == "put_writes":
            await bad.put_writes(one.saver, "x")
        else:
            await one.saver.adelete_thread("bad")
        await settled(one.saver)
        for _ in range(3):
            assert await one.hits(good)
        truth = await upstream.aget_tuple(bad.config)
        for _ in range(2):
            assert exact(await one.saver.aget_tuple(bad.config)) == exact(truth)
        assert "unavailable" not in one.reads
        assert one.reads["hit"] >= (5 if first == "delete" else 6), "and that one hits again"
        assert one.quarantined == 0
        assert one.saver._parts.breaker.is_closed
        assert one.dropped["tampered"] == 1
        assert await journal(database) == []
    [line] = [each for each in caplog.messages if "held another type" in each]
    assert "'bad'" in line
    assert not any("does not answer" in each for each in caplog.messages)


@pytest.mark.parametrize("before", ["confirm", "commit", "warm_up", "drop"])
async def test_an_entry_that_is_written_over_between_two_steps_is_lost_like_an_evicted_one(
    before: str, database: str, redis: Redis
) -> None:
    """The intent or the lease went with it: nothing is installed that nobody can vouch for."""
    thread = Thread("bad")
    async with (
        watched(database, redis, sweep_interval_seconds=NEVER) as one,
        open_upstream(database) as upstream,
    ):
        await thread.put(one.saver)
        await settled(one.saver)
        key = key_of(one.saver, thread)
        step = one.saver._l1._steps._step

        async def after_somebody(evalsha: Any, name: str, *args: Any) -> Any:
            if name == before:
                await redis.delete(key)
                await set_string(redis, key)
            return await step(evalsha, name, *args)

        one.saver._l1._steps._step = after_somebody  # type: ignore[method-assign, assignment]
        if before == "confirm":
            await thread.put(one.saver)
        elif before == "commit":
            await thread.put(one.saver)
            await thread.put_writes(one.saver, "x")
            await settled(one.saver)
        elif before == "drop":
            await one.saver.adelete_thread("bad")
        else:
            await redis.delete(key)
            await one.saver.aget_tuple(thread.config)
        one.saver._l1._steps._step = step  # type: ignore[method-assign]
        assert {kind for fields in (await keys_of(redis_url_of(redis))).values() for kind in fields} == set()
        truth = exact(await upstream.aget_tuple(thread.config))
        for _ in range(2):
            assert exact(await one.saver.aget_tuple(thread.config)) == truth
        assert "unavailable" not in one.reads


def redis_url_of(redis: Redis) -> str:
    return f"redis://127.0.0.1:{redis.connection_pool.connection_kwargs['port']}/0"


# ------------------------------------------------------------------ a key that Redis refuses


class Refusing(Redis):
    """The real Redis, which refuses some threads' keys as a node of a cluster, a proxy or an ACL would.

    Attributes:
        refused: Parts of the keys that are refused.
        with_: The error.
        asked: Steps that were refused.
    """

    refused: frozenset[str] = frozenset()
    with_: Exception = MovedError("3999 127.0.0.1:6381")
    asked = 0

    async def evalsha(self, sha: Any, numkeys: Any, *args: Any) -> Any:
        if any(
            f"{{{thread}}}".encode() in args[0] or args[0].endswith(thread.encode())
            for thread in self.refused
        ):
            self.asked += 1
            raise self.with_
        return await super().evalsha(sha, numkeys, *args)


@pytest.fixture
async def refusing(redis_url: str) -> AsyncIterator[Refusing]:
    async with Refusing.from_url(redis_url) as client:
        yield client  # type: ignore[misc]


REFUSALS: dict[str, Exception] = {
    "MOVED": MovedError("3999 127.0.0.1:6381"),
    "ASK": AskError("3999 127.0.0.1:6381"),
    "CROSSSLOT": ResponseError("CROSSSLOT Keys in request don't hash to the same slot"),
    "NOPERM, Redis 6": ResponseError(
        "this user has no permissions to access one of the keys used as arguments"
    ),
    "NOPERM, Redis 7": ResponseError("No permissions to access a key"),
    "NOPERM, in a script": ResponseError(
        "Error running script (call to f_0): @user_script:9: @user_script: 9: The user executing the script"
        " can't access at least one of the keys mentioned in the command arguments"
    ),
    "WRONGTYPE that comes back": ResponseError(
        "WRONGTYPE Operation against a key holding the wrong kind of value"
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("first", ["read", "put"])
async def test_a_scope_whose_key_is_refused_is_alone(
    first: str,
    refusal: str,
    database: str,
    refusing: Refusing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Thread("bad"), Thread("good")
    caplog.set_level(logging.INFO)
    async with watched(database, refusing) as one:
        for thread in (bad, good):
            await thread.put(one.saver)
            assert await one.hits(thread)
        refusing.refused, refusing.with_ = frozenset({"bad"}), REFUSALS[refusal]
        for _ in range(5):
            if first == "put":
                await bad.put(one.saver)
                await bad.put_writes(one.saver, "x")
            assert not await one.hits(bad)
            assert await one.hits(good)
            await good.put(one.saver)
            assert await one.hits(good)
        assert one.quarantined == 1
        assert one.saver._parts.breaker.is_closed
        assert one.saver.status.breaker == "closed"
        assert (await journal(database) != []) == (first == "put"), "its writes are recorded"
        refusing.refused = frozenset()
        await until(lambda: one.hits(bad))
        assert one.quarantined == 0
        await until(lambda: is_empty(database))
        assert await one.hits(good)
        assert one.reads["unavailable"] >= 5
        assert counts(one.registry, "glasspoint_write_through_total", "l1")["journalled"] == (
            10 if first == "put" else 0
        )
    [line] = [each for each in caplog.messages if "is in quarantine" in each]
    assert "Thread 'bad', namespace ''" in line
    assert any("Quarantine is over" in each for each in caplog.messages)
    assert not any("does not answer" in each for each in caplog.messages)


async def is_empty(database: str) -> bool:
    return not await journal(database)


async def test_parallel_writes_to_a_refused_scope_do_not_open_the_breaker(
    database: str, refusing: Refusing
) -> None:
    """One superstep of one conversation: sixteen failures in a row, and one fault."""
    bad, good = Thread("bad"), Thread("good")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        for thread in (bad, good):
            await thread.put(one.saver)
        refusing.refused = frozenset({"bad"})
        await asyncio.gather(*(bad.put_writes(one.saver, "x", f"task {n}") for n in range(16)))
        assert await one.hits(good)
        assert counts(one.registry, "glasspoint_l1_breaker_transitions_total", "to") == {}


async def test_where_all_keys_are_refused_the_breaker_opens_and_its_probe_closes_it(
    database: str, redis_url: str, refusing: Refusing
) -> None:
    threads = [Thread(f"t{number}") for number in range(8)]
    async with watched(database, refusing) as one:
        for thread in threads:
            await thread.put(one.saver)
        refusing.refused = frozenset({*(thread.thread_id for thread in threads), ":probe"})
        for thread in threads:
            assert not await one.hits(thread)
        assert one.saver._parts.breaker.state != "closed"
        for thread in threads:
            await thread.put(one.saver)
            assert not await one.hits(thread)
        refusing.refused = frozenset()
        for thread in threads:
            await hits_at_last(redis_url, lambda thread=thread: one.hits(thread))  # type: ignore[misc]
        assert one.quarantined == 0


async def test_a_confirmation_that_is_refused_concerns_its_scope_alone(
    database: str, refusing: Refusing
) -> None:
    """BEGIN was heard, CONFIRM is refused: a row is made, the writer reads its write, all others hit on."""
    bad, good = Thread("bad"), Thread("good")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        for thread in (bad, good):
            await thread.put(one.saver)
            assert await one.hits(thread)
        await settled(one.saver)
        confirm = one.saver._l1.confirm

        async def refused(*args: Any, **options: Any) -> Any:
            refusing.refused = frozenset({"bad"})
            return await confirm(*args, **options)

        one.saver._l1.confirm = refused  # type: ignore[method-assign]
        await bad.put(one.saver)
        assert await journal(database) == ["bad"]
        assert one.saver._l1.trust.is_trusted, "nothing is to be doubted of the others"
        assert await one.hits(good)
        assert not await one.hits(bad)
        assert "unavailable" in one.reads


# ------------------------------------------------------------------ a row of the journal that Redis refuses


@pytest.fixture
def restricted(own_redis: EmbeddedRedis) -> str:
    """The URL of a Redis user who may touch the threads that are called good…, and the keys of no other."""
    return own_redis.url.replace("//", "//restricted:x@")


async def restrict(own_redis: EmbeddedRedis, *more_keys: str) -> None:
    async with Redis.from_url(own_redis.url) as admin:
        await admin.acl_setuser(
            "restricted",
            enabled=True,
            passwords=["+x"],
            reset=True,
            reset_keys=True,
            keys=["glasspoint:permissions:*", "*:probe", "*{good*", *more_keys],
            commands=["+@all"],
        )


async def test_a_row_that_redis_refuses_stays_and_stops_nobody(
    database: str, own_redis: EmbeddedRedis, restricted: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By a real ACL: in the process that sweeps, and in one that is opened later."""
    good, other, bad = Thread("good"), Thread("good too"), Thread("bad")
    await restrict(own_redis)
    async with watched(database, own_redis.url, sweep_interval_seconds=NEVER) as whole:
        for thread in (good, other, bad):
            await thread.put(whole.saver)
        async with open_upstream(database) as upstream:
            await bad.put(upstream)  # the image is out of date
        await record(database, "bad", "good too", "bad")
        async with watched(database, restricted) as one:
            await until(lambda: one.hits(good))
            await until(lambda: only_bad_is_left(database))
            for _ in range(3):
                assert not await one.hits(bad), "the image from before the write is not shown"
                assert await one.hits(good)
            assert one.quarantined == 1
            assert one.saver.status.journal_pending == 0
            async with watched(database, restricted) as later:
                await until(lambda: later.hits(good))
                assert not await later.hits(bad)
                assert later.quarantined == 1
                await restrict(own_redis, "*{bad*")
                for each in (one, later):
                    await until(lambda each=each: each.hits(bad))  # type: ignore[misc]
                    assert each.quarantined == 0
                assert await is_empty(database)
                for each in (one, later):
                    assert each.saver._parts.breaker.is_closed
                    assert counts(each.registry, "glasspoint_l1_breaker_transitions_total", "to") == {}
    assert sum("is in quarantine" in each for each in caplog.messages) == 2, "a line in each process"


async def only_bad_is_left(database: str) -> bool:
    return set(await journal(database)) == {"bad"}


async def test_a_quarantine_does_not_end_before_its_drop_worked(database: str, refusing: Refusing) -> None:
    good, bad = Thread("good"), Thread("bad")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        await one.saver._parts.sweeper.round()
        await good.put(one.saver)
        refusing.refused = frozenset({"bad"})
        await record(database, "bad")
        for number in range(1, 6):
            await one.saver._parts.sweeper.round()
            assert refusing.asked == number, "once a sweep"
            assert one.quarantined == 1
            assert await one.hits(good)
            assert await journal(database) == ["bad"]
        refusing.refused = frozenset()
        await bad.put(one.saver)
        assert not await one.hits(bad), "nor by a Redis that would take the key again"
        await one.saver._parts.sweeper.round()
        assert one.quarantined == 0
        assert await is_empty(database)
        assert not await one.hits(bad)
        assert await one.hits(bad)


async def test_a_write_since_its_drop_was_sent_keeps_a_scope_in_quarantine(
    database: str, refusing: Refusing
) -> None:
    """A reader may have looked at PostgreSQL between the two, and show the state before that write."""
    bad = Thread("bad")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        await one.saver._parts.sweeper.stop()  # the round of the opening may still be to come
        refusing.refused = frozenset({"bad"})
        await bad.put(one.saver)
        refusing.refused = frozenset()
        forget = one.saver._l1.forget

        async def and_then_a_write(scopes: Any) -> Any:
            refused = await forget(scopes)
            if scopes:
                await bad.put(one.saver)
                one.saver._l1.forget = forget  # type: ignore[method-assign]
            return refused

        one.saver._l1.forget = and_then_a_write  # type: ignore[method-assign]
        await one.saver._parts.sweeper.round()
        assert one.quarantined == 1
        assert await journal(database) == ["bad"]
        await one.saver._parts.sweeper.round()
        assert one.quarantined == 0
        assert await is_empty(database)


async def test_many_refused_rows_hold_nothing_up_and_are_not_hammered(
    database: str, refusing: Refusing
) -> None:
    good = Thread("good")
    bad = [f"bad {number}" for number in range(600)]
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        await good.put(one.saver)
        refusing.refused = frozenset(name.replace(" ", "%20") for name in bad)
        await record(database, *bad, "good", *bad, "good")
        one.saver._l1.trust.suspect()
        await until(
            lambda: _sweep_quarantines(one, 600)
        )  # on a busy machine, a round ends before all is done
        assert one.saver._parts.breaker.is_closed
        assert not await one.hits(good), "it was dropped for its rows"
        assert await one.hits(good)
        assert sorted(set(await journal(database))) == sorted(bad)
        for _ in range(3):
            before = refusing.asked
            await one.saver._parts.sweeper.round()
            assert refusing.asked - before <= 16
        refusing.refused = frozenset()
        await until(lambda: _sweep_quarantines(one, 0))
        assert await is_empty(database)


async def _sweep_quarantines(one: Watched, scopes: int) -> bool:
    await one.saver._parts.sweeper.round()
    return one.quarantined == scopes


async def test_the_rows_of_a_busy_scope_in_quarantine_do_not_grow_without_end(
    database: str, refusing: Refusing
) -> None:
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        refusing.refused = frozenset({"bad"})
        await record(database, *["bad"] * 1500)
        await one.saver._parts.sweeper.round()
        assert await journal(database) == ["bad"]
        await record(database, "bad")
        await one.saver._parts.sweeper.round()
        assert await journal(database) == ["bad", "bad"], "only many of them are worth it"


async def test_pruning_goes_on_past_a_scope_in_quarantine(database: str, refusing: Refusing) -> None:
    bad, good = Thread("bad"), Thread("good")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        for thread in (bad, good):
            for _ in range(2):
                await thread.put(one.saver)
        await settled(one.saver)
        refusing.refused = frozenset({"bad"})
        assert not await one.hits(bad)
        report = await one.saver.aprune_older_than(timedelta(days=1))
        assert report.checkpoints == 2
        assert set(await journal(database)) == {"bad"}
        assert await one.hits(good) or await one.hits(good)


def test_a_quarantine_that_is_full_takes_nobody_in() -> None:
    """Then it is not about single keys, and no scope is trusted: see `Steps._refused`."""
    quarantine = Quarantine(Telemetry("test", ()), most=2)
    scopes = [Scope(str(number), "") for number in range(3)]
    assert [quarantine.enter(scope, "why") for scope in scopes] == [True, True, False]
    assert len(quarantine) == 2
    assert scopes[2] not in quarantine


@pytest.mark.parametrize(
    ("error", "of_one_key", "is_final"),
    [
        *((error, True, False) for error in REFUSALS.values()),
        (
            ResponseError("this user has no permissions to run the 'evalsha' command or its subcommand"),
            False,
            True,
        ),
        (ResponseError("User key has no permissions to run the 'hset' command"), False, True),
        (ResponseError("The user executing the script can't run this command or subcommand"), False, True),
        (ResponseError("unknown command 'EVALSHA'"), False, True),
        (ResponseError("command not allowed when used memory > 'maxmemory'. OOM"), False, True),
        (ResponseError("LOADING Redis is loading the dataset in memory"), False, False),
        (TimeoutError(), False, False),
        (RuntimeError("MOVED 1"), False, False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_fault_of_one_key_is_told_from_a_fault_of_all(
    error: Exception, of_one_key: bool, is_final: bool
) -> None:
    fault = faults.classify(error)
    assert (fault.of_one_key, fault.is_final) == (of_one_key, is_final)


# ------------------------------------------------------------------ a checkpoint that cannot be cached


def unusual(number: int, **changes: Any) -> Any:
    """A checkpoint, without what is `...` among the changes."""
    checkpoint = {
        "v": 4,
        "id": numbered_id(number),
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {"small": number, "large": [number]},
        "channel_versions": {"small": f"{number}.5", "large": f"{number}.5"},
        "versions_seen": {},
        "updated_channels": None,
        **changes,
    }
    return {key: value for key, value in checkpoint.items() if value is not ...}


UNUSUAL: dict[str, dict[str, Any]] = {
    "no channel_versions": {"channel_versions": ...},
    "channel_versions null": {"channel_versions": None},
    "channel_versions a list": {"channel_versions": []},
    "channel_versions a text": {"channel_versions": "1.5"},
    "no versions_seen": {"versions_seen": ...},
    "versions_seen null": {"versions_seen": None},
    "no ts": {"ts": ...},
    "no updated_channels": {"updated_channels": ...},
    "another key": {"pending_sends": [1]},
    "a version of another type": {"channel_versions": {"small": {"a": 1.0}, "large": "1.5"}},
    "no channel_values": {"channel_values": ...},
    "channel_values null": {"channel_values": None},
}


async def outcome_of(call: Awaitable[Any]) -> Any:
    """What a call returns, or the class of what it raises."""
    try:
        return exact(await call)
    except Exception as exc:
        # Ours says what to do about it, and what upstream raises is the cause.
        return type(exc.__cause__) if isinstance(exc, L2RefusedError) else type(exc)


@pytest.mark.parametrize("changes", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("stored_by", ["upstream", "this saver"])
async def test_an_unusual_checkpoint_is_stored_and_read_as_upstream_does_it(
    stored_by: str, changes: dict[str, Any], database: str, redis: Redis
) -> None:
    """From the put's own image, cold, and warm; and so is the checkpoint that follows it."""
    async with (
        watched(database, redis, sweep_interval_seconds=NEVER) as one,
        open_upstream(database) as upstream,
    ):
        by = one.saver if stored_by == "this saver" else upstream

        async def put(saver: Any, thread_id: str, number: int, **more: Any) -> Any:
            new_versions = {"large": f"{number}.5"}
            outcome = await outcome_of(
                saver.aput(config_of(thread_id), unusual(number, **more), {"step": number}, new_versions)
            )
            return outcome if isinstance(outcome, type) else None

        for number, more in ((1, changes), (2, {})):
            assert await put(by, "t", number, **more) == await put(upstream, "twin", number, **more)
            await settled(one.saver)
            truth = await outcome_of(upstream.aget_tuple(config_of("t")))
            for _ in range(2):
                if stored_by == "upstream":
                    await redis.flushdb()
                for _ in range(3):
                    assert await outcome_of(one.saver.aget_tuple(config_of("t"))) == truth
                await redis.flushdb()
        assert one.reads["hit"] >= 4
        assert counts(one.registry, "glasspoint_l1_warm_ups_total", "result")["error"] == 0
        assert "unavailable" not in one.reads
        assert "incomplete" not in one.reads


@pytest.mark.parametrize(
    ("owner", "step"),
    [(entry, "image_fields"), (entry.Changes, "fields"), (entry.Changes, "write_fields")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_what_cannot_be_made_into_an_entry_fails_no_call(
    owner: Any,
    step: str,
    database: str,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever goes wrong in filling the cache: PostgreSQL has the state, and the cache forgets its own."""
    bad, good = Thread("bad"), Thread("good")
    async with (
        watched(database, redis, sweep_interval_seconds=NEVER) as one,
        open_upstream(database) as upstream,
    ):
        for thread in (bad, good):
            await thread.put(one.saver)
        made = getattr(owner, step)

        def fail(first: Any, *args: Any, **options: Any) -> Any:
            if Scope("bad", "") in (getattr(first, "scope", None), *args):
                raise KeyError("a piece of state")
            return made(first, *args, **options)

        monkeypatch.setattr(owner, step, fail)
        for _ in range(3):
            await bad.put(one.saver)
            await bad.put_writes(one.saver, "x")
            if step == "image_fields":
                await settled(one.saver)
                await redis.flushdb()
            assert await bad.turn(one.saver) == bad.number
            await good.put(one.saver)
            assert await one.hits(good)
        monkeypatch.undo()
        truth = exact(await upstream.aget_tuple(bad.config))
        for _ in range(2):
            assert exact(await one.saver.aget_tuple(bad.config)) == truth
        await bad.put(one.saver)
        assert await one.hits(bad)
        assert await journal(database) == []
        results = counts(one.registry, "glasspoint_write_through_total", "l1")
        assert "error" not in results
        assert "journalled" not in results
    lines = [each for each in caplog.messages if "cannot be encoded (KeyError)" in each]
    assert len(lines) == 1
    assert "a piece of state" not in caplog.text


# ------------------------------------------------------------------ a client that raises anything


class TokenService(CredentialProvider):
    """Where the client gets its password from, each time that it connects."""

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error

    def get_credentials(self) -> tuple[str, str]:
        if self.error is not None:
            raise self.error
        return "default", ""

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


class AnyError(Exception):
    """Of nobody's hierarchy."""


ERRORS = [
    RuntimeError("token service"),
    AnyError("x"),
    KeyError("x"),
    AssertionError(),
    UnicodeEncodeError("latin-1", "가", 0, 1, "x"),
    StopAsyncIteration(),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_credential_provider_that_raises_is_a_redis_that_is_away(
    error: Exception, database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """At the opening, and later; and when it is back, so is the cache, within seconds and by itself."""
    provider, threads = TokenService(error), [Thread(str(number)) for number in range(8)]
    async with (
        Redis(port=own_redis.port, credential_provider=provider) as client,
        watched(database, client) as one,
    ):
        for back in (False, True, False, True):
            provider.error = None if back else error
            if back:
                for thread in threads:
                    await until(lambda thread=thread: one.hits(thread))  # type: ignore[misc]
            else:
                for _ in range(10):  # more often than the client has connections, if one were lost each time
                    await client.connection_pool.disconnect()
                    await asyncio.gather(*(thread.put(one.saver) for thread in threads))
                    assert await asyncio.gather(*(t.turn(one.saver) for t in threads)) == [
                        thread.number for thread in threads
                    ]
                assert one.saver._parts.breaker.state != "closed"
        await until(lambda: is_empty(database))
        assert one.failed_tasks == {}, "a client's error is foreseen"
    assert "token service" not in caplog.text


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-16", "cp037"])
async def test_a_client_of_any_encoding_is_sent_utf_8(encoding: str, database: str, redis: Redis) -> None:
    """One process with such a client, and one without, share their entries."""
    port = redis.connection_pool.connection_kwargs["port"]
    threads = [Thread("대화 42", "é"), Thread("é"), Thread("plain")]
    async with (
        Redis(port=port, encoding=encoding) as client,
        watched(database, client, key_prefix="접두사 é") as one,
        watched(database, redis, key_prefix="접두사 é") as other,
        open_upstream(database) as upstream,
    ):
        for thread in threads:
            await thread.put(one.saver, **{"채널 é": ["값 é"]})
            await thread.put_writes(one.saver, "값 é", task_id="작업")
            truth = exact(await upstream.aget_tuple(thread.config))
            for each in (one, other):
                assert exact(await each.saver.aget_tuple(thread.config)) == truth
        await settled(one.saver)
        await redis.flushdb()
        for thread in threads:
            truth = exact(await upstream.aget_tuple(thread.config))
            for each in (one, other):
                assert exact(await each.saver.aget_tuple(thread.config)) == truth
        assert one.reads == {"hit": 3, "miss": 3}
        assert other.reads == {"hit": 6}


class Broken(Redis):
    """The real Redis, through a client whose code fails.

    Attributes:
        how: What each call of it does: raises this, or answers this.
    """

    how: Any = None

    async def evalsha(self, *args: Any, **options: Any) -> Any:
        return await self._broken(super().evalsha, *args, **options)

    async def ping(self, *args: Any, **options: Any) -> Any:
        return await self._broken(super().ping, *args, **options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        if isinstance(self.how, Exception):
            raise self.how
        return super().pipeline(*args, **options)

    async def _broken(self, call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        if isinstance(self.how, Exception):
            raise self.how
        return await call(*args, **options) if self.how is None else self.how


NONSENSE = [[], [99], 42, b"OK", {}, [1, b"odd"], [0, 1, 2, 3]]


@pytest.mark.parametrize("how", [*ERRORS, *NONSENSE], ids=repr)
async def test_a_client_that_raises_or_answers_anything_reaches_no_caller(
    how: Any, database: str, redis_url: str
) -> None:
    threads = [Thread("a"), Thread("b")]
    async with Broken.from_url(redis_url) as client, watched(database, client) as one:
        for thread in threads:
            await thread.put(one.saver)
            assert await one.hits(thread)
        client.how = how  # type: ignore[attr-defined]
        for _ in range(4):
            for thread in threads:
                await thread.put(one.saver)
                await thread.put_writes(one.saver, "x", task_id=str(thread.number))
                assert await thread.turn(one.saver) == thread.number
        await one.saver.acopy_thread("a", "copy")
        await one.saver.aprune(["a"])
        await one.saver.adelete_thread("copy")
        if isinstance(how, Exception):
            assert (await one.saver._check())["l1"] == "unavailable"
        client.how = None  # type: ignore[attr-defined]
        for thread in threads:
            await hits_at_last(redis_url, lambda thread=thread: one.hits(thread))  # type: ignore[misc]
        await until(lambda: is_empty(database))
        assert one.failed_tasks == {}


async def test_an_opening_survives_a_client_that_raises_anything(database: str, redis_url: str) -> None:
    thread = Thread("a")
    async with Broken.from_url(redis_url) as client:
        client.how = AnyError("x")  # type: ignore[attr-defined]
        async with watched(database, client) as one:
            assert one.saver._parts.breaker.state != "closed"
            await thread.put(one.saver)
            assert not await one.hits(thread)
            client.how = None  # type: ignore[attr-defined]
            await until(lambda: one.hits(thread))


# ------------------------------------------------------------------ a bug in a background task


@asynccontextmanager
async def failing(owner: Any, name: str, times: int = 3) -> AsyncIterator[Callable[[], bool]]:
    """A method that has a bug for some calls; answers whether it was called often enough to be over it."""
    right, called = getattr(owner, name), 0

    def wrong(*args: Any, **options: Any) -> Any:
        nonlocal called
        called += 1
        if called <= times:
            raise ZeroDivisionError("a piece of state")
        return right(*args, **options)

    setattr(owner, name, wrong)
    yield lambda: called > times
    setattr(owner, name, right)


@pytest.mark.parametrize("bug", ["_sweep_for_trust", "round", "_drop", "_try_quarantined"])
async def test_a_bug_in_the_sweeper_ends_no_sweeper(
    bug: str, database: str, redis: Redis, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    async with watched(database, redis) as one:
        await thread.put(one.saver)
        async with failing(one.saver._parts.sweeper, bug) as is_over:
            await record(database, "a")
            for _ in range(5):
                assert await thread.turn(one.saver) == thread.number, "no read is failed by it"
            await until(is_over)
            await until(lambda: is_empty(database))
        await until(lambda: one.hits(thread))
        assert one.failed_tasks == {"sweeper": 3}
    assert_said_once("sweeper", caplog)


def assert_said_once(task: str, caplog: pytest.LogCaptureFixture) -> None:
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert f"background task {task} met an error that nobody foresaw (ZeroDivisionError, at " in line.message
    assert "a piece of state" not in caplog.text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses after failures."""
    monkeypatch.setattr(background, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(background, "_LONGEST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(sweeping, "_PAUSE_SECONDS", 0.01)


async def test_a_bug_in_an_audit_ends_no_audits(
    database: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    async with watched(database, redis, audit_ratio=1.0) as one:
        await thread.put(one.saver)
        async with failing(one.saver._parts.auditor, "_judge") as is_over:
            while not is_over():
                assert await one.hits(thread)
                await until(lambda: not one.saver._parts.auditor._running)
        assert one.failed_tasks == {"auditor": 3}
        assert counts(one.registry, "glasspoint_l1_audits_total", "verdict") == {"consistent": 1}
    assert_said_once("auditor", caplog)


async def test_a_bug_in_looking_at_sizes_does_not_end_it(
    database: str, redis: Redis, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(database, redis) as one:
        sizes = one.saver._parts.sizes
        await until(sizes.known)
        async with failing(sizes, "_query") as is_over:
            sizes._found, sizes._ask_from = {}, float("-inf")
            await until(lambda: sizes.known() and is_over())
        assert one.failed_tasks == {"table_sizes": 3}
    assert_said_once("table_sizes", caplog)


async def test_a_bug_in_the_reconnector_does_not_end_it(
    postgres: EmbeddedPostgres, database: str, redis: Redis, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """While somebody waits for a connection, and PostgreSQL takes none."""
    thread = Thread("a")
    async with watched(database, redis, pool_min_size=0, pool_max_size=1, pool_timeout_seconds=30) as one:
        await thread.put(one.saver)
        await redis.flushdb()
        async with failing(connection_health, "_is_waited_for") as is_over:
            await sql(postgres.url, "ALTER DATABASE test ALLOW_CONNECTIONS false")
            try:
                await sql(
                    postgres.url,
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'test'",
                )
                reading = asyncio.create_task(thread.turn(one.saver))
                await until(is_over)
            finally:
                await sql(postgres.url, "ALTER DATABASE test ALLOW_CONNECTIONS true")
            assert await reading == 1
        assert one.failed_tasks["reconnector"] >= 1
    assert any("background task reconnector met an error" in each for each in caplog.messages)


async def test_a_bug_in_climbing_ends_no_climbing(
    own_redis: EmbeddedRedis, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    settings = Settings(
        postgres_url="postgresql://postgres@127.0.0.1:1/test",
        redis_url=own_redis.url,
        probe_interval=0.02,
    )
    telemetry = create_telemetry(registry=registry)
    async with get_checkpointer(settings, telemetry=telemetry) as saver:
        chain = saver._chain
        assert chain.tier == "redis"
        async with failing(chain, "_climb") as is_over:
            await until(is_over)
        assert counts(registry, "glasspoint_background_task_failures_total", "task") == {"tier_probe": 3}
    assert_said_once("tier_probe", caplog)


def test_pauses_grow_until_it_works_and_each_kind_of_bug_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = background.BackgroundTask("sweeper", None, means="Meanwhile.")

    def fail(error: type[Exception]) -> float:
        try:
            raise error
        except Exception as exc:
            return task.failed(exc)

    assert [fail(ValueError) for _ in range(9)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    task.worked()
    assert task.pause == 0.0
    assert fail(KeyError) == 0.25
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_no_task_is_started_that_nobody_supervises() -> None:
    """Whoever starts another one decides here what its failure means."""
    found = {
        (path.relative_to(SRC).as_posix(), line.strip())
        for path in SRC.rglob("*.py")
        if path.relative_to(SRC).parts[0] not in ("demo", "cli")
        for line in path.read_text("utf-8").splitlines()
        if "create_task(" in line and "``" not in line
    }
    awaited = {
        ("telemetry/live/asgi.py", "gone = asyncio.create_task(_until_gone(receive))"),
        (
            "savers/bursts.py",
            "burst = Burst(scope, _new_id(), asyncio.create_task(begin()), monotonic(), after)",
        ),
        ("fallback/draining.py", 'moving.create_task(move(thread_id), name="glasspoint-drain-thread")'),
        ("model/cancellation.py", "task = asyncio.create_task(work)"),
        ("l2/connections.py", "task = asyncio.create_task(work, context=context)"),
        (
            "l2/connection_health.py",
            "await asyncio.create_task(",  # the greeting of a connection
        ),
        ("l2/pool.py", "await asyncio.create_task("),
        ("model/lifetime.py", "return await asyncio.shield(self._to_the_end(asyncio.create_task(work)))"),
        ("model/home.py", "self._task = loop.create_task("),  # waits for the loop to end, and warns
        (  # without it the lease runs out, and the run ends
            "savers/retention.py",
            'renewing = asyncio.create_task(self._keep_renewing(), name="glasspoint-retention-lease")',
        ),
    }
    answer_their_callers_whatever_happens = {
        ("redis/auto_pipeline.py", "task = asyncio.create_task(self._run(steps))"),
        ("model/lifetime.py", "task = self._to_the_end(asyncio.create_task(work))"),  # warm-ups
    }
    supervised = {
        ("coherence/sweeper.py", "self._task = asyncio.create_task("),
        ("savers/retention.py", "self._task = asyncio.create_task("),
        (  # audits, ends of bursts
            "model/lifetime.py",
            "self._to_the_end(asyncio.create_task(work, context=context or self._background()))",
        ),
        ("l2/sizes.py", "self._task = self._loop.create_task("),
        ("l2/connection_health.py", "self._task = asyncio.create_task("),  # the reconnector
        ("fallback/controller.py", "task = asyncio.create_task(work, name=name, context=context)"),
        ("redis/sentinels.py", "self._watching = asyncio.get_running_loop().create_task("),  # logs all errors
    }
    assert found == awaited | answer_their_callers_whatever_happens | supervised


# ------------------------------------------------------------------ a server that cannot be the cache


@pytest.fixture
def cluster_node() -> Iterator[EmbeddedRedis]:
    server = start_node()
    yield server
    server.close()


async def test_a_node_of_a_cluster_is_refused_at_opening(database: str, cluster_node: EmbeddedRedis) -> None:
    with pytest.raises(ConfigurationError, match="is a node of a Redis Cluster") as caught:
        await CachedPostgresSaver.create(database, Redis.from_url(cluster_node.url))
    assert "cluster-enabled no" in str(caught.value), "what to do"
    assert "answers alone" not in str(caught.value)


@pytest.mark.parametrize("info", [{"redis_mode": "cluster"}, {"server_mode": "cluster"}])
def test_both_names_of_the_mode_are_known(info: dict[str, str]) -> None:
    with pytest.raises(faults.CannotBeTheCacheError):
        permissions.refuse_cluster(info)
    permissions.refuse_cluster({"redis_mode": "standalone", "server_mode": "standalone"})
    permissions.refuse_cluster({"redis_mode": "sentinel"})
    permissions.refuse_cluster({})


async def test_a_url_that_leads_to_a_cluster_later_is_said_once(
    database: str, own_redis: EmbeddedRedis, cluster_node: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    async with Proxy().to(tcp(own_redis)) as proxy, watched(database, proxy.url) as one:
        await thread.put(one.saver)
        for _ in range(2):
            assert await one.hits(thread)
            await proxy.switch(nowhere)
            await thread.put(one.saver)
            await proxy.switch(tcp(cluster_node))
            before = len(caplog.records)
            for _ in range(10):
                await thread.put(one.saver)
                assert not await one.hits(thread)

            def said(since: int) -> list[str]:
                return [each for each in caplog.messages[since:] if "is a node of a Redis Cluster" in each]

            # The breaker may have opened before the cluster was there: then a probe meets it.
            await until(lambda before=before: said(before))  # type: ignore[misc]
            await until(lambda: one.saver._parts.breaker.state == "open")
            assert len(said(before)) == 1
            async with Redis.from_url(cluster_node.url) as node:
                assert await node.dbsize() == 0
            await proxy.switch(tcp(own_redis))
            await until(lambda: one.hits(thread))
        assert await until(lambda: is_empty(database))


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short delays before a Redis that has refused is asked again."""
    delays = Breaker.__init__.__kwdefaults__
    assert delays is not None
    monkeypatch.setitem(delays, "delay_seconds", 0.1)
    monkeypatch.setitem(delays, "max_delay_seconds", 0.1)


NEEDED = [f"+{name}" for name in permissions.COMMANDS]
OPTIONAL = [f"+{name}" for name in permissions.OPTIONAL]


async def test_a_user_with_just_what_the_documentation_lists_is_enough(
    database: str, any_redis: EmbeddedRedis
) -> None:
    [rule] = re.findall(r"^ACL SETUSER glasspoint (.*)$", what_a_user_needs(), re.MULTILINE)
    await allow(any_redis, *rule.split()[2:])
    thread = Thread("대화 {42}")
    async with watched(database, url_of_user(any_redis)) as one:
        await thread.put(one.saver)
        await thread.put_writes(one.saver, "x")
        await thread.put(one.saver)
        assert await one.hits(thread)
        await until(lambda: l1_is_ok(one.saver))  # it asks for half a second at most
        async with Redis.from_url(any_redis.url) as admin:
            await settled(one.saver)
            await admin.flushall()
            assert not await one.hits(thread)
            assert await one.hits(thread)
            await set_string_at(admin, key_of(one.saver, thread))
        assert not await one.hits(thread)
        await one.saver.acopy_thread("대화 {42}", "copy")
        await one.saver.adelete_thread("copy")
        await record(database, "copy")
        await until(lambda: is_empty(database))
        assert one.reads.get("unavailable", 0) == 0
        assert counts(one.registry, "glasspoint_write_through_total", "l1").keys() == {"announced", "covered"}


async def set_string_at(redis: Redis, key: bytes) -> None:
    await redis.delete(key)
    await redis.set(key, "no hash")


@pytest.mark.parametrize("lacks", [*permissions.COMMANDS, "hset and info", "the keys", "the keys and hget"])
async def test_a_user_who_lacks_something_is_told_what_and_which_rule_to_add(
    lacks: str, database: str, any_redis: EmbeddedRedis, quick_probes: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The saver opens without the cache, and the rule is the right one: with it the cache comes to life."""
    thread = Thread("a")
    without = [name for name in permissions.COMMANDS if name in lacks.split(" and ")]
    keys = "~other:*" if "keys" in lacks else "~glasspoint:*"
    await allow(any_redis, keys, *(rule for rule in NEEDED if rule[1:] not in without))
    rule = " ".join([*(["~glasspoint:*"] if "keys" in lacks else []), *(f"+{name}" for name in without)])
    async with watched(database, url_of_user(any_redis)) as one:
        await thread.put(one.saver)
        message = the_error(caplog)
        for name in without:
            assert re.search(rf"may not run [A-Z, ]*\b{name.replace('|', ' ').upper()}\b", message), message
        assert "The Redis user 'app'" in message
        assert f"ACL SETUSER {USER} {rule} (" in message
        assert "secret" not in caplog.text
        await probed(one.saver, times=2)
        assert not await one.hits(thread)
        assert (await one.saver._check())["l1"] == "unavailable"
        async with Redis.from_url(any_redis.url) as admin:
            await acl(admin, USER, rule)
        await until(lambda: one.hits(thread))
        await until(lambda: l1_is_ok(one.saver))  # it asks for half a second at most
        await until(lambda: is_empty(database))
    # That, the breaker, and, if the sweeper was first to meet the refusal, that L1 does not answer.
    said = [each.getMessage() for each in caplog.records if each.levelno > logging.INFO]
    assert 2 <= len(said) == len(set(said)) <= 3, said


async def l1_is_ok(saver: CachedPostgresSaver) -> bool:
    return bool((await saver._check())["l1"] == "ok")


def the_error(caplog: pytest.LogCaptureFixture) -> str:
    """The one line at ERROR."""
    [record] = [each for each in caplog.records if each.levelno >= logging.ERROR]
    message = record.getMessage()
    assert "refuses to be the cache" in message
    assert "\n" not in message
    return message


async def probed(saver: CachedPostgresSaver, *, times: int) -> None:
    """Wait until L1 was probed so often, and refused."""
    probe, probes = saver._l1.probe, 0

    async def counted() -> None:
        nonlocal probes
        probes += 1
        await probe()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver._l1, "probe", counted)
        await until(lambda: probes > times)
    assert saver._parts.breaker.state != "closed"


async def test_a_user_who_may_not_even_select_the_database_is_told_so(
    database: str, any_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    await allow(any_redis, "~glasspoint:*", *NEEDED)
    async with watched(database, url_of_user(any_redis).replace("/0", "/1")) as one:
        assert re.search(r"may not run SELECT.*ACL SETUSER app \+select", the_error(caplog))
        await thread.put(one.saver)
        async with Redis.from_url(any_redis.url) as admin:
            await acl(admin, USER, "+select")
        await until(lambda: one.hits(thread))


async def test_a_user_who_loses_a_right_later_is_a_redis_that_is_away(
    database: str, any_redis: EmbeddedRedis, quick_probes: None
) -> None:
    """Inside a script, too; and nothing that was written meanwhile is hidden when the right is back."""
    thread = Thread("a")
    await allow(any_redis, "~glasspoint:*", *NEEDED)
    async with watched(database, url_of_user(any_redis)) as one:
        await thread.put(one.saver)
        for lost in ("hset", "pexpire", "evalsha", "info"):
            await hits_at_last(any_redis.url, lambda: one.hits(thread))
            await allow(any_redis, "~glasspoint:*", *(rule for rule in NEEDED if rule != f"+{lost}"))
            for _ in range(3):
                await thread.put(one.saver)
                assert await thread.turn(one.saver) == thread.number
            await allow(any_redis, "~glasspoint:*", *NEEDED)
        await hits_at_last(any_redis.url, lambda: one.hits(thread))
        await until(lambda: is_empty(database))


@pytest.mark.parametrize("of", ["a full one", "a replica"])
async def test_a_server_that_may_recover_is_no_misconfiguration(
    of: str, database: str, any_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """It refuses to write, to whomever: the saver opens, says so, and caches when the server can."""
    thread = Thread("a")
    async with Redis.from_url(any_redis.url) as admin:
        if of == "a full one":
            await admin.config_set("maxmemory-policy", "noeviction")
            await admin.config_set("maxmemory", 1)
        else:
            await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        async with watched(database, any_redis.url) as one:
            assert one.saver._parts.breaker.state != "closed"
            assert ("maxmemory" if of == "a full one" else "connect to its master") in the_error(caplog)
            await thread.put(one.saver)
            assert not await one.hits(thread)
            assert (await one.saver._check())["l1"] == "unavailable"
            await admin.config_set("maxmemory", 0)
            await admin.execute_command("REPLICAOF", "NO", "ONE")
            await until(lambda: one.hits(thread))


# ------------------------------------------------------------------ the list in the docs of what a user needs


def test_the_list_is_what_the_scripts_and_the_client_use() -> None:
    """A command that is added to a script is added to the list, to the check at opening, and to the docs."""
    scripts = commands_in(SRC / "l1" / "scripts")
    assert scripts >= {"hset", "hexists", "hgetall", "pexpire", "del"}
    by_the_client = {"ping", "info", "script|load", "evalsha"}
    assert set(permissions.COMMANDS) == scripts | by_the_client
    [rule] = re.findall(r"^ACL SETUSER glasspoint (.*)$", what_a_user_needs(), re.MULTILINE)
    assert rule.split() == ["on", ">PASSWORD", "~glasspoint:*", *NEEDED, *OPTIONAL]
