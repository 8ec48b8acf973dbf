"""Alone: what goes wrong with one scope costs that scope its cache, never another scope's, and ends no task.

A key of another type, a key that this Redis user may not touch, a row of the journal that Redis does not take,
a client that raises anything, more intents than a script can unpack, a bug in a background task: callers are
answered by PostgreSQL, all other scopes are cached, and when the fault is gone, all are, without a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import AskError, MovedError, ResponseError

from glasspoint import CachedPostgresSaver, Telemetry, codec, create_telemetry
from glasspoint.demo.embedded import EmbeddedRedis
from glasspoint.l1 import faults
from glasspoint.l1.cache import Cache, Intent
from glasspoint.l1.quarantine import Quarantine
from glasspoint.scope import Scope, scope_of
from states import config_of, counts, exact, numbered_id, open_saver, open_upstream
from steps import Thread, keys_of, until

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
        return self.registry.get_sample_value("glasspoint_l1_quarantined_scopes", {"saver": "default"})

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


def key_of(saver: CachedPostgresSaver, thread: Thread) -> str:
    assert saver._l1.epoch is not None
    return saver._l1.epoch.key(scope_of(thread.config))


async def sql(database: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        cursor = await conn.execute(statement, params or None)  # type: ignore[arg-type]
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
def cache(redis: Redis) -> Cache:
    return make_cache(redis)


def make_cache(redis: Redis) -> Cache:
    return Cache(
        redis, Telemetry("test", ()), key_prefix="test", ttl_seconds=60, intent_seconds=60, timeout_seconds=10
    )


def make_put(number: int) -> codec.EncodedPut:
    versions = {"messages": f"{number}.5"}
    checkpoint: Any = {
        "v": 4,
        "id": numbered_id(number),
        "channel_values": {"messages": [number]},
        "channel_versions": versions,
        "versions_seen": {},
    }
    return codec.encode_put(SERDE, config_of("t"), None, checkpoint, {"step": number}, versions)


Discard = Callable[[Cache, Intent], Awaitable[Any]]

DISCARDS: dict[str, Discard] = {
    "DROP": lambda cache, own: cache.drop(own),
    "DROP, in doubt": lambda cache, own: cache.drop(own, still_running=True),
    "COMMIT_PUT": lambda cache, own: cache.commit_put(own, make_put(2), newest=False, known_writes=[]),
    "COMMIT_WRITES": lambda cache, own: cache.commit_writes(
        Intent(SCOPE, b"gone"), numbered_id(1), [], overwrote=False
    ),
    "REFUSE": lambda cache, own: cache.refuse(SCOPE, numbered_id(1)),
}


@pytest.mark.parametrize("discard", DISCARDS)
async def test_a_discard_loses_no_intent_however_many_there_are(
    discard: str, cache: Cache, redis: Redis
) -> None:
    """Readers stay away as long as one of these writes may change PostgreSQL; none may install an image."""
    first = await cache.begin(SCOPE)
    assert await cache.commit_put(first, make_put(1), newest=True, known_writes=[]) == "applied"
    own = await cache.begin(SCOPE)
    (key,) = await redis.keys()
    (deadline,) = [v for k, v in (await redis.hgetall(key)).items() if k == b"i:" + own.name]
    others = {f"i:{number}".encode(): deadline for number in range(MANY_INTENTS)}
    await redis.hset(key, mapping=others)
    await DISCARDS[discard](cache, own)
    left = await redis.hgetall(key)
    assert others.keys() <= left.keys()
    assert {left[name] for name in others} == {deadline.replace(b":1", b":0")}, "disarmed, with its deadline"
    assert not any(name[:2] in (b"c:", b"w:") or name in (b"id", b"head", b"lease") for name in left)
    assert (await cache.read(SCOPE, None)).result == "busy"
    assert 0 < await redis.pttl(key) <= 60_000


async def test_a_full_redis_still_disarms(cache: Cache, own_redis: EmbeddedRedis) -> None:
    """It refuses a script's first write if that needs memory: a discard begins with one that needs none."""
    async with Redis.from_url(own_redis.url) as full:
        cache = make_cache(full)
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
    await cache.commit_put(intent, make_put(1), newest=True, known_writes=[])
    (key,) = await redis.keys()
    for start in range(0, 100_000, 10_000):
        await redis.hset(key, mapping={f"x:{number}": "x" for number in range(start, start + 10_000)})
    reading = await cache.read(SCOPE, None)
    assert (reading.result, len(reading.fields)) == ("hit", 2 * (100_000 + 3))
    assert (
        await cache.commit_put(await cache.begin(SCOPE), make_put(2), newest=True, known_writes=[])
        == "applied"
    )
    assert await cache.drop(Intent(SCOPE, b""))
    assert await redis.keys() == []


STEPS: dict[str, tuple[Any, ...]] = {
    "read": ("token", "", 60_000, 60_000),
    "refuse": ("token", numbered_id(1), 60_000),
    "begin": ("token", 60_000),
    "commit_put": ("own", numbered_id(2), 0, 1, 60_000, 0, 0, 1, "head", "x"),
    "commit_writes": ("gone", numbered_id(1), 60_000, 0, 0, f"w:{numbered_id(1)}:task:0", "x"),
    "abort": ("own",),
    "warm_up": ("lease", 60_000, "id", numbered_id(1)),
    "drop": ("own", 1, 60_000),
    "clear": (),
}


COMMANDS_OF_SCRIPTS = (
    "hset",
    "hsetnx",
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
    epoch = await cache.connect()
    assert epoch.shas.keys() == STEPS.keys()
    deadline = f"{10**15}:1"
    entry = {
        **{"id": numbered_id(1), "head": "x", "c:a": "1", "lease": "lease"},
        **{"i:own": deadline, "i:other": deadline},
    }
    key = epoch.key(SCOPE)
    port = redis.connection_pool.connection_kwargs["port"]
    refused = []
    for command in COMMANDS_OF_SCRIPTS:
        await acl(redis, "probed", "reset on nopass ~* +@all", f"-{command}")
        await redis.delete(key)
        await redis.hset(key, mapping=entry)
        async with Redis(port=port, username="probed", password="any") as probed:
            answers = probed.pipeline(transaction=False).evalsha(epoch.shas[step], 1, key, *STEPS[step])
            [answer] = await answers.execute(raise_on_error=False)
        if isinstance(answer, ResponseError):
            assert faults.classify(answer).is_final, answer
            refused.append(command)
        left = await redis.hgetall(key)
        assert left.get(b"i:other", b"")[:-1] == deadline[:-1].encode(), command
    await redis.acl_deluser("probed")
    assert refused


async def acl(redis: Redis, user: str, *rules: str) -> None:
    await redis.execute_command("ACL SETUSER", user, *(rule for each in rules for rule in each.split()))


# ------------------------------------------------------------------ a key of another type


async def set_string(redis: Redis, key: str) -> None:
    await redis.set(key, "no hash")


async def set_list(redis: Redis, key: str) -> None:
    await redis.rpush(key, "no hash")


async def set_members(redis: Redis, key: str) -> None:
    await redis.sadd(key, "no hash")


async def set_scores(redis: Redis, key: str) -> None:
    await redis.zadd(key, {"no hash": 1})


async def set_stream(redis: Redis, key: str) -> None:
    await redis.xadd(key, {"no": "hash"})


@pytest.mark.parametrize("other", [set_string, set_list, set_members, set_scores, set_stream])
@pytest.mark.parametrize("first", ["read", "put", "put_writes", "delete"])
async def test_a_key_of_another_type_is_taken_away_and_nobody_else_notices(
    first: str,
    other: Callable[[Redis, str], Awaitable[None]],
    database: str,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Thread("bad"), Thread("good")
    async with watched(database, redis) as one, open_upstream(database) as upstream:
        for thread in (bad, good):
            await thread.put(one.saver)
            assert await one.hits(thread)
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
        for _ in range(3):
            assert await one.hits(good)
        truth = await upstream.aget_tuple(bad.config)
        for _ in range(2):
            assert exact(await one.saver.aget_tuple(bad.config)) == exact(truth)
        assert "unavailable" not in one.reads
        assert one.reads["hit"] >= (5 if first == "delete" else 6), "and that one hits again"
        assert one.quarantined == 0
        assert one.saver._breaker.is_closed
        assert one.dropped["tampered"] == 1
        assert await journal(database) == []
    [line] = [each for each in caplog.messages if "held another type" in each]
    assert "'bad'" in line
    assert not any("does not answer" in each for each in caplog.messages)


@pytest.mark.parametrize("before", ["commit_put", "commit_writes", "warm_up", "drop"])
async def test_an_entry_that_is_written_over_between_two_steps_is_lost_like_an_evicted_one(
    before: str, database: str, redis: Redis
) -> None:
    """The intent or the lease went with it: nothing is installed that nobody can vouch for."""
    thread = Thread("bad")
    async with watched(database, redis) as one, open_upstream(database) as upstream:
        await thread.put(one.saver)
        key = key_of(one.saver, thread)
        step = one.saver._l1._step

        async def after_somebody(name: str, *args: Any) -> Any:
            if name == before:
                await redis.delete(key)
                await set_string(redis, key)
            return await step(name, *args)

        one.saver._l1._step = after_somebody  # type: ignore[method-assign]
        if before == "commit_put":
            await thread.put(one.saver)
        elif before == "commit_writes":
            await thread.put_writes(one.saver, "x")
        elif before == "drop":
            await one.saver.adelete_thread("bad")
        else:
            await redis.delete(key)
            await one.saver.aget_tuple(thread.config)
        one.saver._l1._step = step  # type: ignore[method-assign]
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
        if any(f"{{{thread}}}".encode() in args[0] for thread in self.refused):
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
        assert one.saver._breaker.is_closed
        assert one.saver.vitals.breaker == "closed"
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
    database: str, refusing: Refusing
) -> None:
    threads = [Thread(f"t{number}") for number in range(8)]
    async with watched(database, refusing) as one:
        for thread in threads:
            await thread.put(one.saver)
        refusing.refused = frozenset({*(thread.thread_id for thread in threads), "%00probe"})
        for thread in threads:
            assert not await one.hits(thread)
        assert one.saver._breaker.state != "closed"
        for thread in threads:
            await thread.put(one.saver)
            assert not await one.hits(thread)
        refusing.refused = frozenset()
        for thread in threads:
            await until(lambda thread=thread: one.hits(thread))
        assert one.quarantined == 0


async def test_a_commit_that_is_refused_concerns_its_scope_alone(database: str, refusing: Refusing) -> None:
    """BEGIN was heard, COMMIT is refused: a row is made, the writer reads its write, all others hit on."""
    bad, good = Thread("bad"), Thread("good")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        for thread in (bad, good):
            await thread.put(one.saver)
            assert await one.hits(thread)
        commit = one.saver._l1.commit_put

        async def refused(*args: Any, **options: Any) -> Any:
            refusing.refused = frozenset({"bad"})
            return await commit(*args, **options)

        one.saver._l1.commit_put = refused  # type: ignore[method-assign]
        await bad.put(one.saver)
        assert await journal(database) == ["bad"]
        assert one.saver._l1.trusted, "nothing is to be doubted of the others"
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
            keys=["glasspoint:permissions:*", "*{%00probe}*", "*{good*", *more_keys],
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
            await until(lambda: journal_is(database, ["bad", "bad"]))
            for _ in range(3):
                assert not await one.hits(bad), "the image from before the write is not shown"
                assert await one.hits(good)
            assert one.quarantined == 1
            assert one.saver.vitals.journal_pending == 0
            async with watched(database, restricted) as later:
                await until(lambda: later.hits(good))
                assert not await later.hits(bad)
                assert later.quarantined == 1
                await restrict(own_redis, "*{bad*")
                for each in (one, later):
                    await until(lambda each=each: each.hits(bad))
                    assert each.quarantined == 0
                assert await is_empty(database)
                for each in (one, later):
                    assert each.saver._breaker.is_closed
                    assert counts(each.registry, "glasspoint_l1_breaker_transitions_total", "to") == {}
    assert sum("is in quarantine" in each for each in caplog.messages) == 2, "a line in each process"


async def journal_is(database: str, threads: list[str]) -> bool:
    return await journal(database) == threads


async def test_a_quarantine_does_not_end_before_its_drop_worked(database: str, refusing: Refusing) -> None:
    good, bad = Thread("good"), Thread("bad")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        await one.saver._sweeper.round()
        await good.put(one.saver)
        refusing.refused = frozenset({"bad"})
        await record(database, "bad")
        for number in range(1, 6):
            await one.saver._sweeper.round()
            assert refusing.asked == number, "once a sweep"
            assert one.quarantined == 1
            assert await one.hits(good)
            assert await journal(database) == ["bad"]
        refusing.refused = frozenset()
        await bad.put(one.saver)
        assert not await one.hits(bad), "nor by a Redis that would take the key again"
        await one.saver._sweeper.round()
        assert one.quarantined == 0
        assert await is_empty(database)
        assert not await one.hits(bad)
        assert await one.hits(bad)


async def test_a_write_during_the_sweep_keeps_its_scope_in_quarantine(
    database: str, refusing: Refusing
) -> None:
    """Its row was not there when the sweep looked, so the DROP says nothing about it."""
    bad = Thread("bad")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        refusing.refused = frozenset({"bad"})
        await bad.put(one.saver)
        refusing.refused = frozenset()
        pending = one.saver._l2.journal.pending

        async def and_then_a_write(*args: Any, **options: Any) -> Any:
            rows = await pending(*args, **options)
            one.saver._l2.journal.pending = pending  # type: ignore[method-assign]
            await bad.put(one.saver)
            return rows

        one.saver._l2.journal.pending = and_then_a_write  # type: ignore[method-assign]
        await one.saver._sweeper.round()
        assert one.quarantined == 1
        assert await journal(database) == ["bad"]
        await one.saver._sweeper.round()
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
        one.saver._l1.doubt()
        await one.saver._sweeper.round()
        assert one.quarantined == 600
        assert one.saver._breaker.is_closed
        assert not await one.hits(good), "it was dropped for its rows"
        assert await one.hits(good)
        assert sorted(set(await journal(database))) == sorted(bad)
        for _ in range(3):
            before = refusing.asked
            await one.saver._sweeper.round()
            assert refusing.asked - before <= 16
        refusing.refused = frozenset()
        await one.saver._sweeper.round()
        assert one.quarantined == 0
        assert await is_empty(database)


async def test_the_rows_of_a_busy_scope_in_quarantine_do_not_grow_without_end(
    database: str, refusing: Refusing
) -> None:
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        refusing.refused = frozenset({"bad"})
        await record(database, *["bad"] * 1500)
        await one.saver._sweeper.round()
        assert await journal(database) == ["bad"]
        await record(database, "bad")
        await one.saver._sweeper.round()
        assert await journal(database) == ["bad", "bad"], "only many of them are worth it"


async def test_pruning_goes_on_past_a_scope_in_quarantine(database: str, refusing: Refusing) -> None:
    bad, good = Thread("bad"), Thread("good")
    async with watched(database, refusing, sweep_interval_seconds=NEVER) as one:
        for thread in (bad, good):
            for _ in range(2):
                await thread.put(one.saver)
        refusing.refused = frozenset({"bad"})
        assert not await one.hits(bad)
        report = await one.saver.aprune_older_than(timedelta(days=1))
        assert report.checkpoints == 2
        assert set(await journal(database)) == {"bad"}
        assert await one.hits(good) or await one.hits(good)


def test_a_quarantine_that_is_full_takes_nobody_in() -> None:
    """Then it is not about single keys, and no scope is trusted: see `Cache._refused`."""
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
