-- READ: the image, or the right to warm the entry up.
--
-- ARGV  1 token  2 checkpoint id asked for, '' for the newest  3 entry TTL, ms  4 lease TTL, ms
-- returns {0, lease} MISS (no lease if another than the newest was asked for), {1, fields} HIT, {2} BUSY,
--         {3} HISTORICAL: an image is there, of another checkpoint
-- guards  Fresh: no image is returned while a write is under way. Crash-safe: an intent that outlived its
--         deadline is a writer that died somewhere between BEGIN and COMMIT; nobody knows what L2 holds.
return read_entry(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
