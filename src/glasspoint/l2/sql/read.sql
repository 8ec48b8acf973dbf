-- The reads of the hot path, and the lists of threads.
--
-- No caller needs many of the ORDER BY here. They make PostgreSQL use the primary keys, even while it has no
-- statistics of the tables. Without them, an index on the thread alone would look as good to the planner, and
-- would become slower as the history of the thread grows.

-- name: select_newest
-- Reads the newest checkpoint of a scope, with its values and its pending writes.
--
-- params   thread_id, checkpoint_ns
-- returns  one row, or none: see stored_checkpoint; is_fenced is true, because no fence is looked for
SELECT
    -- include: stored_checkpoint
    true AS is_fenced
FROM (
    -- include: newest_of_scope
) AS c
-- include: values_and_writes

-- name: select_newest_fenced
-- Reads the newest checkpoint of a scope, and whether a fence stands in the scope.
--
-- params   thread_id, checkpoint_ns
-- returns  one row, or none: see stored_checkpoint
SELECT
    -- include: stored_checkpoint
    -- include: is_fenced
FROM (
    -- include: newest_of_scope
) AS c
-- include: values_and_writes

-- name: select_newest_together
-- Reads the newest checkpoints of several scopes.
--
-- params   see newest_of_scopes
-- returns  one row per scope, in the given order: see stored_checkpoint; NULLs if it has no checkpoint;
--          is_fenced is true, because no fence is looked for
SELECT
    -- include: stored_checkpoint
    true AS is_fenced
FROM
-- include: newest_of_scopes
-- include: values_and_writes
ORDER BY asked.n

-- name: select_newest_together_fenced
-- Reads the newest checkpoints of several scopes, and whether fences stand in the scopes.
--
-- params   see newest_of_scopes
-- returns  one row per scope, in the given order: see stored_checkpoint; NULLs if it has no checkpoint
SELECT
    -- include: stored_checkpoint
    -- include: is_fenced
FROM
-- include: newest_of_scopes
-- include: values_and_writes
ORDER BY asked.n

-- name: select_by_id
-- Reads one checkpoint of a scope by its id.
--
-- params   thread_id, checkpoint_ns, checkpoint_id
-- returns  one row, or none: see stored_checkpoint; is_fenced is true, because no fence is looked for
SELECT
    -- include: stored_checkpoint
    true AS is_fenced
FROM (
    SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata
    FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
      AND checkpoint_id = %(checkpoint_id)s
    ORDER BY checkpoint_id LIMIT 1
) AS c
-- include: values_and_writes

-- name: stored_checkpoint
-- The columns of a checkpoint `c` that is read: its own, arrays of its values, arrays of its pending writes.
-- The column is_fenced follows. Needs values_and_writes.
c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint::text, c.metadata::text,
b.channels, b.versions, b.types, b.blobs,
w.task_ids, w.idxs, w.channels, w.types, w.blobs, w.task_paths,

-- name: is_fenced
-- Whether a fence stands in the scope of the checkpoint `c`.
EXISTS (
    SELECT FROM glasspoint_fences AS f
    WHERE f.thread_id = c.thread_id AND f.checkpoint_ns = c.checkpoint_ns AND f.until > now()
) AS is_fenced

-- name: newest_of_scope
-- The newest checkpoint of a scope.
--
-- params   thread_id, checkpoint_ns
SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata
FROM checkpoints
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
ORDER BY checkpoint_id DESC LIMIT 1

-- name: newest_of_scopes
-- The scopes, `asked`, numbered by n, and the newest checkpoint `c` of each.
--
-- params   thread_ids, namespaces: of the scopes
unnest(%(thread_ids)b::text[], %(namespaces)b::text[]) WITH ORDINALITY AS asked (thread_id, checkpoint_ns, n)
LEFT JOIN LATERAL (
    SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata
    FROM checkpoints
    WHERE thread_id = asked.thread_id AND checkpoint_ns = asked.checkpoint_ns
    ORDER BY checkpoint_id DESC LIMIT 1
) AS c ON true

-- name: values_and_writes
-- The values `b` and the pending writes `w` of a checkpoint `c`, as arrays.
LEFT JOIN LATERAL (
    SELECT array_agg(bl.channel) AS channels, array_agg(bl.version) AS versions,
           array_agg(bl.type) AS types, array_agg(bl.blob) AS blobs
    FROM jsonb_each_text(c.checkpoint -> 'channel_versions') AS v
    CROSS JOIN LATERAL (
        SELECT * FROM checkpoint_blobs AS own
        WHERE own.thread_id = c.thread_id AND own.checkpoint_ns = c.checkpoint_ns
          AND own.channel = v.key AND own.version = v.value
        ORDER BY own.channel LIMIT 1
    ) AS bl
) AS b ON true
LEFT JOIN LATERAL (
    SELECT array_agg(cw.task_id) AS task_ids, array_agg(cw.idx) AS idxs, array_agg(cw.channel) AS channels,
           array_agg(cw.type) AS types, array_agg(cw.blob) AS blobs, array_agg(cw.task_path) AS task_paths
    FROM (
        SELECT * FROM checkpoint_writes AS own
        WHERE own.thread_id = c.thread_id AND own.checkpoint_ns = c.checkpoint_ns
          AND own.checkpoint_id = c.checkpoint_id
        ORDER BY own.task_id, own.idx
    ) AS cw
) AS w ON true

-- name: list_threads
-- Lists the threads that have a checkpoint of their root graph, sorted by the newest one, newest first.
--
-- params   before: the id of a checkpoint: only threads whose newest checkpoint is older; NULL for all
--          limit: how many at most; NULL for all
-- returns  one row per thread: thread_id; checkpoint_id and metadata of its newest checkpoint
WITH RECURSIVE
-- include: all_threads
SELECT found.thread_id, found.checkpoint_id, c.metadata::text
FROM (
    SELECT t.thread_id, newest.checkpoint_id
    FROM threads AS t CROSS JOIN LATERAL (
        SELECT own.checkpoint_id FROM checkpoints AS own
        WHERE own.thread_id = t.thread_id AND own.checkpoint_ns = ''
        ORDER BY own.checkpoint_id DESC LIMIT 1
    ) AS newest
    WHERE (%(before)s::text IS NULL OR newest.checkpoint_id < %(before)s::text)
    ORDER BY newest.checkpoint_id DESC, t.thread_id LIMIT %(limit)s::bigint
) AS found
-- include: metadata_of_found

-- name: list_matching_threads
-- Lists the threads whose newest checkpoint has certain metadata, in the order of list_threads.
--
-- params   before, limit: see list_threads
--          filter: JSON that the metadata must contain
-- returns  see list_threads
WITH RECURSIVE
-- include: all_threads
SELECT found.thread_id, found.checkpoint_id, c.metadata::text
FROM (
    SELECT t.thread_id, newest.checkpoint_id
    FROM threads AS t CROSS JOIN LATERAL (
        SELECT own.checkpoint_id, own.metadata FROM checkpoints AS own
        WHERE own.thread_id = t.thread_id AND own.checkpoint_ns = ''
        ORDER BY own.checkpoint_id DESC LIMIT 1
    ) AS newest
    WHERE (%(before)s::text IS NULL OR newest.checkpoint_id < %(before)s::text)
      AND newest.metadata @> %(filter)s::jsonb
    ORDER BY newest.checkpoint_id DESC, t.thread_id LIMIT %(limit)s::bigint
) AS found
-- include: metadata_of_found

-- name: all_threads
-- The threads that have a checkpoint. Each step of the recursion goes to the next thread in the primary key,
-- however many checkpoints the thread before has. No index is ordered by age, so all threads are visited, but
-- only in the index.
threads AS (
    (SELECT thread_id FROM checkpoints ORDER BY thread_id, checkpoint_ns, checkpoint_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT c.thread_id FROM checkpoints AS c WHERE c.thread_id > t.thread_id
        ORDER BY c.thread_id, c.checkpoint_ns, c.checkpoint_id LIMIT 1
    )
    FROM threads AS t WHERE t.thread_id IS NOT NULL
)

-- name: metadata_of_found
-- Reads the metadata of the threads on the page `found`, and of no others.
CROSS JOIN LATERAL (
    SELECT own.metadata FROM checkpoints AS own
    WHERE own.thread_id = found.thread_id AND own.checkpoint_ns = ''
      AND own.checkpoint_id = found.checkpoint_id
    ORDER BY own.checkpoint_id LIMIT 1
) AS c
ORDER BY found.checkpoint_id DESC, found.thread_id
