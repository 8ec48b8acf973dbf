-- NAMESPACES: where this thread has checkpoints.
--
-- ARGV  1 entry TTL, ms  2 '1' if a sealed thread may be read
-- returns {0, how often checkpoints were removed, namespace…}
local bar = barred(ARGV[2] == '1')
if bar then return bar end
local answer, from = {0, redis.call('HGET', META, 'removals') or ''}, '-'
while true do
  local m = first_from(IDS, from)
  if not m then break end
  local ns = namespace_of(m)
  answer[#answer + 1] = ns
  from = '(' .. ns .. '\1'
end
touch(ARGV[1])
return answer
