-- release.lua: give the right to scale a model back (see scaling.py; layout.lua is not in front of it).
-- KEYS[1] scaler. ARGV: who. Gives 1 where it was theirs.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
