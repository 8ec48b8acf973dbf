-- STRAYS: pending writes whose checkpoint is not here.
--
-- ARGV  1 entry TTL, ms  2 '1' if a sealed thread may be read  3 where to begin, '-' at the start
--       4 how many checkpoint ids to look at
-- returns {0, where to go on or '', {m, {name, value…}}…}
local bar = barred(ARGV[2] == '1')
if bar then return bar end
local answer, from = {0, ''}, ARGV[3]
for _ = 1, ARGV[4] do
  local name = first_from(NAMES, from)
  if not name then
    from = ''
    break
  end
  local m = checkpoint_of(name)
  if not redis.call('ZSCORE', IDS, m) then
    local writes = {}
    append_writes(writes, names_of(m))
    answer[#answer + 1] = {m, writes}
  end
  from = '(' .. m .. '\1'
end
answer[2] = from
touch(ARGV[1])
return answer
