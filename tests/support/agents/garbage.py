"""Writes lines that mean nothing before each answer, and something to standard error."""

import json
import sys

print("loading the model, please wait", flush=True)

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" in call:
        continue
    print("a word on standard error", file=sys.stderr, flush=True)
    for noise in ["", "not JSON", "{", "[]", "null", '{"id": 7}', '{"id": "of nobody", "output": 1}', "\x1b[31mred\x1b[0m"]:
        print(noise, flush=True)
    print(json.dumps({"id": call["id"], "output": call["input"]}), flush=True)
