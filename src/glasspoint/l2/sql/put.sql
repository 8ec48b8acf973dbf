-- Stores checkpoints: `put_…`, and the parts of these statements.
--
-- A put_ block begins after the WITH: it follows the block `with`, or `with_journalled`, of journal.sql. The
-- name of a block says what it stores:
--
--   put_few       one checkpoint with at most four values. Each value has parameters of its own, because an
--                 array with one item costs the client several times as much. Fewer values are filled up to
--                 four, so that only one statement is prepared
--   put           one checkpoint
--   put_together  checkpoints of several callers, all of different scopes
--   …_fenced      at least one of them belongs to a burst: see fences.sql
--   …_judged      at least one of them follows a checkpoint that was read as the newest, so it is judged
--                 whether it forks its thread
--
-- All parts of one statement see the same snapshot, taken before any of them changes anything. These parts
-- follow each other:
--
--   given          the checkpoints of the callers, one row per checkpoint, numbered by n
--   fenced         sets the fences of their bursts
--   marks, judged  find the checkpoints that fork their threads
--   accepted       the checkpoints that are stored
--
-- A statement returns one row per checkpoint, in the given order: the columns of outcome_of_one; then
-- forked_by, if it judges (see judged); then the columns of seen_of_fences, if it is fenced.

-- name: put_few
-- Stores one checkpoint with few values.
--
-- params   see given_one, few_values, outcome_of_one
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
), accepted AS NOT MATERIALIZED (
    SELECT * FROM given
),
-- include: stored_few
SELECT
    -- include: outcome_of_one
FROM given AS g
-- include: newest_before
ORDER BY g.n

-- name: put_few_fenced
-- Stores one checkpoint with few values. It belongs to a burst.
--
-- params   see given_one, burst_of_one, few_values, outcome_of_one, fences.sql
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
    -- include: burst_of_one
), fenced AS (
    -- include: set_fences
), accepted AS NOT MATERIALIZED (
    SELECT * FROM given
),
-- include: stored_few
SELECT
    -- include: outcome_of_one
    -- include: seen_of_fences
FROM given AS g
-- include: own_fence
-- include: newest_before
ORDER BY g.n

-- name: put_few_judged
-- Stores one checkpoint with few values. It may fork its thread.
--
-- params   see given_one, fork_of_one, few_values, outcome_of_one
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
    -- include: fork_of_one
),
-- include: judged
-- include: accepted_of_judged
-- include: stored_few
SELECT
    -- include: outcome_of_one
    , g.forked_by
FROM judged AS g
-- include: newest_before
ORDER BY g.n

-- name: put_few_fenced_judged
-- Stores one checkpoint with few values. It belongs to a burst, and may fork its thread.
--
-- params   see given_one, burst_of_one, fork_of_one, few_values, outcome_of_one, fences.sql
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
    -- include: burst_of_one
    -- include: fork_of_one
), fenced AS (
    -- include: set_fences
),
-- include: judged_by_marks
-- include: accepted_of_judged
-- include: stored_few
SELECT
    -- include: outcome_of_one
    , g.forked_by
    -- include: seen_of_fences
FROM judged AS g
-- include: own_fence
-- include: newest_before
ORDER BY g.n

-- name: put
-- Stores one checkpoint.
--
-- params   see given_one, values_of_one, outcome_of_one
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
), accepted AS NOT MATERIALIZED (
    SELECT * FROM given
),
-- include: stored_one
SELECT
    -- include: outcome_of_one
FROM given AS g
-- include: newest_before
ORDER BY g.n

-- name: put_fenced
-- Stores one checkpoint, which belongs to a burst.
--
-- params   see given_one, burst_of_one, values_of_one, outcome_of_one, fences.sql
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
    -- include: burst_of_one
), fenced AS (
    -- include: set_fences
), accepted AS NOT MATERIALIZED (
    SELECT * FROM given
),
-- include: stored_one
SELECT
    -- include: outcome_of_one
    -- include: seen_of_fences
FROM given AS g
-- include: own_fence
-- include: newest_before
ORDER BY g.n

-- name: put_judged
-- Stores one checkpoint, which may fork its thread.
--
-- params   see given_one, fork_of_one, values_of_one, outcome_of_one
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
    -- include: fork_of_one
),
-- include: judged
-- include: accepted_of_judged
-- include: stored_one
SELECT
    -- include: outcome_of_one
    , g.forked_by
FROM judged AS g
-- include: newest_before
ORDER BY g.n

-- name: put_fenced_judged
-- Stores one checkpoint, which belongs to a burst and may fork its thread.
--
-- params   see given_one, burst_of_one, fork_of_one, values_of_one, outcome_of_one, fences.sql
-- returns  see the top of this file
given AS MATERIALIZED (
    -- include: given_one
    -- include: burst_of_one
    -- include: fork_of_one
), fenced AS (
    -- include: set_fences
),
-- include: judged_by_marks
-- include: accepted_of_judged
-- include: stored_one
SELECT
    -- include: outcome_of_one
    , g.forked_by
    -- include: seen_of_fences
FROM judged AS g
-- include: own_fence
-- include: newest_before
ORDER BY g.n

-- name: put_together
-- Stores checkpoints of several callers.
--
-- params   thread_ids, namespaces, checkpoint_ids, parent_ids, checkpoints, metadata: one item per checkpoint
--          see also values_of_several, outcome_of_several
-- returns  see the top of this file
given AS MATERIALIZED (
    SELECT * FROM unnest(
      %(thread_ids)b::text[], %(namespaces)b::text[], %(checkpoint_ids)b::text[], %(parent_ids)b::text[],
      %(checkpoints)b::text[], %(metadata)b::text[]
    ) WITH ORDINALITY AS g (thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata, n)
    WHERE
    -- include: waits_briefly
), accepted AS NOT MATERIALIZED (
    SELECT * FROM given
),
-- include: stored_several
SELECT
    -- include: outcome_of_several
FROM given AS g
-- include: newest_before
ORDER BY g.n

-- name: put_together_fenced
-- Stores checkpoints of several callers. Some checkpoints belong to bursts.
--
-- params   thread_ids, namespaces, checkpoint_ids, parent_ids, checkpoints, metadata: one item per checkpoint
--          bursts, opens: one item per checkpoint, see burst_of_one
--          see also values_of_several, outcome_of_several, fences.sql
-- returns  see the top of this file
given AS MATERIALIZED (
    SELECT * FROM unnest(
      %(thread_ids)b::text[], %(namespaces)b::text[], %(checkpoint_ids)b::text[], %(parent_ids)b::text[],
      %(checkpoints)b::text[], %(metadata)b::text[], %(bursts)b::text[], %(opens)b::boolean[]
    ) WITH ORDINALITY
      AS g (thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata, burst, opens, n)
    WHERE
    -- include: waits_briefly
), fenced AS (
    -- include: set_fences
), accepted AS NOT MATERIALIZED (
    SELECT * FROM given
),
-- include: stored_several
SELECT
    -- include: outcome_of_several
    -- include: seen_of_fences
FROM given AS g
-- include: own_fence
-- include: newest_before
ORDER BY g.n

-- name: put_together_judged
-- Stores checkpoints of several callers. Some checkpoints may fork their threads.
--
-- params   thread_ids, namespaces, checkpoint_ids, parent_ids, checkpoints, metadata: one item per checkpoint
--          on_forks: one item per checkpoint, see fork_of_one
--          see also values_of_several, outcome_of_several
-- returns  see the top of this file
given AS MATERIALIZED (
    SELECT * FROM unnest(
      %(thread_ids)b::text[], %(namespaces)b::text[], %(checkpoint_ids)b::text[], %(parent_ids)b::text[],
      %(checkpoints)b::text[], %(metadata)b::text[], %(on_forks)b::int[]
    ) WITH ORDINALITY
      AS g (thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata, on_fork, n)
    WHERE
    -- include: waits_briefly
),
-- include: judged
-- include: accepted_of_judged
-- include: stored_several
SELECT
    -- include: outcome_of_several
    , g.forked_by
FROM judged AS g
-- include: newest_before
ORDER BY g.n

-- name: put_together_fenced_judged
-- Stores checkpoints of several callers. Some checkpoints belong to bursts, and some may fork their threads.
--
-- params   thread_ids, namespaces, checkpoint_ids, parent_ids, checkpoints, metadata: one item per checkpoint
--          bursts, opens, on_forks: one item per checkpoint, see burst_of_one and fork_of_one
--          see also values_of_several, outcome_of_several, fences.sql
-- returns  see the top of this file
given AS MATERIALIZED (
    SELECT * FROM unnest(
      %(thread_ids)b::text[], %(namespaces)b::text[], %(checkpoint_ids)b::text[], %(parent_ids)b::text[],
      %(checkpoints)b::text[], %(metadata)b::text[], %(bursts)b::text[], %(opens)b::boolean[],
      %(on_forks)b::int[]
    ) WITH ORDINALITY AS g (
      thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata, burst, opens, on_fork, n
    )
    WHERE
    -- include: waits_briefly
), fenced AS (
    -- include: set_fences
),
-- include: judged_by_marks
-- include: accepted_of_judged
-- include: stored_several
SELECT
    -- include: outcome_of_several
    , g.forked_by
    -- include: seen_of_fences
FROM judged AS g
-- include: own_fence
-- include: newest_before
ORDER BY g.n

-- name: given_one
-- One checkpoint.
--
-- params   thread_id, checkpoint_ns, checkpoint_id; parent_id: NULL if it has none; checkpoint, metadata:
--          JSON
SELECT %(thread_id)s::text AS thread_id, %(checkpoint_ns)s::text AS checkpoint_ns,
       %(checkpoint_id)s::text AS checkpoint_id, %(parent_id)s::text AS parent_id,
       %(checkpoint)s::text AS checkpoint, %(metadata)s::text AS metadata, 1 AS n

-- name: burst_of_one
-- The columns after given_one: the burst that the checkpoint belongs to.
--
-- params   burst: the burst; empty for none. opens: whether to set the fence of the burst
, %(burst)s::text AS burst, %(opens)s::boolean AS opens

-- name: fork_of_one
-- The column after given_one: what is done if the checkpoint forks its thread.
--
-- params   on_fork: 0: it is not judged; 1: it is judged, and stored even so; 2: it is not stored
, %(on_fork)s::int AS on_fork

-- name: waits_briefly
-- A condition that is always true. It limits how long a statement of several callers waits for a row that
-- another transaction keeps locked. After that, each call is sent alone, and only waits for its own rows.
(SELECT set_config('lock_timeout', '100ms', true)) IS NOT NULL

-- name: judged
-- The parent of a checkpoint was read as the newest checkpoint. This part tells whether that is still true:
-- forked_by is a newer checkpoint, NULL if there is none.
judged AS MATERIALIZED (
    SELECT g.*, CASE
        WHEN g.on_fork = 0 THEN NULL
        -- include: forked_by_newer
    END AS forked_by
    FROM given AS g
    -- include: newest_there
),

-- name: judged_by_marks
-- As `judged`, and also finds forks among puts that run at the same time. A snapshot does not show what
-- another transaction is about to commit. But an upsert waits for that transaction, and then finds the mark
-- that it has left. So of two puts that run at the same time, one learns of the other.
--
-- A mark holds the parent, the id and the transaction of a put that is judged. It is stored like a fence, but
-- has expired from the beginning, and is removed with the fences of the scope.
marks AS (
    INSERT INTO glasspoint_fences AS f (thread_id, checkpoint_ns, holder, burst, until)
    SELECT thread_id, checkpoint_ns, 'newest',
           concat_ws(' ', coalesce(parent_id, '-'), checkpoint_id, pg_current_xact_id()), '-infinity'
    FROM given WHERE on_fork > 0 ORDER BY 1, 2
    ON CONFLICT (thread_id, checkpoint_ns, holder)
    DO UPDATE SET burst = EXCLUDED.burst || ' ' || (regexp_match(f.burst, '^[^ ]+ [^ ]+ [^ ]+'))[1]
    RETURNING thread_id, checkpoint_ns, split_part(burst, ' ', 4) AS parent_id,
              split_part(burst, ' ', 5) AS checkpoint_id, split_part(burst, ' ', 6) AS written_by
), judged AS MATERIALIZED (
    SELECT g.*, CASE
        WHEN g.on_fork = 0 THEN NULL
        WHEN m.parent_id = coalesce(g.parent_id, '-') AND m.checkpoint_id <> g.checkpoint_id
             AND NOT pg_visible_in_snapshot(nullif(m.written_by, '')::xid8, pg_current_snapshot())
        THEN m.checkpoint_id
        -- include: forked_by_newer
    END AS forked_by
    FROM given AS g LEFT JOIN marks AS m USING (thread_id, checkpoint_ns)
    -- include: newest_there
),

-- name: forked_by_newer
-- A branch of the CASE in judged: a newer checkpoint is there, and the one that is put is not there yet.
WHEN coalesce(there.newest > g.parent_id, there.newest IS NOT NULL) AND NOT EXISTS (
    SELECT FROM checkpoints AS own
    WHERE own.thread_id = g.thread_id AND own.checkpoint_ns = g.checkpoint_ns
      AND own.checkpoint_id = g.checkpoint_id
) THEN there.newest

-- name: newest_there
-- The newest checkpoint of the scope of `g`, as `there`.
CROSS JOIN LATERAL (
    SELECT (
        SELECT c.checkpoint_id FROM checkpoints AS c
        WHERE c.thread_id = g.thread_id AND c.checkpoint_ns = g.checkpoint_ns
        ORDER BY c.checkpoint_id DESC LIMIT 1
    ) AS newest OFFSET 0
) AS there

-- name: accepted_of_judged
-- The judged checkpoints that are stored.
accepted AS NOT MATERIALIZED (
    SELECT * FROM judged WHERE on_fork < 2 OR forked_by IS NULL
),

-- name: stored_few
-- Stores one checkpoint with few values.
--
-- params   see few_values
new_blobs AS (
    -- include: insert_blobs
    -- include: few_values
    -- include: or_keep_blob
), new_checkpoints AS (
    -- include: insert_checkpoints
)

-- name: stored_one
-- Stores one checkpoint with its values.
--
-- params   see values_of_one
new_blobs AS (
    -- include: insert_blobs
    -- include: values_of_one
    -- include: or_keep_blob
), new_checkpoints AS (
    -- include: insert_checkpoints
)

-- name: stored_several
-- Stores several checkpoints with their values.
--
-- params   see values_of_several
new_blobs AS (
    -- include: insert_blobs
    -- include: values_of_several
    -- include: or_keep_blob
), new_checkpoints AS (
    -- include: insert_checkpoints
)

-- name: insert_blobs
-- The beginning of the INSERT of values.
INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
SELECT g.thread_id, g.checkpoint_ns, b.channel, b.version, b.type, b.blob
FROM accepted AS g JOIN

-- name: or_keep_blob
-- The end of the INSERT of values. An older value at the same version stays, as with upstream.
ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
RETURNING thread_id, checkpoint_ns

-- name: few_values
-- At most four values.
--
-- params   count: the number of values; channel_n, version_n, type_n, blob_n: of each value, n from 1 to 4
(VALUES
    (1, %(channel_1)s::text, %(version_1)s::text, %(type_1)s::text, %(blob_1)b::bytea),
    (2, %(channel_2)s::text, %(version_2)s::text, %(type_2)s::text, %(blob_2)b::bytea),
    (3, %(channel_3)s::text, %(version_3)s::text, %(type_3)s::text, %(blob_3)b::bytea),
    (4, %(channel_4)s::text, %(version_4)s::text, %(type_4)s::text, %(blob_4)b::bytea)
) AS b (number, channel, version, type, blob) ON b.number <= %(count)s::int

-- name: values_of_one
-- The values of one checkpoint.
--
-- params   channels, versions, types, blobs: one item per value
unnest(%(channels)b::text[], %(versions)b::text[], %(types)b::text[], %(blobs)b::bytea[])
AS b (channel, version, type, blob) ON true

-- name: values_of_several
-- The values of several checkpoints.
--
-- params   blobs_of: the number of the checkpoint to which a value belongs
--          channels, versions, types, blobs: one item per value
unnest(%(blobs_of)b::int[], %(channels)b::text[], %(versions)b::text[], %(types)b::text[], %(blobs)b::bytea[])
AS b (n, channel, version, type, blob) ON b.n = g.n

-- name: insert_checkpoints
-- Stores the checkpoints, or replaces those that are there.
INSERT INTO checkpoints
  (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint::jsonb, metadata::jsonb
FROM accepted AS g
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata

-- name: newest_before
-- The newest checkpoint of the scope of `g`, as it was before the statement.
CROSS JOIN LATERAL (
    SELECT (
        SELECT c.checkpoint_id FROM checkpoints AS c
        WHERE c.thread_id = g.thread_id AND c.checkpoint_ns = g.checkpoint_ns
        ORDER BY c.checkpoint_id DESC LIMIT 1
    ) AS latest OFFSET 0
) AS before

-- name: outcome_of_one
-- The columns that L1 needs to know about the put of one checkpoint.
--
-- params   bare: JSON, channel -> version, of the channels that are sent without a value of their own
-- returns  newest: whether it is newer than every checkpoint that was there before
--          stored: how many values were new
--          shadowed: whether a channel that was sent without a value of its own has a value at this version,
--                    which upstream would show instead
--          known_writes: `<task id>:<idx>` of the pending writes of this checkpoint that are there already
--          latest: the newest checkpoint that was there before
-- include: newest_and_stored
EXISTS (
    SELECT FROM jsonb_each_text(%(bare)s::jsonb) AS bare (channel, version)
    -- include: value_of_bare
) AS shadowed,
-- include: known_writes_and_latest

-- name: outcome_of_several
-- As outcome_of_one, for several checkpoints.
--
-- params   bare_of: the number of the checkpoint to which a channel without a value belongs
--          bare_channels, bare_versions: of these channels
-- returns  see outcome_of_one
-- include: newest_and_stored
EXISTS (
    SELECT FROM unnest(%(bare_of)b::int[], %(bare_channels)b::text[], %(bare_versions)b::text[])
        AS bare (n, channel, version)
    -- include: value_of_bare
    WHERE bare.n = g.n
) AS shadowed,
-- include: known_writes_and_latest

-- name: newest_and_stored
-- The first columns of outcome_of_one.
coalesce(before.latest < g.checkpoint_id, true) AS newest,
(
    SELECT count(*) FROM new_blobs AS b
    WHERE b.thread_id = g.thread_id AND b.checkpoint_ns = g.checkpoint_ns
) AS stored,

-- name: value_of_bare
-- The value that is stored at the version of a channel that was sent without a value.
CROSS JOIN LATERAL (
    SELECT FROM checkpoint_blobs AS b
    WHERE b.thread_id = g.thread_id AND b.checkpoint_ns = g.checkpoint_ns
      AND b.channel = bare.channel AND b.version = bare.version
    ORDER BY b.channel LIMIT 1
) AS there

-- name: known_writes_and_latest
-- The last columns of outcome_of_one.
ARRAY(
    SELECT w.task_id || ':' || w.idx FROM checkpoint_writes AS w
    WHERE w.thread_id = g.thread_id AND w.checkpoint_ns = g.checkpoint_ns
      AND w.checkpoint_id = g.checkpoint_id
    ORDER BY w.task_id, w.idx
) AS known_writes, before.latest
