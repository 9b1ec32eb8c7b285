-- List messages whose lease ran out, latest first. The keys are described in fetch.lua.
--
-- KEYS[1] unacked  [2] unacked_index
-- ARGV[1] the lease, s  [2] most messages to list
-- Returns {highest expired score, tag, record, tag, record...}. An index entry that has no record
-- is removed, as stock does: its message was acknowledged in part.

local time = redis.call('TIME')
local highest = string.format('%.6f', tonumber(time[1]) + tonumber(time[2]) / 1e6 - ARGV[1])
local reply = {highest}
local tags = redis.call('ZRANGE', KEYS[2], highest, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[2])
for _, tag in ipairs(tags) do
  local record = redis.call('HGET', KEYS[1], tag)
  if record then
    reply[#reply + 1] = tag
    reply[#reply + 1] = record
  else
    redis.call('ZREM', KEYS[2], tag)
  end
end
return reply
