"""A test that has a Redis for itself gets it as new, whatever the test before has done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from glasspoint.embedded import EmbeddedRedis
from spare_redis import SpareRedis

Change = Callable[[EmbeddedRedis, Redis], object]


def _leave_a_snapshot(server: EmbeddedRedis, client: Redis) -> None:
    client.set("left", "behind")
    client.save()


def _restart(server: EmbeddedRedis, client: Redis) -> None:
    server.stop()
    server.start()


CLEARED: dict[str, Change] = {
    "a key": lambda server, client: client.set("left", "behind"),
    "a key of another database": lambda server, client: Redis(port=server.port, db=3).set("left", "behind"),
    "a snapshot": _leave_a_snapshot,
    "a script": lambda server, client: client.script_load("return 'left'"),
    "a user": lambda server, client: client.acl_setuser("left", enabled=True, nopass=True),
    "a pause": lambda server, client: client.client_pause(60_000, all=False),
    "frozen": lambda server, client: server.freeze(),
}

REPLACED: dict[str, Change] = {
    "a setting": lambda server, client: client.config_set("maxmemory", "100mb"),
    "the default user": lambda server, client: client.acl_setuser("default", commands=["-set"]),
    "a replica": lambda server, client: client.replicaof("127.0.0.1", 1),
    "restarted": _restart,
    "killed": lambda server, client: server.kill(),
    "closed": lambda server, client: server.close(),
}


@pytest.mark.parametrize("change", [*CLEARED, *REPLACED])
def test_the_next_test_finds_nothing_of_it(change: str) -> None:
    with SpareRedis() as spare:
        server = spare.take()
        before, pid = _seen(server), server.pid
        with server._client() as client:
            (CLEARED | REPLACED)[change](server, client)
        after = spare.take()
        assert (after is server and after.pid == pid) == (change in CLEARED)
        assert _seen(after) == before
        after.kill()
        after.start()
        with after._client() as client:
            assert client.dbsize() == 0, "it loads no snapshot of the test before"


def _seen(server: EmbeddedRedis) -> dict[str, Any]:
    with server._client() as client:
        everything: Any = client.info("all")
        return {
            "keyspace": [name for name in everything if name.startswith("db")],
            "scripts": everything["number_of_cached_scripts"],
            "clients": everything["connected_clients"],
            "role": everything["role"],
            "users": client.acl_list(),
            "maxmemory": client.config_get("maxmemory"),
            "set": client.set("x", "y", px=1),
        }
