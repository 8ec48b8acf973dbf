-- What every step shares; it stands in front of each script's text.
--
-- KEYS[1]  the entry: one hash a scope. Fields: id, head, c:<channel>, w:<checkpoint>:<task>:<idx>,
--          i:<intent> ("<deadline>:<1 armed | 0 disarmed>"), lease (a reader's).
-- All deadlines are milliseconds on this server's clock, so no two machines' clocks are ever compared.
--
-- No script takes away what others rely on before a command that can fail. A script is not rolled back: when a
-- command fails, what the ones before it did stays. The first command of each asks for a field or sets one, so
-- that a key of another type (WRONGTYPE), or one that this user may not touch, changes nothing. A Redis that is
-- full refuses a script's first write, and none after it. `unpack` takes 1000 values at most.
local KEY = KEYS[1]

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The name under which an intent or a lease stands here. The client's token alone is not enough: a client
-- that gets no answer sends the same step again, and the first one may still be on its way. Arriving late, it
-- makes an intent or a lease of another name, which nobody will ever quote.
local function unique(token)
  local t = redis.call('TIME')
  return token .. '.' .. t[1] .. '.' .. t[2]
end

-- The deadline of an intent, and whether it may still install an image.
local function parse_intent(value)
  local deadline, armed = string.match(value, '^(%d+):([01])$')
  return tonumber(deadline) or 0, armed == '1'
end

local function is_intent(field)
  return string.sub(field, 1, 2) == 'i:'
end

-- Takes the caller's own intent away, and every reader's lease. Returns whether this burst may still
-- change the entry: its intent stood there, in time, and no discard has disarmed it since BEGIN.
local function settle(intent)
  local own = redis.call('HGET', KEY, 'i:' .. intent)
  redis.call('HDEL', KEY, 'i:' .. intent, 'lease')
  if not own then return false end
  local deadline, armed = parse_intent(own)
  return armed and deadline > now_ms()
end

-- The intents of the bursts that are under way.
local function live_intents()
  local found, now = {}, nil
  for _, field in ipairs(redis.call('HKEYS', KEY)) do
    if is_intent(field) then
      now = now or now_ms()
      if parse_intent(redis.call('HGET', KEY, field)) > now then found[#found + 1] = field end
    end
  end
  return found
end

-- A disarmed intent goes on sending readers to L2, and installs nothing.
local function disarm(field)
  local deadline = parse_intent(redis.call('HGET', KEY, field))
  redis.call('HSET', KEY, field, string.format('%.0f:0', deadline))
end

-- Sets fields from values[first .. last], alternating name and value; `unpack` has a limit, hence the chunks.
local function set_fields(values, first, last)
  for i = first, last, 1000 do
    redis.call('HSET', KEY, unpack(values, i, math.min(i + 999, last)))
  end
end

local function remove_fields(names)
  for i = 1, #names, 1000 do
    redis.call('HDEL', KEY, unpack(names, i, math.min(i + 999, #names)))
  end
end

-- Discard: nothing of the entry is believed any more. Live intents stay, so that they go on blocking
-- readers, but disarmed: who is under way may have looked at L2 before the change that made us discard.
-- Everything else goes, channel values and pending writes too: a crashed writer's L2 may differ from them.
--
-- The entry is never gone while intents are to stay: they would be lost if the next command failed. What is to
-- go goes first, one field at least, because a Redis that is full refuses an HSET only before the first write.
-- Returns whether a live intent is left.
local function discard()
  local now = now_ms()
  local gone, disarmed, last = {'lease'}, {}, 0
  for _, field in ipairs(redis.call('HKEYS', KEY)) do
    local deadline, armed = 0, false
    if is_intent(field) then
      deadline, armed = parse_intent(redis.call('HGET', KEY, field))
    end
    if deadline <= now then
      gone[#gone + 1] = field
    elseif armed then
      disarmed[#disarmed + 1] = field
      disarmed[#disarmed + 1] = string.format('%.0f:0', deadline)
    end
    last = math.max(last, deadline)
  end
  if last <= now then
    redis.call('DEL', KEY)
    return false
  end
  remove_fields(gone)
  set_fields(disarmed, 1, #disarmed)
  redis.call('PEXPIRE', KEY, string.format('%.0f', last - now))
  return true
end

-- What READ does: see there. It is also what a burst's own reader asks for, together with COMMIT.
local function read_entry(token, wanted, ttl, lease_ttl)
  local fields = redis.call('HGETALL', KEY)
  local id, lease, now, expired = nil, nil, nil, false
  for i = 1, #fields, 2 do
    local field = fields[i]
    if field == 'id' then
      id = fields[i + 1]
    elseif field == 'lease' then
      lease = fields[i + 1]
    elseif is_intent(field) then
      now = now or now_ms()
      if parse_intent(fields[i + 1]) > now then return {2} end
      expired = true
    end
  end
  if expired then
    discard()
    id, lease = nil, nil
  end
  if id then
    if wanted ~= '' and wanted ~= id then return {3} end
    redis.call('PEXPIRE', KEY, ttl)
    return {1, fields}
  end
  if wanted ~= '' then return {0} end
  -- Readers share a lease. If a reader took it from the one before, a reader in a loop would never store.
  if not lease then
    lease = unique(token)
    redis.call('HSET', KEY, 'lease', lease)
    redis.call('PEXPIRE', KEY, lease_ttl)
  end
  return {0, lease}
end
