-- holders.lua: who holds these chunks. Keys: see layout.lua; reads t:*.
-- ARGV: packed keys. Gives one string of packed slots a key, '' where nobody holds it.
local divisor, found = bucket_divisor(), {}
for i = 1, #ARGV[1], 8 do
  local key = string.sub(ARGV[1], i, i + 7)
  found[#found + 1] = divisor and redis.call('HGET', bucket_key(key, divisor), key) or ''
end
return found
