"""What every route goes through: who asks, a body read within limits, errors in OpenAI's shape, the description of all.

Promises: whatever is sent, the answer is a status and OpenAI's error shape; a body is read within a limit of bytes and
of time; nobody without a key asks a server that has keys, nobody without an admin key changes what it serves.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from evergreen.records import EvergreenError
from evergreen.serve import protocol
from evergreen.serve.errors import Busy, Disconnected, api_error
from evergreen.serve.keys import OPEN, Key, Keys
from evergreen.serve.schemas import ApiError, Body, read

BODY_SECONDS = 60.0
CHATS = "/v1/chat/completions"
ELSEWHERE = {
    "/embeddings": "this server makes no embeddings",
    "/messages": f"this server speaks OpenAI's language: chats are answered at {CHATS}",
}
LARGE_BYTES = 32_768  # a longer body is parsed in a thread
REFS = "#/components/schemas/{model}"
T = TypeVar("T", bound=Body)


class Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)


class Door:
    """Keys and bodies."""

    def __init__(self, keys: Keys, max_body_bytes: int):
        self.keys, self.max_body_bytes = keys, max_body_bytes

    def key_of(self, request: Request, scope: str = "user") -> Key:
        """Who asks. Raises ApiError: 401 without a right key, 403 when an admin's is wanted."""
        if not self.keys:
            return OPEN
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip().encode("latin-1").decode("utf-8", "replace")
        key = self.keys.find(given) if kind.lower() == "bearer" and given else None
        if key is None:
            said = "no API key was given: send Authorization: Bearer KEY" if not given else "the API key is not right"
            raise ApiError(401, said, "authentication_error", code="invalid_api_key")
        if scope == "admin" and key.scope != "admin":
            raise ApiError(403, "this wants an admin key", "permission_error", code="admin_key_required")
        return key

    async def body_of(self, request: Request, kind: type[T]) -> T:
        """The body, checked. Raises ApiError: 400, 408 or 413."""
        raw = await self._raw(request)
        if len(raw) > LARGE_BYTES:
            return await asyncio.to_thread(read, kind, raw)
        return read(kind, raw)

    async def _raw(self, request: Request) -> bytes:
        limit, raw = self.max_body_bytes, bytearray()
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large(limit)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    raw += part
                    if len(raw) > limit:
                        raise too_large(limit)
        except ClientDisconnect:
            raise Disconnected from None
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} seconds", "timeout_error") from None
        return bytes(raw)


def handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        headers = {"retry-after": str(error.seconds)} if isinstance(error, Busy) else {}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if error.status in (408, 413):  # the rest of the body is not read
            headers["connection"] = "close"
        return Json(protocol.error(error), error.status, headers)

    @app.exception_handler(EvergreenError)
    async def failed(request: Request, error: EvergreenError) -> Response:
        return await refused(request, api_error(error))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        said = ApiError(error.status_code, f"{error.detail}: {advice(app, request)}")
        return Json(protocol.error(said), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return await refused(request, ApiError(400, f"`{name}`: {first['msg']}", param=name, code="invalid_value"))

    @app.exception_handler(Disconnected)
    async def gone(_: Request, error: Disconnected) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        said = ApiError(500, f"the server failed: {type(error).__name__}; its log tells more", "server_error")
        return Json(protocol.error(said), 500)


def advice(app: FastAPI, request: Request) -> str:
    """Where to go instead, for who asks for a route that there is not."""
    path, routes = request.url.path, {getattr(route, "path", "") for route in app.routes}
    if CHATS in routes and (found := next((said for end, said in ELSEWHERE.items() if path.endswith(end)), "")):
        return found
    if f"/v1{path}" in routes:
        return f"it is /v1{path}: the client's base URL ends in /v1"
    return "see /docs for the routes there are"


def takes(kind: type[Body]) -> dict[str, Any]:
    """How a route tells OpenAPI of a body that it reads itself."""
    schema = {"$ref": REFS.format(model=kind.__name__)}
    answers = {200: {"description": "done"}, 400: {"description": "the body is refused"},
               401: {"description": "no key, or a wrong one"}, 429: {"description": "too many: see Retry-After"},
               503: {"description": "the engine is being started"}}  # fmt: skip
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        "responses": answers,
    }


def openapi_of(app: FastAPI, bodies: Sequence[type[Body]]) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of the bodies."""
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, schemas = models_json_schema([(kind, "validation") for kind in bodies], ref_template=REFS)
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"key": bearer}
        document["security"] = [{}, {"key": []}]
        app.openapi_schema = document
    return app.openapi_schema


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is longer than {limit:,} bytes", code="request_too_large")
