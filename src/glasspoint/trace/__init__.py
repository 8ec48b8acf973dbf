"""`glasspoint trace`: shows a conversation, turn by turn, from its recorded spans.

`files` or `tempo` reads the spans, and `otlp` parses them. `conversation` builds turns from them, which
`terminal` and `page` show. Nothing here needs the services that wrote the spans, or their servers.
"""
