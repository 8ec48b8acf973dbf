"""The rights that a Redis user needs for the tier `redis`, and for a `RedisSaver` by itself.

The table lists the commands of `scripts/*.lua` and of `steps.py`. A test compares the three of them, and the
rules that `docs/rights.md` prints.
"""

from __future__ import annotations

from typing import Any

from glasspoint.errors import RedisRefusedError
from glasspoint.redis.permissions import KEY, Needs

__all__ = ["COMMANDS", "NEEDS", "OPTIONAL"]

COMMANDS: dict[str, tuple[Any, ...]] = {
    "ping": (),
    "time": (),
    "scan": (0,),
    # No such script: what counts is that it may be asked for.
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
"""Each command that is needed, as an ACL rule names it -> harmless arguments. HDEL and ZREM undo what the
commands before them did, so that the next ones find no key of another type. The last ones remove the key."""

OPTIONAL = ("info",)
"""Without it the version of Redis is not known, and a Redis that may evict is not named."""


def _refused(message: str) -> RedisRefusedError:
    return RedisRefusedError(f"{message} docs/rights.md has whole rules.")


NEEDS = Needs("a RedisSaver", COMMANDS, OPTIONAL, _refused)
