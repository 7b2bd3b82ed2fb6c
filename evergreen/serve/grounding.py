"""What knowledge does for one chat: sources into its last turn, a check before anything is shown, a place in the cache.

Promises: nothing that stands on sources leaves before it is checked, so such an answer streams in one go when it is
whole; an answer from the cache was checked, and stands on the very versions that this question finds now. Where the
answer has a fixed form (a JSON schema, a forced tool call) there is no room for [n], and nothing is injected.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evergreen.engine.answer import Piece
from evergreen.engine.base import Output
from evergreen.knowledge.answer import Ask, Finished, Knowledge, Looking, Prepared
from evergreen.records import BadInput, Completion, Message
from evergreen.serve.call import Call
from evergreen.serve.models import Served
from evergreen.serve.responses import ResponsesRequest, chat_of
from evergreen.serve.schemas import ChatRequest, EvergreenOptions, SamplingBody, refusal
from evergreen.serve.tools import OPEN as OPEN_CALL

SECOND_TEMPERATURE, SECOND_SEED = 0.7, 1  # of a second try whose prompt is the first one's
MIN_BLOCK_TOKENS = 32  # of the sources, however little room is left: the engine says then what does not fit
NO_QUESTION = "sources are for a chat whose last turn is the user's"


class Grounding:
    """The knowledge side of one chat request. All but `begin` may take milliseconds: call them in a thread."""

    def __init__(self, knowledge: Knowledge, options: EvergreenOptions, looking: Looking, served: Served):
        self.knowledge, self.options, self.served = knowledge, options, served
        self.prepared: Prepared | None = None
        self.shown: list[dict[str, Any]] = []  # of each choice: outcome, sources, citations, problems
        self.is_cached = False
        self._looking, self._key = looking, None

    @classmethod
    def begin(cls, knowledge: Knowledge | None, default: str, body: SamplingBody, served: Served) -> "Grounding | None":
        """Starts the search, in a thread of its own. None where nothing is looked for. Raises ApiError for wishes that
        only a chat can have, and a server with knowledge."""
        options, question = body.evergreen or EvergreenOptions(), question_of(body)
        if knowledge is None or not question:
            check_wishes(options, "this server has no knowledge base" if knowledge is None else NO_QUESTION)
            return None
        mode = options.knowledge or default
        if mode == "off":
            return None
        if not knowledge.has_entries():
            check_wishes(options, "this server has no knowledge base yet")
            return None
        pinned = served.release.knowledge if served.release else "live"
        ask = Ask(mode, options.as_of or "", tuple(options.tags or ()), pinned)
        return cls(knowledge, options, knowledge.look(question, ask), served)

    def prepare(self, call: Call, count: Callable[[str], int], room: int) -> Call:
        """The call with its sources in the last turn, or as it was. `room` is how many tokens the block may have. Waits
        for the search. Raises ApiError for wishes that cannot be met."""
        if call.is_fixed:
            check_wishes(self.options, "an answer of a fixed form has no room for [n]")
            return call
        try:
            self.prepared = self.knowledge.prepare(self._looking, count, max(room, MIN_BLOCK_TOKENS))
        except BadInput as error:
            raise refusal(str(error), "evergreen.as_of") from None
        return with_last_turn(call, self.prepared.text) if self.prepared.is_injected else call

    @property
    def is_held(self) -> bool:
        """Whether the answer waits for its check."""
        return bool(self.prepared and self.prepared.is_injected)

    # -- the cache

    def cached(self, call: Call, request: Any, is_ahead: bool = False) -> Output | None:
        """The answer that was given before. `request` is what it takes to ask again; `is_ahead` is that asking."""
        if self.prepared is None or call.n > 1 or call.tools:
            return None
        shape = [call.template_variables, call.cache_salt, self.served.system]
        self._key = self.knowledge.key(self.prepared, call.messages[:-1], self.served.fingerprint, shape, call.sampling,
                                       request)  # fmt: skip
        value = self.knowledge.cached(self._key, is_ahead)
        if value is None:
            return None
        self.is_cached = True
        self.shown = [value.more["shown"]]
        completion = Completion(value.text, latency_seconds=0.0, first_token_seconds=0.0, **value.more["completion"])
        pieces = [Piece(completion.thought, is_thought=True)] if completion.thought else []
        return Output("cached", (*pieces, Piece(value.text)), (), completion=completion)

    def keep(self, completion: Completion) -> None:
        """Remember the answer, if it is one that may be given again."""
        shown = self.shown[0] if self.shown else UNCHECKED
        if self._key is None or self.is_cached or shown["outcome"] == "abstained":
            return
        counts = {name: getattr(completion, name) for name in ("thought", "prompt_tokens", "completion_tokens",
                                                               "finish_reason", "stop_reason")}  # fmt: skip
        self.knowledge.keep(self._key, completion.text, shown["citations"], {"shown": shown, "completion": counts})

    # -- after the answer

    def judge(self, answer: str) -> Any:
        """What the check says; None where the answer may be shown. A tool's call is no statement."""
        if OPEN_CALL in answer:
            self._show(Finished(answer, "unchecked", self.prepared))
            return None
        judged = self.knowledge.judge(self.prepared, answer)
        if not judged.ok:
            return judged
        self._show(self.knowledge.passed(self.prepared, judged, answer))
        return None

    def second(self, call: Call, judged: Any, count: Callable[[str], int]) -> tuple[Call, Prepared]:
        """The call once more: fewer sources; or, when that leaves the same prompt, another draw."""
        second = self.knowledge.second(self.prepared, judged, count)
        call = replace(with_last_turn(call, second.text), n=1)
        if second.is_same_prompt:
            temperature = max(call.sampling.temperature, SECOND_TEMPERATURE)
            seed = SECOND_SEED if call.sampling.seed is None else call.sampling.seed ^ SECOND_SEED
            call = replace(call, sampling=replace(call.sampling, temperature=temperature, seed=seed))
        return call, second

    def last(self, second: Prepared, judged: Any, answer: str) -> Finished:
        """What is shown after the second try, whatever it gave."""
        finished = self.knowledge.after(self.prepared, judged, second, answer)
        self._show(finished)
        return finished

    def _show(self, finished: Finished) -> None:
        self.shown.append({
            "outcome": finished.outcome,
            "sources": [source_of(one) for one in finished.prepared.sources],
            "citations": [source_of(one) for one in finished.cited],
            "problems": [problem_of(one) for one in finished.problems],
        })  # fmt: skip

    # -- what is told

    def told(self) -> dict[str, Any]:
        """The answer's `evergreen` fields."""
        if (prepared := self.prepared) is None:
            return {}
        shown = self.shown[0] if self.shown else UNCHECKED
        about = {"n": prepared.n, "decision": prepared.decision, "reasons": list(prepared.reasons),
                 "seconds": round(prepared.seconds, 4), "outcome": shown["outcome"],
                 "left_out": prepared.num_left_out}  # fmt: skip
        pinned = prepared.ask.knowledge
        return {
            "knowledge": about,
            "snapshot": int(pinned) if pinned.isdigit() else None,
            "sources": shown["sources"],
            "citations": shown["citations"],
            "problems": shown["problems"],
            "cached": self.is_cached,
        }

    def logged(self) -> dict[str, Any] | None:
        """What the request's row keeps: enough to see why, and to ask the same again."""
        if (prepared := self.prepared) is None:
            return None
        return {
            "decision": prepared.decision,
            "reasons": list(prepared.reasons),
            "seconds": round(prepared.seconds, 4),
            "outcome": [one["outcome"] for one in self.shown],
            "problems": [problem for one in self.shown for problem in one["problems"]],
            "sources": [[source["id"], source["version"]] for one in self.shown[:1] for source in one["sources"]],
        }


UNCHECKED: dict[str, Any] = {"outcome": "unchecked", "sources": [], "citations": [], "problems": []}


def check_wishes(options: EvergreenOptions, why_not: str) -> None:
    """Raises ApiError when the request asks for what cannot be."""
    for name in ("as_of", "tags"):
        if getattr(options, name) is not None:
            raise refusal(f"evergreen.{name} wants a knowledge base: {why_not}", f"evergreen.{name}")
    if options.knowledge == "on":
        raise refusal(f"evergreen.knowledge on: {why_not}", "evergreen.knowledge")


def question_of(body: SamplingBody) -> str:
    """The last turn of a chat when it is the user's, in words; "" for anything else."""
    body = chat_of(body) if isinstance(body, ResponsesRequest) else body
    if not isinstance(body, ChatRequest) or body.messages[-1].role != "user" or body.add_generation_prompt is False:
        return ""
    content = body.messages[-1].content or ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def with_last_turn(call: Call, text: str) -> Call:
    return replace(call, messages=(*call.messages[:-1], Message("user", text)))


def said(output: Output, text: str) -> Output:
    """The answer's last output as all of it, with another text than what was generated."""
    completion = replace(output.completion, text=text, thought="", finish_reason="stop", stop_reason="")
    return Output(output.id, (Piece(text),), (), completion=completion)


def source_of(source: Any) -> dict[str, Any]:
    return {"number": source.number, "id": source.id, "version": source.version, "title": source.title,
            "url": source.url, "date": source.date}  # fmt: skip


def problem_of(problem: Any) -> dict[str, Any]:
    return {"sentence": problem.sentence, "number": problem.number, "reason": problem.reason}
