"""Which scripts of a `RedisSaver` only read, so that no error says that a write may have been done."""

from __future__ import annotations

import re

import pytest

from glasspoint.history.steps import READING
from places import SRC

SCRIPTS = {path.stem: path.read_text("utf-8") for path in (SRC / "history" / "scripts").glob("*.lua")}
PRELUDE = SCRIPTS.pop("prelude")
CALL = re.compile(r"redis\.p?call\('(\w+)'")

READ = "EXISTS GET HEXISTS HGET HKEYS HLEN HMGET PTTL TIME ZCARD ZCOUNT ZRANGEBYLEX ZREVRANGEBYLEX ZSCORE"
WRITE = "HDEL HINCRBY HSET HSETNX PERSIST PEXPIREAT RENAME SET UNLINK ZADD ZREM ZREMRANGEBYSCORE"

# A longer life of a thread is no write that a caller has asked for, and neither is an empty list of threads.
LIVES_LONGER = "touch"
MAKES_A_LIST = {"threads": {"ZADD"}}


def functions() -> dict[str, str]:
    """The functions of the prelude: name -> text."""
    found = re.findall(r"^local function (\w+)\(.*?\n(.*?)^end$", PRELUDE, re.MULTILINE | re.DOTALL)
    return dict(found)


def writes_of(text: str) -> set[str]:
    """The commands that a text writes with, also by functions of the prelude, without those of `touch`."""
    bare = re.sub(r"--.*", "", text)
    found = set(CALL.findall(bare)) & set(WRITE.split())
    for name, body in functions().items():
        if name != LIVES_LONGER and re.search(rf"\b{name}\(", bare) and body not in text:
            found |= writes_of(body)
    return found


def test_each_command_of_the_scripts_is_known_to_read_or_to_write() -> None:
    used = {name for text in (PRELUDE, *SCRIPTS.values()) for name in CALL.findall(text)}
    assert used == {*READ.split(), *WRITE.split()}


@pytest.mark.parametrize("step", sorted(SCRIPTS))
def test_a_step_that_only_reads_writes_nothing_of_a_thread(step: str) -> None:
    writes = writes_of(SCRIPTS[step]) - MAKES_A_LIST.get(step, set())
    assert (step in READING) == (not writes), writes


def test_every_step_that_reads_is_a_script() -> None:
    assert SCRIPTS.keys() >= READING
