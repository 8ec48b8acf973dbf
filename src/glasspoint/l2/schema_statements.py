"""The statements of `schema`: Glasspoint's own tables, functions and triggers, and the questions about them.

No name has a schema in front. `schema` runs these statements in transactions whose `search_path` is one
schema, so they work in any schema, whatever its name is.

They work from PostgreSQL 13 on: no `CREATE OR REPLACE TRIGGER`, no extension.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "CLAIM_INDEX",
    "CREATE_FUNCTION",
    "END_CLAIM",
    "EXTEND_CLAIM",
    "FUNCTIONS",
    "IDENTITY",
    "INDEX_STATUS",
    "LACKING_RIGHTS",
    "LOOK",
    "MAY_NOTE",
    "OWN_TABLES",
    "RENEW_SIGNING_KEY",
    "REVOKE_FUNCTION",
    "STANDING_TRIGGERS",
    "TABLES",
    "TAKE_LOCK",
    "TRIGGERS",
    "UPSTREAM_TABLES",
    "Trigger",
]

UPSTREAM_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")

# What a cached image is made of and what can change in place. A blob never changes.
_NOTED_TABLES = ("checkpoints", "checkpoint_writes")

OWN_TABLES = (
    "glasspoint_l1_journal",
    "glasspoint_identity",
    "glasspoint_caches",
    "glasspoint_crash_marks",
    "glasspoint_fences",
    "glasspoint_set_aside",
    "glasspoint_retention",
)

# `gen_random_uuid` has 122 random bits of the server's strong source.
_RANDOM_ID = "replace(gen_random_uuid()::text, '-', '')"
_RANDOM_KEY = f"sha256(convert_to({_RANDOM_ID} || {_RANDOM_ID} || {_RANDOM_ID}, 'UTF8'))"

TABLES = (
    """
CREATE TABLE IF NOT EXISTS glasspoint_l1_journal (
    cache text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text,
    PRIMARY KEY (cache, id)
)
""",
    "ALTER TABLE glasspoint_l1_journal ADD COLUMN IF NOT EXISTS source text",
    """
CREATE TABLE IF NOT EXISTS glasspoint_identity (
    "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    id text NOT NULL,
    content_id text NOT NULL,
    signing_key bytea NOT NULL,
    schema_version int NOT NULL,
    index_claimed_until timestamptz
)
""",
    """
CREATE TABLE IF NOT EXISTS glasspoint_caches (
    cache text PRIMARY KEY,
    reign text,
    generation text,
    facts jsonb,
    seen_at timestamptz,
    is_purged boolean NOT NULL DEFAULT false,
    purging_at timestamptz
)
""",
    "CREATE UNLOGGED TABLE IF NOT EXISTS glasspoint_crash_marks (generation text PRIMARY KEY)",
    """
CREATE UNLOGGED TABLE IF NOT EXISTS glasspoint_fences (
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    holder text NOT NULL,
    burst text NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, holder)
)
""",
    """
CREATE TABLE IF NOT EXISTS glasspoint_set_aside (
    thread_id text PRIMARY KEY,
    original_thread_id text NOT NULL,
    began_at timestamptz NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
""",
    """
CREATE TABLE IF NOT EXISTS glasspoint_retention (
    "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    holder text NOT NULL,
    until timestamptz NOT NULL,
    succeeded_at timestamptz
)
""",
)
"""Glasspoint's own tables. Each statement may run again.

- `glasspoint_l1_journal`: the scopes that Redis was not told of. `source` is the table that other software
  wrote to, NULL for our own writes.
- `glasspoint_identity`, one row. `id` is made once. `content_id` is renewed by each TRUNCATE and with each
  signing key. `signing_key` signs what stands in Redis. `index_claimed_until`: a process is about to build an
  index.
- `glasspoint_caches`: a row for each cache (its key prefix): see `identity`. `seen_at`: when a saver used the
  cache last. `is_purged`, `purging_at`: whether a process deletes what older generations have left.
- `glasspoint_set_aside`: a row for each thread that was made of what another thread was written in an outage,
  because it does not go on from the other's history.
- `glasspoint_retention`, one row at most: which process removes old checkpoints, until when others leave that
  to it, and when a run succeeded last: see `retention`.
- `glasspoint_fences`: a row for each scope that a saver writes to in a burst: see `fences`. Unlogged, too.
- `glasspoint_crash_marks`: unlogged, so PostgreSQL empties it in crash recovery and on promotion.
"""

IDENTITY = f"""
INSERT INTO glasspoint_identity (id, content_id, signing_key, schema_version)
VALUES ({_RANDOM_ID}, {_RANDOM_ID}, {_RANDOM_KEY}, %(version)s)
ON CONFLICT ("only") DO UPDATE SET schema_version = EXCLUDED.schema_version
"""

RENEW_SIGNING_KEY = f"UPDATE {{}} SET signing_key = {_RANDOM_KEY}, content_id = {_RANDOM_ID}"

# A cache that no saver has used for an hour is left out: it renews its generation when it comes back, under
# the same lock, taken exclusively. So it waits for this transaction, or this statement sees that it is
# back. A transaction with one snapshot for all its statements does not see that, so it counts a day instead
# of an hour. A namespace with a task id is in no cache (`Scope.is_cached`).
_NOTE = """
    PERFORM pg_advisory_xact_lock_shared(1735159667, 'glasspoint_caches'::regclass::oid::int);
    INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns, source)
    SELECT c.cache, s.thread_id, s.checkpoint_ns, TG_TABLE_NAME
    FROM glasspoint_caches AS c, ({scopes}) AS s (thread_id, checkpoint_ns)
    WHERE c.seen_at > now() - CASE current_setting('transaction_isolation')
        WHEN 'read committed' THEN interval '1 hour' ELSE interval '1 day' END
      AND strpos(s.checkpoint_ns, ':') = 0;
"""
_NOTE_ROW = _NOTE.format(scopes="SELECT NEW.thread_id, NEW.checkpoint_ns")
_NOTE_CHANGED = _NOTE.format(scopes="SELECT DISTINCT thread_id, checkpoint_ns FROM changed")
_NOTE_MOVED = _NOTE.format(
    scopes="SELECT thread_id, checkpoint_ns FROM changed UNION SELECT thread_id, checkpoint_ns FROM former"
)

# Our tables stand beside the table of the trigger, wherever that is by now: a schema may be renamed, and
# tables may be moved.
_ENTER_SCHEMA = "PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);"

# Somebody dropped Glasspoint's tables by hand: there is no cache to tell, and others must be able to write.
_NO_CACHES = f"""
    {_ENTER_SCHEMA}
    IF to_regclass('glasspoint_caches') IS NULL THEN
        RETURN NULL;
    END IF;
"""

# Runs once a row. What this transaction has noted already is remembered in a setting that ends with it.
# JSON, so that no entry is a part of another. A forgotten entry is only noted again.
_NOTE_FOREIGN_INSERT = f"""
DECLARE
    touched text := json_build_array(TG_RELID::text, NEW.thread_id, NEW.checkpoint_ns)::text || E'\\n';
    noted text := coalesce(current_setting('glasspoint.noted', true), '');
BEGIN
    IF strpos(NEW.checkpoint_ns, ':') > 0 OR strpos(noted, touched) > 0 THEN
        RETURN NULL;
    END IF;
    {_NO_CACHES}
    {_NOTE_ROW}
    PERFORM set_config('glasspoint.noted', touched || left(noted, 4000), true);
    RETURN NULL;
END
"""

# Runs once a statement. An UPDATE that moves rows touches the scopes in which they were, too.
_NOTE_FOREIGN_WRITES = f"""
BEGIN
    IF NOT EXISTS (SELECT FROM changed) THEN
        RETURN NULL;
    END IF;
    {_NO_CACHES}
    IF TG_OP = 'UPDATE' THEN
        {_NOTE_MOVED}
    ELSE
        {_NOTE_CHANGED}
    END IF;
    RETURN NULL;
END
"""

_RENEW_CONTENT_ID = f"""
BEGIN
    {_ENTER_SCHEMA}
    IF to_regclass('glasspoint_identity') IS NOT NULL THEN
        UPDATE glasspoint_identity SET content_id = {_RANDOM_ID};
    END IF;
    RETURN NULL;
END
"""

FUNCTIONS = {
    "glasspoint_note_foreign_insert": _NOTE_FOREIGN_INSERT,
    "glasspoint_note_foreign_writes": _NOTE_FOREIGN_WRITES,
    "glasspoint_renew_content_id": _RENEW_CONTENT_ID,
}
"""Name -> body. The body in the database is compared with this one."""

CREATE_FUNCTION = """
CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {body}
"""
"""The function has its owner's rights, so that a writer needs none on our tables. For the same reason its
`search_path` is not the writer's, and what the body sets ends with the function. And nobody else may use it
in a trigger of another table (`REVOKE_FUNCTION`)."""

REVOKE_FUNCTION = "REVOKE ALL ON FUNCTION {name}() FROM PUBLIC"


class Trigger(NamedTuple):
    """A trigger on one of upstream's tables, and the function that it calls."""

    table: str
    name: str
    function: str
    create: str


def _trigger(table: str, name: str, function: str, event: str, more: str) -> Trigger:
    create = f"CREATE TRIGGER {name} AFTER {event} ON {table} {more} EXECUTE FUNCTION {function}()"
    return Trigger(table, name, function, create)


# Our own statements begin with a comment (`statements.OWN`). It is a comment because a setting would reach
# other clients of a pooler. `current_query` is NULL in a background worker. What another trigger writes
# inside a statement of ours is not ours: the depth is greater than 0 then, and 0 for the statement itself.
_BY_OTHERS = "WHEN (pg_trigger_depth() > 0 OR coalesce(current_query(), '') NOT LIKE '/* glasspoint%')"

# A transition table is filled whatever WHEN answers: it would copy every value that we insert. So an INSERT
# is noted row by row. A DELETE or an UPDATE by others may touch millions of rows in few scopes, and ours
# are rare: those are noted once a statement.
_INSERTED = f"FOR EACH ROW {_BY_OTHERS}"
_UPDATED = f"REFERENCING OLD TABLE AS former NEW TABLE AS changed FOR EACH STATEMENT {_BY_OTHERS}"
_DELETED = f"REFERENCING OLD TABLE AS changed FOR EACH STATEMENT {_BY_OTHERS}"

TRIGGERS = (
    *(
        _trigger(table, f"glasspoint_{event.lower()}", function, event, more)
        for table in _NOTED_TABLES
        for event, function, more in (
            ("INSERT", "glasspoint_note_foreign_insert", _INSERTED),
            ("UPDATE", "glasspoint_note_foreign_writes", _UPDATED),
            ("DELETE", "glasspoint_note_foreign_writes", _DELETED),
        )
    ),
    *(
        _trigger(
            table, "glasspoint_truncate", "glasspoint_renew_content_id", "TRUNCATE", "FOR EACH STATEMENT"
        )
        for table in UPSTREAM_TABLES
    ),
)

TAKE_LOCK = """
SELECT set_config('lock_timeout', %(lock_timeout_ms)s, true), set_config('statement_timeout', '0', true),
       pg_try_advisory_xact_lock(%(key)s)
"""

# Which schema: the first one of the search path, where upstream's setup makes the tables, if they are there
# or may be made there; otherwise the one in which the search path finds them.
LOOK = """
WITH first AS (
    SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = current_schema() AND (
        has_schema_privilege(n.oid, 'CREATE') OR EXISTS (
            SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relname = 'checkpoint_migrations'
        )
    )
), here AS (
    SELECT n.oid, n.nspname FROM pg_namespace AS n WHERE n.oid = coalesce(
        (SELECT oid FROM first),
        (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('checkpoint_migrations')),
        (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
    )
)
SELECT
    h.nspname::text AS schema,
    ARRAY(
        SELECT c.relname::text FROM pg_class AS c
        WHERE c.relnamespace = h.oid AND c.relname = ANY(%(tables)s::text[])
    ) AS tables,
    ARRAY(
        SELECT i.relname::text FROM pg_class AS i JOIN pg_index AS x ON x.indexrelid = i.oid
        WHERE i.relnamespace = h.oid AND i.relname = ANY(%(indexes)s::text[])
          AND NOT x.indisvalid AND pg_has_role(i.relowner, 'USAGE')
    ) AS invalid_indexes,
    (
        SELECT count(*) FROM unnest(
            %(trigger_tables)s::text[], %(trigger_names)s::text[], %(functions)s::text[], %(bodies)s::text[]
        ) AS w (table_name, trigger_name, function_name, body)
        JOIN pg_class AS c ON c.relnamespace = h.oid AND c.relname = w.table_name
        JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = w.trigger_name AND t.tgenabled IN ('O', 'A')
        JOIN pg_proc AS p ON p.oid = t.tgfoid AND p.pronamespace = h.oid
            AND p.proname = w.function_name AND p.prosrc = w.body
    ) AS triggers,
    has_schema_privilege(h.oid, 'CREATE') AND (
        SELECT coalesce(bool_and(has_table_privilege(c.oid, 'TRIGGER')), true) FROM pg_class AS c
        WHERE c.relnamespace = h.oid AND c.relname = ANY(%(trigger_tables)s::text[])
    ) AS may_make_triggers,
    (
        SELECT n.nspname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass('checkpoint_migrations') AND n.oid <> h.oid
    ) AS other_schema,
    (
        SELECT coalesce(bool_and(has_table_privilege(c.oid, 'SELECT')), true) FROM pg_class AS c
        WHERE c.relnamespace = h.oid AND c.relname = 'glasspoint_identity'
    ) AS may_read_version
FROM here AS h
"""

STANDING_TRIGGERS = """
SELECT c.relname::text, t.tgname::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
  AND c.relname = ANY(%(tables)s::text[]) AND t.tgname = ANY(%(names)s::text[])
"""

# What the functions need of their owner. Without it, every write of others would fail.
_NEEDED_TO_NOTE = """(VALUES
    ('glasspoint_l1_journal', 'INSERT'),
    ('glasspoint_caches', 'SELECT'),
    ('glasspoint_identity', 'UPDATE')
) AS needed (name, privilege)"""
MAY_NOTE = f"SELECT bool_and(has_table_privilege(name, privilege)) FROM {_NEEDED_TO_NOTE}"

# Why this role cannot make the triggers: rights that can be granted, as GRANT names them; functions that
# belong to another role; tables of another role, from which an older trigger would have to be dropped.
LACKING_RIGHTS = f"""
SELECT
    ARRAY(
        SELECT 'CREATE ON SCHEMA ' || quote_ident(%(schema)s)
        WHERE NOT has_schema_privilege(%(schema)s, 'CREATE')
    ) || ARRAY(
        SELECT 'TRIGGER ON ' || c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = ANY(%(tables)s::text[])
          AND NOT has_table_privilege(c.oid, 'TRIGGER')
        ORDER BY c.relname
    ) || ARRAY(
        SELECT needed.privilege || ' ON ' || needed.name
        FROM {_NEEDED_TO_NOTE}
        JOIN pg_class AS c ON c.relname = needed.name
        JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
        WHERE NOT has_table_privilege(c.oid, needed.privilege)
        ORDER BY needed.name
    ) AS grants,
    ARRAY(
        SELECT p.proname || '()' FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = %(schema)s AND p.proname = ANY(%(functions)s::text[])
          AND NOT pg_has_role(p.proowner, 'USAGE')
        ORDER BY p.proname
    ) AS functions_of_others,
    ARRAY(
        SELECT DISTINCT c.relname::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = ANY(%(tables)s::text[])
          AND t.tgname = ANY(%(triggers)s::text[]) AND NOT pg_has_role(c.relowner, 'USAGE')
    ) AS tables_of_others
"""

# The workers hold, or wait for, a lock on the table that a build of an index needs, too. A vacuum is none
# of them: it gives way.
INDEX_STATUS = """
SELECT
    (
        SELECT x.indisvalid FROM pg_class AS i JOIN pg_index AS x ON x.indexrelid = i.oid
        WHERE i.relnamespace = t.relnamespace AND i.relname = %(index)s
    ) AS is_valid,
    ARRAY(
        SELECT DISTINCT l.pid FROM pg_locks AS l
        WHERE l.locktype = 'relation' AND l.relation = t.oid
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                         'AccessExclusiveLock')
          AND l.pid <> pg_backend_pid()
          AND l.pid NOT IN (
              SELECT pid FROM pg_stat_progress_vacuum UNION ALL SELECT pid FROM pg_stat_progress_analyze
          )
    ) AS workers
FROM pg_class AS t JOIN pg_namespace AS n ON n.oid = t.relnamespace
WHERE n.nspname = coalesce(%(schema)s, current_schema()) AND t.relname = %(table)s
"""

CLAIM_INDEX = """
UPDATE {} SET index_claimed_until = clock_timestamp() + interval '10 s'
WHERE index_claimed_until IS NULL OR index_claimed_until < clock_timestamp()
RETURNING true
"""
EXTEND_CLAIM = "UPDATE {} SET index_claimed_until = clock_timestamp() + interval '10 s'"
END_CLAIM = "UPDATE {} SET index_claimed_until = NULL"
"""For the moment between looking for workers and being one."""
