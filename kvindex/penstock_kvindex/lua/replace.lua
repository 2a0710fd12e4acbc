-- replace.lua: one step of replacing all that the table holds of a slot. Keys: see layout.lua; writes t:*, heads, meta, kv.
-- Between `begin` and `end` the head says so: nothing can be published, and whoever begins again must look at all buckets.
-- ARGV: step, slot, epoch, and
--   begin  expected sequence ('': any)  gives {1, bucket bits, 1 if the table may hold chunks of the slot already}
--   piece  first bucket, bucket behind the last (equal: look at none, only add), packed keys wanted in them
--   end    sequence, flags and added keys of the stream entry, stream entries to keep
-- Gives {1, ..}; {0}: unknown slot or epoch, or a gap before what is expected; {2}: applied before, nothing to do.
local step, slot, epoch = ARGV[1], ARGV[2], ARGV[3]
local last, partial = head_of(slot, epoch)
if not last then return {0} end
if step == 'begin' then
  if ARGV[4] ~= '' then
    if not partial and tonumber(last) > tonumber(ARGV[4]) then return {2} end
    if partial or last ~= ARGV[4] then return {0} end
  end
  set_head(slot, epoch, last, 1)
  return {1, tonumber(redis.call('HGET', KEYS[1], 'bucket_bits')), (partial or last ~= '0') and 1 or 0}
end
if step == 'piece' then
  local divisor, number, change, wanted = bucket_divisor(), tonumber(slot), 0, {}
  for i = 1, #ARGV[6], 8 do wanted[string.sub(ARGV[6], i, i + 7)] = true end
  for bucket = tonumber(ARGV[4]), tonumber(ARGV[5]) - 1 do
    local name = prefix .. 't:' .. string.format('%d', bucket)
    local all = redis.call('HGETALL', name)
    for i = 1, #all, 2 do
      if not wanted[all[i]] then change = change - remove_holder(name, all[i], number, all[i + 1]) end
    end
  end
  for key in pairs(wanted) do change = change + add_holder(bucket_key(key, divisor), key, number) end
  if change ~= 0 then redis.call('HINCRBY', KEYS[1], 'chunks', change) end
  return {1}
end
set_head(slot, epoch, ARGV[4], 0)
append(ARGV[7], slot, epoch, ARGV[4], ARGV[5], ARGV[6], '')
return {1}
