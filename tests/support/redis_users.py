"""Users of Redis with few rights, and what docs/rights.md says they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from glasspoint.embedded import EmbeddedRedis
from places import DOCS


async def acl(redis: Redis, user: str, *rules: str) -> None:
    command: Any = redis.execute_command  # has no types
    await command("ACL SETUSER", user, *(rule for each in rules for rule in each.split()))


@pytest.fixture(params=["6.2", "7"])
def any_redis(request: pytest.FixtureRequest) -> Iterator[EmbeddedRedis]:
    """A Redis of both wordings of ACL errors: the wheel's, and the one of the system if it is newer."""
    server = EmbeddedRedis()
    if request.param == "7":
        version = (
            subprocess.run([REDIS_7, "--version"], capture_output=True, text=True).stdout if REDIS_7 else ""
        )
        if "v=7." not in version:
            pytest.skip("there is no redis-server 7 on the PATH")
        assert REDIS_7 is not None
        server._program = Path(REDIS_7)
    with server:
        yield server


USER = "app"


def url_of_user(server: EmbeddedRedis) -> str:
    return server.url.replace("//", f"//{USER}:secret@")


async def allow(server: EmbeddedRedis, *rules: str) -> None:
    async with Redis.from_url(server.url) as admin:
        await acl(admin, USER, "reset on >secret", *rules)


def what_a_user_needs() -> str:
    page = (DOCS / "rights.md").read_text("utf-8")
    return page.partition("## Which rights does the Redis user need?")[2].partition("\n## ")[0]


def commands_in(scripts: Path) -> set[str]:
    """The commands that scripts run: the texts in the first argument of each call."""
    return {
        name.lower()
        for path in scripts.glob("*.lua")
        for first in re.findall(r"redis\.p?call\(([^,)]*)", path.read_text("utf-8"))
        for name in re.findall(r"'(\w+)'", first)
    }


REDIS_7 = shutil.which("redis-server")
