-- BEGIN: a burst of writes is on its way to L2.
--
-- ARGV  1 token  2 intent TTL, ms  3 '1' if it must be alone: while another burst is under way nothing is changed
-- returns the intent, to be quoted by CONFIRM, COMMIT, ABORT or DROP; '' if it must be alone and is not
-- guards  Fresh: from now on no reader gets the image, and no reader that looked at L2 before may warm up.
--         Of two bursts at once neither knows what the other one changes: both are disarmed.
local others = live_intents()
if ARGV[3] == '1' and #others > 0 then return '' end
local intent = unique(ARGV[1])
local armed = #others == 0 and 1 or 0
-- The first command that writes: a Redis that is full refuses it, and would refuse nothing after an HDEL.
redis.call('HSET', KEY, 'i:' .. intent, string.format('%.0f:%d', now_ms() + ARGV[2], armed))
redis.call('HDEL', KEY, 'lease')
for _, field in ipairs(others) do disarm(field) end
if redis.call('PTTL', KEY) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEY, ARGV[2])
end
return intent
