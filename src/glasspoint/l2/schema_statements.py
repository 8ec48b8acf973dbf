"""The statements of `schema`, by name. Their texts are in `sql/setup.sql`."""

from __future__ import annotations

from typing import Final, LiteralString, NamedTuple

from glasspoint.l2.sql import query

__all__ = [
    "CLAIM_INDEX",
    "DROP_FUNCTION",
    "DROP_INDEX",
    "DROP_INDEX_CONCURRENTLY",
    "DROP_TABLE",
    "DROP_TRIGGER",
    "END_CLAIM",
    "ENTER",
    "EXTEND_CLAIM",
    "FUNCTIONS",
    "HAS_ROWS",
    "IDENTITY",
    "INDEX_STATUS",
    "LACKING_RIGHTS",
    "LAST_MIGRATION",
    "LOOK",
    "MAKE_FUNCTIONS",
    "MAY_NOTE",
    "OWN_TABLES",
    "PUT_STATEMENT_TIMEOUT_BACK",
    "RECORD_MIGRATION",
    "RENEW_SIGNING_KEY",
    "SERVER_PROCESS",
    "STANDING_TRIGGERS",
    "TABLES",
    "TABLES_VERSION",
    "TAKE_LOCK",
    "TRIGGERS",
    "UNKNOWN",
    "UPSTREAM_TABLES",
    "VERSIONS",
    "WAIT_FOR_SETUP",
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

IDENTITY: Final = query("init_identity")
RENEW_SIGNING_KEY: Final = query("renew_signing_key")

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
    """A trigger on one of upstream's tables, the function that it calls, and the statement that makes it."""

    table: str
    name: str
    function: str
    create: LiteralString


# On the tables that a cached image is made of. A blob never changes, so its table has one for TRUNCATE only.
_INSERT, _WRITES, _CONTENT = FUNCTIONS
TRIGGERS: Final = (
    Trigger("checkpoints", "glasspoint_insert", _INSERT, query("create_insert_trigger_of_checkpoints")),
    Trigger("checkpoints", "glasspoint_update", _WRITES, query("create_update_trigger_of_checkpoints")),
    Trigger("checkpoints", "glasspoint_delete", _WRITES, query("create_delete_trigger_of_checkpoints")),
    Trigger(
        "checkpoint_writes", "glasspoint_insert", _INSERT, query("create_insert_trigger_of_checkpoint_writes")
    ),
    Trigger(
        "checkpoint_writes", "glasspoint_update", _WRITES, query("create_update_trigger_of_checkpoint_writes")
    ),
    Trigger(
        "checkpoint_writes", "glasspoint_delete", _WRITES, query("create_delete_trigger_of_checkpoint_writes")
    ),
    Trigger("checkpoints", "glasspoint_truncate", _CONTENT, query("create_truncate_trigger_of_checkpoints")),
    Trigger(
        "checkpoint_blobs",
        "glasspoint_truncate",
        _CONTENT,
        query("create_truncate_trigger_of_checkpoint_blobs"),
    ),
    Trigger(
        "checkpoint_writes",
        "glasspoint_truncate",
        _CONTENT,
        query("create_truncate_trigger_of_checkpoint_writes"),
    ),
)

TAKE_LOCK: Final = query("take_setup_lock")
WAIT_FOR_SETUP: Final = query("wait_for_setup")
ENTER: Final = query("enter_schema")
LOOK: Final = query("look_at_schema")
VERSIONS: Final = query("look_at_versions")
LAST_MIGRATION: Final = query("last_migration")
TABLES_VERSION: Final = query("tables_version")
UNKNOWN: Final = query("withheld")
RECORD_MIGRATION: Final = query("record_migration")
HAS_ROWS: Final = query("has_rows")
STANDING_TRIGGERS: Final = query("standing_triggers")
MAY_NOTE: Final = query("may_note")
LACKING_RIGHTS: Final = query("lacking_rights")
INDEX_STATUS: Final = query("index_status")
CLAIM_INDEX: Final = query("claim_index")
EXTEND_CLAIM: Final = query("extend_claim")
END_CLAIM: Final = query("end_claim")
DROP_INDEX: Final = query("drop_index")
DROP_INDEX_CONCURRENTLY: Final = query("drop_index_concurrently")
DROP_TRIGGER: Final = query("drop_trigger")
DROP_FUNCTION: Final = query("drop_function")
DROP_TABLE: Final = query("drop_table")
SERVER_PROCESS: Final = query("server_process")
PUT_STATEMENT_TIMEOUT_BACK: Final = query("put_statement_timeout_back")
