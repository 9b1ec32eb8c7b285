-- Put a dead letter's message back into its queue as if it were new. The keys: see _dead.py.
--
-- Where the message that was given up may be by now, and what a requeued one does beside it:
--   acknowledged      as a rule: there is nothing but the letter.
--   unacknowledged    its worker is about to store the FAILURE and to acknowledge, or was killed before
--                     it could. That FAILURE would end the requeued job: "held", come again later.
--   waiting again     in its queue, on whichever priority, since the lease of a worker that was killed
--                     is over. To find it there every waiting message would have to be read. So the
--                     requeued one gets a delivery tag of its own: two of one tag would share their
--                     record, and one's acknowledgement would lose the other. Of two jobs with one id
--                     the second finds the first's answer, and isn't computed unless both run at once.
--   answered          by a worker that got it again: the requeued one finds the answer likewise.
--   requeued already  the letter went in the same step: "gone". So a call whose reply was lost may be
--                     repeated.
--
-- KEYS[1] golem:dead  [2] golem:dead:facts  [3] golem:dead:messages  [4] unacked
-- KEYS[5] golem:deliveries:<tag>  [6] golem:dead:tried:<tag>  [7] the list it came from
-- ARGV[1] job id  [2] delivery tag it had  [3] the message, with its new one
-- Returns "requeued"; "held" while the message is unacknowledged, and "gone" if there is no such
-- letter: then nothing was changed.

if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 0 then
  return 'gone'
end
if redis.call('HEXISTS', KEYS[4], ARGV[2]) == 1 then
  return 'held'
end
redis.call('LPUSH', KEYS[7], ARGV[3])
redis.call('DEL', KEYS[5], KEYS[6])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return 'requeued'
