"""Users of Redis with few rights, and what docs/rights.md says they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from glasspoint.embedded import EmbeddedRedis
from places import DOCS
from spare_redis import SpareRedis


async def acl(redis: Redis, user: str, *rules: str) -> None:
    command: Any = redis.execute_command  # has no types
    await command("ACL SETUSER", user, *(rule for each in rules for rule in each.split()))


@pytest.fixture(scope="session")
def _spare_redis_7() -> Iterator[SpareRedis]:
    with SpareRedis(None if REDIS_7 is None else Path(REDIS_7)) as spare:
        yield spare


@pytest.fixture(params=["6.2", "7"])
def any_redis(
    request: pytest.FixtureRequest, _spare_redis: SpareRedis, _spare_redis_7: SpareRedis
) -> EmbeddedRedis:
    """A Redis of both wordings of ACL errors: the wheel's, and the one of the system if it is newer."""
    if request.param != "7":
        return _spare_redis.take()
    if "v=7." not in _version_of_redis_7():
        pytest.skip("there is no redis-server 7 on the PATH")
    return _spare_redis_7.take()


@cache
def _version_of_redis_7() -> str:
    return subprocess.run([REDIS_7, "--version"], capture_output=True, text=True).stdout if REDIS_7 else ""


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
