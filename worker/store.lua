-- Store and publish the results of a dispatch, except for jobs cancelled while they were computed.
--
--   celery-task-meta-<id>   string   Celery's; a job's result as JSON.       TTL: result_expires
--
-- The same name is the channel on which Celery's clients wait for the result.
--
-- KEYS[1...n] the jobs' result keys
-- ARGV[1...n] their values, ARGV[n+1...2n] their TTLs in seconds, 0 for none
-- Returns the number of results stored.

local stored, n = 0, #KEYS
for i, key in ipairs(KEYS) do
  local before = redis.pcall('GET', key)  -- an error where a key of another type is in the way
  if not (type(before) == 'string' and string.find(before, '"status": "REVOKED"', 1, true)) then
    if ARGV[n + i] == '0' then
      redis.call('SET', key, ARGV[i])
    else
      redis.call('SET', key, ARGV[i], 'EX', ARGV[n + i])
    end
    redis.call('PUBLISH', key, ARGV[i])
    stored = stored + 1
  end
end
return stored
