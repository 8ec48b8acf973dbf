"""The hot path's statements: one a call, on upstream's tables, plus what L1 must know to follow.

All sub-statements of one statement see the same snapshot, taken before any of them changes anything.
Values travel as binary parameters (`%b`): as text, every byte of a blob would be sent and parsed as two.
"""

from __future__ import annotations

__all__ = [
    "DELETE_THREAD",
    "IMPORT_CHECKPOINT",
    "IMPORT_WRITES",
    "PUT",
    "PUT_WRITES",
    "SELECT_BY_ID",
    "SELECT_NEWEST",
    "UPSERT_WRITES",
]

_SELECT = """
SELECT c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint::text, c.metadata::text,
       b.channels, b.versions, b.types, b.blobs,
       w.task_ids, w.idxs, w.channels, w.types, w.blobs, w.task_paths
FROM ({newest_or_one}) AS c
LEFT JOIN LATERAL (
    SELECT array_agg(bl.channel) AS channels, array_agg(bl.version) AS versions,
           array_agg(bl.type) AS types, array_agg(bl.blob) AS blobs
    FROM jsonb_each_text(c.checkpoint -> 'channel_versions') AS v
    JOIN checkpoint_blobs AS bl
      ON bl.thread_id = %(thread_id)s AND bl.checkpoint_ns = %(checkpoint_ns)s
     AND bl.channel = v.key AND bl.version = v.value
) AS b ON true
LEFT JOIN LATERAL (
    SELECT array_agg(cw.task_id) AS task_ids, array_agg(cw.idx) AS idxs, array_agg(cw.channel) AS channels,
           array_agg(cw.type) AS types, array_agg(cw.blob) AS blobs, array_agg(cw.task_path) AS task_paths
    FROM checkpoint_writes AS cw
    WHERE cw.thread_id = %(thread_id)s AND cw.checkpoint_ns = %(checkpoint_ns)s
      AND cw.checkpoint_id = c.checkpoint_id
) AS w ON true
"""

SELECT_NEWEST = _SELECT.format(
    newest_or_one="""
    SELECT checkpoint_id, parent_checkpoint_id, checkpoint, metadata FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
    ORDER BY checkpoint_id DESC LIMIT 1
"""
)
"""The newest checkpoint of a scope, with its values and its pending writes."""

SELECT_BY_ID = _SELECT.format(
    newest_or_one="""
    SELECT checkpoint_id, parent_checkpoint_id, checkpoint, metadata FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
      AND checkpoint_id = %(checkpoint_id)s
"""
)
"""One checkpoint of a scope, by its id."""

PUT = """
WITH new_blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(thread_id)s, %(checkpoint_ns)s, b.channel, b.version, b.type, b.blob
    FROM unnest(%(channels)s::text[], %(versions)s::text[], %(types)s::text[], %(blobs)b::bytea[])
      AS b (channel, version, type, blob)
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
    RETURNING 1
), new_checkpoint AS (
    INSERT INTO checkpoints
      (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    VALUES (%(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(parent_id)s,
            %(checkpoint)s::jsonb, %(metadata)s::jsonb)
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
    DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
)
SELECT
    NOT EXISTS (
        SELECT FROM checkpoints
        WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
          AND checkpoint_id >= %(checkpoint_id)s
    ) AS newest,
    (SELECT count(*) FROM new_blobs) AS stored,
    EXISTS (
        SELECT FROM unnest(%(bare_channels)s::text[], %(bare_versions)s::text[]) AS p (channel, version)
        JOIN checkpoint_blobs AS bl
          ON bl.thread_id = %(thread_id)s AND bl.checkpoint_ns = %(checkpoint_ns)s
         AND bl.channel = p.channel AND bl.version = p.version
    ) AS shadowed,
    ARRAY(
        SELECT task_id || ':' || idx FROM checkpoint_writes
        WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
          AND checkpoint_id = %(checkpoint_id)s
    ) AS known_writes
"""
"""Store a checkpoint and its new values.

Returns `newest`: no checkpoint this new, nor this one, was there before; `stored`: how many values were new
(an older value at the same version stays, as upstream has it); `shadowed`: a channel sent without a value of
its own has one at this version, which upstream would show instead; `known_writes`: which pending writes of
this checkpoint are there already.
"""

_INSERT_WRITES = """
INSERT INTO checkpoint_writes
  (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
SELECT %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s,
       w.idx, w.channel, w.type, w.blob
FROM unnest(%(idxs)s::int[], %(channels)s::text[], %(types)s::text[], %(blobs)b::bytea[])
  AS w (idx, channel, type, blob)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) {action}
RETURNING idx, task_path, (xmax <> 0) AS overwrote
"""

PUT_WRITES = _INSERT_WRITES.format(action="DO NOTHING")
"""Store a task's writes; what is there already stays. Returns a row for each that was stored."""

UPSERT_WRITES = _INSERT_WRITES.format(
    action="DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob"
)
"""Store a task's special writes, replacing what is there, but for the task path. Returns a row for each, and
whether it replaced: a row version that an upsert inserted has no `xmax`, one that it updated carries the lock
that it took first."""

_IMPORT_WRITES = """
WITH given AS (
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
"""

IMPORT_WRITES = f"{_IMPORT_WRITES} SELECT false AS new"
"""Store pending writes of any tasks. The special channels' writes, whose numbers are negative, replace what
is there, as they do when a task sends them."""

IMPORT_CHECKPOINT = f"""{_IMPORT_WRITES}, new_blobs AS (
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
"""
"""Store a checkpoint with all its values and pending writes, as another tier held it. Returns whether it was
new: a row version that an upsert inserted has no `xmax`."""

DELETE_THREAD = """
WITH c AS (DELETE FROM checkpoints WHERE thread_id = %(thread_id)s RETURNING checkpoint_ns),
     b AS (DELETE FROM checkpoint_blobs WHERE thread_id = %(thread_id)s RETURNING checkpoint_ns),
     w AS (DELETE FROM checkpoint_writes WHERE thread_id = %(thread_id)s RETURNING checkpoint_ns)
SELECT checkpoint_ns FROM c UNION SELECT checkpoint_ns FROM b UNION SELECT checkpoint_ns FROM w
UNION SELECT checkpoint_ns FROM checkpoints WHERE thread_id = %(thread_id)s
UNION SELECT checkpoint_ns FROM checkpoint_blobs WHERE thread_id = %(thread_id)s
UNION SELECT checkpoint_ns FROM checkpoint_writes WHERE thread_id = %(thread_id)s
UNION SELECT ''
"""
"""Delete a thread. Returns the namespaces that it had, and the root's in any case: another deletion of the
same thread, under way or just done, may have taken the rows first, and must not be relied on to tell L1."""
