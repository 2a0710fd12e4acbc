-- registry.lua: all registered workers at one instant. Keys: see layout.lua; reads meta, slots, leases, load, heads.
-- Gives {incarnation, ms of Redis time, serial, bucket bits, slots, leases, load, heads}; the last four flat: field, value, ...
-- ARGV: 'heads' leaves slots, leases and load empty.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'serial', 'bucket_bits')
local all = {meta[1] or '', string.format('%.0f', now_ms()), meta[2] or '0', tonumber(meta[3] or '0'), {}, {}, {}}
if ARGV[1] ~= 'heads' then
  all[5] = redis.call('HGETALL', prefix .. 'slots')
  all[6] = redis.call('ZRANGE', prefix .. 'leases', 0, -1, 'WITHSCORES')
  all[7] = redis.call('HGETALL', prefix .. 'load')
end
all[8] = redis.call('HGETALL', prefix .. 'heads')
return all
