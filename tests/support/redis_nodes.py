"""Nodes of a Redis Cluster, and a whole cluster."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import redis
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import EmbeddedServerUnavailable

START_ATTEMPTS = 3
SLOTS = 16384

# How long a master may be silent before its replica takes over. A busy machine must not look like an outage.
NODE_TIMEOUT_MS = 2000
PATIENCE_SECONDS = 60.0

IN_CLUSTER = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
OPTIONS = (
    *IN_CLUSTER,
    *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
    *("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"),
    *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
)


def start_node(*options: str, make: Callable[[], EmbeddedRedis] = EmbeddedRedis) -> EmbeddedRedis:
    """One node, not in a cluster yet. Its second port is 10000 above the first and may be taken: then
    another pair is tried."""
    for attempt in range(1, START_ATTEMPTS + 1):
        server = make()
        try:
            server.start(*(options or IN_CLUSTER))
        except EmbeddedServerUnavailable:
            server.close()
            if attempt == START_ATTEMPTS:
                raise
        else:
            return server
    raise AssertionError


class Nodes:
    """A cluster of some masters with one replica each."""

    def __init__(self, servers: list[EmbeddedRedis]) -> None:
        self.servers = servers
        self._clients: dict[int, redis.Redis] = {}

    def admin(self, server: EmbeddedRedis) -> Any:
        """The client of one node. It is kept: making one takes ten times as long as a question."""
        if server.port not in self._clients:
            self._clients[server.port] = redis.Redis(host="127.0.0.1", port=server.port, socket_timeout=5.0)
        return self._clients[server.port]

    def ask(self, server: EmbeddedRedis, *command: object) -> Any:
        """Send one command to one node. As words of their own, so that nothing parses the result."""
        return self.admin(server).execute_command(*map(str, command))

    def id_of(self, server: EmbeddedRedis) -> str:
        return str(self.ask(server, "CLUSTER", "MYID").decode())

    def form(self, masters: int) -> None:
        """Make one cluster of the servers: the first are masters, the others their replicas."""
        self.give_slots(masters)
        for number, server in enumerate(self.servers[masters:]):
            self.ask(server, "CLUSTER", "REPLICATE", self.id_of(self.servers[number % masters]))
        self.heal()

    def give_slots(self, masters: int) -> None:
        """Let all servers know one another, and give the first of them the slots."""
        for number, server in enumerate(self.servers):
            self.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < masters:
                mine = range(SLOTS * number // masters, SLOTS * (number + 1) // masters)
                self.ask(server, "CLUSTER", "ADDSLOTS", *mine)
            if number:
                self.ask(server, "CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        wait(lambda: all(self.known_by(server) == len(self.servers) for server in self.servers))

    def known_by(self, server: EmbeddedRedis) -> int:
        lines = self.ask(server, "CLUSTER", "NODES").decode().splitlines()
        return len([line for line in lines if "handshake" not in line])

    def heal(self) -> None:
        """Start what is down, and wait until all is well: all slots served, each master with its replica."""
        for server in self.servers:
            if not server.running:
                server.start(*OPTIONS)
        for server in self.servers:
            self.ask(server, "CONFIG", "SET", "cluster-replica-no-failover", "no")
            lines = self.ask(server, "CLUSTER", "NODES").decode().splitlines()
            [mine] = [line for line in lines if "myself" in line]
            for slot in re.findall(r"\[(\d+)-[<>]-", mine):  # a test has ended in the middle of a move
                self.ask(server, "CLUSTER", "SETSLOT", slot, "STABLE")
        wait(self.is_well)

    def is_well(self) -> bool:
        masters = self.masters()
        for server in self.servers:
            if not self.serves_all_slots(server):
                return False
            replication = self.admin(server).info("replication")
            if server in masters:
                if replication["connected_slaves"] < 1:
                    return False
            elif replication["master_link_status"] != "up":
                return False
        told = {(self.view_of(server), self.replicas_known_by(server)) for server in self.servers}
        return len(told) == 1

    def serves_all_slots(self, server: EmbeddedRedis) -> bool:
        """Whether, as one node sees it, each slot has a master that is well."""
        info = self.ask(server, "CLUSTER", "INFO").decode()
        return "cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info

    def view_of(self, server: EmbeddedRedis) -> str:
        """Who owns which slots, as one node sees it."""
        slots = self.ask(server, "CLUSTER", "SLOTS")
        return repr(sorted((first, last, master[1]) for first, last, master, *_ in slots))

    def replicas_known_by(self, server: EmbeddedRedis) -> frozenset[tuple[str, str]]:
        """Each replica and its master, by their ids, as one node sees it."""
        lines = self.ask(server, "CLUSTER", "NODES").decode().splitlines()
        words = [line.split(" ") for line in lines]
        return frozenset((each[0], each[3]) for each in words if "slave" in each[2].split(","))

    def masters(self) -> list[EmbeddedRedis]:
        return [server for server in self.servers if server.running and self._is_master(server)]

    def _is_master(self, server: EmbeddedRedis) -> bool:
        return b"myself,master" in self.ask(server, "CLUSTER", "NODES")

    def master_of(self, slot: int, *, asked: EmbeddedRedis | None = None) -> EmbeddedRedis:
        """The master of a slot, as one node sees it."""
        by_port = {server.port: server for server in self.servers}
        asked = asked or next(server for server in self.servers if server.running)
        for first, last, master, *_ in self.ask(asked, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return by_port[master[1]]
        raise AssertionError(f"no master has the slot {slot}")

    def replicas_of(self, master: EmbeddedRedis) -> list[EmbeddedRedis]:
        id_ = self.id_of(master).encode()
        return [
            server
            for server in self.servers
            if server.running and b"myself,slave " + id_ in self.ask(server, "CLUSTER", "NODES")
        ]

    def keep(self, replica: EmbeddedRedis) -> None:
        """Let a replica never take over, until the cluster is healed."""
        self.ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "yes")

    def begin_move(self, slot: int, to: EmbeddedRedis) -> EmbeddedRedis:
        """Begin to move a slot: its present master answers ASK for keys that it does not have."""
        source = self.master_of(slot)
        self.ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        return source

    def end_move(self, slot: int, source: EmbeddedRedis, to: EmbeddedRedis) -> None:
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.migrate(keys, source, to)
        for server in (to, source, *self.masters()):
            self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))

    def migrate(self, keys: Iterable[bytes], source: EmbeddedRedis, to: EmbeddedRedis) -> None:
        """Move some keys of a slot on its way."""
        self.admin(source).execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)

    def move(self, slot: int, to: EmbeddedRedis) -> None:
        """Move a slot with its keys to another master."""
        self.end_move(slot, self.begin_move(slot, to), to)

    def fail_over(self, replica: EmbeddedRedis) -> None:
        """Promote a replica, as an operator does. Redis gives up after 5 seconds: then once more."""
        asked = -math.inf

        def is_promoted() -> bool:
            nonlocal asked
            if self._is_master(replica):
                return True
            if time.monotonic() - asked > 6:
                self.ask(replica, "CLUSTER", "FAILOVER")
                asked = time.monotonic()
            return False

        wait(is_promoted)

    def client(self, **options: Any) -> RedisCluster:
        return RedisCluster(host="127.0.0.1", port=self.servers[0].port, **options)

    def keys(self, pattern: str = "*") -> set[bytes]:
        found = set[bytes]()
        for server in self.masters():
            found |= set(self.admin(server).keys(pattern))
        return found

    def flush(self) -> None:
        for server in self.masters():
            self.ask(server, "FLUSHALL")

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients.values():
            client.close()


@contextmanager
def running_cluster(*, masters: int = 3) -> Iterator[Nodes]:
    """A new cluster of masters with one replica each."""
    with ExitStack() as started:
        servers = [started.enter_context(start_node(*OPTIONS)) for _ in range(2 * masters)]
        nodes = Nodes(servers)
        started.callback(nodes.close)
        nodes.form(masters)
        yield nodes


def slot_of(thread_id: str) -> int:
    """The slot of a thread whose id needs no encoding."""
    return key_slot(thread_id.encode())


def wait(condition: Any) -> None:
    """Wait without an event loop: a fixture of the session has none."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"still not so after {PATIENCE_SECONDS} s"
        time.sleep(0.02)
