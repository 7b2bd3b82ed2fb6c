"""vLLM and llama.cpp started, watched and stopped, each in an environment of its own.

Promises: a server listens on 127.0.0.1 alone, at a free port, behind a key made for it; when it dies the requests that
it was answering end with one line each, it is started again with growing pauses and its adapters are loaded again;
meanwhile new requests wait. It ends with this process, whatever ends this process.
llama.cpp takes adapters at its start only: another one means another process, started beside the first, which answers
what it has and ends. DoRA and, under vLLM, chains are refused; llama.cpp gets a chain as one adapter.
"""

import atexit
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evergreen.engine.base import Output, Request, Stats
from evergreen.engine.dialects import Dialect, LlamaCpp, Plain, Vllm
from evergreen.engine.remote import DIGEST_LENGTH, RemoteEngine
from evergreen.engine.servers import Adapters, Kind, LlamaServer, VllmServer
from evergreen.home import home_dir
from evergreen.records import BadInput, Failure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from evergreen.engine.base import Engine
    from evergreen.settings import OtherEngineSettings

BACK_OFF_SECONDS = (0.5, 30.0)
START_SECONDS = 600.0
PATIENCE_SECONDS = 60.0  # that a request waits for a server that is being started again
STOP_SECONDS = 10.0
SILENT_SECONDS = 5.0  # of a start that needs no word
MAX_LOG_BYTES = 10 << 20


def open_remote(settings: "OtherEngineSettings", max_adapters: int = 8) -> "Engine":
    """The engine that --engine or --url says; `settings` also has model and home. Returns when it answers. Raises
    BadInput for what is missing, Failure with the end of its log when it does not come up."""
    from evergreen.model.load import tokenizer_of

    base, tokenizer = _base_of(settings.model), tokenizer_of(settings.model)
    if settings.url:
        return RemoteEngine(settings.url, tokenizer, _dialect_of(settings), api_key=settings.url_key)
    logs = home_dir(settings.home) / "logs"
    kinds: dict[str, Callable[[], Kind]] = {
        "vllm": lambda: VllmServer(
            _python(settings),
            base,
            settings.tensor_parallel_size,
            max_adapters,
            getattr(settings, "torch_dtype", "auto"),
            kv_cache_bytes=getattr(settings, "kv_cache_bytes", 0),
        ),
        "llamacpp": lambda: _llama(settings, base, home_dir(settings.home) / "gguf"),
    }
    if settings.engine not in kinds:
        raise BadInput(f"--engine {settings.engine} runs in this process; others are {', '.join(kinds)}")
    patience_seconds = getattr(settings, "start_timeout", PATIENCE_SECONDS)
    return Launched(kinds[settings.engine](), logs, tokenizer, patience_seconds=patience_seconds)


def check(settings: "OtherEngineSettings") -> None:
    """Raises BadInput when --engine lacks what would start it; takes no time."""
    if settings.engine == "llamacpp" and settings.engine_binary:
        _program(settings.engine_binary, "--engine_binary")
    elif settings.engine != "embedded":
        _python(settings)


def _base_of(reference: str) -> Path:
    """The folder of --model, which another server needs without adapters."""
    from evergreen.model.find import resolve

    found = resolve(reference)
    if found.adapters:
        raise BadInput(f"--model {reference} is an adapter: give its base, {found.base}, and load the adapter by name")
    return Path(found.base)


def _dialect_of(settings: "OtherEngineSettings") -> Dialect:
    return {"vllm": Vllm, "llamacpp": LlamaCpp}.get(settings.engine, Plain)()


def _python(settings: "OtherEngineSettings") -> Path:
    if not settings.engine_python:
        raise BadInput(f"--engine {settings.engine} needs --engine_python: the python of an environment that holds it")
    return _program(settings.engine_python, "--engine_python")


def _program(given: str, flag: str) -> Path:
    found = shutil.which(given)
    if not found:
        raise BadInput(f"{flag} {given}: no such program")
    return Path(found).absolute()


def _llama(settings: "OtherEngineSettings", base: Path, folder: Path) -> "LlamaServer":
    if settings.engine_binary:
        command = (str(_program(settings.engine_binary, "--engine_binary")),)
    else:
        command = (str(_python(settings)), str(Path(__file__).with_name("llama_server.py")))
    return LlamaServer(command, base, folder, settings.gguf_type, is_binary=bool(settings.engine_binary))


@dataclass
class _Server:
    """A process that runs, another one after it at the same port when it dies, and the client of both. `adapters` are
    those that it was started with."""

    process: subprocess.Popen
    client: RemoteEngine
    port: int
    key: str
    adapters: Adapters = field(default_factory=dict)

    def stop(self) -> None:
        with contextlib.suppress(Failure):
            self.client.close()
        _end(self.process)


class Launched:
    """An `engine.base.Engine` over a server that this process has started."""

    def __init__(
        self, kind: Kind, logs: Path, tokenizer: "PreTrainedTokenizerBase", start_seconds: float = START_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ):  # fmt: skip
        self.kind, self.log, self.tokenizer = kind, logs / f"{kind.name}.log", tokenizer
        self.start_seconds, self.patience_seconds = start_seconds, patience_seconds
        logs.mkdir(parents=True, exist_ok=True)
        self._adapters: Adapters = {}
        self._changing = threading.RLock()  # one start, stop or load at a time
        self._is_closed, self._is_up = threading.Event(), threading.Event()
        self._taking_over = threading.Lock()  # nothing is submitted to a server that has been replaced
        self._retiring: list[_Server] = []
        self._server = self._start({})
        self._is_up.set()
        self.max_context_tokens = self._server.client.max_context_tokens
        threading.Thread(target=self._watch, name=f"{kind.name} watch", daemon=True).start()
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        return self._server.process.pid

    def submit(self, request: Request, on_output: Callable[[Output], None]) -> None:
        if request.adapter and request.adapter not in self._adapters:
            raise BadInput(f"no adapter {request.adapter[:DIGEST_LENGTH]} is loaded")
        self._await_server()
        with self._taking_over:
            self._server.client.submit(request, on_output)

    def cancel(self, id: str) -> None:
        for server in (self._server, *self._retiring):
            server.client.cancel(id)

    def load_adapter(self, digest: str, folders: Sequence[Path]) -> None:
        chain = tuple(Path(folder) for folder in folders)
        with self._changing:
            if digest in self._adapters:
                return
            if self._server.client.dialect.can_load:
                self._server.client.load_adapter(digest, chain)
            elif digest not in self._server.adapters:
                self._switch({**self._adapters, digest: chain})
            self._adapters[digest] = chain

    def unload_adapter(self, digest: str) -> None:
        with self._changing:
            if self._adapters.pop(digest, None) is None:
                raise BadInput(f"no adapter {digest[:DIGEST_LENGTH]} is loaded")
            if self._server.client.dialect.can_load:
                self._server.client.unload_adapter(digest)
            else:
                self._server.client.drain(digest)

    def stats(self) -> Stats:
        from dataclasses import replace

        return replace(self._server.client.stats(), adapters=tuple(self._adapters))

    def close(self) -> None:
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        atexit.unregister(self.close)
        with self._changing:
            for server in (self._server, *self._retiring):
                server.stop()

    # -- one process after another

    def _switch(self, adapters: Adapters) -> None:
        """A server with other adapters takes over; the one before it ends when it has answered what it was asked."""
        after, before = self._start(adapters), self._server
        self._retiring.append(before)
        with self._taking_over:
            self._server = after

        def retire() -> None:
            before.client.drain()
            before.stop()
            self._retiring.remove(before)

        threading.Thread(target=retire, daemon=True).start()

    def _start(self, adapters: Adapters) -> _Server:
        port, key = _free_port(), secrets.token_urlsafe(24)
        process = self._spawn(adapters, port, key)
        try:
            client = RemoteEngine(
                f"http://127.0.0.1:{port}", self.tokenizer, self.kind.dialect(adapters), api_key=key,
                models=dict.fromkeys(adapters, ""), patience_seconds=self.patience_seconds,
            )  # fmt: skip
        except BaseException:
            _end(process)
            raise
        return _Server(process, client, port, key, dict(adapters))

    def _spawn(self, adapters: Adapters, port: int, key: str) -> subprocess.Popen:
        """A process that is well. Raises Failure when it ends before, or is not well in time."""
        words, environment = self.kind.command(adapters, port, key)
        if self.log.is_file() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        keeper = [sys.executable, "-E", "-S", str(Path(__file__).with_name("keeper.py"))]
        with open(self.log, "ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                [*keeper, *words], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env=_environment() | environment,
            )  # fmt: skip
        try:
            self._wait_for(process, port, start)
        except BaseException:
            _end(process)
            raise
        return process

    def _wait_for(self, process: subprocess.Popen, port: int, log_start: int) -> None:
        """Returns when the server says that it is well. Raises Failure with the end of its log."""
        import httpx2

        started, was_said = time.monotonic(), False
        with httpx2.Client(trust_env=False, timeout=2.0) as http:
            while True:
                waited = time.monotonic() - started
                if process.poll() is not None:
                    raise Failure(f"{self.kind.name} ended with {process.returncode} at its start: "
                                  f"{self._last_words(log_start)} ({self.log})")  # fmt: skip
                with contextlib.suppress(httpx2.HTTPError):
                    if http.get(f"http://127.0.0.1:{port}/health").is_success:
                        return
                if waited > SILENT_SECONDS and not was_said:
                    was_said = True
                    _say(
                        f"{self.kind.name} is starting, for at most {self.start_seconds:.0f} s (its words: {self.log})"
                    )
                if waited > self.start_seconds:
                    raise Failure(f"{self.kind.name} was not ready within {self.start_seconds:.0f} s ({self.log})")
                time.sleep(0.1)

    def _last_words(self, start: int) -> str:
        with open(self.log, "rb") as log:
            log.seek(start)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "rror" in line]
        return " ".join((errors or lines or ["it said nothing"])[-1].split())[:300]

    def _await_server(self) -> None:
        """Returns when the server runs; one that has just died and was not missed yet counts as dead."""
        until = time.monotonic() + self.patience_seconds
        while self._is_up.wait(max(0.0, until - time.monotonic())):
            if self._server.process.poll() is None:
                return
            if self._is_closed.wait(0.02) or time.monotonic() > until:
                break
        raise Failure(f"{self.kind.name} is being started again ({self.log})")

    def _watch(self) -> None:
        """Start the server again when it dies."""
        pause = BACK_OFF_SECONDS[0]
        while not self._is_closed.wait(0.1):
            server = self._server
            if server.process.poll() is None:
                continue
            self._is_up.clear()
            started = time.monotonic()
            with self._changing:
                if self._is_closed.is_set() or self._server is not server:
                    self._is_up.set()
                    continue
                _say(f"{self.kind.name} has ended with {server.process.returncode} ({self.log}): it is started again")
                try:
                    self._revive(server)
                except (Failure, BadInput) as error:
                    _say(str(error))
            if self._is_closed.wait(pause):
                return
            lasted = self._is_up.is_set() and time.monotonic() - started > BACK_OFF_SECONDS[1]
            pause = BACK_OFF_SECONDS[0] if lasted else min(2 * pause, BACK_OFF_SECONDS[1])

    def _revive(self, server: _Server) -> None:
        _end(server.process)  # what is left of its group
        server.process = self._spawn(server.adapters, server.port, server.key)
        if server.client.dialect.can_load:
            server.client.reload(self._adapters)
        self._is_up.set()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _environment() -> dict[str, str]:
    """This process's own without what would lead the other Python into ours."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }


def _end(process: subprocess.Popen) -> None:
    """SIGTERM to its group, then SIGKILL."""
    import signal

    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _say(text: str) -> None:
    print(f"evergreen: {text}", file=sys.stderr, flush=True)
