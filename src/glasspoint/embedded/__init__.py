"""Real PostgreSQL and Redis servers from wheels, for the demo, the tests and the benchmarks.

They need no root and no Docker, and they are not for production. The extra `demo` installs the wheels.
"""

from glasspoint.embedded.servers import EmbeddedPostgres, EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis"]
