"""An OpenAI-compatible server in a thread: each POST goes to a function that says what to answer."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """`events` of a stream (text is sent as it stands), or `body` with `status`."""

    events: Iterator[dict | str] | list = ()
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fake:
    url: str
    bodies: list[tuple[str, dict]] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)  # a client has left before its answer's end


@contextmanager
def serving(answer: Callable[[str, dict], Answer]) -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_) -> None: ...

        def do_GET(self) -> None:
            models = {"data": [{"id": "base", "max_model_len": 256}]}
            self.say(Answer(body={} if self.path == "/health" else models))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.bodies.append((self.path, body))
            self.say(answer(self.path, body))

        def say(self, answer: Answer) -> None:
            self.send_response(answer.status)
            kind = "text/event-stream" if answer.body is None else "application/json"
            for name, value in {"Content-Type": kind, "Connection": "close", **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                if answer.body is not None:
                    self.wfile.write(json.dumps(answer.body).encode())
                for event in answer.events:
                    text = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
                    self.wfile.write(text.encode())
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                fake.broken.set()
            self.close_connection = True

    class Server(ThreadingHTTPServer):
        request_queue_size, daemon_threads = 128, True

    server = Server(("127.0.0.1", 0), Handler)
    fake = Fake(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
