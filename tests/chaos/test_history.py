"""What a worker has written down is read back, also if it was killed in the middle of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.history import HistoryFile, read_histories


def test_an_operation_is_read_back_with_what_became_of_it(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "a.jsonl", "a")
    with history.operation("read", "t", namespace="n") as read:
        read.checkpoint, read.pending, read.hit = "c", [("task", "log", "said")], True
    with pytest.raises(TimeoutError), history.operation("put", "t", checkpoint="d"):
        raise TimeoutError
    found = read_histories([tmp_path / "a.jsonl"])
    assert found[0] == read
    assert found[0].ok
    assert (found[1].outcome, found[1].checkpoint, found[1].ok) == ("TimeoutError", "d", False)


def test_an_operation_without_an_end_was_killed_and_what_was_confirmed_stays_confirmed(
    tmp_path: Path,
) -> None:
    history = HistoryFile(tmp_path / "a.jsonl", "a")
    under_way = history.operation("put", "t", checkpoint="c", value="v")
    history.confirm(under_way.__enter__())
    (killed,) = read_histories([tmp_path / "a.jsonl"])
    assert (killed.outcome, killed.end, killed.confirmed, killed.value) == ("killed", None, True, "v")


def test_half_a_line_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    HistoryFile(path, "a").note("run", "t", task="x")
    path.write_text(path.read_text() + '{"number": 2, "kind"')
    assert [each.task for each in read_histories([path])] == ["x"]


def test_all_workers_histories_are_one_in_the_order_of_time(tmp_path: Path) -> None:
    files = [HistoryFile(tmp_path / f"{name}.jsonl", name) for name in "ab"]
    for number in range(4):
        files[number % 2].note("run", "t", task=str(number))
    found = read_histories(sorted(tmp_path.glob("*.jsonl")))
    assert [each.task for each in found] == ["0", "1", "2", "3"]
    assert [each.worker for each in found] == ["a", "b", "a", "b"]
