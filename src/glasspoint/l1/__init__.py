"""L1: the cache in Redis.

A scope has one hash (`entry`), which atomic steps change (`cache`). The hash is trusted only as long as the
server process that it was written to lives (`epoch`). `breaker` decides whether Redis is asked at all, and
`quarantine` whether it is asked for one scope. `compression` makes values smaller. In a Redis Cluster,
`cluster` routes each step to its master, and `departures` sees when the move of a slot was called off.
"""
