"""The rules of the protocol, each to be broken once: an explorer that finds nothing then is of no use."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from glasspoint.l1 import epoch
from interleavings.world import Move

_OURS = ("glasspoint", "interleavings")


@dataclass(frozen=True)
class Mutation:
    """A rule, removed.

    Attributes:
        edits: (file, text, what to put instead); a file is a script, or a module.
        scenario: Where a counterexample is to be found.
        faults: What kinds of faults it takes.
        start: What the schedules begin with that are searched, where all would take minutes.
        finds: How the counterexample is told.
    """

    rule: str
    edits: tuple[tuple[str, str, str], ...]
    scenario: str
    faults: tuple[str, ...] = ()
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
        for name in {file for file, *_ in mutation.edits if not file.endswith(".lua")}:
            module = import_module(name)
            text = inspect.getsource(module)
            for file, old, new in mutation.edits:
                text = _edited(text, file, old, new) if file == name else text
            _reload(patch, module, text)
        patch.setattr(epoch, "resources", SimpleNamespace(files=lambda _package: folder))
        yield


def _edited(text: str, file: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{file} holds {text.count(old)} times: {old}"
    return text.replace(old, new)


def _reload(patch: pytest.MonkeyPatch, module: ModuleType, text: str) -> None:
    """Define everything of the module anew, also where others have imported it by name."""
    before = dict(vars(module))
    namespace: dict[str, Any] = {"__name__": module.__name__, "__file__": module.__file__}
    scratch = ModuleType(module.__name__)
    scratch.__dict__.update(namespace)
    patch.setitem(sys.modules, module.__name__, scratch)  # dataclasses look their module up
    exec(compile(text, str(module.__file__), "exec"), scratch.__dict__)
    patch.setitem(sys.modules, module.__name__, module)
    for other in [m for name, m in sys.modules.items() if name.split(".")[0] in _OURS]:
        for name, value in list(vars(other).items()):
            new = vars(scratch).get(name)
            if name in before and value is before[name] and new is not None and new is not value:
                patch.setattr(other, name, new)


_PUT_AND_WRITES = "put || its put_writes || reader"
_TWO_PUTS = "two puts || reader"
_TWO_PUTS_COLD = "two puts || reader, cold"
_SAME_WRITES = "the same put_writes twice || reader"
_DELETE = "put || delete_thread || reader"
_SPECIAL = "special writes upon another || special writes || reader"
_COLD = "put, its put_writes || reader || reader, cold"
_FORK = "fork put || reader"

MUTATIONS = (
    Mutation(
        "BEGIN and COMMIT take the lease away",
        (
            ("begin.lua", "redis.call('HDEL', KEY, 'lease')\n", ""),
            ("prelude.lua", "'i:' .. intent, 'lease')", "'i:' .. intent)"),
        ),
        _COLD,
    ),
    Mutation(
        "COMMIT needs its own intent",
        (("prelude.lua", "if not own then return false end", "if not own then return true end"),),
        _DELETE,
        ("evict",),
    ),
    Mutation(
        "COMMIT needs its own intent in time",
        (("prelude.lua", "return armed and deadline > now_ms()", "return armed"),),
        _SPECIAL,
        ("lapse",),
    ),
    Mutation(
        "COMMIT needs its own intent armed",
        (("prelude.lua", "return armed and deadline", "return deadline"),),
        _DELETE,
    ),
    Mutation(
        "a discard disarms",
        (("prelude.lua", "string.format('%.0f:0', deadline)", "redis.call('HGET', KEY, field)"),),
        _DELETE,
    ),
    Mutation(
        "a discard keeps live intents",
        (("prelude.lua", "if last <= now then", "if true then"),),
        _SPECIAL,
        ("crash",),
    ),
    Mutation(
        "COMMIT_PUT asks whether PostgreSQL has a newer one",
        (("commit_put.lua", "settle(ARGV[1]) and ARGV[3] == '1' and", "settle(ARGV[1]) and"),),
        _TWO_PUTS_COLD,
    ),
    Mutation(
        "COMMIT_PUT asks whether the image is newer",
        (("commit_put.lua", "(current and id <= current) or ", ""),),
        _TWO_PUTS,
    ),
    Mutation(
        "COMMIT_PUT looks for the known writes",
        (("commit_put.lua", " and not missing", ""),),
        _PUT_AND_WRITES,
        ("evict",),
    ),
    Mutation(
        "COMMIT_PUT does not shorten the life of another intent",
        (
            (
                "commit_put.lua",
                "if not others or redis.call('PTTL', KEY) < tonumber(ARGV[5]) then",
                "if true then",
            ),
        ),
        _TWO_PUTS,
        finds="expires",
    ),
    Mutation(
        "COMMIT_WRITES keeps early writes",
        (("commit_writes.lua", "if current and id < current then", "if current ~= id then"),),
        _PUT_AND_WRITES,
    ),
    Mutation(
        "COMMIT_WRITES discards when the order of two overwrites is not known",
        (("commit_writes.lua", "if overwrote and has_live_intent() then", "if false then"),),
        _SPECIAL,
    ),
    Mutation(
        "COMMIT_WRITES overwrites when PostgreSQL did",
        (("commit_writes.lua", "overwrote and 'HSET' or 'HSETNX'", "'HSETNX'"),),
        _SPECIAL,
    ),
    Mutation(
        "COMMIT_WRITES looks for the ignored writes",
        (
            (
                "commit_writes.lua",
                "if current == id and redis.call('HEXISTS'",
                "if false and redis.call('HEXISTS'",
            ),
        ),
        _SAME_WRITES,
        ("evict",),
    ),
    Mutation(
        "READ gives no image away while a write is under way",
        (
            ("read.lua", "> now then return {2} end", "<= now then expired = true end"),
            ("read.lua", "\n    expired = true\n", "\n"),
        ),
        _TWO_PUTS,
        finds="expires",
    ),
    Mutation(
        "READ discards when an intent has expired",
        (("read.lua", "expired = true\n", "expired = false\n"),),
        _TWO_PUTS,
        ("crash",),
    ),
    Mutation(
        "WARM_UP needs its lease",
        (("warm_up.lua", "if redis.call('HGET', KEY, 'lease') ~= ARGV[1] then return 0 end", ""),),
        _COLD,
    ),
    Mutation(
        "DROP leaves an intent while the statement may still run",
        (("drop.lua", "if ARGV[2] == '1' then", "if false then"),),
        _SPECIAL,
        ("cut",),
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
    Mutation(
        "the caller is answered after COMMIT",
        (
            (
                "glasspoint.saver",
                "await self._lifetime.settle(follow())",
                "asyncio.get_running_loop().create_task(follow())",
            ),
        ),
        _PUT_AND_WRITES,
        ("evict",),
    ),
    Mutation(
        "BEGIN is awaited before PostgreSQL is asked",
        (
            (
                "glasspoint.saver",
                "intent, _ = await asyncio.shield(self._begun)\n",
                "intent = type('_', (), {'name': b'.', 'keys': self._l1._keys})\n",
            ),
        ),
        _TWO_PUTS,
        ("crash",),
    ),
    Mutation(
        "DROP, not ABORT, when nobody knows what PostgreSQL did",
        (
            (
                "glasspoint.saver",
                "        if self._in_doubt:\n            await",
                "        if False:\n            await",
            ),
        ),
        _TWO_PUTS,
        ("cancel",),
    ),
    Mutation(
        "the entry is forgotten when an earlier attempt is in doubt",
        (
            (
                "glasspoint.saver",
                "self.forget(intent) if self._in_doubt else commit(intent)",
                "commit(intent)",
            ),
        ),
        _SPECIAL,
        ("cut",),
    ),
    Mutation(
        "a deletion tells L1",
        (
            (
                "glasspoint.maintenance",
                "if not await self._l1.drop(intent, still_running=in_doubt):",
                "if not await self._l1.abort(intent):",
            ),
        ),
        _DELETE,
    ),
    Mutation(
        "the epoch stands in the keys",
        (
            (
                "glasspoint.l1.epoch",
                'prefix = f"{self.root}{server.reign}:{identity.name}:"',
                'prefix = f"{self.root}{identity.database}:"',
            ),
            # Otherwise the signature of an older generation is wrong, and the image is refused for that.
            (
                "glasspoint.l1.epoch",
                "Signer(identity.secret, identity.generation)",
                "Signer(identity.secret)",
            ),
        ),
        _PUT_AND_WRITES,
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
        _PUT_AND_WRITES,
        ("failover",),
    ),
)
