"""An answer as OpenAI's Responses API has it: items in a response, whole or as events.

Promises: a stream's events are OpenAI's, in its order and numbered from 0; the items that they end with are those of
the answer given whole, with the same ids. An item is shown as done when the next one begins, or at the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from evergreen.serve import protocol
from evergreen.serve.call import Call
from evergreen.serve.choice import Choice
from evergreen.serve.protocol import Head
from evergreen.serve.schemas import ApiError

STATUSES = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}  # by finish_reason
CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}  # of a response's error, by status
ITEM_NAMES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
TEXTS = {"message": "output_text", "reasoning": "reasoning_text"}  # item -> its part, and how its events are named


class Events:
    """The writer of one response; its request has one choice."""

    def __init__(self, call: Call, choices: Sequence[Choice]):
        self.call, self.choices = call, choices
        self._num_events = 0
        self._namespaces = {tool["name"]: space["name"] for space in call.repeated.get("tools", ())
                            for tool in space.get("tools", ())}  # fmt: skip
        self._place, self._id, self._kind = -1, "", ""  # of the item that is open

    # -- in one piece

    def whole(self, head: Head) -> dict:
        done = self.choices[0].completion
        status = STATUSES[done.finish_reason]
        return response(self.call, head, status) | {
            "completed_at": head.created + int(done.latency_seconds) if status == "completed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._items(head),
            "usage": usage(self.call, self.choices),
        }

    def logged(self, head: Head) -> Any:
        return self.whole(head) if self.choices and self.choices[0].completion else None

    def _items(self, head: Head) -> list[dict]:
        return items(self.choices[0], head.id.removeprefix("resp_"), self._namespaces)

    # -- as events

    def some(self, head: Head, parts: Sequence[dict]) -> str:
        return self._begun(head) + self._told(event for part in parts for event in self._of_part(head, part))

    def end(self, head: Head) -> str:
        last = self.whole(head)
        kind = "completed" if last["status"] == "completed" else "incomplete"
        rest = [*(self._opened(head) if self._place < 0 and last["output"] else ()), *self._closed(head)]
        return self._begun(head) + self._told([*rest, {"type": f"response.{kind}", "response": last}])

    def failed(self, head: Head, reason: ApiError) -> str:
        error = {"code": CODES.get(reason.status, "server_error"), "message": reason.message}
        last = response(self.call, head, "failed") | {"error": error}
        return self._begun(head) + self._told([{"type": "response.failed", "response": last}])

    def _begun(self, head: Head) -> str:
        if self._num_events:
            return ""
        new = response(self.call, head, "in_progress")
        return self._told({"type": kind, "response": new} for kind in ("response.created", "response.in_progress"))

    def _told(self, events: Iterator[dict] | Sequence[dict]) -> str:
        texts = []
        for event in events:
            json = orjson.dumps(event | {"sequence_number": self._num_events}, option=orjson.OPT_NON_STR_KEYS).decode()
            texts.append(f"event: {event['type']}\ndata: {json}\n\n")
            self._num_events += 1
        return "".join(texts)

    def _of_part(self, head: Head, part: dict) -> Iterator[dict]:
        delta, logprobs = part["delta"], part["logprobs"]
        if thought := delta.get("reasoning_content"):
            yield from self._text_of(head, "reasoning", thought, {})
        if text := delta.get("content"):
            yield from self._text_of(head, "message", text, {"logprobs": logprobs["content"] if logprobs else []})
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                yield from (*self._closed(head), *self._opened(head))
            if arguments := call["function"]["arguments"]:
                yield {"type": "response.function_call_arguments.delta", **self._where, "delta": arguments}

    def _text_of(self, head: Head, kind: str, text: str, more: dict) -> Iterator[dict]:
        if self._kind != kind:
            yield from (*self._closed(head), *self._opened(head))
        yield {"type": f"response.{TEXTS[kind]}.delta", **self._where, "content_index": 0, "delta": text, **more}

    @property
    def _where(self) -> dict:
        return {"item_id": self._id, "output_index": self._place}

    def _opened(self, head: Head) -> Iterator[dict]:
        """The next item begins."""
        self._place += 1
        item = self._items(head)[self._place]
        self._id, self._kind = item["id"], item["type"]
        nothing = {"content": []} if self._kind in TEXTS else {"arguments": ""}
        added = item | nothing | {"status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": self._place, "item": added}
        if self._kind in TEXTS:
            part = item["content"][0] | {"text": ""} | ({"logprobs": []} if self._kind == "message" else {})
            yield {"type": "response.content_part.added", **self._where, "content_index": 0, "part": part}

    def _closed(self, head: Head) -> Iterator[dict]:
        """The item that is open, if one is, has ended."""
        if self._place < 0:
            return
        item, where = self._items(head)[self._place], self._where
        if item["type"] in TEXTS:
            [part], where = item["content"], where | {"content_index": 0}
            said = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield {"type": f"response.{part['type']}.done", **where, **said}
            yield {"type": "response.content_part.done", **where, "part": part}
        else:
            yield {"type": "response.function_call_arguments.done", **where, "name": item["name"],
                   "arguments": item["arguments"]}  # fmt: skip
        yield {"type": "response.output_item.done", "output_index": self._place, "item": item}


def response(call: Call, head: Head, status: str) -> dict:
    """A response without its output."""
    about = {"id": head.id, "object": "response", "created_at": head.created, "status": status, "completed_at": None,
             "error": None, "incomplete_details": None}  # fmt: skip
    return about | call.repeated | {"model": head.model, "output": [], "usage": None, "evergreen": head.evergreen}


def items(choice: Choice, id: str, namespaces: Mapping[str, str]) -> list[dict]:
    """What a choice has said so far, in order. The last item of an answer that was cut off is incomplete. `namespaces`
    are of the functions that have one."""
    said = choice.said or ([] if choice.thought else [""])
    found = [_reasoning(choice.thought)] if choice.thought else []
    found += [
        _call(one, namespaces) if isinstance(one, dict) else _message(one, choice, i) for i, one in enumerate(said)
    ]
    found = [{"id": f"{ITEM_NAMES[item['type']]}_{id}_{place}", **item} for place, item in enumerate(found)]
    if choice.completion and choice.completion.finish_reason != "stop" and found:
        found[-1]["status"] = "incomplete"
    return found


def _reasoning(thought: str) -> dict:
    content = [{"type": "reasoning_text", "text": thought}]
    return {"type": "reasoning", "status": "completed", "summary": [], "content": content}


def _message(text: str, choice: Choice, place: int) -> dict:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": choice.logprobs_of(place)}
    return {"type": "message", "status": "completed", "role": "assistant", "content": [part]}


def _call(call: dict, namespaces: Mapping[str, str]) -> dict:
    space = namespaces.get(call["function"]["name"])
    where = {"namespace": space} if space else {}
    return {"type": "function_call", "status": "completed", "call_id": call["id"], **call["function"], **where}


def usage(call: Call, choices: Sequence[Choice]) -> dict:
    counts = protocol.usage(call, choices)
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": counts["completion_tokens_details"],
        "total_tokens": counts["total_tokens"],
    }
