-- Put unacknowledged messages back into their queues. The keys are described in fetch.lua.
--
-- KEYS[1] unacked  [2] unacked_index  [3...] the lists that messages go back to
-- ARGV[1] "head" (where workers take from) or "tail"
-- ARGV[2] highest score a message may have to be put back, or "" for any
-- ARGV[3] "uncount" if the latest delivery is undone, else ""
-- ARGV[4] prefix of the delivery counts  [5] their TTL, s
-- ARGV[6...] three for each message, in the order of pushing: tag, positions of its lists among
--     the lists (numbers with a space between), message
-- Returns how many were put back; one that was acknowledged or taken meanwhile isn't.

local push = ARGV[1] == 'head' and 'RPUSH' or 'LPUSH'
local highest = ARGV[2] ~= '' and tonumber(ARGV[2])
local restored = 0

for i = 6, #ARGV, 3 do
  local tag, lists, raw = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local score = highest and redis.call('ZSCORE', KEYS[2], tag)
  local due = not highest or (score and tonumber(score) <= highest)
  if due and redis.call('HDEL', KEYS[1], tag) == 1 then
    redis.call('ZREM', KEYS[2], tag)
    for position in lists:gmatch('%d+') do
      redis.call(push, KEYS[2 + position], raw)
    end
    if ARGV[3] == 'uncount' then
      local count = ARGV[4] .. tag
      redis.call('SET', count, (redis.call('GET', count) or 1) - 1, 'EX', ARGV[5])
    end
    restored = restored + 1
  end
end
return restored
