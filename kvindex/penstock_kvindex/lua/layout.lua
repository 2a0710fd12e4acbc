-- layout.lua: what every script here begins with (redis.py puts it in front). Runs on Redis 6.2 to current and on Valkey.
--
-- All keys have the prefix of KEYS[1] without its last word `meta`, so one hash tag and one Cluster slot a served model.
--   meta    hash    layout, incarnation, bucket_bits, serial (last stream id), chunks (fields in all buckets), next_slot
--   ids     hash    worker id -> slot
--   slots   hash    slot -> WorkerRecord, msgpack
--   heads   hash    slot -> epoch (16 hex digits) ':' last sequence ':' 1 while a republish is under way, else 0
--   leases  zset    slot -> expiry, ms of Redis time
--   load    hash    slot -> Load, msgpack
--   dead    set     slots given up, not yet taken out of the table
--   free    list    slots taken out of the table, to be used again
--   sweep   hash    the janitor's pass: bucket (next), slots (packed uint16, to be taken out), share (drop chunks held by so few)
--   t:<n>   hash    bucket n: chunk key (8 bytes, little-endian) -> slots (uint16 little-endian, sorted, at least one)
--   kv      stream  ids <serial>-0; s slot, e epoch, q sequence, f flags (1 cleared, 2 republished), a added, r removed, t ms
-- Serials start at the microsecond in which `meta` was made, so no position of an earlier incarnation is met again.

local prefix = string.sub(KEYS[1], 1, -5)

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function pack_slot(slot)
  return string.char(slot % 256, math.floor(slot / 256))
end

local function slot_at(slots, i)  -- i from 0
  local low, high = string.byte(slots, 2 * i + 1, 2 * i + 2)
  return low + 256 * high
end

local function place_of(slots, slot)  -- first place whose slot is not smaller, and whether it is this slot
  local low, high = 0, #slots / 2
  while low < high do
    local middle = math.floor((low + high) / 2)
    if slot_at(slots, middle) < slot then low = middle + 1 else high = middle end
  end
  return low, low < #slots / 2 and slot_at(slots, low) == slot
end

local function bucket_divisor()  -- 2^24 / number of buckets; nil where nothing has been written yet
  local bits = redis.call('HGET', KEYS[1], 'bucket_bits')
  if not bits then return nil end
  return 2 ^ (24 - tonumber(bits))
end

local function bucket_key(key, divisor)
  local b6, b7, b8 = string.byte(key, 6, 8)
  return prefix .. 't:' .. string.format('%d', math.floor((b8 * 65536 + b7 * 256 + b6) / divisor))
end

local function add_holder(bucket, key, slot)  -- chunks more in the table: 1 or 0
  local slots = redis.call('HGET', bucket, key)
  if not slots then
    return redis.call('HSET', bucket, key, pack_slot(slot))
  end
  local place, there = place_of(slots, slot)
  if not there then
    redis.call('HSET', bucket, key, string.sub(slots, 1, 2 * place) .. pack_slot(slot) .. string.sub(slots, 2 * place + 1))
  end
  return 0
end

local function remove_holder(bucket, key, slot, slots)  -- chunks fewer in the table: 1 or 0
  slots = slots or redis.call('HGET', bucket, key)
  if not slots then return 0 end
  local place, there = place_of(slots, slot)
  if not there then return 0 end
  if #slots == 2 then return redis.call('HDEL', bucket, key) end
  redis.call('HSET', bucket, key, string.sub(slots, 1, 2 * place) .. string.sub(slots, 2 * place + 3))
  return 0
end

local function head_of(slot, epoch)  -- sequence and whether a republish is under way; nil for an unknown slot or epoch
  local head = redis.call('HGET', prefix .. 'heads', slot)
  if not head or string.sub(head, 1, 16) ~= epoch then return nil end
  local sequence, partial = string.match(head, ':(%d+):(%d)$')
  return sequence, partial == '1'
end

local function set_head(slot, epoch, sequence, partial)
  redis.call('HSET', prefix .. 'heads', slot, epoch .. ':' .. sequence .. ':' .. partial)
end

local function append(kept, slot, epoch, sequence, flags, added, removed)
  local serial = string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'serial', 1))
  redis.call('XADD', prefix .. 'kv', 'MAXLEN', '~', kept, serial .. '-0', 's', slot, 'e', epoch, 'q', sequence,
    'f', flags, 'a', added, 'r', removed, 't', string.format('%.0f', now_ms()))
end

local function give_up(slot)  -- the slot's worker is gone: its chunks wait for the janitor
  local record = redis.call('HGET', prefix .. 'slots', slot)
  if record then
    local id = cmsgpack.unpack(record)['id']
    if redis.call('HGET', prefix .. 'ids', id) == slot then redis.call('HDEL', prefix .. 'ids', id) end
  end
  redis.call('HDEL', prefix .. 'slots', slot)
  redis.call('HDEL', prefix .. 'heads', slot)
  redis.call('HDEL', prefix .. 'load', slot)
  redis.call('ZREM', prefix .. 'leases', slot)
  redis.call('SADD', prefix .. 'dead', slot)
end
