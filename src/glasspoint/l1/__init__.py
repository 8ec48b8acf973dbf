"""L1: the cache in Redis.

A scope has one hash (`entry`), which atomic steps change (`cache`). `steps` sends them to Redis. `contact`
knows the server: which process it is, and what its faults mean. The hash is trusted only as long as the
server process that it was written to lives (`epoch`). `breaker` decides whether Redis is asked at all,
`trust` whether its entries are used, and `quarantine` whether it is asked for one scope. `uncached` logs why
one scope is not cached. `compression` makes values smaller. In a Redis Cluster, `cluster` routes each step to
its master, and `departures` sees when the move of a slot was called off.
"""
