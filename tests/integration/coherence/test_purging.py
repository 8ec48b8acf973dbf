"""What is deleted is gone: entries of the past, which no process reads, do not stay until they expire."""

from __future__ import annotations

import psycopg
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from states import open_saver
from steps import Thread, keys_of, until


async def _entries(redis_url: str, thread_id: str) -> list[bytes]:
    return [key for key in await keys_of(redis_url) if b"{%b}" % thread_id.encode() in key]


async def test_what_an_older_epoch_has_left_of_a_deleted_thread_is_gone_within_seconds(
    database: str, own_redis: EmbeddedRedis
) -> None:
    thread = Thread("a")
    async with open_saver(database, own_redis.url) as saver:
        await thread.put(saver)
        own_redis.save_snapshot()
        own_redis.kill()
        own_redis.start()
        assert await _entries(own_redis.url, "a"), "the snapshot has brought it back, or this shows nothing"
        await saver.adelete_thread("a")
        await until(lambda: _is_gone(own_redis.url, "a"))


async def _is_gone(redis_url: str, thread_id: str) -> bool:
    return not await _entries(redis_url, thread_id)


async def test_what_an_older_generation_has_left_is_gone_although_no_process_was_there(
    database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url) as saver:
        await Thread("a").put(saver)
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("UPDATE glasspoint_identity SET content_id = 'renewed'")
    async with open_saver(database, redis_url):
        await until(lambda: _is_gone(redis_url, "a"))


async def test_entries_of_another_database_stay(
    postgres: EmbeddedPostgres, database: str, own_redis: EmbeddedRedis
) -> None:
    other = postgres.create_database("purging")
    thread = Thread("a")
    async with open_saver(other, own_redis.url) as theirs, open_saver(database, own_redis.url) as ours:
        await thread.put(theirs)
        await Thread("b").put(ours)
        own_redis.save_snapshot()
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("UPDATE glasspoint_identity SET content_id = 'renewed'")
    async with open_saver(database, own_redis.url):
        await until(lambda: _is_gone(own_redis.url, "b"))
        assert len(await _entries(own_redis.url, "a")) == 1


async def test_a_user_who_may_not_scan_keeps_a_working_cache(database: str, own_redis: EmbeddedRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        await redis.execute_command(
            "ACL", "SETUSER", "app", "on", "nopass", "~*", "+@all", "-scan", "-unlink"
        )
    thread = Thread("a")
    url = own_redis.url.replace("redis://", "redis://app:x@")
    async with open_saver(database, url) as saver:
        await thread.put(saver)
        await until(lambda: _is_purged(saver))
        assert await thread.turn(saver) == 1
        assert saver._l1.trust.is_trusted


async def _is_purged(saver: CachedPostgresSaver) -> bool:
    await saver._parts.sweeper.tidy()
    await saver._parts.sweeper.round()
    return saver._parts.identity.is_purged
