"""Histories: the storage of `RedisSaver` and `MemorySaver`. All checkpoints are in one place.

The place is Redis (`in_redis`) or the memory of this process (`in_memory`); `interface` says what a place
must do. `saver` has the calls of a checkpointer; it is built on `opened` and `drain`, and uses `beginning`,
`listing`, `pruning` (with `retention`) and `copying`. For Redis, `steps` runs the scripts, `keys` names the
keys, `records` packs their contents, and `signing` signs them.
"""
