"""Moving in: copies histories of another saver into the PostgreSQL of a `CachedPostgresSaver`.

`copying` copies thread by thread; `sources` reads from other savers, and `sqlite` from a SQLite file.
"""
