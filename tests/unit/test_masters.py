"""Which node of a Redis Cluster is asked, and how long a command is sent on from one to the other."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import RedisCluster
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    RedisClusterException,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)

from glasspoint.redis import masters as masters_module
from glasspoint.redis.faults import NeverTheCacheError
from glasspoint.redis.masters import Masters
from glasspoint.redis.topology import SLOTS, Address, Master, View, slot_of

HERE: Address = ("127.0.0.1", 7000)


def view(*slots: tuple[int, int]) -> View:
    return View((Master(HERE, "its id", slots),), frozenset({"its id"}))


class Node:
    """A master that gives one answer to everything."""

    def __init__(self, answer: Exception) -> None:
        self._answer = answer
        self.asked = 0

    async def execute_command(self, *command: object) -> Any:
        self.asked += 1
        raise self._answer

    def pipeline(self, *, transaction: bool) -> Node:
        return self

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Watched:
    """The topology as it is known; `doubted` counts how often it was to be read again."""

    def __init__(self, known: View | Exception) -> None:
        self._known = known
        self.doubted = 0

    async def known(self) -> View:
        if isinstance(self._known, Exception):
            raise self._known
        return self._known

    def doubt(self, owner: Address | None = None) -> None:
        self.doubted += 1


def masters_with(known: View | Exception, answer: Exception | None = None) -> tuple[Masters, Watched, Node]:
    masters: Any = Masters(RedisCluster(host="127.0.0.1", port=7000), timeout_seconds=1.0)
    node, watched = Node(answer or ResponseError("no")), Watched(known)
    masters._watched = watched
    masters.topology.client = lambda address: node
    return masters, watched, node


async def test_a_slot_without_a_master_is_an_error_after_a_second_look() -> None:
    slot = slot_of("a")
    masters, watched, node = masters_with(view((0, slot - 1), (slot + 1, SLOTS - 1)))
    with pytest.raises(SlotNotCoveredError):
        await masters.run("a", "GET", "a")
    assert (watched.doubted, node.asked) == (2, 0)


async def test_a_command_that_is_sent_on_and_on_ends_in_an_error() -> None:
    masters, watched, node = masters_with(view((0, SLOTS - 1)), MovedError("1 127.0.0.1:7000"))
    with pytest.raises(MovedError):
        await masters.run("a", "GET", "a")
    assert node.asked == watched.doubted == masters_module._MOVES + 1


async def test_a_slot_that_is_on_its_way_for_too_long_ends_in_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masters_module, "_ON_ITS_WAY_SECONDS", 0.0)
    masters, _, node = masters_with(view((0, SLOTS - 1)), TryAgainError("moving"))
    with pytest.raises(TryAgainError):
        await masters.run("a", "GET", "a")
    assert node.asked == 1


async def test_a_master_that_does_not_answer_is_left_only_for_another_one() -> None:
    masters, watched, node = masters_with(view((0, SLOTS - 1)), ConnectionRefusedError())
    with pytest.raises(ConnectionRefusedError):
        await masters.run("a", "GET", "a")
    assert (node.asked, watched.doubted) == (1, 2)


async def test_a_server_that_left_its_cluster_is_no_cluster() -> None:
    masters, *_ = masters_with(NeverTheCacheError("cluster-enabled no"))
    with pytest.raises(RedisClusterException, match="not in a Redis Cluster"):
        await masters.run("a", "GET", "a")


@pytest.mark.parametrize("fails", ["the connection", "the cluster"])
async def test_of_commands_that_are_sent_together_a_failure_of_one_master_is_one_of_all(fails: str) -> None:
    masters, watched, node = masters_with(view((0, SLOTS - 1)))
    pipe: Any = node
    pipe.execute_command = lambda *command: None

    async def execute(*, raise_on_error: bool) -> list[Any]:
        if fails == "the connection":
            raise ConnectionResetError
        return [b"1", ClusterDownError("The cluster is down")]

    pipe.execute = execute
    with pytest.raises(ConnectionResetError if fails == "the connection" else ClusterDownError):
        await masters.run_together([("GET", "a"), ("GET", "b")])
    assert watched.doubted == 1


def test_a_master_of_other_slots_has_replaced_nobody() -> None:
    before, after = view((0, 99)), view((100, 199))
    [old], [new] = before.masters, after.masters
    assert not after.has_replaced(old, new, before)
