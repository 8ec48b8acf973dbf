-- DROP: forget the entry, because L2 changed in a way that is not followed here (a deletion, a checkpoint that
-- is not cached), or because nobody knows whether it changed (a write that was cut off).
--
-- ARGV  1 own intent, '' for none  2 '1' if the own statement may still be running in L2
-- returns 1
-- guards  No phantom: whoever is under way is disarmed and will not install what was there before.
--         Fresh: while the own statement may still run, the own intent stays, disarmed, until its deadline. A
--         reader that warmed up in between would store the state before a write that is yet to come.
if ARGV[2] ~= '1' then settle(ARGV[1]) end
discard()
return 1
