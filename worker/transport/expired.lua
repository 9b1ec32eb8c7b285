-- List messages whose holder is gone, latest first. The keys are described in fetch.lua.
--
-- KEYS[1] unacked  [2] unacked_index  [3] golem:leases
-- ARGV[1] the visibility timeout of holders without a lease, s  [2] most messages to list
-- Returns {the server's time, tag, score, record, tag, score, record...}. An index entry that has no
-- record is removed, as stock does: its message was acknowledged in part.

local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local reply = {string.format('%.6f', now)}
local left = tonumber(ARGV[2])

local function list(tag, score)
  local record = redis.call('HGET', KEYS[1], tag)
  if record then
    reply[#reply + 1] = tag
    reply[#reply + 1] = score
    reply[#reply + 1] = record
    left = left - 1
  else
    redis.call('ZREM', KEYS[2], tag)
    redis.call('ZREM', KEYS[3], tag)
  end
end

local function due(key, latest)
  local latest_s = string.format('%.6f', latest)
  return redis.call('ZRANGE', key, latest_s, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, left)
end

for _, tag in ipairs(due(KEYS[3], now)) do
  local score = redis.call('ZSCORE', KEYS[2], tag)
  if score and score == redis.call('ZSCORE', KEYS[3], tag) then
    list(tag, score)
  else
    redis.call('ZREM', KEYS[3], tag)  -- the lease of one who isn't the holder any more
  end
end
if left > 0 then
  for _, tag in ipairs(due(KEYS[2], now - ARGV[1])) do
    local score = redis.call('ZSCORE', KEYS[2], tag)
    -- A lease that is over and was listed above isn't listed twice.
    if score ~= redis.call('ZSCORE', KEYS[3], tag) then list(tag, score) end
  end
end
return reply
