-- WARM_UP: store what a reader found in L2 after a miss.
--
-- ARGV  1 lease  2 entry TTL, ms  then pairs (field, value): id, head, c:…, w:…
-- returns 1 stored, 0 refused
-- guards  Fresh: BEGIN takes the lease away, so the lease still being here says that no write has begun
--         since this reader looked at L2. Eviction takes the lease too.
if redis.call('HGET', KEY, 'lease') ~= ARGV[1] then return 0 end
for _, field in ipairs(redis.call('HKEYS', KEY)) do
  if is_intent(field) then return 0 end
end
redis.call('DEL', KEY)
set_fields(ARGV, 3, #ARGV)
redis.call('PEXPIRE', KEY, ARGV[2])
return 1
