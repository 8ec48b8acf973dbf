"""The topology of a Redis Cluster is read once for all that wait, and again when it is in doubt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from glasspoint.redis.topology import Address, Master, View, epoch_in
from glasspoint.redis.watched import WatchedTopology

HERE, THERE = ("here", 1), ("there", 1)


def view(*addresses: Address, epoch: int = 1) -> View:
    masters = tuple(Master(each, f"id of {each[0]}", ((0, 16383),)) for each in addresses)
    return View(masters, frozenset(each.node_id for each in masters), epoch)


class Nodes:
    """Answers when it is allowed to, with the view of the moment at which it was asked."""

    def __init__(self) -> None:
        self.knows: View | Exception = view(HERE)
        self.asked: list[list[Address]] = []
        self.may_answer = asyncio.Event()
        self.kept: set[Address] = set()

    async def look(self, first: list[Address], *, epoch: int) -> View:
        knows = self.knows
        self.asked.append(list(first))
        await self.may_answer.wait()
        if isinstance(knows, Exception):
            raise knows
        return knows

    async def close_others(self, addresses: Any) -> None:
        self.kept = set(addresses)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def watched(nodes: Nodes) -> WatchedTopology:
    topology: Any = nodes
    return WatchedTopology(topology)


async def test_callers_that_wait_share_one_reading(nodes: Nodes, watched: WatchedTopology) -> None:
    waiting = [asyncio.create_task(watched.known()) for _ in range(3)]
    await asyncio.sleep(0)
    nodes.may_answer.set()
    assert await asyncio.gather(*waiting) == [view(HERE)] * 3
    assert await watched.known() == view(HERE)
    assert nodes.asked == [[]]
    assert nodes.kept == {HERE}


async def test_what_is_in_doubt_is_read_again_from_the_node_that_knows_more(
    nodes: Nodes, watched: WatchedTopology
) -> None:
    nodes.may_answer.set()
    await watched.known()
    watched.doubt(THERE)
    watched.doubt()
    nodes.knows = view(THERE, epoch=2)
    assert await watched.known() == nodes.knows
    assert nodes.asked[1:] == [[THERE, HERE]]
    assert not watched.is_stale


async def test_a_doubt_that_arises_while_nodes_are_asked_is_not_settled_by_what_they_say(
    nodes: Nodes, watched: WatchedTopology
) -> None:
    """They may have been asked before the slot has moved."""
    reading = asyncio.create_task(watched.known())
    await asyncio.sleep(0)
    nodes.knows = view(THERE, epoch=2)
    watched.doubt(THERE)
    nodes.may_answer.set()
    assert await reading == view(HERE)
    assert watched.is_stale
    assert await watched.known() == view(THERE, epoch=2)


@pytest.mark.parametrize("how", ["known", "read"])
async def test_without_an_answer_it_stays_in_doubt(how: str, nodes: Nodes, watched: WatchedTopology) -> None:
    nodes.may_answer.set()
    await watched.known()
    nodes.knows = ConnectionError()
    if how == "known":
        watched.doubt()
    with pytest.raises(ConnectionError):
        await (watched.known() if how == "known" else watched.read([HERE]))
    assert watched.is_stale
    nodes.knows = view(THERE)
    assert await watched.known() == view(THERE)


async def test_who_adopts_a_view_sees_the_one_before(nodes: Nodes) -> None:
    nodes.may_answer.set()
    topology: Any = nodes
    seen: list[tuple[View, View | None]] = []
    watched = WatchedTopology(topology, adopt=lambda view, before: seen.append((view, before)))
    await watched.known()
    nodes.knows = view(THERE)
    await watched.read([])
    assert seen == [(view(HERE), None), (view(THERE), view(HERE))]


def test_a_replicas_epoch_does_not_count() -> None:
    nodes = """\
a 127.0.0.1:1@2 myself,master - 0 0 2 connected 0-9
b 127.0.0.1:2@3 master,fail - 0 0 3 disconnected 10-19
c 127.0.0.1:3@4 slave a 0 0 6 connected"""
    assert epoch_in([line.split(" ") for line in nodes.splitlines()]) == 3
