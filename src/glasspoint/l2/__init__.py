"""L2: PostgreSQL, the truth.

Upstream's tables, in single statements (`statements`), run concurrently on a pool (`pool`, `store`).
"""
