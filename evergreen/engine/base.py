"""What an engine is to those who use it: requests in, outputs back, adapters named by digest.

Two things implement `Engine`: the embedded engine in a process of its own (`process.ProcessEngine`) and other servers
(`remote.RemoteEngine`). Light to import: no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evergreen.engine.answer import Piece
from evergreen.records import BadInput, Completion, Sampling


@dataclass(frozen=True)
class EngineSettings:
    """How much an engine may hold and run at a time. 0 and "" stand for what the model or the machine suggests."""

    kv_cache_bytes: int = 0  # 0: room for max_num_seqs x 2,048 tokens, at most a quarter of the memory that is free
    block_size: int = 16  # tokens of a KV block
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512  # tokens of one forward pass, prompts and answers together
    max_model_len: int = 0
    prefix_caching: bool = True
    max_adapters: int = 8
    quantization: str = ""  # int8, int4 or nf4
    sliding_window: int = 0
    rope_scaling: str = ""  # yarn


@dataclass(frozen=True)
class Request:
    """One prompt to be answered. `adapter` is the digest of a loaded adapter, "" the base. KV blocks are never shared
    between tenants. A lower `priority` runs first."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str = ""
    tenant: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Logprob:
    """A token with the logarithm of its probability before temperature and filters, nan for a prompt's first, which has
    none; `bytes` are those of its text."""

    token_id: int
    text: str
    logprob: float
    bytes: bytes


@dataclass(frozen=True)
class TokenLogprobs:
    """The token that was chosen, and the likeliest ones."""

    chosen: Logprob
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Output:
    """What one step adds to one request; the last one has `completion`, or `error` when the engine gave up on it."""

    id: str
    pieces: tuple[Piece, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    completion: Completion | None = None
    error: str = ""
    is_refused: bool = False  # beside `error`: the request itself cannot be answered, the engine is well
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt's next tokens, before anything of the answer

    @property
    def is_last(self) -> bool:
        return self.completion is not None or bool(self.error)


@dataclass(frozen=True)
class Stats:
    """An engine at one moment; the counts of tokens and preemptions are since it started."""

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompt tokens, those found in the prefix cache
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    adapters: tuple[str, ...] = ()
    step_seconds: float = 0.0  # of the last forward pass


def check_fits(prompt: Sequence[int], max_context_tokens: int) -> None:
    """Raises BadInput, with both numbers, unless the context has room for the prompt and one token more."""
    if not prompt or len(prompt) >= max_context_tokens:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens; the context holds {max_context_tokens}, prompt and answer together: "
            + ("shorten it" if prompt else "ask something")
        )


class Engine(Protocol):
    """Answers requests as they come, many at a time. Callbacks come from a thread of the engine's."""

    max_context_tokens: int

    def submit(self, request: Request, on_output: Callable[[Output], None]) -> None:
        """Raises BadInput when the prompt does not fit or the adapter is not loaded."""

    def cancel(self, id: str) -> None:
        """Its last output says finish_reason "cancelled"; an unknown id is one that has just ended."""

    def load_adapter(self, digest: str, folders: Sequence[Path]) -> None:
        """Returns when requests may name it; `folders` are its chain, innermost first. Raises BadInput when it does not
        fit the model."""

    def unload_adapter(self, digest: str) -> None:
        """Its running requests end first. Raises BadInput when it is not loaded."""

    def stats(self) -> Stats: ...

    def is_healthy(self) -> bool:
        """Whether a request would be answered now, rather than wait for an engine that is being started."""

    def close(self) -> None: ...
