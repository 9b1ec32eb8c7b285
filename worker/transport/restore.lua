-- Put unacknowledged messages back into their queues. The keys are described in fetch.lua.
--
-- KEYS[1] unacked  [2] unacked_index  [3] golem:dead:envelopes  [4...] the lists messages go back to
-- ARGV[1] "head" (where workers take from) or "tail"
-- ARGV[2] highest score a message may have to be put back, or "" for any
-- ARGV[3] "uncount" if the latest delivery is undone, else ""
-- ARGV[4] prefix of the delivery counts  [5] their TTL, s  [6] entries KEYS[3] keeps
-- ARGV[7...] three for each message, in the order of pushing: tag, positions of its lists among
--     the lists (numbers with a space between), message. One that no list takes goes to KEYS[3].
-- Returns how many were put back; one that was acknowledged or taken meanwhile isn't.

local push = ARGV[1] == 'head' and 'RPUSH' or 'LPUSH'
local highest = ARGV[2] ~= '' and tonumber(ARGV[2])
local restored = 0

local function push_to(lists, raw)
  local taken = false
  for position in lists:gmatch('%d+') do
    -- A routing key may name a key that is no list.
    local reply = redis.pcall(push, KEYS[3 + position], raw)
    taken = taken or type(reply) == 'number'
  end
  if not taken then
    redis.call('LPUSH', KEYS[3], raw)
    redis.call('LTRIM', KEYS[3], 0, ARGV[6] - 1)
  end
end

for i = 7, #ARGV, 3 do
  local tag, lists, raw = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local score = highest and redis.call('ZSCORE', KEYS[2], tag)
  local due = not highest or (score and tonumber(score) <= highest)
  -- Coming first, HDEL also lets a server over its maxmemory go on with the pushing.
  if due and redis.call('HDEL', KEYS[1], tag) == 1 then
    redis.call('ZREM', KEYS[2], tag)
    push_to(lists, raw)
    if ARGV[3] == 'uncount' then
      local count = ARGV[4] .. tag
      redis.call('SET', count, (redis.call('GET', count) or 1) - 1, 'EX', ARGV[5])
    end
    restored = restored + 1
  end
end
return restored
