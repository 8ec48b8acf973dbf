-- IMPORT: store a whole checkpoint of another store: document, values and pending writes.
--
-- ARGV  1 entry TTL, ms  2 namespace  3 checkpoint id  4 parent id or ''  5 the head after the parent
--       6 run id or ''  7 metadata  8 document  9 the id that the newest checkpoint of the namespace must
--       have, '' if there must be none, NUL for any  10 n = number of values, then n times (channel, version,
--       value), then (<task> NUL <idx>, channel, type, task path, bytes)…
-- returns {0, for how many ms the list has named threads, 1 if the checkpoint was not here, else 0}; or {4}:
--         the namespace has another newest checkpoint, and nothing was stored
-- guards  What is here stays: an import may be repeated after others have gone on. Only the special writes,
--         whose idx is negative, replace, as they do when a task sends them again. The writes come together
--         with their checkpoint: a reader between the two would run finished tasks again.
--         Two processes that begin different branches of a thread at once do not both find it empty.
local bar = barred()
if bar then return bar end
if ARGV[9] ~= '\0' and newest_of(ARGV[2]) ~= ARGV[9] then return {4} end
count_revision()
local m, writes = ARGV[2] .. '\0' .. ARGV[3], 11 + 3 * ARGV[10]
for i = 11, writes - 1, 3 do store_blob(ARGV[2], ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
for i = writes, #ARGV, 5 do
  local special = string.find(ARGV[i], '\0-', 1, true) ~= nil
  store_write(m .. '\0' .. ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], special)
end
local new = redis.call('HEXISTS', DOCS, 'h' .. m) == 0
if new then
  store_checkpoint(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8])
end
local listed = register()
touch(ARGV[1])
return {0, listed, new and 1 or 0}
