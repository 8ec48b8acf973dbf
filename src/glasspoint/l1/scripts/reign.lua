-- What surrounds each step in a Redis Cluster; `step` is the step, and REIGN the reign of this master.
--
-- An entry names the reign in which it was made, in its field `reign`. An entry of another reign is deleted whole
-- before the step sees it: it came with its slot from another master, or from a replica that was promoted, or its
-- slot was away in the meantime. A change of it may be lost there. For the protocol, that is an eviction.
--
-- The name is in the entry, not in its key. With it in the key, an entry that its slot takes away and brings back
-- would be believed again, although writes passed it by.
--
-- A key that is not there is not deleted: a Redis that is full refuses a script's first write, and none after it.
if redis.call('HGET', KEY, 'reign') ~= REIGN and redis.call('PTTL', KEY) ~= -2 then redis.call('DEL', KEY) end
local result = step()
if redis.call('HEXISTS', KEY, 'reign') == 0 and redis.call('PTTL', KEY) ~= -2 then
  redis.call('HSET', KEY, 'reign', REIGN)
end
return result
