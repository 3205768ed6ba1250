"""Answers each call twice: first with its input, then with something else."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" in call:
        continue
    print(json.dumps({"id": call["id"], "output": call["input"]}), flush=True)
    print(json.dumps({"id": call["id"], "output": "the second answer"}), flush=True)
