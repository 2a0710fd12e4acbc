-- read.lua: read a stretch of buckets. Keys: see layout.lua; reads t:*.
-- ARGV: first bucket, bucket behind the last, slot ('': all)
-- Gives {keys, counts, slots}: packed keys, one uint16 a key with its number of slots, all their slots one after another;
-- with a slot: {keys it holds}.
local only = tonumber(ARGV[3])
local keys, counts, slots, n = {}, {}, {}, 0
for bucket = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
  local all = redis.call('HGETALL', prefix .. 't:' .. string.format('%d', bucket))
  for i = 1, #all, 2 do
    local held = all[i + 1]
    if not only then
      n = n + 1
      keys[n], counts[n], slots[n] = all[i], pack_slot(#held / 2), held
    else
      local _, there = place_of(held, only)
      if there then
        n = n + 1
        keys[n] = all[i]
      end
    end
  end
end
if only then return {table.concat(keys)} end
return {table.concat(keys), table.concat(counts), table.concat(slots)}
