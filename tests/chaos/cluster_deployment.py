"""A Redis Cluster under chaos: three masters with a replica each."""

from __future__ import annotations

import random
from collections.abc import Collection
from time import sleep
from typing import Any

import redis

from chaos.deployment import Deployment, PortOf, hot_slots
from chaos.faults import CLUSTER_KINDS, Fault, FaultFailedError
from glasspoint.embedded import EmbeddedRedis
from redis_nodes import NODE_TIMEOUT_MS, OPTIONS, SLOTS, Nodes, start_node, wait

__all__ = ["ClusterDeployment"]

_MASTERS = 3

_SLOTS_AT_ONCE = 5
"""How many slots with keys move in one fault."""

_SHORT_SECONDS = 0.5 * NODE_TIMEOUT_MS / 1000
"""A master may be frozen for so long, and no replica takes over."""


class ClusterDeployment(Deployment):
    """The nodes of one cluster."""

    name = "cluster"
    kinds = CLUSTER_KINDS

    def start(self) -> None:
        for _ in range(2 * _MASTERS):
            self.nodes.append(start_node(*OPTIONS))
        self._cluster = Nodes(self.nodes)
        self._cluster.form(_MASTERS)

    def url(self, port_of: PortOf = lambda port: port) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port_of(node.port)}" for node in self.nodes)

    def flush(self) -> None:
        self._cluster.flush()

    def master(self, fault: Fault) -> EmbeddedRedis:
        return fault.dice().choice(self._masters())

    def suffer_in_thread(self, fault: Fault) -> None:
        dice = fault.dice()
        master = dice.choice(self._masters())
        replica = self._cluster.replicas_of(master)[0]
        try:
            match fault.kind:
                case "master killed":
                    self._kill(master, replica, fault)
                case "master killed, replica behind":
                    with self.falling_behind([replica], fault):
                        self._kill(master, replica, fault)
                case "failover":
                    self._fail_over(master, replica, dice.choice(["", "FORCE", "TAKEOVER"]))
                case "failover by takeover, replica behind":
                    with self.falling_behind([replica], fault):
                        self._fail_over(master, replica, "TAKEOVER")
                case "slots moved" | "slots moved, failover there" | "slots half moved":
                    self._reshard(master, fault, dice)
                case "shard away":
                    self._take_away(master, replica, fault)
                case "master frozen":
                    with self.freezing(master):
                        sleep(min(fault.seconds, _SHORT_SECONDS))
                case "master frozen until replaced":
                    with self.noting_away(self._slots_of(master)), self.freezing(master):
                        self._wait_for_promotion(replica)
                        sleep(fault.seconds)
                case "master flushed":
                    master.flush()
                case "master restarted, old snapshot":
                    self.put_old_snapshot_back(master)
                    master.kill()
                    master.start(*OPTIONS)
                case _:
                    super().suffer_in_thread(fault)
        except AssertionError as exc:
            raise FaultFailedError(str(exc)) from exc
        finally:
            self._heal()
            self.save_old_snapshots()  # as old as the last fault

    def _kill(self, master: EmbeddedRedis, replica: EmbeddedRedis, fault: Fault) -> None:
        with self.noting_away(self._slots_of(master)):
            master.kill()
            self._wait_for_promotion(replica)
        sleep(fault.seconds)

    def _take_away(self, master: EmbeddedRedis, replica: EmbeddedRedis, fault: Fault) -> None:
        """A part of the cluster without a master, and without anybody who could become one."""
        with self.noting_away(self._slots_of(master)):
            replica.kill()
            master.kill()
            self.put_old_snapshot_back(master)
            sleep(NODE_TIMEOUT_MS / 1000 + fault.seconds)
            master.start(*OPTIONS)

    def _fail_over(self, master: EmbeddedRedis, replica: EmbeddedRedis, how: str) -> None:
        before = len(self._cluster.masters())
        self._cluster.ask(replica, "CLUSTER", "FAILOVER", *filter(None, [how]))
        try:
            self._wait_for_promotion(replica)
        except AssertionError as exc:
            nodes = self._cluster.ask(master, "CLUSTER", "NODES").decode()
            raise FaultFailedError(f"{how or 'FAILOVER'} to {replica.port}, {before}: {nodes}") from exc

    def _wait_for_promotion(self, replica: EmbeddedRedis) -> None:
        wait(lambda: self._cluster._is_master(replica))

    def _reshard(self, source: EmbeddedRedis, fault: Fault, dice: random.Random) -> None:
        """Slots with keys move to another master, and back later."""
        target = dice.choice([each for each in self._masters() if each is not source])
        slots = hot_slots(self._cluster.admin(source))
        slots = dice.sample(slots, min(len(slots), _SLOTS_AT_ONCE))
        if not slots:
            raise FaultFailedError("the master has no keys")
        if fault.kind == "slots half moved":
            self._half_move(slots, source, target, fault, goes_on=dice.random() < 0.5)
        else:
            for slot in slots:
                self._cluster.move(slot, target)
            sleep(fault.seconds)
        if fault.kind == "slots moved, failover there":
            replica = self._cluster.replicas_of(target)[0]
            with self.falling_behind([replica], fault):
                self._fail_over(target, replica, "TAKEOVER")
            self._heal()
        for slot in slots:
            if self._cluster.master_of(slot, asked=source) is not source:
                self._cluster.move(slot, source)

    def _half_move(
        self, slots: list[int], source: EmbeddedRedis, target: EmbeddedRedis, fault: Fault, *, goes_on: bool
    ) -> None:
        """Slots stay on their way for a while, with half of their keys. Then they arrive, or go back."""
        for slot in slots:
            self._cluster.begin_move(slot, target)
            keys: list[Any] = self._cluster.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
            self._migrate(keys[: (len(keys) + 1) // 2], source, target)
        sleep(fault.seconds)
        for slot in slots:
            if goes_on:
                self._cluster.end_move(slot, source, target)
                continue
            self._cluster.ask(source, "CLUSTER", "SETSLOT", slot, "STABLE")
            for key in self._cluster.ask(target, "CLUSTER", "GETKEYSINSLOT", slot, 100):
                self._bring_back(key, target, source)
            self._cluster.ask(target, "CLUSTER", "SETSLOT", slot, "STABLE")

    def _bring_back(self, key: Any, target: EmbeddedRedis, source: EmbeddedRedis) -> None:
        """Move a key back, unless the source has it again."""
        try:
            self._migrate([key], target, source)
        except redis.ResponseError as exc:
            if "BUSYKEY" not in str(exc):
                raise
            with self._cluster.admin(target).pipeline(transaction=False) as pipe:
                pipe.execute_command("ASKING")
                pipe.execute_command("DEL", key)
                pipe.execute()

    def _migrate(self, keys: list[Any], source: EmbeddedRedis, target: EmbeddedRedis) -> None:
        if keys:
            self._cluster.migrate(keys, source, target)

    def _heal(self) -> None:
        """Start what is down, let no slot be on its way, and wait until all is well."""
        try:
            self._cluster.heal()
        except AssertionError as exc:
            raise FaultFailedError(f"the cluster did not heal: {exc}") from exc

    def _masters(self) -> list[EmbeddedRedis]:
        return [node for node in self._cluster.masters() if self._slots_of(node)]

    def _slots_of(self, master: EmbeddedRedis) -> Collection[int]:
        found = set[int]()
        for first, last, owner, *_ in self._cluster.ask(master, "CLUSTER", "SLOTS"):
            if owner[1] == master.port:
                found |= set(range(first, last + 1))
        assert len(found) < SLOTS
        return found
