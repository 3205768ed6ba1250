"""What the agents that stream do in one call: the steps that its input lists, in turn.

`{"chunk": value}`; `{"chunks": count, "bytes": size}`, numbered parts of that size as JSON; `{"text": "..."}`, written as it stands with
`ID` for the id of the call, and `"times"` over; `{"drip": bytes}`, the output in pieces of so many bytes; `{"ms": pause}`;
`{"exit": name}`, the end of the program whose name that is; `{"output": value}`; `{"error": {...}}`.
Below a folder the file `journal` takes `started ID`, `cancelled ID` and `done ID`, and `emitted` the number of the last numbered part.
"""

import json
import os


class Journal:
    def __init__(self, folder):
        self.folder = folder
        self.emitted = open(os.path.join(folder, "emitted"), "w", encoding="utf-8")

    def note(self, what, call):
        with open(os.path.join(self.folder, "journal"), "a", encoding="utf-8") as file:
            file.write(f"{what} {call}\n")

    def count(self, number):
        self.emitted.seek(0)
        self.emitted.write(f"{number:012}")
        self.emitted.flush()


def numbered(number, size):
    bare = json.dumps({"n": number, "x": ""}, separators=(",", ":"))
    return {"n": number, "x": "x" * (size - len(bare))}


def run(call, name, journal, write, wait):
    """Does the steps of a call. `write` takes the text of one answer; `wait` pauses, and says whether the call was cancelled."""
    journal.note("started", call["id"])

    def say(**fields):
        write(json.dumps({"id": call["id"], **fields}, separators=(",", ":"), ensure_ascii=False))

    for step in call["input"]["steps"]:
        if wait(step.get("ms", 0) / 1000):
            return say(error={"code": "CANCELLED", "message": "told to stop", "retryable": False})
        if "chunk" in step:
            say(chunk=step["chunk"])
        for number in range(step.get("chunks", 0)):
            if wait(0):
                return say(error={"code": "CANCELLED", "message": "told to stop", "retryable": False})
            say(chunk=numbered(number, step["bytes"]))
            journal.count(number + 1)
        if "text" in step:
            write(step["text"].replace("ID", call["id"]) * step.get("times", 1))
        if step.get("exit") == name:
            os._exit(1)
        if "drip" in step:
            text = json.dumps({"id": call["id"], "output": call["input"]})
            for start in range(0, len(text), step["drip"]):
                write(text[start : start + step["drip"]], end="")
                wait(0.002)
            write("")
        if "error" in step:
            say(error=step["error"])
        if "output" in step:
            journal.note("done", call["id"])
            say(output=step["output"])
