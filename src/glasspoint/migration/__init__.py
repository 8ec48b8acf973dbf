"""Moving in: histories of another saver, copied into the PostgreSQL of a `CachedPostgresSaver`."""
