"""Two masters of a real Redis Cluster, between which the slot of the explored scope moves.

The cluster has a few slots only, and no replicas. What it is at a moment of a run is one small value, a
`Course`: who owns the slot, where it is on its way to, and the configuration epoch of each master. `arrange`
makes the servers so, whatever an earlier run has left.

Nothing sets a configuration epoch back. So the epochs are numbered anew in each run, in the order in which
they were reached: a course has 1 and 2 at its beginning, and the servers have some other numbers in the same
order. Whether a master takes a new epoch is decided by the servers, and compared with the course.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import redis
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from glasspoint.embedded import EmbeddedRedis
from model.terms import HERE, SCOPE, THERE
from model.wires import Wire, parse, raise_error
from redis_nodes import Nodes, start_node, wait

__all__ = ["SLOT", "Course", "TwoMasters", "two_masters"]

SLOT = key_slot(SCOPE.thread_id.encode())

# A tag of keys that are no entries needs a slot of its master: see `tag_in`.
_SLOTS = {HERE: (SLOT, key_slot(b"2")), THERE: (key_slot(b"0"),)}

# Nobody is to think of an outage because the machine is busy.
_OPTIONS = (
    *("--cluster-enabled", "yes", "--cluster-node-timeout", "600000"),
    *("--cluster-require-full-coverage", "no"),
)
# A node waits until the disk has what it knows, after each change: in memory, that takes no time.
_IN_MEMORY = Path("/dev/shm")
_MAY_DEBUG = ("--enable-debug-command", "yes")  # an option since Redis 7

_PATIENCE_SECONDS = 60.0
_MY_EPOCH = re.compile(rb"(?<=cluster_my_epoch:)\d+")
_CURRENT_EPOCH = re.compile(rb"(?<=cluster_current_epoch:)\d+")


class Course(NamedTuple):
    """What the cluster is.

    Attributes:
        owner: The master of the slot.
        target: The master that the slot is on its way to; `""`: it is not on its way.
        stays: Whether the owner does not know any more that it is on its way.
        here, there: The configuration epoch of each master.
        left_here, left_there: How many keys have left each master, by a MIGRATE each.
        kept: How often the owner was told that the slot stays, while keys of it were away.
    """

    owner: str = HERE
    target: str = ""
    stays: bool = False
    here: int = 2
    there: int = 1
    left_here: int = 0
    left_there: int = 0
    kept: int = 0

    def epoch(self, where: str) -> int:
        """Return the configuration epoch of a master."""
        return self.here if where == HERE else self.there

    def left(self, where: str) -> int:
        """Return how many keys have left a master."""
        return self.left_here if where == HERE else self.left_there

    def leaving(self, where: str) -> Course:
        """Let a key leave a master."""
        if where == HERE:
            return self._replace(left_here=self.left_here + 1)
        return self._replace(left_there=self.left_there + 1)

    @property
    def newest(self) -> str:
        """The master with the greatest configuration epoch."""
        return HERE if self.here > self.there else THERE

    def raised(self, where: str) -> Course:
        """Give a master the greatest epoch."""
        epoch = max(self.here, self.there) + 1
        return self._replace(here=epoch) if where == HERE else self._replace(there=epoch)


def other(where: str) -> str:
    """Return the other master."""
    return THERE if where == HERE else HERE


class TwoMasters:
    """The servers, and what they are now."""

    def __init__(self, servers: dict[str, EmbeddedRedis]) -> None:
        self.servers = servers
        self.wires = {where: Wire(server.port) for where, server in servers.items()}
        self.ids: dict[str, bytes] = {where: self._ask(where, "CLUSTER", "MYID") for where in servers}
        self.real = Course()
        """What the servers are, with their own epochs."""
        self._learn()

    @property
    def ports(self) -> dict[str, int]:
        """The port of each master."""
        return {where: server.port for where, server in self.servers.items()}

    def client(self) -> RedisCluster:
        """Return a client that has not connected yet."""
        return RedisCluster(host="127.0.0.1", port=self.servers[HERE].port)

    def close(self) -> None:
        """Close the connections."""
        for wire in self.wires.values():
            wire.close()

    # ------------------------------------------------------------------ what they are made to be

    def arrange(self, course: Course, stored: dict[str, list[tuple[Any, ...]]]) -> None:
        """Make the servers what they are in a course.

        Args:
            stored: Commands that store what each master holds.
        """
        if self.real.target:
            self._settle()
        for where in self.wires:
            self._ask(where, "FLUSHDB")
        if self.real.owner != course.owner:
            # With the greatest epoch: the other one may still claim the slot in a message that is under way.
            if self.real.newest != course.owner:
                self.raise_epoch(course.owner)
            for where in (other(course.owner), course.owner):
                self._ask(where, "CLUSTER", "SETSLOT", SLOT, "NODE", self.ids[course.owner])
            self.real = self.real._replace(owner=course.owner)
            # A Valkey that imports a slot takes it if its owner does not claim it, in an older message, too.
            self.raise_epoch(course.owner)
        if self.real.newest != course.newest:
            self.raise_epoch(course.newest)
        # While a slot is on its way, its owner takes no new key.
        for command in stored.get(course.owner, ()):
            self._ask(course.owner, *command)
        if course.target:
            self.begin(course.target)
            for command in stored.get(course.target, ()):
                raise_error(self.wires[course.target].send(("ASKING",), command)[1])
            if course.stays:
                self.call_off()

    def begin(self, target: str) -> None:
        """Let the slot be on its way."""
        source = self.real.owner
        self._ask(target, "CLUSTER", "SETSLOT", SLOT, "IMPORTING", self.ids[source])
        self._ask(source, "CLUSTER", "SETSLOT", SLOT, "MIGRATING", self.ids[target])
        self.real = self.real._replace(target=target)

    def carry(self, source: str, target: str, keys: list[bytes], *, replaces: bool = False) -> None:
        """Move keys. A key that is there already is replaced, or the one that moves is removed."""
        options = ("REPLACE",) if replaces else ()
        for key in keys:
            answer = self.wires[source].send(
                ("MIGRATE", "127.0.0.1", self.ports[target], "", 0, 60_000, *options, "KEYS", key)
            )[0]
            if b"BUSYKEY" in str(answer).encode():
                self.wires[source].send(("ASKING",), ("DEL", key))
            else:
                raise_error(answer)

    def arrive(self) -> bool:
        """Give the slot to the master that it is on its way to. Return whether that has a new epoch."""
        target, before = self.real.target, self.real
        for where in (target, self.real.owner):
            self._ask(where, "CLUSTER", "SETSLOT", SLOT, "NODE", self.ids[target])
        self.real = self.real._replace(owner=target, target="")
        self._spread(target)
        return self.real.epoch(target) != before.epoch(target)

    def call_off(self) -> None:
        """Let the slot stay where it is, for its owner."""
        self._ask(self.real.owner, "CLUSTER", "SETSLOT", SLOT, "STABLE")

    def forget_call(self) -> None:
        """Let the slot stay where it is, for the other master."""
        self._ask(self.real.target, "CLUSTER", "SETSLOT", SLOT, "STABLE")
        self.real = self.real._replace(target="")

    def promote(self, where: str) -> None:
        """Make a master what its replica is that takes over: it has another `master_replid`, and the greatest
        epoch. Its keys are gone. Its scripts are not."""
        self._ask(where, "FLUSHDB")
        self._ask(where, "DEBUG", "CHANGE-REPL-ID")
        if self.real.newest != where:
            self.raise_epoch(where)

    def raise_epoch(self, where: str) -> None:
        """Give a master the greatest epoch."""
        self._ask(where, "CLUSTER", "BUMPEPOCH")
        self._spread(where)
        assert self.real.newest == where

    # ------------------------------------------------------------------ what they say

    def process_of(self, where: str) -> str:
        """Return what the reign of a master begins with: all but its configuration epoch."""
        server, replication = self.wires[where].send(("INFO", "server"), ("INFO", "replication"))
        return f"{parse(server)['run_id']}.{parse(replication)['master_replid']}"

    def look(self, where: str, course: Course) -> list[Any]:
        """Return what a master says of the cluster: CLUSTER SLOTS, CLUSTER NODES."""
        slots, nodes = self.wires[where].send(("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))
        return [raise_error(slots), self._numbered(nodes, course)]

    def info(self, text: bytes, where: str, course: Course) -> bytes:
        """Return CLUSTER INFO of a master with the epochs of a course, and without the counters."""
        text = _MY_EPOCH.sub(b"%d" % course.epoch(where), text.partition(b"cluster_stats")[0])
        return _CURRENT_EPOCH.sub(b"%d" % course.epoch(course.newest), text)

    @staticmethod
    def commands(where: str, course: Course) -> bytes:
        """Return INFO commandstats of a master in a course: its calls of MIGRATE, and no other counters."""
        calls = course.left(where)
        return b"# Commandstats\r\n" + (b"cmdstat_migrate:calls=%d,usec=1" % calls if calls else b"")

    def _numbered(self, nodes: bytes, course: Course) -> bytes:
        """CLUSTER NODES with the epochs of a course, and without what the time changes."""
        lines = []
        for line in nodes.splitlines():
            words = line.split(b" ")
            [where] = [where for where, id_ in self.ids.items() if id_ == words[0]]
            words[4:7] = [b"0", b"0", b"%d" % course.epoch(where)]
            lines.append(b" ".join(words))
        return b"\n".join(lines)

    # ------------------------------------------------------------------ helpers

    def _ask(self, where: str, *command: Any) -> Any:
        return raise_error(self.wires[where].send(command)[0])

    def _settle(self) -> None:
        for where in self.wires:
            self._ask(where, "CLUSTER", "SETSLOT", SLOT, "STABLE")
        self.real = self.real._replace(target="")

    def _spread(self, where: str) -> None:
        """Let the other master know the epoch of this one. Each message on the bus tells it."""
        self._learn()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._known(other(where), of=where) != self.real.epoch(where):
            assert time.monotonic() < deadline, f"the masters have not heard of each other: {self.real}"
            self._ask(where, "PUBLISH", "", "")
            time.sleep(0.001)

    def _learn(self) -> None:
        here, there = self._known(HERE, of=HERE), self._known(THERE, of=THERE)
        self.real = self.real._replace(here=here, there=there)

    def _known(self, asked: str, *, of: str) -> int:
        lines = self._ask(asked, "CLUSTER", "NODES").splitlines()
        return next(int(line.split(b" ")[6]) for line in lines if line.startswith(self.ids[of]))


@contextmanager
def two_masters() -> Iterator[TwoMasters]:
    """Start them, as one cluster."""
    with ExitStack() as running:
        kept = running.enter_context(TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
        Path(kept).chmod(0o777)  # a server does not run as root
        servers = {where: running.enter_context(_start(f"{kept}/{where}")) for where in (HERE, THERE)}
        nodes = Nodes(list(servers.values()))
        for number, (where, server) in enumerate(servers.items()):
            nodes.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", 2 - number)
            nodes.ask(server, "CLUSTER", "ADDSLOTS", *_SLOTS[where])
        nodes.ask(servers[THERE], "CLUSTER", "MEET", "127.0.0.1", servers[HERE].port)
        wait(lambda: all(_is_well(nodes, server) for server in servers.values()))
        masters = TwoMasters(servers)
        yield masters
        masters.close()


def _start(file: str) -> EmbeddedRedis:
    options = (*_OPTIONS, "--cluster-config-file", file)
    server = start_node(*options)
    with redis.Redis(host="127.0.0.1", port=server.port) as client:
        try:
            client.execute_command("DEBUG", "CHANGE-REPL-ID")
        except redis.ResponseError:
            server.stop()
            server.start(*options, *_MAY_DEBUG)
    return server


def _is_well(nodes: Nodes, server: EmbeddedRedis) -> bool:
    return (
        nodes.known_by(server) == len(nodes.servers)
        and b"cluster_state:ok" in nodes.ask(server, "CLUSTER", "INFO")
        and nodes.view_of(server) == nodes.view_of(nodes.servers[0])
    )
