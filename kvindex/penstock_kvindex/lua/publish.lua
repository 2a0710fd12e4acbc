-- publish.lua: apply one numbered batch to the table and append it to the stream. Keys: see layout.lua; writes t:*, heads, meta, kv.
-- ARGV: slot, epoch, sequence, added (packed keys), removed (packed keys), stream entries to keep
-- Gives 1 (applied, now or before); 0: unknown slot or epoch, a gap, or a republish that did not end.
local slot, epoch, sequence, added, removed = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local last, partial = head_of(slot, epoch)
if not last or partial or sequence > tonumber(last) + 1 then return 0 end
if sequence <= tonumber(last) then return 1 end
local divisor, number, change = bucket_divisor(), tonumber(slot), 0
for i = 1, #removed, 8 do
  local key = string.sub(removed, i, i + 7)
  change = change - remove_holder(bucket_key(key, divisor), key, number)
end
for i = 1, #added, 8 do
  local key = string.sub(added, i, i + 7)
  change = change + add_holder(bucket_key(key, divisor), key, number)
end
if change ~= 0 then redis.call('HINCRBY', KEYS[1], 'chunks', change) end
set_head(slot, epoch, ARGV[3], 0)
append(ARGV[6], slot, epoch, ARGV[3], 0, added, removed)
return 1
