"""How far it scales: what a pod, a Redis and a PostgreSQL carry, derived and simulated from measured figures."""
