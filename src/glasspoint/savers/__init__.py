"""The savers that applications use. `cached` has the calls of `CachedPostgresSaver`, and its read path.

`write_through` is the write path. `opening` opens and sets up a `CachedPostgresSaver`, and `parts` connects
its parts. `maintenance` deletes, copies and prunes threads. `bursts` groups writes that follow each other
closely, so that Redis is updated once. `forks` finds runs whose result is lost. `retention` removes old
checkpoints in the background. `redis_saver` and `memory_saver` are the savers of the lower tiers, on a
history. `options` declares the keyword options.
"""
