"""What a pod, a Redis and a PostgreSQL carry: derived from measured figures."""
