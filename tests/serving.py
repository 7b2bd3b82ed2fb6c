"""Real server processes for tests, over a fake engine or a model."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
from waiting import wait_until

TESTS = Path(__file__).resolve().parent


@dataclass
class Server:
    """A running server and what it has said."""

    process: subprocess.Popen
    home: Path
    said: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def text(self) -> str:
        return "".join(self.said)

    def client(self, key: str = "", **more) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **more)

    def ask(self, content: str = "hello", **more) -> httpx2.Response:
        body = {"messages": [{"role": "user", "content": content}], **more}
        with self.client() as client:
            return client.post("/v1/chat/completions", json=body)

    def engine(self) -> psutil.Process:
        """The engine's process."""
        [found] = [one for one in psutil.Process(self.process.pid).children() if "spawn_main" in command_of(one)]
        return found

    def stop(self, seconds: float = 60) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def read(self) -> None:
        for line in self.process.stdout:
            self.said.append(line)


@contextlib.contextmanager
def serving(
    home: Path, *flags: str, fake: bool = True, wait: bool = True, command: str = "", **environment: str
) -> Iterator[Server]:
    """`evergreen serve` (or another `command`) on a free port until the block ends."""
    program = (
        [str(TESTS / "fake_serve.py")] if fake and not command else ["-m", "evergreen", *(command or "serve").split()]
    )
    process = subprocess.Popen(
        [sys.executable, *program, "--port", "0", "--home", str(home), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "PYTHONUNBUFFERED": "1", **environment},
        cwd=home.parent,
    )
    server = Server(process, home)
    reader = threading.Thread(target=server.read, daemon=True)
    reader.start()
    try:
        if wait:
            wait_until(lambda: process.poll() is not None or "is served at" in server.text, 120)
            assert process.poll() is None, server.text
            server.port = int(re.search(r"http://[^ ]+:(\d+)", server.text)[1])
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        reader.join(10)


def command_of(process: psutil.Process) -> str:
    """Its command line; empty for one that ended in between."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
