"""An agent in one file: counts the lines, words and characters of a text.

The node starts this program and writes one JSON object per line to its standard input:
    {"id": "...", "capability": "word-count", "input": {"text": "..."}, "deadline_ms": 60000}
It answers with one JSON object per line on its standard output:
    {"id": "...", "output": {"lines": 1, "words": 3, "characters": 13}}
or, when it cannot:
    {"id": "...", "error": {"code": "INVALID_REQUEST", "message": "...", "retryable": false}}
Whatever it writes to standard error ends up in the node's log.
"""

import json
import sys


def count(text):
    return {"lines": len(text.splitlines()), "words": len(text.split()), "characters": len(text)}


def answer(request):
    given = request.get("input")
    text = given.get("text") if isinstance(given, dict) else None
    if not isinstance(text, str):
        error = {"code": "INVALID_REQUEST", "message": "input.text must be a string", "retryable": False}
        return {"id": request["id"], "error": error}
    return {"id": request["id"], "output": count(text)}


def main():
    # The protocol is UTF-8 whatever the locale says.
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    for line in sys.stdin:
        try:
            request = json.loads(line)
        except ValueError:
            print("not JSON, ignored:", line[:80].rstrip(), file=sys.stderr, flush=True)
            continue
        # `{"cancel": id}` may arrive too; counting is over before it could matter.
        if isinstance(request, dict) and "id" in request:
            # Without the flush the answer would wait in a buffer while the caller waits for it.
            print(json.dumps(answer(request)), flush=True)


if __name__ == "__main__":
    main()
