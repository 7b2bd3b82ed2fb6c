"""One engine on trial: prompts that nobody has asked before, and answers compared with those given alone.

An answer is right when every token is the reference's, or when the reference itself was undecided at the first
different one (its two best scores within `max_gap` nats): such a near tie is counted, and ends what is compared.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evergreen.evaluate.targets import BASE, Question, Reference, Reply, Target
from evergreen.records import EvergreenError

ROUNDING_GAP = 1e-3  # nats; fp32 sums in another order differ by about 1e-5
GAP_16_BIT = 0.25  # nats; bf16 tells scores of 16 to 32 apart by 0.125
SHORT_WORDS, LONG_WORDS = 5, 60
WORDS = (
    "river stone lantern copper window garden winter engine bridge letter harbor silver mountain paper orchard "
    "thunder cotton marble signal forest 河流 石桥 灯塔 秋天 茶园 铜钟 山路 书信 港口 棉花"
).split()


class Fault(Exception):
    """An answer that is not the one that the model gives when it is alone."""


@dataclass
class Tally:
    """What the checks of one case have seen."""

    num_answers: int = 0
    num_ties: int = 0
    num_tokens: int = 0
    num_compared: int = 0

    def told(self) -> str:
        """For the table. Raises Fault when near ties left too little to compare."""
        if 2 * self.num_compared < self.num_tokens:
            raise Fault(f"undecided: {self.num_compared} of {self.num_tokens} tokens came before a near tie")
        ties = f", {self.num_ties} of them up to a near tie" if self.num_ties else ""
        return f"{self.num_answers} answers right" + ties


class Trial:
    """A target beside its reference. `folders` are the adapters by label, {} where only their names are known."""

    def __init__(
        self, target: Target, reference: Reference, labels: Sequence[str], folders: dict[str, Path],
        max_tokens: int = 8, max_gap: float = ROUNDING_GAP,
    ):  # fmt: skip
        self.target, self.reference, self.folders = target, reference, folders
        self.models = [BASE, *labels]
        self.adapters = list(labels)
        self.max_tokens, self.max_gap = max_tokens, max_gap
        self.tally = Tally()
        self._loaded = set(labels)
        self._seeds = itertools.count()

    def prompt(self, num_words: int = SHORT_WORDS) -> str:
        """One that differs from all others from its first words on."""
        chosen = random.Random(next(self._seeds))
        return " ".join(chosen.choice(WORDS) for _ in range(num_words))

    def prompts(self) -> list[str]:
        """A short one, a long one, and two with the long one's beginning."""
        long = self.prompt(LONG_WORDS)
        return [self.prompt(), long, *(f"{long} {self.prompt()}" for _ in range(2))]

    def ask(self, model: str, prompt: str) -> Reply:
        return self.target.complete([Question(model, prompt)], self.max_tokens)[0]

    def expect(self, model: str, prompt: str) -> Reply:
        return self.reference.answer(Question(model, prompt), self.max_tokens)

    def load(self, name: str, weights: str) -> None:
        """The adapter of the label `weights`, under any name."""
        self.target.load(name, self.folders[weights])
        self._loaded.add(name)

    def unload(self, name: str) -> None:
        self._loaded.discard(name)
        self.target.unload(name)

    def restore(self) -> None:
        """The adapters by their own names and nothing else, whatever a case has left. Raises what loading raises."""
        for name in self._loaded - set(self.adapters):
            self.unload(name)
        for label in self.adapters:
            if label not in self._loaded:
                self.load(label, label)

    def check(self, model: str, prompt: str, reply: Reply, weights: str = "") -> None:
        """Raises Fault unless `reply` of the name `model` is what its `weights` (by default of that label) say."""
        weights = weights or model
        wanted = self.expect(weights, prompt)
        reply, wanted = comparable(reply, wanted)
        place = first_difference(reply.tokens, wanted.tokens)
        self.tally.num_answers += 1
        self.tally.num_tokens += len(wanted.tokens)
        self.tally.num_compared += len(wanted.tokens) if place is None else place
        if place is None:
            return
        gap = wanted.gaps[place] if place < len(wanted.gaps) else float("inf")
        if gap <= self.max_gap:
            self.tally.num_ties += 1
            return
        others = [other for other in self.models if other != weights and self._is(reply, other, prompt)]
        raise Fault(
            f"{model} asked for {short(prompt)!r}: token {place + 1} is {show(reply, place)}, alone it is "
            f"{show(wanted, place)}" + (f" by {gap:.2g} nats" if gap < float("inf") else "")
            + (f"; this is the answer of {others[0]}" if others else "")
        )  # fmt: skip

    def _is(self, reply: Reply, other: str, prompt: str) -> bool:
        try:
            ours, theirs = comparable(reply, self.expect(other, prompt))
        except EvergreenError:  # the reference is the server, which holds `other` no longer
            return False
        return ours.tokens == theirs.tokens

    def ask_and_check(self, model: str, prompt: str) -> None:
        self.expect(model, prompt)  # before the target has seen the prompt, should the reference be the same server
        self.check(model, prompt, self.ask(model, prompt))

    def check_together(self, asked: Sequence[tuple[str, str]], only: Sequence[str] = ()) -> None:
        """(model, prompt)s in one batch; `only` limits whose answers are looked at."""
        looked_at = [place for place, (model, _) in enumerate(asked) if not only or model in only]
        for place in looked_at:
            self.expect(*asked[place])
        replies = self.target.complete([Question(*one) for one in asked], self.max_tokens)
        for place in looked_at:
            self.check(*asked[place], replies[place])


def comparable(one: Reply, other: Reply) -> tuple[Reply, Reply]:
    """Both as ids, without the token that ended them, or both as characters, gaps going with them."""
    if not (one.tokens and other.tokens and type(one.tokens[0]) is type(other.tokens[0])):
        return _characters(one), _characters(other)
    ends = one.end_ids | other.end_ids
    return _without_end(one, ends), _without_end(other, ends)


def _without_end(reply: Reply, ends: frozenset[int]) -> Reply:
    return replace(reply, tokens=reply.tokens[:-1]) if reply.tokens[-1] in ends else reply


def _characters(reply: Reply) -> Reply:
    gap = min(reply.gaps, default=float("inf"))  # which character belongs to which token, nobody knows
    return Reply(tuple(reply.text), reply.text, (gap,) * len(reply.text))


def first_difference(reply: tuple, wanted: tuple) -> int | None:
    for place, (one, other) in enumerate(zip(reply, wanted, strict=False)):
        if one != other:
            return place
    return None if len(reply) == len(wanted) else min(len(reply), len(wanted))


def show(reply: Reply, place: int) -> str:
    return repr(reply.tokens[place]) if place < len(reply.tokens) else "none"


def short(prompt: str) -> str:
    return prompt if len(prompt) <= 40 else prompt[:24] + "..." + prompt[-13:]
