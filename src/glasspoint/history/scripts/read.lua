-- READ: one checkpoint with its values and pending writes.
--
-- ARGV  1 entry TTL, ms  2 namespace  3 checkpoint id, '' for the newest
-- returns {0, record}, {0} if it is not there
-- guards  One instant: values and writes are those of the checkpoint that is returned.
local bar = barred()
if bar then return bar end
local id = ARGV[3] ~= '' and ARGV[3] or newest_of(ARGV[2])
touch(ARGV[1])
return {0, (record(ARGV[2] .. '\0' .. id))}
