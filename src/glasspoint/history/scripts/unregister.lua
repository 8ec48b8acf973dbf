-- UNREGISTER: a retired thread need not be here any more.
--
-- ARGV  none
-- returns {0}
if redis.call('EXISTS', META) == 0 then unregister() end
return {0}
