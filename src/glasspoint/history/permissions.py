"""The rights that a Redis user needs for the tier `redis`, and for any other `RedisSaver`.

The table lists the commands of `scripts/*.lua` and of `steps.py`. A test compares it with these files, and
with the rules in `docs/rights.md`.
"""

from __future__ import annotations

from typing import Any

from glasspoint.errors import RedisRefusedError
from glasspoint.redis.permissions import KEY, Needs

__all__ = ["CLUSTER_COMMANDS", "COMMANDS", "NEEDS", "NEEDS_IN_CLUSTER", "OPTIONAL"]

COMMANDS: dict[str, tuple[Any, ...]] = {
    "ping": (),
    "time": (),
    "scan": (0,),
    # No such script exists: the check is only whether the user may ask for it.
    "evalsha": (b"0" * 40, 1, KEY),
    "eval": (b"return 1", 1, KEY),
    "hset": (KEY, b"field", b"1"),
    "hsetnx": (KEY, b"field", b"1"),
    "hincrby": (KEY, b"field", 1),
    "hget": (KEY, b"field"),
    "hmget": (KEY, b"field"),
    "hexists": (KEY, b"field"),
    "hkeys": (KEY,),
    "hlen": (KEY,),
    "hdel": (KEY, b"field"),
    "zadd": (KEY, 0, b"member"),
    "zcard": (KEY,),
    "zcount": (KEY, 1, 2),
    "zscore": (KEY, b"member"),
    "zrangebylex": (KEY, b"-", b"+"),
    "zrevrangebylex": (KEY, b"+", b"-"),
    "zscan": (KEY, 0),
    "zremrangebyscore": (KEY, 1, 2),
    "zrem": (KEY, b"member"),
    "set": (KEY, b"1", b"PX", 1000),
    "get": (KEY,),
    "pttl": (KEY,),
    "exists": (KEY,),
    "rename": (KEY, KEY),
    "persist": (KEY,),
    "pexpireat": (KEY, 1),
    "unlink": (KEY,),
}
"""Each command that is needed, as ACL rules name it -> harmless arguments. HDEL and ZREM undo the commands
before them, so that the next commands find no key of another type. The last commands remove the key."""

CLUSTER_COMMANDS: dict[str, tuple[Any, ...]] = {"cluster|nodes": (), "cluster|slots": (), "asking": ()}
"""What is needed in addition on a node of a Redis Cluster."""

OPTIONAL = ("info",)
"""Without INFO, the version of Redis is unknown, no warning is logged if Redis may evict, and what a restart
has lost is not reported."""


def _refused(message: str) -> RedisRefusedError:
    return RedisRefusedError(f"{message} docs/rights.md has whole rules.")


NEEDS = Needs("a RedisSaver", COMMANDS, OPTIONAL, _refused)
NEEDS_IN_CLUSTER = Needs("a RedisSaver", {**COMMANDS, **CLUSTER_COMMANDS}, OPTIONAL, _refused)
