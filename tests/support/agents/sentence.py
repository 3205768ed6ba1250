"""Two capabilities: `test.split` makes words of `text`, `test.longest` finds the longest of `words`."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" in call:
        continue
    given = call["input"]
    output = {"words": given["text"].split()} if call["capability"] == "test.split" else {"longest": max(given["words"], key=len)}
    print(json.dumps({"id": call["id"], "output": output}), flush=True)
