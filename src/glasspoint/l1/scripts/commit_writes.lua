-- COMMIT_WRITES: L2 has these pending writes of a checkpoint; keep them with the image, or early for it.
--
-- ARGV  1 intent  2 checkpoint id  3 entry TTL, ms  4 '1' if L2 overwrote older writes with some of these
--       5 n = number of writes that L2 ignored, because it had them already  then their n field names, then pairs
--       (w:<checkpoint>:<task>:<idx>, value) of those that it stored
-- returns 1 applied to the image, 2 kept early (LangGraph starts a checkpoint's tasks before it puts the
--         checkpoint), 3 skipped (the image is newer), 0 discarded
-- guards  Fresh: own intent gone, late or disarmed discards, as in COMMIT_PUT (after DROP it would leave a
--         phantom). First come stays, as in L2, where only the special channels overwrite; and when L2 says
--         that it did overwrite while another write is under way, the order of the two is not known here.
--         A write that L2 had already must stand in the image, or this acknowledgement would be of a lost one.
local id = ARGV[2]
if not settle(ARGV[1]) then
  discard()
  return 0
end
local current = redis.call('HGET', KEY, 'id')
if current and id < current then return 3 end
local overwrote = ARGV[4] == '1'
if overwrote and has_live_intent() then
  discard()
  return 0
end
local ignored = tonumber(ARGV[5])
for i = 6, 5 + ignored do
  if current == id and redis.call('HEXISTS', KEY, ARGV[i]) == 0 then
    discard()
    return 0
  end
end
for i = 6 + ignored, #ARGV, 2 do
  redis.call(overwrote and 'HSET' or 'HSETNX', KEY, ARGV[i], ARGV[i + 1])
end
if redis.call('PTTL', KEY) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEY, ARGV[3]) end
return current == id and 1 or 2
