-- Settings of a connection or a transaction, and queries about them and about whole tables.

-- name: configure_session
-- Bounds the statements of a connection. An acknowledged write must survive a crash, so synchronous_commit is
-- set to `on`, unless it is `remote_apply`, the only stricter value.
--
-- Nothing is set if a pooler is in between: the settings would reach other clients. A pooler makes up process
-- ids: the client receives another one than the server has.
--
-- params   milliseconds: the statement_timeout, as a text; pid: the process id that the client has received
-- returns  one row: the settings; then whether no pooler is in between
SELECT CASE WHEN here.is_direct THEN set_config('statement_timeout', %(milliseconds)s, false) END,
       CASE WHEN here.is_direct AND current_setting('synchronous_commit') <> 'remote_apply'
            THEN set_config('synchronous_commit', 'on', false) END,
       here.is_direct
FROM (SELECT pg_backend_pid() = %(pid)s AS is_direct) AS here

-- name: enter_schema_directly
-- Sets the search_path of a connection, unless a pooler is in between: see configure_session.
--
-- params   has_session: no pooler is known to be in between; pid: the one that the client has received;
--          schema: its name
-- returns  one row: whether the search_path was set
SELECT CASE WHEN %(has_session)s AND pg_backend_pid() = %(pid)s
            THEN set_config('search_path', quote_ident(%(schema)s), false) END IS NOT NULL

-- name: where_am_i
-- Tells where a connection finds its tables.
--
-- params   schema: the schema that is wanted
-- returns  one row: the current schema; whether the wanted one exists; the role; the database
SELECT current_schema(), to_regnamespace(quote_ident(%(schema)s)) IS NOT NULL, current_user,
       current_database()

-- name: takes_writes
-- Tells whether the server takes writes.
--
-- returns  one row: true or false
SELECT current_setting('transaction_read_only') = 'off'

-- name: set_lock_timeout
-- Limits how long the statements of a transaction wait for a lock.
--
-- params   timeout: a text with its unit
SELECT set_config('lock_timeout', %(timeout)s, true)

-- name: set_statement_timeout
-- Limits how long the statements of a transaction may take.
--
-- params   timeout: a text with its unit
SELECT set_config('statement_timeout', %(timeout)s, true)

-- name: table_sizes
-- Estimates the sizes of tables, which the search path of this connection finds. The bytes include indexes
-- and TOAST. The partitions of a table are summed.
--
-- params   tables: their names
-- returns  one row per table that is there: its name, its bytes, its rows
SELECT name, sum(pg_total_relation_size(c.oid))::bigint, sum(CASE
    WHEN coalesce(pg_stat_get_last_autovacuum_time(c.oid), pg_stat_get_last_vacuum_time(c.oid),
        pg_stat_get_last_autoanalyze_time(c.oid), pg_stat_get_last_analyze_time(c.oid)) IS NULL
        AND reltuples > 0 AND relpages > 0
    THEN reltuples / relpages * (pg_relation_size(c.oid) / current_setting('block_size')::int)
    ELSE pg_stat_get_live_tuples(c.oid) END)::bigint
FROM unnest(%(tables)s::text[]) AS t (name)
-- pg_partition_tree is empty for a table without partitions.
LEFT JOIN LATERAL pg_partition_tree(to_regclass(name)) AS p ON true
JOIN pg_class c ON c.oid = coalesce(p.relid, to_regclass(name)) AND c.relkind IN ('r', 'm')
GROUP BY name

-- name: room_for_connections
-- Counts the connections that this role may have, and those that are open, without this one.
--
-- A role without further rights sees of the sessions of others only their database, role and name. That is
-- enough here: a background process has no database or no role. Where the role sees the kind of a process,
-- only clients are counted. A superuser has no limit.
--
-- params   pid: the process id that the client has received
-- returns  one row: whether no pooler is in between; the role; how many connections the server has for this
--          role, how many are open, how many of them are named glasspoint; the limit of the role (-1: none),
--          how many the role has open; the limit of the database (-1: none), how many are open to it
SELECT pg_backend_pid() = %(pid)s, r.rolname,
       current_setting('max_connections')::int - CASE WHEN r.rolsuper THEN 0 ELSE
           current_setting('superuser_reserved_connections')::int + CASE
               WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_use_reserved_connections'
                            AND pg_has_role(r.oid, pg_roles.oid, 'USAGE')) THEN 0
               ELSE coalesce(current_setting('reserved_connections', true), '0')::int END
           END,
       a.opened, a.named,
       CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END, a.of_role,
       CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END, a.of_database
FROM pg_roles AS r, pg_database AS d, LATERAL (
    SELECT count(*)::int AS opened, count(*) FILTER (WHERE application_name = 'glasspoint')::int AS named,
           count(*) FILTER (WHERE usesysid = r.oid)::int AS of_role,
           count(*) FILTER (WHERE datid = d.oid)::int AS of_database
    FROM pg_stat_activity
    WHERE usesysid IS NOT NULL AND datid IS NOT NULL AND pid <> pg_backend_pid()
      AND coalesce(backend_type, 'client backend') = 'client backend'
) AS a
WHERE r.rolname = session_user AND d.datname = current_database()

-- name: missing_tables
-- Lists the tables that the search path of this connection does not find.
--
-- params   tables: the names to look for
-- returns  one row per missing table: its name
SELECT name FROM unnest(%(tables)s::text[]) AS name WHERE to_regclass(name) IS NULL

-- name: tables_without_rights
-- Lists the tables on which this role lacks rights.
--
-- params   tables, rights: one item per right that it needs
-- returns  one row per table: its name
SELECT DISTINCT name FROM unnest(%(tables)s::text[], %(rights)s::text[]) AS needed (name, privilege)
WHERE NOT has_table_privilege(name, privilege) ORDER BY name

-- name: newest_migration
-- Reads the number of upstream's last recorded migration.
--
-- returns  one row: the number, -1 for none
SELECT coalesce(max(v), -1) FROM checkpoint_migrations

-- name: estimate_rows
-- Reads PostgreSQL's own estimate of the number of rows of a table.
--
-- params   table: its name
-- returns  one row: the number
SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(%(table)s)

-- name: count_rows
-- Counts the rows of a table.
--
-- {table}  its name
--
-- returns  one row: the number
SELECT count(*) FROM {table}

-- name: set_aside_and_there
-- Lists the threads that were set aside and still exist.
--
-- returns  one row per thread: thread_id
SELECT thread_id FROM glasspoint_set_aside AS s
WHERE EXISTS (SELECT FROM checkpoints AS c WHERE c.thread_id = s.thread_id)
