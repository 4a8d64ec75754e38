"""What the store does as one step: Lua scripts, which go by the store's own clock."""

# KEYS: the members of all gateways (name -> when it expires, in ms), this one's counts.
# ARGV: name, value, time to live in ms. Returns the names of the first 1,001 gateways.
PUBLISH = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('ZRANGE', KEYS[1], 0, 1000)
"""

# A token bucket, kept as the time at which it will be full (ITU-T I.371).
# KEYS: the bucket. ARGV: rate per second, capacity, what was used without a lease (below 0: what
# is given back), what is wanted. Returns what was granted, in whole units, and how long until
# there is 1 again, in seconds.
LEASE = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1e6
local rate, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + ARGV[3] / rate
full = math.max(full, now)
local level = capacity - (full - now) * rate
local granted = math.max(0, math.floor(math.min(tonumber(ARGV[4]), level + 1e-6)))
full = full + granted / rate
local ttl = math.ceil(math.min(full - now, 1e9) * 1000) + 1000
redis.call('SET', KEYS[1], string.format('%.6f', full), 'PX', string.format('%.0f', ttl))
local wait = math.max(0, (1 - (level - granted)) / rate)
return {string.format('%.0f', granted), string.format('%.6f', wait)}
"""

# Places of a tenant's requests in flight: each gateway's number, with when that expires.
# KEYS: the tenant's hash. ARGV: name, how many run, how many are wanted, the limit, time to live
# in ms. Returns how many the gateway has.
HOLD = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local others, all = 0, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= ARGV[1] then
    local count, expires = string.match(all[i + 1], '^(%d+) (%d+)$')
    if not count or tonumber(expires) <= now then
      redis.call('HDEL', KEYS[1], all[i])
    else
      others = others + count
    end
  end
end
local held = math.max(tonumber(ARGV[2]), math.min(tonumber(ARGV[3]), ARGV[4] - others))
if held > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %.0f', held, now + ARGV[5]))
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return held
"""
