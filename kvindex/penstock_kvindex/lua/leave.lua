-- leave.lua: end a lease now. Keys: see layout.lua; writes ids, slots, heads, load, leases, dead.
-- ARGV: slot, epoch. Gives 1; 0: unknown slot or epoch, nothing done.
if not head_of(ARGV[1], ARGV[2]) then return 0 end
give_up(ARGV[1])
return 1
