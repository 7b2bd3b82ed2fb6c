"""What a body asks for, checked and in our own nouns."""

from dataclasses import dataclass, field
from typing import Any, Literal

from evergreen.engine.grammar import leaves_text
from evergreen.records import Message, Sampling
from evergreen.serve.schemas import EvergreenOptions

Kind = Literal["chat", "response", "completion", "generate"]


@dataclass(frozen=True)
class Call:
    """One body as it will be run: `messages` (a chat, in either shape) or `prompts`, each with `n` choices."""

    kind: Kind
    model: str = ""  # as the client names it; "" is the server's own choice
    lora: str = ""  # lora_request's name
    messages: tuple[Message, ...] = ()
    tools: tuple[dict, ...] = ()  # function objects that the model is shown
    must_call: bool = False  # the answer is one tool call, by a grammar
    prompts: tuple[str | tuple[int, ...], ...] = ()
    sampling: Sampling = Sampling()  # max_new_tokens 0: as many as the context has room for
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    is_only_echo: bool = False  # nothing is generated
    add_generation_prompt: bool = True
    add_special_tokens: bool = True
    template_variables: dict[str, Any] = field(default_factory=dict)
    user: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    cache_salt: str = ""  # narrows the tenant of the prefix cache
    priority: int = 0
    may_trim: bool | None = None  # whether the oldest exchanges may go; None: as the server has it
    repeated: dict[str, Any] = field(default_factory=dict)  # what a response says again of its body
    evergreen: EvergreenOptions | None = None

    @property
    def is_chat(self) -> bool:
        return self.kind in ("chat", "response")

    @property
    def is_fixed(self) -> bool:
        """Whether the answer's form has no room for text of its own."""
        return self.must_call or not leaves_text(self.sampling.grammar)
