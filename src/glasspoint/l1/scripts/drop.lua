-- DROP: forget the entry, because L2 changed in a way that is not followed here (a deletion, an
-- invalidation), or because nobody knows whether it changed (a write that was cut off).
--
-- ARGV  1 token of the own intent, '' for none
-- returns 1
-- guards  No phantom: whoever is under way is disarmed and will not install what was there before.
settle(ARGV[1])
discard()
return 1
