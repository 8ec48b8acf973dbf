-- CLEAR: a step met a key of another type (WRONGTYPE): somebody wrote over the entry. Take that key away.
--
-- returns 1 taken away, 0 nothing to do: the key is gone, or an entry again
-- guards  What an eviction guards, because this is one. The entry was lost when it was written over, with every
--         intent and lease in it: so the COMMIT of a writer that was under way discards, the WARM_UP of a reader
--         that was under way is refused, and the next reader asks L2. The look and the deletion are one atomic
--         step: an entry that another process has begun here meanwhile stays.
local answer = redis.pcall('HGET', KEY, 'id')
if type(answer) == 'table' and answer.err and string.find(answer.err, 'WRONGTYPE', 1, true) then
  return redis.call('DEL', KEY)
end
return 0
