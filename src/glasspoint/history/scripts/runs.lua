-- RUNS: may this thread hold checkpoints of one of these runs?
--
-- ARGV  1 entry TTL, ms  then run id…
-- returns {0, 1 or 0}; 1 also if they have been removed since
local bar = barred()
if bar then return bar end
touch(ARGV[1])
for i = 2, #ARGV do
  if redis.call('HEXISTS', META, 'r:' .. ARGV[i]) == 1 then return {0, 1} end
end
return {0, 0}
