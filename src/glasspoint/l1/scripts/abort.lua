-- ABORT: the write failed and L2 certainly did not change; the image stays. (Outcome unknown: DROP.)
--
-- ARGV  1 intent
-- returns 1
redis.call('HDEL', KEY, 'i:' .. ARGV[1])
return 1
