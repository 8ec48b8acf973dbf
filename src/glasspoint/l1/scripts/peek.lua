-- PEEK: the image, for a process that cannot ask L2. Changes nothing.
--
-- returns {0} nothing is here, {1, fields} an image, {2} in doubt: a write is under way, or one was, and nobody
--         has seen its end
-- guards  Fresh: no image is returned that a write may have left behind. Whoever goes on from an image does so
--         without L2, and a later look at L2 tells whether it was the newest (see `draining`).
local fields = redis.call('HGETALL', KEY)
local found = false
for i = 1, #fields, 2 do
  if is_intent(fields[i]) then return {2} end
  found = found or fields[i] == 'id'
end
if found then return {1, fields} end
return {0}
