"""The terms that all levels share: threads, checkpoints, options, and synchronous access to a saver.

Nothing here connects to a server. `scope` names a conversation and a namespace in it. `codec` turns a state
into bytes, once, for all levels. `lineage` tells whether one part of a history continues another. `home` and
`sync_methods` are the process, the event loop and the synchronous methods of a saver.
"""
