"""Knowledge over HTTP: the facts that hold now for any program, entries and their history for those with an admin key.

Promises: a write is answered when it is on the disk, in the index and out of every cache, with a `warning` where
answers come from a snapshot and do not show it; an unknown entry is a 404, what an entry cannot be is a 400. Reading
for answers wants a user's key, everything else an admin's.
Does not: generate. `run_knowledge_serve` serves these routes alone, without a model.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field

import evergreen
from evergreen.knowledge.answer import Ask, Knowledge
from evergreen.knowledge.documents import unseen
from evergreen.knowledge.entries import utc_now
from evergreen.knowledge.store import OPEN, Row, Store, is_visible
from evergreen.records import BadInput, Entry, Failure
from evergreen.registry import Registry
from evergreen.registry.knowledge import apart, serve_knowledge, serving
from evergreen.serve.door import Door, Json, handle_errors, openapi_of, takes
from evergreen.serve.guard import Guard
from evergreen.serve.keys import Key, Keys
from evergreen.serve.metrics import Metrics
from evergreen.serve.reference import page_of
from evergreen.serve.schemas import ApiError, Body

MAX_TOP_K, MAX_LISTED = 100, 200
MAX_IN_URL = 1000  # characters, of up to 12 bytes each there; a request's head has 64 KiB
Line = Annotated[str, Field(max_length=4000)]
Id = Annotated[str, Path(max_length=MAX_IN_URL)]
Content = Annotated[str, Field(min_length=1, max_length=1_000_000)]
Tags = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=100)]


class FactsRequest(Body):
    """POST /latest-facts: the entries that answer `query`, of those that held at `as_of`, with all of `tags`."""

    query: Annotated[str, Field(min_length=1, max_length=20_000)]
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 5
    as_of: Line | None = None
    tags: Tags | None = None


class EntryRequest(Body):
    """POST /v1/knowledge: a new entry. Times are ISO 8601; without a zone they are UTC."""

    content: Content
    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    title: Line | None = None
    source_url: Line | None = None
    update_time: Line | None = None
    version: Line | None = None
    tags: Tags | None = None
    language: Line | None = None
    valid_from: Line | None = None
    valid_until: Line | None = None
    reason: Line | None = None


class EntryPatch(Body):
    """PATCH /v1/knowledge/ID: what changes; the version rises by `bump`, or is `version`."""

    content: Content | None = None
    title: Line | None = None
    source_url: Line | None = None
    update_time: Line | None = None
    version: Line | None = None
    bump: Literal["patch", "minor", "major"] | None = None
    tags: Tags | None = None
    language: Line | None = None
    valid_from: Line | None = None
    valid_until: Line | None = None
    reason: Line | None = None


class PublishRequest(Body):
    """POST /v1/knowledge/publish: name the present state as the next snapshot."""

    reason: Line | None = None


class RollbackRequest(Body):
    """POST /v1/knowledge/rollback: answer from a snapshot, from the next request on."""

    snapshot: Annotated[int, Field(ge=1, lt=2**31)]
    reason: Line | None = None


class CanaryRequest(Body):
    """POST /v1/knowledge/canary: have a share of the users answered from a snapshot."""

    snapshot: Annotated[int, Field(ge=1, lt=2**31)]
    share: Annotated[float, Field(gt=0, le=1)]
    reason: Line | None = None


class LiveRequest(Body):
    """POST /v1/knowledge/live: answer from what is newest again."""

    reason: Line | None = None


KNOWLEDGE_BODIES = (
    FactsRequest, EntryRequest, EntryPatch, PublishRequest, RollbackRequest, CanaryRequest, LiveRequest
)  # fmt: skip
ADMIN = "/v1/knowledge"


@dataclass(frozen=True)
class Standing:
    """What a server answers from where a request names no model: `served()` is "live" or a snapshot's number, `default`
    the name of the model; only `stable` follows what is rolled back."""

    registry: Registry
    served: Callable[[], str]
    default: str = "stable"

    def now(self) -> dict[str, Any]:
        """As `registry.knowledge.serving` says it; stable is None where there is nothing to roll back."""
        if self.default == "stable":
            return serving(self.registry)
        pinned = self.served()
        return {"stable": None if pinned == "live" else pinned, "candidate": None, "share": 0.0}

    def move(self, which: str, share: float | None, reason: str) -> dict[str, Any]:
        """Raises BadInput where this server would not follow."""
        if self.default != "stable":
            raise BadInput(f"this server answers from {self.default[:80]}, and snapshots are served through the stable "
                           "release: start it without --model")  # fmt: skip
        return serve_knowledge(self.registry, which, share, reason)

    def warning(self, what: str) -> dict[str, str]:
        """Told of a change that some answers do not show."""
        if self.default == "stable":
            clause = apart(self.registry)
        else:
            clause = f"answers come from snapshot {pinned}" if (pinned := self.served()) != "live" else ""
        return {"warning": unseen(clause, what)} if clause else {}


def knowledge_routes(app: FastAPI, door: Door, knowledge: Knowledge, standing: Standing) -> None:

    @app.post("/latest-facts", summary="The facts on a question, best first", **takes(FactsRequest))
    async def facts(request: Request) -> Response:
        door.key_of(request)
        body = await door.body_of(request, FactsRequest)
        ask = Ask("on", body.as_of or "", tuple(body.tags or ()), standing.served())
        found = await asyncio.to_thread(knowledge.search, body.query, ask, body.top_k)
        return Json([fact_of(hit) for hit in found.hits])

    _entries(app, door, knowledge)
    _changes(app, door, knowledge, standing)
    _states(app, door, knowledge, standing)


def _entries(app: FastAPI, door: Door, knowledge: Knowledge) -> None:
    @app.get(ADMIN, summary="The entries there are, those changed last first (admin)")
    async def entries(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 50,
        before: Annotated[int, Query(ge=1, lt=2**62)] = OPEN,
        query: Annotated[str, Query(max_length=MAX_IN_URL)] = "",
        in_use: bool = True,
    ) -> Response:
        door.key_of(request, "admin")
        if query and not in_use:
            raise ApiError(400, "a query finds entries in use only: leave out query or in_use", param="in_use")
        if query:
            found = await asyncio.to_thread(knowledge.search, query, Ask("on"), limit)
            rows, more = [hit.row for hit in found.hits], False
        else:
            rows = await asyncio.to_thread(knowledge.reading, lambda store: newest(store, limit + 1, before, in_use))
            rows, more = rows[:limit], len(rows) > limit
        return Json({"object": "list", "data": [entry_of(row) for row in rows], "has_more": more,
                     "next": rows[-1].begins if more else None})  # fmt: skip

    @app.get(f"{ADMIN}/{{id:path}}/history", summary="Every version of an entry, oldest first (admin)")
    async def history(request: Request, id: Id) -> Response:
        door.key_of(request, "admin")
        rows = await asyncio.to_thread(knowledge.reading, lambda store: known(store, id))
        return Json({"object": "list", "data": [version_of(row) for row in rows]})


def _changes(app: FastAPI, door: Door, knowledge: Knowledge, standing: Standing) -> None:
    async def told(document: dict[str, Any], what: str) -> dict[str, Any]:
        return document | await asyncio.to_thread(standing.warning, what)

    @app.post(ADMIN, summary="Add an entry (admin)", **takes(EntryRequest))
    async def add(request: Request) -> Response:
        key, body = door.key_of(request, "admin"), await door.body_of(request, EntryRequest)
        given = body.model_dump(exclude_none=True, exclude={"reason"})
        entry = Entry(**given | {"tags": tuple(given.get("tags", ()))})
        [row] = await _write(knowledge, lambda store: store.add([entry], author_of(key), body.reason or ""),
                             lambda rows: [row.entry.id for row in rows])  # fmt: skip
        return Json(await told(written(row), "does not have it"), 201)

    @app.patch(f"{ADMIN}/{{id:path}}", summary="Correct an entry (admin)", **takes(EntryPatch))
    async def update(request: Request, id: Id) -> Response:
        key, body = door.key_of(request, "admin"), await door.body_of(request, EntryPatch)
        given = body.model_dump(exclude_none=True, exclude={"reason", "bump"})
        if not given:
            raise ApiError(400, "a correction wants content, title, source_url, tags or a time")
        given |= {"tags": tuple(body.tags)} if body.tags is not None else {}

        def change(store: Store) -> Row:
            known(store, id)
            return store.update(id, author_of(key), body.reason or "", body.bump or "patch", **given)

        row = await _write(knowledge, change, lambda row: [id])
        return Json(await told(written(row), "has it as it was"))

    @app.delete(f"{ADMIN}/{{id:path}}", summary="Withdraw an entry, or with `redact` take it out of the past (admin)")
    async def withdraw(
        request: Request, id: Id, reason: Annotated[str, Query(max_length=MAX_IN_URL)] = "", redact: bool = False
    ) -> Response:
        key = door.key_of(request, "admin")
        failed: list[Failure] = []

        def change(store: Store) -> int:
            known(store, id)
            try:
                return (store.redact if redact else store.withdraw)([id], author_of(key), reason)
            except Failure as error:  # perhaps of clearing the log's files, behind the change itself: caches are purged
                failed.append(error)
                return 0

        n = await _write(knowledge, change, lambda _: [id])
        if redact:
            await asyncio.to_thread(knowledge.forget)
        if failed:
            raise failed[0]
        document = {"id": id, "n": n}
        return Json(document if redact else await told(document, "stays as it was"))


def _states(app: FastAPI, door: Door, knowledge: Knowledge, standing: Standing) -> None:
    @app.get(f"{ADMIN}/snapshots", summary="What was published, and what is answered from (admin)")
    async def snapshots(request: Request) -> Response:
        door.key_of(request, "admin")
        document = await asyncio.to_thread(knowledge.reading, published)
        return Json(document | {"serving": await asyncio.to_thread(standing.now)})

    @app.post(f"{ADMIN}/publish", summary="Name the present state as a snapshot (admin)", **takes(PublishRequest))
    async def publish(request: Request) -> Response:
        key, body = door.key_of(request, "admin"), await door.body_of(request, PublishRequest)
        made = await _write(knowledge, lambda store: store.publish(author_of(key), body.reason or ""), lambda _: ())
        return Json({"snapshot": made.number, "n": made.n})

    @app.post(f"{ADMIN}/rollback", summary="Answer from a snapshot (admin)", **takes(RollbackRequest))
    async def rollback(request: Request) -> Response:
        door.key_of(request, "admin")
        body = await door.body_of(request, RollbackRequest)
        return Json({"snapshot": body.snapshot, **await serve(str(body.snapshot), None, body.reason)})

    @app.post(f"{ADMIN}/canary", summary="Answer a share of the users from a snapshot (admin)", **takes(CanaryRequest))
    async def canary(request: Request) -> Response:
        door.key_of(request, "admin")
        body = await door.body_of(request, CanaryRequest)
        made = await serve(str(body.snapshot), body.share, body.reason)
        return Json({"snapshot": body.snapshot, "share": body.share, **made})

    @app.post(f"{ADMIN}/live", summary="Answer from what is newest (admin)", **takes(LiveRequest))
    async def live(request: Request) -> Response:
        door.key_of(request, "admin")
        body = await door.body_of(request, LiveRequest)
        return Json({"snapshot": "live", **await serve("live", None, body.reason)})

    async def serve(which: str, share: float | None, reason: str | None) -> dict[str, Any]:
        if which != "live":
            await asyncio.to_thread(knowledge.reading, lambda store: store.snapshot(int(which)))
        return await asyncio.to_thread(standing.move, which, share, reason or "")

    app.router.routes.sort(key=_is_a_pattern)  # `snapshots` is no entry's id


def _is_a_pattern(route: Any) -> bool:
    path = getattr(route, "path", "")
    return path.startswith(ADMIN) and "{" in path


async def _write(knowledge: Knowledge, change: Callable[[Store], Any], ids: Callable[[Any], Iterable[str]]) -> Any:
    return await asyncio.to_thread(knowledge.write, change, ids)


# -- the routes alone


def make_knowledge_app(
    knowledge: Knowledge, registry: Registry, keys: Keys, served: Callable[[], str], max_body_bytes: int, is_local: bool
) -> Any:
    """The ASGI application of `evergreen knowledge serve`."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        knowledge.close()

    app = FastAPI(title="Evergreen knowledge", version=evergreen.__version__, docs_url=None, redoc_url=None,
                  lifespan=lifespan)  # fmt: skip
    app.openapi = lambda: openapi_of(app, KNOWLEDGE_BODIES)  # type: ignore[method-assign]
    handle_errors(app)
    metrics = Metrics(dict)

    @app.get("/health", summary="The server runs")
    async def health() -> Response:
        return Json({"status": "ok"})

    @app.get("/metrics", summary="For Prometheus")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page_of(app.openapi()))

    knowledge_routes(app, Door(keys, max_body_bytes), knowledge, Standing(registry, served))
    return Guard(app, metrics, is_local and not keys)


# -- documents


def known(store: Store, id: str) -> list[Row]:
    """The entry's versions. Raises ApiError when there is no such entry."""
    try:
        return store.history(id)
    except BadInput as error:
        raise ApiError(404, str(error), param="id", code="not_found") from None


def newest(store: Store, limit: int, before: int, in_use: bool = True) -> list[Row]:
    """Entries that hold now, those changed last first, begun before change `before`; or, not `in_use`, the others' last
    versions: withdrawn, redacted, expired, not yet valid."""
    n, when = store.refresh(), utc_now()
    rows = reversed(store.rows) if in_use else _last_versions(store)
    return list(islice((row for row in rows if row.begins < before and is_visible(row, n, when) == in_use), limit))


def _last_versions(store: Store) -> Iterable[Row]:
    last: dict[str, Row] = {}
    for row in reversed(store.rows):
        last.setdefault(row.entry.id, row)
    return last.values()


def published(store: Store) -> dict[str, Any]:
    n = store.refresh()
    data = [{"snapshot": one.number, "n": one.n, "at": one.at, "author": one.author, "reason": one.reason}
            for one in store.snapshots]  # fmt: skip
    return {"object": "list", "n": n, "data": data[::-1]}


def author_of(key: Key) -> str:
    return key.name or "server"


def fact_of(hit: Any) -> dict[str, Any]:
    entry = hit.row.entry
    return {"id": entry.id, "title": entry.title, "content": entry.content, "source_url": entry.source_url,
            "update_time": entry.update_time, "version": entry.version, "tags": list(entry.tags),
            "score": round(float(hit.score), 6)}  # fmt: skip


def entry_of(row: Row) -> dict[str, Any]:
    entry = row.entry
    values = {name: getattr(entry, name) for name in Entry.__dataclass_fields__}
    return values | {"tags": list(entry.tags), "n": row.begins, "author": row.author, "reason": row.reason}


def version_of(row: Row) -> dict[str, Any]:
    ended = {"n": row.ends, "author": row.end_author, "reason": row.end_reason} if row.ends != OPEN else None
    return entry_of(row) | {"op": row.op, "at": row.at, "ended": ended, "redacted": row.is_redacted}


def written(row: Row) -> dict[str, Any]:
    return {"id": row.entry.id, "version": row.entry.version, "n": row.begins}
