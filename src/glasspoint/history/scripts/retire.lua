-- RETIRE: the thread stands in another store now; forget it here, and say for a while that it has moved.
--
-- ARGV  1 token of the seal  2 how long to say so, ms  3 the id that it has in the other store, '' for its own
-- returns {0, 1} retired, {0, 0} nothing was done: the seal is another one, or none
-- guards  Nothing is lost: only under the live seal is it certain that nothing came after the export. A thread
--         that has moved is not taken for one that was evicted, when the mark is gone.
local seal = redis.call('GET', SEAL)
if seal and has_prefix(seal, 'm' .. ARGV[1] .. '\0') then return {0, 1} end
if seal ~= 's' .. ARGV[1] then return {0, 0} end
redis.call('UNLINK', IDS, DOCS, BLOBS, NAMES, WRITES, META)
unregister()
redis.call('SET', SEAL, 'm' .. ARGV[1] .. '\0' .. ARGV[3], 'PX', ARGV[2])
return {0, 1}
