"""What can be checked in a text: its numbers with their units, dates, quoted words and names, in one spelling."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from evergreen.knowledge.dates import dated, without
from evergreen.knowledge.names import code_spans, codes, han_names, latin_names, normal, quoted
from evergreen.knowledge.quantities import Quantity, quantities_in

SCORE = re.compile(r"(?<![\d.])(\d{1,3})\s?比\s?(\d{1,3})(?![\d.%])")


@dataclass(frozen=True)
class Facts:
    """What a text states, in one spelling. `numbers` carry their unit: "12.5 %", "3000000 元"."""

    numbers: frozenset[str] = field(default=frozenset())
    dates: frozenset[str] = field(default=frozenset())
    quoted: frozenset[str] = field(default=frozenset())
    names: frozenset[str] = field(default=frozenset())

    def __bool__(self) -> bool:
        return bool(self.numbers or self.dates or self.quoted or self.names)


def facts_of(text: str) -> Facts:
    """The numbers, dates, quoted words and names of a text."""
    spelled = normal(text)
    found = list(dated(spelled))
    names = [*codes(spelled), *map(normal, latin_names(text)), *han_names(text)]
    return Facts(
        numbers=frozenset(str(quantity) for quantity in quantities(spelled, [span for _, span in found])),
        dates=frozenset(str(date) for date, _ in found),
        quoted=frozenset(quoted(text)),
        names=frozenset(names),
    )


def quantities(text: str, dates: Sequence[tuple[int, int]] | None = None) -> list[Quantity]:
    """The numbers of a text as `normal` gives it, without those of its names, scores and dates (their places, found
    when not given)."""
    spans = [span for _, span in dated(text)] if dates is None else dates
    scores = (match.span() for match in SCORE.finditer(text))
    return quantities_in(without(text, [*spans, *code_spans(text), *scores]))


NEGATIONS = re.compile(
    r"没有|没能|尚未|未|无法|无需|无须|并非|绝非|禁止|严禁|谢绝|拒绝|否认|不"
    r"|\b(?:not|no(?!\.|$|\s?\d)|never|none|nobody|nothing|neither|nor|cannot|without|isn't|aren't|wasn't|weren't|don't|doesn't|didn't|won't|can't"
    r"|couldn't|shouldn't|wouldn't|hasn't|haven't|hadn't|refused|denied|prohibit(?:s|ed)?|forbid(?:s|den)?|banned)\b|n't\b"
)
NO_NEGATIONS = re.compile(
    "不仅|不但|不同|不断|不久|不少|不过|不错|不足|不到|[不未]满|不[得能可应会]超过|不[超高大多少小低]于?过?|不等|不敌|不料|不惜"
    "|不如|不及|不得不|无论|非常|未来|不管|不只|无人机|不收费|不要钱|not only|(?:must not|may not|cannot|not) exceed"
    "|(?:no|not) (?:more|less|fewer|later|earlier|older) than"
    "|costs? nothing|(?:no|without) (?:extra |additional )?(?:charge|cost|fee)"
)


def is_negated(text: str) -> bool:
    """Whether an odd number of negations stands in the text."""
    return len(NEGATIONS.findall(NO_NEGATIONS.sub(" ", normal(text).replace("’", "'")))) % 2 == 1
