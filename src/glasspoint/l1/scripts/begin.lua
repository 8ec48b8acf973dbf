-- BEGIN: a write is on its way to L2.
--
-- ARGV  1 token  2 intent TTL, ms  3 '1' if it must be alone: while another write is under way nothing is changed
-- returns the intent, to be quoted by COMMIT, ABORT or DROP; '' if it must be alone and is not
-- guards  Fresh: from now on no reader gets the image, and no reader that looked at L2 before may warm up.
if ARGV[3] == '1' and has_live_intent() then return '' end
local intent = unique(ARGV[1])
-- The first command that writes: a Redis that is full refuses it, and would refuse nothing after an HDEL.
redis.call('HSET', KEY, 'i:' .. intent, string.format('%.0f:1', now_ms() + ARGV[2]))
redis.call('HDEL', KEY, 'lease')
if redis.call('PTTL', KEY) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEY, ARGV[2])
end
return intent
