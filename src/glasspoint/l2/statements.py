"""The statements of the hot path and of whole threads, by name. Their texts are in `sql/*.sql`.

The comments there say what a statement does, takes and returns: `read.sql`, `put.sql`, `writes.sql`,
`threads.sql`.
"""

from __future__ import annotations

from typing import Final, LiteralString

from glasspoint.l2.sql import query

__all__ = [
    "DELETE_THREAD",
    "FEW",
    "IMPORT_CHECKPOINT",
    "IMPORT_WRITES",
    "JOURNALLED",
    "LIST_MATCHING_THREADS",
    "LIST_THREADS",
    "LOCK_TO_IMPORT",
    "NEWEST_AND_WHETHER",
    "NEWEST_OF",
    "NOTE_SET_ASIDE",
    "OWN",
    "PUT",
    "PUT_FENCED",
    "PUT_FENCED_JUDGED",
    "PUT_FEW",
    "PUT_FEW_FENCED",
    "PUT_FEW_FENCED_JUDGED",
    "PUT_FEW_JUDGED",
    "PUT_FEW_WRITES",
    "PUT_FEW_WRITES_FENCED",
    "PUT_JUDGED",
    "PUT_TOGETHER",
    "PUT_TOGETHER_FENCED",
    "PUT_TOGETHER_FENCED_JUDGED",
    "PUT_TOGETHER_JUDGED",
    "PUT_WRITES",
    "PUT_WRITES_FENCED",
    "PUT_WRITES_TOGETHER",
    "PUT_WRITES_TOGETHER_FENCED",
    "SELECT_BY_ID",
    "SELECT_NEWEST",
    "SELECT_NEWEST_FENCED",
    "SELECT_NEWEST_TOGETHER",
    "SELECT_NEWEST_TOGETHER_FENCED",
    "SET_ASIDE_SINCE",
    "SET_FENCE",
    "TAKES_WRITES",
    "UPSERT_FEW_WRITES",
    "UPSERT_FEW_WRITES_FENCED",
    "UPSERT_WRITES",
    "UPSERT_WRITES_FENCED",
    "UPSERT_WRITES_TOGETHER",
    "UPSERT_WRITES_TOGETHER_FENCED",
]

OWN: Final = query("own")
"""The beginning of every statement that changes checkpoints or pending writes."""

FEW: Final = 4
"""How many values the statements `…_FEW…` take at most: their texts have a place for each."""

JOURNALLED: Final[dict[str, LiteralString]] = {}
"""A statement that stores what callers write -> the same statement, which also records scopes (journal)."""


# The two beginnings of a statement: without and with the recording of scopes. See journal.sql.
_OWN = ("own", "own_journalled")
_WITH = ("with", "with_journalled")


def _storing(name: str, beginnings: tuple[str, str] = _WITH) -> LiteralString:
    """Return a statement, and keep the one that also records scopes in `JOURNALLED`.

    Args:
        name: The block after the beginning.
        beginnings: The two beginnings: names of blocks.
    """
    plain, journalled = beginnings
    statement = query(plain, name)
    JOURNALLED[statement] = query(journalled, name)
    return statement


SELECT_NEWEST: Final = query("select_newest")
SELECT_NEWEST_FENCED: Final = query("select_newest_fenced")
SELECT_NEWEST_TOGETHER: Final = query("select_newest_together")
SELECT_NEWEST_TOGETHER_FENCED: Final = query("select_newest_together_fenced")
SELECT_BY_ID: Final = query("select_by_id")
LIST_THREADS: Final = query("list_threads")
LIST_MATCHING_THREADS: Final = query("list_matching_threads")

PUT: Final = _storing("put")
PUT_FENCED: Final = _storing("put_fenced")
PUT_JUDGED: Final = _storing("put_judged")
PUT_FENCED_JUDGED: Final = _storing("put_fenced_judged")
PUT_FEW: Final = _storing("put_few")
PUT_FEW_FENCED: Final = _storing("put_few_fenced")
PUT_FEW_JUDGED: Final = _storing("put_few_judged")
PUT_FEW_FENCED_JUDGED: Final = _storing("put_few_fenced_judged")
PUT_TOGETHER: Final = _storing("put_together")
PUT_TOGETHER_FENCED: Final = _storing("put_together_fenced")
PUT_TOGETHER_JUDGED: Final = _storing("put_together_judged")
PUT_TOGETHER_FENCED_JUDGED: Final = _storing("put_together_fenced_judged")

PUT_WRITES: Final = _storing("put_writes", _OWN)
PUT_FEW_WRITES: Final = _storing("put_few_writes", _OWN)
PUT_WRITES_TOGETHER: Final = _storing("put_writes_together", _OWN)
PUT_WRITES_FENCED: Final = _storing("put_writes_fenced")
PUT_FEW_WRITES_FENCED: Final = _storing("put_few_writes_fenced")
PUT_WRITES_TOGETHER_FENCED: Final = _storing("put_writes_together_fenced")
UPSERT_WRITES: Final = _storing("upsert_writes", _OWN)
UPSERT_FEW_WRITES: Final = _storing("upsert_few_writes", _OWN)
UPSERT_WRITES_TOGETHER: Final = _storing("upsert_writes_together", _OWN)
UPSERT_WRITES_FENCED: Final = _storing("upsert_writes_fenced")
UPSERT_FEW_WRITES_FENCED: Final = _storing("upsert_few_writes_fenced")
UPSERT_WRITES_TOGETHER_FENCED: Final = _storing("upsert_writes_together_fenced")

SET_FENCE: Final = query("set_fence")

IMPORT_CHECKPOINT: Final = query("import_checkpoint")
IMPORT_WRITES: Final = query("import_writes")
LOCK_TO_IMPORT: Final = query("lock_to_import")
NEWEST_AND_WHETHER: Final = query("newest_and_whether")
NEWEST_OF: Final = query("newest_of")
NOTE_SET_ASIDE: Final = query("note_set_aside")
SET_ASIDE_FROM: Final = query("set_aside_from")
SET_ASIDE_SINCE: Final = query("set_aside_since")
DELETE_THREAD: Final = query("delete_thread")

TAKES_WRITES: Final = query("takes_writes")
