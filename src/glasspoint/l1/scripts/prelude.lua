-- What every step shares; it stands in front of each script's text.
--
-- KEYS[1]  the entry: one hash a scope. Fields: id, head, c:<channel>, w:<checkpoint>:<task>:<idx>,
--          i:<intent> ("<deadline>:<1 armed | 0 disarmed>"), lease (a reader's).
-- All deadlines are milliseconds on this server's clock, so no two machines' clocks are ever compared.
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

-- Takes the caller's own intent away, and every reader's lease. Returns whether this write may still
-- change the entry: its intent stood there, in time, and no discard has disarmed it since BEGIN.
local function settle(intent)
  local own = redis.call('HGET', KEY, 'i:' .. intent)
  redis.call('HDEL', KEY, 'i:' .. intent, 'lease')
  if not own then return false end
  local deadline, armed = parse_intent(own)
  return armed and deadline > now_ms()
end

-- Whether any write is under way, other than the caller's own, if that is named.
local function has_live_intent(own)
  local now = nil
  for _, field in ipairs(redis.call('HKEYS', KEY)) do
    if is_intent(field) and field ~= own then
      now = now or now_ms()
      if parse_intent(redis.call('HGET', KEY, field)) > now then return true end
    end
  end
  return false
end

-- Discard: nothing of the entry is believed any more. Live intents stay, so that they go on blocking
-- readers, but disarmed: who is under way may have looked at L2 before the change that made us discard.
-- Everything else goes, channel values and early writes too: a crashed writer's L2 may differ from them.
local function discard()
  local now = now_ms()
  local keep, last = {}, 0
  for _, field in ipairs(redis.call('HKEYS', KEY)) do
    if is_intent(field) then
      local deadline = parse_intent(redis.call('HGET', KEY, field))
      if deadline > now then
        keep[#keep + 1] = field
        keep[#keep + 1] = string.format('%.0f:0', deadline)
        last = math.max(last, deadline)
      end
    end
  end
  redis.call('DEL', KEY)
  if #keep > 0 then
    redis.call('HSET', KEY, unpack(keep))
    redis.call('PEXPIRE', KEY, string.format('%.0f', last - now))
  end
  return #keep > 0
end

-- Sets fields from ARGV[first .. last], alternating name and value; `unpack` has a limit, hence the chunks.
local function set_fields(first, last)
  for i = first, last, 1000 do
    redis.call('HSET', KEY, unpack(ARGV, i, math.min(i + 999, last)))
  end
end
