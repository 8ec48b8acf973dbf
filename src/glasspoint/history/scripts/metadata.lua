-- METADATA: the metadata of some checkpoints, for a listing to choose from.
--
-- ARGV  1 entry TTL, ms  then m…
-- returns {0, head, metadata, head, metadata, …}, nil and nil for one that is not there
local bar = barred()
if bar then return bar end
local answer = {0}
for i = 2, #ARGV do
  local docs = redis.call('HMGET', DOCS, 'h' .. ARGV[i], 'm' .. ARGV[i])
  answer[#answer + 1] = docs[1]
  answer[#answer + 1] = docs[2]
end
touch(ARGV[1])
return answer
