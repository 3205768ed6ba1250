"""Does a step of a task as its input says, and notes what it was given. Arguments: its name, and a folder that it may share with others.

A note is a line of JSON in `notes`: `who`, `what` (`started`, `done`, `failed`, `cancelled`), and the `input`.
What the input may say: `fail`, `{"times": n, "error": {...}}`, the first n calls that any who share the folder begin with the same `mark`
fail; `meet`, work begins when so many calls with the same `mark` have begun; `odd`, the first so many calls with the same `mark` give a text
that nobody wants; `ms`, it takes so long; `until`, it takes until the folder has
this file; `units`, what it wants to be paid for; `sized`, it gives a text whose JSON has so many bytes; `output`, what it gives. Without
either it gives its input.
"""

import json
import os
import queue
import sys
import threading
import time

sys.stdout.reconfigure(encoding="utf-8")
name, folder = sys.argv[1:3]
calls = queue.Queue()
told = threading.Condition()
cancelled = set()


def read():
    for line in sys.stdin:
        call = json.loads(line)
        if "cancel" in call:
            with told:
                cancelled.add(call["cancel"])
                told.notify_all()
        else:
            calls.put(call)
    os._exit(0)


def note(what, given):
    # A large value would only make the notes hard to read.
    kept = {key: value for key, value in given.items() if len(str(value)) < 10_000}
    with open(os.path.join(folder, "notes"), "a", encoding="utf-8") as file:
        file.write(json.dumps({"who": name, "what": what, "input": kept}) + "\n")


def begun(given):
    with open(os.path.join(folder, "notes"), encoding="utf-8") as file:
        notes = [json.loads(line) for line in file if line.endswith("\n")]
    return sum(1 for each in notes if each["what"] == "started" and each["input"].get("mark") == given.get("mark"))


def is_ready(given, since):
    if time.monotonic() - since < given.get("ms", 0) / 1000 or begun(given) < given.get("meet", 0):
        return False
    return "until" not in given or os.path.exists(os.path.join(folder, given["until"]))


def serve(call):
    given = call["input"] if isinstance(call["input"], dict) else {"output": call["input"]}
    since = time.monotonic()
    note("started", given)
    fails = begun(given) <= given.get("fail", {}).get("times", 0)
    while not is_ready(given, since):
        with told:
            if told.wait_for(lambda: call["id"] in cancelled, 0.02):
                note("cancelled", given)
                return {"error": {"code": "CANCELLED", "message": "told to stop", "retryable": False}}
    if fails:
        note("failed", given)
        return {"error": given["fail"].get("error", {"message": "not this time", "retryable": True})}
    note("done", given)
    if begun(given) <= given.get("odd", 0):
        return {"output": "odd"}
    answer = {"output": "x" * (given["sized"] - 2) if "sized" in given else given.get("output", given)}
    return {**answer, "units": given["units"]} if "units" in given else answer


threading.Thread(target=read, daemon=True).start()
while True:
    current = calls.get()
    print(json.dumps({"id": current["id"], **serve(current)}, ensure_ascii=False), flush=True)
