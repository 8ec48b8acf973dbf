-- ADOPT: a copy that was built beside this thread becomes this thread.
--
-- KEYS  8 to 13: the copy's first six keys, in the same order
-- ARGV  1 entry TTL, ms  2 token of this copy  3 how many checkpoints it has  4 how many writes
-- returns {0, 'adopted', for how many ms the list has named threads}, {5} if this thread has something already, {4} if the copy is not complete (it has expired)
-- guards  Whoever reads this thread sees nothing of the copy, or all of it.
local bar = barred()
if bar then return bar end
if redis.call('HGET', META, 'copy') == ARGV[2] then return {0, 'adopted', register()} end -- a repeated call
if redis.call('EXISTS', IDS, NAMES, META) > 0 then return {5} end
local checkpoints, writes = redis.call('ZCARD', KEYS[8]), redis.call('ZCARD', KEYS[11])
if checkpoints ~= tonumber(ARGV[3]) or writes ~= tonumber(ARGV[4]) then
  return {4}
end
redis.call('HSET', KEYS[13], 'copy', ARGV[2])
for i = 1, 6 do
  if redis.call('EXISTS', KEYS[7 + i]) == 1 then redis.call('RENAME', KEYS[7 + i], KEYS[i]) end
end
local listed = register()
touch(ARGV[1])
return {0, 'adopted', listed}
