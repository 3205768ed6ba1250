"""Answers with `input.output`, whether or not that matches the capability's schema."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" not in call:
        print(json.dumps({"id": call["id"], "output": call["input"]["output"]}), flush=True)
