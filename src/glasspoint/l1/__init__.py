"""L1: Redis.

One hash a scope (`entry`), changed in atomic steps (`cache`), believed only while the server process that it
was written to lives (`epoch`).
"""
