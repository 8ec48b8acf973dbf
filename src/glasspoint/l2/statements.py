"""The hot path's statements on upstream's tables: one for a call, or for several, and what L1 must know.

All sub-statements of one statement see the same snapshot, taken before any of them changes anything.
Values travel as binary parameters (`%b`): as text, every byte of a blob would be sent and parsed as two.
"""

from __future__ import annotations

from functools import partial

__all__ = [
    "DELETE_THREAD",
    "IMPORT_CHECKPOINT",
    "IMPORT_WRITES",
    "LIST_MATCHING_THREADS",
    "LIST_THREADS",
    "NEWEST_AND_WHETHER",
    "NEWEST_OF",
    "NOTE_SET_ASIDE",
    "OWN",
    "PUT",
    "PUT_FEW",
    "PUT_FEW_WRITES",
    "PUT_JUDGED",
    "PUT_WRITES",
    "SELECT_BY_ID",
    "SELECT_NEWEST",
    "SET_ASIDE_SINCE",
    "UPSERT_FEW_WRITES",
    "UPSERT_WRITES",
]

OWN = "/* glasspoint */ "
"""What every statement begins with that changes checkpoints or pending writes. The triggers (see `schema`)
take any other statement for one of other software, and note its scopes for the cache."""

_SELECT = """
SELECT c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint::text, c.metadata::text,
       b.channels, b.versions, b.types, b.blobs,
       w.task_ids, w.idxs, w.channels, w.types, w.blobs, w.task_paths, {is_fenced} AS is_fenced
FROM {checkpoints}
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
"""

_CHECKPOINT = "SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata"

_NEWEST = f"""(
    {_CHECKPOINT} FROM checkpoints
    WHERE thread_id = {{thread_id}} AND checkpoint_ns = {{checkpoint_ns}}
    ORDER BY checkpoint_id DESC LIMIT 1
) AS c"""

_IS_FENCED = """EXISTS (
           SELECT FROM glasspoint_fences AS f
           WHERE f.thread_id = c.thread_id AND f.checkpoint_ns = c.checkpoint_ns AND f.until > now()
       )"""

_OF_ONE_SCOPE = _NEWEST.format(thread_id="%(thread_id)s", checkpoint_ns="%(checkpoint_ns)s")
_OF_SEVERAL_SCOPES = (
    "unnest(%(thread_ids)b::text[], %(namespaces)b::text[]) WITH ORDINALITY"
    " AS asked (thread_id, checkpoint_ns, n) LEFT JOIN LATERAL "
    + _NEWEST.format(thread_id="asked.thread_id", checkpoint_ns="asked.checkpoint_ns")
    + " ON true"
)

SELECT_NEWEST = _SELECT.format(checkpoints=_OF_ONE_SCOPE, is_fenced="true")
SELECT_NEWEST_FENCED = _SELECT.format(checkpoints=_OF_ONE_SCOPE, is_fenced=_IS_FENCED)
SELECT_NEWEST_TOGETHER = (
    f"{_SELECT.format(checkpoints=_OF_SEVERAL_SCOPES, is_fenced='true')} ORDER BY asked.n"
)
SELECT_NEWEST_TOGETHER_FENCED = (
    f"{_SELECT.format(checkpoints=_OF_SEVERAL_SCOPES, is_fenced=_IS_FENCED)} ORDER BY asked.n"
)
"""The newest checkpoint of a scope, with its values and its pending writes; or of several, a row for each, of
nulls if there is none. `is_fenced`: whether a fence stands there; true where that is not looked for.

The orders that nobody needs, here and below, keep PostgreSQL to the primary keys, even while it knows nothing
of the tables: an index of the thread alone would look as good then, and be ever worse as the thread's history
grows.
"""

SELECT_BY_ID = _SELECT.format(
    checkpoints=f"""(
    {_CHECKPOINT} FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s
      AND checkpoint_id = %(checkpoint_id)s
    ORDER BY checkpoint_id LIMIT 1
) AS c""",
    is_fenced="true",
)
"""One checkpoint of a scope, by its id."""

# The orders that nobody needs keep PostgreSQL to the primary key here, too.
_THREADS = """
WITH RECURSIVE threads AS (
    (SELECT thread_id FROM checkpoints ORDER BY thread_id, checkpoint_ns, checkpoint_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT c.thread_id FROM checkpoints AS c WHERE c.thread_id > t.thread_id
        ORDER BY c.thread_id, c.checkpoint_ns, c.checkpoint_id LIMIT 1
    )
    FROM threads AS t WHERE t.thread_id IS NOT NULL
)
SELECT found.thread_id, found.checkpoint_id, c.metadata::text
FROM (
    SELECT t.thread_id, newest.checkpoint_id
    FROM threads AS t CROSS JOIN LATERAL (
        SELECT own.checkpoint_id{metadata} FROM checkpoints AS own
        WHERE own.thread_id = t.thread_id AND own.checkpoint_ns = ''
        ORDER BY own.checkpoint_id DESC LIMIT 1
    ) AS newest
    WHERE (%(before)s::text IS NULL OR newest.checkpoint_id < %(before)s::text){filter}
    ORDER BY newest.checkpoint_id DESC, t.thread_id LIMIT %(limit)s::bigint
) AS found CROSS JOIN LATERAL (
    SELECT own.metadata FROM checkpoints AS own
    WHERE own.thread_id = found.thread_id AND own.checkpoint_ns = ''
      AND own.checkpoint_id = found.checkpoint_id
    ORDER BY own.checkpoint_id LIMIT 1
) AS c
ORDER BY found.checkpoint_id DESC, found.thread_id
"""

LIST_THREADS = _THREADS.format(metadata="", filter="")
LIST_MATCHING_THREADS = _THREADS.format(
    metadata=", own.metadata", filter=" AND newest.metadata @> %(filter)s::jsonb"
)
"""The threads, each with the newest checkpoint of its root graph, the newest first.

Each step of the recursion skips to the next thread in the primary key, however many checkpoints the one
before has. An order by age has no index, so all threads are looked at, but in the index alone.
"""

LOCK_TIMEOUT = "100ms"
"""So long at most the writes of several callers that go together wait for a row that somebody else keeps
locked; then each of them goes by itself, and waits for its own rows alone."""

_BOUNDED = f"(SELECT set_config('lock_timeout', '{LOCK_TIMEOUT}', true)) IS NOT NULL"

FEW = 4
"""A statement of few takes so many values at most, each as parameters of its own: an array of one costs the
client several times as much. Fewer are filled up, so that there is one statement to prepare; `count` tells
how many there are."""

_SET_FENCE = """
    INSERT INTO glasspoint_fences (thread_id, checkpoint_ns, holder, burst, until)
    SELECT DISTINCT thread_id, checkpoint_ns, %(holder)s, burst, now() + make_interval(secs => %(stands)s)
    FROM {writes} WHERE opens ORDER BY 1, 2
    ON CONFLICT (thread_id, checkpoint_ns, holder)
    DO UPDATE SET burst = EXCLUDED.burst, until = EXCLUDED.until
"""
"""Set the fences of bursts that begin. `until` is by PostgreSQL's clock, like all that compares it."""

_OWN_FENCE = """LATERAL (
    SELECT EXISTS (
        SELECT FROM glasspoint_fences AS f
        WHERE f.thread_id = {write}.thread_id AND f.checkpoint_ns = {write}.checkpoint_ns
          AND f.holder = %(holder)s AND f.burst = {write}.burst
          AND f.until > now() + make_interval(secs => %(margin)s)
    ) AS stands
) AS own"""
"""Whether the fence of the own burst stands for longer than a statement can run."""

_SEE_FENCES = """
    own.stands,
    EXISTS (
        SELECT FROM glasspoint_fences AS f
        WHERE f.thread_id = {write}.thread_id AND f.checkpoint_ns = {write}.checkpoint_ns
          AND f.holder <> %(holder)s AND f.until > now()
    ) AS is_contested,
    CASE WHEN {write}.opens OR NOT own.stands THEN coalesce((
        SELECT c.generation || ':' || i.content_id
        FROM glasspoint_caches AS c CROSS JOIN glasspoint_identity AS i
        WHERE c.cache = %(cache)s
          AND EXISTS (SELECT FROM glasspoint_crash_marks AS m WHERE m.generation = c.generation)
    ), '') END AS identity
"""
"""What a write of a burst sees of fences, as it was before its statement: `stands`: see `_OWN_FENCE`;
`is_contested`: one of another saver stands; `identity`: of this PostgreSQL (see `Look.mark`), if the write is
to be confirmed."""

_PUT = """{own}
WITH put AS MATERIALIZED (
    {puts}
{fence}){judged}, new_blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT p.thread_id, p.checkpoint_ns, b.channel, b.version, b.type, b.blob
    FROM {accepted} AS p JOIN {blobs}
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
    RETURNING thread_id, checkpoint_ns
), new_checkpoints AS (
    INSERT INTO checkpoints
      (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    SELECT thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint::jsonb, metadata::jsonb
    FROM {accepted} AS p
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
    DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
)
SELECT
    coalesce(before.latest < p.checkpoint_id, true) AS newest,
    (
        SELECT count(*) FROM new_blobs AS b
        WHERE b.thread_id = p.thread_id AND b.checkpoint_ns = p.checkpoint_ns
    ) AS stored,
    EXISTS (
        SELECT FROM {bare}
        CROSS JOIN LATERAL (
            SELECT FROM checkpoint_blobs AS b
            WHERE b.thread_id = p.thread_id AND b.checkpoint_ns = p.checkpoint_ns
              AND b.channel = bare.channel AND b.version = bare.version
            ORDER BY b.channel LIMIT 1
        ) AS there
        WHERE {is_bare_of}
    ) AS shadowed,
    ARRAY(
        SELECT w.task_id || ':' || w.idx FROM checkpoint_writes AS w
        WHERE w.thread_id = p.thread_id AND w.checkpoint_ns = p.checkpoint_ns
          AND w.checkpoint_id = p.checkpoint_id
        ORDER BY w.task_id, w.idx
    ) AS known_writes, before.latest{fork}{seen}
FROM {looked_at} AS p {own_fence}
CROSS JOIN LATERAL (
    SELECT (
        SELECT c.checkpoint_id FROM checkpoints AS c
        WHERE c.thread_id = p.thread_id AND c.checkpoint_ns = p.checkpoint_ns
        ORDER BY c.checkpoint_id DESC LIMIT 1
    ) AS latest OFFSET 0
) AS before
ORDER BY p.n
"""

_MARK = """, marks AS (
    INSERT INTO glasspoint_fences AS f (thread_id, checkpoint_ns, holder, burst, until)
    SELECT thread_id, checkpoint_ns, 'newest',
           concat_ws(' ', coalesce(parent_id, '-'), checkpoint_id, pg_current_xact_id()), '-infinity'
    FROM put WHERE on_fork > 0 ORDER BY 1, 2
    ON CONFLICT (thread_id, checkpoint_ns, holder)
    DO UPDATE SET burst = EXCLUDED.burst || ' ' || (regexp_match(f.burst, '^[^ ]+ [^ ]+ [^ ]+'))[1]
    RETURNING thread_id, checkpoint_ns, split_part(burst, ' ', 4) AS parent_id,
              split_part(burst, ' ', 5) AS checkpoint_id, split_part(burst, ' ', 6) AS written_by
)"""
"""Leave a mark of a put that goes on from what was read as the newest: its parent, its id, its transaction.

A snapshot does not show what another transaction is about to commit. But an upsert waits for that
transaction, and then finds the mark that it has left. So of two puts that run at once, one learns of the
other. The mark is no fence: it has expired when it is made, and goes with the fences of the scope.
"""

_MARKED = """
        WHEN m.parent_id = coalesce(p.parent_id, '-') AND m.checkpoint_id <> p.checkpoint_id
             AND NOT pg_visible_in_snapshot(nullif(m.written_by, '')::xid8, pg_current_snapshot())
        THEN m.checkpoint_id"""

_JUDGE = """{mark}, judged AS MATERIALIZED (
    SELECT p.*, CASE
        WHEN p.on_fork = 0 THEN NULL{marked}
        WHEN coalesce(there.newest > p.parent_id, there.newest IS NOT NULL) AND NOT EXISTS (
            SELECT FROM checkpoints AS own
            WHERE own.thread_id = p.thread_id AND own.checkpoint_ns = p.checkpoint_ns
              AND own.checkpoint_id = p.checkpoint_id
        ) THEN there.newest
    END AS forked_by
    FROM put AS p {marks}
    CROSS JOIN LATERAL (
        SELECT (
            SELECT c.checkpoint_id FROM checkpoints AS c
            WHERE c.thread_id = p.thread_id AND c.checkpoint_ns = p.checkpoint_ns
            ORDER BY c.checkpoint_id DESC LIMIT 1
        ) AS newest OFFSET 0
    ) AS there
)"""
"""Tell whether the parent, which was read as the newest, is the newest no more: `forked_by` is the checkpoint
that is newer. `on_fork`: 0: the put is not judged, 1: it is stored all the same, 2: it is not stored."""

_JUDGED = {
    "accepted": "(SELECT * FROM judged WHERE on_fork < 2 OR forked_by IS NULL)",
    "looked_at": "judged",
    "fork": ", p.forked_by",
}
_NOT_JUDGED = {"judged": "", "accepted": "put", "looked_at": "put", "fork": ""}

_ONE_PUT = """
    SELECT %(thread_id)s::text AS thread_id, %(checkpoint_ns)s::text AS checkpoint_ns,
           %(checkpoint_id)s::text AS checkpoint_id, %(parent_id)s::text AS parent_id,
           %(checkpoint)s::text AS checkpoint, %(metadata)s::text AS metadata, 1 AS n"""
_BARE_OF_ONE = "jsonb_each_text(%(bare)s::jsonb) AS bare (channel, version)"

_BURST_OF_ONE = ", %(burst)s::text AS burst, %(opens)s::boolean AS opens"
_JUDGED_ONE = ", %(on_fork)s::int AS on_fork"


def _puts(more_arrays: str = "", more_columns: str = "") -> str:
    return f"""
    SELECT * FROM unnest(
      %(thread_ids)b::text[], %(namespaces)b::text[], %(checkpoint_ids)b::text[], %(parent_ids)b::text[],
      %(checkpoints)b::text[], %(metadata)b::text[]{more_arrays}
    ) WITH ORDINALITY
      AS p (thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata{more_columns}, n)
    WHERE {_BOUNDED}
"""


_BURST_ARRAYS, _BURST_COLUMNS = ", %(bursts)b::text[], %(opens)b::boolean[]", ", burst, opens"
_JUDGED_ARRAY, _JUDGED_COLUMN = ", %(on_forks)b::int[]", ", on_fork"

_put_one = partial(
    _PUT.format,
    own=OWN,
    blobs="""
      unnest(%(channels)b::text[], %(versions)b::text[], %(types)b::text[], %(blobs)b::bytea[])
      AS b (channel, version, type, blob) ON true
""",
    bare=_BARE_OF_ONE,
    is_bare_of="true",
)
_put_few = partial(
    _PUT.format,
    own=OWN,
    blobs="""(VALUES
        (1, %(channel_1)s::text, %(version_1)s::text, %(type_1)s::text, %(blob_1)b::bytea),
        (2, %(channel_2)s::text, %(version_2)s::text, %(type_2)s::text, %(blob_2)b::bytea),
        (3, %(channel_3)s::text, %(version_3)s::text, %(type_3)s::text, %(blob_3)b::bytea),
        (4, %(channel_4)s::text, %(version_4)s::text, %(type_4)s::text, %(blob_4)b::bytea)
    ) AS b (number, channel, version, type, blob) ON b.number <= %(count)s::int
""",
    bare=_BARE_OF_ONE,
    is_bare_of="true",
)
_put_together = partial(
    _PUT.format,
    own=OWN,
    blobs="""
      unnest(%(blobs_of)b::int[], %(channels)b::text[], %(versions)b::text[], %(types)b::text[],
             %(blobs)b::bytea[])
      AS b (n, channel, version, type, blob) ON b.n = p.n
""",
    bare="""
          unnest(%(bare_of)b::int[], %(bare_channels)b::text[], %(bare_versions)b::text[])
          AS bare (n, channel, version)
""",
    is_bare_of="bare.n = p.n",
)
_PUT_FENCE = f"), fenced AS ({_SET_FENCE.format(writes='put')}"
_PUT_OWN = f"CROSS JOIN {_OWN_FENCE.format(write='p')}"
_PUT_SEEN = f", {_SEE_FENCES.format(write='p')}"

_UNFENCED = {"fence": "", "own_fence": "", "seen": ""}
_FENCED = {"fence": _PUT_FENCE, "own_fence": _PUT_OWN, "seen": _PUT_SEEN}
_PLAINLY_JUDGED = {**_JUDGED, "judged": _JUDGE.format(mark="", marked="", marks="")}
_FULLY_JUDGED = {
    **_JUDGED,
    "judged": _JUDGE.format(
        mark=_MARK, marked=_MARKED, marks="LEFT JOIN marks AS m USING (thread_id, checkpoint_ns)"
    ),
}

PUT = _put_one(puts=_ONE_PUT, **_UNFENCED, **_NOT_JUDGED)
PUT_FENCED = _put_one(puts=_ONE_PUT + _BURST_OF_ONE, **_FENCED, **_NOT_JUDGED)
PUT_JUDGED = _put_one(puts=_ONE_PUT + _JUDGED_ONE, **_UNFENCED, **_PLAINLY_JUDGED)
PUT_FENCED_JUDGED = _put_one(puts=_ONE_PUT + _BURST_OF_ONE + _JUDGED_ONE, **_FENCED, **_FULLY_JUDGED)
PUT_FEW = _put_few(puts=_ONE_PUT, **_UNFENCED, **_NOT_JUDGED)
PUT_FEW_FENCED = _put_few(puts=_ONE_PUT + _BURST_OF_ONE, **_FENCED, **_NOT_JUDGED)
PUT_FEW_JUDGED = _put_few(puts=_ONE_PUT + _JUDGED_ONE, **_UNFENCED, **_PLAINLY_JUDGED)
PUT_FEW_FENCED_JUDGED = _put_few(puts=_ONE_PUT + _BURST_OF_ONE + _JUDGED_ONE, **_FENCED, **_FULLY_JUDGED)
PUT_TOGETHER = _put_together(puts=_puts(), **_UNFENCED, **_NOT_JUDGED)
PUT_TOGETHER_FENCED = _put_together(puts=_puts(_BURST_ARRAYS, _BURST_COLUMNS), **_FENCED, **_NOT_JUDGED)
PUT_TOGETHER_JUDGED = _put_together(puts=_puts(_JUDGED_ARRAY, _JUDGED_COLUMN), **_UNFENCED, **_PLAINLY_JUDGED)
PUT_TOGETHER_FENCED_JUDGED = _put_together(
    puts=_puts(_BURST_ARRAYS + _JUDGED_ARRAY, _BURST_COLUMNS + _JUDGED_COLUMN), **_FENCED, **_FULLY_JUDGED
)
"""Store a checkpoint and its new values; or one with few; or several, each of another scope.

Returns for each `newest`: no checkpoint this new, nor this one, was there before; `stored`: how many values
were new (an older value at the same version stays, as upstream has it); `shadowed`: a channel sent without a
value of its own has one at this version, which upstream would show instead; `known_writes`: which pending
writes of this checkpoint are there already; `latest`: the newest checkpoint that was there before. Of bursts
also what `_SEE_FENCES` says.
"""

_INSERT_WRITES = """
INSERT INTO checkpoint_writes
  (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
{rows}
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) {action}
RETURNING task_id, idx, task_path, (xmax <> 0) AS overwrote
"""

_OF_ONE_TASK = """
SELECT %(thread_id)s::text, %(checkpoint_ns)s::text, %(checkpoint_id)s::text, %(task_id)s::text,
       %(task_path)s::text, w.*
FROM unnest(%(idxs)b::int[], %(channels)b::text[], %(types)b::text[], %(blobs)b::bytea[]) AS w
"""

_FEW_OF_ONE_TASK = """
SELECT %(thread_id)s::text, %(checkpoint_ns)s::text, %(checkpoint_id)s::text, %(task_id)s::text,
       %(task_path)s::text, w.idx, w.channel, w.type, w.blob
FROM (VALUES
    (1, %(idx_1)s::int, %(channel_1)s::text, %(type_1)s::text, %(blob_1)b::bytea),
    (2, %(idx_2)s::int, %(channel_2)s::text, %(type_2)s::text, %(blob_2)b::bytea),
    (3, %(idx_3)s::int, %(channel_3)s::text, %(type_3)s::text, %(blob_3)b::bytea),
    (4, %(idx_4)s::int, %(channel_4)s::text, %(type_4)s::text, %(blob_4)b::bytea)
) AS w (number, idx, channel, type, blob)
WHERE w.number <= %(count)s::int
"""

_OF_SEVERAL = f"""
SELECT * FROM unnest(
  %(thread_ids)b::text[], %(namespaces)b::text[], %(checkpoint_ids)b::text[], %(task_ids)b::text[],
  %(task_paths)b::text[], %(idxs)b::int[], %(channels)b::text[], %(types)b::text[], %(blobs)b::bytea[]
)
WHERE {_BOUNDED}
"""

_FENCED_WRITES = """{own}
WITH bursts AS MATERIALIZED (
    {bursts}
), fenced AS ({fence}), stored AS ({insert})
SELECT NULL, b.n::int, NULL, NULL, {seen} FROM bursts AS b CROSS JOIN {own_fence}
UNION ALL
SELECT task_id, idx, task_path, overwrote, NULL, NULL, NULL FROM stored
"""

_ONE_BURST = """
    SELECT %(thread_id)s::text AS thread_id, %(checkpoint_ns)s::text AS checkpoint_ns,
           %(burst)s::text AS burst, %(opens)s::boolean AS opens, 1 AS n
"""
_BURSTS = """
    SELECT * FROM unnest(
      %(burst_threads)b::text[], %(burst_namespaces)b::text[], %(bursts)b::text[], %(opens)b::boolean[]
    ) WITH ORDINALITY AS b (thread_id, checkpoint_ns, burst, opens, n)
"""

_KEEP = "DO NOTHING"
_REPLACE = "DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob"


def _insert(rows: str, action: str) -> str:
    return OWN + _INSERT_WRITES.format(rows=rows, action=action)


def _insert_fenced(rows: str, action: str, bursts: str) -> str:
    return _FENCED_WRITES.format(
        own=OWN,
        bursts=bursts,
        fence=_SET_FENCE.format(writes="bursts"),
        insert=_INSERT_WRITES.format(rows=rows, action=action),
        own_fence=_OWN_FENCE.format(write="b"),
        seen=_SEE_FENCES.format(write="b"),
    )


PUT_WRITES = _insert(_OF_ONE_TASK, _KEEP)
PUT_FEW_WRITES = _insert(_FEW_OF_ONE_TASK, _KEEP)
PUT_WRITES_TOGETHER = _insert(_OF_SEVERAL, _KEEP)
PUT_WRITES_FENCED = _insert_fenced(_OF_ONE_TASK, _KEEP, _ONE_BURST)
PUT_FEW_WRITES_FENCED = _insert_fenced(_FEW_OF_ONE_TASK, _KEEP, _ONE_BURST)
PUT_WRITES_TOGETHER_FENCED = _insert_fenced(_OF_SEVERAL, _KEEP, _BURSTS)
"""Store what tasks wrote; what is there already stays. Returns a row for each write that was stored; if they
belong to bursts, also a row for each task: its number, and what it has seen of fences."""

UPSERT_WRITES = _insert(_OF_ONE_TASK, _REPLACE)
UPSERT_FEW_WRITES = _insert(_FEW_OF_ONE_TASK, _REPLACE)
UPSERT_WRITES_TOGETHER = _insert(_OF_SEVERAL, _REPLACE)
UPSERT_WRITES_FENCED = _insert_fenced(_OF_ONE_TASK, _REPLACE, _ONE_BURST)
UPSERT_FEW_WRITES_FENCED = _insert_fenced(_FEW_OF_ONE_TASK, _REPLACE, _ONE_BURST)
UPSERT_WRITES_TOGETHER_FENCED = _insert_fenced(_OF_SEVERAL, _REPLACE, _BURSTS)
"""Store tasks' special writes, replacing what is there, but for the task path. Returns a row for each, and
whether it replaced: a row version that an upsert inserted has no `xmax`, one that it updated carries the lock
that it took first."""

SET_FENCE = OWN + _SET_FENCE.format(
    writes="""(
    SELECT %(thread_id)s::text AS thread_id, %(checkpoint_ns)s::text AS checkpoint_ns,
           %(burst)s::text AS burst, true AS opens
) AS burst"""
)
"""Set the fence of one burst, in a transaction that does the rest."""

_IMPORT_WRITES = f"""{OWN}
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

NEWEST_AND_WHETHER = """
SELECT c.checkpoint_id, EXISTS (
    SELECT FROM checkpoints AS own
    WHERE own.thread_id = c.thread_id AND own.checkpoint_ns = c.checkpoint_ns
      AND (own.checkpoint_id = %(tip)s OR own.parent_checkpoint_id = %(tip)s)
)
FROM checkpoints AS c
WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(checkpoint_ns)s
ORDER BY c.checkpoint_id DESC LIMIT 1
"""
"""The newest checkpoint of a scope, and whether any of them is the tip of a branch, or goes on from it."""

NEWEST_OF = """
SELECT max(checkpoint_id) FROM checkpoints
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s AND checkpoint_id = ANY(%(ids)s::text[])
"""
"""The newest of some checkpoints that a scope has."""

LOCK_TO_IMPORT = """
SELECT pg_advisory_xact_lock(hashtextextended('glasspoint import ' || %(thread_id)s, 0))
"""
"""Wait for another import into the same thread, until this transaction ends."""

NOTE_SET_ASIDE = """
INSERT INTO glasspoint_set_aside (thread_id, original_thread_id, began_at)
VALUES (%(thread_id)s, %(original)s, %(began_at)s)
ON CONFLICT DO NOTHING
"""

SET_ASIDE_SINCE = """
SELECT original_thread_id, thread_id, began_at FROM glasspoint_set_aside
WHERE set_aside_at >= clock_timestamp() - %(age)s::interval
ORDER BY set_aside_at
"""

DELETE_THREAD = f"""{OWN}
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
