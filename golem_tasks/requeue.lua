-- Put a dead letter's message back into its queue as if it were new. The keys: see _dead.py.
--
-- KEYS[1] golem:dead  [2] golem:dead:facts  [3] golem:dead:messages  [4] unacked
-- KEYS[5] golem:deliveries:<tag>  [6] golem:dead:tried:<tag>  [7] the list it came from
-- ARGV[1] job id  [2] delivery tag
-- Returns "requeued"; "held" while the message is unacknowledged, and "gone" if there is no such
-- letter: then nothing was changed.

local message = redis.call('HGET', KEYS[3], ARGV[1])
if not message then
  return 'gone'
end
-- Two messages of one tag would share their record: one's acknowledgement would lose the other.
if redis.call('HEXISTS', KEYS[4], ARGV[2]) == 1 then
  return 'held'
end
redis.call('LPUSH', KEYS[7], message)
redis.call('DEL', KEYS[5], KEYS[6])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return 'requeued'
