"""What a command says of the servers of a Redis Cluster that a look has found."""

from __future__ import annotations

from typing import Any, cast

from redis.exceptions import ConnectionError

from glasspoint.cli.redis_servers import Look, Server
from glasspoint.redis.topology import Address, Master, OpenSlot, View

NO_CLIENT = cast("Any", None)
IDS = "a" * 40, "b" * 40, "c" * 40
SLOTS = (0, 5000), (5001, 10000), (10001, 16383)
ADDRESSES = tuple(("host", port) for port in (7000, 7001, 7002))
MASTERS = tuple(
    Master(address, id_, (slots,)) for address, id_, slots in zip(ADDRESSES, IDS, SLOTS, strict=True)
)


def server(number: int, **options: Any) -> Server:
    return Server(f"host:{7000 + number}", NO_CLIENT, str(number), **options)


def view(number: int, *open_slots: OpenSlot, without_slots: tuple[Master, ...] = ()) -> View:
    """What one master tells."""
    return View(
        MASTERS, frozenset(IDS), open_slots=open_slots, node_id=IDS[number], without_slots=without_slots
    )


def test_a_cluster_whose_masters_all_respond_and_serve_nothing_is_down() -> None:
    look = Look([server(n, is_down=True) for n in range(3)], True, {ADDRESSES[0]: view(0)})
    assert "CLUSTERDOWN" in look.why_down
    assert "look at the network between them" in look.why_down


def test_one_master_that_is_cut_off_does_not_make_the_cluster_down() -> None:
    look = Look([server(0, is_down=True), server(1), server(2)], True)
    assert look.why_down == ""
    [cut_off] = look.away
    assert cut_off.why == "serves nothing (CLUSTERDOWN)"
    assert "look at the network" in cut_off.advice


def test_several_open_slots_are_named_and_one_command_ends_all() -> None:
    away = [server(n, is_silent=n == 2, error=ConnectionError("gone") if n == 2 else None) for n in range(3)]
    look = Look(
        away,
        True,
        {
            ADDRESSES[0]: view(0, OpenSlot(1, True, IDS[1]), OpenSlot(2, True, IDS[2])),
            ADDRESSES[1]: view(1, OpenSlot(1, False, IDS[0]), OpenSlot(3, False, "f" * 40)),
            ADDRESSES[2]: ConnectionError("gone"),
        },
    )
    assert "2 from host:7000 to host:7002" in look.moves, "the other master is away: nobody knows better"
    assert "1 from host:7000 to host:7001" in look.moves
    assert "2 slots are on the way" in look.moves
    assert (
        f"1 slot is open on one side only: 3 at host:7001 (IMPORTING from the node {'f' * 40})" in look.moves
    )
    assert "CLUSTER SETSLOT SLOT STABLE" in look.moves


def test_a_node_that_is_silent_is_named_with_its_place_in_the_cluster() -> None:
    new = Master(("host", 7003), "d" * 40, ())
    views: dict[Address, View | Exception] = {
        ADDRESSES[0]: view(0, without_slots=(new,)),
        new.address: TimeoutError(),
        ("host", 1): OSError(),
    }
    assert Look([server(n) for n in range(3)], True, views).silent_nodes == [
        "the node host:7003, a master without slots, does not answer (TimeoutError)",
        "the node host:1, which REDIS_URL names, does not answer (OSError)",
    ]
