"""A Redis user with the rights that `docs/rights.md` prints is enough; a missing right is named.

The rules are parsed from the page. All of this runs on both wordings of Redis's ACL errors.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from chains import NOWHERE, chain
from databases import with_tables
from glasspoint import RedisSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import ConfigurationError, RedisRefusedError
from glasspoint.history import permissions as tier
from glasspoint.l2.target import Target
from glasspoint.redis import permissions as cache
from places import SRC
from redis_users import USER, acl, allow, commands_in, url_of_user, what_a_user_needs
from states import config_of, counts, open_upstream
from steps import Thread, until

TARGET = Target("db", "5432", "app")
NEVER = 1000.0
"""How often a chain looks for a better tier where a test does not want it to, in seconds."""


def rule_for(user: str) -> list[str]:
    """The rule of the page for a use, without the password."""
    rule: str
    [rule] = re.findall(rf"^ACL SETUSER {user} on >PASSWORD (.*)$", what_a_user_needs(), re.MULTILINE)
    return rule.split()


FOR_THE_CHAIN = rule_for("glasspoint_chain")
FOR_A_SAVER = rule_for("glasspoint_tier")


@asynccontextmanager
async def opened(server: EmbeddedRedis, **options: Any) -> AsyncIterator[RedisSaver]:
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with await RedisSaver.create(url_of_user(server), telemetry=telemetry, **options) as saver:
        yield saver


# ------------------------------------------------------------------ the rules are whole


MASTERS = (SRC / "redis" / "masters.py").read_text("utf-8")


def test_the_tier_s_table_is_what_its_scripts_and_its_client_use() -> None:
    """A command that is added to a script is added to the check at opening, and to the docs."""
    steps = (SRC / "history" / "steps.py").read_text("utf-8")
    by_the_client = set(re.findall(r"(?:await |_in_slot\(|partial\(|\*\()redis\.(\w+)", steps))
    by_the_client |= {
        name.lower() for name in re.findall(r'(?:_servers\.run\w*|_together)[(,][^"]*"([A-Z]+)"', steps)
    }
    by_the_client |= set(re.findall(r"await self\._redis\.(\w+)", MASTERS)) - {"execute_command"}
    by_the_client.remove("config_get")  # after a failure; without that right, the default counts
    assert by_the_client == {"ping", "info", "time", "scan", "zcard", "zscan", "zadd", "evalsha", "eval"}
    needed = commands_in(SRC / "history" / "scripts") | by_the_client
    assert {*tier.COMMANDS, *tier.OPTIONAL} == needed
    assert set(FOR_A_SAVER) == {"~glasspoint:*", *(f"+{name}" for name in needed)}


def test_the_chain_s_rule_is_that_of_the_cache_and_that_of_the_tier_in_one() -> None:
    both = {*cache.COMMANDS, *cache.OPTIONAL, *tier.COMMANDS, *tier.OPTIONAL}
    assert set(FOR_THE_CHAIN) == {"~glasspoint:*", *(f"+{name}" for name in both)}
    assert len(FOR_THE_CHAIN) == len(both) + 1


async def test_the_chain_s_rule_is_enough_in_the_tier_cached(
    database: str,
    any_redis: EmbeddedRedis,
) -> None:
    await allow(any_redis, *FOR_THE_CHAIN)
    registry, thread = CollectorRegistry(), Thread("대화 {42}")
    async with chain(database, url_of_user(any_redis), registry) as saver:
        assert saver.tier == "cached"
        await until(lambda: saver._chain.whole)
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        await thread.put(saver)
        for _ in range(3):
            assert await thread.turn(saver) == 2
        assert counts(registry, "glasspoint_l1_reads_total", "result")["hit"] >= 2
        assert counts(registry, "glasspoint_write_through_total", "l1").keys() == {"announced", "covered"}


async def test_the_chain_s_rule_is_enough_in_the_tier_redis_and_to_drain_it(
    own_postgres: EmbeddedPostgres,
    any_redis: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await allow(any_redis, *FOR_THE_CHAIN)
    database, url = with_tables(own_postgres), url_of_user(any_redis)
    hot, doomed, new = Thread("hot"), Thread("doomed"), Thread("new")
    key = "an L1 signing key"
    async with chain(database, url, l1_signing_key=key) as saver:
        for thread in (hot, doomed):
            await thread.put(saver)
            assert await thread.turn(saver) == 1
        await until(lambda: saver._chain.whole)
    own_postgres.stop()
    async with chain(database, url, l1_signing_key=key) as saver:
        assert saver.tier == "redis"
        assert await hot.turn(saver) == 1, "it goes on from its cached state"
        for thread in (hot, new, new):
            await thread.put(saver)
            await thread.put_writes(saver, "x")
        await use(saver, new)
        await saver.adelete_thread("doomed")
        assert await doomed.turn(saver) is None
        own_postgres.start()
        await until(lambda: saver._chain.whole)
        assert saver.tier == "cached"
        assert await hot.turn(saver) == 2
    async with open_upstream(database) as upstream:
        assert await hot.turn(upstream) == 2
        assert await new.turn(upstream) == 2
        assert await Thread("pruned").turn(upstream) == 2
        assert await Thread("deleted").turn(upstream) is None
    assert "Cached states cannot be read" not in caplog.text
    assert "cannot be used as it is configured" not in caplog.text


async def use(saver: Any, thread: Thread) -> None:
    """All that a saver's tier `redis` can do with a thread of two checkpoints or more."""
    assert await thread.turn(saver) == thread.number
    assert len([each async for each in saver.alist(thread.config, filter={"step": 1})]) == 1
    assert thread.thread_id in {each.config["configurable"]["thread_id"] async for each in saver.alist(None)}
    await saver.aget_delta_channel_history(config=thread.config, channels=["no such"])
    for copy in ("pruned", "deleted"):
        await saver.acopy_thread(thread.thread_id, copy)
    await saver.aprune(["pruned"])
    assert len([each async for each in saver.alist(config_of("pruned"))]) == 1
    await saver.adelete_for_runs(["no such run"])
    await saver.adelete_thread("deleted")
    assert await Thread("deleted").turn(saver) is None


@pytest.mark.parametrize("options", [{}, {"target": TARGET}, {"ttl": None}], ids=str)
async def test_the_rule_for_a_saver_by_itself_is_enough(
    options: dict[str, Any],
    any_redis: EmbeddedRedis,
) -> None:
    await allow(any_redis, *FOR_A_SAVER)
    thread = Thread("대화 {42}", "")
    async with opened(any_redis, **options) as saver:
        assert saver.status.versions["redis"]
        for _ in range(2):
            await thread.put(saver)
            await thread.put_writes(saver, "x")
        await use(saver, thread)
        assert {each async for each in saver.thread_ids()} == {thread.thread_id, "pruned"}
        token = await saver.seal_thread("pruned", lease_seconds=60)
        assert token is not None
        assert [each async for each in saver.export_thread("pruned")]
        assert await saver.retire_thread("pruned", token, marker_seconds=60)
        async with Redis.from_url(any_redis.url) as admin:
            assert [key async for key in admin.scan_iter("*permissions*")] == []


# ------------------------------------------------------------------ a right that is missing


async def test_a_user_who_lacks_a_command_is_told_which_and_the_rule_to_add(
    any_redis: EmbeddedRedis,
) -> None:
    for lacks in tier.COMMANDS:
        await allow(any_redis, *(rule for rule in FOR_A_SAVER if rule != f"+{lacks}"))
        with pytest.raises(RedisRefusedError) as caught:
            await RedisSaver.create(url_of_user(any_redis), target=TARGET)
        message = str(caught.value)
        if lacks == "ping":  # the first thing that is sent
            assert "this user may not run" in message
        else:
            assert f"The Redis user 'app' may not run {lacks.upper()}. Let it" in message
            assert f"ACL SETUSER {USER} +{lacks} (" in message
            assert set(re.findall(r"[~+][\w:*|]+", message)) == {f"+{lacks}", *FOR_A_SAVER}
        assert "docs/rights.md" in message
        assert "secret" not in message
    async with Redis.from_url(any_redis.url) as admin:
        assert [key for key in await admin.keys() if await admin.pttl(key) < 0] == []


async def test_a_user_who_lacks_keys_is_told_so(
    any_redis: EmbeddedRedis,
) -> None:
    await allow(any_redis, "~other:*", *FOR_A_SAVER[1:])
    with pytest.raises(RedisRefusedError, match=r"may not read and write the keys glasspoint:\*") as caught:
        await RedisSaver.create(url_of_user(any_redis))
    assert f"ACL SETUSER {USER} ~glasspoint:* (" in str(caught.value)


async def test_a_saver_needs_no_info(
    any_redis: EmbeddedRedis,
) -> None:
    await allow(any_redis, *(rule for rule in FOR_A_SAVER if rule != "+info"))
    async with opened(any_redis) as saver:
        await Thread("a").put(saver)


async def test_a_chain_whose_tier_redis_lacks_a_command_does_not_start(
    any_redis: EmbeddedRedis,
) -> None:
    await allow(any_redis, *(rule for rule in FOR_THE_CHAIN if rule != "+zremrangebyscore"))
    with pytest.raises(ConfigurationError, match=r"may not run ZREMRANGEBYSCORE.*ACL SETUSER app \+zrem"):
        async with chain(f"{NOWHERE}/app", url_of_user(any_redis), probe_interval=NEVER):
            pass


async def test_a_right_that_is_taken_away_later_is_named_as_one(
    any_redis: EmbeddedRedis,
) -> None:
    """Inside a script Redis 6.2 gives the error no code, and does not name the command."""
    async with Redis.from_url(any_redis.url) as admin:
        for lost in ("evalsha", "time", "get", "zcard", "hincrby", "zadd", "zremrangebyscore"):
            await allow(any_redis, *FOR_A_SAVER)
            async with opened(any_redis, target=TARGET) as saver:
                await Thread("known").put(saver)  # only the first call of a script sends its text
                await acl(admin, USER, f"-{lost}")
                with pytest.raises(RedisRefusedError, match="this user may not run") as caught:
                    await Thread(lost).put(saver)
            assert "docs/rights.md" in str(caught.value)
        await allow(any_redis, *FOR_A_SAVER)
        async with opened(any_redis) as saver:
            await acl(admin, USER, "resetkeys", "~other:*")
            with pytest.raises(RedisRefusedError, match="this user may not use a key"):
                await Thread("a").put(saver)


async def test_a_key_that_a_script_may_not_use_is_named_as_one(
    any_redis: EmbeddedRedis,
) -> None:
    """The script may begin, because its keys are allowed. It then names one that is not."""
    await allow(any_redis, *FOR_A_SAVER)
    async with opened(any_redis) as saver:
        with pytest.MonkeyPatch.context() as patch:
            text = "return redis.call('GET', 'other')"
            patch.setattr("glasspoint.history.steps._script", lambda step: (text, "0" * 40))
            with pytest.raises(RedisRefusedError, match="this user may not use a key"):
                await Thread("a").turn(saver)


@pytest.mark.parametrize("of", ["a full one", "a replica"])
async def test_a_redis_that_takes_no_writes_is_not_refused_for_that(
    of: str,
    any_redis: EmbeddedRedis,
) -> None:
    thread = Thread("a")
    await allow(any_redis, *FOR_A_SAVER)
    async with Redis.from_url(any_redis.url) as admin:
        async with opened(any_redis) as saver:
            await thread.put(saver)
        if of == "a full one":
            await admin.config_set("maxmemory", 1)
        else:
            await admin.replicaof("127.0.0.1", 1)
        async with opened(any_redis) as saver:
            assert await thread.turn(saver) == 1
        await acl(admin, USER, "-zscan")
        with pytest.raises(RedisRefusedError, match="may not run ZSCAN"):
            await RedisSaver.create(url_of_user(any_redis))
