"""Requests in, one forward pass at a time, outputs back.

Promises: a request joins and leaves between any two steps; what goes wrong with one is its error and leaves the others
alone; a grammar that takes long to compile, an adapter that is being loaded and one that leaves hold up nobody else.
Does not: run by itself. `step` is called from one thread; `load_adapter` may come from another.
"""

import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evergreen.engine import sampler
from evergreen.engine.answer import OPEN, Answer, Piece
from evergreen.engine.base import EngineSettings, Logprob, Output, Request, Stats, TokenLogprobs, check_fits
from evergreen.engine.block_manager import BlockManager, root_key
from evergreen.engine.grammar import Grammars, leaves_text
from evergreen.engine.scheduler import Scheduler
from evergreen.engine.sequence import Chunk
from evergreen.engine.sequence import Sequence as Row
from evergreen.engine.vocabulary import Vocabulary, eos_ids
from evergreen.records import BadInput

if TYPE_CHECKING:
    from evergreen.model.load import LoadedModel

SMALL_PARAMETERS = 50_000_000
GRAMMAR_SECONDS = 0.02  # that a step with nothing to compute waits for a grammar


class Stepper:
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
        self._outbox: list[Output] = []
        self._waiting_for_grammar: list[Row] = []
        self._leaving: dict[str, Callable[[], None]] = {}  # adapters to be unloaded when their last request has ended
        self._unloading = threading.Lock()  # between whether an adapter stays and what is done about it
        self._counts: Counter[str] = Counter()  # of tokens; a prompt's when it has ended
        self._step_seconds = 0.0

    # -- requests and steps

    def add(self, request: Request) -> None:
        """It runs from the next step on, or from when its grammar is compiled; one that cannot be ends in an output
        that says so. Raises BadInput when it cannot run: too long, an unknown adapter, a sampling that makes no
        sense."""
        self._check(request)
        row = self._rows[request.id] = self._row(request)
        if request.sampling.grammar:
            self._waiting_for_grammar.append(row)
        else:
            self.scheduler.add(row)
        if row.wants_prompt:
            row.num_told_tokens = 1
            first = self._told(row.ids[0], sampler.Ranked(math.nan, []))
            self._outbox.append(Output(request.id, prompt_logprobs=(first,)))

    def cancel(self, id: str) -> None:
        """The next step returns its last output; an unknown id is one that has just ended."""
        if row := self._rows.get(id):
            self._outbox.append(self._finish(row, "cancelled", time.perf_counter()))

    def has_work(self) -> bool:
        """Whether a step would do or return anything."""
        return bool(self._rows or self._outbox)

    def step(self) -> list[Output]:
        """One forward pass. Returns what it adds to each request."""
        outputs, self._outbox = self._outbox + self._begin_compiled(), []
        start = time.perf_counter()
        with self._threads(), torch.inference_mode():
            chunks = self.scheduler.schedule()
            if chunks:
                outputs += self._run(chunks)
                self._step_seconds = time.perf_counter() - start
            elif self._waiting_for_grammar and not outputs:
                self.grammars.wait(GRAMMAR_SECONDS)
        return outputs

    def stats(self) -> Stats:
        return Stats(
            num_waiting=len(self.scheduler.waiting) + len(self._waiting_for_grammar),
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
        with self._unloading:
            told = self._leaving.pop(digest, None)
        self.runner.adapters.load(digest, folders, self.has_work)
        if told:  # it has left and come back
            told()

    def unload_adapter(self, digest: str, told: Callable[[], None] = lambda: None) -> None:
        """At once, or when its last running request has ended; then `told` is called. New requests are refused. Raises
        BadInput when it is not loaded, or leaving already."""
        self.runner.adapters.slot_of(digest)
        if digest in self._leaving:
            raise BadInput(f"adapter {digest[:12]} is being unloaded")
        self._leaving[digest] = told
        self._unload_unused()

    def _unload_unused(self) -> None:
        for digest in self._leaving.keys() - {row.request.adapter for row in self._rows.values()}:
            with self._unloading:
                told = self._leaving.pop(digest, None)
                if told:
                    self.runner.adapters.unload(digest)
            if told:
                told()

    # -- one step

    def _begin_compiled(self) -> list[Output]:
        """Those whose grammars are ready join the others; what is no grammar ends here."""
        waiting, self._waiting_for_grammar, outputs = self._waiting_for_grammar, [], []
        for row in waiting:
            grammar = row.request.sampling.grammar
            if not self.grammars.is_ready(grammar):
                self._waiting_for_grammar.append(row)
                continue
            try:
                row.matcher = self.grammars.matcher(grammar)
            except BadInput as error:
                self._end(row)
                outputs.append(Output(row.request.id, error=str(error), is_refused=True))
            else:
                self.scheduler.add(row)
        return outputs

    def _run(self, chunks: list[Chunk]) -> list[Output]:
        """Compute the chunks and draw a token of each row whose tokens are all computed by now."""
        rows, logits, outputs = self._logits(chunks)
        if not rows:
            return outputs
        drawn, now = sampler.sample(logits, rows), time.perf_counter()
        for place, (row, token) in enumerate(zip(rows, drawn.tokens, strict=True)):
            if error := drawn.errors.get(place):
                outputs.append(self._fail(row, error, is_refused=error != sampler.NOT_NUMBERS))
            elif not row.max_new_tokens:
                outputs.append(self._finish(row, "length", now))
            else:
                outputs.append(self._advance(row, token, drawn.ranked.get(place), now))
        return outputs

    def _logits(self, chunks: list[Chunk]) -> tuple[list[Row], torch.Tensor | None, list[Output]]:
        """The rows whose chunk is their last, and their scores. When a pass fails its halves are tried, so that in the
        end only the request that cannot be computed gets the error."""
        try:
            scores = self.runner.run(chunks)
        except Exception as error:
            if len(chunks) == 1:
                return [], None, self._give_up(chunks[0], error)
        else:
            last, outputs = self._tell_prompts(chunks, scores)
            return [chunk.sequence for chunk in chunks if chunk.is_last], last, outputs
        half = len(chunks) // 2
        rows, logits, outputs = self._logits(chunks[:half])
        still = [chunk for chunk in chunks[half:] if chunk.sequence in self.scheduler.running]
        if not still:
            return rows, logits, outputs
        more_rows, more_logits, more_outputs = self._logits(still)
        found = [one for one in (logits, more_logits) if one is not None]
        return rows + more_rows, torch.cat(found) if found else None, outputs + more_outputs

    def _tell_prompts(self, chunks: list[Chunk], scores: torch.Tensor) -> tuple[torch.Tensor, list[Output]]:
        """The scores of the chunks' last tokens; log-probabilities of prompts, made from the others."""
        if not any(chunk.num_scored for chunk in chunks):
            return scores, []
        last, outputs, place = [], [], 0
        for chunk in chunks:
            if chunk.num_scored:
                outputs.append(self._tell_prompt(chunk, scores[place : place + chunk.num_scored]))
            place += chunk.num_scored + chunk.is_last
            if chunk.is_last:
                last.append(place - 1)
        return scores[last], outputs

    def _tell_prompt(self, chunk: Chunk, scores: torch.Tensor) -> Output:
        """What has not been told before the sequence was preempted."""
        row, first = chunk.sequence, chunk.start + 1
        tokens = row.ids[first : first + len(scores)]
        ranked = sampler.rank(scores, tokens, [row.request.sampling.prompt_logprobs or 0] * len(tokens))
        told = [self._told(*pair) for pair in zip(tokens, ranked, strict=True)][max(0, row.num_told_tokens - first) :]
        row.num_told_tokens += len(told)
        return Output(row.request.id, prompt_logprobs=tuple(told))

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

    def _fail(self, row: Row, error: str, is_refused: bool = False) -> Output:
        """What it computed may be wrong, so nobody else shall find it."""
        self.blocks.forget(row.block_table)
        self._end(row)
        return Output(row.request.id, error=error, is_refused=is_refused)

    def _end(self, row: Row) -> None:
        del self._rows[row.request.id]
        if row in self._waiting_for_grammar:
            self._waiting_for_grammar.remove(row)
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
        check_fits(request.prompt, self.max_context_tokens)
        sampler.check(request.sampling, self.vocab_size)
        if min(request.prompt) < 0 or max(request.prompt) >= self.vocab_size:
            wrong = next(token for token in request.prompt if not 0 <= token < self.vocab_size)
            raise BadInput(f"the prompt has token {wrong}; the model knows 0 to {self.vocab_size - 1}")
        if request.adapter in self._leaving:
            raise BadInput(f"adapter {request.adapter[:12]} is being unloaded")
        self.runner.adapters.slot_of(request.adapter)
        if request.id in self._rows:
            raise BadInput(f"request {request.id} is running already: ids have to be unique")

    def check(self, request: Request) -> None:
        """Also what takes time."""
        self._check(request)
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
            root=root_key(self._name, request.adapter, request.tenant),
        )

    def _answer(self, request: Request) -> Answer:
        """Under a grammar without room for it nothing is a thought, whether or not the prompt opens one."""
        opening = self.tokenizer.decode(list(request.prompt[-8:])).rstrip()
        in_thought = opening.endswith(OPEN) and leaves_text(request.sampling.grammar)
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


def _reason(error: Exception, chunk: Chunk) -> str:
    from evergreen.model.load import is_out_of_memory

    if is_out_of_memory(error):
        return (f"out of memory with {chunk.num_tokens} tokens at a time: lower max_num_batched_tokens or "
                "kv_cache_bytes, or shorten the prompt")  # fmt: skip
    if isinstance(error, FloatingPointError):
        return f"{error}: try --torch_dtype float32"
    return f"the forward pass failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
