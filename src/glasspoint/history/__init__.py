"""Histories: all checkpoints of all threads in one place (`in_redis`, `in_memory`; what a place has to do:
`interface`). `saver` reads and writes them, `listing`, `pruning`, `copying` and `drain` do the rest."""
