from __future__ import annotations
import os, subprocess, sys
from pathlib import Path
from otlp import *
from pprint import pprint
WORKER = Path(__file__).with_name("agent_turn.py")
def test_it(database, redis_url):
    with collecting() as c:
        for text in ("one","two","fail"):
            e=subprocess.run([sys.executable, str(WORKER), database, redis_url, "42", text+" CANARY"], env=os.environ|{"OTEL_EXPORTER_OTLP_ENDPOINT": c.url}, capture_output=True, text=True)
            print(e.stdout, e.stderr[-3000:] if e.returncode or not e.stderr.startswith("#") else e.stderr[:300])
    for t in c.named("invoke_agent concierge"):
        print(t)
        pprint(c.tree(t), width=100)
    for s in c.spans:
        if s.trace_id==c.named("invoke_agent concierge")[-1].trace_id: print(s.name, s.scope, s.attributes)
    print([ (s.name,s.scope,s.parent_id) for s in c.spans if not s.parent_id])
    print("CANARY" in str(c.requests), [s.name for s in c.spans if "CANARY" in str(s)])
