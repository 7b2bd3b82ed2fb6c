"""What training costs, in floating point operations that are counted and not timed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass
class Work:
    """Floating point operations of one increment, by what they were for, and the lowest layer that learns."""

    lowest: int = 0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, flop: float) -> None:
        self.parts[name] = self.parts.get(name, 0.0) + flop


@dataclass(frozen=True)
class Counter:
    """Operations of a model of this shape: a matrix costs 2 a weight and token forward and 2 for the gradient of its
    input, an adapter 2 more for its own. Below the lowest layer that learns there is no backward pass."""

    config: Any
    rank: int

    @property
    def layer(self) -> int:
        """Weights of one decoder layer."""
        return sum(a * b for a, b in self._sides)

    @property
    def adapter(self) -> int:
        return sum(self.rank * (a + b) for a, b in self._sides)

    @cached_property
    def _sides(self) -> list[tuple[int, int]]:
        c = self.config
        wide = c.hidden_size
        narrow = wide // c.num_attention_heads * c.num_key_value_heads
        return [(wide, wide)] * 2 + [(wide, narrow)] * 2 + [(wide, c.intermediate_size)] * 3

    def forward(self, tokens: int, targets: int) -> float:
        layers = self.config.num_hidden_layers * (self.layer + self.adapter)
        return 2.0 * (tokens * layers + targets * self.config.hidden_size * self.config.vocab_size)

    def backward(self, tokens: int, targets: int, lowest: int = 0) -> float:
        passed = self.config.num_hidden_layers - lowest
        layers = passed * (self.layer + 2 * self.adapter)
        return 2.0 * (tokens * layers + targets * self.config.hidden_size * self.config.vocab_size)

    def training(self, tokens: int, targets: int, lowest: int = 0) -> float:
        return self.forward(tokens, targets) + self.backward(tokens, targets, lowest)


def size_of(rows: Sequence[Any]) -> tuple[int, int]:
    """Tokens and targets of packed rows or of encoded records."""
    if rows and hasattr(rows[0], "ids"):
        return sum(len(one.ids) for one in rows), sum(sum(one.is_target) for one in rows)
    return sum(row.num_tokens for row in rows), sum(row.num_targets for row in rows)
