"""Chaos: worker processes hold real conversations while servers and lines fail; then everything is judged.

- `conversation` is what they talk about, `worker` the process, `place` where one lives, with its lines to the
  servers; `proxy` is such a line
- `faults` is what goes wrong and when, `servers` how it is made to go wrong
- `history` is what they write down, `checker` who judges it, `report` what people get to see
- `run` puts it together; `sabotage` breaks Glasspoint on purpose, to see that the checker would notice
"""
