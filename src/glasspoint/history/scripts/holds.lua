-- HOLDS: is there anything that a process which works above must know of?
--
-- KEYS  as always
-- ARGV  none
-- returns {0, how many threads the list names, 1 if this one is here, ms since something was last stored}
-- guards  A thread counts as here while it is sealed, and until it is retired: it is not above before that.
local at = now()
local named = redis.call('ZCOUNT', THREADS, string.format('(%.0f', at), '+inf')
local here = redis.call('EXISTS', META) == 1 or evicted()
return {0, named, here and 1 or 0, at + (redis.call('ZSCORE', THREADS, '!used') or 0)}
