"""Coherence: background work that keeps Redis (L1) true to PostgreSQL (L2).

`identity` tells which entries belong to the current PostgreSQL. `sweeper` tells when Redis may be trusted.
`audit` compares a share of the hits with PostgreSQL. `purging` deletes the entries of older epochs.
`last_used`, `images` and `cluster_images` find cached states for a process that cannot reach PostgreSQL.
`standing` and `attached` serve commands.
"""
