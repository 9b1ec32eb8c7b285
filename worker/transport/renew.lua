-- Begin the lease of messages anew, by the server's clock. The keys are described in fetch.lua.
--
-- KEYS[1] unacked_index
-- ARGV    delivery tags; one that was acknowledged meanwhile stays away
-- Returns the new score.

local time = redis.call('TIME')
local score = string.format('%d.%06d', time[1], time[2])
if #ARGV > 0 then
  -- No tag is empty: this changes nothing, but being a write that needs no memory it lets a server
  -- over its maxmemory go on, for a lease that isn't renewed makes a job run twice.
  redis.call('ZREM', KEYS[1], '')
end
for i = 1, #ARGV do
  redis.call('ZADD', KEYS[1], 'XX', score, ARGV[i])
end
return score
