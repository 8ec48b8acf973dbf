-- Statements about whole threads: imports from another tier, branches that were set aside, deletions, copies.

-- name: import_checkpoint
-- Stores a checkpoint with all its values and pending writes, as another tier held it.
--
-- params   thread_id, checkpoint_ns, checkpoint_id and more: see imported_writes
--          parent_id: NULL if it has none; checkpoint, metadata: JSON
--          channels, versions, types, blobs: one item per value
-- returns  one row: whether the checkpoint was new (an upsert that inserts a row leaves its xmax at 0)
/* glasspoint */
WITH
-- include: imported_writes
, new_blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(thread_id)s, %(checkpoint_ns)s, b.channel, b.version, b.type, b.blob
    FROM unnest(%(channels)s::text[], %(versions)s::text[], %(types)s::text[], %(blobs)b::bytea[])
      AS b (channel, version, type, blob)
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
)
INSERT INTO checkpoints
  (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
VALUES (%(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(parent_id)s,
        %(checkpoint)s::jsonb, %(metadata)s::jsonb)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
RETURNING (xmax = 0) AS new

-- name: import_writes
-- Stores pending writes of any tasks.
--
-- params   see imported_writes
-- returns  one row: false
/* glasspoint */
WITH
-- include: imported_writes
SELECT false AS new

-- name: imported_writes
-- Stores pending writes. Writes to special channels, which have negative numbers, replace what is there, as
-- when a task sends them.
--
-- params   thread_id, checkpoint_ns, checkpoint_id
--          task_ids, task_paths, idxs, write_channels, write_types, write_blobs: one item per write
given AS (
    SELECT * FROM unnest(
      %(task_ids)s::text[], %(task_paths)s::text[], %(idxs)s::int[], %(write_channels)s::text[],
      %(write_types)s::text[], %(write_blobs)b::bytea[]
    ) AS w (task_id, task_path, idx, channel, type, blob)
), plain AS (
    INSERT INTO checkpoint_writes
      (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    SELECT %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, task_id, task_path, idx, channel, type, blob
    FROM given WHERE idx >= 0
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO NOTHING
), special AS (
    INSERT INTO checkpoint_writes
      (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    SELECT %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, task_id, task_path, idx, channel, type, blob
    FROM given WHERE idx < 0
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob
)

-- name: lock_to_import
-- Locks a thread against other imports until this transaction ends.
--
-- params   thread_id
SELECT pg_advisory_xact_lock(hashtextextended('glasspoint import ' || %(thread_id)s, 0))

-- name: newest_and_whether
-- Reads the newest checkpoint of a scope, and whether any of its checkpoints is the tip of a branch, or has
-- it as its parent.
--
-- params   thread_id, checkpoint_ns; tip: the id of the tip
-- returns  one row, or none: the id of the newest; true if such a checkpoint is there
SELECT c.checkpoint_id, EXISTS (
    SELECT FROM checkpoints AS own
    WHERE own.thread_id = c.thread_id AND own.checkpoint_ns = c.checkpoint_ns
      AND (own.checkpoint_id = %(tip)s OR own.parent_checkpoint_id = %(tip)s)
)
FROM checkpoints AS c
WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(checkpoint_ns)s
ORDER BY c.checkpoint_id DESC LIMIT 1

-- name: newest_of
-- Reads the newest of some checkpoints that a scope has.
--
-- params   thread_id, checkpoint_ns, ids
-- returns  one row: the id, NULL if the scope has none of them
SELECT max(checkpoint_id) FROM checkpoints
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s AND checkpoint_id = ANY(%(ids)s::text[])

-- name: note_set_aside
-- Records that a thread was made from what was written to another thread in an outage.
--
-- params   thread_id; original: the other thread; began_at: when the first of that was written
INSERT INTO glasspoint_set_aside (thread_id, original_thread_id, began_at)
VALUES (%(thread_id)s, %(original)s, %(began_at)s)
ON CONFLICT DO NOTHING

-- name: set_aside_from
-- Lists the threads that were made from what was written to one thread in outages, the newest first.
--
-- params   original: the thread
-- returns  one row per thread that was made: original_thread_id, thread_id, began_at
SELECT original_thread_id, thread_id, began_at FROM glasspoint_set_aside
WHERE original_thread_id = %(original)s
ORDER BY set_aside_at DESC

-- name: set_aside_since
-- Lists the threads that were set aside lately, the oldest first.
--
-- params   age: an interval
-- returns  one row per thread: original_thread_id, thread_id, began_at
SELECT original_thread_id, thread_id, began_at FROM glasspoint_set_aside
WHERE set_aside_at >= clock_timestamp() - %(age)s::interval
ORDER BY set_aside_at

-- name: delete_thread
-- Deletes a thread.
--
-- params   thread_id
-- returns  one row per namespace that it had, and always one for the root's. Another deletion of the same
--          thread may have removed the rows first, and this one must not rely on it to tell L1
/* glasspoint */
WITH c AS (DELETE FROM checkpoints WHERE thread_id = %(thread_id)s RETURNING checkpoint_ns),
     b AS (DELETE FROM checkpoint_blobs WHERE thread_id = %(thread_id)s RETURNING checkpoint_ns),
     w AS (DELETE FROM checkpoint_writes WHERE thread_id = %(thread_id)s RETURNING checkpoint_ns)
SELECT checkpoint_ns FROM c UNION SELECT checkpoint_ns FROM b UNION SELECT checkpoint_ns FROM w
UNION SELECT checkpoint_ns FROM checkpoints WHERE thread_id = %(thread_id)s
UNION SELECT checkpoint_ns FROM checkpoint_blobs WHERE thread_id = %(thread_id)s
UNION SELECT checkpoint_ns FROM checkpoint_writes WHERE thread_id = %(thread_id)s
UNION SELECT ''

-- name: delete_threads
-- Deletes threads.
--
-- params   thread_ids
-- returns  one row per scope that they had, and always one per root: see delete_thread
/* glasspoint */
WITH c AS (DELETE FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s::text[])
           RETURNING thread_id, checkpoint_ns),
     b AS (DELETE FROM checkpoint_blobs WHERE thread_id = ANY(%(thread_ids)s::text[])
           RETURNING thread_id, checkpoint_ns),
     w AS (DELETE FROM checkpoint_writes WHERE thread_id = ANY(%(thread_ids)s::text[])
           RETURNING thread_id, checkpoint_ns)
SELECT * FROM c UNION SELECT * FROM b UNION SELECT * FROM w
UNION SELECT thread_id, checkpoint_ns FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s::text[])
UNION SELECT thread_id, checkpoint_ns FROM checkpoint_blobs WHERE thread_id = ANY(%(thread_ids)s::text[])
UNION SELECT thread_id, checkpoint_ns FROM checkpoint_writes WHERE thread_id = ANY(%(thread_ids)s::text[])
UNION SELECT thread_id, '' FROM unnest(%(thread_ids)s::text[]) AS t (thread_id)

-- name: still_there
-- Lists those of some threads that have a checkpoint.
--
-- params   thread_ids
-- returns  one row per thread: thread_id
SELECT DISTINCT thread_id FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s::text[])

-- name: lock_to_copy
-- Locks a thread against other copies to it until this transaction ends. Two copies of different threads to
-- one target would not collide in any primary key.
--
-- params   thread_id: the target
SELECT pg_advisory_xact_lock(hashtextextended('glasspoint copy ' || %(thread_id)s, 0))

-- name: thread_exists
-- Tells whether anything of a thread is stored.
--
-- params   thread_id
-- returns  one row: true or false
SELECT EXISTS (SELECT FROM checkpoints WHERE thread_id = %(thread_id)s)
    OR EXISTS (SELECT FROM checkpoint_blobs WHERE thread_id = %(thread_id)s)
    OR EXISTS (SELECT FROM checkpoint_writes WHERE thread_id = %(thread_id)s)

-- name: copy_thread
-- Copies a thread by one statement, so from one snapshot of the source.
--
-- params   source, target
-- returns  one row per namespace of the source
/* glasspoint */
WITH c AS (
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type,
                             checkpoint, metadata)
    SELECT %(target)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint,
           CASE WHEN metadata ->> 'thread_id' = %(source)s
                THEN metadata || jsonb_build_object('thread_id', %(target)s::text) ELSE metadata END
    FROM checkpoints WHERE thread_id = %(source)s
    RETURNING checkpoint_ns
), b AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(target)s, checkpoint_ns, channel, version, type, blob
    FROM checkpoint_blobs WHERE thread_id = %(source)s
    RETURNING checkpoint_ns
), w AS (
    INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx,
                                   channel, type, blob)
    SELECT %(target)s, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    FROM checkpoint_writes WHERE thread_id = %(source)s
    RETURNING checkpoint_ns
)
SELECT checkpoint_ns FROM c UNION SELECT checkpoint_ns FROM b UNION SELECT checkpoint_ns FROM w
