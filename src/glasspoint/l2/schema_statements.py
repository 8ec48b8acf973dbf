"""The tables, functions and triggers that `schema` makes. The texts are in `sql/setup.sql`."""

from __future__ import annotations

from typing import Final, LiteralString, NamedTuple

from glasspoint.l2.sql import query

__all__ = [
    "FUNCTIONS",
    "MAKE_FUNCTIONS",
    "OWN_TABLES",
    "TABLES",
    "TRIGGERS",
    "UPSTREAM_TABLES",
    "Trigger",
]

UPSTREAM_TABLES: Final = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")

OWN_TABLES: Final = (
    "glasspoint_l1_journal",
    "glasspoint_identity",
    "glasspoint_caches",
    "glasspoint_crash_marks",
    "glasspoint_fences",
    "glasspoint_set_aside",
    "glasspoint_retention",
)

TABLES: Final = (
    query("create_journal"),
    query("add_journal_source"),
    query("create_identity"),
    query("create_caches"),
    query("create_crash_marks"),
    query("create_fences"),
    query("create_set_aside"),
    query("create_retention"),
)
"""The statements that make Glasspoint's own tables. Each may run again."""


FUNCTIONS: Final = {
    "glasspoint_note_foreign_insert": f"\n{query('note_foreign_insert_body')}\n",
    "glasspoint_note_foreign_writes": f"\n{query('note_foreign_writes_body')}\n",
    "glasspoint_renew_content_id": f"\n{query('renew_content_id_body')}\n",
}
"""Name -> body. The body in the database is compared with this one."""

MAKE_FUNCTIONS: Final = (
    query("create_note_foreign_insert"),
    query("revoke_note_foreign_insert"),
    query("create_note_foreign_writes"),
    query("revoke_note_foreign_writes"),
    query("create_renew_content_id"),
    query("revoke_renew_content_id"),
)


class Trigger(NamedTuple):
    """A trigger on one of upstream's tables, the function that it calls, and the statement that makes it.

    The statement has a place for the name of the table.
    """

    table: str
    name: str
    function: str
    create: LiteralString


# On the tables that a cached image is made of. A blob never changes, so its table has one for TRUNCATE only.
_CHANGING = ("checkpoints", "checkpoint_writes")
_INSERT, _WRITES, _CONTENT = FUNCTIONS
TRIGGERS: Final = tuple(
    Trigger(table, name, function, create)
    for tables, name, function, create in (
        (_CHANGING, "glasspoint_insert", _INSERT, query("create_insert_trigger")),
        (_CHANGING, "glasspoint_update", _WRITES, query("create_update_trigger")),
        (_CHANGING, "glasspoint_delete", _WRITES, query("create_delete_trigger")),
        (UPSTREAM_TABLES, "glasspoint_truncate", _CONTENT, query("create_truncate_trigger")),
    )
    for table in tables
)
