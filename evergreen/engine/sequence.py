"""One request on its way through the engine: its tokens, where their keys and values lie, and what it has said."""

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evergreen.engine.answer import Answer
from evergreen.engine.base import Request
from evergreen.records import Completion

if TYPE_CHECKING:
    from evergreen.engine.grammar import Matcher
    from evergreen.engine.sampler import Seen


@dataclass(eq=False, slots=True)
class Sequence:
    """`ids` are the prompt and the answer so far. The keys and values of the first `num_computed_tokens` are in the
    cache, token i in block `block_table[i // block_size]`."""

    request: Request
    ids: list[int]
    max_new_tokens: int
    answer: Answer
    generator: random.Random
    started: float  # seconds of time.perf_counter
    arrival: int = 0
    adapter_slot: int = 0
    stop_ids: frozenset[int] = frozenset()  # tokens that end the answer and are not part of it
    seen: "Seen | None" = None  # only where a penalty wants it
    matcher: "Matcher | None" = None
    root: bytes = b""  # where its chain of block keys begins
    block_keys: list[bytes] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)
    num_published_blocks: int = 0  # of the table's, those that others may find
    num_prompt_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None  # of the prompt, found in the prefix cache at the first start
    num_told_tokens: int = 0  # of the prompt, those whose log-probabilities have been told
    finish_reason: str = ""
    first_token_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.ids)

    @property
    def order(self) -> tuple[int, int]:
        """Who runs first: the lower priority, then the earlier one."""
        return self.request.priority, self.arrival

    @property
    def num_new_tokens(self) -> int:
        return len(self.ids) - self.num_prompt_tokens

    @property
    def num_open_tokens(self) -> int:
        """Tokens still to be computed before the next one can be drawn; 1 while it decodes."""
        return len(self.ids) - self.num_computed_tokens

    @property
    def wants_prompt(self) -> bool:
        """Whether log-probabilities of its prompt are still to be told."""
        return self.request.sampling.prompt_logprobs is not None and self.num_told_tokens < self.num_prompt_tokens

    def completion(self, now: float) -> Completion:
        return Completion(
            self.answer.text,
            self.answer.thought,
            self.num_prompt_tokens,
            self.num_new_tokens,
            self.finish_reason,
            now - self.started,
            self.first_token_seconds,
            tuple(self.ids[self.num_prompt_tokens :]),
            self.num_cached_tokens or 0,
            self.answer.stop_reason,
        )


@dataclass(eq=False, slots=True)
class Chunk:
    """Tokens [start, start + num_tokens) of a sequence, to be computed in one forward pass. Scores are wanted of its
    last token where that is the sequence's, and of its first `num_scored` tokens, each before another of the prompt."""

    sequence: Sequence
    start: int
    num_tokens: int
    num_scored: int = 0

    @property
    def is_last(self) -> bool:
        """Whether it reaches the end of the ids, so that the next token can be drawn."""
        return self.start + self.num_tokens == len(self.sequence.ids)

    def scored_places(self) -> list[int]:
        """Of its tokens, those whose scores are wanted."""
        return [*range(self.num_scored), *([self.num_tokens - 1] if self.is_last else [])]
