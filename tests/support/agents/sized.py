"""Answers with a string whose JSON text has `input.bytes` bytes."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" not in call:
        print(json.dumps({"id": call["id"], "output": "x" * (call["input"]["bytes"] - 2)}), flush=True)
