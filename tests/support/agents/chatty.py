"""Gives back what it was given, and writes lines that mean nothing without a pause all the while."""

import collections
import json
import sys
import threading

answers = collections.deque()


def write():
    while True:
        while answers:
            sys.stdout.write(answers.popleft())
        sys.stdout.write("chatter\n" * 5_000)
        sys.stdout.flush()


threading.Thread(target=write, daemon=True).start()
for line in sys.stdin:
    call = json.loads(line)
    if "cancel" not in call:
        answers.append(json.dumps({"id": call["id"], "output": call["input"]}) + "\n")
