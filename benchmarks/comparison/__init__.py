"""Glasspoint beside its peers and beside the limit: what `compare.py` measures, and how."""
