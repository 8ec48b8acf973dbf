-- PUT: store a checkpoint with its new values.
--
-- ARGV  1 entry TTL, ms, '0' for ever  2 namespace  3 checkpoint id  4 parent id or ''  5 the head after the
--       parent  6 run id or ''  7 metadata  8 document  then (channel, version, value)…
-- returns {0, for how many ms the list has named threads}
-- guards  All or nothing; a value that stands at its version stays, because other checkpoints show it.
local bar = barred()
if bar then return bar end
count_revision()
for i = 9, #ARGV, 3 do store_blob(ARGV[2], ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
store_checkpoint(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8])
local listed = register()
touch(ARGV[1])
return {0, listed}
