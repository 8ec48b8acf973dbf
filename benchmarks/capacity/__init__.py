"""What a pod, a Redis and a PostgreSQL carry: derived and simulated from measured figures."""
