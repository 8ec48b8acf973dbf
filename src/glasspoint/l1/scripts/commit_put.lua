-- COMMIT_PUT: L2 has the checkpoint; make it the image, unless anything speaks against it.
--
-- ARGV  1 token  2 new checkpoint id  3 '1' if L2 says that it is the newest and that its values stand there
--       as sent  4 entry TTL, ms  5 n = number of known writes  6 m = number of fields with values
--       then n field names w:…, then m pairs (name, value), then pairs (c:<channel>, version) of channels
--       that have no value at this version
-- returns 1 applied, 0 discarded
-- guards  Fresh and No phantom:
--         own intent gone, late or disarmed: a reader may have warmed up the state before this write;
--         not the newest, or not greater than the image: another writer is ahead;
--         a write that L2 knows is not here: an image without it would make LangGraph run a task twice.
--         The writes are compared by name, not by number: one that never came here and one that L2 stored
--         after it was asked would add up.
local id, known, valued = ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6])
local current = redis.call('HGET', KEY, 'id')
if not settle(ARGV[1]) or ARGV[3] ~= '1' or (current and id <= current) then
  discard()
  return 0
end
for i = 7, 6 + known do
  if redis.call('HEXISTS', KEY, ARGV[i]) == 0 then
    discard()
    return 0
  end
end
for _, field in ipairs(redis.call('HKEYS', KEY)) do
  -- w:<checkpoint id>:…, and ids are 36 characters long
  if string.sub(field, 1, 2) == 'w:' and string.sub(field, 3, 38) < id then
    redis.call('HDEL', KEY, field)
  end
end
redis.call('HSET', KEY, 'id', id)
set_fields(7 + known, 6 + known + 2 * valued)
for i = 7 + known + 2 * valued, #ARGV, 2 do
  -- A value at this very version was put there by whoever stored it in L2, after L2 told us of none.
  local there = redis.call('HGET', KEY, ARGV[i])
  local value_of_version = ARGV[i + 1] .. '\0'
  if not there or string.sub(there, 1, #value_of_version) ~= value_of_version then
    redis.call('HSET', KEY, ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', KEY, ARGV[4])
return 1
