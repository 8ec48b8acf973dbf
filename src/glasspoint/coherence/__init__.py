"""Coherence: what keeps Redis (L1) true to PostgreSQL (L2) beyond single calls.

`identity` tells which entries belong to this PostgreSQL, as it is now.
"""
