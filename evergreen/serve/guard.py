"""What stands before every route: counts, what browsers may do, and who may ask a server without keys.

Promises: a page from elsewhere in the user's browser cannot use a server that has no key: it would have to send JSON,
for which browsers ask first, under a name that is this machine's. A slash at the end of a path means nothing; HEAD is
answered as GET is, without the body, which uvicorn leaves out.
"""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from evergreen.serve import protocol
from evergreen.serve.metrics import Metrics
from evergreen.serve.schemas import ApiError

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
METHODS = {"HEAD": "GET"}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "")
App = Callable[[dict, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Guard:
    """An ASGI application around the routes."""

    def __init__(self, app: App, metrics: Metrics, is_local: bool):
        """`is_local`: no key is asked for, so only requests to this machine's own names are answered."""
        self.app, self.metrics, self.is_local = app, metrics, is_local
        self.page_headers = [(name.encode(), value.encode()) for name, value in PAGE_HEADERS.items()]

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, started, status = _plain(scope), time.perf_counter(), 0
        is_page = scope["path"] == "/" or scope["path"].startswith(("/static/", "/docs"))

        async def answer(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if is_page:
                    message["headers"] = [*message.get("headers", ()), *self.page_headers]
            await send(message)

        with self.metrics.in_flight.track_inprogress():
            try:
                if refused := self._refused(scope):
                    await _refuse(refused, answer)
                else:
                    await self.app(scope, receive, answer)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(route, str(status or 499)).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _refused(self, scope: dict) -> ApiError | None:
        headers = dict(scope["headers"])
        if self.is_local:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in LOOPBACK_NAMES:
                return ApiError(403, "this server has no API key and answers for this machine only, not for "
                                f"{name[:64]}: start it with --api_key")  # fmt: skip
        if scope["method"] == "POST" and not _is_json(headers.get(b"content-type", b"")):
            return ApiError(415, "the body must be sent as Content-Type: application/json")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return ApiError(415, "the body must be sent as it is, without Content-Encoding")
        return None


def _plain(scope: dict) -> dict:
    path = scope["path"]
    if len(path) > 1 and path.endswith("/") and not path.startswith("/static/"):
        path = path.rstrip("/") or "/"
    return {**scope, "path": path, "method": METHODS.get(scope["method"], scope["method"])}


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")


async def _refuse(error: ApiError, send: Callable) -> None:
    body = json.dumps(protocol.error(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
