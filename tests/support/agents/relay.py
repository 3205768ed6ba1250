"""Calls whoever stands first in `input.route`, in the name of the call that it works on, and answers with what came of it.

The arguments are the API of its node and the token. A step of the route is the body of a call; its input is the rest of the route, unless
the step has one of its own. A step with `forget` is waited for only until the file that it names is there.
"""

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

API, TOKEN = sys.argv[1:3]
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(body):
    """One call; what came of it."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{API}/v1/invoke", json.dumps(body).encode(), headers)
    try:
        with HTTP.open(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


for line in sys.stdin:
    asked = json.loads(line)
    if "cancel" in asked:
        continue
    output = {"deadline_ms": asked["deadline_ms"]}
    route = asked["input"].get("route", [])
    if route:
        step = {"parent": asked["id"], "input": {"route": route[1:]}, **route[0]}
        sign = step.pop("forget", None)
        if sign:
            threading.Thread(target=call, args=[step], daemon=True).start()
            while not os.path.exists(sign):
                time.sleep(0.01)
        else:
            output["then"] = call(step)
    print(json.dumps({"id": asked["id"], "output": output}), flush=True)
