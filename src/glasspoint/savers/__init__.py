"""The savers that applications use. `cached` is the read path and the write path, top to bottom.

`opening` opens, sets up and closes a `CachedPostgresSaver`; `maintenance` deletes, copies and prunes threads;
`bursts` groups writes that follow each other closely, so that Redis is updated once; `forks` finds runs whose
result is lost; `retention` removes old checkpoints in the background. `redis_saver` and `memory_saver` are
the savers of the lower tiers, on a history. `options` declares the keyword options.
"""
