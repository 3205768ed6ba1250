"""Gives back what it was given. With `--as NAME` it answers {"by": NAME, "input": ...} instead, so that a test sees who did it."""

import json
import sys

name = sys.argv[2] if sys.argv[1:2] == ["--as"] else None

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" in call:
        continue
    given = call["input"]
    output = given if name is None else {"by": name, "input": given}
    print(json.dumps({"id": call["id"], "output": output}), flush=True)
