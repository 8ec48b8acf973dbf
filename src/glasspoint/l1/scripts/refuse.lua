-- REFUSE: a reader found the image incomplete, unreadable or of another scope.
--
-- ARGV  1 token  2 checkpoint id of the refused image  3 lease TTL, ms
-- returns 1 if the reader holds the lease now, else 0
-- guards  No phantom. An image that was replaced meanwhile is not the one that was refused: it stays.
local id = redis.call('HGET', KEY, 'id')
if id and id ~= ARGV[2] then return 0 end
local busy = discard()
if busy then return 0 end
redis.call('HSET', KEY, 'lease', ARGV[1])
redis.call('PEXPIRE', KEY, ARGV[3])
return 1
