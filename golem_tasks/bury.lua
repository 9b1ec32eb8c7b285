-- Keep a job that was given up, in one atomic step. The keys are described in _dead.py.
--
-- KEYS[1] golem:dead  [2] golem:dead:facts  [3] golem:dead:messages
-- ARGV[1] job id  [2] Unix time at which it was given up, s  [3] facts  [4] message  [5] most to keep
-- Returns how many are kept now; the oldest beyond that number have gone.

redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
local surplus = redis.call('ZRANGE', KEYS[1], 0, -1 - ARGV[5])
for _, id in ipairs(surplus) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
end
return redis.call('ZCARD', KEYS[1])
