-- DROP: forget the entry, because L2 changed in a way that is not followed here (a deletion, a checkpoint that
-- is not cached), or because nobody knows whether it changed (a write that was cut off).
--
-- ARGV  1 own intent, '' for none  2 '1' if the own statement may still be running in L2  3 intent TTL, ms
-- returns 1
-- guards  No phantom: whoever is under way is disarmed and will not install what was there before.
--         Fresh: while the own statement may still run, an intent stands here, disarmed, until its deadline (also
--         if BEGIN was lost or evicted). A reader that warmed up in between would store the state before a write
--         that is yet to come.
settle(ARGV[1])
if ARGV[2] == '1' then
  redis.call('HSET', KEY, 'i:' .. unique('doubt'), string.format('%.0f:0', now_ms() + ARGV[3]))
end
discard()
return 1
