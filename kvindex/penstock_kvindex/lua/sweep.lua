-- sweep.lua: one piece of the janitor's walk. Keys: see layout.lua; writes t:*, meta, sweep, dead, free, and what give_up writes.
-- A pass takes out the slots that were dead when it began, and gives them free when it has seen every bucket. While the table
-- has more chunks than allowed, a pass without dead slots drops chunks that no more than `share` slots hold; the next takes one more.
-- ARGV: buckets to look at, ms after its lease ran out at which a slot is given up, most chunks
-- Gives {entries dropped, 1 when no pass is under way any more}.
local dead, sweep, most = prefix .. 'dead', prefix .. 'sweep', tonumber(ARGV[3])
local divisor = bucket_divisor()
if not divisor then return {0, 1} end
local ended = string.format('%.0f', now_ms() - tonumber(ARGV[2]))
for _, slot in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'leases', '-inf', '(' .. ended, 'LIMIT', 0, 100)) do give_up(slot) end

local chunks = tonumber(redis.call('HGET', KEYS[1], 'chunks'))
local state = redis.call('HMGET', sweep, 'bucket', 'slots', 'share')
if not state[1] then
  local targets = redis.call('SRANDMEMBER', dead, 4096)
  if #targets == 0 and chunks <= most then
    redis.call('DEL', sweep)
    return {0, 1}
  end
  for i, slot in ipairs(targets) do targets[i] = pack_slot(tonumber(slot)) end
  state = {'0', table.concat(targets), (#targets == 0) and tostring(tonumber(state[3] or '0') + 1) or '0'}
end
local targets, share = {}, tonumber(state[3])
for i = 0, #state[2] / 2 - 1 do targets[slot_at(state[2], i)] = true end

local first, buckets = tonumber(state[1]), 2 ^ 24 / divisor
local behind, dropped, fewer = math.min(first + tonumber(ARGV[1]), buckets), 0, 0
for bucket = first, behind - 1 do
  local name = prefix .. 't:' .. string.format('%d', bucket)
  local all = redis.call('HGETALL', name)
  for i = 1, #all, 2 do
    local held, kept = all[i + 1], {}
    for j = 0, #held / 2 - 1 do
      local slot = slot_at(held, j)
      if not targets[slot] then kept[#kept + 1] = pack_slot(slot) end
    end
    local left = #kept
    if left > 0 and left <= share and chunks - fewer > most then left = 0 end
    if left == 0 then
      fewer = fewer + redis.call('HDEL', name, all[i])
      dropped = dropped + #held / 2
    elseif left < #held / 2 then
      redis.call('HSET', name, all[i], table.concat(kept))
      dropped = dropped + #held / 2 - left
    end
  end
end
if fewer > 0 then redis.call('HINCRBY', KEYS[1], 'chunks', -fewer) end
if behind < buckets then
  redis.call('HSET', sweep, 'bucket', string.format('%d', behind), 'slots', state[2], 'share', state[3])
  return {dropped, 0}
end
redis.call('HDEL', sweep, 'bucket', 'slots')
redis.call('HSET', sweep, 'share', state[3])
for slot in pairs(targets) do
  redis.call('SREM', dead, slot)
  redis.call('RPUSH', prefix .. 'free', slot)
end
return {dropped, 1}
