"""The fallback chain: `cached`, then `redis`, then `memory`, and the way back without a loss.

`saver` sends every call to the tier that works; `controller` decides which tier that is; `draining` moves
threads from a lower tier up; `branches` sends the calls of a run to its branch; `lookout` looks for threads
below; `factory` has the functions that open a saver, such as `get_checkpointer`.
"""
