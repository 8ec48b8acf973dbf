"""Sentinels, and a group of three that watches a master and its replica."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Self

import redis as sync_redis

from glasspoint.embedded import EmbeddedRedis
from glasspoint.embedded.servers import _free_port, _usable_redis

__all__ = ["SERVICE", "Group", "Sentinel", "sentinel_url"]

SERVICE = "mymaster"


class Sentinel(EmbeddedRedis):
    """One sentinel, which keeps what it knows over a restart."""

    def __init__(self, *settings: str, port: int | None = None) -> None:
        """Args:
        settings: The lines of its configuration, without those that make it a sentinel.
        port: Where it listens; by default on a free port.
        """
        super().__init__()
        self._settings = settings
        self._port = port
        self._kept: sync_redis.Redis | None = None

    def start(self, *extra_args: str) -> None:
        with self._starting() as home:
            if self._program is None:
                self._program = _usable_redis(home)
            if self._port is None:
                self._port = _free_port()
            config = home.path / "sentinel.conf"
            if not config.exists():
                lines = ("bind 127.0.0.1", f"port {self._port}", f"dir {home.path}", *self._settings)
                config.write_text("\n".join(lines) + "\n")
                if os.geteuid() == 0:  # the server runs as the owner of the directory, and writes the file
                    owner = home.path.stat()
                    os.chown(config, owner.st_uid, owner.st_gid)
            self._run_until(self._is_ready, [self._program, config, "--sentinel", *extra_args])

    def masters(self) -> dict[str, Any]:
        """What it knows of its services."""
        masters: Any = self.asked().sentinel_masters()
        return dict(masters)

    def replicas(self) -> list[dict[str, Any]]:
        """What it knows of the replicas of the service."""
        return list(self.asked().sentinel_slaves(SERVICE))

    def command(self, *args: Any) -> Any:
        """Run a command on it."""
        command: Any = self.asked().execute_command  # has no types
        return command(*args)

    def asked(self) -> sync_redis.Redis:
        """The client for questions. It is kept: making one takes ten times as long as a question."""
        self._kept = self._kept or self._client()
        return self._kept

    def close(self) -> None:
        super().close()
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def sentinel_url(*sentinels: EmbeddedRedis, service: str = SERVICE, user: str = "", query: str = "") -> str:
    """The URL of a service."""
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
    return f"redis+sentinel://{user}{hosts}/{service}/0{query}"


class Group:
    """Three sentinels, a master and its replica. `heal` undoes what a test has done to them."""

    def __init__(self) -> None:
        self.servers = [EmbeddedRedis(), EmbeddedRedis()]
        self.sentinels: list[Sentinel] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            master, replica = (stack.enter_context(each) for each in self.servers)
            replica.stop()
            replica.start("--replicaof", "127.0.0.1", str(master.port))
            # They know each other and the replica from the beginning, and need no seconds to find out.
            ports, ids = [_free_port() for _ in range(3)], [secrets.token_hex(20) for _ in range(3)]
            self.sentinels = [
                Sentinel(
                    f"sentinel myid {ids[number]}",
                    f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 2",
                    f"sentinel down-after-milliseconds {SERVICE} 500",
                    f"sentinel failover-timeout {SERVICE} 1000",
                    f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}",
                    *(
                        f"sentinel known-sentinel {SERVICE} 127.0.0.1 {ports[other]} {ids[other]}"
                        for other in range(3)
                        if other != number
                    ),
                    port=ports[number],
                )
                for number in range(3)
            ]
            for each in self.sentinels:
                stack.enter_context(each)
            _wait_until(self._is_healthy)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The URL of the service."""
        return sentinel_url(*self.sentinels)

    @property
    def master(self) -> EmbeddedRedis:
        """The server that the first sentinel names."""
        port = self.sentinels[0].masters()[SERVICE]["port"]
        return next(each for each in self.servers if each.port == port)

    @property
    def replica(self) -> EmbeddedRedis:
        """The other server."""
        master = self.master
        return next(each for each in self.servers if each is not master)

    def fail_over(self) -> None:
        """Let the sentinels promote the replica; return when all name it."""
        promoted = self.replica

        def is_promoted() -> bool:
            # A sentinel refuses while it has not heard of the replica lately, and gives up if that is slow.
            with suppress(sync_redis.ResponseError):
                self.sentinels[0].command("SENTINEL", "FAILOVER", SERVICE)
            with suppress(AssertionError):
                self.wait_for(promoted, seconds=10)
                return True
            return False

        _wait_until(is_promoted)

    def fail_over_and_keep_the_former_master(self) -> tuple[EmbeddedRedis, EmbeddedRedis]:
        """Promote the replica; the former master goes on taking writes, as it does for ten seconds.

        Returns:
            The former and the new master. `heal` demotes the former one.
        """
        former, new = self.master, self.replica
        with former._client() as client:  # so the sentinels cannot demote it, however slow the machine is
            client.execute_command("ACL", "SETUSER", "default", "-slaveof", "-replicaof")
        self.fail_over()
        return former, new

    def wait_for(self, master: EmbeddedRedis, *, seconds: float = 60.0) -> None:
        """Wait until all running sentinels name a server."""

        def named() -> bool:
            running = [each for each in self.sentinels if each.running]
            return all(each.masters()[SERVICE]["port"] == master.port for each in running)

        _wait_until(named, seconds=seconds)

    def heal(self) -> None:
        """Bring everything back, and empty the servers."""
        for sentinel in self.sentinels:
            if sentinel.running:
                sentinel.thaw()
                if not int(sentinel.asked().info("sentinel")["sentinel_tilt"]):
                    continue
                sentinel.stop()  # it has noticed that it was frozen, and would do nothing for half a minute
            sentinel.start()
        for server in self.servers:
            if server.running:
                server.thaw()
                with server._client() as client:
                    client.execute_command("ACL", "SETUSER", "default", "+@all")
                    client.config_set("min-replicas-to-write", 0)
            else:
                server.start("--replicaof", "127.0.0.1", str(self.master.port))
        with self.replica._client() as client:  # the sentinels do that, too, but take ten seconds
            client.replicaof("127.0.0.1", self.master.port)
        _wait_until(self._is_healthy)
        self.master.flush()

    def _is_healthy(self) -> bool:
        """Whether each sentinel sees a master, a replica that follows it, and two other sentinels."""
        with suppress(sync_redis.RedisError):
            states = [each.masters()[SERVICE] for each in self.sentinels]
            found = {state["port"] for state in states}
            if len(found) != 1 or any(
                state["flags"] != "master" or state["num-other-sentinels"] != 2 for state in states
            ):
                return False
            with self.replica._client() as client:
                info = client.info("replication")
            return (info["role"], info.get("master_port"), info.get("master_link_status")) == (
                "slave",
                self.master.port,
                "up",
            ) and all("down" not in state["flags"] for each in self.sentinels for state in each.replicas())
        return False


def _wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.02)
