-- The journal: the scopes that Redis could not be told of. See `journal.py`.

-- name: own
-- The beginning of every statement that changes checkpoints or pending writes. The triggers of setup.sql
-- treat any other statement as one of other software, and note its scopes for the cache.
/* glasspoint */

-- name: own_journalled
-- As `own`, for a statement that also records scopes. Both happen in one transaction.
--
-- params   see record_scopes
/* glasspoint */
WITH journalled AS (
    -- include: record_scopes
)

-- name: with
-- As `own`, for a statement that continues with a sub-statement.
/* glasspoint */
WITH

-- name: with_journalled
-- As `own_journalled`, for a statement that continues with a sub-statement.
--
-- params   see record_scopes
/* glasspoint */
WITH journalled AS (
    -- include: record_scopes
),

-- name: record_scopes
-- Adds rows for scopes. Rows are only added, so writers never wait for each other here.
--
-- params   untold_caches, untold_threads, untold_namespaces: one item per row
INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns)
SELECT * FROM unnest(
    %(untold_caches)s::text[], %(untold_threads)s::text[], %(untold_namespaces)s::text[]
)

-- name: delete_journal_rows
-- Deletes rows. Redis was told of their scopes after the rows were seen.
--
-- Rows that another process is deleting are skipped: that process has dropped their entries, too. Waiting for
-- it could be a deadlock, because it may take the rows in another order. After a recovery to an earlier
-- moment, the same ids are given to other rows: so the generation is compared.
--
-- params   cache; ids: of the rows; generation: of the cache, when the rows were seen
-- returns  one row per row that was deleted: source
DELETE FROM glasspoint_l1_journal WHERE cache = %(cache)s AND id IN (
    SELECT id FROM glasspoint_l1_journal WHERE cache = %(cache)s AND id = ANY(%(ids)s::bigint[])
      AND EXISTS (SELECT FROM glasspoint_caches WHERE cache = %(cache)s AND generation = %(generation)s)
    FOR UPDATE SKIP LOCKED
)
RETURNING source

-- name: count_journal_rows
-- Counts the rows of one cache.
--
-- params   cache
-- returns  one row: the number
SELECT count(*) FROM glasspoint_l1_journal WHERE cache = %(cache)s

-- name: compact_journal
-- Replaces the oldest 20,000 rows by one row for each scope and source.
--
-- The new rows have ids that no process has seen. So a process that has dropped an entry before cannot delete
-- them. It would be wrong to leave one of the old rows in place. The ids do not say in which order rows were
-- committed: a process may have dropped the entry because of that row, before the write of another row was
-- committed.
--
-- params   cache
WITH gone AS (
    DELETE FROM glasspoint_l1_journal WHERE cache = %(cache)s AND id IN (
        SELECT id FROM glasspoint_l1_journal WHERE cache = %(cache)s ORDER BY id LIMIT 20000
        FOR UPDATE SKIP LOCKED
    )
    RETURNING thread_id, checkpoint_ns, source
)
INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns, source)
SELECT DISTINCT %(cache)s, thread_id, checkpoint_ns, source FROM gone

-- name: retire_caches
-- Deletes the rows of caches, of any name, that no process has used for a day.
--
-- A cache that no process has used for an hour renews its generation when it comes back, and then trusts
-- nothing that is older. So neither its row nor its rows in the journal are needed after a day. If a cache
-- has no row, its processes never reached their Redis.
/* glasspoint */
WITH unused AS (
    DELETE FROM glasspoint_caches WHERE seen_at < clock_timestamp() - interval '1 day' RETURNING generation
), unmarked AS (
    DELETE FROM glasspoint_crash_marks WHERE generation IN (SELECT generation FROM unused)
)
DELETE FROM glasspoint_l1_journal WHERE (cache, id) IN (
    SELECT j.cache, j.id FROM glasspoint_l1_journal AS j LEFT JOIN glasspoint_caches AS c USING (cache)
    WHERE j.created_at < clock_timestamp() - interval '1 day'
      AND (c.seen_at IS NULL OR c.seen_at < clock_timestamp() - interval '1 day')
    LIMIT 20000 FOR UPDATE OF j SKIP LOCKED
)
