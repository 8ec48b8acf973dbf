-- Plans what is removed, and removes it: see `pruning.py`.
--
-- One statement (`plan_…`) decides what is removed, so on one snapshot: every checkpoint of some threads is
-- either doomed or kept. The statements that remove rows name them by their primary keys.
--
-- No two sets of rows are joined here. A join is planned from estimates. These are worst for the few huge
-- threads that are worth pruning, and a nested loop would be quadratic. Instead, sets are compared by EXCEPT
-- and by window aggregates over a UNION ALL, which sort or hash whatever the estimates are. Single rows are
-- looked up by primary key, in LATERAL (… LIMIT 1) or in a scalar subquery, which the planner cannot turn
-- into a join.

-- name: set_for_pruning
-- Settings for one transaction, and the reason for each:
--
--   statement_timeout  its statements may take longer than those of the hot path
--   lock_timeout       they must not wait long for locks, because other transactions wait behind them
--   jit                compiling the statements would cost more than running them
--   parallel workers   they would take processors from live traffic
--   joins              a list of keys is joined with the table where they are looked up. A hash join or a
--                      merge join would read the whole table; the planner did choose that, for a few hundred
--                      keys in a table of 100,000 rows
--
-- params   statement_timeout_ms, lock_timeout_ms: as texts
SELECT set_config('statement_timeout', %(statement_timeout_ms)s, true),
       set_config('lock_timeout', %(lock_timeout_ms)s, true),
       set_config('jit', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true),
       set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true)

-- name: plan_keep_latest
-- Plans to keep the newest checkpoint of each namespace, with what it needs.
--
-- params   thread_ids
-- returns  rows with the columns kind, thread_id, checkpoint_ns, checkpoint_id, parent_id. The kinds are
--          doomed: a checkpoint that is removed
--          over: a checkpoint that is removed with everything else of its namespace
--          newest: the newest checkpoint of a namespace, whether it is removed or not
--          severed: a checkpoint that stays, but loses this parent
WITH RECURSIVE page AS MATERIALIZED (
    -- include: page_columns
    FROM (
        SELECT *, true AS old FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s::text[])
    ) AS c
    -- include: page_windows
), wanted AS (
    SELECT thread_id, checkpoint_ns, checkpoint_id, versioned FROM page WHERE newest
    UNION
    -- include: roots_of_young_calls
),
-- include: needed
-- include: verdict

-- name: plan_older
-- Plans to keep two kinds of checkpoints, with what they need: those that are not old; and the newest one of
-- each namespace, if keep_latest is set or if any checkpoint of its thread is not old.
--
-- A version 6 UUID begins with its time, the most significant part first. So ids compare as times do.
--
-- params   thread_ids, keep_latest
--          cutoff_id: version 6 UUIDs below it are old
--          cutoff_ts: other ids are old if the time in their document is earlier
-- returns  see plan_keep_latest
WITH RECURSIVE page AS MATERIALIZED (
    -- include: page_columns
    FROM (
        SELECT *, CASE
            WHEN checkpoint_id ~
            -- include: uuid6
            THEN checkpoint_id COLLATE "C" < %(cutoff_id)s
            ELSE coalesce(checkpoint ->> 'ts' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)$'
                          AND left(checkpoint ->> 'ts', 19) COLLATE "C" < %(cutoff_ts)s, false)
        END AS old
        FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s::text[])
    ) AS c
    -- include: page_windows
), wanted AS (
    SELECT thread_id, checkpoint_ns, checkpoint_id, versioned FROM page
    WHERE NOT old OR (newest AND (%(keep_latest)s OR thread_alive))
    UNION
    -- include: roots_of_young_calls
),
-- include: needed
-- include: verdict

-- name: plan_runs
-- Finds the checkpoints of some runs.
--
-- params   thread_ids: of these runs; run_ids
-- returns  one row per checkpoint: thread_id, checkpoint_ns, checkpoint_id; needed: whether the delta chain
--          of a checkpoint that stays needs it
WITH RECURSIVE page AS MATERIALIZED (
    -- include: page_columns
    FROM (
        SELECT *, coalesce(metadata ->> 'run_id' = ANY(%(run_ids)s::text[]), false) AS old
        FROM checkpoints WHERE thread_id = ANY(%(thread_ids)s::text[])
    ) AS c
    -- include: page_windows
), wanted AS (
    SELECT thread_id, checkpoint_ns, checkpoint_id, versioned FROM page WHERE NOT old
    UNION
    -- include: roots_of_young_calls
),
-- include: needed
SELECT DISTINCT p.thread_id, p.checkpoint_ns, p.checkpoint_id, p.needed FROM (
    SELECT *, bool_or(old IS NULL) OVER (PARTITION BY thread_id, checkpoint_ns, checkpoint_id) AS needed
    FROM (
        SELECT thread_id, checkpoint_ns, checkpoint_id, old FROM page
        UNION ALL
        SELECT thread_id, checkpoint_ns, checkpoint_id, NULL FROM chain
    ) AS all_rows
) AS p WHERE p.old

-- name: page_columns
-- The columns of all checkpoints `c` of some threads. Needs a column `old` in `c`.
SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id AS parent_id, old,
       metadata -> 'parents' ->> '' AS root_id,
       strpos(checkpoint_ns, ':') > 0 AS is_call,
       checkpoint_id = max(checkpoint_id) OVER scope AS newest,
       bool_or(NOT old) OVER scope AS scope_alive,
       bool_or(NOT old) OVER thread AS thread_alive,
       bool_or(metadata ? 'delta_writes_versioned') OVER thread AS versioned

-- name: page_windows
-- The windows of page_columns.
WINDOW scope AS (PARTITION BY thread_id, checkpoint_ns), thread AS (PARTITION BY thread_id)

-- name: roots_of_young_calls
-- The root checkpoints from which calls of subgraphs began, for checkpoints of calls that are not old.
SELECT thread_id, '', root_id, versioned FROM page WHERE is_call AND NOT old AND root_id IS NOT NULL

-- name: needed
-- What stays: the wanted checkpoints, and those that they need.
--
-- A DeltaChannel leaves counters in the metadata, or a snapshot. A snapshot is `true` in the checkpoint, with
-- a blob for the same version; a plain `True` has no blob. LangGraph.js marks its threads (`versioned`), and
-- names no channels.
--
-- params   thread_ids
base AS MATERIALIZED (
    SELECT w.*, c.parent_id, c.format, c.channels
    FROM wanted AS w CROSS JOIN LATERAL (
        SELECT parent_checkpoint_id AS parent_id, coalesce((checkpoint ->> 'v')::int, 0) AS format,
               ARRAY(
                   SELECT jsonb_object_keys(checkpoint -> 'channel_versions')
                   WHERE jsonb_typeof(checkpoint -> 'channel_versions') = 'object'
               ) AS channels
        FROM checkpoints AS c
        WHERE c.thread_id = w.thread_id AND c.checkpoint_ns = w.checkpoint_ns
          AND c.checkpoint_id = w.checkpoint_id
        LIMIT 1
    ) AS c
), sends AS (
    -- Before format 4, a checkpoint's pending sends are read from its parent's writes.
    SELECT thread_id, checkpoint_ns, parent_id AS checkpoint_id FROM base AS b
    WHERE format < 4 AND (
        SELECT true FROM checkpoint_writes AS w
        WHERE w.thread_id = b.thread_id AND w.checkpoint_ns = b.checkpoint_ns
          AND w.checkpoint_id = b.parent_id AND w.channel = '__pregel_tasks'
        LIMIT 1
    )
), delta AS (
    SELECT DISTINCT c.thread_id, c.checkpoint_ns, d.channel
    FROM checkpoints AS c CROSS JOIN LATERAL (
        SELECT jsonb_object_keys(CASE jsonb_typeof(c.metadata -> 'counters_since_delta_snapshot')
            WHEN 'object' THEN c.metadata -> 'counters_since_delta_snapshot' ELSE '{}' END) AS channel
        UNION ALL
        SELECT v.key FROM jsonb_each(CASE jsonb_typeof(c.checkpoint -> 'channel_values')
            WHEN 'object' THEN c.checkpoint -> 'channel_values' ELSE '{}' END) AS v
        WHERE v.value = 'true' AND (
            SELECT true FROM checkpoint_blobs AS b
            WHERE b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key
              AND b.version = c.checkpoint -> 'channel_versions' ->> v.key
            LIMIT 1
        )
    ) AS d
    WHERE c.thread_id = ANY(%(thread_ids)s::text[])
), without_value AS (
    -- Delta channels without a value in a checkpoint that stays: they are rebuilt from its ancestors.
    SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_id, c.channel
    FROM (
        SELECT d.*, stored.checkpoint FROM (
            SELECT *, bool_or(checkpoint_id IS NULL) OVER (PARTITION BY thread_id, checkpoint_ns, channel)
                      AS is_delta
            FROM (
                SELECT thread_id, checkpoint_ns, channel, NULL AS checkpoint_id, NULL AS parent_id FROM delta
                UNION ALL
                SELECT thread_id, checkpoint_ns, unnest(channels), checkpoint_id, parent_id FROM base
            ) AS of_channels
        ) AS d CROSS JOIN LATERAL (
            SELECT checkpoint FROM checkpoints AS s
            WHERE s.thread_id = d.thread_id AND s.checkpoint_ns = d.checkpoint_ns
              AND s.checkpoint_id = d.checkpoint_id
            LIMIT 1
        ) AS stored
        WHERE d.is_delta AND d.checkpoint_id IS NOT NULL
    ) AS c
    WHERE NOT
    -- include: has_value
), chain (thread_id, checkpoint_ns, checkpoint_id, parent_id, channel, done) AS (
    (
        SELECT thread_id, checkpoint_ns, checkpoint_id, parent_id, channel, false FROM without_value
        UNION ALL
        SELECT thread_id, checkpoint_ns, checkpoint_id, parent_id, NULL, false FROM base WHERE versioned
    )
    -- Not UNION ALL: if two walks meet, only one continues.
    UNION
    SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, n.channel,
           n.channel IS NOT NULL AND
           -- include: has_value
    FROM chain AS n CROSS JOIN LATERAL (
        SELECT p.thread_id, p.checkpoint_ns, p.checkpoint_id, p.parent_checkpoint_id, p.checkpoint,
               n.channel
        FROM checkpoints AS p
        WHERE p.thread_id = n.thread_id AND p.checkpoint_ns = n.checkpoint_ns
          AND p.checkpoint_id = n.parent_id
        LIMIT 1
    ) AS c
    WHERE NOT n.done
), kept AS (
    SELECT thread_id, checkpoint_ns, checkpoint_id FROM wanted
    UNION SELECT thread_id, checkpoint_ns, checkpoint_id FROM sends
    UNION SELECT thread_id, checkpoint_ns, checkpoint_id FROM chain
)

-- name: has_value
-- Whether the checkpoint `c` has a value of c.channel. A JSON null counts as no value: at worst, this keeps
-- too much. A blob of type `empty` means that there is no value.
coalesce(
    c.checkpoint -> 'channel_values' -> c.channel <> 'null' OR (
        SELECT true FROM checkpoint_blobs AS b
        WHERE b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns
          AND b.channel = c.channel
          AND b.version = c.checkpoint -> 'channel_versions' ->> c.channel AND b.type <> 'empty'
        LIMIT 1
    ), false)

-- name: verdict
-- The end of a plan: what follows from the checkpoints that are `kept`.
--
-- The namespace of a called subgraph has a ":" and the id of the task that called it. The namespace of a
-- subgraph with a memory of its own (`checkpointer=True`) has none. A call is removed with the root
-- checkpoint that it began from, but only if that checkpoint is there: runs save in the background, so a call
-- can be saved before its root.
, over_calls AS (
    SELECT DISTINCT thread_id, checkpoint_ns FROM (
        SELECT thread_id, checkpoint_ns, root_id,
               bool_or(checkpoint_ns IS NULL) OVER (PARTITION BY thread_id, root_id) AS root_kept
        FROM (
            SELECT thread_id, checkpoint_ns, root_id FROM page
            WHERE newest AND is_call AND NOT scope_alive AND root_id IS NOT NULL
            UNION ALL
            SELECT thread_id, NULL, checkpoint_id FROM kept WHERE checkpoint_ns = ''
        ) AS calls_and_roots
    ) AS call
    WHERE checkpoint_ns IS NOT NULL AND NOT root_kept AND (
        SELECT true FROM checkpoints AS r
        WHERE r.thread_id = call.thread_id AND r.checkpoint_ns = '' AND r.checkpoint_id = call.root_id
        LIMIT 1
    )
), verdict AS MATERIALIZED (
    SELECT thread_id, checkpoint_ns, checkpoint_id, parent_id, newest, of_page,
           scope_over, scope_over OR NOT row_kept AS doomed
    FROM (
        SELECT *, bool_or(NOT of_page AND checkpoint_id IS NOT NULL) OVER one AS row_kept,
                  bool_or(NOT of_page AND checkpoint_id IS NULL) OVER scope AS scope_over
        FROM (
            SELECT thread_id, checkpoint_ns, checkpoint_id, parent_id, newest, true AS of_page FROM page
            UNION ALL
            SELECT thread_id, checkpoint_ns, checkpoint_id, NULL, false, false FROM kept
            UNION ALL
            SELECT thread_id, checkpoint_ns, NULL, NULL, false, false FROM over_calls
        ) AS all_rows
        WINDOW one AS (PARTITION BY thread_id, checkpoint_ns, checkpoint_id),
               scope AS (PARTITION BY thread_id, checkpoint_ns)
    ) AS judged
), severed AS (
    -- Checkpoints that stay, while their parents do not.
    SELECT thread_id, checkpoint_ns, child_id, checkpoint_id FROM (
        SELECT *, bool_or(child_id IS NULL) OVER (PARTITION BY thread_id, checkpoint_ns, checkpoint_id)
                  AS stays
        FROM (
            SELECT thread_id, checkpoint_ns, checkpoint_id, NULL AS child_id FROM verdict WHERE NOT doomed
            UNION ALL
            SELECT thread_id, checkpoint_ns, parent_id, checkpoint_id FROM verdict
            WHERE of_page AND NOT doomed AND parent_id IS NOT NULL
        ) AS links
    ) AS linked
    WHERE child_id IS NOT NULL AND NOT stays
)
SELECT CASE WHEN scope_over THEN 'over' ELSE 'doomed' END, thread_id, checkpoint_ns, checkpoint_id, NULL
FROM verdict WHERE of_page AND doomed
UNION ALL
SELECT 'newest', thread_id, checkpoint_ns, checkpoint_id, NULL FROM verdict WHERE of_page AND newest
UNION ALL
SELECT 'severed', thread_id, checkpoint_ns, child_id, checkpoint_id FROM severed

-- name: uuid6
-- A regular expression for a version 6 UUID.
'^[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$'

-- name: threads_of_runs
-- Finds the threads of some runs.
--
-- params   run_ids
-- returns  one row per thread: thread_id
SELECT DISTINCT thread_id FROM checkpoints WHERE metadata ->> 'run_id' = ANY(%(run_ids)s::text[])

-- name: find_threads
-- Finds the next threads in which something may be doomed. All pages together are one pass over the two
-- tables: each page begins where the last one ended.
--
-- params   after: the last thread of the page before; NULL for the first page
--          keep_latest: whether threads with a single checkpoint are left out
--          limit: how many threads at most; see also maybe_old
-- returns  one row per thread: thread_id; old: an upper bound of the number of its old checkpoints
SELECT thread_id, sum(old)::int AS old FROM (
    (
        SELECT thread_id, count(*) FILTER (WHERE
            -- include: maybe_old
        ) AS old FROM checkpoints
        WHERE %(after)s::text IS NULL OR thread_id > %(after)s
        GROUP BY thread_id
        HAVING bool_or(
            -- include: maybe_old
        ) AND (count(*) > 1 OR NOT %(keep_latest)s)
        ORDER BY thread_id LIMIT %(limit)s
    )
    UNION ALL
    (
        SELECT thread_id, 0 FROM checkpoint_writes
        WHERE (%(after)s::text IS NULL OR thread_id > %(after)s) AND
            -- include: maybe_old
        GROUP BY thread_id
        ORDER BY thread_id LIMIT %(limit)s
    )
) AS found
GROUP BY thread_id ORDER BY thread_id LIMIT %(limit)s

-- name: maybe_old
-- Whether a checkpoint may be old, judged by its id alone. If the id is no version 6 UUID, the time is in the
-- document, which only plan_older reads.
--
-- params   cutoff_id
(checkpoint_id COLLATE "C" < %(cutoff_id)s OR checkpoint_id !~
    -- include: uuid6
)

-- name: lock_threads
-- Locks the threads that no other run of pruning has locked, until this transaction ends.
--
-- params   thread_ids
-- returns  one row per thread that was locked: thread_id
SELECT thread_id FROM unnest(%(thread_ids)s::text[]) AS t (thread_id)
WHERE pg_try_advisory_xact_lock(hashtextextended('glasspoint prune ' || thread_id, 0))

-- name: parents_since
-- Each given checkpoint was the newest of its namespace. Finds newer checkpoints whose parent is that one, or
-- an older one.
--
-- params   threads, namespaces, ids: one item per checkpoint
-- returns  one row per child: thread_id, checkpoint_ns, parent_checkpoint_id
SELECT c.thread_id, c.checkpoint_ns, c.parent_checkpoint_id
FROM unnest(%(threads)s::text[], %(namespaces)s::text[], %(ids)s::text[]) AS h (t, ns, id)
CROSS JOIN LATERAL (
    SELECT * FROM checkpoints AS c
    WHERE c.thread_id = h.t AND c.checkpoint_ns = h.ns AND c.checkpoint_id > h.id
      AND c.parent_checkpoint_id <= h.id
    OFFSET 0
) AS c

-- name: delete_checkpoints
-- Deletes checkpoints.
--
-- params   see these_rows
-- returns  one row: how many were deleted; their bytes
/* glasspoint */
WITH gone AS (
    DELETE FROM checkpoints AS c USING
    -- include: these_rows
    WHERE c.thread_id = d.t AND c.checkpoint_ns = d.ns AND c.checkpoint_id = d.id
    RETURNING pg_column_size(c.checkpoint) + pg_column_size(c.metadata) AS size
) SELECT count(*), coalesce(sum(size), 0)::bigint FROM gone

-- name: delete_writes
-- Deletes the pending writes of checkpoints. A run saves the writes of a superstep in the background, so they
-- can be saved before their checkpoint. That a write has no checkpoint is therefore no reason to delete it.
--
-- params   see these_rows
-- returns  one row: how many were deleted; their bytes
/* glasspoint */
WITH gone AS (
    DELETE FROM checkpoint_writes AS w USING
    -- include: these_rows
    WHERE w.thread_id = d.t AND w.checkpoint_ns = d.ns AND w.checkpoint_id = d.id
    RETURNING pg_column_size(w.blob) AS size
) SELECT count(*), coalesce(sum(size), 0)::bigint FROM gone

-- name: delete_blobs
-- Deletes values.
--
-- params   see these_values
-- returns  one row: how many were deleted; their bytes
/* glasspoint */
WITH gone AS (
    DELETE FROM checkpoint_blobs AS b USING
    -- include: these_values
    WHERE b.thread_id = d.t AND b.checkpoint_ns = d.ns AND b.channel = d.channel AND b.version = d.version
    RETURNING coalesce(pg_column_size(b.blob), 0) AS size
) SELECT count(*), coalesce(sum(size), 0)::bigint FROM gone

-- name: checkpoint_sizes
-- Counts what delete_checkpoints would delete.
--
-- params   see these_rows
-- returns  see delete_checkpoints
SELECT count(*), coalesce(sum(pg_column_size(c.checkpoint) + pg_column_size(c.metadata)), 0)::bigint
FROM
-- include: these_rows
JOIN checkpoints AS c ON c.thread_id = d.t AND c.checkpoint_ns = d.ns AND c.checkpoint_id = d.id

-- name: write_sizes
-- Counts what delete_writes would delete.
--
-- params   see these_rows
-- returns  see delete_writes
SELECT count(*), coalesce(sum(pg_column_size(w.blob)), 0)::bigint
FROM
-- include: these_rows
JOIN checkpoint_writes AS w ON w.thread_id = d.t AND w.checkpoint_ns = d.ns AND w.checkpoint_id = d.id

-- name: blob_sizes
-- Counts what delete_blobs would delete.
--
-- params   see these_values
-- returns  see delete_blobs
SELECT count(*), coalesce(sum(pg_column_size(b.blob)), 0)::bigint
FROM
-- include: these_values
JOIN checkpoint_blobs AS b
  ON b.thread_id = d.t AND b.checkpoint_ns = d.ns AND b.channel = d.channel AND b.version = d.version

-- name: these_rows
-- Checkpoints `d`, by their keys.
--
-- params   threads, namespaces, ids: one item per checkpoint
unnest(%(threads)s::text[], %(namespaces)s::text[], %(ids)s::text[]) AS d (t, ns, id)

-- name: these_values
-- Values `d`, by their keys.
--
-- params   threads, namespaces, channels, versions: one item per value
unnest(%(threads)s::text[], %(namespaces)s::text[], %(channels)s::text[], %(versions)s::text[])
AS d (t, ns, channel, version)

-- name: delete_writes_of_scopes
-- Deletes all pending writes of scopes.
--
-- params   threads, namespaces: one item per scope
/* glasspoint */
DELETE FROM checkpoint_writes AS w USING unnest(%(threads)s::text[], %(namespaces)s::text[]) AS s (t, ns)
WHERE w.thread_id = s.t AND w.checkpoint_ns = s.ns

-- name: drop_parents
-- Removes the parents of checkpoints that stay.
--
-- params   threads, namespaces, ids, parents: one item per checkpoint
/* glasspoint */
UPDATE checkpoints AS c SET parent_checkpoint_id = NULL
FROM unnest(%(threads)s::text[], %(namespaces)s::text[], %(ids)s::text[], %(parents)s::text[])
  AS s (t, ns, id, parent)
WHERE c.thread_id = s.t AND c.checkpoint_ns = s.ns AND c.checkpoint_id = s.id
  AND c.parent_checkpoint_id = s.parent

-- name: garbage_blobs
-- Finds the values of these threads to which no checkpoint refers. References from some checkpoints do not
-- count. Each value and each other checkpoint of the threads is read once.
--
-- params   thread_ids
--          threads, namespaces, ids: one item per checkpoint whose references do not count
-- returns  one row per value: thread_id, checkpoint_ns, channel, version
SELECT thread_id, checkpoint_ns, channel, version FROM checkpoint_blobs
WHERE thread_id = ANY(%(thread_ids)s::text[])
EXCEPT
SELECT c.thread_id, c.checkpoint_ns, v.key, v.value
FROM (
    SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints
    WHERE thread_id = ANY(%(thread_ids)s::text[])
    EXCEPT
    SELECT * FROM unnest(%(threads)s::text[], %(namespaces)s::text[], %(ids)s::text[])
) AS r
CROSS JOIN LATERAL (
    SELECT c.thread_id, c.checkpoint_ns, CASE jsonb_typeof(c.checkpoint -> 'channel_versions')
        WHEN 'object' THEN c.checkpoint -> 'channel_versions' ELSE '{}' END AS versions
    FROM checkpoints AS c
    WHERE c.thread_id = r.thread_id AND c.checkpoint_ns = r.checkpoint_ns
      AND c.checkpoint_id = r.checkpoint_id
    LIMIT 1
) AS c
CROSS JOIN LATERAL jsonb_each_text(c.versions) AS v

-- name: orphaned_writes
-- Finds old pending writes whose checkpoint is missing.
--
-- params   thread_ids
--          orphans_cutoff_id: version 6 UUIDs below it are old
-- returns  one row per missing checkpoint: thread_id, checkpoint_ns, checkpoint_id
SELECT thread_id, checkpoint_ns, checkpoint_id FROM (
    SELECT DISTINCT thread_id, checkpoint_ns, checkpoint_id FROM checkpoint_writes
    WHERE thread_id = ANY(%(thread_ids)s::text[]) AND checkpoint_id ~
        -- include: uuid6
        AND checkpoint_id COLLATE "C" < %(orphans_cutoff_id)s
) AS w
WHERE (
    SELECT true FROM checkpoints AS c
    WHERE c.thread_id = w.thread_id AND c.checkpoint_ns = w.checkpoint_ns
      AND c.checkpoint_id = w.checkpoint_id
    LIMIT 1
) IS NULL
