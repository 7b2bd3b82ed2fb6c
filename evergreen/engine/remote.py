"""Other servers as engines: requests over HTTP, answers token by token, adapters by digest.

Promises: one thread of its own, in which all callbacks run; a cancelled request closes its connection, queued or not,
so that the server stops working on it; a server that is busy (429, 503) or starting is asked again with growing pauses
until `patience_seconds` have passed; every request ends with a completion or with one line that says what went wrong.
Does not: start servers (`launch`), nor load adapters into a server that cannot be told to.
"""

import asyncio
import dataclasses
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.engine.answer import OPEN, Answer, Piece
from evergreen.engine.base import Logprob, Output, Request, Stats, TokenLogprobs, check_fits
from evergreen.engine.dialects import Delta, Dialect, Plain
from evergreen.engine.vocabulary import Vocabulary
from evergreen.records import BadInput, Completion, EvergreenError, Failure

if TYPE_CHECKING:
    import httpx2
    from transformers import PreTrainedTokenizerBase

OnOutput = Callable[[Output], None]
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 600.0  # the second: between two bytes of an answer, queueing included
PAUSE_SECONDS = (0.25, 8.0)
DIGEST_LENGTH = 12  # characters of a digest in a server's name for an adapter


class RemoteEngine:
    """An `engine.base.Engine` over an HTTP server that is running. `models` are its names: "" for the base, and by
    digest those adapters that it has been started with."""

    def __init__(
        self,
        url: str,
        tokenizer: "PreTrainedTokenizerBase",
        dialect: Dialect | None = None,
        *,
        api_key: str = "",
        models: dict[str, str] | None = None,
        max_context_tokens: int = 0,
        max_connections: int = 256,
        patience_seconds: float = 30.0,
    ):
        self.url, self.tokenizer, self.dialect = url.rstrip("/").removesuffix("/v1"), tokenizer, dialect or Plain()
        self.vocabulary = Vocabulary(tokenizer)
        self.patience_seconds = patience_seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._is_closed = False
        self._models = dict(models or {})
        self._running: dict[str, str] = {}  # {id: adapter}
        self._tasks: dict[str, asyncio.Task] = {}  # the loop's thread's own
        self._stats = Stats()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"client of {self.url}", daemon=True)
        self._thread.start()
        try:
            self._http = self._wait(self._connect())
            self.max_context_tokens = max_context_tokens or self._told_context()
        except BaseException:
            self._stop_loop()
            raise

    # -- what an engine does

    def submit(self, request: Request, on_output: OnOutput) -> None:
        check_fits(request.prompt, self.max_context_tokens)
        if request.sampling.prompt_logprobs is not None:
            raise BadInput("log-probabilities of a prompt come from the embedded engine only")
        room = self.max_context_tokens - len(request.prompt)
        if request.sampling.max_new_tokens > room:
            sampling = dataclasses.replace(request.sampling, max_new_tokens=room)
            request = dataclasses.replace(request, sampling=sampling)
        prompt = list(request.prompt) if self.dialect.takes_ids else self.tokenizer.decode(list(request.prompt))
        with self._lock:
            if self._is_closed:
                raise Failure(f"the client of {self.url} is closed")
            if request.adapter and request.adapter not in self._models:
                raise BadInput(f"no adapter {request.adapter[:DIGEST_LENGTH]} is loaded")
            body = self.dialect.body(request, self._models.get(request.adapter, ""), prompt)
            self._running[request.id] = request.adapter
            self._loop.call_soon_threadsafe(self._begin, request, body, on_output)

    def cancel(self, id: str) -> None:
        with self._lock:
            if id in self._running:
                self._loop.call_soon_threadsafe(self._cancel, id)

    def load_adapter(self, digest: str, folders: Sequence[Path]) -> None:
        if digest in self._models:
            return
        if not self.dialect.can_load:
            raise BadInput(f"the server at {self.url} loads no adapters while it runs: start it with them")
        if len(folders) > 1:
            raise BadInput("vllm takes one adapter and not a chain: train with --merge_chain concat, or use "
                           "--engine embedded")  # fmt: skip
        self.reload({digest: folders})

    def reload(self, adapters: Mapping[str, Sequence[Path]]) -> None:
        """Tell a server that has forgotten them. Its folders are immutable, so a name is always the same bytes."""
        for digest, folders in adapters.items():
            name = digest[:DIGEST_LENGTH]
            self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(Path(folders[0]).resolve())})
            with self._lock:
                self._models[digest] = name

    def unload_adapter(self, digest: str) -> None:
        with self._lock:
            if digest not in self._models or not digest:
                raise BadInput(f"no adapter {digest[:DIGEST_LENGTH]} is loaded")
            name = self._models.pop(digest)
        self.drain(digest)
        if self.dialect.can_load:
            self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def drain(self, adapter: str | None = None) -> None:
        """Returns when no request, or none of that adapter, is running."""
        while True:
            with self._lock:
                if not any(adapter in (None, own) for own in self._running.values()):
                    return
            time.sleep(0.02)

    def stats(self) -> Stats:
        """As this client has seen it; blocks are the server's own affair."""
        with self._lock:
            loaded = tuple(digest for digest in self._models if digest)
            return dataclasses.replace(self._stats, num_running=len(self._running), adapters=loaded)

    def is_healthy(self) -> bool:
        """Whether the server says so, within five seconds."""
        import httpx2

        try:
            return self._wait(self._http.get("/health", timeout=CONNECT_SECONDS)).is_success
        except (httpx2.HTTPError, Failure):
            return False

    def close(self) -> None:
        """What still runs ends as cancelled."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._wait(self._leave())
        self._stop_loop()

    async def _leave(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    # -- one request, in the loop's thread

    def _begin(self, request: Request, body: dict[str, Any], on_output: OnOutput) -> None:
        row = _Row(request, self)
        task = self._tasks[request.id] = self._loop.create_task(self._answer(row, body, on_output))
        task.add_done_callback(lambda task: self._ended(row, task, on_output))

    def _cancel(self, id: str) -> None:
        if task := self._tasks.get(id):
            task.cancel()

    def _ended(self, row: "_Row", task: asyncio.Task, on_output: OnOutput) -> None:
        del self._tasks[row.request.id]
        if task.cancelled():  # before its first step
            self._say(row, row.last("cancelled"), on_output)

    async def _answer(self, row: "_Row", body: dict[str, Any], on_output: OnOutput) -> None:
        id = row.request.id
        try:
            async for event in self._events(body):
                for output in row.add(self.dialect.read(event)):
                    self._say(row, output, on_output)
                if row.is_done:
                    break
            else:
                self._say(row, row.last(), on_output)
        except asyncio.CancelledError:
            self._say(row, row.last("cancelled"), on_output)
        except EvergreenError as error:
            self._say(row, Output(id, error=str(error), is_refused=isinstance(error, BadInput)), on_output)
        except Exception as error:  # an answer that nobody could foresee must not leave its caller waiting
            text = " ".join(f"{self.url} answered what cannot be read ({error!r})".split())
            self._say(row, Output(id, error=text), on_output)

    def _say(self, row: "_Row", output: Output, on_output: OnOutput) -> None:
        """Hand over an output; who hears the last one finds the request gone from the engine. Nothing follows it."""
        if row.is_told:
            return
        if output.is_last:
            row.is_told = True
            self._count(row)
        on_output(output)

    def _count(self, row: "_Row") -> None:
        with self._lock:
            del self._running[row.request.id]
            stats = self._stats
            self._stats = dataclasses.replace(
                stats,
                num_prompt_tokens=stats.num_prompt_tokens + len(row.request.prompt),
                num_cached_tokens=stats.num_cached_tokens + row.num_cached,
                num_generated_tokens=stats.num_generated_tokens + row.num_tokens,
            )

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The stream's JSON objects. A server that is busy or not there yet is asked again; one that breaks off in the
        middle is not, since what it said has been passed on. Raises BadInput or Failure."""
        import httpx2

        started, num_tries = time.monotonic(), 0
        while True:
            try:
                async with self._http.stream("POST", self.dialect.path, json=body) as response:
                    if response.is_success:
                        async for event in _data(response):
                            yield event
                        return
                    await response.aread()
                    problem, wanted = _problem(response), response.headers.get("retry-after", "")
                    if response.status_code not in (429, 503):
                        raise problem
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                problem, wanted = Failure(f"the server {self.url} does not answer"), ""
            except httpx2.HTTPError as error:
                raise Failure(f"the server {self.url} broke off ({error or type(error).__name__})") from None
            pause = float(wanted) if wanted.isdigit() else min(PAUSE_SECONDS[0] * 2**num_tries, PAUSE_SECONDS[1])
            if time.monotonic() - started + pause > self.patience_seconds:
                raise problem
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            num_tries += 1

    # -- the connection

    async def _connect(self) -> "httpx2.AsyncClient":
        import httpx2

        return httpx2.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx2.Limits(max_connections=self._max_connections),
            trust_env=False,
        )

    def _told_context(self) -> int:
        """Tokens of the server's context, by vLLM's, llama.cpp's or no word for it; also learns the base's name."""
        models = self._get("/v1/models").get("data") or [{}]
        base = next((one for one in models if not one.get("parent")), models[0])  # the others are its adapters
        self._models.setdefault("", base.get("id", ""))
        told = base.get("max_model_len") or (base.get("meta") or {}).get("n_ctx")
        return told or 1 << 30

    def _get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, json=body)

    def _call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        import httpx2

        try:
            response = self._wait(self._http.request(method, path, **how))
        except httpx2.HTTPError as error:
            raise Failure(f"the server {self.url} does not answer ({error or type(error).__name__})") from None
        if not response.is_success:
            raise _problem(response)
        return response.json() if "json" in response.headers.get("content-type", "") else {}

    def _wait(self, work: Any) -> Any:
        if self._loop.is_closed():
            work.close()
            raise Failure(f"the client of {self.url} is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Row:
    """A request on its way: deltas in, outputs out."""

    def __init__(self, request: Request, engine: RemoteEngine):
        self.request, self.engine = request, engine
        sampling = request.sampling
        characters = engine.vocabulary.characters() if engine.dialect.tells_ids else chr
        opening = engine.tokenizer.decode(list(request.prompt[-8:])).rstrip()
        self.answer = Answer(characters, sampling.stop, opening.endswith(OPEN), sampling.include_stop)
        self.token_ids: list[int] = []
        self.usage: dict[str, int] = {}
        self.finish_reason = self.stop_reason = ""
        self.started, self.first_token_seconds = time.perf_counter(), 0.0
        self.is_done = False  # nothing more is wanted from the server
        self.is_told = False  # its last output

    @property
    def num_tokens(self) -> int:
        return self.usage.get("completion_tokens") or len(self.token_ids)

    @property
    def num_cached(self) -> int:
        return self.usage.get("cached_tokens", 0)

    def add(self, delta: Delta) -> list[Output]:
        """Nothing for an event without news; the last output when a stop string of ours has ended it."""
        self.usage = delta.usage or self.usage
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop_reason = delta.stop_reason or self.stop_reason
        pieces = self._pieces(delta)
        if (delta.token_ids or delta.text) and not self.first_token_seconds:
            self.first_token_seconds = time.perf_counter() - self.started
        logprobs = tuple(self._with_text(one) for one in delta.logprobs)
        outputs = []
        if pieces or delta.token_ids or logprobs:
            outputs.append(Output(self.request.id, tuple(pieces), delta.token_ids, logprobs))
        if self.answer.is_stopped:
            outputs.append(self.last("stop"))
        return outputs

    def _pieces(self, delta: Delta) -> list[Piece]:
        self.token_ids += delta.token_ids
        tokens = delta.token_ids if self.engine.dialect.tells_ids else map(ord, delta.text)
        return [piece for token in tokens for piece in self.answer.add(token)]

    def _with_text(self, told: TokenLogprobs) -> TokenLogprobs:
        """Spellings for those tokens of which the server told ids only."""
        return TokenLogprobs(self._spelled(told.chosen), tuple(map(self._spelled, told.top)))

    def _spelled(self, one: Logprob) -> Logprob:
        if one.token_id < 0 or one.bytes:
            return one
        vocabulary = self.engine.vocabulary
        return Logprob(one.token_id, vocabulary.text_of(one.token_id), one.logprob, vocabulary.bytes_of(one.token_id))

    def last(self, finish_reason: str = "") -> Output:
        """The end of it, with what was held back. Raises Failure when the server has not said why it stopped."""
        self.is_done = True
        reason = finish_reason or self.finish_reason
        if reason not in ("stop", "length", "cancelled"):
            raise Failure(f"the server {self.engine.url} ended an answer without a word ({reason or 'no reason'})")
        seconds = time.perf_counter() - self.started
        pieces = tuple(self.answer.close())
        completion = Completion(
            self.answer.text, self.answer.thought, self.usage.get("prompt_tokens") or len(self.request.prompt),
            self.num_tokens, reason, seconds, self.first_token_seconds or seconds, tuple(self.token_ids),
            self.num_cached, self.answer.stop_reason or self.stop_reason,
        )  # fmt: skip
        return Output(self.request.id, pieces, completion=completion)


async def _data(response: "httpx2.Response") -> AsyncIterator[dict[str, Any]]:
    """The objects behind `data:` of a stream of server-sent events, or the one that was sent instead. Raises Failure
    for an error sent as one."""
    if "json" in response.headers.get("content-type", ""):
        yield json.loads(await response.aread())
        return
    async for line in response.aiter_lines():
        kind, _, text = line.partition(":")
        text = text.strip()
        if kind not in ("data", "error") or text == "[DONE]":
            continue
        event = json.loads(text)
        if kind == "error" or "error" in event:
            raise Failure(f"the server gave up: {_message(event.get('error', event))}")
        yield event


def _problem(response: "httpx2.Response") -> EvergreenError:
    try:
        given = response.json()
        message = _message(given.get("error", given))
    except ValueError:
        message = " ".join(response.text.split())[:200]
    is_ours = 400 <= response.status_code < 500 and response.status_code not in (401, 403, 408, 429)
    kind = BadInput if is_ours else Failure
    return kind(f"the server {response.url.host}:{response.url.port} answered {response.status_code}: {message}")


def _message(error: Any) -> str:
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:300]
