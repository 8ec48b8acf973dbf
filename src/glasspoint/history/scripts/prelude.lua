-- What every step shares; it stands in front of each script's text.
--
-- A thread has seven keys, whatever namespaces it holds, and every step gets all of them: so a step sees all
-- of the thread, and all of it expires in one instant. `m` below is <namespace> NUL <checkpoint id>; NUL
-- separates because none of the texts can hold one, and sorts before everything else.
--
-- KEYS  1 ids     ZSET, all scores 0: m                            newest of a namespace = last of its range
--       2 docs    HASH: h<m> -> head, m<m> -> metadata JSON, d<m> -> document JSON
--       3 blobs   HASH: <namespace> NUL <channel> NUL <version> -> <type> NUL <bytes>
--       4 names   ZSET, all scores 0: <m> NUL <task> NUL <idx>     of the pending writes
--       5 writes  HASH: name -> <channel> NUL <type> NUL <task path> NUL <bytes>
--       6 meta    HASH: blobs (how many), revision, removals, r:<run id>; there while anything is there;
--                 of a target also: ids, names (how many)
--       7 seal    STRING, expires by itself: s<token> a drain is under way, m<token> NUL <id> moved; the id that
--                 the thread has now, if that is another one
--
-- One more key, the last one, is the list of threads: one for all threads; in a Redis Cluster, one for each slot,
-- of a target one for each range of slots (`history/keys.py`). A copy that is not adopted yet is in no list.
--       index     ZSET: thread id, percent-encoded -> when it expires, ms; '!complete' -> 0, if no thread that is
--                 here can be missing; -1 while threads that an older release has stored are looked for
--       threads   the list of a target, which has also: '' -> minus when it was made, ms; '!since' -> minus when
--                 it last came to name a thread, having named none; '!used' -> minus when something was last
--                 stored
-- The list of a target names the threads that must be here: one that is in it, and has nothing, was evicted.
-- When it was made tells it from another one, made after it was evicted itself. Since when it names threads tells
-- a writer whether every process has had the time to hear of that.
--
-- The fields may be signed. Signatures are made and verified outside. Here they are a part of the metadata,
-- the document, the bytes and the value; in a parent id and a task path, they follow after \255, which is in
-- no text.
--
-- The head is a list of texts, each ended by NUL: parent id, '1' if the format is older than 4, run id; then
-- for each channel: name, version, mark. The mark says what the document holds of it: '' nothing, 'n' null,
-- 't' true, 'v' another value; the capital letter if the channel has no version.
--
-- returns  a list that begins with 0 done, 1 sealed, 2 moved, 3 damaged, 4 the thread has changed, 5 exists
-- guards   All or nothing. Redis undoes nothing of a script that fails halfway. So where something is stored,
--          the first command that writes is one that Redis refuses when it is out of memory, its disk full or
--          itself a replica; after that one it refuses none of the rest.
local IDS, DOCS, BLOBS, NAMES, WRITES, META, SEAL = unpack(KEYS, 1, 7)
local THREADS = string.match(KEYS[#KEYS], ':threads$') and KEYS[#KEYS]
local LIST = THREADS or string.match(KEYS[#KEYS], ':index$') and KEYS[#KEYS]

-- The braces hold the thread; in a cluster those of a target hold the tag of the list, and the thread follows.
local function thread_in(key)
  return string.match(key, '}:([^:]*):%a+$') or string.match(key, '{(.*)}')
end

local THREAD = thread_in(IDS)

-- The same time during the whole step.
local time
local function now()
  if not time then
    local t = redis.call('TIME')
    time = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return time
end

-- Whether this thread, which has nothing here, must have something.
local function evicted()
  local at = THREADS and redis.call('ZSCORE', THREADS, THREAD)
  return at and (at == 'inf' or tonumber(at) > now())
end

-- Takes a thread that leaves on purpose out of its list.
local function unregister()
  if LIST then redis.call('ZREM', LIST, THREAD) end
end

-- Why nothing may be done with this thread, or nil. Damaged: keys were evicted one by one. The counts tell,
-- because each key's count is known from another key; a state with silent holes must never be read.
local function barred(sealed_too)
  local seal = redis.call('GET', SEAL)
  if seal and string.sub(seal, 1, 1) == 'm' then return {2, string.match(seal, '%z(.*)$') or ''} end
  if seal and not sealed_too then return {1} end
  local ids, names = redis.call('ZCARD', IDS), redis.call('ZCARD', NAMES)
  local counted = redis.call('HMGET', META, 'blobs', 'ids', 'names')
  local blobs = counted[1]
  if redis.call('HLEN', DOCS) ~= 3 * ids or redis.call('HLEN', WRITES) ~= names
    or redis.call('HLEN', BLOBS) ~= tonumber(blobs or 0) or (ids + names > 0) ~= (blobs ~= false) then
    return {3}
  end
  if THREADS and blobs and (tonumber(counted[2]) ~= ids or tonumber(counted[3]) ~= names) then return {3} end
  if not blobs and evicted() then return {3} end
end

-- Lets the whole thread live for so many milliseconds from now on; '0' for ever, '' for as long as before. One
-- absolute time for all keys: relative ones could fall on two sides of a millisecond, and a thread would expire
-- in part. `pcall`, because a server that refuses to write (a full disk) may still answer a read. The list comes
-- last: after the others, a server without memory does not refuse it. While the thread is sealed, never less than
-- its seal has to live: what expired in the middle of an export would be lost for good.
local function touch(ttl)
  if ttl == '' then return end
  if ttl ~= '0' then ttl = math.max(ttl, redis.call('PTTL', SEAL)) end
  local at = string.format('%.0f', now() + ttl)
  for i = 1, 6 do
    if ttl == '0' then redis.pcall('PERSIST', KEYS[i]) else redis.pcall('PEXPIREAT', KEYS[i], at) end
  end
  if LIST and redis.call('EXISTS', META) == 1 then
    redis.pcall('ZADD', LIST, ttl == '0' and '+inf' or at, THREAD)
  end
end

-- The last write of every step that stores or removes a part of a thread: how much must be here.
local function count_all()
  if not THREADS then return end
  redis.call('HSET', META, 'ids', redis.call('ZCARD', IDS), 'names', redis.call('ZCARD', NAMES))
end

-- Prepares the list for this thread, which has something now: those that have expired leave it. `touch`, which
-- follows, puts this thread into it. Returns for how many ms the list of a target has named threads; else -1.
local function register()
  if not LIST then return -1 end
  local at = now()
  redis.call('ZREMRANGEBYSCORE', LIST, '(0', string.format('%.0f', at - 1000))
  if not THREADS then return -1 end
  count_all()
  local minus_now, since = string.format('-%.0f', at), redis.call('ZSCORE', THREADS, '!since')
  if not since or redis.call('ZCOUNT', THREADS, '(0', '+inf') == 0 then
    since = minus_now
    redis.call('ZADD', THREADS, since, '!since')
  end
  redis.call('ZADD', THREADS, minus_now, '!used')
  return at + since
end

-- The first write of every step that stores something.
local function count_revision()
  redis.call('HINCRBY', META, 'revision', 1)
  redis.call('HSETNX', META, 'blobs', 0)
end

-- Of a parent id as it is stored, the id.
local function id_of(parent)
  return string.match(parent, '^[^\255]*')
end

local function split(text)
  local parts = {}
  for part in string.gmatch(text, '([^%z]*)%z') do parts[#parts + 1] = part end
  return parts
end

-- Of m or the name of a write: its namespace, and m itself.
local function namespace_of(name)
  return string.sub(name, 1, string.find(name, '\0', 1, true) - 1)
end

local function checkpoint_of(name)
  local first = string.find(name, '\0', 1, true)
  local second = string.find(name, '\0', first + 1, true)
  return string.sub(name, 1, second - 1)
end

local function names_of(m)
  return redis.call('ZRANGEBYLEX', NAMES, '[' .. m .. '\0', '(' .. m .. '\1')
end

-- The first member of a ZSET from here on, nil at the end; the next one of another group: ( group \1.
local function first_from(key, from)
  return redis.call('ZRANGEBYLEX', key, from, '+', 'LIMIT', 0, 1)[1]
end

-- The newest checkpoint id of a namespace, '' if it has none.
local function newest_of(ns)
  local range = redis.call('ZREVRANGEBYLEX', IDS, '(' .. ns .. '\1', '[' .. ns .. '\0', 'LIMIT', 0, 1)
  return range[1] and string.sub(range[1], #ns + 2) or ''
end

local function has_prefix(text, prefix)
  return string.sub(text, 1, #prefix) == prefix
end

-- Stores a checkpoint; at one that is there, its parent stays, as upstream has it.
local function store_checkpoint(ns, id, parent, rest_of_head, run, metadata, document)
  local m = ns .. '\0' .. id
  local old = redis.call('HGET', DOCS, 'h' .. m)
  if old then parent = string.match(old, '^[^%z]*') end
  redis.call('HSET', DOCS, 'h' .. m, parent .. '\0' .. rest_of_head, 'm' .. m, metadata, 'd' .. m, document)
  redis.call('ZADD', IDS, 0, m)
  if run ~= '' then redis.call('HSET', META, 'r:' .. run, 1) end
end

-- Stores a value; one that is there at this version stays.
local function store_blob(ns, channel, version, value)
  if redis.call('HSETNX', BLOBS, ns .. '\0' .. channel .. '\0' .. version, value) == 1 then
    redis.call('HINCRBY', META, 'blobs', 1)
  end
end

-- Stores a pending write; one that is there stays, unless it is to be replaced: then its path stays.
local function store_write(name, channel, type, path, data, replaces)
  local old = redis.call('HGET', WRITES, name)
  if old and not replaces then return end
  if old then path = string.match(old, '^[^%z]*%z[^%z]*%z([^%z]*)%z') or path end
  redis.call('HSET', WRITES, name, channel .. '\0' .. type .. '\0' .. path .. '\0' .. data)
  redis.call('ZADD', NAMES, 0, name)
end

local function append_writes(list, names)
  for _, name in ipairs(names) do
    list[#list + 1] = name
    list[#list + 1] = redis.call('HGET', WRITES, name)
  end
end

-- The TASKS writes of a checkpoint id, in all namespaces: upstream completes a child of an old format so.
local function sends_of(id)
  local found, from = {}, '-'
  while true do
    local name = first_from(NAMES, from)
    if not name then return found end
    local ns = namespace_of(name)
    for _, each in ipairs(names_of(ns .. '\0' .. id)) do
      local value = redis.call('HGET', WRITES, each)
      if has_prefix(value, '__pregel_tasks\0') then
        found[#found + 1] = each
        found[#found + 1] = value
      end
    end
    from = '(' .. ns .. '\1'
  end
end

-- All of a checkpoint: {m, head, metadata, document, values, writes, sends}, nil if it is not there; and
-- about how many bytes that is.
local function record(m)
  local docs = redis.call('HMGET', DOCS, 'h' .. m, 'm' .. m, 'd' .. m)
  if not docs[1] then return nil, 0 end
  local head, ns, values, size = split(docs[1]), namespace_of(m), {}, #docs[2] + #docs[3]
  for i = 4, #head - 2, 3 do
    local value = redis.call('HGET', BLOBS, ns .. '\0' .. head[i] .. '\0' .. head[i + 1])
    if value then
      values[#values + 1] = head[i]
      values[#values + 1] = head[i + 1]
      values[#values + 1] = value
      size = size + #value
    end
  end
  local writes = {}
  append_writes(writes, names_of(m))
  for i = 2, #writes, 2 do size = size + #writes[i] end
  local sends = {}
  if head[2] == '1' and head[1] ~= '' then sends = sends_of(id_of(head[1])) end
  return {m, docs[1], docs[2], docs[3], values, writes, sends}, size
end
