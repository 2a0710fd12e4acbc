-- renew.lua: renew a lease and write the load. Keys: see layout.lua; writes leases, load.
-- ARGV: slot, epoch, lease ms, load ('': leave as it is)
-- Gives 1; 0: unknown slot or epoch.
local slot = ARGV[1]
if not head_of(slot, ARGV[2]) then return 0 end
redis.call('ZADD', prefix .. 'leases', string.format('%.0f', now_ms() + tonumber(ARGV[3])), slot)
if ARGV[4] ~= '' then redis.call('HSET', prefix .. 'load', slot, ARGV[4]) end
return 1
