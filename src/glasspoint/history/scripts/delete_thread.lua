-- DELETE_THREAD: forget a thread, in all its namespaces.
--
-- ARGV  none
-- returns {0}
-- guards  A thread that is being drained is not deleted under the drain, which would bring it back to life
--         in the store above; a damaged one may be.
local bar = barred()
if bar and bar[1] ~= 3 then return bar end
redis.call('UNLINK', IDS, DOCS, BLOBS, NAMES, WRITES, META)
unregister()
return {0}
