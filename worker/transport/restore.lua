-- Put unacknowledged messages back into their queues. The keys are described in fetch.lua.
--
-- KEYS[1] unacked  [2] unacked_index  [3] golem:dead:envelopes  [4] golem:leases
-- KEYS[5...] the lists messages go back to
-- ARGV[1] "head" (where workers take from) or "tail"
-- ARGV[2] "uncount" if the latest delivery is undone, else ""
-- ARGV[3] prefix of the delivery counts  [4] their TTL, s  [5] entries KEYS[3] keeps
-- ARGV[6...] four for each message, in the order of pushing: tag, the score it must still have ("":
--     any), positions of its lists among the lists (numbers with a space between), message. One that
--     no list takes goes to KEYS[3].
-- Returns how many were put back; one that was acknowledged or taken meanwhile isn't.

local push = ARGV[1] == 'head' and 'RPUSH' or 'LPUSH'
local restored = 0

local function push_to(lists, raw)
  local taken = false
  for position in lists:gmatch('%d+') do
    -- A routing key may name a key that is no list.
    local reply = redis.pcall(push, KEYS[4 + position], raw)
    taken = taken or type(reply) == 'number'
  end
  if not taken then
    redis.call('LPUSH', KEYS[3], raw)
    redis.call('LTRIM', KEYS[3], 0, ARGV[5] - 1)
  end
end

for i = 6, #ARGV, 4 do
  local tag, expected, lists, raw = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  -- "No score" is no reason to keep it back: whoever acknowledges removes the record first.
  local score = expected and redis.call('ZSCORE', KEYS[2], tag)
  local due = not score or tonumber(score) == expected
  -- Coming first, HDEL also lets a server over its maxmemory go on with the pushing.
  if due and redis.call('HDEL', KEYS[1], tag) == 1 then
    redis.call('ZREM', KEYS[2], tag)
    redis.call('ZREM', KEYS[4], tag)
    push_to(lists, raw)
    if ARGV[2] == 'uncount' then
      local count = ARGV[3] .. tag
      redis.call('SET', count, (redis.call('GET', count) or 1) - 1, 'EX', ARGV[4])
    end
    restored = restored + 1
  end
end
return restored
