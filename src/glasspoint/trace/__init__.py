"""`glasspoint trace`: a conversation, turn by turn, from the spans that were recorded of it.

`otlp` reads spans, from `files` or from a `tempo`; `conversation` makes turns of them, which `terminal` and
`page` show. Nothing here needs the services that wrote the spans, nor their servers.
"""
