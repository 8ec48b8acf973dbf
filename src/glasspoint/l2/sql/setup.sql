-- Glasspoint's own tables, functions and triggers, and queries about them: see `schema.py`.
--
-- No name has a schema in front. These statements run in transactions whose search_path is one schema, so
-- they work in any schema, whatever its name is. Statements that run outside of such a transaction take their
-- names from {…}.
--
-- They work from PostgreSQL 13 on: no CREATE OR REPLACE TRIGGER, no extension. Each create_ statement for a
-- table may run again.
--
-- The functions have their owner's rights, so a writer needs no rights on our tables. For the same reason
-- their search_path is not the writer's, and what a body sets ends with the function. Our tables are in the
-- schema of the trigger's table, wherever that is by now: a schema may be renamed, and tables may be moved.
-- If our tables were dropped by hand, there is no cache to tell, and others must still be able to write.
--
-- A body in a database is compared with the body here, byte by byte, so the spaces at the ends of lines
-- count. A changed body needs a new `schema.VERSION`.
--
-- A body notes scopes for every cache that a saver has used within the last hour. A cache that comes back
-- later renews its generation, under the same lock, but exclusive (wait_for_foreign_writes in identity.sql).
-- So either the cache waits for this transaction, or this statement sees that the cache is back. A
-- transaction with one snapshot for all its statements cannot see that, so it notes scopes for a day instead
-- of an hour. A namespace with a task id is in no cache (`Scope.is_cached`).
--
-- An INSERT is noted once for each row: PostgreSQL fills a transition table whatever WHEN says, so it would
-- copy every value that we insert. A DELETE or an UPDATE is noted once for each statement: one by others may
-- touch millions of rows in few scopes, and ours are rare.

-- name: create_journal
-- The scopes that Redis was not told of. `source` is the table that other software has written to; NULL for
-- our own writes.
CREATE TABLE IF NOT EXISTS glasspoint_l1_journal (
    cache text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text,
    PRIMARY KEY (cache, id)
)

-- name: add_journal_source
-- Adds the column that a journal of the first versions lacks.
ALTER TABLE glasspoint_l1_journal ADD COLUMN IF NOT EXISTS source text

-- name: create_identity
-- One row. `id` is made once. `content_id` is renewed by each TRUNCATE and with each signing key.
-- `signing_key` signs entries in Redis. `index_claimed_until`: until then, a process has claimed to build an
-- index.
CREATE TABLE IF NOT EXISTS glasspoint_identity (
    "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    id text NOT NULL,
    content_id text NOT NULL,
    signing_key bytea NOT NULL,
    schema_version int NOT NULL,
    index_claimed_until timestamptz
)

-- name: create_caches
-- One row per cache (its key prefix): see `identity.py`. `seen_at`: when a saver last used the cache.
-- `is_purged`: whether nothing is left of older generations. `purging_at`: when a process last claimed to
-- delete that.
CREATE TABLE IF NOT EXISTS glasspoint_caches (
    cache text PRIMARY KEY,
    reign text,
    generation text,
    facts jsonb,
    seen_at timestamptz,
    is_purged boolean NOT NULL DEFAULT false,
    purging_at timestamptz
)

-- name: create_crash_marks
-- Unlogged, so PostgreSQL empties it in crash recovery and on promotion.
CREATE UNLOGGED TABLE IF NOT EXISTS glasspoint_crash_marks (generation text PRIMARY KEY)

-- name: create_fences
-- One row per scope that a saver writes to in a burst: see fences.sql. Unlogged, like glasspoint_crash_marks.
CREATE UNLOGGED TABLE IF NOT EXISTS glasspoint_fences (
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL,
    holder text NOT NULL,
    burst text NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, holder)
)

-- name: create_set_aside
-- One row per thread that was made from what was written to another thread in an outage. It was set aside,
-- because it does not continue the history of the other thread.
CREATE TABLE IF NOT EXISTS glasspoint_set_aside (
    thread_id text PRIMARY KEY,
    original_thread_id text NOT NULL,
    began_at timestamptz NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT clock_timestamp()
)

-- name: create_retention
-- One row at most: the process that removes old checkpoints, until when other processes leave that to it, and
-- when a run succeeded last. See retention.sql.
CREATE TABLE IF NOT EXISTS glasspoint_retention (
    "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    holder text NOT NULL,
    until timestamptz NOT NULL,
    succeeded_at timestamptz
)

-- name: init_identity
-- Makes the row of glasspoint_identity, or writes the version into it. `gen_random_uuid` has 122 random bits
-- from the server's strong source.
--
-- {version}  the version of Glasspoint's tables
INSERT INTO glasspoint_identity (schema_version, id, content_id, signing_key)
VALUES (
    {version},
    replace(gen_random_uuid()::text, '-', ''),
    replace(gen_random_uuid()::text, '-', ''),
    -- include: random_key
)
ON CONFLICT ("only") DO UPDATE SET schema_version = EXCLUDED.schema_version

-- name: renew_signing_key
-- Makes a new signing key.
--
-- {identity}  the table glasspoint_identity
UPDATE {identity}
SET content_id = replace(gen_random_uuid()::text, '-', ''), signing_key =
    -- include: random_key

-- name: random_key
-- 32 random bytes.
sha256(convert_to(
    replace(gen_random_uuid()::text, '-', '')
    || replace(gen_random_uuid()::text, '-', '')
    || replace(gen_random_uuid()::text, '-', ''),
    'UTF8'
))

-- name: note_foreign_insert_body
-- The body of a trigger that runs once per row. A setting, which ends with the transaction, remembers what
-- the transaction has noted already. Its entries are JSON, so that no entry is a part of another. If an entry
-- is forgotten, it is only noted again.
DECLARE
    touched text := json_build_array(TG_RELID::text, NEW.thread_id, NEW.checkpoint_ns)::text || E'\n';
    noted text := coalesce(current_setting('glasspoint.noted', true), '');
BEGIN
    IF strpos(NEW.checkpoint_ns, ':') > 0 OR strpos(noted, touched) > 0 THEN
        RETURN NULL;
    END IF;
    
    PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
    IF to_regclass('glasspoint_caches') IS NULL THEN
        RETURN NULL;
    END IF;

    
    PERFORM pg_advisory_xact_lock_shared(1735159667, 'glasspoint_caches'::regclass::oid::int);
    INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns, source)
    SELECT c.cache, s.thread_id, s.checkpoint_ns, TG_TABLE_NAME
    FROM glasspoint_caches AS c, (SELECT NEW.thread_id, NEW.checkpoint_ns) AS s (thread_id, checkpoint_ns)
    WHERE c.seen_at > now() - CASE current_setting('transaction_isolation')
        WHEN 'read committed' THEN interval '1 hour' ELSE interval '1 day' END
      AND strpos(s.checkpoint_ns, ':') = 0;

    PERFORM set_config('glasspoint.noted', touched || left(noted, 4000), true);
    RETURN NULL;
END

-- name: note_foreign_writes_body
-- The body of a trigger that runs once per statement. An UPDATE that moves rows to other scopes also touches
-- the scopes in which they were before.
BEGIN
    IF NOT EXISTS (SELECT FROM changed) THEN
        RETURN NULL;
    END IF;
    
    PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
    IF to_regclass('glasspoint_caches') IS NULL THEN
        RETURN NULL;
    END IF;

    IF TG_OP = 'UPDATE' THEN
        
    PERFORM pg_advisory_xact_lock_shared(1735159667, 'glasspoint_caches'::regclass::oid::int);
    INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns, source)
    SELECT c.cache, s.thread_id, s.checkpoint_ns, TG_TABLE_NAME
    FROM glasspoint_caches AS c, (SELECT thread_id, checkpoint_ns FROM changed UNION SELECT thread_id, checkpoint_ns FROM former) AS s (thread_id, checkpoint_ns)
    WHERE c.seen_at > now() - CASE current_setting('transaction_isolation')
        WHEN 'read committed' THEN interval '1 hour' ELSE interval '1 day' END
      AND strpos(s.checkpoint_ns, ':') = 0;

    ELSE
        
    PERFORM pg_advisory_xact_lock_shared(1735159667, 'glasspoint_caches'::regclass::oid::int);
    INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns, source)
    SELECT c.cache, s.thread_id, s.checkpoint_ns, TG_TABLE_NAME
    FROM glasspoint_caches AS c, (SELECT DISTINCT thread_id, checkpoint_ns FROM changed) AS s (thread_id, checkpoint_ns)
    WHERE c.seen_at > now() - CASE current_setting('transaction_isolation')
        WHEN 'read committed' THEN interval '1 hour' ELSE interval '1 day' END
      AND strpos(s.checkpoint_ns, ':') = 0;

    END IF;
    RETURN NULL;
END

-- name: renew_content_id_body
-- The body of the trigger of TRUNCATE.
BEGIN
    PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
    IF to_regclass('glasspoint_identity') IS NOT NULL THEN
        UPDATE glasspoint_identity SET content_id = replace(gen_random_uuid()::text, '-', '');
    END IF;
    RETURN NULL;
END

-- name: create_note_foreign_insert
-- Makes the function glasspoint_note_foreign_insert().
CREATE OR REPLACE FUNCTION glasspoint_note_foreign_insert() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $glasspoint$
-- include: note_foreign_insert_body
$glasspoint$

-- name: revoke_note_foreign_insert
-- Lets no other role use glasspoint_note_foreign_insert() in a trigger of another table.
REVOKE ALL ON FUNCTION glasspoint_note_foreign_insert() FROM PUBLIC

-- name: create_note_foreign_writes
-- Makes the function glasspoint_note_foreign_writes().
CREATE OR REPLACE FUNCTION glasspoint_note_foreign_writes() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $glasspoint$
-- include: note_foreign_writes_body
$glasspoint$

-- name: revoke_note_foreign_writes
-- Lets no other role use glasspoint_note_foreign_writes() in a trigger of another table.
REVOKE ALL ON FUNCTION glasspoint_note_foreign_writes() FROM PUBLIC

-- name: create_renew_content_id
-- Makes the function glasspoint_renew_content_id().
CREATE OR REPLACE FUNCTION glasspoint_renew_content_id() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $glasspoint$
-- include: renew_content_id_body
$glasspoint$

-- name: revoke_renew_content_id
-- Lets no other role use glasspoint_renew_content_id() in a trigger of another table.
REVOKE ALL ON FUNCTION glasspoint_renew_content_id() FROM PUBLIC

-- name: create_insert_trigger
-- Notes what other software inserts into a table.
--
-- {table}
CREATE TRIGGER glasspoint_insert AFTER INSERT ON {table}
FOR EACH ROW
-- include: by_others
EXECUTE FUNCTION glasspoint_note_foreign_insert()

-- name: create_update_trigger
-- Notes what other software updates in a table.
--
-- {table}
CREATE TRIGGER glasspoint_update AFTER UPDATE ON {table}
REFERENCING OLD TABLE AS former NEW TABLE AS changed FOR EACH STATEMENT
-- include: by_others
EXECUTE FUNCTION glasspoint_note_foreign_writes()

-- name: create_delete_trigger
-- Notes what other software deletes from a table.
--
-- {table}
CREATE TRIGGER glasspoint_delete AFTER DELETE ON {table}
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT
-- include: by_others
EXECUTE FUNCTION glasspoint_note_foreign_writes()

-- name: create_truncate_trigger
-- Notes that a table was truncated.
--
-- {table}
CREATE TRIGGER glasspoint_truncate AFTER TRUNCATE ON {table} FOR EACH STATEMENT
EXECUTE FUNCTION glasspoint_renew_content_id()

-- name: by_others
-- Whether other software makes this change. Our own statements begin with a comment: see `own` in
-- journal.sql. A setting instead would reach other clients of a pooler. `current_query` is NULL in a
-- background worker. What another trigger writes during a statement of ours is not ours: then the depth is
-- greater than 0. For the statement itself it is 0.
WHEN (pg_trigger_depth() > 0 OR coalesce(current_query(), '') NOT LIKE '/* glasspoint%')

-- name: take_setup_lock
-- Bounds the statements of a transaction, and tries to be the only process that sets up.
--
-- params   lock_timeout_ms: as a text; key: of the lock
-- returns  one row, whose last column tells whether this is the only process
SELECT set_config('lock_timeout', %(lock_timeout_ms)s, true), set_config('statement_timeout', '0', true),
       pg_try_advisory_xact_lock(%(key)s)

-- name: wait_for_setup
-- Waits until no other process sets up. For scripts.
--
-- {key}  of the lock
SELECT pg_advisory_xact_lock({key})

-- name: enter_schema
-- Makes every name in a transaction refer to one schema.
--
-- params   schema: its name
SELECT set_config('search_path', quote_ident(%(schema)s) || ', pg_temp', true)

-- name: look_at_schema
-- Looks which tables and triggers are there, and in which schema. The schema is the first one of the
-- search path, where upstream's setup makes the tables, if they are there or may be made there. Otherwise it
-- is the schema in which the search path finds them.
--
-- params   tables: names; trigger_tables, trigger_names, functions, bodies: one item per trigger
-- returns  one row, none if the search path leads to no schema: see its columns; `triggers` is the number of
--          triggers that are there, are enabled, and have this body
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

-- name: look_at_versions
-- Reads the number of upstream's last migration, and the version of our tables.
--
-- {migration}  last_migration, or `withheld`: the statement must not name a table that is missing
-- {version}    tables_version, or `withheld`, or a number
--
-- returns  one row: both
SELECT {migration}, {version}

-- name: last_migration
-- The number of upstream's last migration.
--
-- {migrations}  the table checkpoint_migrations
(SELECT max(v) FROM {migrations})

-- name: tables_version
-- The version of our tables.
--
-- {identity}  the table glasspoint_identity
(SELECT schema_version FROM {identity})

-- name: record_migration
-- Records one of upstream's migrations. LangGraph's own setup may have recorded it meanwhile.
--
-- {number}  the number of the migration
INSERT INTO checkpoint_migrations (v) VALUES ({number}) ON CONFLICT DO NOTHING

-- name: has_rows
-- Tells whether a table has rows.
--
-- {table}  its name
--
-- returns  one row: true or false
SELECT EXISTS (SELECT FROM {table})

-- name: standing_triggers
-- Lists our triggers that are there.
--
-- params   tables, names
-- returns  one row per trigger: its table, its name
SELECT c.relname::text, t.tgname::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
  AND c.relname = ANY(%(tables)s::text[]) AND t.tgname = ANY(%(names)s::text[])

-- name: may_note
-- Tells whether the owner of the functions has the rights that they need. Without these rights, every write
-- of other software would fail.
--
-- returns  one row: true or false
SELECT bool_and(has_table_privilege(name, privilege)) FROM
-- include: needed_to_note

-- name: needed_to_note
-- The rights that the owner of the functions needs.
(VALUES
    ('glasspoint_l1_journal', 'INSERT'),
    ('glasspoint_caches', 'SELECT'),
    ('glasspoint_identity', 'UPDATE')
) AS needed (name, privilege)

-- name: lacking_rights
-- Finds why this role cannot make the triggers.
--
-- params   schema, tables, functions, triggers: names
-- returns  one row: the missing rights that can be granted, as GRANT names them; functions that belong to
--          another role; tables of another role, from which an older trigger would have to be dropped
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
        FROM
        -- include: needed_to_note
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

-- name: index_status
-- Looks at an index. The workers are processes that hold, or wait for, a lock on the table with which the
-- build of an index conflicts. A vacuum is not one of them: it gives way.
--
-- params   schema: NULL for the first one of the search path; table, index
-- returns  one row, none if the table is not there: is_valid, NULL if there is no such index; workers, the
--          process ids
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

-- name: claim_index
-- Claims to build an index, for the moment between looking for workers and being one.
--
-- {identity}  the table glasspoint_identity
--
-- returns  one row if no other process has the claim
UPDATE {identity} SET index_claimed_until = clock_timestamp() + interval '10 s'
WHERE index_claimed_until IS NULL OR index_claimed_until < clock_timestamp()
RETURNING true

-- name: extend_claim
-- Extends the claim of claim_index.
--
-- {identity}  the table glasspoint_identity
UPDATE {identity} SET index_claimed_until = clock_timestamp() + interval '10 s'

-- name: end_claim
-- Ends the claim of claim_index.
--
-- {identity}  the table glasspoint_identity
UPDATE {identity} SET index_claimed_until = NULL

-- name: drop_index
-- Drops an index, in a transaction.
--
-- {index}  its name
DROP INDEX IF EXISTS {index}

-- name: drop_index_concurrently
-- Drops an index while others write.
--
-- {index}  its name
DROP INDEX CONCURRENTLY IF EXISTS {index}

-- name: drop_trigger
-- Drops a trigger that is there. Without IF EXISTS, which also locks the table if the trigger does not exist.
--
-- {trigger}, {table}  their names
DROP TRIGGER {trigger} ON {table}

-- name: drop_function
-- Drops a function of ours.
--
-- {function}  its name
DROP FUNCTION IF EXISTS {function}()

-- name: drop_table
-- Drops a table of ours.
--
-- {table}  its name
DROP TABLE IF EXISTS {table}

-- name: server_process
-- Tells which process of the server runs this statement, and how long its statements may take. Behind a
-- pooler, the client has received the id of another process.
--
-- returns  one row: the process id, the statement_timeout
SELECT pg_backend_pid(), current_setting('statement_timeout')

-- name: put_statement_timeout_back
-- Sets how long the statements of a session may take.
--
-- params   value
SELECT set_config('statement_timeout', %(value)s, false)
