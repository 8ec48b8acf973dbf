"""Chaos: processes hold real conversations while servers and lines fail; then everything is judged.

- `conversation` is what they talk about, `talking` what every process does. `worker` is one that uses
  Glasspoint, `foreign` the one that uses LangGraph's own saver. `place` is where a process lives, with its
  lines to the servers; `proxy` is such a line
- `faults` is what goes wrong and when, `servers` how it is made to go wrong. `deployment` is a Redis,
  `cluster_deployment` a Redis Cluster, `sentinel_deployment` a master with replicas and sentinels; `lines`
  leads workers to their nodes
- `history` is what the processes write down, `checker` judges it, `windows` says what is excused, and what
  PostgreSQL itself has lost; `report` is what people get to see
- `run` puts it together; `sabotage` breaks Glasspoint on purpose, to see that the checker would notice

The fallback chain has a run of its own: `chain` puts it together, from `chain_worker`, `chain_place`,
`chain_servers`, `chain_faults`, `chain_history`, `chain_checker`, `chain_report` and `chain_sabotage`.
"""
