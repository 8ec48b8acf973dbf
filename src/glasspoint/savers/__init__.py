"""The savers. `cached` is the read path and the write path of the product, top to bottom.

`opening` opens, sets up and closes them; `maintenance` changes whole threads; `bursts` announces writes
once that follow each other closely; `forks` finds lost answers; `retention` removes what is old; `options`
declares the keyword options. `redis_saver` and `memory_saver` are the savers of the lower tiers, on a
history.
"""
