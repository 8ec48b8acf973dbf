"""The rules of identity and of foreign writes, each to be broken once, as in `mutations`."""

from __future__ import annotations

from model.mutations import Mutation, steps
from model.terms import Move

_OPENS = "put, its sweeper || reader that opens"
_SLOW = "put, its slow sweeper || reader that opens"
_OWN = "put, its sweeper and reader || reader that opens"
_OTHER = "put, its sweeper || reader that opens || sweeper"
_PUT = "put || reader, its sweeper"
_SWEEPERS = "two puts, their sweeper || reader, its sweeper"
_DELETE = "delete_thread, its sweeper || reader that opens"
_FOREIGN = "foreign put || reader, its sweeper || new reader"
_MOVED_WRITE = "put_writes, its sweeper || reader on another Redis"
_MOVED_READ = "reader, its sweeper || put on another Redis"

_KEEPER = "glasspoint.coherence.identity"
_CACHE = "glasspoint.l1.cache"
_EPOCH = "glasspoint.l1.epoch"
_STEPS = "glasspoint.l1.steps"
_L2 = "glasspoint.l2.identity"
_MODEL = "model.store"


_A_PUT: tuple[Move, ...] = (
    *steps("p", "begin", "put snapshot", "put", "confirm"),
    ("end", "p", ""),
    *steps("p.end", "commit", "unfence"),
)
_ADOPTED_AND_WARMED_UP = steps("r", "look", "look", "read", "select", "warm_up")
# The statement has told the identity, and has not taken effect; until it has, others may see what was before.
_AMID_A_PUT = steps("w", "begin", "put snapshot")
_REST_OF_THE_PUT: tuple[Move, ...] = (
    *steps("w", "put", "confirm"),
    ("end", "w", ""),
    *steps("w.end", "commit", "unfence"),
)
_ATTACHED = steps("r", "look", "renew", "look", "look")

RULES_OF_IDENTITY = (
    Mutation(
        "the identity stands in the keys",
        (
            (
                _EPOCH,
                'return f"{root}{identity.reign}:{identity.name}:"',
                'return f"{root}{identity.reign}:"',
            ),
            (_EPOCH, "Signer(identity.secret, identity.generation)", "Signer(identity.secret)"),
        ),
        _PUT,
        ("truncate",),
        start=(*_A_PUT, ("truncate",)),
    ),
    Mutation(
        "a look compares the facts",
        ((_L2, "if name in then and then[name] != now", "if False"),),
        _PUT,
        ("truncate",),
        start=(*_A_PUT, ("truncate",)),
    ),
    Mutation(
        "a look asks for the crash mark",
        ((_KEEPER, "        if not row.is_marked:\n", "        if False:\n"),),
        _PUT,
        ("lose",),
        start=(*_A_PUT, ("lose",)),
    ),
    Mutation(
        "the keys are left as soon as a look shows another identity",
        (
            (
                _KEEPER,
                "        if row is None or reason or is_moved or self._identity != "
                "self._identity_of(look, row):\n            self._leave_keys()\n",
                "",
            ),
        ),
        _PUT,
        ("truncate",),
        start=(*_A_PUT, ("truncate",)),
    ),
    Mutation(
        "a new connection is looked at",
        ((_KEEPER, "        if identity is None:\n            return\n", "        return\n"),),
        _PUT,
        ("set_back",),
        start=(*steps("p", "begin"), *steps("r", "read"), *_A_PUT[1:], ("set_back",)),
    ),
    Mutation(
        "of several that renew at once, one does",
        ((_MODEL, "tables.cache is not None and tables.cache.generation != seen", "False"),),
        _SWEEPERS,
        ("truncate",),
        start=(
            ("truncate",),
            *steps("s", "look"),
            *steps("t", "look"),
            *steps("s", "renew", "look", "look"),
            *steps("p", "begin", "put snapshot", "put", "drop"),  # under keys of the past: a row is made
            *steps("p", "begin", "put snapshot"),
            *steps("t", "renew", "look", "look"),
        ),
    ),
    Mutation(
        "what was written is recorded before another identity is adopted",
        (
            (
                _KEEPER,
                "        has_recorded = await self._record_written(row)\n",
                "        has_recorded = False\n",
            ),
        ),
        _OPENS,
        ("renew",),
        start=(*_AMID_A_PUT, ("renew",), *_ADOPTED_AND_WARMED_UP, *_REST_OF_THE_PUT),
    ),
    Mutation(
        "an adoption is followed by a sweep",
        (
            (
                _KEEPER,
                '            self._adopt(look, row)\n            return "changed"\n',
                '            self._adopt(look, row)\n            return "fits"\n',
            ),
            (
                "glasspoint.coherence.sweeper",
                "self._trust.trust(suspicions)",
                "self._trust.trust(self._trust.suspicions)",
            ),
        ),
        _OWN,
        ("renew",),
        start=(
            *_AMID_A_PUT,
            ("renew",),
            *steps("r", "look", "read", "select", "warm_up"),
            *_REST_OF_THE_PUT,
        ),
    ),
    Mutation(
        "a confirmation forgets only what was written before the look",
        (
            (
                _KEEPER,
                "        self._written.clear()\n",
                "        self._written.clear()\n        self._cache.written.clear()\n",
            ),
        ),
        _SLOW,
        ("renew",),
        start=(*_AMID_A_PUT, *steps("s", "look"), ("renew",), *_ADOPTED_AND_WARMED_UP),
    ),
    Mutation(
        "a step that ends under keys of the past is in vain",
        (
            (
                _STEPS,
                "if current is not epoch and (current is None or current.prefix != epoch.prefix):",
                "if False:",
            ),
        ),
        _OPENS,
        ("renew",),
        start=(*_AMID_A_PUT, ("renew",), *_ADOPTED_AND_WARMED_UP, *steps("w", "put")),
    ),
    Mutation(
        "an intent under keys of the past is not heeded",
        ((_CACHE, "return bool(intent.name) and intent.keys == self._keys", "return bool(intent.name)"),),
        "put || reader that opens",
        ("set_back", "cancel"),
        start=(
            *steps("w", "begin"),
            ("set_back",),
            *steps("w", "greet"),
            *steps("r", "select", "look", "renew", "look", "look", "read", "select", "warm_up"),
        ),
    ),
    Mutation(
        "no step asks under the keys of an identity of the past",
        (
            (
                _CACHE,
                "        self._epochs.identify(identity)\n",
                "        self._first = getattr(self, '_first', identity)\n"
                "        self._epochs.identify(identity and self._first)\n",
            ),
        ),
        _PUT,
        ("truncate",),
        start=(*_A_PUT, ("truncate",)),
    ),
    Mutation(
        "what was dropped is recorded before another identity is adopted, too",
        ((_STEPS, '("confirm", "commit", "drop")', '("confirm", "commit")'),),
        _DELETE,
        ("renew",),
        start=(("renew",), *_ADOPTED_AND_WARMED_UP, *steps("d", "delete", "begin", "commit", "drop")),
    ),
    Mutation(
        # Each is enough: rows of later are not deleted, or the DROP for them is repeated under the keys that
        # are adopted next.
        "a look is one statement, or rows are deleted under their generation, or a DROP is recorded",
        (
            (_MODEL, "if tables.cache is None or tables.cache.generation != generation:", "if False:"),
            (_STEPS, '("confirm", "commit", "drop")', '("confirm", "commit")'),
            (
                _MODEL,
                '        return self._seen(await self._ask(("look", limit, after)))\n',
                '        facts, row, is_marked, _ = await self._ask(("greet", 0, 0))\n'
                '        pending = (await self._ask(("look", limit, after)))[-1]\n'
                "        return self._seen((facts, row, is_marked, pending))\n",
            ),
        ),
        _OTHER,
        ("renew",),
        start=(
            *_AMID_A_PUT,
            *steps("t", "greet"),
            ("renew",),
            *steps("r", "greet", "look", "greet", "look", "read", "select", "warm_up"),
            *_REST_OF_THE_PUT,
        ),
    ),
    Mutation(
        "who is detached leaves its Redis alone",
        (
            (
                _KEEPER,
                "if row is None or reason or is_moved or self._identity != self._identity_of(look, row):",
                "if row is None or reason:",
            ),
            (_KEEPER, "        self._leave(_DETACHED)\n", ""),
        ),
        _MOVED_READ,
        start=(*steps("p", "look", "renew", "look", "look"), *_A_PUT, *steps("s", "look")),
    ),
    Mutation(
        "who is detached writes into the journal",
        (
            (
                "glasspoint.savers.write_through",
                "        if self._l1.is_absent:\n",
                "        if not self._l1.is_identified:\n",
            ),
            (
                "glasspoint.savers.write_through",
                '"skipped" if result == "error" and self._l1.is_absent else result',
                '"skipped" if result == "error" and not self._l1.is_identified else result',
            ),
        ),
        _MOVED_WRITE,
        start=(*_ATTACHED, *steps("s", "look"), *steps("r", "read", "select", "warm_up")),
    ),
    Mutation(
        "a foreign write makes a row",
        (
            (
                _MODEL,
                "    return _recorded(tables, scopes if tables.cache is not None else [], source)\n",
                "    return tables\n",
            ),
        ),
        _FOREIGN,
        start=steps("f", "foreign put"),
    ),
    Mutation(
        "rows are deleted under the generation that they were seen under",
        ((_MODEL, "if tables.cache is None or tables.cache.generation != generation:", "if False:"),),
        "foreign put elsewhere, foreign put || sweeper || reader that opens",
        ("set_back",),
        start=(
            *steps("f", "foreign put"),
            *steps("s", "look"),
            ("set_back",),
            *steps("s", "drop {other}:", "greet"),
            *steps("r", "select", "look", "renew", "look", "look"),
        ),
    ),
    Mutation(
        "the row of a foreign write is deleted after DROP",
        (
            (
                "glasspoint.coherence.sweeper",
                "        refused |= await self._cache.forget(scopes)\n"
                "        done = scopes - refused\n"
                "        await self._forgotten(done, batch, generation)\n",
                "        await self._forgotten(scopes, batch, generation)\n"
                "        refused |= await self._cache.forget(scopes)\n"
                "        done = scopes - refused\n",
            ),
        ),
        _FOREIGN,
        start=steps("f", "foreign put"),
    ),
)
