"""Access to Redis, shared by the cache and by the histories in Redis.

`client` opens a client of redis-py. `limiter`, `timeouts` and `auto_pipeline` decide how many steps are under
way, and for how long. `faults` and `permissions` tell what Redis refuses, and why; `tls` tells what TLS
refused. `signature` signs the stored data.
"""
