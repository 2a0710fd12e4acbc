-- announce.lua: a worker of this model is there. Keys: only `penstock:models` (see models.py), which has no part in layout.lua.
-- KEYS[1] penstock:models. ARGV: model, ms after which others are forgotten. Gives 1.
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms()), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms() - tonumber(ARGV[2])))
return 1
