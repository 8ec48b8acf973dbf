-- REMOVE: take checkpoints out of a history, with their writes and the values that only they refer to.
--
-- ARGV  1 entry TTL, ms  2 revision that the decision was made on, '' if it holds for any  then for each
--       namespace: its name, '1' if nothing of it is to stay, n, n checkpoint ids to remove, k, k ids whose
--       parent is not to be named any more
-- returns {0}, {4} if the thread is of another revision
-- guards  Values are looked up among the checkpoints that are here now, not among those that somebody saw:
--         a put that came meanwhile keeps the values it refers to.
local bar = barred()
if bar then return bar end
if ARGV[2] ~= '' and redis.call('HGET', META, 'revision') ~= ARGV[2] then return {4} end
touch(ARGV[1]) -- first, because after it nothing is refused when Redis is full, the time to prune
count_revision()
redis.call('HINCRBY', META, 'removals', 1)

local function remove_writes(names)
  for _, name in ipairs(names) do
    redis.call('ZREM', NAMES, name)
    redis.call('HDEL', WRITES, name)
  end
end

local function remove_blob(field)
  if redis.call('HDEL', BLOBS, field) == 1 then redis.call('HINCRBY', META, 'blobs', -1) end
end

-- Calls `see` with the field in `blobs` of every channel of a checkpoint.
local function each_blob(m, see)
  local head = redis.call('HGET', DOCS, 'h' .. m)
  if not head then return end
  local parts, ns = split(head), namespace_of(m)
  for i = 4, #parts - 2, 3 do see(ns .. '\0' .. parts[i] .. '\0' .. parts[i + 1]) end
end

local function remove_namespace(ns)
  remove_writes(redis.call('ZRANGEBYLEX', NAMES, '[' .. ns .. '\0', '(' .. ns .. '\1'))
  for _, field in ipairs(redis.call('HKEYS', BLOBS)) do
    if has_prefix(field, ns .. '\0') then remove_blob(field) end
  end
end

local i = 3
while i <= #ARGV do
  local ns, whole, doomed = ARGV[i], ARGV[i + 1] == '1', tonumber(ARGV[i + 2])
  local freed = {}
  for j = i + 3, i + 2 + doomed do
    local m = ns .. '\0' .. ARGV[j]
    each_blob(m, function(field) freed[field] = true end)
    remove_writes(names_of(m))
    redis.call('HDEL', DOCS, 'h' .. m, 'm' .. m, 'd' .. m)
    redis.call('ZREM', IDS, m)
  end
  i = i + 3 + doomed
  for j = i + 1, i + ARGV[i] do
    local field = 'h' .. ns .. '\0' .. ARGV[j]
    local head = redis.call('HGET', DOCS, field)
    if head then redis.call('HSET', DOCS, field, '\0' .. string.gsub(head, '^[^%z]*%z', '', 1)) end
  end
  i = i + 1 + ARGV[i]
  local rest = redis.call('ZRANGEBYLEX', IDS, '[' .. ns .. '\0', '(' .. ns .. '\1')
  for _, m in ipairs(rest) do
    each_blob(m, function(field) freed[field] = nil end)
  end
  for field in pairs(freed) do remove_blob(field) end
  if whole and #rest == 0 then remove_namespace(ns) end
end
if redis.call('ZCARD', IDS) + redis.call('ZCARD', NAMES) == 0 then
  redis.call('UNLINK', IDS, DOCS, BLOBS, NAMES, WRITES, META)
  unregister()
else
  count_all()
end
return {0}
