-- METADATA: the metadata of some checkpoints, for a listing to choose from.
--
-- ARGV  1 entry TTL, ms  then m…
-- returns {0, metadata…}, '' for one that is not there
local bar = barred()
if bar then return bar end
local answer = {0}
for i = 2, #ARGV do answer[i] = redis.call('HGET', DOCS, 'm' .. ARGV[i]) or '' end
touch(ARGV[1])
return answer
