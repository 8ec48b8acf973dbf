-- COMMIT_PUT: L2 has the checkpoint; make it the image, unless anything speaks against it.
--
-- ARGV  1 intent  2 new checkpoint id  3 '1' if L2 says that it is the newest and that its values stand there
--       as sent  4 '1' if it brings every channel that it names  5 entry TTL, ms
--       6 '1' if the caller will ask again  7 n = number of known writes  8 m = number of fields with values
--       then n field names w:…, then m pairs (name, value), then pairs (c:<channel>, version NUL signature)
--       of channels that have no value at this version
-- returns 1 applied, 0 discarded, 4 ask again: nothing was changed; a write that L2 knew of is not here, but
--         writes are under way, and this one is likely among them, a moment from its own COMMIT
-- guards  Fresh and No phantom:
--         own intent gone, late or disarmed: a reader may have warmed up the state before this write;
--         not the newest, or not greater than the image: another writer is ahead;
--         no image is there to take the other channels from: it would be incomplete;
--         a write that L2 knows is not here: an image without it would make LangGraph run a task twice.
--         The writes are compared by name, not by number: one that never came here and one that L2 stored
--         after it was asked would add up.
local id, known, valued = ARGV[2], tonumber(ARGV[7]), tonumber(ARGV[8])
local missing = false
for i = 9, 8 + known do
  missing = missing or redis.call('HEXISTS', KEY, ARGV[i]) == 0
end
if missing and ARGV[6] == '1' and has_live_intent('i:' .. ARGV[1]) then return 4 end
local current = redis.call('HGET', KEY, 'id')
local may_install = settle(ARGV[1]) and ARGV[3] == '1' and not missing
if not may_install or (current and id <= current) or (not current and ARGV[4] ~= '1') then
  discard()
  return 0
end
local others = false
for _, field in ipairs(redis.call('HKEYS', KEY)) do
  -- w:<checkpoint id>:…, and ids are 36 characters long
  if string.sub(field, 1, 2) == 'w:' and string.sub(field, 3, 38) < id then
    redis.call('HDEL', KEY, field)
  end
  others = others or is_intent(field)
end
redis.call('HSET', KEY, 'id', id)
set_fields(ARGV, 9 + known, 8 + known + 2 * valued)
for i = 9 + known + 2 * valued, #ARGV, 2 do
  -- A value at this very version was put there by whoever stored it in L2, after L2 told us of none.
  local there = redis.call('HGET', KEY, ARGV[i])
  local version = string.sub(ARGV[i + 1], 1, (string.find(ARGV[i + 1], '\0', 1, true)))
  if not there or string.sub(there, 1, #version) ~= version then
    redis.call('HSET', KEY, ARGV[i], ARGV[i + 1])
  end
end
-- Never sooner than another write's intent: it must not be forgotten before its deadline.
if not others or redis.call('PTTL', KEY) < tonumber(ARGV[5]) then redis.call('PEXPIRE', KEY, ARGV[5]) end
return 1
