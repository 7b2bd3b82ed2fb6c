"""The HTTP server's routes: OpenAI's, vLLM's adapter routes, /generate, feedback, health, metrics, the chat page.

Promises: whatever is sent, the answer is a status and OpenAI's error shape; a body is read within a limit of bytes and
of time; nobody without a key asks a server that has keys, nobody without an admin key changes what it serves.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

import evergreen
from evergreen import feedback
from evergreen.records import EvergreenError, Failure
from evergreen.serve import protocol
from evergreen.serve.answering import SEND_SECONDS, Answering, Desk, Disconnected
from evergreen.serve.errors import Busy, api_error
from evergreen.serve.guard import Guard
from evergreen.serve.keys import OPEN, Key, Keys
from evergreen.serve.limits import Limits
from evergreen.serve.metrics import Metrics
from evergreen.serve.models import Models, Served, UnknownModel
from evergreen.serve.reference import page_of
from evergreen.serve.schemas import (
    ApiError,
    Body,
    ChatRequest,
    CompletionRequest,
    FeedbackRequest,
    GenerateRequest,
    LoadAdapterRequest,
    UnloadAdapterRequest,
    read,
)
from evergreen.settings import ServeSettings

WEB = Path(__file__).parent / "web"
BODY_SECONDS = 60.0
LARGE_BYTES = 32_768  # a longer body is parsed in a thread
RATING_SECONDS = 10.0
STARTED = int(time.time())
BODIES = (ChatRequest, CompletionRequest, GenerateRequest, FeedbackRequest, LoadAdapterRequest, UnloadAdapterRequest)
PREFIX = re.compile("^(chatcmpl|cmpl|gen)-")
REFS = "#/components/schemas/{model}"
T = TypeVar("T", bound=Body)


class Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)


class Service:
    """What the routes work with."""

    def __init__(self, settings: ServeSettings, models: Models, keys: Keys, log: feedback.Log):
        self.settings, self.models, self.keys, self.log = settings, models, keys, log
        self.limits, self.metrics = Limits(), Metrics(models.stats)
        self.desk = Desk(settings, models, self.limits, self.metrics, log)

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
            return await self.desk.in_thread(read, kind, raw)
        return read(kind, raw)

    async def _raw(self, request: Request) -> bytes:
        limit, raw = self.settings.max_body_bytes, bytearray()
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large(limit)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    raw += part
                    if len(raw) > limit:
                        raise too_large(limit)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} seconds", "timeout_error") from None
        return bytes(raw)

    async def generate(self, request: Request, kind: type[T], to_call: Callable[..., Any]) -> Response:
        """The way of the three generating routes."""
        key = self.key_of(request)
        which, seconds = self.limits.admit(key)
        if which:
            raise Busy(f"the key's limit of {which} is reached: try again in {seconds} s", seconds)
        body = await self.body_of(request, kind)
        async with contextlib.AsyncExitStack() as stack:
            answering = self.desk.answering(key, request.url.path, body, to_call, request.receive)
            one = await stack.enter_async_context(answering)
            try:
                if not one.call.stream:
                    return Json(await one.whole())
                events = one.events()
                first = await anext(events)
            except asyncio.CancelledError:  # only uvicorn does that, when the time for draining is over
                raise stopping() from None
            return EventStream(one, first, events, stack.pop_all())


class EventStream(Response):
    """A stream that ends its request, however it ends itself."""

    media_type = "text/event-stream"

    def __init__(self, one: Answering, first: str, events: AsyncIterator[str], around: contextlib.AsyncExitStack):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.one, self.first, self.events, self.around = one, first, events, around

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        async with self.around:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._send(send, self.first)
                async for text in self.events:
                    await self._send(send, text)
            except Disconnected as error:
                self.one.fail(error)
            except asyncio.CancelledError:  # only uvicorn does that, when the time for draining is over
                self.one.fail(stopping())
                await self._send(send, protocol.event(protocol.error(stopping())) + protocol.DONE)
            await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Callable[[Any], Awaitable[None]], text: str) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        except (TimeoutError, OSError):
            raise Disconnected from None


def make_app(settings: ServeSettings, models: Models, keys: Keys, log: feedback.Log, is_local: bool) -> Any:
    """The ASGI application. `is_local`: it listens to this machine alone."""
    service = Service(settings, models, keys, log)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.desk.close()

    app = FastAPI(title="Evergreen", version=evergreen.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]
    _handle_errors(app)
    _generating(app, service)
    _models(app, service)
    _feedback(app, service)
    _health(app, service)
    _page(app)
    if settings.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.allowed_origins, allow_methods=["*"],
                           allow_headers=["*"], expose_headers=["retry-after"])  # fmt: skip
    return Guard(app, service.metrics, is_local and not keys)


def _generating(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", summary="Answer a chat", **takes(ChatRequest))
    async def chat(request: Request) -> Response:
        return await service.generate(request, ChatRequest, protocol.chat_call)

    @app.post("/v1/completions", summary="Go on from a text, or from token ids", **takes(CompletionRequest))
    async def complete(request: Request) -> Response:
        return await service.generate(request, CompletionRequest, protocol.completion_call)

    @app.post("/generate", summary="The same, briefly", **takes(GenerateRequest))
    async def generate(request: Request) -> Response:
        return await service.generate(request, GenerateRequest, protocol.generate_call)


def _models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", summary="The names that `model` may take, the default first")
    async def models(request: Request) -> Response:
        service.key_of(request)
        served = await service.desk.in_thread(service.models.all)
        return Json({"object": "list", "data": [model_card(one) for one in served]})

    @app.get("/v1/models/{name:path}", summary="One of them")
    async def model(request: Request, name: str) -> Response:
        service.key_of(request)
        served = await service.desk.in_thread(service.models.all)
        found = next((one for one in served if one.name == name), None)
        if found is None:
            raise UnknownModel(f"no model {name} is served")
        return Json(model_card(found))

    @app.post("/v1/load_lora_adapter", summary="Serve an adapter (admin)", **takes(LoadAdapterRequest))
    async def load(request: Request) -> Response:
        service.key_of(request, "admin")
        body = await service.body_of(request, LoadAdapterRequest)
        served = await asyncio.to_thread(service.models.load_adapter, body.lora_name, body.lora_path)
        return Json({"lora_name": served.name, "adapter": served.adapter})

    @app.post("/v1/unload_lora_adapter", summary="Stop serving an adapter (admin)", **takes(UnloadAdapterRequest))
    async def unload(request: Request) -> Response:
        service.key_of(request, "admin")
        body = await service.body_of(request, UnloadAdapterRequest)
        await asyncio.to_thread(service.models.unload_adapter, body.lora_name)
        return Json({"lora_name": body.lora_name})


def _feedback(app: FastAPI, service: Service) -> None:
    @app.post("/v1/feedback", summary="Rate or correct an answer", **takes(FeedbackRequest))
    async def rate(request: Request) -> Response:
        key = service.key_of(request)
        body = await service.body_of(request, FeedbackRequest)
        given = body.model_dump(exclude={"response_id"}, exclude_none=True)
        if not given:
            raise ApiError(400, "a rating wants a thumb, correction, comment, dwell_ms or action")
        rating = feedback.Rating(PREFIX.sub("", body.response_id), key.name, trusted=key.scope == "admin", **given)
        try:
            async with asyncio.timeout(RATING_SECONDS):
                id = await asyncio.wrap_future(service.log.rate(rating))
        except TimeoutError:
            raise Failure("the rating could not be stored in time: try again") from None
        if id is None:
            raise ApiError(404, f"no answer has the id {body.response_id}", param="response_id", code="not_found")
        return Json({"id": id})


def _health(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="The server runs")
    async def health() -> Response:
        return Json({"status": "ok"})

    @app.get("/ready", summary="It can answer; 503 while an engine is started again")
    async def ready() -> Response:
        if await service.desk.in_thread(service.models.is_ready):
            return Json({"status": "ready"})
        raise Failure("the engine is being started")

    @app.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        text = await service.desk.in_thread(service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4")


def _page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(WEB / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page_of(app.openapi()))

    app.mount("/static", StaticFiles(directory=WEB, check_dir=False))


def _handle_errors(app: FastAPI) -> None:
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
    async def unknown(_: Request, error: HTTPException) -> Response:
        said = ApiError(error.status_code, f"{error.detail}: see /docs for the routes there are")
        return Json(protocol.error(said), error.status_code, error.headers)

    @app.exception_handler(Disconnected)
    async def gone(_: Request, error: Disconnected) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        said = ApiError(500, f"the server failed: {type(error).__name__}; its log tells more", "server_error")
        return Json(protocol.error(said), 500)


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


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of the bodies."""
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, schemas = models_json_schema([(kind, "validation") for kind in BODIES], ref_template=REFS)
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"key": bearer}
        document["security"] = [{}, {"key": []}]
        app.openapi_schema = document
    return app.openapi_schema


def model_card(served: Served) -> dict[str, Any]:
    base = served.base
    return {
        "id": served.name,
        "object": "model",
        "created": STARTED,
        "owned_by": "evergreen",
        "root": base.name,
        "parent": base.name if served.adapter else None,
        "max_model_len": base.engine.max_context_tokens,
        "evergreen": {"release": served.release.id if served.release else None, "adapter": served.adapter or None,
                      "base": base.digest},
    }  # fmt: skip


def stopping() -> ApiError:
    return Busy("the server is stopping", 5, "server_stopping", 503)


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is longer than {limit:,} bytes", code="request_too_large")
