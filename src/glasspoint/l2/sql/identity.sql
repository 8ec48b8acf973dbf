-- The identity of PostgreSQL, and the caches that belong to it: see `identity.py`.

-- name: look_at_identity
-- Looks at the identity, at the row of one cache and at its journal, in one statement.
--
-- LangGraph's tables and ours must be in one schema: a search path may lead to tables of another deployment.
--
-- {system}, {timeline}, {started}, {position}   what a server may withhold: the block told_…, or `withheld`
--
-- params   cache; limit: the most rows of the journal; after: only rows of the journal with a greater id
-- returns  one row, or none if setup() has not made the tables
/* glasspoint */
SELECT i.id, i.content_id, i.signing_key, here.tables::text, here.database::text,
       {system}, {timeline}, {started}, {position}, current_setting('synchronous_commit'),
       extract(epoch FROM current_setting('statement_timeout')::interval)::float8,
       coalesce(
           row_security_active(here.tables) OR row_security_active('checkpoint_blobs')
           OR row_security_active('checkpoint_writes') OR row_security_active('glasspoint_l1_journal')
           OR row_security_active('glasspoint_caches'),
           false
       ),
       has_table_privilege('glasspoint_fences', 'SELECT')
           AND has_table_privilege('glasspoint_fences', 'INSERT')
           AND has_table_privilege('glasspoint_fences', 'UPDATE')
           AND has_table_privilege('glasspoint_fences', 'DELETE'),
       c.reign, c.generation, c.facts::text, extract(epoch FROM clock_timestamp() - c.seen_at)::float8,
       EXISTS (SELECT FROM glasspoint_crash_marks AS m WHERE m.generation = c.generation), c.is_purged,
       j.ids, j.thread_ids, j.namespaces,
       ARRAY(
           SELECT o.cache FROM glasspoint_caches AS o
           WHERE o.cache <> %(cache)s AND o.seen_at > clock_timestamp() - interval '1 hour'
       )
FROM (
    SELECT to_regclass('checkpoints')::oid AS tables,
           (SELECT oid FROM pg_database WHERE datname = current_database()) AS database,
           (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('checkpoints')) AS schema
) AS here
JOIN pg_class AS own ON own.oid = 'glasspoint_identity'::regclass AND own.relnamespace = here.schema
CROSS JOIN glasspoint_identity AS i
LEFT JOIN glasspoint_caches AS c ON c.cache = %(cache)s
LEFT JOIN LATERAL (
    SELECT array_agg(p.id ORDER BY p.id) AS ids, array_agg(p.thread_id ORDER BY p.id) AS thread_ids,
           array_agg(p.checkpoint_ns ORDER BY p.id) AS namespaces
    FROM (
        SELECT id, thread_id, checkpoint_ns FROM glasspoint_l1_journal
        WHERE cache = %(cache)s AND id > %(after)s ORDER BY id LIMIT %(limit)s
    ) AS p
) AS j ON true

-- name: told_system
-- The identifier of the cluster.
(SELECT system_identifier::text FROM pg_control_system())

-- name: told_timeline
-- The timeline.
substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)

-- name: told_started
-- When the server was started.
extract(epoch FROM pg_postmaster_start_time())::text

-- name: told_position
-- The length of the log in bytes.
(pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint

-- name: withheld
-- In place of what the server refuses to tell.
NULL

-- name: ask_all
-- Asks for all that a server may withhold.
-- returns  one row, unless the server withholds a part of it
/* glasspoint */
SELECT
-- include: told_system
,
-- include: told_timeline
,
-- include: told_started
,
-- include: told_position

-- name: ask_system
-- Asks for the identifier of the cluster, and for nothing else.
-- returns  one row, unless the server withholds it
/* glasspoint */
SELECT
-- include: told_system

-- name: ask_timeline
-- Asks for the timeline, and for nothing else.
-- returns  one row, unless the server withholds it
/* glasspoint */
SELECT
-- include: told_timeline

-- name: ask_started
-- Asks when the server was started, and for nothing else.
-- returns  one row, unless the server withholds it
/* glasspoint */
SELECT
-- include: told_started

-- name: ask_position
-- Asks for the length of the log, and for nothing else.
-- returns  one row, unless the server withholds it
/* glasspoint */
SELECT
-- include: told_position

-- name: ask_in_recovery
-- Asks whether the server is a standby, or recovers.
-- returns  one row: true or false
/* glasspoint */
SELECT pg_is_in_recovery()

-- name: wait_for_foreign_writes
-- Waits until the foreign transactions that share this advisory lock have ended: see setup.sql. They may have
-- seen that no process uses this cache, and so not note their writes for it.
SELECT pg_advisory_xact_lock(1735159667, 'glasspoint_caches'::regclass::oid::int)

-- name: renew_generation
-- Makes a new generation of a cache, if the caller has seen the current one. So if several processes renew it
-- at the same time, only one succeeds.
--
-- params   cache, reign, generation; facts: JSON; seen: the generation before, NULL for none
-- returns  no row; the row count tells whether the generation was made
/* glasspoint */
WITH renewed AS (
    INSERT INTO glasspoint_caches AS c (cache, reign, generation, facts, seen_at)
    VALUES (%(cache)s, %(reign)s, %(generation)s, %(facts)s::jsonb, clock_timestamp())
    ON CONFLICT (cache) DO UPDATE
      SET reign = EXCLUDED.reign, generation = EXCLUDED.generation, facts = EXCLUDED.facts,
          seen_at = EXCLUDED.seen_at, is_purged = false, purging_at = NULL
      WHERE c.generation IS NOT DISTINCT FROM %(seen)s
    RETURNING generation
), unmarked AS (
    DELETE FROM glasspoint_crash_marks WHERE generation = %(seen)s AND EXISTS (SELECT FROM renewed)
)
INSERT INTO glasspoint_crash_marks (generation) SELECT generation FROM renewed

-- name: say_seen
-- Records that a cache is in use.
--
-- params   cache, generation
/* glasspoint */
UPDATE glasspoint_caches SET seen_at = clock_timestamp()
WHERE cache = %(cache)s AND generation = %(generation)s

-- name: list_caches
-- Lists the caches of a database.
--
-- returns  one row per cache: cache, reign; how many seconds ago a process last said that it uses the cache
/* glasspoint */
SELECT cache, reign, coalesce(extract(epoch FROM clock_timestamp() - seen_at)::float8, 'infinity')
FROM glasspoint_caches

-- name: claim_purge
-- Claims, for a minute, the purge of what older generations have left.
--
-- params   cache, generation; continues: this process has the claim already
-- returns  no row; the row count tells whether this process has the claim
/* glasspoint */
UPDATE glasspoint_caches SET purging_at = clock_timestamp()
WHERE cache = %(cache)s AND generation = %(generation)s AND NOT is_purged
  AND (%(continues)s OR purging_at IS NULL OR purging_at < clock_timestamp() - interval '1 minute')

-- name: say_purged
-- Records that nothing is left of older generations.
--
-- params   cache, generation
/* glasspoint */
UPDATE glasspoint_caches SET is_purged = true WHERE cache = %(cache)s AND generation = %(generation)s
