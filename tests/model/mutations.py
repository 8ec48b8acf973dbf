"""The rules of the protocol, each to be broken once: an explorer that finds nothing then is of no use."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from glasspoint.l1 import epoch
from model.terms import Move

_OURS = ("glasspoint", "model")


@dataclass(frozen=True)
class Mutation:
    """A rule, removed.

    Attributes:
        edits: (file, text, what to put instead); a file is a script, or a module.
        scenario: Where a counterexample is to be found.
        faults: What kinds of faults it takes.
        budget: How many faults in one schedule.
        start: What the schedules begin with that are searched, where all would take minutes.
        finds: How the counterexample is told.
    """

    rule: str
    edits: tuple[tuple[str, str, str], ...]
    scenario: str
    faults: tuple[str, ...] = ()
    budget: int = 1
    start: tuple[Move, ...] = ()
    finds: str = "PostgreSQL h(eld|olds)"


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """Run the code as if it had been written so."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        original = resources.files("glasspoint.l1") / "scripts"
        shutil.copytree(str(original), folder / "scripts")
        for file, old, new in mutation.edits:
            if file.endswith(".lua"):
                path = folder / "scripts" / file
                path.write_text(_edited(path.read_text("utf-8"), file, old, new), "utf-8")
        scratches: list[ModuleType] = []
        for name in dict.fromkeys(file for file, *_ in mutation.edits if not file.endswith(".lua")):
            module = import_module(name)
            text = inspect.getsource(module)
            for file, old, new in mutation.edits:
                text = _edited(text, file, old, new) if file == name else text
            scratches.append(_reload(patch, module, text, scratches))
        patch.setattr(epoch, "resources", SimpleNamespace(files=lambda _package: folder))
        yield


def _edited(text: str, file: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{file} holds {text.count(old)} times: {old}"
    return text.replace(old, new)


def _reload(
    patch: pytest.MonkeyPatch, module: ModuleType, text: str, scratches: Sequence[ModuleType]
) -> ModuleType:
    """Define everything of the module anew, also where others have imported it by name.

    Args:
        scratches: What holds the functions of the modules that were defined anew before.

    Returns:
        What holds those of this one.
    """
    before = dict(vars(module))
    namespace: dict[str, Any] = {"__name__": module.__name__, "__file__": module.__file__}
    scratch = ModuleType(module.__name__)
    scratch.__dict__.update(namespace)
    patch.setitem(sys.modules, module.__name__, scratch)  # dataclasses look their module up
    exec(compile(text, str(module.__file__), "exec"), scratch.__dict__)
    patch.setitem(sys.modules, module.__name__, module)
    ours = [m for name, m in sys.modules.items() if name.split(".")[0] in _OURS]
    for other in (*ours, *scratches):
        for name, value in list(vars(other).items()):
            new = vars(scratch).get(name)
            if name in before and value is before[name] and new is not None and new is not value:
                patch.setattr(other, name, new)
    return scratch


_BURST = "burst of two || reader"
_BURST_PUT_AND_READER = "burst of two || put || reader"
_BURST_AND_PUT = "burst of two || put"
_COLD = "put, its put_writes || reader || reader, cold"
_DELETE = "burst of two || delete_thread || reader"
_FORK = "fork put || reader"
_PUT_AND_WRITES = "put || its put_writes"
_SPECIAL = "special writes upon another || special writes"
_SPECIAL_OF_ONE = "special writes of one process || reader"
_TWO_PUTS = "two puts || reader"
_TWO_PUTS_COLD = "two puts, cold"

_SAVER = "glasspoint.savers.cached"
_WRITE = "glasspoint.savers.write_through"
_BURSTS = "glasspoint.savers.bursts"
_MODEL = "model.store"


def steps(name: str, *labels: str) -> tuple[Move, ...]:
    """Return the moves of an actor, one after the other."""
    return tuple(("step", name, label) for label in labels)


_EVICTED_BETWEEN_TWO_WRITES: tuple[Move, ...] = (
    *steps("p", "begin", "put snapshot", "put", "confirm"),
    ("evict",),
    *steps("q", "begin", "put snapshot", "put", "confirm"),
    *steps("p", "put snapshot", "put"),
)

# The reader looks at PostgreSQL while the fence is all that tells of the burst.
_FENCED_AND_EVICTED: tuple[Move, ...] = (
    *steps("p", "begin", "put snapshot", "put", "confirm", "put snapshot"),
    ("evict",),
    *steps("r", "read", "select"),
)

# Some rules have no counterexample, because another rule covers them. They save work, or a wait.
#
# - The fence stands until COMMIT was answered: when a burst ends, its writes were answered. A reader that
#   looks at PostgreSQL from then on finds them, and one that has looked before has seen the fence. So it goes
#   when a burst is lost, too.
# - COMMIT asks whether the image is newer: PostgreSQL has said whether the put was the newest one, and a put
#   that came later has contested the burst.
# - COMMIT asks whether the image is whole: a reader refuses an image that lacks a channel.
# - CONFIRM asks whether the intent is in time: READ takes away an intent that has expired, before it gives a
#   lease.
# - A burst is contested when CONFIRM has not found its intent: COMMIT does not find it, either.
# - BEGIN is sent after the last COMMIT was answered: otherwise it disarms the burst before, and both discard.
# - A COMMIT that was not answered is followed by DROP: it was done, or its intent sends readers away until
#   its deadline, and is a crashed writer's then.
# - A burst whose CONFIRM was not answered is dropped: a row was made before the caller was answered.
# - WARM_UP asks for intents: BEGIN has taken the lease away.
# - A burst is covered only once its fence was set: a write that finds no fence confirms.
# - The fence of a burst with a write in doubt is left to expire: DROP leaves an intent.
# - A further write is recorded as written (`Cache.wrote`): until COMMIT, which is recorded, the fence keeps
#   others from warming up, under whatever keys.

MUTATIONS = (
    # ---------------------------------------------------------------- fences
    Mutation(
        # Either is enough: who finds no fence confirms.
        "the first statement sets the fence, or each write looks for it",
        (
            (_WRITE, "opens=self._opens)", "opens=False)"),
            (_WRITE, "(fence.stands and self._l1.is_heeded(intent))", "self._l1.is_heeded(intent)"),
        ),
        _BURST,
        ("evict",),
        start=_FENCED_AND_EVICTED,
    ),
    Mutation(
        "a further write looks for its own fence",
        ((_WRITE, "(fence.stands and self._l1.is_heeded(intent))", "self._l1.is_heeded(intent)"),),
        _BURST,
        ("evict", "lose_fences"),
        budget=2,
        start=(
            *steps("p", "begin", "put snapshot", "put", "confirm"),
            ("evict",),
            *steps("r", "read"),
            ("lose_fences",),
        ),
    ),
    Mutation(
        "SELECT tells of the fence",
        (
            (
                _MODEL,
                "return tables, (row, any(key[:2] == scope for key, _ in tables.fences))",
                "return tables, (row, False)",
            ),
        ),
        _BURST,
        ("evict",),
        start=_FENCED_AND_EVICTED,
    ),
    Mutation(
        "a fenced reader does not warm up",
        ((_SAVER, " or stored.is_fenced", ""),),
        _BURST,
        ("evict",),
        start=_FENCED_AND_EVICTED,
    ),
    Mutation(
        "the fence of another saver contests",
        ((_WRITE, "burst.is_contested or fence.is_contested", "burst.is_contested"),),
        _BURST_PUT_AND_READER,
        ("evict",),
        start=_EVICTED_BETWEEN_TWO_WRITES,
    ),
    # ---------------------------------------------------------------- BEGIN and CONFIRM
    Mutation(
        "BEGIN is awaited before PostgreSQL is asked",
        (
            (
                _WRITE,
                "intent = burst.begun.result() if burst.begun.done() else await asyncio.shield(burst.begun)",
                "intent = type('_', (), {'name': b'.', 'keys': self._l1._keys})",
            ),
            (
                _WRITE,
                "        intent = burst.begun.result()\n        if fence.identity",
                "        intent = await asyncio.shield(burst.begun)\n        if fence.identity",
            ),
        ),
        _BURST,
        ("crash",),
    ),
    Mutation(
        "BEGIN and COMMIT take the lease away",
        (
            ("begin.lua", "redis.call('HDEL', KEY, 'lease')\n", ""),
            ("prelude.lua", "'i:' .. intent, 'lease')", "'i:' .. intent)"),
        ),
        _COLD,
    ),
    Mutation(
        "BEGIN disarms the intents that it meets",
        (("begin.lua", "for _, field in ipairs(others) do disarm(field) end\n", ""),),
        _TWO_PUTS,
        finds="expires",
    ),
    Mutation(
        "BEGIN is born disarmed beside another intent",
        (("begin.lua", "#others == 0 and 1 or 0", "1"),),
        _BURST,
        ("unheard",),
        finds="expires",
    ),
    Mutation(
        "CONFIRM is answered before the caller is",
        (
            (
                _WRITE,
                "await self._lifetime.settle(self._tell(burst, fence, change))",
                "asyncio.get_running_loop().create_task(self._tell(burst, fence, change))",
            ),
        ),
        _BURST,
        ("evict",),
        start=(*steps("p", "begin"), ("evict",)),
    ),
    Mutation(
        "CONFIRM discards if the intent is gone",
        (("confirm.lua", "discard()\n", ""),),
        _BURST,
        ("evict",),
        start=(*steps("p", "begin", "put snapshot"), ("evict",), *steps("r", "read", "select")),
    ),
    # ---------------------------------------------------------------- COMMIT
    Mutation(
        "COMMIT needs its own intent",
        (("prelude.lua", "if not own then return false end", "if not own then return true end"),),
        _BURST_AND_PUT,
        ("evict",),
    ),
    Mutation(
        "COMMIT needs its own intent in time",
        (("prelude.lua", "return armed and deadline > now_ms()", "return armed"),),
        _SPECIAL,
        ("lapse",),
        finds="expires",
        start=(*steps("v", "begin", "put_writes", "confirm"), ("end", "v", ""), ("lapse", "i:v_0_2")),
    ),
    Mutation(
        "COMMIT needs its own intent armed",
        (("prelude.lua", "return armed and deadline", "return deadline"),),
        _DELETE,
        finds="expires",
    ),
    Mutation(
        "COMMIT discards if it may not follow",
        (("commit.lua", "  discard()\n  return answer(0)\n", "  return answer(0)\n"),),
        _BURST_AND_PUT,
    ),
    Mutation(
        "a put is followed if PostgreSQL has it as it was sent, and no newer one",
        ((_SAVER, "is_as_sent=result.followable", "is_as_sent=True"),),
        _TWO_PUTS_COLD,
    ),
    Mutation(
        "COMMIT looks for the writes that PostgreSQL had before",
        (("commit.lua", "for i = 10, 9 + needed do", "for i = 1, 0 do"),),
        _PUT_AND_WRITES,
        ("evict",),
        start=(*steps("w", "begin", "put_writes", "confirm"), ("end", "w", ""), *steps("w.end", "commit")),
    ),
    Mutation(
        "upserts of one process that are under way together are not followed",
        ((_SAVER, "if result.overwrote and write.is_among_others:", "if False:"),),
        _SPECIAL_OF_ONE,
    ),
    Mutation(
        "a contested burst installs nothing",
        ((_BURSTS, "        if burst.is_contested:\n", "        if False:\n"),),
        _BURST_PUT_AND_READER,
        ("evict",),
        start=_EVICTED_BETWEEN_TWO_WRITES,
    ),
    # ---------------------------------------------------------------- discards, readers
    Mutation(
        "a discard disarms",
        (
            (
                "prelude.lua",
                "disarmed[#disarmed + 1] = string.format('%.0f:0', deadline)",
                "disarmed[#disarmed + 1] = redis.call('HGET', KEY, field)",
            ),
        ),
        _BURST_AND_PUT,
        ("evict",),
        start=(*steps("p", "begin"), ("evict",), *steps("q", "begin")),
    ),
    Mutation(
        "a discard keeps live intents",
        (("prelude.lua", "if last <= now then", "if true then"),),
        _TWO_PUTS,
        ("crash",),
        start=(
            *steps("p", "begin"),
            *steps("q", "begin"),
            *steps("p", "put snapshot", "put", "confirm"),
            ("end", "p", ""),
            *steps("p.end", "commit"),
        ),
    ),
    Mutation(
        "READ gives no image away while a write is under way",
        (
            ("prelude.lua", "> now then return {2} end", "<= now then expired = true end"),
            ("prelude.lua", "\n      expired = true\n", "\n"),
        ),
        _BURST,
        finds="expires",
    ),
    Mutation(
        "READ discards when an intent has expired",
        (("prelude.lua", "expired = true\n", "expired = false\n"),),
        _BURST,
        ("crash",),
    ),
    Mutation(
        "WARM_UP needs its lease",
        (("warm_up.lua", "if lease ~= ARGV[1] then", "if false then"),),
        _COLD,
    ),
    Mutation(
        "a reader compares versions",
        (
            (
                "glasspoint.l1.entry",
                "if signed is None or not signed.startswith(start):",
                "if signed is None:",
            ),
        ),
        _FORK,
    ),
    # ---------------------------------------------------------------- what is in doubt
    Mutation(
        "DROP leaves an intent while the statement may still run",
        (("drop.lua", "if ARGV[2] == '1' then", "if false then"),),
        _BURST,
        ("cancel",),
        start=(
            *steps("p", "begin", "put snapshot"),
            ("cancel", "p"),
            *steps("p", "drop"),
            *steps("r", "read", "select", "warm_up"),
            ("late", "0", "put"),
        ),
    ),
    Mutation(
        "DROP when nobody knows what PostgreSQL did",
        (
            (
                _WRITE,
                "            if self._in_doubt:\n                await self._forget",
                "            if False:\n                await self._forget",
            ),
        ),
        _BURST,
        ("cancel",),
    ),
    Mutation(
        "the entry is forgotten when an earlier attempt is in doubt",
        (
            (
                _WRITE,
                "if self._in_doubt or self._is_journalled:",
                "if self._is_journalled:",
            ),
        ),
        _SPECIAL,
        ("cut",),
        start=(
            *steps("v", "begin"),
            ("cut", "v", "put_writes"),
            *steps("v", "put_writes", "confirm"),
            ("end", "v", ""),
            *steps("v.end", "commit"),
        ),
    ),
    Mutation(
        "a deletion tells L1",
        (
            (
                "glasspoint.savers.maintenance",
                "if not await self._l1.drop(intent, still_running=in_doubt):",
                "if not await self._l1.abort(intent):",
            ),
        ),
        _DELETE,
        start=steps("d", "delete", "begin", "commit"),
    ),
    Mutation(
        "the epoch stands in the keys",
        (
            (
                "glasspoint.l1.epoch",
                'return f"{root}{identity.reign}:{identity.name}:"',
                'return f"{root}{identity.database}:"',
            ),
            # Otherwise the signature of an older generation is wrong, and the image is refused for that.
            (
                "glasspoint.l1.epoch",
                "Signer(identity.secret, identity.generation)",
                "Signer(identity.secret)",
            ),
        ),
        _BURST,
        ("restart",),
    ),
    Mutation(
        "the epoch stands in the scripts",
        (
            (
                "glasspoint.l1.epoch",
                'head = f"-- epoch {reign.name}\\n{guard}{prelude}"',
                "head = prelude",
            ),
        ),
        _BURST,
        ("failover",),
    ),
)
