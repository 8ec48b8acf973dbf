-- PAGE: the ids of a namespace's checkpoints, a page of them.
--
-- ARGV  1 entry TTL, ms  2 '1' if a sealed thread may be read  3 'up' oldest first, 'down' newest first
--       4 lower bound  5 upper bound, both as ZRANGEBYLEX has them  6 how many at most
-- returns {0, m…}
local bar = barred(ARGV[2] == '1')
if bar then return bar end
touch(ARGV[1])
if ARGV[3] == 'up' then
  return {0, unpack(redis.call('ZRANGEBYLEX', IDS, ARGV[4], ARGV[5], 'LIMIT', 0, ARGV[6]))}
end
return {0, unpack(redis.call('ZREVRANGEBYLEX', IDS, ARGV[5], ARGV[4], 'LIMIT', 0, ARGV[6]))}
