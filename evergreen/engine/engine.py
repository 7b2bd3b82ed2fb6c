"""Generation: prompts of token ids in, completions out, one by one or in batches, at once or as they come.

Promises: greedy answers do not depend on what else is in the batch (as nearly as the arithmetic allows: in fp32 the
tokens are equal, in bf16 near-ties may fall differently); the same seed draws the same answer; a finished row leaves
its batch.
Does not: join new prompts to a running batch, share prefixes, or serve several adapters at a time.

    engine = Engine(load_model("nano"))
    completion, = engine.generate([prompt], Sampling(max_new_tokens=64))
    for piece in engine.stream(prompt, Sampling()):
        print(piece, end="")
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from evergreen.engine.answer import OPEN, Answer, Piece
from evergreen.records import BadInput, Completion, Failure, Sampling

if TYPE_CHECKING:
    from transformers import Cache

    from evergreen.model.load import LoadedModel

SMALL_PARAMETERS = 50_000_000


@dataclass
class _Row:
    """A prompt on its way to a completion."""

    index: int  # place in the caller's list
    prompt: list[int]
    sampling: Sampling
    max_new_tokens: int
    answer: Answer
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    started: float = field(default_factory=time.perf_counter)
    first_token_seconds: float = 0.0
    latency_seconds: float = 0.0

    def completion(self) -> Completion:
        return Completion(
            self.answer.text,
            self.answer.thought,
            len(self.prompt),
            len(self.ids),
            self.finish_reason,
            self.latency_seconds,
            self.first_token_seconds,
        )


class Stream:
    """Iterates over an answer's pieces; `completion` is the whole answer once they have ended."""

    def __init__(self, pieces: Iterator[Piece]):
        self.completion: Completion | None = None
        self._pieces = self._remember(pieces)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _remember(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        self.completion = yield from pieces


class Engine:
    """A loaded model that answers. `completion_tokens` counts the end-of-turn token too."""

    def __init__(self, loaded: "LoadedModel"):
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.eos_ids = _eos_ids(loaded)
        self.is_small = sum(weight.numel() for weight in self.model.parameters()) < SMALL_PARAMETERS
        config = self.model.config.get_text_config()
        self.max_context_tokens: int = getattr(config, "max_position_embeddings", None) or sys.maxsize

    def check_fits(self, prompt: list[int]) -> None:
        """Raises BadInput, with both numbers, unless the context has room for the prompt and one token more."""
        if not prompt or len(prompt) >= self.max_context_tokens:
            raise BadInput(
                f"the prompt has {len(prompt)} tokens; the context holds {self.max_context_tokens}, "
                f"prompt and answer together: {'shorten it' if prompt else 'ask something'}"
            )

    def generate(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        batch_size: int = 8,
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Answers in the order of `prompts`; `on_done(index, completion)` hears of each as it ends, in any order.

        With a seed, prompt i draws from seed + i: the same call repeats, and equal prompts may still differ.
        Raises BadInput when a prompt is empty or leaves no room in the model's context."""
        rows = [self._row(prompt, sampling, index) for index, prompt in enumerate(prompts)]
        by_length = sorted(rows, key=lambda row: -len(row.prompt))  # alike lengths need little padding
        for start in range(0, len(rows), batch_size):
            for row, _ in self._run(by_length[start : start + batch_size]):
                if row.finish_reason and on_done:
                    on_done(row.index, row.completion())
        return [row.completion() for row in rows]

    def stream(self, prompt: list[int], sampling: Sampling, cancelled: Callable[[], bool] = lambda: False) -> Stream:
        """The answer piece by piece; `cancelled` is asked after every token. Raises BadInput as `generate` does."""
        return Stream(self._pieces(self._row(prompt, sampling), cancelled))

    def _pieces(self, row: _Row, cancelled: Callable[[], bool]) -> Iterator[Piece]:
        for _, pieces in self._run([row], cancelled):
            yield from pieces
        return row.completion()

    def _row(self, prompt: list[int], sampling: Sampling, index: int = 0) -> _Row:
        self.check_fits(prompt)
        opening = self.tokenizer.decode(prompt[-8:]).rstrip()
        generator = torch.Generator(self.model.device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed + index)
        return _Row(
            index,
            prompt,
            sampling,
            min(sampling.max_new_tokens, self.max_context_tokens - len(prompt)),
            Answer(self.tokenizer, sampling.stop, in_thought=opening.endswith(OPEN)),
            generator,
        )

    def _run(
        self, rows: Sequence[_Row], cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[_Row, list[Piece]]]:
        """Decode until every row has its finish_reason, yielding each row with the pieces of each of its tokens."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        live, start = list(rows), time.perf_counter()
        for row in live:
            row.started = start
        ids, mask = _left_padded([row.prompt for row in live], self.tokenizer.pad_token_id or 0, self.model.device)
        while live:
            with self._threads():
                tokens = _draw(self._logits(ids, mask, cache), live)
            is_cancelled = cancelled()
            for row, token in zip(live, tokens, strict=True):
                yield row, self._advance(row, token, is_cancelled)
            kept = [place for place, row in enumerate(live) if not row.finish_reason]
            if kept and len(kept) < len(live):
                places = torch.tensor(kept, device=mask.device)
                cache.batch_select_indices(places)
                mask = mask[places]
            live = [live[place] for place in kept]
            ids = torch.tensor([[row.ids[-1]] for row in live], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)

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

    @torch.no_grad()
    def _logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: "Cache") -> torch.Tensor:
        """Scores of the next token, [rows, vocabulary] in fp32. `ids` [rows, new], `mask` [rows, cached + new]."""
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        keep = {"logits_to_keep": 1} if self.model._supports_logits_to_keep() else {}
        try:
            output = self.model(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, **keep
            )
        except RuntimeError as error:
            from evergreen.model.load import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            raise Failure(
                f"out of memory with {len(ids)} prompts of up to {mask.shape[1]} tokens: lower --batch_size "
                "or shorten the prompts"
            ) from None
        logits = output.logits[:, -1].float()
        if logits.isnan().any():
            raise Failure(f"the model's scores are not numbers in {self.model.dtype}: try --torch_dtype float32")
        return logits

    def _advance(self, row: _Row, token: int, is_cancelled: bool) -> list[Piece]:
        row.ids.append(token)
        row.first_token_seconds = row.first_token_seconds or time.perf_counter() - row.started
        pieces = [] if token in self.eos_ids else row.answer.add(token)
        if token in self.eos_ids or row.answer.is_stopped:
            row.finish_reason = "stop"
        elif is_cancelled:
            row.finish_reason = "cancelled"
        elif len(row.ids) >= row.max_new_tokens:
            row.finish_reason = "length"
        if row.finish_reason:
            pieces += row.answer.close()
            row.latency_seconds = time.perf_counter() - row.started
        return pieces


def _eos_ids(loaded: "LoadedModel") -> frozenset[int]:
    """Tokens that end an answer: the model's own, the tokenizer's, and ChatML's end of turn where it is one token."""
    own = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = {*(own if isinstance(own, list | tuple) else [own]), loaded.tokenizer.eos_token_id}
    end_of_turn = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    if end_of_turn != loaded.tokenizer.unk_token_id:
        ids.add(end_of_turn)
    return frozenset(ids - {None})


def _left_padded(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both [prompts, longest], the padding in front."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _draw(logits: torch.Tensor, rows: list[_Row]) -> list[int]:
    """The next token of each row; `logits` [rows, vocabulary]."""
    if all(row.sampling.temperature == 0 and row.sampling.repetition_penalty == 1 for row in rows):
        return logits.argmax(dim=-1).tolist()
    return [_draw_one(scores[None], row) for scores, row in zip(logits, rows, strict=True)]


def _draw_one(scores: torch.Tensor, row: _Row) -> int:
    """transformers' own order of things: penalty, temperature, top-k, top-p. `scores` [1, vocabulary]."""
    from transformers import generation as hf

    sampling = row.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.tensor([row.prompt + row.ids], device=scores.device)
        scores = hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(seen, scores)
    if sampling.temperature == 0:
        return int(scores.argmax())
    scores = hf.TemperatureLogitsWarper(float(sampling.temperature))(None, scores)
    if sampling.top_k > 0:
        scores = hf.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = hf.TopPLogitsWarper(sampling.top_p)(None, scores)
    return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=row.generator))
