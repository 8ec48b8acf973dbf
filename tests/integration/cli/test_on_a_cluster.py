"""The commands on a Redis Cluster: they name its shards, and look at each of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from command_line import glasspoint
from glasspoint.cli.browsing import Browser
from glasspoint.cli.check import Finding, run_checks
from glasspoint.l2.target import Target
from redis_nodes import Nodes, slot_of
from redis_tier import opened
from states import open_saver
from steps import Thread, settled


def url_of(nodes: Nodes) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in nodes.servers[:2])


async def find(database: str, nodes: Nodes) -> dict[str, Finding]:
    found = [each async for each in run_checks(database, url_of(nodes), timeout_seconds=30.0)]
    return {each.name: each for each in found}


async def test_check_passes_and_names_the_shards(database: str, nodes: Nodes) -> None:
    async with open_saver(database, url_of(nodes)) as saver:
        await Thread("a").put(saver)
        identity = saver.status.identity
        found = await find(database, nodes)
        assert {name: each.status for name, each in found.items()} == dict.fromkeys(found, "ok"), found
        for server in nodes.masters():
            assert f"127.0.0.1:{server.port}" in found["Redis"].detail
        assert identity is not None
        assert identity in found["Identity"].detail, "the cache of the service, not a new one"
        assert saver.status.identity == identity


async def test_check_names_the_shard_that_refuses(database: str, nodes: Nodes) -> None:
    async with open_saver(database, url_of(nodes)):
        pass
    server = nodes.masters()[1]
    nodes.ask(server, "CONFIG", "SET", "maxmemory", 1)
    try:
        redis = (await find(database, nodes))["Redis"]
    finally:
        nodes.ask(server, "CONFIG", "SET", "maxmemory", 0)
    assert redis.status == "failed"
    assert f"The shard 127.0.0.1:{server.port}" in redis.detail


async def test_check_warns_of_eviction_which_the_tier_redis_cannot_afford(
    database: str, nodes: Nodes
) -> None:
    async with open_saver(database, url_of(nodes)):
        pass
    server = nodes.masters()[1]
    nodes.ask(server, "CONFIG", "SET", "maxmemory", 10**9)
    nodes.ask(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        eviction = (await find(database, nodes))["Eviction"]
    finally:
        nodes.ask(server, "CONFIG", "SET", "maxmemory-policy", "noeviction")
        nodes.ask(server, "CONFIG", "SET", "maxmemory", 0)
    assert eviction.status == "warning"
    assert "allkeys-lru" in eviction.detail


async def test_check_refuses_another_cluster_than_the_services(
    database: str, nodes: Nodes, redis_url: str
) -> None:
    async with open_saver(database, redis_url):
        identity = (await find(database, nodes))["Identity"]
    assert identity.status == "failed"
    assert "with another Redis" in identity.detail


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("check",), "Check REDIS_URL, and that the cluster is up"),
        (("show", "a"), "unavailable"),
        (("prune", "--older-than", "30d"), "Redis does not answer (RedisClusterException), and must be told"),
        (("migrate", "--from", "{}"), "Redis did not answer"),
    ],
)
async def test_a_cluster_of_which_no_node_answers_is_named(
    command: tuple[str, ...], says: str, database: str, redis_url: str
) -> None:
    away = "redis+cluster://127.0.0.1:1"
    is_source = command[0] == "migrate"
    async with open_saver(database, redis_url) as saver:
        await Thread("a").put(saver)
    done = await asyncio.to_thread(
        glasspoint,
        *(word.format(away) for word in command),
        POSTGRES_URL=database,
        REDIS_URL=redis_url if is_source else away,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in said
    assert says in said


async def test_browse_finds_the_entry_on_its_shard(database: str, nodes: Nodes) -> None:
    async def look(thread_id: str) -> dict[str, Any]:
        async with Browser.open(database, url_of(nodes), options={}) as browser:
            found = await browser.show(thread_id, None, namespace="")
        l1: dict[str, Any] = found["l1"]
        return l1

    async with open_saver(database, url_of(nodes)) as saver:
        thread = Thread("a")
        await thread.put(saver)
        await settled(saver)
        await saver.aget_tuple(thread.config)
        master = nodes.master_of(slot_of("a"))
        told = await look("a")
        assert (told["result"], told["agrees"]) == ("hit", True)
        assert told["shard"] == f"127.0.0.1:{master.port}"
        [key] = nodes.keys("glasspoint:*{a}*")
        nodes.ask(master, "HSET", key.decode(), "reign", "another")
        assert (await look("a"))["result"] == "absent"
        assert nodes.ask(master, "HGET", key.decode(), "reign") == b"another", "a command changes nothing"


async def test_check_names_the_threads_that_wait_in_the_tier_redis(database: str, nodes: Nodes) -> None:
    async with open_saver(database, url_of(nodes)):
        pass
    names = ["one", "two", "three", "four"]
    async with nodes.client() as client, opened(client, target=Target.of(database)) as tier:
        for name in names:
            await Thread(name).put(tier)
        outage = (await find(database, nodes))["Outage"]
        assert outage.status == "warning"
        assert "4 thread(s) wait in Redis" in outage.detail
        for name in names:
            await tier.adelete_thread(name)
        assert (await find(database, nodes))["Outage"].status == "ok"
