"""The commands on a Redis Cluster: they name its shards, and look at each of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any, cast

import pytest
from rich.console import Console

from command_line import assert_fits, glasspoint
from glasspoint.cli import redis_servers
from glasspoint.cli.browsing import Browser
from glasspoint.cli.check import Finding, run_checks
from glasspoint.demo.model import RecallingChatModel
from glasspoint.demo.servers import Servers
from glasspoint.demo.story import tell_story
from glasspoint.demo.telemetry import observe
from glasspoint.embedded import EmbeddedRedis
from glasspoint.l2.target import Target
from glasspoint.redis.timeouts import answered_within
from glasspoint.redis.topology import OpenSlot, open_slots_in
from histories import id_at
from places import DOCS, SRC
from redis_nodes import NODE_TIMEOUT_MS, OPTIONS, Nodes, running_cluster, slot_of, start_node, wait
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
        assert "other database" not in found["Identity"].detail
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


async def test_check_skips_what_needs_redis_if_no_master_can_be_the_cache(
    database: str, nodes: Nodes
) -> None:
    masters = nodes.masters()
    for server in masters:
        nodes.ask(server, "CONFIG", "SET", "maxmemory", 1)
    try:
        found = await find(database, nodes)
    finally:
        for server in masters:
            nodes.ask(server, "CONFIG", "SET", "maxmemory", 0)
    assert "0 of 3 masters can be the cache" in found["Redis"].detail
    assert {found[name].status for name in ("Eviction", "Identity", "Outage")} == {"skipped"}


async def redis_of(database: str, url: str, **options: Any) -> str:
    """Return why `check` takes this Redis for no cache."""
    checks = cast(
        "AsyncGenerator[Finding]", run_checks(database, url, saver_options=options, timeout_seconds=30.0)
    )
    async with aclosing(checks):  # what comes after it would wait for a silent server, too
        async for each in checks:
            if each.name == "Redis":
                assert each.status == "failed"
                return each.detail
    raise AssertionError


async def test_check_names_what_is_no_cluster_to_work_on(database: str, nodes: Nodes) -> None:
    one_of_many = f"redis://127.0.0.1:{nodes.servers[0].port}"
    assert "Redis Cluster" in await redis_of(database, one_of_many, redis_mode="single")
    with start_node() as without_slots:
        url = f"redis+cluster://127.0.0.1:{without_slots.port}"
        assert await redis_of(database, url) == "no master of the Redis Cluster owns a slot."
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis+cluster://127.0.0.1:{silent.getsockname()[1]}"
        assert "no node of the Redis Cluster that REDIS_URL names answers within 2 s" in await redis_of(
            database, url
        )


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
        (("prune", "--older-than", "30d"), "told of it, but it does not answer (ConnectionError)"),
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


PAGE = (DOCS / "rights.md").read_text("utf-8")
ADDED = re.findall(r"^(\+[a-z|]+(?: \+[a-z|]+)*)$", PAGE, re.MULTILINE)


def url_for(nodes: Nodes, user: str, *added: str) -> str:
    """Make a user of docs/rights.md on each node, with further rules, and return its URL."""
    [rule] = re.findall(rf"^ACL SETUSER {user} on >PASSWORD (.*)$", PAGE, re.MULTILINE)
    for server in nodes.servers:
        nodes.ask(server, "ACL", "SETUSER", user, "reset", "on", ">PASSWORD", *rule.split(), *added)
    return url_of(nodes).replace("//", f"//{user}:PASSWORD@", 1)


async def test_the_rule_of_the_cache_is_enough_for_the_commands(database: str, nodes: Nodes) -> None:
    url = url_for(nodes, "glasspoint", *ADDED[0].split())
    async with open_saver(database, url) as saver:
        await Thread("a").put(saver)
    variables = {"POSTGRES_URL": database, "REDIS_URL": url, "CHECKPOINT_FALLBACKS": ""}
    for command in (("prune", "--older-than", "1d"), ("show", "a")):
        done = glasspoint(*command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
    checked = glasspoint("check", **variables)
    said = " ".join(checked.stdout.split())
    assert checked.returncode == 0, said
    assert "Redis was not asked whether threads of an outage wait there" in said


async def test_check_needs_the_rule_of_the_chain_if_the_service_falls_back_on_redis(
    database: str, nodes: Nodes
) -> None:
    async with open_saver(database, url_of(nodes)):
        pass
    few = url_for(nodes, "glasspoint", *ADDED[0].split())
    checked = glasspoint("check", POSTGRES_URL=database, REDIS_URL=few)
    said = " ".join(checked.stdout.split())
    assert checked.returncode == 1
    assert re.search(r"FAILED +Outage", checked.stdout)
    assert "ACL SETUSER glasspoint +" in said
    whole = url_for(nodes, "glasspoint_chain", *" ".join(ADDED).split())
    checked = glasspoint("check", POSTGRES_URL=database, REDIS_URL=whole)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("command", ["check", "prune --older-than 1d", "show a", "migrate"])
async def test_a_command_without_the_rights_of_a_cluster_names_the_rule(
    database: str, nodes: Nodes, command: str
) -> None:
    async with open_saver(database, url_of(nodes)) as saver:
        await Thread("a").put(saver)
    url = url_for(nodes, "glasspoint")
    words = [*command.split(), *(["--from", url] if command == "migrate" else [])]
    done = glasspoint(*words, POSTGRES_URL=database, REDIS_URL=url, COLUMNS="2000")
    said = " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in said
    assert done.returncode == (0 if command == "show a" else 1), said
    assert "ACL SETUSER glasspoint +" in said, said
    assert "+cluster|slots" in said


def test_slots_on_their_way_are_read_from_the_line_of_the_node_itself() -> None:
    other = "0" * 40
    told = f"me 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-2 4 [1->-{other}] [70-<-{other}]"
    assert open_slots_in([told.split(" ")]) == (OpenSlot(1, True, other), OpenSlot(70, False, other))


@contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[str]:
    """Freeze a node within the block. Yields its host and port."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_check_warns_of_a_frozen_replica_that_the_url_names_first(database: str, nodes: Nodes) -> None:
    async with open_saver(database, url_of(nodes)):
        pass
    masters = nodes.masters()
    replica = next(server for server in nodes.servers if server not in masters)
    with frozen(replica) as name:
        url = f"redis+cluster://{name},127.0.0.1:{masters[0].port}"
        found = {each.name: each async for each in run_checks(database, url, timeout_seconds=30.0)}
    nodes.heal()
    assert found["Redis"].status == "warning"
    assert f"the node {name}, which REDIS_URL names, does not answer" in found["Redis"].detail
    assert {each.status for each in found.values() if each.name != "Redis"} == {"ok"}, found


async def test_check_names_a_frozen_master_and_checks_the_others(
    database: str, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, most = 0, 0

    @contextmanager
    def counting(seconds: float) -> Iterator[None]:
        nonlocal waiting, most
        waiting, most = waiting + 1, max(most, waiting + 1)
        try:
            with answered_within(seconds):
                yield
        finally:
            waiting -= 1

    monkeypatch.setattr(redis_servers, "answered_within", counting)
    async with open_saver(database, url_of(nodes)):
        pass
    master = nodes.masters()[0]
    for replica in nodes.replicas_of(master):
        nodes.keep(replica)
    try:
        with frozen(master) as name:
            found = await find(database, nodes)
    finally:
        nodes.heal()
    assert found["Redis"].status == "failed"
    assert f"{name} does not answer within 2 s" in found["Redis"].detail
    assert "2 of 3 masters can be the cache" in found["Redis"].detail
    assert found["Eviction"].status == "warning"
    assert f"not known for all servers: {name} does not answer" in found["Eviction"].detail
    assert found["Identity"].status == "ok", found["Identity"].detail
    assert f"{name} does not answer within 2 s" in found["Outage"].detail
    assert most == 3, "all masters are asked at the same time, so one that hangs costs one wait"


async def test_prune_leaves_out_the_threads_of_a_lost_master_until_it_is_back(
    database: str, nodes: Nodes
) -> None:
    """And `migrate`, which a person runs once, copies nothing until all masters are there."""
    threads = {nodes.master_of(slot_of(name)).port: name for name in "abcdefgh"}
    async with open_saver(database, url_of(nodes)) as saver:
        for name in threads.values():
            thread = Thread(name)
            for days in (50, 40):
                config, checkpoint, metadata, versions = thread.next_put(saver)
                checkpoint["id"] = id_at(datetime.now(UTC) - timedelta(days=days))
                thread.newest = await saver.aput(config, checkpoint, metadata, versions)

    async def run(*words: str) -> tuple[int, dict[str, Any]]:
        variables = {"POSTGRES_URL": database, "REDIS_URL": url_of(nodes)}
        done = await asyncio.to_thread(glasspoint, *words, "--json", **variables)
        return done.returncode, json.loads(done.stdout)

    [lost] = [server for server in nodes.masters() if server.port == next(iter(threads))]
    for server in (*nodes.replicas_of(lost), lost):
        server.kill()
    try:
        status, report = await run("prune", "--older-than", "30d")
        assert status == 0, report
        assert (report["checkpoints"], report["threads"], report["skipped_threads"]) == (2, 2, 1)
        assert report["away"] == {f"127.0.0.1:{lost.port}": "refuses the connection"}
        assert report["unserved_slots"] == 0, "those of the lost master are not counted"
        status, report = await run("prune", "--older-than", "30d", "--dry-run")
        assert (status, report["checkpoints"]) == (0, 1), "that of the thread that was left out"
        assert report["away"] == {f"127.0.0.1:{lost.port}": "refuses the connection"}
        assert "obstacle" not in report
        status, report = await run("migrate", "--from", database)
        assert status == 1
        assert f"127.0.0.1:{lost.port}" in report["error"]
        assert "Nothing was copied" in report["error"]
    finally:
        nodes.heal()
    status, report = await run("prune", "--older-than", "30d")
    assert (status, report["checkpoints"], report["skipped_threads"]) == (0, 1, 0)
    assert report["away"] == {}


async def test_check_warns_of_slots_that_nobody_serves(database: str, nodes: Nodes) -> None:
    async with open_saver(database, url_of(nodes)):
        pass
    slot = slot_of("nobody")
    owner = nodes.master_of(slot)
    nodes.ask(owner, "CLUSTER", "DELSLOTS", slot)
    try:
        redis = (await find(database, nodes))["Redis"]
    finally:
        nodes.ask(owner, "CLUSTER", "ADDSLOTS", slot)
        nodes.heal()
    assert redis.status == "warning"
    assert "1 of 16384 slots have no master" in redis.detail


@contextmanager
def cluster_down(nodes: Nodes) -> Iterator[tuple[list[str], str]]:
    """Let a cluster lose two of its three masters. Yields the lost ones, and the one that is left."""
    *lost, left = nodes.masters()
    for server in [each for master in lost for each in nodes.replicas_of(master)] + lost:
        server.kill()
    try:
        wait(lambda: b"cluster_state:fail" in nodes.ask(left, "CLUSTER", "INFO"))
        yield [f"127.0.0.1:{server.port}" for server in lost], f"127.0.0.1:{left.port}"
    finally:
        nodes.heal()


async def test_check_and_prune_name_a_cluster_that_is_down_and_its_lost_masters(
    database: str, nodes: Nodes
) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in nodes.servers)
    variables = {"POSTGRES_URL": database, "REDIS_URL": url}
    async with open_saver(database, url):
        pass
    with cluster_down(nodes) as (lost, _):
        found = {each.name: each async for each in run_checks(database, url, timeout_seconds=30.0)}
        pruned = await asyncio.to_thread(glasspoint, "prune", "--older-than", "30d", **variables)
        counted = await asyncio.to_thread(
            glasspoint, "prune", "--older-than", "30d", "--dry-run", **variables
        )
        told = await asyncio.to_thread(
            glasspoint, "prune", "--older-than", "30d", "--dry-run", "--json", **variables
        )
    assert {
        name: why for name, why in json.loads(told.stdout)["away"].items() if name in lost
    } == dict.fromkeys(lost, "refuses the connection")
    away = f"Masters away: 2 of 3 ({', '.join(f'{name} refuses the connection' for name in lost)})"
    redis = found["Redis"]
    assert redis.status == "failed"
    assert "the Redis Cluster is down (CLUSTERDOWN): it serves no thread" in redis.detail
    assert away in redis.detail
    assert "bring them back" in redis.detail
    for name in ("Eviction", "Identity", "Outage"):
        assert (found[name].status, found[name].detail) == ("skipped", "the Redis Cluster is down")
    assert found["Conversation"].status == "failed"
    assert re.search(r", which (refuses the connection|serves nothing)", found["Conversation"].detail)
    said = " ".join(pruned.stderr.split())
    assert pruned.returncode == 1
    assert "Nothing was removed" in said
    assert away in said
    said = " ".join(counted.stdout.split())
    assert counted.returncode == 0
    assert "a run would fail now: Redis must be told of it, but the Redis Cluster is down" in said
    assert_fits(counted.stdout, columns=80)


async def test_check_says_what_a_cluster_lacks_that_wants_all_of_its_slots_served(
    database: str, nodes: Nodes
) -> None:
    slot = slot_of("nobody")
    owner = nodes.master_of(slot)
    for server in nodes.servers:
        nodes.ask(server, "CONFIG", "SET", "cluster-require-full-coverage", "yes")
    try:
        for server in nodes.masters():
            nodes.ask(server, "CLUSTER", "DELSLOTS", slot)
        wait(
            lambda: all(
                b"cluster_state:fail" in nodes.ask(each, "CLUSTER", "INFO") for each in nodes.masters()
            )
        )
        redis = (await find(database, nodes))["Redis"]
    finally:
        for server in nodes.servers:
            nodes.ask(server, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        nodes.ask(owner, "CLUSTER", "ADDSLOTS", slot)
        nodes.heal()
    assert redis.status == "failed"
    assert "1 of 16384 slots have no master" in redis.detail
    assert "With cluster-require-full-coverage yes" in redis.detail
    assert "redis-cli --cluster fix" in redis.detail


async def test_check_says_that_a_cluster_without_its_majority_will_be_down(
    database: str, nodes: Nodes
) -> None:
    """The masters notice it after their `cluster-node-timeout`; `check` knows it at once."""
    async with open_saver(database, url_of(nodes)):
        pass
    *lost, left = nodes.masters()
    for server in nodes.servers:  # so that they do not notice it in this test
        nodes.ask(server, "CONFIG", "SET", "cluster-node-timeout", 60_000)
    for server in lost:
        server.kill()
    try:
        url = f"redis+cluster://127.0.0.1:{left.port}"
        redis = {each.name: each async for each in run_checks(database, url, timeout_seconds=30.0)}["Redis"]
    finally:
        for server in nodes.servers:
            if server.running:
                nodes.ask(server, "CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT_MS)
        nodes.heal()
    assert redis.status == "failed"
    assert "1 of 3 masters can be the cache, and none as soon as the cluster notices" in redis.detail


async def test_check_warns_of_a_slot_on_its_way_and_of_a_move_that_is_open_on_one_side(
    database: str, nodes: Nodes
) -> None:
    async with open_saver(database, url_of(nodes)):
        pass
    slot = slot_of("a")
    source = nodes.master_of(slot)
    to = next(each for each in nodes.masters() if each is not source)
    one, other = f"127.0.0.1:{source.port}", f"127.0.0.1:{to.port}"
    nodes.begin_move(slot, to)
    moving = (await find(database, nodes))["Redis"]
    nodes.ask(source, "CLUSTER", "SETSLOT", slot, "STABLE")
    arriving = (await find(database, nodes))["Redis"]
    nodes.begin_move(slot, to)
    nodes.ask(to, "CLUSTER", "SETSLOT", slot, "STABLE")
    leaving = (await find(database, nodes))["Redis"]
    nodes.heal()
    assert (await find(database, nodes))["Redis"].status == "ok"
    assert {each.status for each in (moving, arriving, leaving)} == {"warning"}
    assert f"1 slot is on the way to another master: {slot} from {one} to {other}. Meanwhile" in moving.detail
    for each in (moving, arriving, leaving):
        assert f"redis-cli --cluster fix {min(one, other) if each is moving else ''}" in each.detail
        assert f"CLUSTER SETSLOT {slot} STABLE" in each.detail
    assert f"open on one side only: {slot} at {other} (IMPORTING from {one})" in arriving.detail
    assert f"open on one side only: {slot} at {one} (MIGRATING to {other})" in leaving.detail


async def test_check_sees_a_slot_that_is_on_its_way_to_a_master_without_slots(database: str) -> None:
    with running_cluster(masters=2) as nodes, start_node(*OPTIONS) as new:
        async with open_saver(database, url_of(nodes)):
            pass
        nodes.ask(new, "CLUSTER", "MEET", "127.0.0.1", nodes.servers[0].port)
        wait(lambda: all(nodes.known_by(each) == 5 for each in [*nodes.servers, new]))
        slot = slot_of("a")
        source = nodes.begin_move(slot, new)
        redis = (await find(database, nodes))["Redis"]
        nodes.ask(source, "CLUSTER", "SETSLOT", slot, "STABLE")
        called_off = (await find(database, nodes))["Redis"]
        assert f"{slot} from 127.0.0.1:{source.port} to 127.0.0.1:{new.port}" in redis.detail
        assert f"{slot} at 127.0.0.1:{new.port} (IMPORTING from" in called_off.detail


async def test_the_conversation_says_on_which_master_it_was(
    database: str, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glasspoint.cli.check.uuid4", lambda: "known")
    async with open_saver(database, url_of(nodes)):
        pass
    said = (await find(database, nodes))["Conversation"].detail
    [(slot, place)] = re.findall(r"the slot (\d+) of the scratch thread is on ([\d.:]+)", said)
    assert int(slot) == slot_of("glasspoint-check-known")
    assert place == f"127.0.0.1:{nodes.master_of(int(slot)).port}"


def test_no_client_is_opened_in_a_way_that_asks_all_nodes_of_a_cluster_for_their_commands() -> None:
    """`async with` of a `RedisCluster` waits for each node, and needs a right for COMMAND."""
    for path in SRC.rglob("*.py"):
        assert "async with await connect_redis(" not in path.read_text("utf-8"), path


async def test_the_story_of_the_demo_goes_as_expected_and_leaves_nothing(database: str, nodes: Nodes) -> None:
    nodes.ask(nodes.master_of(slot_of("somebody's")), "SET", "somebody's", "data")
    before, shown = nodes.keys(), StringIO()
    servers = Servers(database, url_of(nodes), own_postgres=None, own_redis=None)
    with observe(lost=pytest.fail) as observed:
        console = Console(file=shown, width=80)
        goes_well = await tell_story(console, servers, observed, RecallingChatModel(), thread_id="told")
    said = shown.getvalue()
    assert goes_well, said
    assert re.findall(r"as expected, L1 says (\w+)", said) == ["absent", "hit", "miss"]
    assert "only this conversation's own entries were" in said
    assert nodes.keys() == before
