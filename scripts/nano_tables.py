"""Small tables and their JSON, for the nano model's training.

Promises: a column holds values of one kind as a rule, often alike (same beginning, one digit apart), because there a
careless copier slips into another row. Does not: write a comma, a bar, a quote or a line end inside a cell.
"""

import json
import random

from nano_attributes import english, noun_attributes, shown_value, titled, wild
from nano_context import Turns
from nano_names import attributes, frames, han, literal, made_up, neighbour, person, words


def is_plain(text: str) -> bool:
    return 0 < len(text) <= 32 and not set(text) & set(',|"\\\n') and text == text.strip()


def cell(r: random.Random, language: str, kind: str) -> str:
    """`any` is every maker there is."""
    makers = [
        lambda: str(r.randint(0, 10 ** r.randint(1, 5))),
        lambda: literal(r, language),
        lambda: person(r, language),
        lambda: shown_value(r, r.choice(attributes(language))[1], language),
        lambda: english(r) if language == "en" else han(r, 2, 3),
    ]
    while True:
        text = shown_value(r, kind, language) if kind != "any" else r.choice(makers)()
        if r.random() < 0.08:
            text = titled(r, 2, 3) if language == "en" else wild(r, "phrase", "zh")
        if is_plain(text):
            return text


def column(r: random.Random, language: str, num_rows: int) -> list[str]:
    """Cells of one kind, of any kind, of a few values, alike, or some of them empty."""
    way = r.random()
    kind = "any" if way < 0.25 else r.choice(attributes(language))[1]
    cells = [cell(r, language, kind) for _ in range(num_rows)]
    if 0.25 < way < 0.40:
        few = cells[:2]
        cells = [r.choice(few) for _ in range(num_rows)]
    elif 0.40 < way < 0.60:
        alike = [neighbour(r, r.choice(cells), language) for _ in range(num_rows)]
        cells = [new if is_plain(new) and r.random() < 0.7 else old for old, new in zip(cells, alike, strict=True)]
    elif 0.60 < way < 0.72:
        begin = cells[0][: r.randint(1, max(1, len(cells[0]) - 1))].rstrip()
        cells = [text if r.random() < 0.3 else joined(r, begin, text, language) for text in cells]
    elif way > 0.97:
        cells = ["" if r.random() < 0.4 else text for text in cells]
    return cells


def joined(r: random.Random, begin: str, text: str, language: str) -> str:
    """A cell that begins as its neighbours do."""
    new = begin + r.choice(["", "" if language == "zh" else " ", "-"]) + text
    return new if is_plain(new) else text


def columns(r: random.Random, language: str) -> list[str]:
    """Names from the list, nouns, coined, two words, in any case; no name twice."""
    nouns = [names[0] for names, _, _, _ in noun_attributes(language)]

    def coin() -> str:
        if language == "zh":
            return r.choice([han(r, 1, 4), han(r, 2, 3), r.choice(nouns)])
        return r.choice([made_up(r), english(r).lower(), r.choice(nouns), f"{english(r).lower()}_{english(r).lower()}"])

    names = r.sample(words(f"{language}.columns"), r.randint(2, 4))
    names = [coin() if r.random() < 0.4 else old for old in names]
    if language == "en" and r.random() < 0.3:
        names = [old.title() for old in names]
    return list(dict.fromkeys(names))


def table(r: random.Random, language: str) -> Turns:
    """Markdown or CSV to a JSON list of objects; every cell becomes a string, as it is written."""
    names, num_rows = columns(r, language), r.randint(1, 4)
    cells = [list(row) for row in zip(*(column(r, language, num_rows) for _ in names), strict=True)]
    form = r.random()
    if form < 0.5:
        rule = [r.choice(["---", "---", "---", "----", ":---", "-"])] * len(names)
        outer, inner = ("| {} |", " | ") if r.random() < 0.85 else ("|{}|", "|")
        text = "\n".join(outer.format(inner.join(row)) for row in [names, rule, *cells])
    else:
        text = "\n".join((", " if form > 0.92 else ",").join(row) for row in [names, *cells])
    answer = json.dumps([dict(zip(names, row, strict=True)) for row in cells], ensure_ascii=False)
    return [("user", r.choice(frames(f"{language}.table")).format(t=text)), ("assistant", answer)]
