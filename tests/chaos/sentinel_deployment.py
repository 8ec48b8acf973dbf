"""A master with two replicas and three sentinels under chaos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

from chaos.deployment import Deployment, PortOf
from chaos.faults import SENTINEL_KINDS, Fault, FaultFailedError
from glasspoint.embedded import EmbeddedRedis
from redis_nodes import wait
from sentinels import SERVICE, Sentinel

__all__ = ["SentinelDeployment"]

_NODES = 3
_SENTINELS = 3
_QUORUM = 2
_DOWN_AFTER_MS = 1500
_FAILOVER_TIMEOUT_MS = 3000
_NODE_OPTIONS = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")

_SHORT_SECONDS = 0.5 * _DOWN_AFTER_MS / 1000
"""A master may be frozen for so long, and no replica takes over."""


class SentinelDeployment(Deployment):
    """The servers of one service."""

    name = "sentinel"
    kinds = SENTINEL_KINDS

    def __init__(self) -> None:
        super().__init__()
        self._sentinels: list[Sentinel] = []

    def start(self) -> None:
        for _ in range(_NODES):
            node = EmbeddedRedis()
            self.nodes.append(node)
            self._start_node(node, *self.nodes[:1])
        for _ in range(_SENTINELS):
            sentinel = Sentinel(
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.nodes[0].port} {_QUORUM}",
                f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} {_FAILOVER_TIMEOUT_MS}",
                f"sentinel parallel-syncs {SERVICE} {_NODES}",
            )
            self.sentinels.append(sentinel)
            self._sentinels.append(sentinel)
            sentinel.start()
        self._heal(self.nodes[0])

    def url(self, port_of: PortOf = lambda port: port) -> str:
        hosts = ",".join(f"127.0.0.1:{port_of(each.port)}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def flush(self) -> None:
        self._master().flush()

    def master(self, fault: Fault) -> EmbeddedRedis:
        return self._master()

    def suffer_in_thread(self, fault: Fault) -> None:
        dice = fault.dice()
        master = self._master()
        replicas = [node for node in self.nodes if node is not master]
        try:
            match fault.kind:
                case "master killed":
                    master.kill()
                    self._wait_for_failover(master)
                    sleep(fault.seconds)
                case "master killed, replicas behind":
                    with self.falling_behind(replicas, fault):
                        master.kill()
                        self._wait_for_failover(master)
                case "failover":
                    with self._sharing():
                        self._fail_over(master)
                case "sentinel killed":
                    sentinel = dice.choice(self.sentinels)
                    sentinel.kill()
                    sleep(fault.seconds)
                    with self._sharing():
                        self._fail_over(master)
                case "master frozen":
                    with self.freezing(master):
                        sleep(min(fault.seconds, _SHORT_SECONDS))
                case "master frozen until replaced":
                    with self._sharing():
                        with self.freezing(master):
                            self._wait_for_failover(master)
                            sleep(fault.seconds)
                        # It believes for some seconds that it is the master.
                        wait(lambda: not self._is_master(master))
                case "master flushed":
                    master.flush()
                case "master restarted, old snapshot":
                    self.put_old_snapshot_back(master)
                    master.kill()
                    self._start_node(master)
                case _:
                    super().suffer_in_thread(fault)
        except AssertionError as exc:
            raise FaultFailedError(str(exc)) from exc
        finally:
            # As an operator has configured it, or as it was the last time: then it begins as a master.
            self._heal(self._master() if dice.random() < 0.5 else None)
            self.save_old_snapshots()  # as old as the last fault

    def _start_node(self, node: EmbeddedRedis, master: EmbeddedRedis | None = None) -> None:
        of = () if master is None or master is node else ("--replicaof", "127.0.0.1", str(master.port))
        node.start(*_NODE_OPTIONS, *of)

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        """Let the old master go on for a moment after the failover within the block.

        A process that is still connected to it believes it, until a look at PostgreSQL tells that the cache
        is attached to another Redis.
        """
        started = monotonic()
        try:
            yield
            wait(lambda: sum(self._is_master(node) for node in self.nodes if node.running) == 1)
        finally:
            self.shared.append((started, monotonic()))

    def _fail_over(self, master: EmbeddedRedis) -> None:
        sentinel = next(each for each in self._sentinels if each.running)

        def has_begun() -> bool:  # it is refused while another one is under way
            sentinel.command("SENTINEL", "FAILOVER", SERVICE)
            return True

        wait(has_begun)
        self._wait_for_failover(master)

    def _wait_for_failover(self, master: EmbeddedRedis) -> None:
        wait(lambda: self._master() is not master)
        wait(lambda: self._is_master(self._master()))

    def _master(self) -> EmbeddedRedis:
        sentinel = next(each for each in self._sentinels if each.running)
        port = int(sentinel.masters()[SERVICE]["port"])
        return next(node for node in self.nodes if node.port == port)

    @staticmethod
    def _is_master(node: EmbeddedRedis) -> bool:
        return bool(_replication(node)["role"] == "master")

    def _heal(self, master: EmbeddedRedis | None) -> None:
        """Start what is down, and wait until all is well.

        Args:
            master: Of whom the nodes that are started are replicas; `None`: they begin as masters.
        """
        for node in self.nodes:
            if not node.running:
                self._start_node(node, master)
        for sentinel in self.sentinels:
            if not sentinel.running:
                sentinel.start()
        try:
            wait(self._is_well)
        except AssertionError as exc:
            raise FaultFailedError(f"the sentinels did not heal it: {exc}") from exc

    def _is_well(self) -> bool:
        states = [sentinel.masters()[SERVICE] for sentinel in self._sentinels]
        if len({state["port"] for state in states}) > 1:
            return False
        if any(
            state["is_odown"]
            or state["is_sdown"]
            or "failover_in_progress" in state["flags"]
            or state["num-slaves"] != _NODES - 1
            or state["num-other-sentinels"] != _SENTINELS - 1
            for state in states
        ):
            return False
        master = self._master()
        linked = [_replication(node) for node in self.nodes if node is not master]
        return self._is_master(master) and all(
            each["role"] == "slave" and each["master_link_status"] == "up" for each in linked
        )


def _replication(node: EmbeddedRedis) -> dict[str, Any]:
    with node._client() as client:
        return dict(client.info("replication"))
