"""Two scopes never share a key, whatever characters they hold: no tenant reads another's state."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.crc import key_slot

from glasspoint.l1.epoch import Epoch, EpochKeeper, Server, UnidentifiedError
from glasspoint.model.identity import Identity
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import Signer
from states import open_saver
from steps import Thread

SECRET = b"a key of 16 byte"
IDENTITY = Identity("database", "generation", "run.reign", SECRET)
EPOCH = Epoch(
    Server("run.reign", "6.2", {}), IDENTITY, "glasspoint:2:run.reign:database.generation:", Signer(SECRET)
)

NASTY = ["a", "a}", "a}:x", "x}:", "{a}", "{", "}", ":", "::", "%7D", "a%7D:x", "*", "a b", "a\nb", "\r\n"]
NASTY += ["é", "e\u0301", "철수", "🙂", "a" * 5000, "A", "..", "/", "\\", "'", '"', "None", "0"]
NASTY += ["glasspoint:2:run.reign:database.generation:{a}:"]
storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def test_nasty_scopes_have_keys_of_their_own() -> None:
    scopes = [Scope(*names) for names in product(NASTY, ["", *NASTY])]
    assert len({EPOCH.key(scope) for scope in scopes}) == len(scopes)


@given(storable.filter(bool), storable, storable.filter(bool), storable)
def test_equal_keys_mean_equal_scopes(a: str, a_ns: str, b: str, b_ns: str) -> None:
    one, other = Scope(a, a_ns), Scope(b, b_ns)
    assert (EPOCH.key(one) == EPOCH.key(other)) == (one == other)


@given(storable.filter(bool), storable, storable)
def test_all_scopes_of_a_thread_live_in_one_slot_of_a_cluster(thread: str, one: str, other: str) -> None:
    keys = [EPOCH.key(Scope(thread, namespace)) for namespace in (one, other)]
    assert key_slot(keys[0]) == key_slot(keys[1])


def test_threads_are_spread_over_the_slots_of_a_cluster() -> None:
    slots = {key_slot(EPOCH.key(Scope(f"thread-{n}", ""))) for n in range(100)}
    assert len(slots) > 90


async def test_no_tenant_reads_the_state_of_another(database: str, redis_url: str) -> None:
    pairs = [
        ("a}:x", ""),
        ("a", "x}:"),
        ("a}", ":x"),
        ("a", "}:x"),
        ("a%7D", ":x"),
        ("a:", "x"),
        ("a", ":x"),
        ("a", ""),
    ]
    async with open_saver(database, redis_url) as saver:
        for number, scope in enumerate(pairs, start=1):
            thread = Thread(*scope)
            for _ in range(number):
                await thread.put(saver)
        for number, scope in enumerate(pairs, start=1):
            assert await Thread(*scope).turn(saver) == number


@pytest.mark.parametrize("prefixes", [("a", "b"), ("a", "a:1"), ("{a}", "{b}")])
async def test_savers_with_other_prefixes_do_not_see_each_other(
    prefixes: tuple[str, str], database: str, redis_url: str
) -> None:
    async with (
        open_saver(database, redis_url, key_prefix=prefixes[0]) as one,
        open_saver(database, redis_url, key_prefix=prefixes[1]) as other,
        Redis.from_url(redis_url) as redis,
    ):
        await Thread("t").put(one)
        assert await Thread("t").turn(other) == 1
        assert len(await redis.keys()) == 2


async def test_the_key_names_the_reign_of_the_server_and_the_identity_of_the_database(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        keeper = EpochKeeper(redis, key_prefix="p", changed=lambda *_: None)
        reign = (await keeper.meet()).reign
        keeper.identify(Identity("database", "generation", reign, SECRET))
        epoch = await keeper.refresh()
        server, replication = await redis.info("server"), await redis.info("replication")
    assert reign == f"{server['run_id']}.{replication['master_replid']}"
    assert epoch.key(Scope("t", "ns")) == f"p:3:{reign}:database.generation:{{t}}:ns".encode()


async def test_without_an_identity_for_this_server_there_is_no_key(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        keeper = EpochKeeper(redis, key_prefix="p", changed=lambda *_: None)
        with pytest.raises(UnidentifiedError):
            await keeper.refresh()
        keeper.identify(Identity("database", "generation", "another.reign", SECRET))
        with pytest.raises(UnidentifiedError):
            await keeper.refresh()
