-- READ: the image, or the right to warm the entry up.
--
-- ARGV  1 token  2 checkpoint id asked for, '' for the newest  3 entry TTL, ms  4 lease TTL, ms
-- returns {0, lease} MISS (no lease if another than the newest was asked for), {1, fields} HIT, {2} BUSY,
--         {3} HISTORICAL: an image is there, of another checkpoint
-- guards  Fresh: no image is returned while a write is under way. Crash-safe: an intent that outlived its
--         deadline is a writer that died somewhere between BEGIN and COMMIT; nobody knows what L2 holds.
local fields = redis.call('HGETALL', KEY)
local id, now, expired = nil, nil, false
for i = 1, #fields, 2 do
  local field = fields[i]
  if field == 'id' then
    id = fields[i + 1]
  elseif is_intent(field) then
    now = now or now_ms()
    if parse_intent(fields[i + 1]) > now then return {2} end
    expired = true
  end
end
if expired then
  discard()
  id = nil
end
if id then
  if ARGV[2] ~= '' and ARGV[2] ~= id then return {3} end
  redis.call('PEXPIRE', KEY, ARGV[3])
  return {1, fields}
end
if ARGV[2] ~= '' then return {0} end
local lease = unique(ARGV[1])
redis.call('HSET', KEY, 'lease', lease)
redis.call('PEXPIRE', KEY, ARGV[4])
return {0, lease}
