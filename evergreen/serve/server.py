"""`evergreen serve`: everything opened, one line with the address, and everything put in order on SIGTERM.

Promises: an address that cannot be had and a model that cannot be loaded are errors before anything is served; the
line comes when the first request would be answered. SIGTERM, SIGHUP or Ctrl-C: no new connection, running answers go
on for `drain_seconds`, then the end, exit code 0; a second signal does not wait.
"""

import asyncio
import contextlib
import gc
import ipaddress
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from evergreen import feedback
from evergreen.engine.base import Engine, EngineSettings
from evergreen.home import home_dir
from evergreen.knowledge.answer import open_knowledge
from evergreen.records import BadInput
from evergreen.registry import Registry
from evergreen.registry.knowledge import Pinned, standing_aside
from evergreen.serve import protocol
from evergreen.serve.app import make_app
from evergreen.serve.keys import KEYS_FILE, Keys, keys_of, make_key
from evergreen.serve.knowledge import make_knowledge_app
from evergreen.serve.models import Models
from evergreen.serve.schemas import ApiError
from evergreen.settings import EmbeddedEngineSettings, KnowledgeServeSettings, KnowledgeSettings, ServeSettings

HEAD_SECONDS, MAX_HEAD_BYTES = 20.0, 65_536
UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
STOPPING = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
SWITCH_SECONDS = 0.0005  # after which a thread hands over to the event loop; by default 5 ms, each time
LOG_FILE = Path("logs", "engine.log")  # of the home


def run_serve(given: ServeSettings) -> dict[str, Any]:
    """Serve until told to stop: {address, model}."""
    home, is_local = home_dir(given.home or None), _is_local(given.host)
    keys = _keys(given, home)
    with _listening(given.host, given.port) as listener:
        registry = Registry(home)
        models = Models(given, registry, open_engine, _say)
        log = feedback.Log(registry.db, given.log_content, _say)
        knowledge = open_knowledge(home, given, _say)
        try:
            if knowledge.has_entries():
                knowledge.warm()
            if not keys and not is_local:
                key = make_key(home)
                keys = _keys(given, home)
                _say(f"API key, made for this home and shown only now ({home / KEYS_FILE} keeps its digest): {key}")
            app = make_app(given, models, keys, log, is_local, knowledge)
            address = _address(given.host, listener.getsockname()[1])
            server = _Server(app, given.drain_seconds, lambda: _greet(address, models.default))
            with standing_aside(home, models.default, models.pointers, _say):
                asyncio.run(server.serve(sockets=[listener]))
        finally:
            models.close()
            log.close()
            knowledge.close()
    return {"address": address, "model": models.default}


def run_knowledge_serve(given: KnowledgeServeSettings) -> dict[str, Any]:
    """Serve a home's knowledge alone until told to stop: {address}."""
    home, is_local = home_dir(given.home or None), _is_local(given.host)
    keys = keys_of(home, given.api_key, given.admin_key, given.api_key_file)
    with _listening(given.host, given.port) as listener:
        registry, knowledge = Registry(home), open_knowledge(home, KnowledgeSettings(), _say)
        pinned = Pinned(registry)
        try:
            if not keys and not is_local:
                key = make_key(home)
                keys = keys_of(home, given.api_key, given.admin_key, given.api_key_file)
                _say(f"API key, made for this home and shown only now ({home / KEYS_FILE} keeps its digest): {key}")
            knowledge.warm()
            app = make_knowledge_app(knowledge, registry, keys, pinned.now, given.max_body_bytes, is_local)
            address = _address(given.host, listener.getsockname()[1])
            server = _Server(app, given.drain_seconds, lambda: _greet_knowledge(address))
            asyncio.run(server.serve(sockets=[listener]))
        finally:
            pinned.close()
            knowledge.close()
    return {"address": address}


def open_engine(given: ServeSettings, base: str, adapters: tuple[str, ...]) -> Engine:
    """An engine for a base: our own in its process, or a server elsewhere."""
    from dataclasses import fields, replace

    if given.url or given.engine != "embedded":
        if adapters:
            raise BadInput(f"--engine {given.engine} does not take an adapter that has to be merged: merge it first")
        from evergreen.engine.launch import open_remote

        return open_remote(replace(given, model=base, adapters=[]), given.max_adapters)
    from evergreen.engine.process import Embedded, ProcessEngine

    names = {field.name for field in fields(EngineSettings)} & {field.name for field in fields(EmbeddedEngineSettings)}
    settings = EngineSettings(**{name: getattr(given, name) for name in names})
    made = Embedded(base, adapters, given.torch_dtype, given.device, given.template, settings)
    return ProcessEngine(made, home_dir(given.home or None) / LOG_FILE, given.start_timeout, _say)


class _Server(uvicorn.Server):
    """uvicorn's server with our way of stopping; says when it can be asked."""

    def __init__(self, app: Any, drain_seconds: int, greet: Any):
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=drain_seconds,
                backlog=2048,
            )
        )
        self.greet = greet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.freeze()  # what was imported stays; a full collection that walks it takes a tenth of a second
        self.greet()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = [one for one in STOPPING if signal.getsignal(one) != signal.SIG_IGN]  # nohup ignores SIGHUP
        for number in numbers:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:  # told before
            for task in self.server_state.tasks:
                task.cancel()
        self.should_exit = True


class _AnyLength(int):
    """The length of an answer that ends with its connection, for uvicorn to count down from."""

    def __lt__(self, other: object) -> bool:
        return False

    def __sub__(self, other: object) -> "_AnyLength":
        return self


class _Protocol(HttpToolsProtocol):
    """A connection whose client must send each request's head within a time and a size, or is cut off.

    An offer to go on in another protocol (h2c: Java's own client makes it with every request, curl --http2 too) is
    passed over, as HTTP has it; the parser would take the body for the other protocol. An answer without a length to
    HTTP/1.0, which knows no chunks, ends with its connection."""

    _clock: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _is_in_body = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._clock:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES + len(data):
                self.transport.close()
                return
        if not self._is_in_body:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(b"\r\nx-declined:", head) + end + rest
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._clock:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._forget_clock()
        self._is_in_body = True
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            self.cycle.chunked_encoding, self.cycle.expected_content_length = False, _AnyLength()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the shape of everything else."""
        body = orjson.dumps(protocol.error(ApiError(400, msg)))
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[400] + head.encode() + body)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_clock()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head_bytes = 0
        self._clock = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_clock(self) -> None:
        if self._clock:
            self._clock.cancel()
            self._clock = None


def _keys(given: ServeSettings, home: Path) -> Keys:
    limits = given.requests_per_minute, given.tokens_per_minute
    return keys_of(home, given.api_key, given.admin_key, given.api_key_file, *limits)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """The address, taken before anything slow happens. Raises BadInput."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BadInput(f"--host {host}: no such address ({error.strerror})") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
        except OSError as error:
            raise BadInput(f"{_address(host, port)} cannot be listened at ({error.strerror}): choose another --port") \
                from None  # fmt: skip
        yield listener


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _greet(address: str, model: str) -> None:
    print(f"{model} is served at {address} (chat page; API at {address}/v1, its description at /docs)", flush=True)


def _greet_knowledge(address: str) -> None:
    print(f"knowledge is served at {address} (POST /latest-facts; all routes at /docs)", flush=True)


def _say(text: str) -> None:
    print(f"evergreen: {text}", file=sys.stderr, flush=True)
