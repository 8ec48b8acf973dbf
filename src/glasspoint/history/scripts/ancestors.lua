-- ANCESTORS: walk from a checkpoint's parent up, and collect what some channels were written.
--
-- ARGV  1 entry TTL, ms  2 namespace  3 checkpoint id, '' for the newest  4 '1' if it is the first step
--       itself, '' if its parent is  5 how many steps at most  then channel…
-- returns {0, where to go on or '', {} or the checkpoint and its parent, {id, {name, value…}, head, metadata,
--         {channel, kind, value, version}…}…}: of each ancestor its writes to those channels that no nearer
--         one has a value for, and the values that it has: kind 'b' and a blob's bytes, 'i' and the document,
--         'x' and '' if the document has one without a version
-- guards  What counts as a value is what upstream counts: a blob, or an inline value other than null.
local bar = barred()
if bar then return bar end
local ns, id, answer, wanted, left = ARGV[2], ARGV[3], {0, '', {}}, {}, 0
for i = 6, #ARGV do
  wanted[ARGV[i]] = true
  left = left + 1
end
local function parent_of(each)
  local head = redis.call('HGET', DOCS, 'h' .. ns .. '\0' .. each)
  return head and string.match(head, '^[^%z]*') or ''
end
if id == '' then id = newest_of(ns) end
if ARGV[4] ~= '1' then
  local parent = parent_of(id)
  answer[3] = {id, parent}
  id = id_of(parent)
end
for _ = 1, ARGV[5] do
  if id == '' or left == 0 then break end
  local m = ns .. '\0' .. id
  local head = redis.call('HGET', DOCS, 'h' .. m)
  if not head then
    id = ''
    break
  end
  local writes, step = {}, {id, {}, head, redis.call('HGET', DOCS, 'm' .. m)}
  for _, name in ipairs(names_of(m)) do
    local value = redis.call('HGET', WRITES, name)
    if wanted[string.match(value, '^[^%z]*')] then
      writes[#writes + 1] = name
      writes[#writes + 1] = value
    end
  end
  step[2] = writes
  local parts = split(head)
  for i = 4, #parts - 2, 3 do
    local channel, version, mark = parts[i], parts[i + 1], parts[i + 2]
    if wanted[channel] then
      local blob = redis.call('HGET', BLOBS, ns .. '\0' .. channel .. '\0' .. version)
      local found
      if blob and not has_prefix(blob, 'empty\0') and mark == string.lower(mark) then
        found = {channel, 'b', blob, version}
      elseif mark == 't' or mark == 'v' then
        found = {channel, 'i', redis.call('HGET', DOCS, 'd' .. m), version}
      elseif mark == 'T' or mark == 'V' then
        found = {channel, 'x', '', version}
      end
      if found then
        step[#step + 1] = found
        wanted[channel] = nil
        left = left - 1
      end
    end
  end
  answer[#answer + 1] = step
  id = id_of(parts[1] or '')
end
if left > 0 then answer[2] = id end
touch(ARGV[1])
return answer
