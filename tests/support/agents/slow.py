"""Answers after `input.ms` milliseconds, unless it is told to cancel.

Each call is noted in the file that the first argument names: `started ID`, then `done ID` or `cancelled ID`.
"""

import json
import queue
import sys
import threading
import time

journal = sys.argv[1] if len(sys.argv) > 1 else None
lines = queue.Queue()


def note(what, call):
    if journal:
        with open(journal, "a", encoding="utf-8") as file:
            file.write(f"{what} {call}\n")


def read():
    for line in sys.stdin:
        lines.put(json.loads(line))
    lines.put(None)


def answer(**fields):
    print(json.dumps(fields), flush=True)


def serve(call, waiting):
    """Serves one call; lines that came in the meantime end up in `waiting`. False at the end of the input."""
    note("started", call["id"])
    ends = time.monotonic() + call["input"]["ms"] / 1000
    while (left := ends - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            break
        if line is None:
            return False
        if line.get("cancel") == call["id"]:
            note("cancelled", call["id"])
            answer(id=call["id"], error={"code": "CANCELLED", "message": "told to stop", "retryable": False})
            return True
        waiting.append(line)
    note("done", call["id"])
    answer(id=call["id"], output=call["input"])
    return True


def main():
    threading.Thread(target=read, daemon=True).start()
    waiting = []
    while True:
        line = waiting.pop(0) if waiting else lines.get()
        if line is None:
            return
        if "cancel" not in line and not serve(line, waiting):
            return


main()
