"""The rules of the journal and of trust, each to be broken once, as in `mutations`."""

from __future__ import annotations

from model.mutations import Mutation, steps
from model.outages import QUARANTINED, REFUSED_ONCE
from model.terms import Move

_OWN = "put_writes || reader of the same process"
_NEW = "put_writes, its sweeper || reader || new reader"
_DELETE = "delete_thread || new reader || sweeper"
_SWEEPERS = "a row || sweeper || sweeper || new reader"
_ADDED = "a row || sweeper || put_writes || reader"
_COMPACT = "a row || sweeper || put_writes || compaction || reader"
_OWN_SWEEPER = "a row || put_writes, its new sweeper and reader || reader"
_PLAIN = "put_writes || reader || sweeper"
_QUARANTINED = QUARANTINED.name

_SWEEPING = "glasspoint.coherence.sweeper"
_WRITE = "glasspoint.savers.write_through"
_CACHE = "glasspoint.l1.cache"
_CONTACT = "glasspoint.l1.contact"
_STEPS = "glasspoint.l1.steps"
_TRUST = "glasspoint.l1.trust"
_QUARANTINE = "glasspoint.l1.quarantine"
_MODEL = "model.store"

_EVICTED: tuple[Move, ...] = (("step", "w", "begin"), ("evict",))
_WARMED_UP_BEFORE_THE_WRITE: tuple[Move, ...] = (
    ("step", "v", "read"),
    ("step", "v", "select"),
    ("step", "w", "put_writes"),
    ("step", "v", "warm_up"),
)
_DROPPED_AND_WARMED_UP: tuple[Move, ...] = (
    ("step", "s", "look"),
    ("step", "s", "drop"),
    ("step", "r", "read"),
    ("step", "r", "select"),
    ("step", "r", "warm_up"),
)

_REFUSED_AND_DROPPED_LATER: tuple[Move, ...] = (
    *REFUSED_ONCE,
    ("step", "s", "drop"),
    ("step", "r", "read"),
    ("step", "r", "select"),
)

RULES_OF_OUTAGES = (
    Mutation(
        "the row is made in the write's transaction",
        (
            (
                _MODEL,
                '("put_writes", scope, checkpoint_id, rows, upsert, announced.is_journalled, fence)\n'
                "        )\n",
                '("put_writes", scope, checkpoint_id, rows, upsert, False, fence)\n'
                "        )\n"
                "        if announced.is_journalled:\n"
                "            await self.journal.record_now([scope])\n",
            ),
        ),
        _PLAIN,
        ("cut_off", "crash"),
        finds="in the end",
        start=(("cut_off", "w"), ("step", "w", "begin")),
    ),
    Mutation(
        "a write that Redis was not told of makes a row",
        ((_WRITE, "return Announced(is_journalled=True)", "return Announced()"),),
        _NEW,
        ("cut_off",),
        start=(*steps("s", "look"), *steps("r", "read"), *steps("n", "look", "read", "read")),
    ),
    Mutation(
        "a deletion that Redis was not told of makes a row",
        (
            (
                "glasspoint.savers.maintenance",
                "return [intent.scope for intent in self._intents if not self._l1.is_heeded(intent)]",
                "return []",
            ),
        ),
        _DELETE,
        ("cut_off",),
    ),
    Mutation(
        "a write that was not announced forgets the entry",
        (
            (
                _WRITE,
                "                result = await self._forget(burst, intent)\n            elif burst",
                "                result = await self._forget(burst, intent) if self._in_doubt else 'error'\n"
                "            elif burst",
            ),
        ),
        _PLAIN,
        ("unsaid",),
    ),
    Mutation(
        "a write whose CONFIRM was not heard makes a row",
        ((_WRITE, '            if self._operation.l1_write == "error":\n', "            if False:\n"),),
        _PLAIN,
        ("evict", "cut_off"),
    ),
    Mutation(
        "that row is made before the caller is answered",
        (
            (
                _WRITE,
                "await self._retries.run("
                "self._operation.name, lambda: self._journal.record_now([self._scope]))",
                "asyncio.get_running_loop().create_task(self._journal.record_now([self._scope]))",
            ),
        ),
        _OWN,
        ("evict", "cut_off"),
        start=(
            *_EVICTED,
            *_WARMED_UP_BEFORE_THE_WRITE,
            *steps("v", "read"),
            ("cut_off", "w"),
            *steps("w", "confirm"),
            *steps("w.end", "drop", "unfence"),
        ),
    ),
    Mutation(
        "rows are deleted after DROP",
        (
            (
                _SWEEPING,
                "        refused |= await self._cache.forget(scopes)\n"
                "        done = scopes - refused\n"
                "        await self._forgotten(done, batch, generation)\n",
                "        await self._forgotten(scopes, batch, generation)\n"
                "        refused |= await self._cache.forget(scopes)\n"
                "        done = scopes - refused\n",
            ),
        ),
        _SWEEPERS,
    ),
    Mutation(
        "rows are deleted by their ids",
        (
            (_MODEL, "ids = {id_ for id_, _ in rows}", "scopes = {scope for _, scope in rows}"),
            (_MODEL, "if row[0] in ids}", "if row[1] in scopes}"),
        ),
        _ADDED,
        ("cut_off",),
        start=_DROPPED_AND_WARMED_UP,
    ),
    Mutation(
        "a row is seen that another sweeper has in hand",
        (
            (
                _MODEL,
                "    pending = tuple(sorted(row[:2] for row in tables.journal if row[0] > after)[:limit])\n",
                "    held = {key for _, name, key in tables.changes if name == 'journal'}\n"
                "    rows = sorted(row[:2] for row in tables.journal if row[0] > after)\n"
                "    pending = tuple(row for row in rows if row[0] not in held)\n"
                "    changes = tables.changes | {(who, 'journal', row[0]) for row in pending}\n"
                "    tables = tables._replace(changes=changes)\n",
            ),
        ),
        _SWEEPERS,
    ),
    Mutation(
        "compaction keeps no id",
        (
            (
                _MODEL,
                "    gone, tables = tables.journal, tables._replace(journal=frozenset())\n",
                "    first = {scope: id_ for id_, scope, _ in sorted(tables.journal, reverse=True)}\n"
                "    rows = frozenset((id_, scope, None) for scope, id_ in first.items())\n"
                "    return tables._replace(journal=rows), None\n",
            ),
            (
                _MODEL,
                "    for source in sorted({source for *_, source in gone}, key=str):\n"
                "        scopes = {scope for _, scope, its in gone if its == source}\n"
                "        tables = _recorded(tables, scopes, source)\n"
                "    return tables, None\n",
                "",
            ),
        ),
        _COMPACT,
        ("cut_off",),
        start=_DROPPED_AND_WARMED_UP,
    ),
    Mutation(
        "a read waits until the journal is swept",
        (
            (
                _CACHE,
                "if not self.trust.is_trusted and not await self.trust.revalidate():",
                "if False:",
            ),
        ),
        _NEW,
        ("cut_off",),
    ),
    Mutation(
        "who meets a failure trusts Redis no more",
        (
            (
                _CONTACT,
                "        self.epochs.distrust()\n        self.trust.suspect()\n",
                "        self.epochs.distrust()\n",
            ),
        ),
        _PLAIN,
        ("cut_off", "unheard"),
        start=(("cut_off", "w"), ("step", "s", "look"), ("step", "w", "begin"), ("step", "w", "put_writes")),
    ),
    Mutation(
        # Either is enough: a sweep that begins later sees the row, and a doubt outlives a sweep.
        "the sweep begins when the breaker has closed, or else who has made a row trusts Redis no more",
        (
            (
                _SWEEPING,
                "            if shards[0].breaker.begin_probe():\n"
                "                await self._probe(shards[0])\n",
                "            if not self._breaker.is_closed:\n"
                "                await self._try(self._sweep_all)\n"
                "                if self._breaker.begin_probe():\n"
                "                    await self._probe(shards[0])\n"
                "                return 0.0\n",
            ),
            (
                _WRITE,
                "        self._l1.suspect(self._scope)\n        self._operation.l1_write",
                "        self._operation.l1_write",
            ),
        ),
        "read, put_writes || its sweeper, twice || its reader",
        ("open",),
        start=(
            ("open", "w"),
            *steps("w", "read"),
            *steps("s", "look"),
            *steps("w", "select"),
            *steps("s", "count", "look"),
        ),
    ),
    Mutation(
        "a doubt that arises during a sweep outlives it",
        ((_TRUST, "self._trusted_at = suspicions\n", "self._trusted_at = self.suspicions\n"),),
        _OWN_SWEEPER,
        ("cut_off",),
        start=(*_DROPPED_AND_WARMED_UP, ("cut_off", "w")),
    ),
    Mutation(
        "who has made a row trusts Redis no more",
        (
            (
                _WRITE,
                "        self._l1.suspect(self._scope)\n        self._operation.l1_write",
                "        self._operation.l1_write",
            ),
        ),
        _OWN,
        ("evict", "cut_off"),
        start=(
            *_EVICTED,
            *_WARMED_UP_BEFORE_THE_WRITE,
            ("cut_off", "w"),
            ("step", "w", "confirm"),
            ("heal", "w"),
        ),
    ),
    Mutation(
        "what is in quarantine is not read",
        (
            (_CACHE, "            if scope in self.quarantine:\n", "            if False:\n"),
            (_STEPS, "if scope in self._quarantine and not is_sweep:", "if False:"),
            (
                _CACHE,
                "if suspicions != self.trust.suspicions or scope in self.quarantine:",
                "if suspicions != self.trust.suspicions:",
            ),
        ),
        _OWN,
        ("forbid",),
        start=(("step", "v", "read"), ("step", "v", "read"), ("forbid", "w")),
    ),
    Mutation(
        "a scope leaves quarantine when its DROP was confirmed, and not before",
        (
            (
                _SWEEPING,
                "            done = set(chunk) - await self._cache.forget(chunk)\n",
                "            await self._cache.forget(chunk)\n            done = set(chunk)\n",
            ),
        ),
        "read, put_writes || its sweeper, twice || its reader",
        ("forbid",),
    ),
    Mutation(
        "a scope stays in quarantine for a write that was made since its DROP was sent",
        ((_QUARANTINE, "if case is not None and case.suspected_at > dropped:", "if False:"),),
        _QUARANTINED,
        ("forbid",),
        start=_REFUSED_AND_DROPPED_LATER,
    ),
    Mutation(
        "who has made a row of a scope in quarantine keeps it there",
        (
            (
                _WRITE,
                "        self._l1.suspect(self._scope)\n        self._operation.l1_write",
                "        self._operation.l1_write",
            ),
        ),
        _QUARANTINED,
        ("forbid",),
        start=_REFUSED_AND_DROPPED_LATER,
    ),
)
