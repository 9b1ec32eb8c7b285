-- Begin the lease of messages anew, by the server's clock. The keys are described in fetch.lua.
--
-- KEYS[1] unacked_index  [2] golem:leases
-- ARGV[1] the lease, s  [2] TTL of KEYS[2], s
-- ARGV[3...] two for each message: its delivery tag, and the score we gave it last, "" if we gave
--     it none. One that was acknowledged meanwhile stays away; one with another score isn't touched.
-- Returns {the server's time, the new score, tag that has another score...}.

local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local score = string.format('%.6f', now + ARGV[1])
local reply = {string.format('%.6f', now), score}
if #ARGV > 2 then
  -- No tag is empty: this changes nothing, but being a write that needs no memory it lets a server
  -- over its maxmemory go on, for a lease that isn't renewed makes a job run twice.
  redis.call('ZREM', KEYS[1], '')
end
for i = 3, #ARGV, 2 do
  local tag, known = ARGV[i], tonumber(ARGV[i + 1])
  local present = redis.call('ZSCORE', KEYS[1], tag)
  if present and known and tonumber(present) ~= known then
    reply[#reply + 1] = tag
  elseif present then
    redis.call('ZADD', KEYS[1], score, tag)
    redis.call('ZADD', KEYS[2], score, tag)
  end
end
if #ARGV > 2 then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
return reply
