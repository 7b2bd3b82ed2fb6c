"""The embedded engine in a process of its own: pipes to it, its death noticed, another one started in its place.

Promises: the process that asks never waits for a forward pass; what the engine's process does (a crash, kill -9, out of
memory) costs the requests that were running there one line each and nothing else; adapters that were loaded are loaded
again in the next one. When the asking process dies, so does the engine's.
Does not: answer a request twice. One that was running when the engine died has ended with an error.
What runs in the other process, and the engine that `factory` makes there, is told in `worker`.
"""

import atexit
import contextlib
import itertools
import multiprocessing
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from evergreen.engine.base import EngineSettings, Output, Request, Stats, check_fits
from evergreen.engine.worker import Factory, work
from evergreen.records import BadInput, EvergreenError, Failure

BACK_OFF_SECONDS = (0.5, 30.0)
CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Embedded:
    """Makes the in-process engine of a model; `adapters` are merged into it or lie on it for good."""

    model: str
    adapters: tuple[str, ...] = ()
    torch_dtype: str = "auto"
    device: str = ""
    template: str = ""
    settings: EngineSettings = EngineSettings()

    def __call__(self) -> Any:
        from evergreen.engine.engine import Engine
        from evergreen.model.load import leave_out_bitsandbytes, load_model

        if self.settings.quantization != "nf4":
            leave_out_bitsandbytes(self.model, *self.adapters)
        loaded = load_model(
            self.model,
            self.adapters,
            torch_dtype=self.torch_dtype,
            device=self.device,
            template=self.template,
            rope_scaling=self.settings.rope_scaling,
            max_model_len=self.settings.max_model_len,
        )
        return Engine(loaded, self.settings)


class ProcessEngine:
    """An `engine.base.Engine`. Made when the model is loaded; raises what the loading raised."""

    def __init__(
        self, factory: Factory, log: Path, start_timeout: float = 60.0, say: Callable[[str], None] | None = None
    ):
        """`log` is the file that the process's own output goes to. `start_timeout` is how many seconds a request waits
        for an engine that is being started again."""
        self.factory, self.log, self.start_timeout = factory, Path(log), start_timeout
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._changed = threading.Condition()
        self._running: dict[str, Callable[[Output], None]] = {}
        self._adapters: dict[str, tuple[Path, ...]] = {}
        self._replies: dict[int, Future[None]] = {}
        self._tokens, self._stats = itertools.count(), Stats()
        self._is_up = self._is_closed = False
        self._worker = self._start()
        self.max_context_tokens = self._worker.max_context_tokens
        self._is_up = True
        self._supervisor = threading.Thread(target=self._supervise, name="engine supervisor", daemon=True)
        self._supervisor.start()
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        return self._worker.process.pid or 0

    def submit(self, request: Request, on_output: Callable[[Output], None]) -> None:
        check_fits(request.prompt, self.max_context_tokens)
        with self._up():
            if request.adapter and request.adapter not in self._adapters:
                raise BadInput(f"no adapter {request.adapter[:12]} is loaded")
            self._running[request.id] = on_output
            self._worker.send("add", request)

    def cancel(self, id: str) -> None:
        with self._changed:
            if self._is_up and id in self._running:
                self._worker.send("cancel", id)

    def load_adapter(self, digest: str, folders: Sequence[Path]) -> None:
        with self._up():
            reply = self._ask("load", digest, tuple(folders))
        reply.result()
        with self._changed:
            self._adapters[digest] = tuple(folders)

    def unload_adapter(self, digest: str) -> None:
        with self._up():
            if self._adapters.pop(digest, None) is None:
                raise BadInput(f"no adapter {digest[:12]} is loaded")
            reply = self._ask("unload", digest)
        reply.result()

    def stats(self) -> Stats:
        """As of a tenth of a second ago at most. Raises Failure while no engine is running."""
        if not self._is_up:
            raise Failure("the engine is being started")
        return self._stats

    def is_healthy(self) -> bool:
        return self._is_up

    def memory_bytes(self) -> int:
        """Resident memory of the engine's process."""
        import psutil

        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).memory_info().rss
        return 0

    def close(self) -> None:
        """Ends the process; what still runs gets an error."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed, self._is_up = True, False
            self._changed.notify_all()
        atexit.unregister(self.close)
        self._worker.send("close")
        self._supervisor.join(CLOSE_SECONDS)
        if self._supervisor.is_alive():  # in the middle of a long step
            self._worker.process.kill()
            self._supervisor.join()

    # -- one process after another

    def _start(self) -> "_Child":
        return _Child(self.factory, self.log)

    def _supervise(self) -> None:
        """Reads what the engine sends until it dies, then starts another, until closed."""
        while True:
            started = time.monotonic()
            while (message := self._worker.receive()) is not None:
                self._hear(*message)
            reason = self._worker.end()
            with self._changed:
                self._is_up, running, self._running = False, self._running, {}
                replies, self._replies = self._replies, {}
            failure = "the engine is closed" if self._is_closed else f"the engine {reason} and is being started again"
            for id, on_output in running.items():
                self._tell(on_output, Output(id, error=failure))
            for reply in replies.values():
                reply.set_exception(Failure(failure))
            if self._is_closed:
                return
            self._say(f"{failure}; {len(running)} requests were running, {self.log} may tell why")
            if not self._restart(BACK_OFF_SECONDS[0] if time.monotonic() - started > BACK_OFF_SECONDS[1] else None):
                return

    _pause = BACK_OFF_SECONDS[0]

    def _restart(self, pause: float | None) -> bool:
        """Tries until one is up; False when closed meanwhile. The pause doubles while engines die young."""
        self._pause = pause or self._pause
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, timeout=self._pause):
                    return False
            self._pause = min(2 * self._pause, BACK_OFF_SECONDS[1])
            try:
                worker = self._start()
            except EvergreenError as error:
                self._say(f"the engine does not start: {error}")
                continue
            self._worker = worker
            if self._is_closed:
                worker.send("close")
                worker.end()
                return False
            if self._load_again(worker):
                with self._changed:
                    self._is_up = not self._is_closed
                    self._changed.notify_all()
                self._say("the engine is up again")
                return True

    def _load_again(self, worker: "_Child") -> bool:
        """False when the process died over it. An adapter that does not load any more is left out, and it is said."""
        for digest, folders in list(self._adapters.items()):
            worker.send("load", -1, digest, folders)
            while (message := worker.receive()) is not None and message[0] != "reply":
                pass
            if message is None:
                worker.end()
                return False
            if message[2]:
                self._say(f"adapter {digest[:12]} is not loaded again: {message[2][1]}")
                self._adapters.pop(digest, None)
        return True

    # -- messages

    @contextlib.contextmanager
    def _up(self) -> Any:
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_up or self._is_closed, timeout=self.start_timeout):
                raise Failure("the engine is being started again: try again in a moment")
            if self._is_closed:
                raise Failure("the engine is closed")
            yield

    def _ask(self, what: str, *arguments: Any) -> "Future[None]":
        token = next(self._tokens)
        reply = self._replies[token] = Future()
        self._worker.send(what, token, *arguments)
        return reply

    def _hear(self, what: str, *arguments: Any) -> None:
        if what == "outputs":
            outputs, stats = arguments
            self._stats = stats or self._stats
            for output in outputs:
                take = self._running.pop if output.is_last else self._running.get
                if on_output := take(output.id, None):
                    self._tell(on_output, output)
        elif what == "reply" and (reply := self._replies.pop(arguments[0], None)):
            error = arguments[1]
            reply.set_exception(_raised(*error)) if error else reply.set_result(None)

    def _tell(self, on_output: Callable[[Output], None], output: Output) -> None:
        try:
            on_output(output)
        except Exception:  # one listener's fault is not the others'
            traceback.print_exc()


class _Child:
    """One process with an engine in it, as its parent sees it. Raises EvergreenError when it does not come up."""

    def __init__(self, factory: Factory, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(factory, theirs, log), name="evergreen engine")
        self.process.start()
        theirs.close()  # so that its death is the end of the pipe
        try:
            what, *arguments = self.receive() or ("died",)
        except BaseException:  # Ctrl-C while it loads
            self.process.kill()
            raise
        if what != "ready":
            reason = self.end()
            raise _raised(*arguments) if arguments else Failure(f"the engine {reason} while it started: see {log}")
        [self.max_context_tokens] = arguments
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._send_on, name="engine commands", daemon=True).start()

    def send(self, *command: Any) -> None:
        """Never waits: a thread of its own fills the pipe."""
        self._commands.put(command)

    def receive(self) -> tuple[Any, ...] | None:
        """What the process says next; None when it is gone."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> str:
        """Make sure that it is gone. How it ended, in words."""
        self.process.join(CLOSE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        if hasattr(self, "_commands"):
            self._commands.put(None)
        code = self.process.exitcode or 0
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _send_on(self) -> None:
        for command in iter(self._commands.get, None):
            try:
                self.connection.send(command)
            except OSError:
                return


def _raised(kind: str, text: str) -> EvergreenError:
    return BadInput(text) if kind == "BadInput" else Failure(text)
