"""`glasspoint threads`, `history`, `show`, `diff`: what stands there, and none of what people have said."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
from langgraph.types import Command
from psycopg.conninfo import make_conninfo
from redis.asyncio import Redis

from command_line import assert_fits, glasspoint
from glasspoint import CachedPostgresSaver
from glasspoint.cli.browsing import Browser
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import NotFoundError
from glasspoint.model.scope import Scope
from states import config_of, numbered_id, open_saver, open_upstream
from steps import Thread, keys_of, settled
from talkative import talkative

SECRET = "Geheimnis"
LONG = (
    "a thread with a name that is longer than any table on eighty columns could ever be, and then some more"
)


async def fill(database: str, redis_url: str) -> None:
    """A thread that has forked and waits for an answer, and a few others."""
    async with open_saver(database, redis_url) as saver:
        for number in range(3):
            thread = Thread(f"thread {number}")
            await thread.put(saver, said=[SECRET])
        graph = talkative(saver)
        config = {**config_of("forked"), "metadata": {"user": "alice", "note": SECRET}}
        await graph.ainvoke({"text": SECRET}, config)
        await graph.ainvoke(Command(resume=SECRET), config)
        old = [state async for state in graph.aget_state_history(config_of("forked"))][3]
        await graph.ainvoke(None, {**config, **old.config})
        await talkative(saver).ainvoke({"text": SECRET}, config_of(LONG))
        await settled(saver)
        await saver.aget_tuple(config_of("forked"))
        await saver.aget_tuple(config_of(LONG))


@pytest.fixture
def filled(database: str, redis_url: str) -> dict[str, str]:
    """The environment of a service that has been used."""
    asyncio.run(fill(database, redis_url))
    return {"POSTGRES_URL": database, "REDIS_URL": redis_url}


def as_json(*args: str, **variables: str) -> dict[str, Any]:
    done = glasspoint(*args, "--json", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] is True
    return found


def ids_of(history: dict[str, Any]) -> list[list[str]]:
    return [[each["checkpoint_id"] for each in branch["checkpoints"]] for branch in history["branches"]]


def test_nothing_that_was_said_is_printed_unless_it_is_asked_for(filled: dict[str, str]) -> None:
    (newest, *older), *_ = ids_of(as_json("history", "forked", **filled))
    for command, said in (
        (["threads"], SECRET),
        (["history", "forked"], SECRET),
        (["show", "forked"], SECRET),
        (["show", LONG], "which one?"),
        (["diff", "forked", older[-1], newest], SECRET),
    ):
        plain = glasspoint(*command, **filled)
        assert plain.returncode == 0, plain.stderr
        assert_fits(plain.stdout, columns=80)
        assert said not in plain.stdout + plain.stderr
        assert said not in json.dumps(as_json(*command, **filled))
        if command[-1] == LONG:
            assert LONG.replace(" ", "") in "".join(plain.stdout.split())
        for option in ([], ["--json"]):
            told = glasspoint(*command, "--content", *option, **filled)
            assert told.returncode == 0, told.stderr
            assert said in told.stdout


def test_looking_changes_nothing(filled: dict[str, str]) -> None:
    async def standing() -> Any:
        async with Redis.from_url(filled["REDIS_URL"]) as redis:
            lives = {key: await redis.pttl(key) for key in await redis.keys()}
        return await keys_of(filled["REDIS_URL"]), lives

    def rows() -> list[Any]:
        with psycopg.connect(filled["POSTGRES_URL"]) as connection:
            return [
                connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()
                for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "glasspoint_caches")
            ]

    before, rows_before = asyncio.run(standing()), rows()
    newest, oldest = (ids := ids_of(as_json("history", "forked", **filled))[0])[0], ids[-1]
    for command in (["threads"], ["show", "forked"], ["show", LONG], ["diff", "forked", oldest, newest]):
        as_json(*command, **filled)
    after = asyncio.run(standing())
    assert after[0] == before[0]
    assert all(after[1][key] <= life for key, life in before[1].items()), "an entry lives longer"
    assert rows() == rows_before


def test_threads_come_page_by_page_and_are_filtered(filled: dict[str, str]) -> None:
    every = [each["thread_id"] for each in as_json("threads", **filled)["threads"]]
    assert every == [LONG, "forked", "thread 0", "thread 1", "thread 2"]
    first = as_json("threads", "--limit", "2", **filled)["threads"]
    rest = as_json("threads", "--before", first[-1]["checkpoint_id"], **filled)["threads"]
    assert [each["thread_id"] for each in (*first, *rest)] == every
    assert f"--before {first[-1]['checkpoint_id']}" in glasspoint("threads", "--limit=2", **filled).stdout
    for filters, wanted in (
        (["user=alice"], ["forked"]),
        (["user=alice", "source=input"], []),
        (["step=1", "source=loop"], every[2:]),
        (["step=one"], []),
    ):
        options = [part for each in filters for part in ("--filter", each)]
        found = as_json("threads", *options, **filled)["threads"]
        assert [each["thread_id"] for each in found] == wanted
    assert "no such threads" in glasspoint("threads", "--filter=step=99", **filled).stdout


def test_a_history_is_told_branch_by_branch(filled: dict[str, str]) -> None:
    found = as_json("history", "forked", **filled)
    branches = ids_of(found)
    assert len(branches) == 2
    parents = {
        each["checkpoint_id"]: each["parent_id"]
        for branch in found["branches"]
        for each in branch["checkpoints"]
    }
    for branch, facts in zip(branches, found["branches"], strict=True):
        assert [parents[each] for each in branch] == [*branch[1:], facts["goes_on_from"]]
    assert branches[0][0] == max(parents)
    assert found["branches"][1]["goes_on_from"] in branches[0]
    assert (found["checkpoints"], found["shown"]) == (len(parents), len(parents))
    assert {each["checkpoint_ns"].partition(":")[0] for each in found["namespaces"]} == {"", "asks", "keeps"}
    assert sum(each["interrupts"] for branch in found["branches"] for each in branch["checkpoints"]) == 2
    newest, other = branches[0][0], branches[1][0]
    apart = as_json("diff", "forked", newest, other, **filled)["relation"]
    assert (apart["kind"], apart["common"]) == ("branches", found["branches"][1]["goes_on_from"])
    shown = glasspoint("history", "forked", "--limit", "2", **filled).stdout
    assert "older checkpoints are not shown" in shown
    subgraph = next(each for each in found["namespaces"] if each["checkpoint_ns"].startswith("asks:"))
    inner = as_json("history", "forked", "--namespace", subgraph["checkpoint_ns"], **filled)
    assert inner["checkpoints"] == subgraph["checkpoints"]


def test_a_checkpoint_is_taken_apart(filled: dict[str, str]) -> None:
    found = as_json("show", LONG, **filled)
    assert (found["next"], found["interrupts"], found["errors"]) == (["asks"], 1, 0)
    assert (found["step"], found["source"], found["is_newest"], found["format"]) == (3, "loop", True, 4)
    channels = {each["channel"]: each for each in found["channels"]}
    assert (channels["text"]["kept"], channels["text"]["type"]) == ("inline", "text")
    assert channels["text"]["bytes"] == len('"fanned"')
    assert (channels["parts"]["kept"], channels["parts"]["type"]) == ("value", "msgpack")
    [write] = found["pending_writes"]
    assert (write["node"], write["channel"], write["type"]) == ("asks", "__interrupt__", "msgpack")
    assert found["l1"]["result"] == "hit"
    assert found["l1"]["agrees"] is True
    older = as_json("show", LONG, found["parent_id"], **filled)
    assert (older["is_newest"], older["newest"]) == (False, found["checkpoint_id"])
    assert older["l1"]["result"] == "another checkpoint"
    assert older["l1"]["checkpoint_id"] == found["checkpoint_id"]


def test_two_checkpoints_are_compared_channel_by_channel(database: str, redis_url: str) -> None:
    async def put() -> None:
        async with open_saver(database, redis_url) as saver:
            thread = Thread("two")
            await thread.put(saver, gone=["x"])
            config, checkpoint, metadata, versions = thread.next_put(saver, new=["much longer"])
            checkpoint["channel_versions"] = {**versions, "turn": f"{1:032}.5"}
            checkpoint["channel_values"]["turn"] = 1
            versions.pop("turn")
            await saver.aput(config, checkpoint, metadata, versions)

    asyncio.run(put())
    found = as_json("diff", "two", numbered_id(1), numbered_id(2), POSTGRES_URL=database)
    assert {each["channel"]: each["change"] for each in found["channels"]} == {
        "branch:to:agent": "written, no value",
        "gone": "removed",
        "messages": "changed",
        "new": "added",
    }
    assert found["unchanged"] == ["turn"]
    assert found["relation"] == {"kind": "b goes on from a", "steps": 1, "common": numbered_id(1)}
    back = as_json("diff", "two", numbered_id(2), numbered_id(1), POSTGRES_URL=database)
    assert back["relation"]["kind"] == "a goes on from b"
    assert {each["channel"]: each["change"] for each in back["channels"]}["gone"] == "added"
    same = as_json("diff", "two", numbered_id(2), numbered_id(2), POSTGRES_URL=database)
    assert (same["channels"], same["relation"]["kind"]) == ([], "same")


def test_what_is_not_there_is_one_line_and_exit_status_1(filled: dict[str, str]) -> None:
    for command in (
        ["history", "nobody"],
        ["history", "forked", "--namespace", "none"],
        ["show", "nobody\x1b[2J\nin two lines"],
        ["show", "forked", "1f000000"],
        ["show", "forked", "--namespace", "none"],
        ["diff", "forked", "a", "b"],
    ):
        done = glasspoint(*command, **filled)
        assert (done.returncode, done.stdout) == (1, "")
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert "\x1b" not in line
    told = glasspoint("diff", "nobody", "a", "b", "--json", **filled)
    assert (told.returncode, told.stderr) == (1, "")
    assert json.loads(told.stdout)["ok"] is False


def test_servers_that_are_not_there_are_one_line(empty_database: str, own_redis: EmbeddedRedis) -> None:
    away = {"POSTGRES_URL": "postgresql://me:geheim@127.0.0.1:1/x", "REDIS_URL": own_redis.url}
    done = glasspoint("threads", **away)
    assert done.returncode == 1
    assert "PostgreSQL cannot be reached" in done.stderr
    assert "geheim" not in done.stderr
    without_tables = glasspoint("threads", POSTGRES_URL=empty_database)
    assert without_tables.returncode == 1
    assert "tables are not there" in without_tables.stderr
    assert glasspoint("threads").returncode == 2
    assert glasspoint("threads", "--filter", "nonsense", POSTGRES_URL=empty_database).returncode == 2
    assert "Traceback" not in done.stderr + without_tables.stderr


async def look(saver: CachedPostgresSaver, urls: tuple[str, str], **options: Any) -> dict[str, Any]:
    scope = options.pop("scope", Scope("t", ""))
    options.setdefault("options", {})
    async with Browser.open(*urls, **options) as browser:
        found = await browser.show(scope.thread_id, None, namespace=scope.checkpoint_ns)
    l1: dict[str, Any] = found["l1"]
    return l1


async def test_what_stands_in_redis_is_told_as_a_read_would_find_it(
    database: str, redis_url: str, own_redis: EmbeddedRedis
) -> None:
    urls = (database, redis_url)
    async with open_saver(database, redis_url, l1_compression="zstd") as saver:
        thread, scope = Thread("t"), Scope("t", "")
        await thread.put(saver)
        await thread.put_writes(saver, "pending")
        await settled(saver)
        await saver.aget_tuple(thread.config)
        told = await look(saver, urls)
        assert (told["result"], told["agrees"], told["journalled"]) == ("hit", True, False)
        assert 0 < told["expires_in_seconds"] <= 86400

        intent = await saver._l1.begin(scope)
        assert (await look(saver, urls))["result"] == "busy"
        assert await saver._l1.drop(intent)
        assert (await look(saver, urls))["result"] == "absent"

        inner = Thread("t", "node:a task")
        await inner.put(saver)
        assert (await look(saver, urls, scope=Scope("t", "node:a task")))["result"] == "not cached"
        assert (await look(saver, (database, "")))["result"] == "not configured"
        assert (await look(saver, urls, key_prefix="other"))["result"] == "no cache"
        assert (await look(saver, (database, own_redis.url)))["result"] == "no cache"
        own_redis.kill()
        assert (await look(saver, (database, own_redis.url)))["result"] == "unavailable"

        await saver.aget_tuple(thread.config)
        wrong_key = {"l1_signing_key": "sixteen bytes and more"}
        assert (await look(saver, urls, options=wrong_key))["result"] == "unusable"
        assert (await look(saver, urls))["agrees"] is True
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("SET session_replication_role = replica")  # no trigger tells of it
            await connection.execute("UPDATE checkpoints SET metadata = metadata || '{\"step\": 99}'")
        stale = await look(saver, urls)
        assert (stale["result"], stale["agrees"]) == ("hit", False)
        assert stale["differs_in"] == ["metadata.step"]
        with pytest.raises(NotFoundError):
            await look(saver, urls, scope=Scope("nobody", ""))


async def test_a_database_of_langgraph_alone_can_be_looked_at(empty_database: str, redis_url: str) -> None:
    """By a role that may only read."""
    async with open_upstream(empty_database) as upstream:
        await Thread("1").put(upstream)
        async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as connection:
            await connection.execute("DROP ROLE IF EXISTS looks")
            await connection.execute("CREATE ROLE looks LOGIN")
            try:
                for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
                    await connection.execute(f"GRANT SELECT ON {table} TO looks")
                async with Browser.open(
                    make_conninfo(empty_database, user="looks"), redis_url, options={}
                ) as browser:
                    found = await browser.show("1", None, namespace="")
                    assert found["checkpoint_id"] == numbered_id(1)
                    assert found["l1"]["result"] == "no cache"
                    assert "glasspoint setup" in found["l1"]["detail"]
                    assert len(await browser.threads(filter={}, limit=5, before=None)) == 1
            finally:
                await connection.execute("DROP OWNED BY looks")
                await connection.execute("DROP ROLE looks")


async def put(saver: CachedPostgresSaver, thread_id: str, metadata: Any, **values: Any) -> None:
    versions: Any = dict.fromkeys(values, "1")
    checkpoint: Any = {
        "v": 4, "id": "no uuid", "ts": SECRET, "channel_values": values, "channel_versions": versions,
        "versions_seen": {}, "updated_channels": None,
    }  # fmt: skip
    await saver.aput(config_of(thread_id), checkpoint, metadata, versions)


def test_names_that_others_chose_are_shown_as_they_are(database: str, redis_url: str) -> None:
    """No markup, no escape sequences; and what stands in the place of a step is no step."""
    odd, deep = "[red]a[/bold]\x1b[31m\n", {"a": {1: {2}, ("t",): float("nan")}, "b": b"\xff"}

    async def fill_it() -> None:
        async with open_saver(database, redis_url) as saver:
            await put(saver, odd, {"step": SECRET, "source": {SECRET: 1}}, **{odd: deep, "plain": odd})
            config: Any = {"configurable": {**config_of(odd)["configurable"], "checkpoint_id": "no uuid"}}
            await saver.aput_writes(config, [("[/x]", 1)], "[/task]", "~__pregel_pull, [/node]")

    asyncio.run(fill_it())
    for command in (["threads"], ["history", odd], ["show", odd], ["diff", odd, "no uuid", "no uuid"]):
        shown = {}
        for options in ("", "--content", "--content --json"):
            done = glasspoint(*command, *options.split(), POSTGRES_URL=database, REDIS_URL=redis_url)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            assert "\x1b" not in done.stdout
            shown[options] = done.stdout
        assert SECRET not in shown[""]
        assert r"[red]a[/bold]\x1b[31m\n" in shown[""]
        assert_fits(shown[""], columns=80)
