-- THREADS: is the list of the threads that must be here still the one that it was? It is made if there is none.
--
-- KEYS  as always, or the list alone
-- ARGV  none
-- returns {0, when it was made, '' if Redis makes none now, 1 if this thread has something here, else 0}
-- guards  A thread that is in no list, and has nothing here, was never here only if the list is the same.
redis.pcall('ZADD', THREADS, 'NX', string.format('%.0f', -now()), '')
return {0, redis.call('ZSCORE', THREADS, '') or '', META and redis.call('EXISTS', META) or 0}
