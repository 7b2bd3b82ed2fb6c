"""A server with the routes that the page needs, whose answers, delays and refusals a test chooses."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

WEB = Path(__file__).resolve().parents[1] / "evergreen" / "serve" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)


@dataclass
class PageServer:
    """What the server shall say, and what it was told."""

    url: str = ""
    models: list[str] = field(default_factory=lambda: ["stable", "csdn-assistant"])
    pieces: list[str] = field(default_factory=lambda: ["Hello ", "there."])
    thoughts: list[str] = field(default_factory=list)
    seconds_per_piece: float = 0.0
    seconds_for_models: float = 0.0
    evergreen: dict = field(default_factory=lambda: {"release": "0123456789abcdef0123"})
    finish_reason: str = "stop"
    key: str = ""  # asked for when set
    refusal: tuple[int, dict, dict] | None = None  # status, error, headers: what the next chat request gets
    is_cut: bool = False  # the connection ends in the middle of the answer
    breaks_with: dict | None = None  # an error in the place of the answer's end
    can_rate: bool = True
    asked: list[dict] = field(default_factory=list)
    ratings: list[dict] = field(default_factory=list)
    num_cancelled: int = 0


def app_of(server: PageServer):
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
    from fastapi.staticfiles import StaticFiles

    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next):
        is_open = not request.url.path.startswith("/v1/") or not server.key
        if is_open or request.headers.get("authorization") == f"Bearer {server.key}":
            response = await call_next(request)
        else:
            response = JSONResponse({"error": {"message": "no key", "code": "invalid_api_key"}}, 401)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    @app.get("/")
    def page():
        return FileResponse(WEB / "index.html")

    @app.get("/v1/models")
    async def models():
        await asyncio.sleep(server.seconds_for_models)
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        server.asked.append(await request.json())
        if server.refusal:
            (status, error, headers), server.refusal = server.refusal, None
            return JSONResponse({"error": error}, status, headers)
        return StreamingResponse(_answer(server, f"answer-{len(server.asked)}"), media_type="text/event-stream")

    @app.post("/v1/feedback")
    async def feedback(request: Request):
        if not server.can_rate:
            return JSONResponse({"error": {"message": "no"}}, 503)
        server.ratings.append(await request.json())
        return {"id": f"rating-{len(server.ratings)}"}

    app.mount("/static", StaticFiles(directory=WEB))
    return app


async def _answer(server: PageServer, id: str) -> AsyncIterator[str]:
    def event(delta: dict, finish: str | None = None, **more) -> str:
        chunk = {"id": id, "model": server.asked[-1]["model"], "choices": [{"delta": delta, "finish_reason": finish}]}
        return f"data: {json.dumps({**chunk, **more})}\n\n"

    try:
        for kind, pieces in (("reasoning_content", server.thoughts), ("content", server.pieces)):
            for piece in pieces:
                yield event({kind: piece})
                await asyncio.sleep(server.seconds_per_piece)
        if server.is_cut:
            return
        if server.breaks_with:
            yield f"data: {json.dumps({'error': server.breaks_with})}\n\ndata: [DONE]\n\n"
            return
        yield event({}, server.finish_reason, evergreen=server.evergreen)
        usage = {"prompt_tokens": 7, "completion_tokens": len(server.pieces)}
        yield f"data: {json.dumps({'id': id, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):
        server.num_cancelled += 1
        raise


@contextmanager
def running() -> Iterator[PageServer]:
    import uvicorn

    server = PageServer()
    listener = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    runner = uvicorn.Server(uvicorn.Config(app_of(server), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield server
    runner.should_exit = True
    thread.join(timeout=10)
