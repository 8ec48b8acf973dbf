"""The report fits into 80 columns, through a pipe as well, and ends with the figures that count."""

from __future__ import annotations

import io

from rich.console import Console

from chaos.checker import judge
from chaos.faults import Fault, Happened
from chaos.history import Operation, Truth
from chaos.report import print_report
from chaos.run import Outcome, Settings

FAULT = Fault("redis line: blackhole", at=0, seconds=1, worker=None, down_seconds=0)


def test_it_says_what_was_found_and_in_which_fault_it_began() -> None:
    known = {"worker": "worker1-001", "thread": "thread-7-12", "outcome": "ok"}
    checkpoint = "1f1e736b-3521-67dc-8038-6b699f36ef1c"
    put = Operation(kind="put", start=10.0, end=10.1, checkpoint=checkpoint, value="v", **known)  # type: ignore[arg-type]
    reads = [
        Operation(kind="read", start=start, end=start + 0.1, **known)  # type: ignore[arg-type]
        for start in (11.0, 20.0)
    ]
    done = [put, *reads]
    truths = {"": Truth({("thread-7-12", "", checkpoint): "v"}, {})}
    verdict = judge(done, truths, bound_seconds=3)
    happened = [Happened(FAULT, 9.5, 10.5)]
    outcome = Outcome(Settings(7), done, verdict, happened, 2, [], 60.0, ["worker0-001, put: KeyError(1)"])
    text = io.StringIO()
    print_report(Console(file=text, width=80, highlight=False), outcome)
    said = text.getvalue()
    assert max(len(line) for line in said.splitlines()) <= 80
    assert "\x1b" not in said
    assert said.index("Violations") < said.index("In the documented window ") < said.index("Chaos: seed 7")
    assert "done during: redis line: blackhole, all workers" in said
    assert "KeyError(1)" in said
    figures = [
        line.rsplit(maxsplit=1) for line in said[said.index("Chaos: seed 7") :].splitlines() if line.strip()
    ]
    by_name = {name.strip(): value for name, value in figures}
    assert by_name["operations"] == "3"
    assert by_name["faults"] == "3"
    assert by_name["redis line: blackhole"] == by_name["stale reads"] == "1"
    assert by_name["lost writes"] == "0"
    assert by_name["reads in the documented window (3 s)"] == "1"
    assert by_name["unexpected errors"] == "1"
    assert not outcome.good
