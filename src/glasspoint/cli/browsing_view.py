"""Prints the data of `browsing` in the terminal: 80 columns, no boxes, nothing cut in a pipe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from glasspoint.console import WIDTH, Block, plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from rich.console import Console

    Facts: TypeAlias = dict[str, Any]

__all__ = ["print_diff", "print_history", "print_show", "print_threads"]

_MISSING = "-"


def print_threads(console: Console, threads: Sequence[Facts], *, limit: int) -> None:
    """Print one line for each thread, and then how to see more, if there may be more."""
    table = _table(("thread", {"overflow": "fold"}), "newest (UTC)", ("step", {"justify": "right"}), "source")
    for each in threads:
        _add(
            table,
            plain(each["thread_id"]),
            _time(each["created_at"]),
            _text(each["step"]),
            _text(each["source"]),
        )
    if not threads:
        console.print("There are no such threads.")
        return
    _print(console, table)
    for each in threads:
        _metadata(console, each["thread_id"], each)
    if len(threads) == limit:
        _more(console, f"There may be more: --before {plain(threads[-1]['checkpoint_id'])}")


def print_history(console: Console, facts: Facts) -> None:
    """Print the checkpoints, branch by branch."""
    _facts(
        console,
        ("thread", plain(facts["thread_id"])),
        *_namespace_fact(facts),
        ("checkpoints", _counted(facts["checkpoints"], facts["shown"])),
        ("made", _days(facts)),
    )
    days = {(each["created_at"] or "")[:10] for branch in facts["branches"] for each in branch["checkpoints"]}
    for number, branch in enumerate(facts["branches"]):
        older = branch["goes_on_from"]
        if number:
            first = branch["checkpoints"][-1]
            beginning = f"goes on from {plain(older)}" if older else f"begins anew at step {first['step']}"
            console.print(Text(f"Fork {number}, {beginning}", "bold"))
        table = _table("checkpoint", _right("step"), "source", "UTC", _right("size"), "writes", padding=1)
        for each in branch["checkpoints"]:
            _add(
                table,
                plain(each["checkpoint_id"]),
                _text(each["step"]),
                _text(each["source"]),
                _short_time(each["created_at"], is_of_one_day=len(days) == 1),
                _size(each["bytes"]),
                _pending(each),
            )
        _print(console, table)
        for each in branch["checkpoints"]:
            _metadata(console, each["checkpoint_id"], each)
        if not number and older:
            _more(console, f"Its parent is not shown: {plain(older)}")
    _other_namespaces(console, facts)
    if facts["shown"] < facts["checkpoints"]:
        older_ones = facts["checkpoints"] - facts["shown"]
        _more(console, f"{older_ones:,} older checkpoints are not shown: --limit {facts['checkpoints']}")


def print_show(console: Console, facts: Facts) -> None:
    """Print a checkpoint: its facts, its channels, its pending writes, and the entry in L1."""
    newest = "the newest" if facts["is_newest"] else f"the newest is {plain(facts['newest'])}"
    _facts(
        console,
        ("thread", plain(facts["thread_id"])),
        *_namespace_fact(facts),
        ("checkpoint", plain(facts["checkpoint_id"])),
        ("", newest),
        ("parent", plain(facts["parent_id"]) if facts["parent_id"] else "none: the thread begins here"),
        ("made", f"{_time(facts['created_at'])} UTC, step {_text(facts['step'])}, {_text(facts['source'])}"),
        ("size", f"{decimal(facts['bytes'])}, format {_text(facts['format'])}"),
        ("next", ", ".join(map(plain, facts["next"])) or "no node, as far as its edges tell"),
        *_waits(facts),
        ("L1 (Redis)", _l1(facts["l1"])),
        *([("metadata", _json(facts["metadata"]))] if "metadata" in facts else []),
    )
    table = _table(("channel", {"overflow": "fold"}), "version", "kept", "type", _right("size"))
    for each in facts["channels"]:
        _add(
            table,
            plain(each["channel"]),
            _version(each["version"]),
            each["kept"],
            _text(each["type"]),
            _size(each["bytes"]) if each["kept"] != "nothing" else "",
        )
    _print(console, table)
    if facts["pending_writes"]:
        writes = _table(("pending write of", {"overflow": "fold"}), "to", "type", _right("size"))
        for each in facts["pending_writes"]:
            task = plain(each["node"] or each["task_id"])
            _add(writes, task, plain(each["channel"]), _text(each["type"]), _size(each["bytes"]))
        _print(console, writes)
    for each in (*facts["channels"], *facts["pending_writes"]):
        name = f"pending write {each['idx']} to {each['channel']}" if "idx" in each else each["channel"]
        _value(console, name, each)
    _other_namespaces(console, facts)


def print_diff(console: Console, facts: Facts) -> None:
    """Print the changes from one checkpoint to the other."""
    _facts(
        console,
        ("thread", plain(facts["thread_id"])),
        *_namespace_fact(facts),
        *((name, _side(facts[name])) for name in ("a", "b")),
        ("", _relation(facts["relation"])),
    )
    if facts["channels"]:
        table = _table(
            ("channel", {"overflow": "fold"}), "change", "version a", "version b", _right("a"), _right("b")
        )
        for each in facts["channels"]:
            a, b = each["a"] or {}, each["b"] or {}
            _add(
                table,
                plain(each["channel"]),
                each["change"],
                _version(a.get("version")),
                _version(b.get("version")),
                _size(a["bytes"]) if a else "",
                _size(b["bytes"]) if b else "",
            )
        _print(console, table)
    for each in facts["channels"]:
        for name in ("a", "b"):
            if each[name]:
                _value(console, f"{each['channel']}, {name}", each[name])
    unchanged = len(facts["unchanged"])
    what = "channel is" if unchanged == 1 else "channels are"
    console.print(f"{unchanged} {what} the same in both." if unchanged else "No channel is the same in both.")


# -------------------------------------------------------------------- helpers


def _table(*columns: str | tuple[str, dict[str, Any]], padding: int = 2) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, padding, 0, 0), header_style="bold")
    for column in columns:
        name, options = (column, {}) if isinstance(column, str) else column
        fitting = {"min_width": 12} if "overflow" in options else {"no_wrap": True}
        table.add_column(name, **{**fitting, **options})
    return table


def _right(name: str) -> tuple[str, dict[str, Any]]:
    return name, {"justify": "right"}


def _add(table: Table, *cells: str) -> None:
    # As `Text`, because rich would take names in brackets of a plain string for its markup.
    table.add_row(*map(Text, cells))


def _print(console: Console, table: Table) -> None:
    """Print a table in 80 columns, or in more if it needs more: half an id would be useless."""
    columns = [
        column.min_width or max(map(cell_len, map(str, [column.header, *column.cells])), default=0)
        for column in table.columns
    ]
    width = max(WIDTH, sum(columns) + table.padding[1] * len(columns))
    console.width = max(console.width, width)
    console.print(Block(table, indent=0, widest=width))


def _more(console: Console, text: str) -> None:
    console.print(Text(text, "dim"), soft_wrap=True)


def _facts(console: Console, *pairs: tuple[str, str]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=11)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name, "bold"), Text(value))
    console.print(Block(grid, indent=0))


def _namespace_fact(facts: Facts) -> list[tuple[str, str]]:
    return [("namespace", plain(facts["checkpoint_ns"]))] if facts["checkpoint_ns"] else []


def _other_namespaces(console: Console, facts: Facts) -> None:
    others = [each for each in facts["namespaces"] if each["checkpoint_ns"] != facts["checkpoint_ns"]]
    if not others:
        return
    table = _table(("other namespaces", {"overflow": "fold"}), _right("checkpoints"))
    for each in others:
        name = plain(each["checkpoint_ns"]) if each["checkpoint_ns"] else "(the root graph: no --namespace)"
        _add(table, name, f"{each['checkpoints']:,}")
    _print(console, table)


def _metadata(console: Console, name: str, facts: Facts) -> None:
    if "metadata" in facts:
        _value(console, f"metadata of {name}", {"value": facts["metadata"]})


def _value(console: Console, name: str, facts: Facts) -> None:
    if "value" not in facts:
        return
    console.print(Text(plain(name), "bold"))
    if "unreadable" in facts:
        text = f"cannot be read here ({facts['unreadable']}): another serializer, or it is encrypted"
    else:
        text = json.dumps(facts["value"], ensure_ascii=False, indent=2)
    lines = [plain(line) for line in text.splitlines()]
    console.print(Block(Text("\n".join(lines), overflow="fold"), indent=2))


def _json(value: object) -> str:
    return plain(json.dumps(value, ensure_ascii=False))


def _text(value: object) -> str:
    return _MISSING if value is None else plain(str(value))


def _counted(all_: int, shown: int) -> str:
    return f"{all_:,}" if shown == all_ else f"{all_:,}, of which {shown:,} are shown"


def _time(iso: str | None) -> str:
    return _MISSING if iso is None else plain(iso[:19].replace("T", " "))


def _days(facts: Facts) -> str:
    times = sorted(
        each["created_at"][:10]
        for branch in facts["branches"]
        for each in branch["checkpoints"]
        if each["created_at"]
    )
    if not times:
        return _MISSING
    return plain(times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}")


def _short_time(iso: str | None, *, is_of_one_day: bool) -> str:
    """Return a time that fits beside an id: the time of day, or month, day, hour and minute."""
    if iso is None:
        return _MISSING
    return plain(iso[11:19] if is_of_one_day else iso[5:16].replace("T", " "))


def _size(count: int) -> str:
    return f"{count} B" if count < 1000 else decimal(count)


def _version(version: str | None) -> str:
    """Return a short form of a version: `3.4711` for `00000000000000000000000000000003.0.4711`."""
    if version is None:
        return _MISSING
    number, _, random = version.partition(".")
    short = number.lstrip("0") or "0"
    random = random.removeprefix("0.")[:4]
    return plain(f"{short[:10]}.{random}" if random else short[:15])


def _pending(each: Facts) -> str:
    if each["errors"]:
        return f"{each['pending_writes']} error"
    if each["interrupts"]:
        return f"{each['pending_writes']} asks"
    return str(each["pending_writes"] or "")


def _waits(facts: Facts) -> list[tuple[str, str]]:
    waits = []
    if facts["interrupts"]:
        waits.append(("interrupts", f"{facts['interrupts']}: what asks waits for an answer"))
    if facts["errors"]:
        waits.append(("errors", f"{facts['errors']}: the tasks are to be tried again"))
    return waits


def _l1(l1: Facts) -> str:
    result, detail = l1["result"], l1.get("detail") or ""
    if l1.get("checkpoint_id"):
        held = "this checkpoint" if result == "hit" else f"another checkpoint, {l1['checkpoint_id']}"
        if l1["agrees"]:
            said = f"{result}: it holds {held}; all of it is as in PostgreSQL"
        else:
            names = ", ".join(map(plain, l1["differs_in"][:5]))
            said = f"{result}: it holds {held}, which DIFFERS from PostgreSQL's newest in: {names}"
        if result != "hit":
            said = said.removeprefix(f"{result}: it holds ")
    else:
        said = {
            "absent": "absent: the next read asks PostgreSQL",
            "busy": "busy: a write is under way, or its end was not seen; reads ask PostgreSQL",
            "unusable": f"unusable: savers refuse it ({plain(detail)})",
        }.get(result, f"{result}: {plain(detail)}")
    if l1.get("shard"):
        said += f"; on the shard {l1['shard']}"
    if l1.get("journalled"):
        said += "; the journal names it, so savers drop it before they read"
    if l1.get("bytes"):
        said += f" ({decimal(l1['bytes'])}"
        said += (
            f", gone in {_duration(l1['expires_in_seconds'])} if nobody reads it)"
            if l1["expires_in_seconds"]
            else ")"
        )
    return said


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _side(side: Facts) -> str:
    return (
        f"{plain(side['checkpoint_id'])}\n{_time(side['created_at'])} UTC, step {_text(side['step'])}, "
        f"{_text(side['source'])}, {decimal(side['bytes'])}, {side['pending_writes']} pending"
    )


def _relation(relation: Facts) -> str:
    steps = relation["steps"]
    apart = f"{steps} checkpoint{'' if steps == 1 else 's'} later"
    match relation["kind"]:
        case "same":
            return "a and b are one checkpoint"
        case "b goes on from a":
            return f"b goes on from a, {apart}"
        case "a goes on from b":
            return f"a goes on from b, {apart}"
        case "branches":
            return f"two branches: they part at {plain(relation['common'])}"
    return "no common ancestor in this thread"
