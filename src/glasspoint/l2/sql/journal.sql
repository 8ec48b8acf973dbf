-- The journal: which scopes Redis could not be told of. See `journal.py`.

-- name: own
-- What a statement begins with that changes checkpoints or pending writes. The triggers of setup.sql take any
-- other statement for one of other software, and note its scopes for the cache.
/* glasspoint */

-- name: own_journalled
-- The same for a statement that also records scopes, in the one transaction that it is.
--
-- params   see record_scopes
/* glasspoint */
WITH journalled AS (
    -- include: record_scopes
)

-- name: with
-- As `own`, for a statement that goes on with a sub-statement.
/* glasspoint */
WITH

-- name: with_journalled
-- As `own_journalled`, for a statement that goes on with a sub-statement.
--
-- params   see record_scopes
/* glasspoint */
WITH journalled AS (
    -- include: record_scopes
),

-- name: record_scopes
-- Adds rows for scopes. Rows are only added, so writers never wait for each other here.
--
-- params   untold_caches, untold_threads, untold_namespaces: a value a row
INSERT INTO glasspoint_l1_journal (cache, thread_id, checkpoint_ns)
SELECT * FROM unnest(
    %(untold_caches)s::text[], %(untold_threads)s::text[], %(untold_namespaces)s::text[]
)

-- name: delete_journal_rows
-- Deletes rows whose scopes Redis was told of after they were seen.
--
-- What another process is deleting just now is skipped: that process has dropped the entry, too. Waiting for
-- it, in another order than it takes the rows, would be a deadlock. After a recovery to an earlier moment,
-- ids come again, and these may be other rows: hence the generation.
--
-- params   cache; ids: of the rows; generation: of the cache, when the rows were seen
-- returns  a row for each that was deleted: source
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
-- Makes one row of all rows of a scope, as far as one statement gets.
--
-- The new rows have ids that nobody has seen, so nobody who dropped an entry before can delete them. To leave
-- one of the old rows in place would be wrong: ids do not say in which order rows were committed, and
-- somebody may have dropped the entry for that one before the write of another one was there.
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
-- Deletes what is left of caches, of any name, that no process has used for a day.
--
-- A cache that no process has used for an hour renews its generation when it comes back, and trusts nothing
-- of before. So neither its row nor its rows in the journal are needed after a day. A cache without a row is
-- one whose processes never reached their Redis.
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
