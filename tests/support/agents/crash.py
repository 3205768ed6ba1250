"""Exits with code 1 in the middle of a call whose `input.crash` is true; gives back any other input.

The first argument, if any, names a file without which the program does not even start: removing it makes a crash final.
"""

import json
import os
import sys

if len(sys.argv) > 1 and not os.path.exists(sys.argv[1]):
    sys.exit(1)

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" in call:
        continue
    given = call["input"]
    if isinstance(given, dict) and given.get("crash") is True:
        sys.exit(1)
    print(json.dumps({"id": call["id"], "output": given}), flush=True)
