-- REFUSE: a reader found the image incomplete, unreadable or of another scope.
--
-- ARGV  1 token  2 checkpoint id of the refused image  3 lease TTL, ms
-- returns the lease, or '' if the reader gets none: a write is under way, or another image is there
-- guards  No phantom. An image that was replaced meanwhile is not the one that was refused: it stays.
local id = redis.call('HGET', KEY, 'id')
if id and id ~= ARGV[2] then return '' end
local busy = discard()
if busy then return '' end
local lease = unique(ARGV[1])
redis.call('HSET', KEY, 'lease', lease)
redis.call('PEXPIRE', KEY, ARGV[3])
return lease
