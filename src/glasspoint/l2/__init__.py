"""L2: PostgreSQL, the truth.

Reads and writes upstream's tables: each operation is a single statement (`statements`), and statements run
concurrently on a pool (`pool`, `store`).
"""
