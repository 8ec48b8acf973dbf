-- Reads what LangGraph's tables hold of one thread: see `contents.py`.

-- name: thread_ids
-- Lists the threads that have a checkpoint or a pending write.
--
-- returns  one row per thread: thread_id
SELECT thread_id FROM checkpoints UNION SELECT thread_id FROM checkpoint_writes ORDER BY 1

-- name: held_checkpoints
-- Lists the checkpoints of a thread.
--
-- params   thread_id
-- returns  one row per checkpoint: checkpoint_ns, checkpoint_id
SELECT checkpoint_ns, checkpoint_id FROM checkpoints WHERE thread_id = %(thread_id)s

-- name: held_writes
-- Lists the pending writes of a thread.
--
-- params   thread_id
-- returns  one row per write: checkpoint_ns, checkpoint_id, task_id, idx; the digest of its value, NULL if no
--          other write may replace it
SELECT checkpoint_ns, checkpoint_id, task_id, idx, CASE WHEN idx < 0 THEN sha256(blob) END
FROM checkpoint_writes WHERE thread_id = %(thread_id)s

-- name: held_values
-- Lists the values of a thread that are not empty.
--
-- params   thread_id
-- returns  one row per value: checkpoint_ns, channel, version
SELECT checkpoint_ns, channel, version FROM checkpoint_blobs
WHERE thread_id = %(thread_id)s AND type <> 'empty'

-- name: namespaces
-- Lists the namespaces of a thread that have checkpoints.
--
-- params   thread_id
-- returns  one row per namespace: checkpoint_ns; how many checkpoints; the id of the newest
SELECT checkpoint_ns, count(*), max(checkpoint_id) FROM checkpoints
WHERE thread_id = %(thread_id)s GROUP BY checkpoint_ns ORDER BY checkpoint_ns

-- name: parents
-- Lists the checkpoints of a scope with their parents.
--
-- params   thread_id, checkpoint_ns
-- returns  one row per checkpoint: checkpoint_id, parent_checkpoint_id
SELECT checkpoint_id, parent_checkpoint_id FROM checkpoints
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s

-- name: outlines
-- Lists the newest checkpoints of a scope without their values, the newest first.
--
-- params   thread_id, checkpoint_ns; limit: how many at most
-- returns  one row per checkpoint: its id, its parent, its metadata, the bytes of checkpoint and metadata,
--          its time; the bytes of its values; of its pending writes: their number, their bytes, the number
--          of interrupts, the number of errors
SELECT c.checkpoint_id, c.parent_checkpoint_id, c.metadata::text, octet_length(c.checkpoint::text)
           + octet_length(c.metadata::text), c.checkpoint ->> 'ts',
       coalesce(b.bytes, 0)::bigint, coalesce(w.writes, 0)::int, coalesce(w.bytes, 0)::bigint,
       coalesce(w.interrupts, 0)::int, coalesce(w.errors, 0)::int
FROM (
    SELECT checkpoint_id, parent_checkpoint_id, checkpoint, metadata, thread_id, checkpoint_ns
    FROM checkpoints WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
    ORDER BY checkpoint_id DESC LIMIT %(limit)s::bigint
) AS c
LEFT JOIN LATERAL (
    SELECT sum(octet_length(own.blob)) AS bytes
    FROM jsonb_each_text(c.checkpoint -> 'channel_versions') AS v
    JOIN checkpoint_blobs AS own
      ON own.thread_id = c.thread_id AND own.checkpoint_ns = c.checkpoint_ns
     AND own.channel = v.key AND own.version = v.value
) AS b ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS writes, sum(octet_length(own.blob)) AS bytes,
           count(*) FILTER (WHERE own.channel = '__interrupt__') AS interrupts,
           count(*) FILTER (WHERE own.channel = '__error__') AS errors
    FROM checkpoint_writes AS own
    WHERE own.thread_id = c.thread_id AND own.checkpoint_ns = c.checkpoint_ns
      AND own.checkpoint_id = c.checkpoint_id
) AS w ON true
ORDER BY c.checkpoint_id DESC

-- name: some_checkpoints
-- Reads some checkpoints of a thread.
--
-- params   thread_id; namespaces, ids: one item per checkpoint
-- returns  one row per checkpoint, in the given order: checkpoint_ns, checkpoint_id, parent_checkpoint_id,
--          checkpoint, metadata
SELECT c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint::text, c.metadata::text
FROM unnest(%(namespaces)s::text[], %(ids)s::text[]) WITH ORDINALITY
  AS asked (checkpoint_ns, checkpoint_id, n)
JOIN checkpoints AS c ON c.thread_id = %(thread_id)s AND c.checkpoint_ns = asked.checkpoint_ns
 AND c.checkpoint_id = asked.checkpoint_id
ORDER BY asked.n

-- name: some_values
-- Reads some values of a thread.
--
-- params   thread_id; namespaces, channels, versions: one item per value
-- returns  one row per value: checkpoint_ns, channel, version, type, blob
SELECT b.checkpoint_ns, b.channel, b.version, b.type, b.blob
FROM unnest(%(namespaces)s::text[], %(channels)s::text[], %(versions)s::text[])
  AS asked (checkpoint_ns, channel, version)
JOIN checkpoint_blobs AS b ON b.thread_id = %(thread_id)s AND b.checkpoint_ns = asked.checkpoint_ns
 AND b.channel = asked.channel AND b.version = asked.version
WHERE b.type <> 'empty'

-- name: some_writes
-- Reads some pending writes of a thread.
--
-- params   see asked_writes
-- returns  one row per write: checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
SELECT w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.channel, w.type, w.blob, w.task_path
FROM
-- include: asked_writes
ORDER BY 1, 2, 3, 4

-- name: some_writes_without_path
-- As some_writes, for a database without the column task_path.
--
-- params   see asked_writes
-- returns  see some_writes; task_path is empty
SELECT w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.channel, w.type, w.blob, ''
FROM
-- include: asked_writes
ORDER BY 1, 2, 3, 4

-- name: asked_writes
-- Some pending writes `w` of a thread.
--
-- params   thread_id; namespaces, ids, tasks, idxs: one item per write
unnest(%(namespaces)s::text[], %(ids)s::text[], %(tasks)s::text[], %(idxs)s::int[])
  AS asked (checkpoint_ns, checkpoint_id, task_id, idx)
JOIN checkpoint_writes AS w ON w.thread_id = %(thread_id)s AND w.checkpoint_ns = asked.checkpoint_ns
 AND w.checkpoint_id = asked.checkpoint_id AND w.task_id = asked.task_id AND w.idx = asked.idx

-- name: has_task_path
-- Tells whether pending writes have a task path. A database lacks it if no recent
-- langgraph-checkpoint-postgres has migrated it.
--
-- returns  one row: true or false
SELECT EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = 'checkpoint_writes'::regclass AND attname = 'task_path'
)
