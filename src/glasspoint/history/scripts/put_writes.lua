-- PUT_WRITES: store pending writes; their checkpoint may come later, or never.
--
-- ARGV  1 entry TTL, ms  2 m  3 '1' if they replace what is there  then (<task> NUL <idx>, channel, type,
--       task path, bytes)…
-- returns {0, for how many ms the list has named threads}
-- guards  First come stays, so that a task that runs twice does not change what others have read; only the
--         special channels replace, as upstream has it.
local bar = barred()
if bar then return bar end
count_revision()
for i = 4, #ARGV, 5 do
  store_write(ARGV[2] .. '\0' .. ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[3] == '1')
end
local listed = register()
touch(ARGV[1])
return {0, listed}
