"""The HTTP server's routes: OpenAI's, vLLM's adapter routes, /generate, feedback, health, metrics, the chat page."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

import evergreen
from evergreen import feedback
from evergreen.home import new_id
from evergreen.knowledge.answer import Knowledge
from evergreen.records import Failure
from evergreen.serve import protocol, split
from evergreen.serve.answering import SEND_SECONDS, Answering
from evergreen.serve.desk import Desk
from evergreen.serve.door import Door, Json, handle_errors, openapi_of, takes
from evergreen.serve.errors import Busy, Disconnected
from evergreen.serve.guard import Guard
from evergreen.serve.keys import Keys
from evergreen.serve.knowledge import KNOWLEDGE_BODIES, Standing, knowledge_routes
from evergreen.serve.limits import Limits
from evergreen.serve.metrics import Metrics
from evergreen.serve.models import Models, Served, UnknownModel
from evergreen.serve.reference import page_of
from evergreen.serve.responses import ResponsesRequest, in_its_words, response_call
from evergreen.serve.schemas import (
    ApiError,
    Body,
    ChatRequest,
    CompletionRequest,
    FeedbackRequest,
    GenerateRequest,
    LoadAdapterRequest,
    UnloadAdapterRequest,
)
from evergreen.serve.stored import continued, soon, stored_routes
from evergreen.settings import ServeSettings

WEB = Path(__file__).parent / "web"
STARTED = int(time.time())
BODIES = (
    ChatRequest, ResponsesRequest, CompletionRequest, GenerateRequest, FeedbackRequest, LoadAdapterRequest,
    UnloadAdapterRequest, *KNOWLEDGE_BODIES,
)  # fmt: skip
T = TypeVar("T", bound=Body)
PREFIX = re.compile("^(chatcmpl-|resp_|cmpl-|gen-)")


class Service(Door):
    """What the routes work with."""

    def __init__(
        self,
        settings: ServeSettings,
        models: Models,
        keys: Keys,
        log: feedback.Log,
        knowledge: Knowledge | None = None,
    ):
        super().__init__(keys, settings.max_body_bytes)
        self.settings, self.models, self.log, self.knowledge = settings, models, log, knowledge
        self.limits, self.metrics = Limits(), Metrics(models.stats)
        self.desk = Desk(settings, models, self.limits, self.metrics, log, knowledge)

    async def generate(self, request: Request, kind: type[T], to_call: Callable[..., Any]) -> Response:
        """The way of the generating routes."""
        key = self.key_of(request)
        which, seconds = self.limits.admit(key)
        if which:
            raise Busy(f"the key's limit of {which} is reached: try again in {seconds} s", seconds)
        body = await self.body_of(request, kind)
        session = split.session_of(request.cookies.get(split.COOKIE))
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(body, ResponsesRequest):
                stack.enter_context(in_its_words())
                body = await continued(self.log, key, body, self.max_body_bytes)
            answering = self.desk.answering(key, request.url.path, body, to_call, request.receive, session)
            one = await stack.enter_async_context(answering)
            try:
                if not one.call.stream:
                    return remembered(Json(await one.whole()), request, one.session)
                events = one.stream()
                first = await anext(events)
            except asyncio.CancelledError:  # only uvicorn does that, when the time for draining is over
                raise stopping() from None
            return remembered(EventStream(one, first, events, stack.pop_all()), request, one.session)


def remembered(response: Response, request: Request, session: str) -> Response:
    """The response with the session as a cookie, when the client does not have it yet."""
    if session and session != request.cookies.get(split.COOKIE):
        response.set_cookie(split.COOKIE, session, split.COOKIE_SECONDS, httponly=True, samesite="strict",
                            secure=request.url.scheme == "https")  # fmt: skip
    return response


class EventStream(Response):
    """A stream that ends its request, however it ends itself."""

    media_type = "text/event-stream"

    def __init__(self, one: Answering, first: str, events: AsyncIterator[str], around: contextlib.AsyncExitStack):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.one, self.first, self.events, self.around = one, first, events, around

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        async with self.around, contextlib.aclosing(self.events):
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._send(send, self.first)
                async for text in self.events:
                    await self._send(send, text)
            except Disconnected as error:
                self.one.fail(error)
            except asyncio.CancelledError:  # only uvicorn does that, when the time for draining is over
                self.one.fail(stopping())
                await self._send(send, self.one.failed(stopping()))
            await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Callable[[Any], Awaitable[None]], text: str) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        except (TimeoutError, OSError):
            raise Disconnected from None


def make_app(
    settings: ServeSettings,
    models: Models,
    keys: Keys,
    log: feedback.Log,
    is_local: bool,
    knowledge: Knowledge | None = None,
) -> Any:
    """The ASGI application. `is_local`: it listens to this machine alone."""
    service = Service(settings, models, keys, log, knowledge)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        ahead = asyncio.create_task(service.desk.answer_ahead())
        yield
        ahead.cancel()
        await service.desk.close()

    app = FastAPI(title="Evergreen", version=evergreen.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.openapi = lambda: openapi_of(app, BODIES)  # type: ignore[method-assign]
    handle_errors(app)
    _generating(app, service)
    stored_routes(app, service, log)
    _models(app, service)
    _feedback(app, service)
    if knowledge is not None:
        standing = Standing(models.registry, models.knowledge_served, models.default)
        knowledge_routes(app, service, knowledge, standing)
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

    @app.post("/v1/responses", summary="Answer a chat, in items", **takes(ResponsesRequest))
    async def respond(request: Request) -> Response:
        return await service.generate(request, ResponsesRequest, response_call)

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
            raise UnknownModel(f"no model {name[:80]} is served")
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
        id = await soon(service.log.rate(rating))
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
    async def page(request: Request) -> Response:
        session = split.session_of(request.cookies.get(split.COOKIE)) or new_id()
        return remembered(FileResponse(WEB / "index.html"), request, session)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page_of(app.openapi()))

    app.mount("/static", StaticFiles(directory=WEB, check_dir=False))


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
