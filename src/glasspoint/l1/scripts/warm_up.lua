-- WARM_UP: store what a reader found in L2 after a miss.
--
-- ARGV  1 lease  2 entry TTL, ms  then pairs (field, value): id, head, c:…, w:…
-- returns 1 stored, 0 overtaken: a write came between, or Redis has lost the entry, 2 not the first: another
--         reader has stored the same image, or has a lease that was given later
-- guards  Fresh: BEGIN takes the lease away, so the lease still being here says that no write has begun
--         since this reader looked at L2. Eviction takes the lease too.
local lease = redis.call('HGET', KEY, 'lease')
local fields = redis.call('HKEYS', KEY)
for _, field in ipairs(fields) do
  if is_intent(field) then return 0 end
end
if lease ~= ARGV[1] then
  -- An image of the same checkpoint with as many fields is the same one: a write would have added a field.
  local is_same = redis.call('HGET', KEY, 'id') == ARGV[4] and #fields == (#ARGV - 2) / 2
  return (lease or is_same) and 2 or 0
end
redis.call('DEL', KEY)
set_fields(ARGV, 3, #ARGV)
redis.call('PEXPIRE', KEY, ARGV[2])
return 1
