"""Notes each of its executions in the file that the first argument names, so that they can be counted without asking a node. The second is
its own name.

A line each, appended before anything else happens: `started STEP KEY`, then `failed STEP KEY` or `finished STEP KEY`, where KEY is the
idempotency key of the call. Its input: `step`, a name; `ms`, how long it takes, or `first_ms`, if it was never started
before; `until`, a file that it waits for; `fails`, how often it fails at first, by what the file says; `odd`, the name of an agent that
answers with a sum that is no number; `pad`, how many letters its answer has beside that; `ops`, what it wants to be written to
the task's context; `add`, numbers, whose sum and one more it answers with. A goal it answers with the plan in its parameters, when
the file is there that they may name as `until`; its step is called `plan-` and the name of the task.
"""

import json
import os
import sys
import time

book = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(what, step, key):
    os.write(book, f"{what} {step} {key}\n".encode())


def noted(line):
    with open(sys.argv[1], encoding="utf-8") as file:
        return sum(1 for noted in file if noted == f"{line}\n")


def wait(file):
    while file and not os.path.exists(file):
        time.sleep(0.01)


def serve(given, key):
    if "goal" in given:
        step = f"plan-{given['name']}".replace(" ", "-")
        note("started", step, key)
        wait(given["parameters"].get("until"))
        note("finished", step, key)
        return {"output": {"subtasks": given["parameters"]["plan"]}}
    step = given["step"]
    note("started", step, key)
    is_first = noted(f"started {step} {key}") == 1
    time.sleep(given.get("first_ms" if is_first and "first_ms" in given else "ms", 0) / 1000)
    wait(given.get("until"))
    if noted(f"failed {step} {key}") < given.get("fails", 0):
        note("failed", step, key)
        return {"error": {"message": "not this time", "retryable": True}}
    if given.get("odd") == sys.argv[2]:
        note("failed", step, key)
        return {"output": {"step": step, "sum": "much"}}
    note("finished", step, key)
    pad = {"pad": "x" * given["pad"]} if "pad" in given else {}
    ops = {"context_ops": given["ops"]} if "ops" in given else {}
    return {"output": {"step": step, "sum": sum(given.get("add", [])) + 1, **pad}, **ops}


for line in sys.stdin:
    call = json.loads(line)
    if "cancel" not in call:
        answer = serve(call["input"], call.get("idempotency_key", "-"))
        print(json.dumps({"id": call["id"], **answer}), flush=True)
