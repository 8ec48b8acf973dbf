-- RELIST: put threads that a look at all keys has found into their list.
--
-- KEYS  the `meta` of each thread, then the list
-- ARGV  none
-- returns {0}
-- guards  A thread that has left meanwhile is not named again: of a target, it would be taken for one that was
--         evicted.
local at = now()
for i = 1, #KEYS - 1 do
  local ttl = redis.call('PTTL', KEYS[i])
  if ttl == -1 then
    redis.call('ZADD', LIST, '+inf', thread_in(KEYS[i]))
  elseif ttl > 0 then
    redis.call('ZADD', LIST, string.format('%.0f', at + ttl), thread_in(KEYS[i]))
  end
end
return {0}
