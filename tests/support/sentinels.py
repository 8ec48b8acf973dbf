"""Sentinels."""

from __future__ import annotations

import os
from typing import Any

from glasspoint.embedded import EmbeddedRedis
from glasspoint.embedded.servers import _free_port, _usable_redis

__all__ = ["SERVICE", "Sentinel", "sentinel_url"]

SERVICE = "mymaster"


class Sentinel(EmbeddedRedis):
    """One sentinel, which keeps what it knows over a restart."""

    def __init__(self, *settings: str) -> None:
        """Args:
        settings: The lines of its configuration, without those that make it a sentinel.
        """
        super().__init__()
        self._settings = settings

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
        with self._client() as client:
            return dict(client.sentinel_masters())

    def command(self, *args: Any) -> Any:
        """Run a command on it."""
        with self._client() as client:
            return client.execute_command(*args)


def sentinel_url(*sentinels: EmbeddedRedis, service: str = SERVICE, user: str = "", query: str = "") -> str:
    """The URL of a service."""
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
    return f"redis+sentinel://{user}{hosts}/{service}/0{query}"
