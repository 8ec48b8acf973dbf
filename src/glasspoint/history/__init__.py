"""Histories: all checkpoints of all threads in one place.

The places are `in_redis` and `in_memory`; `interface` says what a place has to do. `saver` reads and writes
them, `listing`, `pruning`, `copying` and `drain` do the rest.
"""
