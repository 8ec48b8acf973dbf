-- The fences of bursts: see `fences.py`. `until`, and all times that it is compared with, are by PostgreSQL's
-- clock.
--
-- `given`, with the alias `g`, is the part of a statement that holds what is written, one row per checkpoint
-- or task: thread_id, checkpoint_ns, burst, opens.

-- name: set_fence
-- Sets the fence of one burst, in the transaction that does the rest.
--
-- params   thread_id, checkpoint_ns, burst; and see set_fences
/* glasspoint */
WITH given AS (
    SELECT %(thread_id)s::text AS thread_id, %(checkpoint_ns)s::text AS checkpoint_ns,
           %(burst)s::text AS burst, true AS opens
)
-- include: set_fences

-- name: set_fences
-- Sets the fences of bursts that begin.
--
-- params   holder: the saver; stands: for how many seconds a fence stands
INSERT INTO glasspoint_fences (thread_id, checkpoint_ns, holder, burst, until)
SELECT DISTINCT thread_id, checkpoint_ns, %(holder)s, burst, now() + make_interval(secs => %(stands)s)
FROM given WHERE opens ORDER BY 1, 2
ON CONFLICT (thread_id, checkpoint_ns, holder)
DO UPDATE SET burst = EXCLUDED.burst, until = EXCLUDED.until

-- name: own_fence
-- Whether the fence of a write's own burst stands for longer than a statement can run.
--
-- params   holder: the saver; margin: how many seconds a statement can run at most
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT FROM glasspoint_fences AS f
        WHERE f.thread_id = g.thread_id AND f.checkpoint_ns = g.checkpoint_ns
          AND f.holder = %(holder)s AND f.burst = g.burst
          AND f.until > now() + make_interval(secs => %(margin)s)
    ) AS stands
) AS own

-- name: seen_of_fences
-- The last columns of a statement: what a write of a burst sees of fences, as they were before the statement.
-- Needs own_fence.
--
-- params   holder: the saver; cache: its cache
-- returns  stands: see own_fence
--          is_contested: whether a fence of another saver stands
--          identity: the identity of this PostgreSQL (see `Look.mark`), if the burst begins or its fence does
--          not stand, else NULL; empty if PostgreSQL has lost data, or has no row of this cache
, own.stands,
EXISTS (
    SELECT FROM glasspoint_fences AS f
    WHERE f.thread_id = g.thread_id AND f.checkpoint_ns = g.checkpoint_ns
      AND f.holder <> %(holder)s AND f.until > now()
) AS is_contested,
CASE WHEN g.opens OR NOT own.stands THEN coalesce((
    SELECT c.generation || ':' || i.content_id
    FROM glasspoint_caches AS c CROSS JOIN glasspoint_identity AS i
    WHERE c.cache = %(cache)s
      AND EXISTS (SELECT FROM glasspoint_crash_marks AS m WHERE m.generation = c.generation)
), '') END AS identity

-- name: remove_fences
-- Removes the fences of bursts that have ended, and the marks of puts in their scopes (see put.sql).
--
-- Rows that another transaction keeps locked are skipped. Waiting for it could be a deadlock, because a put
-- locks its mark and its fence in another order, and so does the removal of other bursts. A put that locks a row
-- replaces it: the row is its own then. A fence that stays nevertheless, because that put has failed, expires.
--
-- params   threads, namespaces, bursts: one item per burst
--          holder: the saver
/* glasspoint */
DELETE FROM glasspoint_fences WHERE ctid = ANY(ARRAY(
    SELECT f.ctid FROM glasspoint_fences AS f
    JOIN unnest(%(threads)s::text[], %(namespaces)s::text[], %(bursts)s::text[])
      AS ended (thread_id, checkpoint_ns, burst)
      ON f.thread_id = ended.thread_id AND f.checkpoint_ns = ended.checkpoint_ns
    WHERE f.holder = %(holder)s AND f.burst = ended.burst OR f.holder = 'newest'
    FOR UPDATE OF f SKIP LOCKED
))

-- name: expire_fences
-- Removes the fences that have expired: those of processes that have died. Locked rows are skipped, as by
-- remove_fences.
/* glasspoint */
DELETE FROM glasspoint_fences WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM glasspoint_fences WHERE until < now() FOR UPDATE SKIP LOCKED
))
