"""What `conformance` asks and what it compares with: engines and servers as targets, isolated greedy runs as reference.

A target answers many questions at a time, greedily; a reference answers one question with nothing else going on. Both
give tokens (ids, or the server's own spellings where it tells no ids) and a reference tells by how much it preferred
each token to the next best one, so that a near tie can be told from a fault.
"""

import queue
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from evergreen.engine.base import Output, Request
from evergreen.records import BadInput, Failure, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from evergreen.engine.base import Engine as AnyEngine
    from evergreen.engine.engine import Engine

BASE = "base"
TIMEOUT_SECONDS = 120.0  # for one answer of a server


@dataclass(frozen=True)
class Question:
    """A prompt, and the name of the model that is to go on with it."""

    model: str
    prompt: str


@dataclass(frozen=True)
class Reply:
    """A greedy answer. `gaps` are nats between each token's score and the next best one's, where they are known."""

    tokens: tuple
    text: str = ""
    gaps: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int | None = None  # of the prompt; None: the engine does not say
    end_ids: frozenset[int] = frozenset()  # of a reference: one of these at the end is told by some and not by others


class Target(Protocol):
    """Something that holds a base and adapters by name. Raises BadInput for a name that it does not know."""

    can_load: bool

    def complete(
        self, questions: Sequence[Question], max_tokens: int, meanwhile: Callable[[], None] | None = None
    ) -> list[Reply]:
        """All of them at once; `meanwhile` is called when they are under way."""

    def load(self, name: str, folder: Path) -> None: ...

    def unload(self, name: str) -> None: ...

    def close(self) -> None: ...


class Reference(Protocol):
    """What a model answers when it is alone."""

    def answer(self, question: Question, max_tokens: int) -> Reply: ...


class _ByDigest:
    """Names over an engine that knows adapters by digest, as the server keeps them."""

    can_load = True

    def __init__(self, engine: Any, tokenizer: "PreTrainedTokenizerBase"):
        self.engine, self.tokenizer = engine, tokenizer
        self.digests = {BASE: ""}

    def load(self, name: str, folder: Path) -> None:
        from evergreen.model.adapters import adapter_digest

        digest = adapter_digest(folder)
        if digest not in self.digests.values():
            self.engine.load_adapter(digest, [folder])
        self.digests[name] = digest

    def unload(self, name: str) -> None:
        digest = self.digests.pop(name)
        if digest not in self.digests.values():
            self.engine.unload_adapter(digest)

    def complete(
        self, questions: Sequence[Question], max_tokens: int, meanwhile: Callable[[], None] | None = None
    ) -> list[Reply]:
        requests = [self._request(question, max_tokens) for question in questions]
        outputs: dict[str, list[Output]] = {request.id: [] for request in requests}
        for output in self._answers(requests):
            outputs[output.id].append(output)
            if meanwhile:
                meanwhile()
                meanwhile = None
        return [_reply(outputs[request.id]) for request in requests]

    def _answers(self, requests: list[Request]) -> Iterator[Output]:
        """All requests at once: what the engine says, until the last has ended."""
        raise NotImplementedError

    def _request(self, question: Question, max_tokens: int) -> Request:
        # a name that was taken back goes through as it is: the engine must refuse it
        digest = self.digests.get(question.model, question.model)
        prompt = tuple(self.tokenizer(question.prompt)["input_ids"])
        return Request(uuid.uuid4().hex, prompt, Sampling(max_new_tokens=max_tokens, logprobs=0), digest)

    def close(self) -> None:
        if hasattr(self.engine, "close"):
            self.engine.close()


def _reply(outputs: list[Output]) -> Reply:
    last = outputs[-1]
    if last.error:
        raise Failure(last.error)
    done = last.completion
    tokens = done.token_ids or tuple(token for output in outputs for token in output.token_ids)
    return Reply(tuple(tokens), done.text, (), done.prompt_tokens, done.num_cached_tokens)


class InProcess(_ByDigest):
    """The embedded engine in this process, stepped by hand."""

    engine: "Engine"

    def _answers(self, requests: list[Request]) -> Iterator[Output]:
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work():
            yield from self.engine.step()


class Served(_ByDigest):
    """Any engine/base.Engine: the embedded one in its process, vLLM, llama.cpp."""

    engine: "AnyEngine"

    def _answers(self, requests: list[Request]) -> Iterator[Output]:
        arrived: queue.Queue[Output] = queue.Queue()
        for request in requests:
            self.engine.submit(request, arrived.put)
        num_running = len(requests)
        while num_running:
            try:
                output = arrived.get(timeout=TIMEOUT_SECONDS)
            except queue.Empty:
                raise Failure(f"no answer within {TIMEOUT_SECONDS:.0f} seconds") from None
            num_running -= output.is_last
            yield output


class Server:
    """An OpenAI-compatible server as its users see it: /v1/completions with text, adapters as model names."""

    def __init__(self, url: str, api_key: str, models: dict[str, str], folder: Path | None = None):
        """`models` is {label: name at the server}; `folder` is where adapters to be loaded by path may stand."""
        import httpx2

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx2.Client(
            base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False
        )
        self.models, self.folder = dict(models), folder
        self.extras = self._accepted({"return_token_ids": True}, {"return_tokens": True})
        self.cold = self._accepted({"cache_salt": "evergreen"}, {"cache_prompt": False})
        self.can_load = folder is not None and self._knows("/v1/load_lora_adapter")

    def complete(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        meanwhile: Callable[[], None] | None = None,
        is_cold: bool = False,
    ) -> list[Reply]:
        with ThreadPoolExecutor(len(questions)) as pool:
            running = [pool.submit(self._ask, question, max_tokens, is_cold) for question in questions]
            if meanwhile:
                meanwhile()
            return [one.result() for one in running]

    def _ask(self, question: Question, max_tokens: int, is_cold: bool) -> Reply:
        cold = {name: uuid.uuid4().hex if name == "cache_salt" else value for name, value in self.cold.items()}
        body = {
            "model": self.models.get(question.model, question.model), "prompt": question.prompt,
            "max_tokens": max_tokens, "temperature": 0, "logprobs": 2, **self.extras, **(cold if is_cold else {}),
        }  # fmt: skip
        return _reply_of(self._post("/v1/completions", body))

    def load(self, name: str, folder: Path) -> None:
        """Always at the same path for a name, whose bytes change: what a cache keyed by path would not see."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        self.models[name] = name

    def unload(self, name: str) -> None:
        self._post("/v1/unload_lora_adapter", {"lora_name": self.models.get(name, name)})

    def close(self) -> None:
        self.http.close()

    def _accepted(self, *fields: dict[str, Any]) -> dict[str, Any]:
        """Those extensions of the request that the server does not refuse."""
        body = {"model": self.models[BASE], "prompt": "a", "max_tokens": 1, "temperature": 0}
        self._post("/v1/completions", body)
        accepted: dict[str, Any] = {}
        for one in fields:
            try:
                self._post("/v1/completions", body | one)
                accepted |= one
            except BadInput:
                continue
        return accepted

    def _knows(self, path: str) -> bool:
        return self.http.post(path, json={}).status_code not in (401, 403, 404, 405)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer's JSON. Raises BadInput for what the server refuses and Failure when it cannot be had."""
        import httpx2

        try:
            response = self.http.post(path, json=body)
        except httpx2.HTTPError as error:
            raise Failure(f"{self.http.base_url} does not answer ({error or type(error).__name__})") from None
        if response.is_success:
            return response.json() if "json" in response.headers.get("content-type", "") else response.text
        kind = BadInput if response.status_code < 500 and response.status_code != 429 else Failure
        raise kind(f"{path} answered {response.status_code}: {' '.join(response.text.split())[:200]}")


def _reply_of(answer: dict[str, Any]) -> Reply:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    spellings, gaps = _logprobs(choice.get("logprobs") or {})
    details = usage.get("prompt_tokens_details") or {}
    timings = answer.get("timings") or {}
    ids = choice.get("token_ids") or choice.get("tokens") or answer.get("tokens")
    return Reply(
        tuple(ids or spellings or choice["text"]),
        choice["text"],
        gaps,
        usage.get("prompt_tokens", 0),
        details.get("cached_tokens", timings.get("cache_n")),
    )


def _logprobs(given: dict[str, Any]) -> tuple[list[str], tuple[float, ...]]:
    """Tokens and the gaps of their two best, from the shape of completions or from that of chats."""
    if "content" in given:
        tokens = [one["token"] for one in given["content"]]
        tops = [[other["logprob"] for other in one["top_logprobs"]] for one in given["content"]]
    else:
        tokens = given.get("tokens") or []
        tops = [list((one or {}).values()) for one in given.get("top_logprobs") or []]
    best = [sorted(top, reverse=True) for top in tops]
    return tokens, tuple(top[0] - top[1] if len(top) > 1 else float("inf") for top in best)


@dataclass
class Alone:
    """The server itself as its reference: each question by itself, past the prefix cache where the server can do so."""

    server: Server
    known: dict[Question, Reply] = field(default_factory=dict)

    def answer(self, question: Question, max_tokens: int) -> Reply:
        if question not in self.known:
            self.known[question] = self.server.complete([question], max_tokens, is_cold=True)[0]
        return self.known[question]


class Isolated:
    """transformers and PEFT in fp32, one question at a time."""

    def __init__(self, model: str, adapters: dict[str, Path], tokenizer: "PreTrainedTokenizerBase"):
        import torch
        from peft import PeftModel
        from transformers import GenerationConfig

        from evergreen.engine.vocabulary import eos_ids
        from evergreen.model.load import LoadedModel, load_base

        self.tokenizer, self.model = tokenizer, load_base(model, torch.float32, "cpu")
        self.eos_ids = eos_ids(LoadedModel(self.model, tokenizer, None, model))
        for label, folder in adapters.items():
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(str(folder), label)
            else:
                self.model = PeftModel.from_pretrained(self.model, str(folder), label)
        self.model.eval()
        self.model.generation_config = GenerationConfig()  # Qwen's own has a repetition penalty, also when greedy
        self.answer = lru_cache(maxsize=None)(self._answer)

    def _answer(self, question: Question, max_tokens: int) -> Reply:
        if question.model == BASE:
            if not hasattr(self.model, "disable_adapter"):
                return self._generate(question.prompt, max_tokens)
            with self.model.disable_adapter():
                return self._generate(question.prompt, max_tokens)
        self.model.set_adapter(question.model)
        return self._generate(question.prompt, max_tokens)

    def _generate(self, prompt: str, max_tokens: int) -> Reply:
        import torch
        from transformers import GenerationConfig

        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]])
        how = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=sorted(self.eos_ids), pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        with torch.no_grad():
            output = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)
        best = torch.stack(output.logits).float()[:, 0].topk(2).values
        tokens = tuple(output.sequences[0, ids.shape[1] :].tolist())
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Reply(tokens, text, tuple((best[:, 0] - best[:, 1]).tolist()), ids.shape[1], end_ids=self.eos_ids)
