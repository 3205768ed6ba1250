"""A client of one node that creates a context, shows it, or writes to it at an even pace: API TOKEN VERB ..."""
import json, sys, time, urllib.request
api, token, what, context = sys.argv[1:5]
def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": "Bearer " + token, "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(api + path, data, headers, method=method), timeout=30) as answer:
        return json.loads(answer.read())
if what == "create":
    print(ask("POST", "/v1/contexts", {"access_control": {"write": json.loads(context)}})["id"])
elif what == "state":
    print(json.dumps(ask("GET", "/v1/contexts/" + context)))
else:
    author, count, seconds = sys.argv[5], int(sys.argv[6]), float(sys.argv[7])
    began = time.monotonic()
    for at in range(count):
        ask("PATCH", "/v1/contexts/" + context, {"ops": [
            {"op": "inc", "path": "/shared_memory/votes"},
            {"op": "set", "path": "/shared_memory/writes/%s/%d" % (author, at), "value": at},
        ]})
        time.sleep(max(0, began + (at + 1) * seconds / count - time.monotonic()))
    print(count)
