"""What runs in the engine's own process: commands from a pipe, steps, outputs back.

The engine has `max_context_tokens`, `add`, `cancel`, `step`, `has_work`, `load_adapter(digest, folders)`,
`unload_adapter(digest, told)` and `stats`. `load_adapter` is called in a thread while steps go on; `told` is called, in
any thread, when the adapter is gone (or has come back meanwhile).
"""

import contextlib
import gc
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from evergreen.engine.base import Output, Request
from evergreen.records import BadInput, EvergreenError

Factory = Callable[[], Any]
STATS_SECONDS = 0.1
MAX_LOG_BYTES = 10 << 20


def work(factory: Factory, connection: Connection, log: Path) -> None:
    """The process: an engine that obeys until the pipe ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group, and the server still drains
        signal.signal(number, signal.SIG_IGN)
    _write_to(log)
    try:
        engine = factory()
    except Exception as error:
        if not isinstance(error, EvergreenError):
            traceback.print_exc()
        connection.send(("failed", *_told(error)))
        return
    gc.collect()
    gc.freeze()  # the model and its libraries are never collected; looking at them takes longer than many steps
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(("ready", engine.max_context_tokens))
        _Loop(engine, connection).run()


class _Loop:
    """Commands in, one step, its outputs out, for as long as there is anything to do; otherwise it waits."""

    def __init__(self, engine: Any, connection: Connection):
        self.engine, self.connection = engine, connection
        self.sending = threading.Lock()
        self.unloaded: deque[int] = deque()  # tokens of commands to be answered behind the outputs that came before
        self.stats_sent = 0.0

    def run(self) -> None:
        while True:
            wait: float | None = 0.0 if self.engine.has_work() else None
            while self.connection.poll(wait):
                what, *arguments = self.connection.recv()
                if what == "close":
                    return
                getattr(self, f"_{what}")(*arguments)
                wait = 0.0
            self._send_outputs(self.engine.step() if self.engine.has_work() else [])
            self._tell_unloaded()

    def _add(self, request: Request) -> None:
        try:
            self.engine.add(request)
        except EvergreenError as error:
            self._send("outputs", [Output(request.id, error=str(error), is_refused=isinstance(error, BadInput))], None)

    def _cancel(self, id: str) -> None:
        self.engine.cancel(id)

    def _load(self, token: int, digest: str, folders: tuple[Path, ...]) -> None:
        threading.Thread(target=self._load_aside, args=(token, digest, folders), daemon=True).start()

    def _load_aside(self, token: int, digest: str, folders: tuple[Path, ...]) -> None:
        error = self._try(lambda: self.engine.load_adapter(digest, folders))
        self._tell_unloaded()  # it has come back
        self._reply(token, error)

    def _unload(self, token: int, digest: str) -> None:
        if error := self._try(lambda: self.engine.unload_adapter(digest, lambda: self.unloaded.append(token))):
            self._reply(token, error)

    def _tell_unloaded(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._reply(self.unloaded.popleft(), None)

    def _try(self, change: Callable[[], None]) -> tuple[str, str] | None:
        """The error that it raises, as it crosses the pipe."""
        try:
            return change()
        except Exception as error:
            if not isinstance(error, EvergreenError):
                traceback.print_exc()
            return _told(error)

    def _send_outputs(self, outputs: list[Output]) -> None:
        is_due = not self.engine.has_work() or time.monotonic() - self.stats_sent > STATS_SECONDS
        if is_due:
            self.stats_sent = time.monotonic()
        if outputs or is_due:
            self._send("outputs", outputs, self.engine.stats() if is_due else None)

    def _reply(self, token: int, error: tuple[str, str] | None) -> None:
        self._send("outputs", [], self.engine.stats())
        self._send("reply", token, error)

    def _send(self, *message: Any) -> None:
        with self.sending:
            self.connection.send(message)


def _write_to(log: Path) -> None:
    """What the process and its libraries print goes to a file; one that has grown large is set aside."""
    if log.is_file() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _told(error: Exception) -> tuple[str, str]:
    """An error as it crosses the pipe."""
    if isinstance(error, EvergreenError):
        return type(error).__name__, str(error)
    return "Failure", f"{type(error).__name__}: {error}"
