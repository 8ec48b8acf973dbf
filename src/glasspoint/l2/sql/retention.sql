-- The lease of the retention: see `lease.py`. One row of glasspoint_retention, by PostgreSQL's clock.

-- name: look_at_lease
-- Looks whether a run is due and the lease is free. It only reads, so nothing is written once a minute, and a
-- standby learns, too, when a run succeeded.
--
-- params   every: a run is due so many seconds after the last one that succeeded
-- returns  one row: whether a run is due, the lease is free, and the server takes writes; when a run
--          succeeded last, in seconds since 1970, NULL for never; the time now, in seconds since 1970
/* glasspoint */
SELECT current_setting('transaction_read_only') = 'off'
       AND coalesce(bool_and(until < clock_timestamp() AND coalesce(
           succeeded_at < clock_timestamp() - make_interval(secs => %(every)s), true)), true),
       extract(epoch FROM max(succeeded_at))::float8,
       extract(epoch FROM clock_timestamp())::float8
FROM glasspoint_retention

-- name: claim_lease
-- Takes the lease, if it is free and a run is due.
--
-- params   holder: the saver; lease: for how many seconds; every: see look_at_lease
-- returns  one row if the lease was taken
/* glasspoint */
INSERT INTO glasspoint_retention AS r ("only", holder, until)
VALUES (true, %(holder)s, clock_timestamp() + make_interval(secs => %(lease)s))
ON CONFLICT ("only") DO UPDATE SET holder = EXCLUDED.holder, until = EXCLUDED.until
WHERE r.until < clock_timestamp()
  AND coalesce(r.succeeded_at < clock_timestamp() - make_interval(secs => %(every)s), true)
RETURNING true

-- name: renew_lease
-- Holds the lease for longer.
--
-- params   holder; lease: for how many seconds from now
-- returns  one row if the lease was still held
/* glasspoint */
UPDATE glasspoint_retention SET until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE holder = %(holder)s AND until > clock_timestamp() RETURNING true

-- name: give_lease_back
-- Lets any process take the lease.
--
-- params   holder
-- returns  one row if the lease was held
/* glasspoint */
UPDATE glasspoint_retention SET until = 'epoch' WHERE holder = %(holder)s RETURNING true

-- name: postpone_lease
-- Lets any process take the lease, after a pause.
--
-- params   holder; pause: its length in seconds
-- returns  one row if the lease was held
/* glasspoint */
UPDATE glasspoint_retention SET holder = '', until = clock_timestamp() + make_interval(secs => %(pause)s)
WHERE holder = %(holder)s RETURNING true

-- name: finish_lease
-- Records that the run succeeded, and gives the lease back.
--
-- params   holder
-- returns  one row if the lease was held: when the run succeeded, in seconds since 1970
/* glasspoint */
UPDATE glasspoint_retention SET until = 'epoch', succeeded_at = clock_timestamp()
WHERE holder = %(holder)s RETURNING extract(epoch FROM succeeded_at)::float8
