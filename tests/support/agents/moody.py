"""Gives back what it was given, or fails, as the file that the first argument names says: `serve` or `fail`."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" in call:
        continue
    with open(sys.argv[1], encoding="utf-8") as file:
        fails = file.read().strip() == "fail"
    if fails:
        answer = {"id": call["id"], "error": {"message": "not in the mood", "retryable": True}}
    else:
        answer = {"id": call["id"], "output": call["input"]}
    print(json.dumps(answer), flush=True)
