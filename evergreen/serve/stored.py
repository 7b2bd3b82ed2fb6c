"""Responses that were given, out of the request log: shown again, gone on from, forgotten.

Promises: a key reaches its own responses and nobody else's; `store: false`, and a log without content, keep a response
from being reached at all. A row holds the whole conversation up to its answer, so that to go on from it takes that row
alone, and an item that is only referred to is in its row in full; what is forgotten stays in the rows of those that
went on from it.
Does not: look into the cache of answers, which forgets by itself.
"""

import asyncio
import json
import re
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from evergreen.feedback import Log
from evergreen.records import Failure
from evergreen.serve.door import Door, Json
from evergreen.serve.input_items import Item, kind_of
from evergreen.serve.keys import Key
from evergreen.serve.responses import ResponsesRequest, items_of
from evergreen.serve.schemas import ApiError, read, refusal

if TYPE_CHECKING:
    from sqlalchemy import Row

ROUTE = "/v1/responses"
ID = re.compile("resp_([0-9a-f-]{36})")
ITEM_ID = re.compile("[a-z]+_([0-9a-f-]{36})_[0-9]+")
LOG_SECONDS = 10.0
T = TypeVar("T")


def stored_routes(app: FastAPI, door: Door, log: Log) -> None:
    @app.get(f"{ROUTE}/{{id}}", summary="A response of the last requests, as it was given")
    async def show(request: Request, id: str) -> Response:
        row = await row_of(log, door.key_of(request), id)
        if request.query_params.get("stream", "false") != "false":
            raise refusal("`stream`: a response that has been given is not streamed again", "stream")
        return Json(json.loads(row.output))

    @app.delete(f"{ROUTE}/{{id}}", summary="Take the words of a response and of its request out of the log")
    async def forget(request: Request, id: str) -> Response:
        row = await row_of(log, door.key_of(request), id)
        await soon(log.forget(row.id))
        return Json({"id": id, "object": "response", "deleted": True})


async def continued(log: Log, key: Key, body: ResponsesRequest, max_bytes: int) -> ResponsesRequest:
    """The body with the conversation that it goes on from in its input. Raises ApiError."""
    if log.content != "full" and (body.store or body.previous_response_id):
        raise kept_nothing(log, "store" if body.store else "previous_response_id")
    if log.content != "full" and not any(map(_reference, items_of(body))):
        return body.model_copy(update={"store": False})
    body = await _with_items(log, key, body, max_bytes)
    if not body.previous_response_id:
        return body
    row = await row_of(log, key, body.previous_response_id, "previous_response_id")
    if len(row.input) + len(row.output) > max_bytes:
        raise refusal(f"the conversation behind `previous_response_id` is longer than {max_bytes:,} bytes",
                      "previous_response_id")  # fmt: skip
    return await asyncio.to_thread(_after, row, body)


def _after(row: "Row", body: ResponsesRequest) -> ResponsesRequest:
    asked = read(ResponsesRequest, row.input.encode())
    answered = [Item.model_validate(item) for item in json.loads(row.output)["output"]]
    return body.after([*items_of(asked), *answered])


async def _with_items(log: Log, key: Key, body: ResponsesRequest, max_bytes: int) -> ResponsesRequest:
    """The body with the items of earlier responses where it refers to them. Raises ApiError."""
    found, num_bytes = {}, 0
    for i, item in enumerate(items_of(body)):
        id = _reference(item)
        if id and id not in found:
            row = await row_of(log, key, id, f"input[{i}].id")
            num_bytes += len(row.output)
            if num_bytes > max_bytes:
                raise refusal(f"the items that `input` refers to are longer than {max_bytes:,} bytes", "input")
            found[id] = {one["id"]: one for one in json.loads(row.output)["output"]}
    if not found:
        return body
    items = [Item.model_validate(found.get(_reference(item), {}).get(item.id, item)) for item in items_of(body)]
    return body.model_copy(update={"input": items})


def _reference(item: Item) -> str:
    """The response whose item it refers to; "" for what is said in full."""
    named = ITEM_ID.fullmatch(item.id or "") if kind_of(item) == "item_reference" else None
    return f"resp_{named[1]}" if named else ""


async def row_of(log: Log, key: Key, id: str, param: str | None = None) -> "Row":
    """The row of a response that this key may reach. Raises ApiError."""
    if log.content != "full":
        raise kept_nothing(log, param)
    found, row = ID.fullmatch(id), None
    if found:  # the row of an answer that was given just now may still wait
        row = await asyncio.to_thread(log.find, found[1]) or await soon(log.seek(found[1]))
    is_theirs = row is not None and row.route == ROUTE and row.key == key.name
    if not is_theirs or not row.output or json.loads(row.input).get("store") is False:
        said = f"no response with the id {id[:80]!r} is kept"
        if param:
            raise refusal(said, param, "previous_response_not_found")
        raise ApiError(404, said, code="not_found")
    return row


def kept_nothing(log: Log, param: str | None) -> ApiError:
    return refusal(
        f"this server keeps no responses (--log_content {log.content}): send what was said in `input`", param
    )


async def soon(future: "Future[T]") -> T:
    try:
        async with asyncio.timeout(LOG_SECONDS):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise Failure("the request log does not answer: try again") from None
