"""A llama-server that says one token: the number of the adapter that is on, or 0; run as a program of its own.

Takes llama.cpp's flags. The prompt [1, 1] takes a second, [9] ends the process."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FLAGS = sys.argv[1:]
PORT = int(FLAGS[FLAGS.index("--port") + 1])
ADAPTERS = [value for flag, value in zip(FLAGS, FLAGS[1:], strict=False) if flag == "--lora-scaled"]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.say({"status": "ok"})
        self.say({"data": [{"id": "fake", "meta": {"n_ctx": 64}}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['LLAMA_API_KEY']}":
            return self.say({"error": {"message": "wrong key"}}, 401)
        if body["prompt"] == [9]:
            os._exit(3)
        time.sleep(body["prompt"] == [1, 1])
        assert len(body["lora"]) == len(ADAPTERS), "the list of adapters must be complete"
        token = next((place + 1 for place, one in enumerate(body["lora"]) if one["scale"] == 1), 0)
        self.say({"content": str(token), "tokens": [token], "stop": True, "stop_type": "limit", "tokens_predicted": 1,
                  "tokens_evaluated": len(body["prompt"]), "timings": {"cache_n": 0}})  # fmt: skip

    def say(self, value: dict, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    if "--fail" in os.environ.get("FAKE_LLAMA", ""):
        print("error: no such model")
        sys.exit(1)
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
