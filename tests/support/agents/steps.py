"""Does what the input of a call lists (see stepping.py). Arguments: its name, and the folder of its journal."""

import json
import os
import queue
import sys
import threading

# Nothing is left beside the sources.
sys.dont_write_bytecode = True

from stepping import Journal, run

sys.stdout.reconfigure(encoding="utf-8")
name, journal = sys.argv[1], Journal(sys.argv[2])
calls = queue.Queue()
told = threading.Condition()
cancelled = set()


def read():
    for line in sys.stdin:
        call = json.loads(line)
        if "cancel" in call:
            # Noted here, because whoever writes may be stuck behind a reader that takes nothing.
            journal.note("cancelled", call["cancel"])
            with told:
                cancelled.add(call["cancel"])
                told.notify_all()
        else:
            calls.put(call)
    os._exit(0)


def frame(text):
    return text + "\n"


def send(text):
    sys.stdout.write(text)
    sys.stdout.flush()


threading.Thread(target=read, daemon=True).start()
while True:
    current = calls.get()

    def wait(seconds):
        with told:
            return told.wait_for(lambda: current["id"] in cancelled, seconds)

    run(current, name, journal, frame, send, wait)
