"""An agent behind HTTP: `POST /invoke` gives back the input, `POST /stream` the same as events, `POST /steps` does what the input lists
(see stepping.py) in events and `POST /whole` in one body, `GET /health` tells whether it is well.

Its only argument is a folder. The agent is well while `healthy` exists there; it asks for the bearer token in `token` if that exists;
it appends each request to `requests`. The first line on standard output is its port. It ends with its standard input.
"""

import json
import os
import re
import select
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Nothing is left beside the sources.
sys.dont_write_bytecode = True

from stepping import Journal, run

folder = sys.argv[1]
journal = Journal(folder)


def path(name):
    return os.path.join(folder, name)


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        well = self.path == "/health" and os.path.exists(path("healthy"))
        self.answer(200 if well else 503, {"well": well})

    def do_POST(self):
        call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(path("requests"), "a", encoding="utf-8") as file:
            file.write(f"POST {self.path} {call.get('capability')}\n")
        if os.path.exists(path("token")):
            with open(path("token"), encoding="utf-8") as file:
                expected = "Bearer " + file.read().strip()
            if self.headers.get("Authorization") != expected:
                return self.answer(401, {"id": call["id"], "error": {"message": "wrong token", "retryable": False}})
        if self.path == "/steps":
            return self.step(call, "text/event-stream", lambda text: "".join(f"data: {line}\n" for line in re.split("[\r\n]", text)) + "\n")
        if self.path == "/whole":
            return self.step(call, "application/json", lambda text: text)
        reply = {"id": call["id"], "output": call["input"]}
        return self.stream([{"id": call["id"], "chunk": 1}, reply]) if self.path == "/stream" else self.answer(200, reply)

    def stream(self, documents):
        body = "".join(f"data: {json.dumps(document)}\n\n" for document in documents).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def step(self, call, kind, frame):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

        def send(text):
            self.wfile.write(text.encode())

        def wait(seconds):
            # Whoever closes the connection takes the call back.
            readable, _, _ = select.select([self.connection], [], [], seconds)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
            return False

        try:
            run(call, "http", journal, frame, send, wait)
        except OSError:
            journal.note("cancelled", call["id"])


def end_with_input():
    sys.stdin.read()
    os._exit(0)


server = ThreadingHTTPServer(("127.0.0.1", 0), Agent)
print(server.server_address[1], flush=True)
threading.Thread(target=end_with_input, daemon=True).start()
server.serve_forever()
