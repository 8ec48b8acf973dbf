"""When a look at a master shows that the move of a slot was called off."""

from __future__ import annotations

import pytest

from glasspoint.l1.departures import Sight, calls_of_migrate, has_to_ask, sight_of, what_was_called_off

PROCESS = ("run_id", "replid")
KNOWN = ((0, 5),)
OTHER = "0" * 40

NODES = f"""\
{OTHER} 127.0.0.1:7001@17001 master - 0 1764300000000 2 connected 6-9 [3-<-{"1" * 40}]
{"1" * 40} 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-2 4 [1->-{OTHER}] [7-<-{OTHER}]
"""


def sight(
    calls: int = 5, *, owned: str = "012345", leaving: str = "", process: tuple[str, ...] = PROCESS
) -> Sight:
    on_their_way = frozenset((int(slot), OTHER) for slot in leaving)
    return Sight(process, calls, frozenset(map(int, owned)), on_their_way, KNOWN)


def stayed(slots: str) -> str:
    return f"the move of slot{'s' * (',' in slots)} {slots} was called off"


LEFT = "keys have left (MIGRATE), but no slot"


def test_a_sight_is_what_the_master_tells_of_itself() -> None:
    info = (
        b"# Commandstats\r\ncmdstat_get:calls=7,usec=1\r\ncmdstat_migrate:calls=12,usec=9,usec_per_call=1.0"
    )
    found = sight_of(info, NODES, process=PROCESS, known=KNOWN)
    assert found == Sight(PROCESS, 12, frozenset((0, 1, 2, 4)), frozenset(((1, OTHER),)), KNOWN)
    assert calls_of_migrate(b"# Commandstats\r\ncmdstat_get:calls=7,usec=1") == 0


@pytest.mark.parametrize(
    ("before", "now", "called_off"),
    [
        pytest.param(sight(), sight(), "", id="nothing has happened"),
        pytest.param(sight(), sight(6, leaving="3"), "", id="a slot is on its way"),
        pytest.param(sight(6, leaving="3"), sight(9, leaving="3"), "", id="it still is"),
        pytest.param(sight(6, leaving="3"), sight(9, owned="01245"), "", id="it has arrived"),
        pytest.param(sight(), sight(9, owned="01245"), "", id="it has arrived, within one look"),
        pytest.param(sight(), sight(owned="01245"), "", id="it has arrived, and had no keys"),
        pytest.param(sight(6, leaving="3"), sight(6), stayed("3"), id="it stays"),
        pytest.param(
            sight(6, leaving="35"),
            sight(8, leaving=""),
            stayed("3, 5"),
            id="two stay",
        ),
        pytest.param(
            sight(6, leaving="35"),
            sight(8, owned="01234"),
            stayed("3"),
            id="one of two stays",
        ),
        pytest.param(sight(), sight(6), LEFT, id="it stays, within one look"),
        pytest.param(sight(), sight(2), LEFT, id="the counter was set back, then keys have left"),
        pytest.param(sight(), sight(0), "", id="the counter was set back"),
        pytest.param(sight(leaving="3"), sight(6, process=("another", "replid")), "", id="a restart"),
        pytest.param(sight(), sight(6, leaving="5"), "", id="hidden by another slot: the limit"),
    ],
)
def test_which_move_was_called_off(before: Sight, now: Sight, called_off: str) -> None:
    assert what_was_called_off(before, now) == called_off


def test_a_slot_that_goes_to_another_node_instead_was_called_off() -> None:
    elsewhere = Sight(PROCESS, 6, frozenset(range(6)), frozenset(((3, "2" * 40),)), KNOWN)
    assert what_was_called_off(sight(6, leaving="3"), elsewhere) == stayed("3")


def test_the_first_look_compares_nothing() -> None:
    assert what_was_called_off(None, sight(7)) == ""


def test_a_master_is_asked_for_its_slots_only_if_keys_or_slots_may_have_left() -> None:
    seen = {"calls": 5, "process": PROCESS, "known": KNOWN}

    def asks(last: Sight | None, **changed: object) -> bool:
        return has_to_ask(last, **{**seen, **changed})  # type: ignore[arg-type]

    assert not asks(sight())
    assert asks(None)
    assert asks(sight(leaving="3"))
    assert asks(sight(), calls=6)
    assert asks(sight(), process=("another", "replid"))
    assert asks(sight(), known=((0, 4),))
