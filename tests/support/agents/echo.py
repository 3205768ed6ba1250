"""Gives back what it was given."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" not in call:
        print(json.dumps({"id": call["id"], "output": call["input"]}), flush=True)
