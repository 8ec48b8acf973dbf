-- OUTLINE: what has to be known of checkpoints to decide which of them may go; a page of them.
--
-- ARGV  1 entry TTL, ms  2 where to begin, '-' at the start  3 how many at most
-- returns {0, revision, where to go on or '', {m, head, metadata, one '1' or '0' for each channel of the
--         head: is there a blob, '1' if the parent has TASKS writes}…}
local bar = barred()
if bar then return bar end
local answer = {0, redis.call('HGET', META, 'revision') or '', ''}
local found = redis.call('ZRANGEBYLEX', IDS, ARGV[2], '+', 'LIMIT', 0, ARGV[3])
for _, m in ipairs(found) do
  local head = redis.call('HGET', DOCS, 'h' .. m)
  local parts, ns, blobs, sends = split(head), namespace_of(m), {}, '0'
  for i = 4, #parts - 2, 3 do
    blobs[#blobs + 1] = redis.call('HEXISTS', BLOBS, ns .. '\0' .. parts[i] .. '\0' .. parts[i + 1])
  end
  if parts[2] == '1' and parts[1] ~= '' then
    for _, name in ipairs(names_of(ns .. '\0' .. id_of(parts[1]))) do
      if has_prefix(redis.call('HGET', WRITES, name), '__pregel_tasks\0') then sends = '1' end
    end
  end
  answer[#answer + 1] = {m, head, redis.call('HGET', DOCS, 'm' .. m), table.concat(blobs), sends}
end
if #found == tonumber(ARGV[3]) then answer[3] = '(' .. found[#found] end
touch(ARGV[1])
return answer
