-- SEAL: keep everybody else from a thread, for a while, so that it can be drained.
--
-- ARGV  1 entry TTL, ms  2 lease, ms  3 token  4 '1' to renew a seal that this token holds
-- returns {0, 1} sealed, {0, 0} not: another one holds the seal, the thread has moved, or a seal that was
--         to be renewed has expired
-- guards  An expired seal is not renewed: somebody may have written since, and what was exported before
--         would be taken for all that there is. The thread lives at least as long as its seal.
local seal = redis.call('GET', SEAL)
local mine = seal == 's' .. ARGV[3]
if (seal and not mine) or (not seal and ARGV[4] == '1') then return {0, 0} end
local ttl = ARGV[1]
if ttl ~= '0' then ttl = math.max(ttl, ARGV[2]) end
touch(ttl) -- first, because after it SET is not refused when Redis is full, the time to drain it
redis.call('SET', SEAL, 's' .. ARGV[3], 'PX', ARGV[2])
return {0, 1}
