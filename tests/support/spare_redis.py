"""A Redis for one test after the other: started anew only if a test has not left it as it was.

Starting one takes ten times as long as finding out that it is as new, and most tests only need one without
keys and connections of others. Open this file when a test finds something in its own Redis.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

import redis

from glasspoint.embedded import EmbeddedRedis

__all__ = ["SpareRedis"]

# Of `INFO replication`: they change when a replica comes, or when the server becomes one.
_REPLICATION: Final = ("role", "master_replid", "repl_backlog_active")


class SpareRedis:
    """A Redis, and how it was when it was new."""

    def __init__(self, program: Path | None = None) -> None:
        """Begin without a server.

        Args:
            program: The program to start; by default the one of the wheel.
        """
        self._program = program
        self._server: EmbeddedRedis | None = None
        self._as_new: tuple[object, ...] = ()

    def take(self) -> EmbeddedRedis:
        """Return a server that is as new: the one of the test before, or another one."""
        if self._server is not None and self._is_as_new(self._server):
            return self._server
        self.close()
        server = self._server = EmbeddedRedis()
        server._program = self._program
        server.start()
        with server._client() as client:
            self._as_new = _look(server, client)
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, if there is one."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _is_as_new(self, server: EmbeddedRedis) -> bool:
        if not server.running:
            return False
        server.thaw()
        try:
            with server._client() as client:
                if others := [name for name in client.acl_users() if name != "default"]:
                    client.acl_deluser(*others)
                if _look(server, client) != self._as_new:
                    return False
                _empty(client)
        except redis.RedisError:
            return False
        (server.directory / "dump.rdb").unlink(missing_ok=True)  # the next start would load it
        return True


def _look(server: EmbeddedRedis, client: redis.Redis) -> tuple[object, ...]:
    """Return what a test may have changed: the process, its settings, its users, its replicas."""
    replication: Any = client.info("replication")
    return (
        dict(vars(server)),
        client.config_get(),
        client.acl_list(),
        [replication[name] for name in _REPLICATION],
    )


def _empty(client: redis.Redis) -> None:
    """Remove keys, scripts, connections, and what the server has counted."""
    command: Any = client.execute_command  # has no types
    command("CLIENT KILL TYPE normal SKIPME yes")
    command("CLIENT UNPAUSE")
    client.flushall()
    client.script_flush()
    client.config_resetstat()
    client.slowlog_reset()
    client.acl_log_reset()
