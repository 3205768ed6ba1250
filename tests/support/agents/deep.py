"""Answers with lists within each other, as deep as `deep` says in its input, or in the parameters of a goal."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    if "cancel" not in call:
        given = call["input"]
        deep = given.get("parameters", given)["deep"]
        print('{"id": %s, "output": %s%s}' % (json.dumps(call["id"]), "[" * deep, "]" * deep), flush=True)
