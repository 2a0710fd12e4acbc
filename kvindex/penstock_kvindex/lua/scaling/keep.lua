-- keep.lua: store what the holder remembers and has decided, all or nothing (see scaling.py; layout.lua is not in front of it).
-- KEYS: scaler (string: who holds it), scaler-memory (string), scaler-told (list, newest first).
-- ARGV: who, memory, decision, whether it takes the place of the newest (1) or comes before it (0), decisions to keep, ms to live.
-- Gives 1; 0: somebody else, or nobody, holds the right: nothing done.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[6])
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('LSET', KEYS[3], 0, ARGV[3])
else
  redis.call('LPUSH', KEYS[3], ARGV[3])
  redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[5]) - 1)
end
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return 1
