-- Stores pending writes: `put_…` keeps what is there already; `upsert_…` replaces it, except for the task
-- path.
--
-- A block whose name ends with `_fenced` begins after the WITH: it follows the block `with`, or
-- `with_journalled`, of journal.sql. The others follow `own`, or `own_journalled`. The name of a block says
-- what it stores:
--
--   …_few_writes       at most four writes of one task: see put.sql
--   …_writes           the writes of one task
--   …_writes_together  the writes of tasks of several callers
--   …_fenced           at least one of the tasks belongs to a burst: see fences.sql
--
-- A statement returns one row per write that was stored: task_id, idx, task_path, overwrote. The last one
-- comes from xmax: an upsert that inserts a row leaves xmax at 0; one that updates a row locks the row first,
-- which sets xmax.
--
-- A fenced statement has three more columns, which are NULL in these rows. It also returns one row per task:
-- NULL, the number of the task, NULL, NULL, and the columns of seen_of_fences.

-- name: put_few_writes
-- Stores a task's few pending writes.
--
-- params   see few_writes
-- returns  see the top of this file
-- include: insert_writes
-- include: few_writes
-- include: or_keep_write
-- include: stored_writes

-- name: put_writes
-- Stores a task's pending writes.
--
-- params   see writes_of_one
-- returns  see the top of this file
-- include: insert_writes
-- include: writes_of_one
-- include: or_keep_write
-- include: stored_writes

-- name: put_writes_together
-- Stores pending writes of several tasks.
--
-- params   see writes_of_several
-- returns  see the top of this file
-- include: insert_writes
-- include: writes_of_several
-- include: or_keep_write
-- include: stored_writes

-- name: upsert_few_writes
-- Stores or replaces a task's few pending writes.
--
-- params   see few_writes
-- returns  see the top of this file
-- include: insert_writes
-- include: few_writes
-- include: or_replace_write
-- include: stored_writes

-- name: upsert_writes
-- Stores or replaces a task's pending writes.
--
-- params   see writes_of_one
-- returns  see the top of this file
-- include: insert_writes
-- include: writes_of_one
-- include: or_replace_write
-- include: stored_writes

-- name: upsert_writes_together
-- Stores or replaces pending writes of several tasks.
--
-- params   see writes_of_several
-- returns  see the top of this file
-- include: insert_writes
-- include: writes_of_several
-- include: or_replace_write
-- include: stored_writes

-- name: put_few_writes_fenced
-- Stores a task's few pending writes, which belong to a burst.
--
-- params   see burst_of_task, few_writes, fences.sql
-- returns  see the top of this file
-- include: burst_of_task
fenced AS (
    -- include: set_fences
), stored AS (
    -- include: put_few_writes
)
-- include: fences_and_stored

-- name: put_writes_fenced
-- Stores a task's pending writes, which belong to a burst.
--
-- params   see burst_of_task, writes_of_one, fences.sql
-- returns  see the top of this file
-- include: burst_of_task
fenced AS (
    -- include: set_fences
), stored AS (
    -- include: put_writes
)
-- include: fences_and_stored

-- name: put_writes_together_fenced
-- Stores pending writes of several tasks. Some tasks belong to bursts.
--
-- params   see bursts_of_tasks, writes_of_several, fences.sql
-- returns  see the top of this file
-- include: bursts_of_tasks
fenced AS (
    -- include: set_fences
), stored AS (
    -- include: put_writes_together
)
-- include: fences_and_stored

-- name: upsert_few_writes_fenced
-- Stores or replaces a task's few pending writes, which belong to a burst.
--
-- params   see burst_of_task, few_writes, fences.sql
-- returns  see the top of this file
-- include: burst_of_task
fenced AS (
    -- include: set_fences
), stored AS (
    -- include: upsert_few_writes
)
-- include: fences_and_stored

-- name: upsert_writes_fenced
-- Stores or replaces a task's pending writes, which belong to a burst.
--
-- params   see burst_of_task, writes_of_one, fences.sql
-- returns  see the top of this file
-- include: burst_of_task
fenced AS (
    -- include: set_fences
), stored AS (
    -- include: upsert_writes
)
-- include: fences_and_stored

-- name: upsert_writes_together_fenced
-- Stores or replaces pending writes of several tasks. Some tasks belong to bursts.
--
-- params   see bursts_of_tasks, writes_of_several, fences.sql
-- returns  see the top of this file
-- include: bursts_of_tasks
fenced AS (
    -- include: set_fences
), stored AS (
    -- include: upsert_writes_together
)
-- include: fences_and_stored

-- name: insert_writes
-- The beginning of the INSERT.
INSERT INTO checkpoint_writes
  (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)

-- name: few_writes
-- At most four writes of one task.
--
-- params   thread_id, checkpoint_ns, checkpoint_id, task_id, task_path
--          count: the number of writes; idx_n, channel_n, type_n, blob_n: of each write, n from 1 to 4
SELECT %(thread_id)s::text, %(checkpoint_ns)s::text, %(checkpoint_id)s::text, %(task_id)s::text,
       %(task_path)s::text, w.idx, w.channel, w.type, w.blob
FROM (VALUES
    (1, %(idx_1)s::int, %(channel_1)s::text, %(type_1)s::text, %(blob_1)b::bytea),
    (2, %(idx_2)s::int, %(channel_2)s::text, %(type_2)s::text, %(blob_2)b::bytea),
    (3, %(idx_3)s::int, %(channel_3)s::text, %(type_3)s::text, %(blob_3)b::bytea),
    (4, %(idx_4)s::int, %(channel_4)s::text, %(type_4)s::text, %(blob_4)b::bytea)
) AS w (number, idx, channel, type, blob)
WHERE w.number <= %(count)s::int

-- name: writes_of_one
-- The writes of one task.
--
-- params   thread_id, checkpoint_ns, checkpoint_id, task_id, task_path
--          idxs, channels, types, blobs: one item per write
SELECT %(thread_id)s::text, %(checkpoint_ns)s::text, %(checkpoint_id)s::text, %(task_id)s::text,
       %(task_path)s::text, w.*
FROM unnest(%(idxs)b::int[], %(channels)b::text[], %(types)b::text[], %(blobs)b::bytea[]) AS w

-- name: writes_of_several
-- The writes of several tasks.
--
-- params   thread_ids, namespaces, checkpoint_ids, task_ids, task_paths, idxs, channels, types, blobs: one
--          item per write
SELECT * FROM unnest(
  %(thread_ids)b::text[], %(namespaces)b::text[], %(checkpoint_ids)b::text[], %(task_ids)b::text[],
  %(task_paths)b::text[], %(idxs)b::int[], %(channels)b::text[], %(types)b::text[], %(blobs)b::bytea[]
)
WHERE
-- include: waits_briefly

-- name: or_keep_write
-- Keeps what is there already.
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO NOTHING

-- name: or_replace_write
-- Replaces what is there already.
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob

-- name: stored_writes
-- The end of the INSERT.
RETURNING task_id, idx, task_path, (xmax <> 0) AS overwrote

-- name: burst_of_task
-- The burst that one task belongs to.
--
-- params   thread_id, checkpoint_ns; burst, opens: see burst_of_one
given AS MATERIALIZED (
    SELECT %(thread_id)s::text AS thread_id, %(checkpoint_ns)s::text AS checkpoint_ns,
           %(burst)s::text AS burst, %(opens)s::boolean AS opens, 1 AS n
),

-- name: bursts_of_tasks
-- The bursts that several tasks belong to.
--
-- params   burst_threads, burst_namespaces, bursts, opens: one item per task, see burst_of_one
given AS MATERIALIZED (
    SELECT * FROM unnest(
      %(burst_threads)b::text[], %(burst_namespaces)b::text[], %(bursts)b::text[], %(opens)b::boolean[]
    ) WITH ORDINALITY AS g (thread_id, checkpoint_ns, burst, opens, n)
),

-- name: fences_and_stored
-- The result of a fenced statement.
SELECT NULL, g.n::int, NULL, NULL
    -- include: seen_of_fences
FROM given AS g
-- include: own_fence
UNION ALL
SELECT task_id, idx, task_path, overwrote, NULL, NULL, NULL FROM stored
