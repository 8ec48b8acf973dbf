-- CONFIRM: L2 has a write of a burst; is the intent still there that BEGIN left?
--
-- ARGV  1 intent
-- returns 1 it is, 0 it is not: the entry was discarded
-- guards  Fresh: if it is there, no reader has a lease, because BEGIN took them, and READ gave none since. If it
--         is not, a reader may hold one, or may have used it already, who looked at L2 before the write.
local own = redis.call('HGET', KEY, 'i:' .. ARGV[1])
if own and parse_intent(own) > now_ms() then return 1 end
discard()
return 0
