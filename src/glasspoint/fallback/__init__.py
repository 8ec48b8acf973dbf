"""The fallback chain: `cached`, then `redis`, then `memory`, and the way back without a loss.

`saver` sends every call to the tier that works; `controller` decides which tier that is; `draining` moves
up what was written below; `branches` leads a run to its branch; `lookout` looks for threads below;
`factory` has the doors.
"""
