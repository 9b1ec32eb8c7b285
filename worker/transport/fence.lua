-- Learn what a fetch popped whose reply was lost, and keep it from popping anything later.
--
-- KEYS[1] golem:fetch:<channel>, described in fetch.lua
-- ARGV[1] TTL of a fence that stands alone, s
-- Returns the delivery tags of the channel's latest fetch, the same ones each time.

-- An old fence goes first; LREM also lets a server over its maxmemory go on.
redis.call('LREM', KEYS[1], 1, '')
local tags = redis.call('LRANGE', KEYS[1], 0, -1)
redis.call('LPUSH', KEYS[1], '')
-- With tags it keeps the TTL of their fetch: asked for again later than their leases last, it would
-- name messages that others have by then.
if #tags == 0 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return tags
