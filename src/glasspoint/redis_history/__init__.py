"""What is below `RedisSaver`: a thread's whole history in seven Redis keys (`keys`), changed in atomic steps
(`steps`, `scripts/`), packed (`records`), read and written (`history`), pruned (`retention`) and drained."""
