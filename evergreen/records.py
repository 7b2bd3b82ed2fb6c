"""The nouns that rooms exchange, all frozen, and the two errors that a user can meet.

Evergreen errors
├── BadInput   the user can mend it: a flag, a file, a row      (exit code 2)
└── Failure    the machine or the run failed: disk, memory, NaN (exit code 1)
"""

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


class EvergreenError(Exception):
    """One line for a person: what was wanted, what came, what to do."""

    exit_code = 1


class BadInput(EvergreenError):
    """Something the user gave cannot be used as it is."""

    exit_code = 2


class Failure(EvergreenError):
    """The input was fine and the work still could not be done."""


@dataclass(frozen=True)
class Message:
    """One turn. `thought` is reasoning before an assistant's answer; `tool_calls` are {"name", "arguments"} dicts."""

    role: Role
    content: str = ""
    thought: str = ""
    tool_calls: tuple[dict, ...] = ()
    trained: bool = True  # an assistant turn marked False is context, never a target


@dataclass(frozen=True)
class Origin:
    """Where a record came from, for messages: the file (or hub name) and its 1-based line or row number."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Conversation:
    """A supervised record. `label` is KTO's thumbs up or down on the last answer; None for ordinary records."""

    messages: tuple[Message, ...]
    tools: tuple[dict, ...] = ()
    label: bool | None = None
    origin: Origin = field(default=Origin(), compare=False)


@dataclass(frozen=True)
class Preference:
    """One prompt with a better and a worse answer."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[dict, ...] = ()
    origin: Origin = field(default=Origin(), compare=False)


@dataclass(frozen=True)
class Text:
    """Plain text for continued pre-training: every token is a target."""

    text: str
    origin: Origin = field(default=Origin(), compare=False)


Record = Conversation | Preference | Text


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact of the knowledge base. Times are ISO 8601 in UTC, "" stands for none; it answers questions asked from
    `valid_from` on and before `valid_until`. `version` is semantic (MAJOR.MINOR.PATCH)."""

    content: str
    id: str = ""
    title: str = ""
    source_url: str = ""
    update_time: str = ""
    version: str = "1.0.0"
    tags: tuple[str, ...] = ()
    language: str = ""
    valid_from: str = ""
    valid_until: str = ""


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn. temperature 0 is greedy; `seed` makes a drawn one repeatable.

    `grammar` is what the answer must be: "", "json", "schema:" with a JSON schema, "regex:" with an expression;
    "calls:" with the schema that the JSON of each tool call in it must match, or "form-or-calls:" with {form, call}:
    calls and nothing else, or JSON that matches the schema `form`."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_new_tokens: int = 512
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False  # the stop string stays at the end of the text
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None  # how many likeliest tokens to tell of; 0: only the chosen one
    prompt_logprobs: int | None = None  # the same of the prompt's tokens; with it max_new_tokens may be 0
    grammar: str = ""


@dataclass(frozen=True)
class Completion:
    """A generated answer. `text` has no special tokens; `thought` is what stood between <think> and </think>."""

    text: str
    thought: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length", "cancelled"]
    latency_seconds: float
    first_token_seconds: float
    token_ids: tuple[int, ...] = ()
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache
    stop_reason: str = ""  # the stop string that ended it


@dataclass(frozen=True)
class Scores:
    """The mean of one metric over a task's items (a fraction from 0 to 1) with its 95% interval."""

    task: str
    metric: str
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Check:
    """One limit of the gate on one task. Differences and their one-sided 95% bounds are fractions; drift is in nats per
    token and latency a ratio, both with their 95% interval; `passed` None is undecided. A check that is not `required`
    has too few items to be asked for: it can reject, and need not be passed."""

    name: str  # gain, old, best, retention, drift or latency
    task: str
    value: float | None  # None: not a number
    low: float | None
    limit: float
    passed: bool | None
    high: float | None = None
    num_items: int = 0
    items_needed: int | None = None  # of this task, to decide; only where undecided
    required: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a candidate. `items_needed` is how many items every undecided task would have to have."""

    decision: Literal["promote", "reject", "undecided"]
    reasons: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    advice: tuple[str, ...] = ()
    items_needed: int | None = None

    @property
    def promoted(self) -> bool:
        return self.decision == "promote"


@dataclass(frozen=True)
class Release:
    """The unit of serving and of rollback, immutable. Models, adapters and parents are named by digest; `knowledge` is
    "live" or a snapshot number; None stands for what is not there."""

    id: str
    base: str
    adapter: str | None = None
    knowledge: str = "live"
    edits: str | None = None
    prompt: dict | None = None  # {"system", "template"}
    sampling: dict | None = None
    parent: str | None = None
    gate: dict | None = None
    created: str = ""
