"""Coherence: what keeps Redis (L1) true to PostgreSQL (L2) beyond single calls.

`identity` tells which entries belong to this PostgreSQL, as it is now; `sweeper` tells when Redis may be
believed; `audit` compares a share of the hits with PostgreSQL; `purging` removes what older epochs have
left; `last_used` and `images` find cached states for a process that cannot ask PostgreSQL; `standing` and
`attached` serve commands.
"""
