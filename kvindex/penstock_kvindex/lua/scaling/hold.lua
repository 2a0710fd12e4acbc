-- hold.lua: take or renew the right to scale a model (see scaling.py; layout.lua is not in front of it).
-- KEYS[1] scaler (string: who holds it). ARGV: who, ms. Gives 1; 0: somebody else holds it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
