"""Generation: requests in, completions out, many at a time, each as it comes.

Promises: greedy answers do not depend on what else runs (as nearly as the arithmetic allows: in fp32 the tokens are
equal, in bf16 near-ties may fall differently), nor do drawn ones with a seed; a request joins and leaves between any
two steps; what goes wrong with one is its error and leaves the others alone; tokens that another request of the same
adapter and tenant has computed are not computed again.
Does not: run by itself. `step` is one forward pass, and whoever has work calls it, from one thread; `load_adapter` may
come from another.

    engine = Engine(load_model("nano"))
    completion, = engine.generate([prompt], Sampling(max_new_tokens=64))
    for piece in engine.stream(prompt, Sampling()):
        print(piece, end="")
"""

import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evergreen.engine import sampler
from evergreen.engine.answer import OPEN, Answer, Piece
from evergreen.engine.base import EngineSettings, Logprob, Output, Request, Stats, TokenLogprobs
from evergreen.engine.block_manager import BlockManager, root_key
from evergreen.engine.grammar import Grammars
from evergreen.engine.scheduler import Scheduler
from evergreen.engine.sequence import Chunk
from evergreen.engine.sequence import Sequence as Row
from evergreen.engine.vocabulary import Vocabulary, eos_ids
from evergreen.records import BadInput, Completion, Failure, Sampling

if TYPE_CHECKING:
    from evergreen.model.load import LoadedModel

SMALL_PARAMETERS = 50_000_000


class Stream:
    """Iterates over an answer's pieces; `completion` is the whole answer once they have ended."""

    def __init__(self, pieces: Generator[Piece, None, Completion]):
        self.completion: Completion | None = None
        self._pieces = self._remember(pieces)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Nobody wants the rest."""
        self._pieces.close()

    def _remember(self, pieces: Generator[Piece, None, Completion]) -> Generator[Piece, None, None]:
        self.completion = yield from pieces


class Engine:
    """A loaded model that answers. `completion_tokens` counts the end-of-turn token too."""

    def __init__(self, loaded: "LoadedModel", settings: EngineSettings | None = None, runner: Any = None):
        """`runner` stands in for the one that the model gets. Raises BadInput for settings that do not fit it."""
        self.settings = settings or EngineSettings()
        self._name = loaded.name + self._quantize(loaded)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.eos_ids = eos_ids(loaded)
        self.is_small = sum(weight.numel() for weight in self.model.parameters()) < SMALL_PARAMETERS
        self.vocabulary = Vocabulary(self.tokenizer)
        config = self.model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.grammars = Grammars(self.tokenizer, self.vocab_size, self.eos_ids)
        self.runner = runner or self._make_runner()
        self.blocks = BlockManager(self.runner.num_blocks, self.settings.block_size, self.settings.prefix_caching)
        self.scheduler = Scheduler(self.blocks, self.settings.max_num_seqs, self.settings.max_num_batched_tokens)
        longest = self.settings.max_model_len or getattr(config, "max_position_embeddings", None) or sys.maxsize
        self.max_context_tokens: int = min(longest, self.runner.num_blocks * self.settings.block_size)
        self._rows: dict[str, Row] = {}
        self._inboxes: dict[str, list[Output]] = {}  # of `generate` and `stream`, whose outputs `step` keeps for them
        self._outbox: list[Output] = []
        self._leaving: set[str] = set()  # adapters to be unloaded when their last request has ended
        self._counts: Counter[str] = Counter()  # of tokens; a prompt's when it has ended
        self._step_seconds = 0.0
        self._num_made = 0

    # -- whole answers

    def check_fits(self, prompt: Sequence[int]) -> None:
        """Raises BadInput, with both numbers, unless the context has room for the prompt and one token more."""
        if not prompt or len(prompt) >= self.max_context_tokens:
            raise BadInput(
                f"the prompt has {len(prompt)} tokens; the context holds {self.max_context_tokens}, "
                f"prompt and answer together: {'shorten it' if prompt else 'ask something'}"
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        batch_size: int = 8,
        on_done: Callable[[int, Completion], None] | None = None,
        adapters: Sequence[str] = (),
    ) -> list[Completion]:
        """Answers in the order of `prompts`, `batch_size` at a time; `on_done(index, completion)` hears of each as it
        ends, in any order. `sampling` and `adapters` (digests, "" is the base) may be one a prompt.

        With one sampling and a seed, prompt i draws from seed + i: the same call repeats, and equal prompts may still
        differ. Raises BadInput when a prompt is empty or leaves no room in the model's context."""
        requests = self._requests(prompts, sampling, adapters)
        for request in requests:
            self._check(request)
        places = {request.id: place for place, request in enumerate(requests)}
        waiting, done, inbox = deque(requests), {}, []
        try:
            while len(done) < len(requests):
                while waiting and len(requests) - len(waiting) - len(done) < batch_size:
                    self._add_for(waiting.popleft(), inbox)
                for output in self._hear(inbox):
                    if output.completion:
                        place = places[output.id]
                        done[place] = output.completion
                        if on_done:
                            on_done(place, output.completion)
        finally:
            self._abandon(places)
        return [done[place] for place in range(len(requests))]

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        cancelled: Callable[[], bool] = lambda: False,
        adapter: str = "",
    ) -> Stream:
        """The answer piece by piece; `cancelled` is asked after every token. Raises BadInput as `generate` does."""
        [request] = self._requests([prompt], [sampling], [adapter])
        self._check(request)
        return Stream(self._pieces(request, cancelled))

    def _pieces(self, request: Request, cancelled: Callable[[], bool]) -> Generator[Piece, None, Completion]:
        inbox: list[Output] = []
        self._add_for(request, inbox)
        try:
            while True:
                for output in self._hear(inbox):
                    if output.token_ids and not output.is_last and cancelled():
                        self.cancel(request.id)
                    yield from output.pieces
                    if output.completion:
                        return output.completion
        finally:
            self._abandon([request.id])

    def _requests(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], adapters: Sequence[str]
    ) -> list[Request]:
        if isinstance(sampling, Sampling):
            first = sampling.seed
            seeds = [None if first is None else first + place for place in range(len(prompts))]
            sampling = [replace(sampling, seed=seed) for seed in seeds]
        self._num_made += 1
        adapters = adapters or [""] * len(prompts)
        parts = zip(prompts, sampling, adapters, strict=True)
        return [
            Request(f"{self._num_made}-{place}", tuple(prompt), how, adapter)
            for place, (prompt, how, adapter) in enumerate(parts)
        ]

    def _add_for(self, request: Request, inbox: list[Output]) -> None:
        self._inboxes[request.id] = inbox
        self.add(request)

    def _hear(self, inbox: list[Output]) -> Iterator[Output]:
        """What one step adds to the requests of this inbox. Raises Failure when the engine gave up on one."""
        others = self.step()
        self._outbox += others
        while inbox:
            output = inbox.pop(0)
            if output.error:
                raise Failure(output.error)
            yield output

    def _abandon(self, ids: Sequence[str] | dict[str, int]) -> None:
        """Whatever is left of them ends without a word."""
        for id in ids:
            if id in self._rows:
                self._end(self._rows[id])
            self._inboxes.pop(id, None)

    # -- requests and steps

    def add(self, request: Request) -> None:
        """It runs from the next step on. Raises BadInput when it cannot: too long, an unknown adapter, a sampling that
        makes no sense."""
        self._check(request)
        row = self._row(request)
        self._rows[request.id] = row
        self.scheduler.add(row)

    def cancel(self, id: str) -> None:
        """The next step returns its last output; an unknown id is one that has just ended."""
        if row := self._rows.get(id):
            self._outbox.append(self._finish(row, "cancelled", time.perf_counter()))

    def has_work(self) -> bool:
        """Whether a step would do or return anything."""
        return bool(self._rows or self._outbox)

    def step(self) -> list[Output]:
        """One forward pass. Returns what it adds to each request."""
        outputs, self._outbox = self._outbox, []
        start = time.perf_counter()
        with self._threads(), torch.inference_mode():
            chunks = self.scheduler.schedule()
            if chunks:
                outputs += self._run(chunks)
                self._step_seconds = time.perf_counter() - start
        others = []
        for output in outputs:
            self._inboxes.get(output.id, others).append(output)
        return others

    def stats(self) -> Stats:
        return Stats(
            num_waiting=len(self.scheduler.waiting),
            num_running=len(self.scheduler.running),
            num_blocks=self.blocks.num_blocks,
            num_free_blocks=self.blocks.num_free_blocks,
            num_preemptions=self.scheduler.num_preemptions,
            adapters=self.runner.adapters.digests(),
            step_seconds=self._step_seconds,
            **self._counts,
        )

    # -- adapters

    def load_adapter(self, digest: str, folders: Sequence[Path]) -> None:
        """Returns when requests may name it; `folders` are its chain, innermost first. May be called beside `step`.
        Raises BadInput when it does not fit the model or `max_adapters` are loaded."""
        self.runner.adapters.load(digest, folders)
        self._leaving.discard(digest)

    def unload_adapter(self, digest: str) -> None:
        """At once, or when its last running request has ended; new ones are refused. Raises BadInput when it is not
        loaded."""
        self.runner.adapters.slot_of(digest)
        self._leaving.add(digest)
        self._unload_unused()

    def _unload_unused(self) -> None:
        for digest in self._leaving - {row.request.adapter for row in self._rows.values()}:
            self._leaving.discard(digest)
            self.runner.adapters.unload(digest)

    # -- one step

    def _run(self, chunks: list[Chunk]) -> list[Output]:
        """Compute the chunks and draw a token of each row whose tokens are all computed by now."""
        rows, logits, outputs = self._logits(chunks)
        if not rows:
            return outputs
        drawn, now = sampler.sample(logits, rows), time.perf_counter()
        for place, (row, token) in enumerate(zip(rows, drawn.tokens, strict=True)):
            if error := drawn.errors.get(place):
                outputs.append(self._fail(row, error))
            else:
                outputs.append(self._advance(row, token, drawn.ranked.get(place), now))
        return outputs

    def _logits(self, chunks: list[Chunk]) -> tuple[list[Row], torch.Tensor | None, list[Output]]:
        """The rows whose chunk is their last, and their scores. When a pass fails its halves are tried, so that in the
        end only the request that cannot be computed gets the error."""
        try:
            return [chunk.sequence for chunk in chunks if chunk.is_last], self.runner.run(chunks), []
        except Exception as error:
            if len(chunks) == 1:
                return [], None, self._give_up(chunks[0], error)
        half = len(chunks) // 2
        rows, logits, outputs = self._logits(chunks[:half])
        still = [chunk for chunk in chunks[half:] if chunk.sequence in self.scheduler.running]
        if not still:
            return rows, logits, outputs
        more_rows, more_logits, more_outputs = self._logits(still)
        found = [one for one in (logits, more_logits) if one is not None]
        return rows + more_rows, torch.cat(found) if found else None, outputs + more_outputs

    def _give_up(self, chunk: Chunk, error: Exception) -> list[Output]:
        """Nothing was written into its blocks: those who had found them in the cache are computed again."""
        blocks = set(chunk.sequence.block_table)
        output = self._fail(chunk.sequence, _reason(error, chunk))
        for other in [other for other in self.scheduler.running if blocks & set(other.block_table)]:
            self.scheduler.preempt(other)
        return [output]

    def _advance(self, row: Row, token: int, ranked: sampler.Ranked | None, now: float) -> Output:
        row.ids.append(token)
        self._counts["num_generated_tokens"] += 1
        row.first_token_seconds = row.first_token_seconds or now - row.started
        if row.seen is not None:
            row.seen.add(token)
        if row.matcher is not None:
            row.matcher.add(token)
        pieces = [] if token in row.stop_ids else row.answer.add(token)
        logprobs = () if ranked is None else (self._told(token, ranked),)
        reason = self._finish_reason(row, token)
        if reason:
            return self._finish(row, reason, now, pieces, (token,), logprobs)
        return Output(row.request.id, tuple(pieces), (token,), logprobs)

    def _finish_reason(self, row: Row, token: int) -> str:
        if token in row.stop_ids or row.answer.is_stopped or (row.matcher is not None and row.matcher.is_complete):
            return "stop"
        return "length" if row.num_new_tokens >= row.max_new_tokens else ""

    def _finish(
        self,
        row: Row,
        reason: str,
        now: float,
        pieces: Sequence[Piece] = (),
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> Output:
        row.finish_reason = reason
        pieces = (*pieces, *row.answer.close())
        self._end(row)
        return Output(row.request.id, pieces, token_ids, logprobs, row.completion(now))

    def _fail(self, row: Row, error: str) -> Output:
        """What it computed may be wrong, so nobody else shall find it."""
        self.blocks.forget(row.block_table)
        self._end(row)
        return Output(row.request.id, error=error)

    def _end(self, row: Row) -> None:
        del self._rows[row.request.id]
        self.scheduler.remove(row)
        self._counts.update(
            num_prompt_tokens=row.num_prompt_tokens,
            num_cached_tokens=row.num_cached_tokens or 0,
        )
        if self._leaving:
            self._unload_unused()

    def _told(self, token: int, ranked: sampler.Ranked) -> TokenLogprobs:
        def logprob(token: int, value: float) -> Logprob:
            return Logprob(token, self.vocabulary.text_of(token), value, self.vocabulary.bytes_of(token))

        return TokenLogprobs(logprob(token, ranked.chosen), tuple(logprob(*pair) for pair in ranked.top))

    # -- a request becomes a row

    def _check(self, request: Request) -> None:
        self.check_fits(request.prompt)
        sampler.check(request.sampling, self.vocab_size)
        if min(request.prompt) < 0 or max(request.prompt) >= self.vocab_size:
            wrong = next(token for token in request.prompt if not 0 <= token < self.vocab_size)
            raise BadInput(f"the prompt has token {wrong}; the model knows 0 to {self.vocab_size - 1}")
        if request.adapter in self._leaving:
            raise BadInput(f"adapter {request.adapter[:12]} is being unloaded")
        self.runner.adapters.slot_of(request.adapter)
        if request.id in self._rows:
            raise BadInput(f"request {request.id} is running already: ids have to be unique")
        if request.sampling.grammar:
            self.grammars.matcher(request.sampling.grammar)

    def _row(self, request: Request) -> Row:
        sampling = request.sampling
        return Row(
            request,
            list(request.prompt),
            min(sampling.max_new_tokens, self.max_context_tokens - len(request.prompt)),
            self._answer(request),
            random.Random(None if sampling.seed is None else sampling.seed % 2**64),
            time.perf_counter(),
            adapter_slot=self.runner.adapters.slot_of(request.adapter),
            stop_ids=(frozenset() if sampling.ignore_eos else self.eos_ids) | frozenset(sampling.stop_token_ids),
            seen=sampler.Seen(request.prompt) if sampler.needs_seen(sampling) else None,
            matcher=self.grammars.matcher(sampling.grammar) if sampling.grammar else None,
            root=root_key(self._name, request.adapter, request.tenant),
        )

    def _answer(self, request: Request) -> Answer:
        """Under a grammar the whole answer is text, whether or not the prompt opens a thought."""
        opening = self.tokenizer.decode(list(request.prompt[-8:])).rstrip()
        in_thought = opening.endswith(OPEN) and not request.sampling.grammar
        sampling = request.sampling
        return Answer(self.vocabulary.characters(), sampling.stop, in_thought, sampling.include_stop)

    def _quantize(self, loaded: "LoadedModel") -> str:
        """What tells the quantised model from the other one."""
        if not self.settings.quantization:
            return ""
        from evergreen.engine.quantize import quantize

        return quantize(loaded, self.settings.quantization).suffix

    def _make_runner(self) -> Any:
        from evergreen.engine.runner import Runner

        return Runner(self.model, self.settings)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """One thread for a small model: its products are too short to share, and threads that wait for each other lose
        out to any other process (40 tokens of nano beside a busy one: 2.5 s with two threads, 0.2 s with one)."""
        before = torch.get_num_threads()
        torch.set_num_threads(1 if self.is_small else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def settings_for(batch_size: int, **others: Any) -> EngineSettings:
    """Settings of an engine that `generate` shall run `batch_size` prompts of at a time."""
    usual = EngineSettings()
    return EngineSettings(
        max_num_seqs=max(usual.max_num_seqs, batch_size),
        max_num_batched_tokens=max(usual.max_num_batched_tokens, 2 * batch_size),
        **others,
    )


def _reason(error: Exception, chunk: Chunk) -> str:
    from evergreen.model.load import is_out_of_memory

    if is_out_of_memory(error):
        return (f"out of memory with {chunk.num_tokens} tokens at a time: lower max_num_batched_tokens or "
                "kv_cache_bytes, or shorten the prompt")  # fmt: skip
    if isinstance(error, FloatingPointError):
        return f"{error}: try --torch_dtype float32"
    return f"the forward pass failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
