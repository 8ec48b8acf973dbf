"""The statements of `pruning`, by name. Their texts are in `sql/pruning.sql` and `sql/threads.sql`."""

from __future__ import annotations

from typing import Final

from glasspoint.l2.sql import query

__all__ = [
    "BLOB_SIZES",
    "CHECKPOINT_SIZES",
    "COPY_THREAD",
    "DELETE_BLOBS",
    "DELETE_CHECKPOINTS",
    "DELETE_THREADS",
    "DELETE_WRITES",
    "DELETE_WRITES_OF_SCOPES",
    "DROP_PARENTS",
    "FIND_THREADS",
    "GARBAGE_BLOBS",
    "LOCK_THREADS",
    "LOCK_TO_COPY",
    "ORPHANED_WRITES",
    "PARENTS_SINCE",
    "PLAN_KEEP_LATEST",
    "PLAN_OLDER",
    "PLAN_RUNS",
    "SETTINGS",
    "STILL_THERE",
    "THREADS_OF_RUNS",
    "THREAD_EXISTS",
    "WRITE_SIZES",
]

SETTINGS: Final = query("set_for_pruning")

PLAN_KEEP_LATEST: Final = query("plan_keep_latest")
PLAN_OLDER: Final = query("plan_older")
PLAN_RUNS: Final = query("plan_runs")
THREADS_OF_RUNS: Final = query("threads_of_runs")
FIND_THREADS: Final = query("find_threads")
LOCK_THREADS: Final = query("lock_threads")
PARENTS_SINCE: Final = query("parents_since")
GARBAGE_BLOBS: Final = query("garbage_blobs")
ORPHANED_WRITES: Final = query("orphaned_writes")

DELETE_CHECKPOINTS: Final = query("delete_checkpoints")
DELETE_WRITES: Final = query("delete_writes")
DELETE_BLOBS: Final = query("delete_blobs")
DELETE_WRITES_OF_SCOPES: Final = query("delete_writes_of_scopes")
DROP_PARENTS: Final = query("drop_parents")
CHECKPOINT_SIZES: Final = query("checkpoint_sizes")
WRITE_SIZES: Final = query("write_sizes")
BLOB_SIZES: Final = query("blob_sizes")

DELETE_THREADS: Final = query("delete_threads")
STILL_THERE: Final = query("still_there")
THREAD_EXISTS: Final = query("thread_exists")
LOCK_TO_COPY: Final = query("lock_to_copy")
COPY_THREAD: Final = query("copy_thread")
