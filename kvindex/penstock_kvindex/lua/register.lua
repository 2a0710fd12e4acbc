-- register.lua: give a worker its slot, write its record and lease. Keys: see layout.lua; writes meta, ids, slots, heads, leases,
-- and load, dead, free where another epoch of the same id is given up or a slot is used again.
-- ARGV: id, epoch, record, lease ms, layout version, incarnation to take if there is none, bucket bits likewise, most slots,
--       chunk bytes
-- Gives {slot, incarnation}; slot -1: none is free.
local id, epoch, record, lease_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('EXISTS', KEYS[1]) == 0 then
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'layout', ARGV[5], 'incarnation', ARGV[6], 'bucket_bits', ARGV[7], 'chunk_bytes', ARGV[9],
    'serial', t[1] .. string.format('%06d', tonumber(t[2])), 'chunks', 0, 'next_slot', 0)
end
local slot = redis.call('HGET', prefix .. 'ids', id)
if slot and not head_of(slot, epoch) then
  give_up(slot)
  slot = false
end
if not slot then
  slot = redis.call('LPOP', prefix .. 'free')
  if not slot then
    local next_slot = tonumber(redis.call('HGET', KEYS[1], 'next_slot'))
    if next_slot >= tonumber(ARGV[8]) then return {-1, ''} end
    redis.call('HINCRBY', KEYS[1], 'next_slot', 1)
    slot = string.format('%d', next_slot)
  end
  redis.call('HSET', prefix .. 'ids', id, slot)
  set_head(slot, epoch, 0, 0)
end
redis.call('HSET', prefix .. 'slots', slot, record)
redis.call('ZADD', prefix .. 'leases', string.format('%.0f', now_ms() + lease_ms), slot)
return {tonumber(slot), redis.call('HGET', KEYS[1], 'incarnation')}
