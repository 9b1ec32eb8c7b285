-- Pop up to a number of messages and record each as unacknowledged, in one atomic step.
--
-- Every key of the transport (each with the global key prefix before it):
--   <queue>                     list    Celery's; messages as JSON, newest left, workers take from
--   <queue>\x06\x16<3|6|9>              the right; one list per priority step.         no TTL: queue
--   unacked                     hash    Celery's; delivery tag -> [message, exchange, routing key].
--                                       An entry ends with its acknowledgement.        no TTL: queue
--   unacked_index               zset    Celery's; delivery tag, scored by the Unix time in seconds
--                                       from which a stock worker's sweep counts: stock writes the
--                                       delivery, we the end of the lease.             no TTL: queue
--   golem:leases                zset    delivery tag, scored by the end of its lease by the server's
--                                       clock. While unacked_index has the very same score, a Golem
--                                       worker holds the message; a holder who wrote another knows
--                                       nothing of leases.      TTL 1 day, renewed with every lease
--   unacked_mutex               string  Celery's; held by the one worker that sweeps.  TTL 300 s
--   golem:deliveries:<tag>      string  deliveries so far of a message that was delivered before;
--                                       deleted with its acknowledgement.              TTL 1 day
--   golem:fetch:<channel>       list    tags of a channel's latest fetch, by which it finds messages
--                                       whose reply it never saw. An empty tag in front is a fence:
--                                       a fetch still on its way then pops nothing.
--                                                                                  TTL: the lease
--   golem:dead:envelopes        list    messages no Celery worker could read or that belong to no
--                                       queue, as they came, newest left; of one too large to be
--                                       decoded both ends.
--                                                                    no TTL: capped at 1,000 entries
--
-- KEYS[1] unacked  [2] unacked_index  [3] golem:fetch:<channel>  [4] golem:dead:envelopes
-- KEYS[5] golem:leases  [6...] the lists to pop from, in order of precedence
-- ARGV[1] most messages, unreadable ones too  [2] bytes after which to stop  [3] TTL of KEYS[3], s
-- ARGV[4] prefix of the delivery counts  [5] their TTL, s  [6] entries KEYS[4] keeps
-- ARGV[7] the lease, s  [8] TTL of KEYS[5], s  [9] bytes of JSON decoded at most
-- ARGV[10] bytes told of either end of an unreadable message
-- Returns {end of the lease, facts, message..., unreadable...}; facts is JSON: tags (of the
-- messages), popped (how many from each list), again (tag -> delivery count where that isn't 1).
-- Of an unreadable message both ends come back: they may name its job.

local UNREADABLE_BYTES = 64  -- an unreadable message counts for at least so many: telling isn't free
local CHUNK = 32  -- messages looked at in one go; bounds what is copied beyond the byte limit

if redis.call('LINDEX', KEYS[3], 0) == '' then
  return {'0', '{}'}
end
-- Being a write, this also lets a server over its maxmemory go on: taking work is what frees it.
redis.call('DEL', KEYS[3])

local time = redis.call('TIME')
local score = string.format('%.6f', time[1] + time[2] / 1e6 + ARGV[7])
local room, bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local reply, tags = {score, ''}, {}
local popped, again, buried = {}, {}, {}

local function decode(json)
  if #json > tonumber(ARGV[9]) then return end
  local ok, value = pcall(cjson.decode, json)
  return ok and type(value) == 'table' and value
end

-- The properties of a message. Celery writes them last, so most often it is enough to decode the
-- text from there on; being followed by one brace alone shows that they are the message's own.
local function properties(raw)
  local start = raw:match('.*"properties":()')
  local found = start and raw:sub(-1) == '}' and decode(raw:sub(start, -2))
  if found then return found end
  -- cjson refuses half a surrogate pair, which Python takes: blanked out, it reads the rest.
  local message = decode(raw)
    or #raw <= tonumber(ARGV[9]) and decode((raw:gsub('\\\\', ''):gsub('\\u[dD][89a-fA-F]%x%x', '?')))
  return message and message.properties
end

local function text(value)
  if value == nil then return '""' end
  return type(value) ~= 'table' and cjson.encode(value)
end

-- The tag, exchange, routing key and "was delivered before" of a message, or nothing.
local function envelope(raw)
  local found = properties(raw)
  local info = type(found) == 'table' and found.delivery_info
  if type(info) ~= 'table' then return end
  local tag, exchange, key = found.delivery_tag, text(info.exchange), text(info.routing_key)
  if type(tag) ~= 'string' or not exchange or not key then return end
  if not tag:find('^[ -~]+$') then return end  -- kombu's are UUIDs; others may not even be text
  return tag, exchange, key, info.redelivered == true
end

local function deliveries(tag)
  local key = ARGV[4] .. tag
  local count = tonumber(redis.call('GET', key) or 1) + 1
  redis.call('SET', key, count, 'EX', ARGV[5])
  return count
end

local function bury(raw)
  local most = tonumber(ARGV[10])
  local ends = #raw > 2 * most and raw:sub(1, most) .. raw:sub(-most) or raw
  buried[#buried + 1] = ends
  redis.call('LPUSH', KEYS[4], #raw > tonumber(ARGV[9]) and ends or raw)
  redis.call('LTRIM', KEYS[4], 0, ARGV[6] - 1)
end

-- Record before popping: should a command be refused half-way, the message is still in its queue.
local function take(list, wanted)
  local found = redis.call('LRANGE', list, -wanted, -1)
  local records, scores, seen, taken = {}, {}, 0, 0
  for i = #found, 1, -1 do
    if bytes <= 0 then break end
    local raw = found[i]
    local tag, exchange, key, redelivered = envelope(raw)
    seen, bytes = seen + 1, bytes - (tag and #raw or math.max(#raw, UNREADABLE_BYTES))
    if tag then
      taken = taken + 1
      records[#records + 1] = tag
      records[#records + 1] = '[' .. raw .. ', ' .. exchange .. ', ' .. key .. ']'
      scores[#scores + 1] = score
      scores[#scores + 1] = tag
      tags[#tags + 1] = tag
      reply[#reply + 1] = raw
      if redelivered then again[tag] = deliveries(tag) end
    else
      bury(raw)
    end
  end
  if taken > 0 then
    redis.call('HSET', KEYS[1], unpack(records))
    redis.call('ZADD', KEYS[2], unpack(scores))
    redis.call('ZADD', KEYS[5], unpack(scores))
  end
  if seen > 0 then redis.call('LTRIM', list, 0, -(seen + 1)) end
  return seen, taken
end

for k = 6, #KEYS do
  local from_list = 0
  while room > 0 and bytes > 0 do
    local wanted = math.min(room, CHUNK)
    local seen, taken = take(KEYS[k], wanted)
    from_list, room = from_list + taken, room - seen
    if seen < wanted then break end
  end
  popped[#popped + 1] = from_list
end

if #tags > 0 then
  redis.call('RPUSH', KEYS[3], unpack(tags))
  redis.call('EXPIRE', KEYS[3], ARGV[3])
  redis.call('EXPIRE', KEYS[5], ARGV[8])
end
reply[2] = cjson.encode({tags = tags, popped = popped, again = again})
for i = 1, #buried do reply[#reply + 1] = buried[i] end
return reply
