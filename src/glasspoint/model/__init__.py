"""What all levels speak of: threads, checkpoints, options, and how synchronous callers reach a saver.

Nothing here connects to a server. `scope` names a conversation and a namespace of it; `codec` takes a state
apart into bytes, once, for all levels; `lineage` tells whether one part of a history goes on from another;
`home` and `sync_methods` are the process, the event loop and the synchronous methods of a saver.
"""
