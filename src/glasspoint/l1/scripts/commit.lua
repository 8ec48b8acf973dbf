-- COMMIT: a burst is over, and L2 has all of it; make the image what it is afterwards, unless anything speaks
-- against it.
--
-- ARGV  1 intent  2 id of its newest checkpoint, '' if it has none  3 '1' if it brings every channel that this
--       names  4 entry TTL, ms  5 token of a READ that follows, '' for none  6 checkpoint id that it asks for
--       7 lease TTL, ms  8 n = number of writes that must stand here  9 m = number of its fields
--       then n field names w:…, then m pairs (name, value): head, c:…, then pairs (w:…, value)
-- returns {1} applied, {0} discarded, {2} the image is what it was: no write of the burst belongs to it; and
--         what READ answers, if it follows
-- guards  Fresh and No phantom:
--         own intent gone, late or disarmed: a reader may have warmed up the state before a write, or another
--         writer is ahead;
--         not greater than the image: another writer is ahead;
--         no image is there to take the other channels from: it would be incomplete;
--         a write that L2 had before the burst is not here: an image without it would make LangGraph run a task
--         twice.
local id, needed, fields = ARGV[2], tonumber(ARGV[8]), tonumber(ARGV[9])
local current = redis.call('HGET', KEY, 'id')
local may_follow = settle(ARGV[1])
if id ~= '' then
  may_follow = may_follow and not (current and id <= current) and (current or ARGV[3] == '1')
end
local function answer(done)
  if ARGV[5] == '' then return {done} end
  return {done, read_entry(ARGV[5], ARGV[6], ARGV[4], ARGV[7])}
end
local newest = id ~= '' and id or current or ''
-- w:<checkpoint id>:…, and ids are 36 characters long
local function belongs(name) return string.sub(name, 3, 38) >= newest end
for i = 10, 9 + needed do
  may_follow = may_follow and (not belongs(ARGV[i]) or redis.call('HEXISTS', KEY, ARGV[i]) == 1)
end
if not may_follow then
  discard()
  return answer(0)
end
local applied = 2
if id ~= '' then
  for _, field in ipairs(redis.call('HKEYS', KEY)) do
    if string.sub(field, 1, 2) == 'w:' and not belongs(field) then redis.call('HDEL', KEY, field) end
  end
  redis.call('HSET', KEY, 'id', id)
  set_fields(ARGV, 10 + needed, 9 + needed + 2 * fields)
  applied = 1
end
for i = 10 + needed + 2 * fields, #ARGV, 2 do
  if belongs(ARGV[i]) then
    redis.call('HSET', KEY, ARGV[i], ARGV[i + 1])
    applied = 1
  end
end
if applied == 1 then redis.call('PEXPIRE', KEY, ARGV[4]) end
return answer(applied)
