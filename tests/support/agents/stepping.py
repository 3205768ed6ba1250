"""What the agents that stream do in one call: the steps that its input lists, in turn.

`{"chunk": value}`; `{"chunks": count, "bytes": size}`, numbered chunks of that size as JSON; `{"text": "..."}`, written as it stands with
`ID` for the id of the call, and `"times"` over; `{"drip": bytes}`, the input as the output in pieces of so many bytes, with a pause of
`"pause_ms"` after each, and the rest at once for whoever says stop; `{"sized": bytes}`, a string whose JSON text has so many bytes as the
output; `{"flood": text}`, the same text for ever, whoever says stop; `{"ms": pause}`, of the program `"of"` alone if that is named;
`{"deaf_ms": pause}`, whoever says stop; `{"exit": name}`, the end of the program whose name that is; `{"output": value}`;
`{"error": {...}}`.
Below a folder the file `journal` takes `started ID`, `cancelled ID` and `done ID`, and `emitted` the number of the last numbered chunk.
"""

import json
import os
import time


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


def run(call, name, journal, frame, send, wait):
    """Does the steps of a call. `frame` makes of the text of one answer what `send` takes; `wait` pauses, and says whether the call was
    cancelled."""
    journal.note("started", call["id"])

    def write(text):
        send(frame(text))

    def say(**fields):
        write(json.dumps({"id": call["id"], **fields}, separators=(",", ":"), ensure_ascii=False))

    for step in call["input"]["steps"]:
        if wait(step.get("ms", 0) / 1000 if step.get("of", name) == name else 0):
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
            text = frame(json.dumps({"id": call["id"], "output": call["input"]}))
            for start in range(0, len(text), step["drip"]):
                send(text[start : start + step["drip"]])
                if wait(step.get("pause_ms", 2) / 1000):
                    return send(text[start + step["drip"] :])
        if "sized" in step:
            say(output="x" * (step["sized"] - 2))
        while "flood" in step:
            send(step["flood"])
        time.sleep(step.get("deaf_ms", 0) / 1000)
        if "error" in step:
            say(error=step["error"])
        if "output" in step:
            journal.note("done", call["id"])
            say(output=step["output"])
