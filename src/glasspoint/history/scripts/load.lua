-- LOAD: several checkpoints, as many as fit into one answer.
--
-- ARGV  1 entry TTL, ms  2 '1' if a sealed thread may be read  3 how many bytes are enough  then m…
-- returns {0, n = how many of them are answered, record…}; one that is not there is left out, but counts
-- guards  Redis is never blocked for long: the caller asks again for the rest.
local bar = barred(ARGV[2] == '1')
if bar then return bar end
local answer, size = {0, 0}, 0
for i = 4, #ARGV do
  local found, bytes = record(ARGV[i])
  answer[2], size = answer[2] + 1, size + bytes
  if found then answer[#answer + 1] = found end
  if size > tonumber(ARGV[3]) then break end
end
touch(ARGV[1])
return answer
